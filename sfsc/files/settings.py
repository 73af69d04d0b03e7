"""The account's settings: one encrypted file that no listing shows, for all devices of the account.

Otherwise it is an ordinary file: signed, logged, and rewrapped by a rotation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, ClassVar, Final

from protocol.codec.errors import EncodingError, MessageError
from protocol.codec.fields import AtMost, Bytes32, Count, Struct, UserName
from sfsc.errors import BadRecord, ConflictError
from sfsc.session.session import Session
from sfsc.times import as_datetime
from sfsc.transfer.remote_version import RemoteVersion, VersionRequest
from sfsc.transfer.upload import Uploads
from sfsc.trust.file_records import VerifiedFile

MAX_FOLDERS: Final = 256
"""Maximum shared folders of an account; a folder counts once for each user."""
FRESH_SECONDS: Final = 30.0
"""Cache lifetime of the settings in one session: another device may change them meanwhile."""
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


class Settings(Struct):
    """The settings: the shared `folders`, by prefix and user, and whether contents are padded
    (`pad`)."""

    AS_MAP: ClassVar[bool] = True

    folders: Annotated[tuple[Folder, ...], AtMost(MAX_FOLDERS)] = ()
    pad: bool = False


class AccountSettings:
    """Reads and changes the settings over one session."""

    def __init__(self, session: Session, ticks: Callable[[], float] = time.monotonic) -> None:
        """`ticks` gives seconds that never go back."""
        self._session = session
        self._ticks = ticks
        self._read_at: float | None = None
        self._absent_at: float | None = None
        self._version = 0
        self._head = b""
        self._settings = Settings()

    def read(self) -> Settings:
        """Return the present settings. Asks the server for them. Raises `BadRecord`."""
        self._refresh()
        return self._settings

    def recent(self) -> Settings:
        """Return the settings as they were at most 30 seconds ago. Raises `BadRecord`."""
        if not self._is_fresh(self._read_at):
            self._refresh()
        return self._settings

    def pads(self) -> bool:
        """Return whether contents are to be padded. Asks the server only if the account has
        settings, as the followed log tells; it is called for each file, so that is looked up no
        more often than settings are read. Raises `BadRecord`."""
        return not self._are_absent() and self.recent().pad

    def _are_absent(self) -> bool:
        """Return whether the account had no settings at most 30 seconds ago."""
        if self._read_at is not None:
            return False
        if not self._is_fresh(self._absent_at):
            session = self._session
            settings, size = session.account.settings_id, session.followed_size
            if session.head_at(settings, size) is not None:
                return False
            self._absent_at = self._ticks()
        return True

    def _is_fresh(self, read_at: float | None) -> bool:
        return read_at is not None and self._ticks() - read_at < FRESH_SECONDS

    def change(self, change: Callable[[Settings], Settings]) -> None:
        """Store what `change` makes of the settings. Raises what it raises."""
        for _ in range(_MAX_TRIES):
            data = change(self.read()).encode()
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
        self._settings = Settings() if file.deleted else self._parse(file)
        self._head, self._version = file.head_body, file.head.current

    def _parse(self, file: VerifiedFile) -> Settings:
        session = self._session
        wanted = VersionRequest.build(session, file.file_id, file.version)
        stored = RemoteVersion.request(session, wanted)
        whole = b"".join(bytes(segment) for segment in stored.segments())
        try:
            return Settings.parse(whole)
        except (EncodingError, MessageError) as exc:
            raise BadRecord(f"the account's settings are malformed: {exc}") from exc
