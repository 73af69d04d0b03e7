"""Handles of the versions that a session reads.

A handle guarantees one content, not access: each Read checks again who may read. The descriptor is
opened at the first Read past what Open returned, and closed when other handles are used more;
the handle stays valid.
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
"""Handles that a session keeps; older ones answer `changed`."""
FILES: Final = 16
"""Files that a session keeps open."""
PER_FILE: Final = 2
"""Descriptors of one open file: it may also have one for direct I/O."""


class OpenVersion(Value):
    """An opened version. Another `content_id` under the same path means that it changed."""

    owner: str
    file_id: str
    version: int
    content_id: bytes
    size: int
    path: str


class SessionHandles:
    """Handles of one session. Safe on several threads."""

    def __init__(self, open_blob: Callable[[str], Blob], share: DescriptorBudget) -> None:
        self._open_blob = open_blob
        self._share = share
        self._lock = threading.Lock()
        self._handles: OrderedDict[bytes, OpenVersion] = OrderedDict()
        self._blobs: OrderedDict[bytes, Blob] = OrderedDict()

    def add(self, opened: OpenVersion) -> bytes:
        """Add a handle and return its name of 16 bytes."""
        name = secrets.token_bytes(16)
        with self._lock:
            self._handles[name] = opened
            if len(self._handles) > HANDLES:
                oldest, _ = self._handles.popitem(last=False)
                self._close(oldest)
        return name

    def get(self, name: bytes) -> OpenVersion:
        """Return the version of a handle. Raises `Refused` if the handle is not open any more."""
        with self._lock:
            opened = self._find(name)
            self._handles.move_to_end(name)
            return opened

    def read(self, name: bytes, offset: int, length: int) -> Buffer:
        """Return bytes of the content, fewer only at its end. Raises `Refused`, StoreError."""
        try:
            return self._blob(name).read_range(offset, length)
        except StagingClosedError:
            # It was closed in favour of other handles between lookup and use.
            return self._blob(name).read_range(offset, length)

    def invalidate(self, owner: str, file_id: str, version: int) -> None:
        """Drop the handles of a version whose content is removed: they now answer `changed`."""
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
            opened = self._find(name)
            if name not in self._blobs:
                self._blobs[name] = self._open(opened.path)
            self._blobs.move_to_end(name)
            return self._blobs[name]

    def _find(self, name: bytes) -> OpenVersion:
        opened = self._handles.get(name)
        if opened is None:
            raise Refused("changed", "no such handle; open the file again")
        return opened

    def _open(self, path: str) -> Blob:
        """Open a file; if there is no room, close the least recently used one."""
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
            finally:  # a failed close frees the descriptor too
                self._share.release(PER_FILE)


class ReadHandles:
    """Handles of every open session, by the seq of its login entry."""

    def __init__(self, open_blob: Callable[[str], Blob], share: DescriptorBudget) -> None:
        self._open_blob = open_blob
        self._share = share
        self._lock = threading.Lock()
        self._sessions: dict[int, SessionHandles] = {}

    def open_session(self, session: int) -> None:
        """Add a session."""
        with self._lock:
            self._sessions[session] = SessionHandles(self._open_blob, self._share)

    def for_session(self, session: int) -> SessionHandles:
        """Return a session's handles. Raises `Refused` if it ended during the request."""
        with self._lock:
            found = self._sessions.get(session)
        if found is None:
            raise Refused("changed", "the session has ended")
        return found

    def invalidate(self, owner: str, file_id: str, version: int) -> None:
        """Close every session's handles of a version whose content is removed."""
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.invalidate(owner, file_id, version)

    def close_session(self, session: int) -> None:
        """Close the handles of a session that ended."""
        with self._lock:
            found = self._sessions.pop(session, None)
        if found is not None:
            found.close()
