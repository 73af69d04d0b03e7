"""logs/audit.jsonl as bytes: group append that can be taken back, lines, and the reserve.

Knows nothing of what a line says. An append is one write and one sync. What may go wrong:

- A write that fails or comes up short (a full disk) is taken back: truncate, sync. The group is
  refused and the file goes on. If taking it back fails, nothing is appended any more.
- A sync that fails leaves unknown what is on the disk; the kernel may have dropped the pages it
  could not write, and call the next sync a success. So nothing is appended any more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from protocol.log.auditlog import MAX_LINE
from sfsd.errors import (
    JournalFailedError,
    JournalFullError,
    JournalRefusedError,
    JournalUnreadableError,
)
from sfsd.fs.files import FULL_DISK, Files

RESERVE_SIZE = 16 * 1024 * 1024
_CHUNK = 1 << 20


class LogFile:
    """The file under `path`, made if it is not there. `end` is how many bytes count."""

    def __init__(self, path: Path, files: Files) -> None:
        """Raises OSError."""
        self._files = files
        self._handle = files.open_append(path)
        self.end = files.size(self._handle)

    def append(self, data: bytes) -> None:
        """All of `data` is durable on return. One thread only.

        Raises `JournalRefusedError` (`JournalFullError` for a full disk) when the file is as it was
        before, `JournalFailedError` when that is not known.
        """
        try:
            written = self._files.write(self._handle, data)
        except OSError as exc:
            self._take_back()
            if exc.errno in FULL_DISK:
                raise JournalFullError("the disk is full") from exc
            raise JournalRefusedError(f"the log could not be written: {exc.strerror}") from exc
        if written != len(data):
            self._take_back()
            raise JournalFullError(f"the disk is full: it took {written} of {len(data)} bytes")
        try:
            self._files.sync_data(self._handle)
        except OSError as exc:
            raise JournalFailedError(f"the log could not be synced: {exc.strerror}") from exc
        self.end += written

    def truncate(self, end: int) -> None:
        """Drop what follows `end` bytes and make the rest durable. Raises OSError."""
        if self._files.size(self._handle) != end:
            self._files.truncate(self._handle, end)
        self._files.sync(self._handle)
        self.end = end

    def read(self, start: int, end: int) -> bytes:
        """Raises `JournalUnreadableError` if the bytes cannot be read or are not there."""
        try:
            return self._files.read_exactly(self._handle, end - start, start)
        except (OSError, EOFError) as exc:
            raise JournalUnreadableError(f"the log cannot be read at byte {start}") from exc

    def lines(self, start: int, end: int) -> Iterator[bytes]:
        """The lines in [start, end), newlines left out; a last one without newline is left out.

        Ends after anything longer than a line may be, which is yielded for the parser to refuse.
        """
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

    def _take_back(self) -> None:
        try:
            self._files.truncate(self._handle, self.end)
            self._files.sync_data(self._handle)
        except OSError as exc:
            message = f"a torn write could not be taken back: {exc.strerror}"
            raise JournalFailedError(message) from exc


class DiskReserve:
    """A file that only takes up room, so that there is some to give when the disk is full.

    Random bytes, since a file system may store zeros, or any pattern, in no room at all.
    """

    def __init__(self, path: Path, size: int, files: Files) -> None:
        self._path = path
        self._size = size
        self._files = files
        self.held = path.is_file() and path.stat().st_size == size

    def release(self) -> None:
        """Give the room away, if it is held and can be had."""
        if not self.held:
            return
        try:
            self._files.remove(self._path)
            self._files.sync_folder(self._path.parent)
        except OSError:
            return  # still held; the next full disk tries again
        self.held = False

    def keep(self) -> None:
        """Take the room, once twice as much is free. That there is none yet is no error."""
        if self.held:
            return
        try:
            self._files.remove(self._path)
            if shutil.disk_usage(self._path.parent).free < 2 * self._size:
                return
            self._files.write_new_durable(self._path, os.urandom(self._size))
        except OSError:
            return
        self.held = True
