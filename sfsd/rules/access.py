"""What of the files a user may see. A foreign file and one that is not there look the same."""

from __future__ import annotations

from collections.abc import Callable

from protocol.codec.values import Value
from protocol.records.records import FileRecord
from protocol.wire.messages import FileView
from sfsd.errors import Absent, Refused
from sfsd.rules.record_rules import Head
from sfsd.rules.users import Accounts
from sfsd.state.documents import Document
from sfsd.state.file_index import Index
from sfsd.storage.json_files import Sidecar
from sfsd.storage.paths import VersionPaths


class Visible(Value):
    """One version of a file that `user` may see; `head` is the file as it stands."""

    user: str
    head: Head
    version: int
    document: Document[Sidecar]
    last: FileRecord

    @property
    def sidecar(self) -> Sidecar:
        return self.document.value

    @property
    def paths(self) -> VersionPaths:
        return self.head.paths(self.version)

    def view(self) -> FileView:
        newest = self.head.document or self.document
        return self.sidecar.view(self.user, newest.value.last)


class Visibility:
    """Decides by the readers and expiry in the file's last record, every time anew."""

    def __init__(self, accounts: Accounts, index: Index, clock: Callable[[], float]) -> None:
        self._accounts = accounts
        self._index = index
        self._clock = clock

    def newest(self, user: str, owner: str, file_id: str) -> Visible:
        """The newest version, deleted or not. Raises `Refused`, `DamagedError`."""
        if user != owner and self._accounts.account(owner) is None:
            raise not_found()
        head = Head.of(self._index.of(owner), file_id)
        if head.document is None:
            raise not_found()
        last = head.document.value.head_record
        if user != owner and not self._is_reader(user, last):
            raise not_found()
        return Visible(user, head, head.version, head.document, last)

    def version(self, user: str, owner: str, file_id: str, version: int) -> Visible:
        """Version `version`, 0 for the newest. Raises as `newest`."""
        return self.older(self.newest(user, owner, file_id), version)

    def older(self, newest: Visible, version: int) -> Visible:
        """As `version`, of a file whose `newest` version was just found."""
        if version in (0, newest.version):
            return newest
        try:
            document = newest.head.files.sidecar(newest.head.file_id, version)
        except Absent as exc:
            raise not_found() from exc
        return Visible(newest.user, newest.head, version, document, newest.last)

    def _is_reader(self, user: str, last: FileRecord) -> bool:
        now = self._clock()
        chain = self._accounts.chain(user)
        return chain is not None and any(
            name == user and first == chain[0].first_hash and (expires == 0 or now < expires)
            for name, first, expires in last.readers
        )


def not_found() -> Refused:
    return Refused("not-found", "no such file")
