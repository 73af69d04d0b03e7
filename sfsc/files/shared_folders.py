"""Shared folders: a file stored in one gets the folder's readers, on every device of the account.

They are listed in the account's settings: one encrypted file that no listing shows. Otherwise it is
an ordinary file: signed, logged, and rewrapped by a rotation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Annotated, ClassVar, Final

from protocol.codec.errors import EncodingError, MessageError
from protocol.codec.fields import AtMost, Bytes32, Count, Struct, UserName
from protocol.records.records import ReaderEntry
from sfsc.errors import BadRecord, ConflictError, NotFound, UsageError
from sfsc.library_log import log_warning
from sfsc.session.session import Session
from sfsc.times import as_datetime
from sfsc.transfer.remote_version import RemoteVersion, VersionRequest
from sfsc.transfer.upload import Uploads
from sfsc.trust.file_records import VerifiedFile

MAX_FOLDERS: Final = 256
"""Maximum shared folders of an account; a folder counts once for each user."""
MAX_NEW_READERS: Final = 64
"""Maximum readers of a new file: its log entry names each."""
FRESH_SECONDS: Final = 30.0
"""Cache lifetime of the settings in one session: another device may share a folder meanwhile."""
_MAX_TRIES: Final = 16


class Folder(Struct):
    """The folder `prefix` ("": everything), which `user` may read until `expires` (unix seconds, 0
    for no end). `first` is the hash of the user's first statement."""

    AS_MAP: ClassVar[bool] = True

    prefix: Annotated[str, AtMost(1024)]
    user: UserName
    first: Bytes32
    expires: Count

    @property
    def expires_at(self) -> datetime | None:
        """End of the access, in UTC; None if it has none."""
        return as_datetime(self.expires)

    def holds(self, name: str) -> bool:
        """Return whether the file `name` lies in this folder."""
        return not self.prefix or name.startswith(f"{self.prefix}/")


class _Settings(Struct):
    AS_MAP: ClassVar[bool] = True

    folders: Annotated[tuple[Folder, ...], AtMost(MAX_FOLDERS)]


def readers_of(folders: Iterable[Folder], name: str, now: float) -> tuple[ReaderEntry, ...]:
    """Return the readers that these folders give to the file `name` at `now` (unix seconds):
    sorted, each once, with the longest grant."""
    found: dict[tuple[str, bytes], int] = {}
    for one in folders:
        if not one.holds(name) or (one.expires and now >= one.expires):
            continue
        before = found.get((one.user, one.first), one.expires)
        found[one.user, one.first] = 0 if 0 in (before, one.expires) else max(before, one.expires)
    return tuple(sorted((user, first, expires) for (user, first), expires in found.items()))


class SharedFolders:
    """The account's shared folders."""

    def __init__(
        self,
        session: Session,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives unix seconds, `ticks` seconds that never go back."""
        self._session = session
        self._clock = clock
        self._ticks = ticks
        self._read_at: float | None = None
        self._version = 0
        self._head = b""
        self._folders: tuple[Folder, ...] = ()
        self._refusing: set[str] = set()

    def list_folders(self) -> tuple[Folder, ...]:
        """Return the present shared folders, by prefix and user."""
        self._refresh()
        return self._folders

    def readers_of(self, name: str) -> tuple[ReaderEntry, ...]:
        """Return the readers of a new file of this name, without those who take no files."""
        if self._read_at is None or self._ticks() - self._read_at >= FRESH_SECONDS:
            self._refresh()
        if not self._folders:
            return ()
        found = readers_of(self._folders, name, self._clock())
        return tuple(reader for reader in found if reader[0] not in self._refusing)

    def leave_out(self, users: Iterable[str], cause: str) -> None:
        """Leave these users out of new files in this session, with a warning: they take no files
        from us, which must not keep us from storing any. `cause` is the server's text."""
        for user in sorted(set(users) - self._refusing):
            self._refusing.add(user)
            hint = f"`sfsc unshare -r FOLDER {user}` ends this warning"
            log_warning(f"{user} is left out of new files", cause, hint)

    def share(self, folder: Folder) -> None:
        """Share a folder. Raises `UsageError` if there are too many."""
        self._change(lambda kept: (*kept, folder), folder.prefix, folder.user)

    def unshare(self, prefix: str, user: str) -> None:
        """Stop sharing a folder. Raises `NotFound` if it is not shared with the user."""

        def without(kept: tuple[Folder, ...]) -> tuple[Folder, ...]:
            if len(kept) == len(self._folders):
                raise NotFound(f"the folder is not shared with {user}", "see `sfsc share --list`")
            return kept

        self._change(without, prefix, user)

    def _change(
        self, change: Callable[[tuple[Folder, ...]], tuple[Folder, ...]], prefix: str, user: str
    ) -> None:
        for _ in range(_MAX_TRIES):
            self._refresh()
            kept = tuple(one for one in self._folders if (one.prefix, one.user) != (prefix, user))
            changed = tuple(sorted(change(kept), key=lambda one: (one.prefix, one.user)))
            if len(changed) > MAX_FOLDERS or len({one.user for one in changed}) > MAX_NEW_READERS:
                raise UsageError(
                    f"at most {MAX_FOLDERS} folders can be shared, with {MAX_NEW_READERS} users",
                    "unshare some first",
                )
            data = _Settings(changed).encode()
            try:
                Uploads(self._session).put_settings(data, expected=self._version)
            except ConflictError:
                continue  # another device was first: retry on its change
            self._refresh()
            return
        raise ConflictError("other devices keep changing the settings", "run the command again")

    def _refresh(self) -> None:
        """Read the settings if they changed."""
        self._read_at = self._ticks()
        session = self._session
        file = session.find_newest(session.account.settings_id)
        if file is None or file.head_body == self._head:
            return
        self._folders = () if file.deleted else self._read(file)
        self._head, self._version = file.head_body, file.head.current

    def _read(self, file: VerifiedFile) -> tuple[Folder, ...]:
        session = self._session
        wanted = VersionRequest.build(session, file.file_id, file.version)
        stored = RemoteVersion.request(session, wanted)
        whole = b"".join(bytes(segment) for segment in stored.segments())
        try:
            return _Settings.parse(whole).folders
        except (EncodingError, MessageError) as exc:
            raise BadRecord(f"the account's settings are malformed: {exc}") from exc
