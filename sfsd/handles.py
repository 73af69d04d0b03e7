"""Descriptors that threads share, and syncs of which the first failure is the last.

A sync that fails leaves unknown what is on the disk: the kernel may have dropped the pages and
called them clean, so that a second sync would succeed and lie. From the first failure on, every
`Syncs` call fails, and the committer acknowledges nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from sfsd.errors import (
    StagingClosedError,
    StoreFailedError,
    StoreFullError,
    StoreRefusedError,
)
from sfsd.files import FULL_DISK, Files


def refused(exc: OSError, doing: str) -> StoreRefusedError:
    """`exc` as an error of ours; its text names no path of this machine."""
    kind = StoreFullError if exc.errno in FULL_DISK else StoreRefusedError
    return kind(f"{doing}: {exc.strerror or exc}")


class Syncs:
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
