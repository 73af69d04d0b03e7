"""Descriptors that threads share, how many there may be, and syncs of which the first failure is
the last.

A sync that fails leaves unknown what is on the disk: the kernel may have dropped the pages and
called them clean, so that a second sync would succeed and lie. From the first failure on, every
`SyncGuard` call fails, and the committer acknowledges nothing.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

from sfsd.errors import (
    StagingClosedError,
    StoreFailedError,
    StoreFullError,
    StoreRefusedError,
)
from sfsd.fs.files import FULL_DISK, Files

if sys.platform != "win32":
    import resource

_UNLIMITED: Final = 1 << 20
"""What counts for one that the system does not limit."""
_WINDOWS: Final = 8192
"""What the C library of Windows has room for."""


def store_error(exc: OSError, doing: str) -> StoreRefusedError:
    """`exc` as an error of ours; its text names no path of this machine."""
    kind = StoreFullError if exc.errno in FULL_DISK else StoreRefusedError
    return kind(f"{doing}: {exc.strerror or exc}")


class SyncGuard:
    """Makes files and names durable until that fails once. Any thread."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.failed: str | None = None
        """Why nothing is made durable any more, or None."""

    def check(self) -> None:
        """Raise `StoreFailedError` once a sync has failed."""
        if self.failed is not None:
            raise StoreFailedError(self.failed)

    def fail(self, doing: str, exc: OSError) -> NoReturn:
        """Nothing counts as durable from now on. Raises `StoreFailedError`."""
        self.failed = f"{doing}: {exc.strerror or exc}"
        raise StoreFailedError(self.failed) from exc

    def file(self, handle: int) -> None:
        """The file's bytes are on the disk when this returns. Raises `StoreFailedError`."""
        self.check()
        try:
            self._files.sync(handle)
        except OSError as exc:
            self.fail("syncing a file", exc)

    def all(self, folder: int) -> bool:
        """Everything on the disk of the open `folder` is durable, where this returns True; False
        where each file must be synced by itself. Raises `StoreFailedError`."""
        self.check()
        try:
            return self._files.sync_all(folder)
        except OSError as exc:
            self.fail("syncing the file system", exc)

    def folder(self, path: Path) -> None:
        """The folder's names are on the disk when this returns. Raises `StoreFailedError`."""
        self.check()
        try:
            self._files.sync_folder(path)
        except OSError as exc:
            self.fail("syncing a folder", exc)


def descriptor_limit() -> int:
    """How many descriptors this process may have open at once."""
    if sys.platform == "win32":
        return _WINDOWS
    else:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return _UNLIMITED if soft == resource.RLIM_INFINITY else soft


def descriptor_quarter() -> int:
    """How many of these each of three may have: connections, what users hold beyond a request, and
    replaced files that wait to be closed. The fourth is for the log and the store."""
    return descriptor_limit() // 4


class DescriptorBudget:
    """Of these descriptors what users may hold beyond a request, all together; the rest is for
    connections, the log and the store: where the committer finds none, nothing changes any more.
    Safe on several threads."""

    def __init__(self, most: int | None = None) -> None:
        """`most` at once, by default a `quarter`."""
        self._left = descriptor_quarter() if most is None else most
        self._lock = threading.Lock()

    def acquire(self, count: int) -> bool:
        """Whether there were as many; whoever has them gives them back."""
        with self._lock:
            if count > self._left:
                return False
            self._left -= count
            return True

    def release(self, count: int) -> None:
        """They are closed."""
        with self._lock:
            self._left += count


class SharedHandle:
    """A descriptor that threads use side by side and that closes once none is using it.

    Closing it under a running call would let that call reach whatever file gets the number next.
    """

    def __init__(self, files: Files, handle: int) -> None:
        self._files = files
        self._handle = handle
        self._lock = threading.Lock()
        self._users = 1  # the owner, until it closes
        self._closing = False

    @contextmanager
    def use(self) -> Iterator[int]:
        """The descriptor, good until the block ends. Raises StagingClosedError once closed."""
        with self._lock:
            if self._closing:
                raise StagingClosedError("closed")
            self._users += 1
        try:
            yield self._handle
        finally:
            self._release()

    def close(self) -> None:
        """No new use begins; the last one closes. Twice is fine."""
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
