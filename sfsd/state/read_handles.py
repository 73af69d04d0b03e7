"""Versions that a session has open for reading.

A handle is a promise of one content, not of access: who may read is decided again at each Read. The
descriptor behind it is opened at the first Read past what GetOpen answered, and closed again when
others are used more; the handle stays good.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from protocol.codec.encoding import Buffer
from protocol.codec.values import Value
from sfsd.errors import Absent, Refused, StagingClosedError
from sfsd.fs.descriptors import DescriptorBudget
from sfsd.storage.store import Blob

HANDLES: Final = 1024
"""Handles a session keeps; older ones answer `changed`."""
FILES: Final = 16
"""Files a session keeps open."""
LOGGED: Final = 4096
"""Downloads that a session is known to have in the log. Who goes on has them there once more."""
PER_FILE: Final = 2
"""Descriptors of one: it may be read past the page cache too."""


class OpenVersion(Value):
    """`content_id` says which content was opened: another under the same path is a change."""

    owner: str
    file_id: str
    version: int
    content_id: bytes
    size: int
    path: str


class SessionHandles:
    """Of one session. Safe on several threads."""

    def __init__(self, open_blob: Callable[[str], Blob], share: DescriptorBudget) -> None:
        self._open_blob = open_blob
        self._share = share
        self._lock = threading.Lock()
        self._handles: OrderedDict[bytes, OpenVersion] = OrderedDict()
        self._blobs: OrderedDict[bytes, Blob] = OrderedDict()
        self._logged: OrderedDict[OpenVersion, None] = OrderedDict()

    def add(self, opened: OpenVersion) -> bytes:
        """The 16-byte name of a new handle."""
        name = secrets.token_bytes(16)
        with self._lock:
            self._handles[name] = opened
            if len(self._handles) > HANDLES:
                oldest, _ = self._handles.popitem(last=False)
                self._close(oldest)
        return name

    def get(self, name: bytes) -> OpenVersion:
        """Raises `Refused` for a handle that is not open any more."""
        with self._lock:
            opened = self._handles.get(name)
            if opened is None:
                raise Refused("changed", "no such handle; open the file again")
            self._handles.move_to_end(name)
            return opened

    def read(self, name: bytes, offset: int, length: int) -> Buffer:
        """Bytes of the content; fewer only at its end. Raises `Refused`, StoreError."""
        try:
            return self._blob(name).read_range(offset, length)
        except StagingClosedError:
            # Others were used more just now, and it was closed between finding and using it.
            return self._blob(name).read_range(offset, length)

    def is_logged(self, opened: OpenVersion) -> bool:
        """Whether the log has this session's download of this content already."""
        with self._lock:
            return opened in self._logged

    def mark_logged(self, opened: OpenVersion) -> None:
        with self._lock:
            self._logged[opened] = None
            if len(self._logged) > LOGGED:
                self._logged.popitem(last=False)

    def invalidate(self, owner: str, file_id: str, version: int) -> None:
        """A version's content goes: its handles answer `changed` from now on."""
        with self._lock:
            gone = [
                name
                for name, one in self._handles.items()
                if (one.owner, one.file_id, one.version) == (owner, file_id, version)
            ]
            for name in gone:
                del self._handles[name]
                self._close(name)

    def close(self) -> None:
        with self._lock:
            self._handles.clear()
            for name in list(self._blobs):
                self._close(name)

    def _blob(self, name: bytes) -> Blob:
        with self._lock:
            opened = self._handles.get(name)
            if opened is None:
                raise Refused("changed", "no such handle; open the file again")
            if name not in self._blobs:
                self._blobs[name] = self._open(opened.path)
            self._blobs.move_to_end(name)
            return self._blobs[name]

    def _open(self, path: str) -> Blob:
        """In the place of the one that was not used for longest, where there is no room beside."""
        if len(self._blobs) == FILES:
            self._close(next(iter(self._blobs)))
        while not self._share.acquire(PER_FILE):
            if not self._blobs:
                raise Refused("busy", "too many files are open; try again")
            self._close(next(iter(self._blobs)))
        try:
            return self._open_blob(path)
        except BaseException as exc:
            self._share.release(PER_FILE)
            if isinstance(exc, Absent):
                raise Refused("changed", "this version has no content any more") from exc
            raise

    def _close(self, name: bytes) -> None:
        blob = self._blobs.pop(name, None)
        if blob is not None:
            try:
                blob.close()
            finally:  # of what cannot be closed the descriptor is gone too
                self._share.release(PER_FILE)


class ReadHandles:
    """The handles of every open session, by the seq of its login entry."""

    def __init__(self, open_blob: Callable[[str], Blob], share: DescriptorBudget) -> None:
        self._open_blob = open_blob
        self._share = share
        self._lock = threading.Lock()
        self._sessions: dict[int, SessionHandles] = {}

    def open_session(self, session: int) -> None:
        """A session was opened."""
        with self._lock:
            self._sessions[session] = SessionHandles(self._open_blob, self._share)

    def for_session(self, session: int) -> SessionHandles:
        """Raises `Refused` where the session has ended: a request of it may still be running."""
        with self._lock:
            found = self._sessions.get(session)
        if found is None:
            raise Refused("changed", "the session has ended")
        return found

    def invalidate(self, owner: str, file_id: str, version: int) -> None:
        """Close every session's handles on a version whose content goes."""
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.invalidate(owner, file_id, version)

    def close_session(self, session: int) -> None:
        """The session has ended."""
        with self._lock:
            found = self._sessions.pop(session, None)
        if found is not None:
            found.close()
