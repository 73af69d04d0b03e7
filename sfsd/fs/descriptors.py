"""Descriptors shared by threads, the limit on their number, and syncs that stop at the first
failure.

After a failed sync it is unknown what is on the disk: the kernel may have dropped the pages and
marked them clean, so a second sync would falsely succeed. From the first failure on, every
`SyncGuard` call fails, and the committer acknowledges nothing.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from sfsd.errors import (
    StagingClosedError,
    StoreBusyError,
    StoreFailedError,
    StoreFullError,
    StoreRefusedError,
    StoreWaitsError,
    UnreadableError,
)
from sfsd.fs.files import FULL_DISK, NO_DESCRIPTORS, Files
from sfsd.histogram import Histogram

if sys.platform != "win32":
    import resource

_Result = TypeVar("_Result")
_UNLIMITED: Final = 1 << 20
"""The count that stands for "no limit"."""
_WINDOWS: Final = 8192
"""Descriptors that the C library of Windows has room for."""
_OPEN_MAX: Final = 10_240
"""The most that macOS allows a process if it states no hard limit. A process starts with 256 there,
fewer than the connections that a daemon accepts."""


def store_error(exc: OSError, doing: str) -> StoreRefusedError:
    """Return `exc` as a store error whose text names no path of this machine."""
    kind = StoreRefusedError
    if exc.errno in FULL_DISK:
        kind = StoreFullError
    elif exc.errno in NO_DESCRIPTORS:
        kind = StoreBusyError
    return kind(f"{doing}: {exc.strerror or exc}")


def read_error(exc: OSError, path: str, doing: str) -> StoreBusyError | UnreadableError:
    """Return the error of a failed read of the store's file `path`, which is not missing. A lack of
    descriptors or memory says nothing about the file."""
    if exc.errno in NO_DESCRIPTORS:
        return StoreBusyError(f"{doing}: {exc.strerror or exc}")
    return UnreadableError(f"{doing}: {exc.strerror or exc}", path=path)


class SyncGuard:
    """Syncs files and folders; after the first failure every call fails. Thread-safe. A folder
    that cannot be opened because too much is open (StoreBusyError) is no failed sync."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self.seconds = Histogram()
        """How long successful syncs took."""
        self.failed: str | None = None
        """Why nothing can be made durable any more, or None."""
        self.awaits_room = False
        """Whether the failure is that logged changes have no room, or no descriptor, to be put in
        place. No sync has failed then: opening the root again puts them in place."""

    def check(self) -> None:
        """Raise `StoreFailedError` once a sync has failed, `StoreWaitsError` without room."""
        if self.failed is not None:
            raise (StoreWaitsError if self.awaits_room else StoreFailedError)(self.failed)

    def fail(self, doing: str, exc: OSError, *, awaits_room: bool = False) -> NoReturn:
        """Record a failure, and raise its `StoreFailedError` or `StoreWaitsError`."""
        text = f"{doing}: {exc.strerror or exc}"
        self.record(text, awaits_room=awaits_room)
        raise (StoreWaitsError if awaits_room else StoreFailedError)(text) from exc

    def record(self, failed: str, *, awaits_room: bool = False) -> None:
        """Record a failure: from now on every call fails. A lack of room does not replace another
        failure, because that one needs the operator."""
        with self._lock:
            if self.failed is None or not awaits_room:
                self.awaits_room = awaits_room
                self.failed = failed

    def file(self, handle: int) -> None:
        """Write the file's bytes to the disk. Raises `StoreFailedError`."""
        self._run("syncing a file", lambda: self._files.sync(handle))

    def all(self, folder: int) -> bool:
        """Sync the file system of the open `folder`; return False if each file must be synced by
        itself. Raises `StoreFailedError`."""
        return self._run("syncing the file system", lambda: self._files.sync_all(folder))

    def folder(self, path: Path) -> None:
        """Write the folder's names to the disk. Raises `StoreFailedError`, StoreBusyError."""
        self._run("syncing a folder", lambda: self._files.sync_folder(path), opens=True)

    def _run(self, doing: str, sync: Callable[[], _Result], *, opens: bool = False) -> _Result:
        self.check()
        began = time.perf_counter()
        try:
            done = sync()
        except OSError as exc:
            if opens and exc.errno in NO_DESCRIPTORS:
                raise store_error(exc, doing) from exc
            self.fail(doing, exc)
        with self._lock:
            self.seconds.add(time.perf_counter() - began)
        return done


def descriptor_limit() -> int:
    """Return how many descriptors this process may have open at once."""
    if sys.platform == "win32":
        return _WINDOWS
    else:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return _UNLIMITED if soft == resource.RLIM_INFINITY else soft


def descriptor_quarter() -> int:
    """Return a quarter of the limit: for connections, and again for what users hold beyond a
    request. The rest is for the log and the store."""
    return descriptor_limit() // 4


def raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors to the hard limit that the administrator set. Programs
    begin with fewer by convention, for those that use `select`."""
    if sys.platform != "win32":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = hard
        if sys.platform == "darwin":
            most = max(soft, min(hard, _OPEN_MAX))
        if soft != most:
            # The system refuses if its own limit is lower; then the present limit stays.
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class DescriptorBudget:
    """Budget of descriptors that users may hold beyond a request, all together. The rest is for
    connections, the log and the store: if the committer gets no descriptor, nothing can change any
    more. Safe on several threads."""

    def __init__(self, most: int | None = None) -> None:
        """Allow `most` at once, by default `descriptor_quarter`."""
        self._left = descriptor_quarter() if most is None else most
        self._lock = threading.Lock()

    def acquire(self, count: int) -> bool:
        """Reserve `count` descriptors; return False if fewer are left."""
        with self._lock:
            if count > self._left:
                return False
            self._left -= count
            return True

    def release(self, count: int) -> None:
        """Return `count` descriptors that were closed."""
        with self._lock:
            self._left += count


class SharedHandle:
    """A descriptor that several threads use; it closes when the last use ends. Closing it during a
    call would let that call reach the next file that gets the number."""

    def __init__(self, files: Files, handle: int) -> None:
        self._files = files
        self._handle = handle
        self._lock = threading.Lock()
        self._users = 1  # the owner, until it closes
        self._closing = False

    @contextmanager
    def use(self) -> Iterator[int]:
        """Yield the descriptor, valid within the block. Raises StagingClosedError once closed."""
        with self._lock:
            if self._closing:
                raise StagingClosedError("closed")
            self._users += 1
        try:
            yield self._handle
        finally:
            self._release()

    def close(self) -> None:
        """Refuse new uses; the last running one closes the descriptor. Idempotent."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._release()

    def _release(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self._files.close(self._handle)
