"""logs/audit.jsonl as bytes: a group append that can be undone, reading lines, and the disk
reserve.

Knows nothing of the content of lines. An append is one write and one sync. What may go wrong:

- A write fails or is short (a full disk). It is undone by truncate and sync; the group is refused
  and the file stays usable. If undoing fails, nothing is appended any more.
- A sync fails. Then it is unknown what is on the disk: the kernel may have dropped the pages that
  it could not write and may report the next sync as a success. So nothing is appended any more.
- Another program moves, deletes, truncates or writes to the file (logrotate does). An append checks
  name and size before it writes and after it synced. Nothing more is appended then: the entries
  would go to a file that no start reads.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from protocol.buffers.file_status import is_file
from protocol.log.auditlog import MAX_LINE
from sfsd.errors import (
    JournalBusyError,
    JournalFailedError,
    JournalFullError,
    JournalRefusedError,
    JournalUnreadableError,
)
from sfsd.fs.files import FULL_DISK, NO_DESCRIPTORS, Files
from sfsd.histogram import Histogram

RESERVE_SIZE = 16 * 1024 * 1024
_CHUNK = 128 << 10
"""Bytes read at once. Python's lock is held while a chunk is split into lines."""
_EXAMINE_SECONDS = 60.0
"""The longest time that an appended group waits for memory to examine the file."""
_EXAMINE_PAUSE = 0.02


class LogFile:
    """The file `path`, created if missing. `end` is how many of its bytes are valid."""

    def __init__(self, path: Path, files: Files, tail: int = 0) -> None:
        """Open the file. `tail` bytes are kept allocated behind its end, so that entries can be
        appended on a disk that other programs have filled. Raises OSError."""
        self._files = files
        self._path = path
        self._handle = files.open_append(path)
        self.end = files.size(self._handle)
        self._tail = tail
        self._allocated = 0
        self.sync_seconds = Histogram()
        """How long successful syncs of appended entries took."""
        self._allocate_tail()

    def append(self, data: bytes) -> None:
        """Append `data` durably. One thread only. Raises `JournalRefusedError` (`JournalFullError`
        for a full disk, `JournalBusyError`) if the file is unchanged, `JournalFailedError` if that
        is unknown, or if another program changed the file."""
        self._check_untouched(self.end)
        try:
            written = self._files.write(self._handle, data)
        except OSError as exc:
            self._undo_write()
            if exc.errno in FULL_DISK:
                raise JournalFullError(self._full()) from exc
            raise JournalRefusedError(
                f"the log could not be written: {exc.strerror}: {self._path.absolute()}"
            ) from exc
        if written != len(data):
            self._undo_write()
            raise JournalFullError(self._full())
        began = time.perf_counter()
        try:
            self._files.sync_data(self._handle)
        except OSError as exc:
            raise JournalFailedError(
                f"the log could not be synced: {exc.strerror}: {self._path.absolute()}"
            ) from exc
        self.sync_seconds.add(time.perf_counter() - began)
        self._await_untouched(self.end + written)
        self.end += written
        self._allocate_tail()

    def _full(self) -> str:
        return f"the disk of {self._path.parent.absolute()} is full"

    def _allocate_tail(self) -> None:
        """Allocate blocks behind the end again once a part of them is used. On a full disk those
        that are left stay."""
        if self._tail and self.end + self._tail * 15 // 16 > self._allocated:
            self._files.reserve(self._handle, self.end, self._tail)
            self._allocated = self.end + self._tail

    def _await_untouched(self, size: int) -> None:
        """Check as `_check_untouched` a file that was written already. Waits up to a minute for
        the memory that this needs. Raises `JournalFailedError`."""
        until = time.monotonic() + _EXAMINE_SECONDS
        while True:
            try:
                return self._check_untouched(size)
            except JournalBusyError as exc:
                if time.monotonic() >= until:
                    raise JournalFailedError(str(exc)) from exc
                time.sleep(_EXAMINE_PAUSE)

    def _check_untouched(self, size: int) -> None:
        """Check that the open file still has its name and `size` bytes, that is, only this class
        changed it. Raises `JournalBusyError` for a lack of memory, and `JournalFailedError`, whose
        text says how to put the file back."""
        name = self._path.absolute()
        try:
            named, there = self._files.is_named(self._handle, self._path), self._size()
        except OSError as exc:
            kind = JournalBusyError if exc.errno in NO_DESCRIPTORS else JournalFailedError
            raise kind(f"{name} cannot be examined: {exc.strerror}") from exc
        if not named:
            copy = f", or copy /proc/{os.getpid()}/fd/{self._handle} there"
            how = copy if sys.platform == "linux" else ""
            raise JournalFailedError(
                f"{name} was moved or deleted: move it back{how}; then restart"
            )
        if there < size:
            raise JournalFailedError(
                f"{name} was truncated to {there} of {size} bytes: put its copy back, then restart"
            )
        if there > size:
            raise JournalFailedError(f"another program wrote to {name}: stop it, then restart")

    def _size(self) -> int:
        return self._files.size(self._handle)

    def truncate(self, end: int) -> None:
        """Cut the file to `end` bytes and make the rest durable. Raises OSError."""
        if self._files.size(self._handle) != end:
            self._files.truncate(self._handle, end)
        self._files.sync(self._handle)
        self.end = end

    def read(self, start: int, end: int) -> bytes:
        """Return bytes [start, end). Raises `JournalUnreadableError` if that is impossible."""
        try:
            return self._files.read_exactly(self._handle, end - start, start)
        except (OSError, EOFError) as exc:
            raise JournalUnreadableError(
                f"the log cannot be read at byte {start}: {self._path.absolute()}"
            ) from exc

    def lines(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the lines in [start, end) without newlines, but not an incomplete last one. Ends
        after data longer than a line may be, which is yielded for the parser to refuse."""
        rest = b""
        while start < end:
            chunk = self.read(start, min(start + _CHUNK, end))
            start += len(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
            if len(rest) > MAX_LINE:
                yield rest
                return

    def close(self) -> None:
        self._files.close(self._handle)

    def _undo_write(self) -> None:
        try:
            self._files.truncate(self._handle, self.end)
            self._files.sync_data(self._handle)
        except OSError as exc:
            message = f"an incomplete write could not be undone: {exc.strerror}"
            raise JournalFailedError(message) from exc


class DiskReserve:
    """A file that only occupies disk space, which can be freed when the disk is full. It holds
    random bytes, because a file system may store zeros or any pattern in no space."""

    def __init__(self, path: Path, size: int, files: Files) -> None:
        self._path = path
        self._size = size
        self._files = files
        try:
            self.held = is_file(path) and path.stat().st_size == size
        except OSError:
            self.held = False  # `refill` replaces it

    def release(self) -> None:
        """Free the space, if it is held."""
        if not self.held:
            return
        try:
            self._files.remove(self._path)
            self._files.sync_folder(self._path.parent)
        except OSError:
            return  # still held; the next full disk tries again
        self.held = False

    def refill(self) -> None:
        """Occupy the space once twice as much is free. Does nothing if there is not enough."""
        if self.held:
            return
        try:
            self._files.remove(self._path)
            if shutil.disk_usage(self._path.parent).free < 2 * self._size:
                return
            self._files.write_new(self._path, os.urandom(self._size), durable=True)
        except OSError:
            return
        self.held = True
