"""Read access to files. A file that the user may not see gives the same error as a missing one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from protocol.codec.values import Value
from protocol.records.records import FileRecord
from protocol.wire.messages import FileView
from sfsd.errors import Absent, Refused
from sfsd.rules.reader_wishes import ReaderWishes
from sfsd.rules.record_rules import FileHead, not_found
from sfsd.rules.users import UserRegistry
from sfsd.state.documents import Document
from sfsd.state.file_index import FileIndex
from sfsd.storage.json_files import Sidecar
from sfsd.storage.paths import VersionPaths


class VisibleVersion(Value):
    """A version of a file that `user` may see. `last` is the file's last record."""

    user: str
    head: FileHead
    version: int
    document: Document[Sidecar]
    last: FileRecord

    @property
    def sidecar(self) -> Sidecar:
        """The version's sidecar."""
        return self.document.value

    @property
    def paths(self) -> VersionPaths:
        """Paths of the version's stored files."""
        return self.head.paths(self.version)

    def view(self) -> FileView:
        """Return what the user is shown of this version. Raises as `FileHead.view`."""
        newest = self.head.document or self.document
        self.head.files.await_published(self.head.at)
        return self.sidecar.view(self.user, newest.value.last, self.head.at)


class Visibility:
    """Decides who may read a file by the readers and expiry times in its last record.

    Nothing is cached: a dropped reader is refused from the acknowledgement of that record. So is a
    reader who has left the file or blocks its owner (`ReaderWishes`): to them nothing of it exists.
    """

    def __init__(
        self,
        users: UserRegistry,
        index: FileIndex,
        wishes: ReaderWishes,
        clock: Callable[[], float],
    ) -> None:
        self._users = users
        self._index = index
        self._wishes = wishes
        self._clock = clock

    def newest(self, user: str, owner: str, file_id: str) -> VisibleVersion:
        """Return the newest version, deleted or not. Raises `Refused`, `DamagedError`."""
        (visible,) = self.all_newest(user, owner, (file_id,))
        return visible

    def all_newest(self, user: str, owner: str, file_ids: Sequence[str]) -> list[VisibleVersion]:
        """Batch version of `newest`; results in input order. Raises if any of them does."""
        # This comes first: others must not learn of a file, whatever its state is.
        if user != owner and not all(self._wishes.takes(user, owner, one) for one in file_ids):
            raise self._missing(owner)
        found = list[VisibleVersion]()
        for head in FileHead.load_all(self._index.for_user(owner), file_ids):
            last = head.newest.value.head_record
            if user != owner and not self._is_reader(user, last):
                raise not_found()
            found.append(VisibleVersion(user, head, head.version, head.newest, last))
        return found

    def version(self, user: str, owner: str, file_id: str, version: int) -> VisibleVersion:
        """Return one version (0: the newest). Raises `Refused`, `DamagedError`."""
        return self.older(self.newest(user, owner, file_id), version)

    def older(self, newest: VisibleVersion, version: int) -> VisibleVersion:
        """Return one version (0: the newest) of a file whose newest version is known."""
        if version in (0, newest.version):
            return newest
        try:
            document = newest.head.files.sidecar(newest.head.file_id, version)
        except Absent as exc:
            raise not_found() from exc
        return VisibleVersion(newest.user, newest.head, version, document, newest.last)

    def _missing(self, owner: str) -> Refused:
        """Return the error for a file that does not exist for the caller. That an account was
        removed is no secret: every user may look up identities."""
        account = self._users.readable_account(owner)
        if account is not None and account.removed:
            return Refused(
                "not-found", f"the account of {owner} was removed, and its files with it"
            )
        return not_found()

    def _is_reader(self, user: str, last: FileRecord) -> bool:
        now = self._clock()
        chain = self._users.chain(user)
        return chain is not None and any(
            name == user and first == chain[0].first_hash and (expires == 0 or now < expires)
            for name, first, expires in last.readers
        )
