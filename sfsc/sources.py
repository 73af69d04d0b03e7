"""Where the plaintext of an upload comes from: a path, or any binary file that can be read into."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from protocol.messages.base import MAX_SMALL
from sfsc.envelope import check_name
from sfsc.errors import Unreadable, UsageError
from sfsc.primitives import TAG_SIZE
from sfsc.segments import HEADER_SIZE

SMALL: Final = MAX_SMALL - HEADER_SIZE - TAG_SIZE
"""Bytes of the longest plaintext whose ciphertext goes in one message."""

Source = str | os.PathLike[str] | BinaryIO


class Input:
    """A source that is being read. `count` is how many bytes were read since its beginning.

    `mtime` (nanoseconds) and `mode` are what its metadata shall say, `size` what it has in bytes
    as far as that is known beforehand. Faults of reading are `Unreadable`.
    """

    def __init__(
        self, file: BinaryIO, name: str, *, mtime: int, mode: int | None, size: int | None
    ) -> None:
        self.mtime = mtime
        self.mode = mode
        self.size = size
        self.count = 0
        self._file = file
        self._name = name
        self._start = file.tell() if file.seekable() else None
        self._ahead = memoryview(b"")

    def small(self) -> bytes | None:
        """All of it, where that is at most `SMALL` bytes; else None, and nothing is lost."""
        # Room for one byte more than it should have: so most files cost no more than they are long.
        room = SMALL + 1 if self.size is None else min(self.size, SMALL) + 1
        view, filled = memoryview(bytearray(room)), 0
        while filled <= SMALL and (count := self._read(view[filled:])):
            filled += count
            if filled == len(view) <= SMALL:  # it has grown since
                view = memoryview(bytearray(view.tobytes().ljust(SMALL + 1, b"\0")))
        if filled <= SMALL:
            self.count = filled
            return bytes(view[:filled])
        self._ahead = view
        return None

    def readinto(self, buffer: memoryview, /) -> int:
        """As a file's: what was looked at ahead comes first."""
        if self._ahead:
            count = min(len(buffer), len(self._ahead))
            buffer[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
        else:
            count = self._read(buffer)
        self.count += count
        return count

    def begin_again(self) -> bool:
        """Go back to the beginning; False where the source cannot (a pipe)."""
        if self._start is None:
            return False
        try:
            self._file.seek(self._start)
        except OSError as exc:
            raise _unreadable(self._name, exc) from exc
        self._ahead = memoryview(b"")
        self.count = 0
        return True

    def _read(self, buffer: memoryview) -> int:
        count: int | None
        try:
            count = self._file.readinto(buffer)  # type: ignore[attr-defined]
        except OSError as exc:
            raise _unreadable(self._name, exc) from exc
        if count is None:
            raise Unreadable(f"{self._name} has nothing to read yet, and does not block")
        return count


@contextlib.contextmanager
def opened(source: Source) -> Iterator[Input]:
    """The source, ready to be read; a path is opened and closed here. Raises `Unreadable`."""
    if not isinstance(source, (str, os.PathLike)):
        now = time.time_ns()
        yield Input(source, "the source", mtime=now, mode=None, size=None)
        return
    path = os.fspath(source)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(io.FileIO(path))
            status = os.fstat(file.fileno())
        except OSError as exc:
            raise _unreadable(path, exc) from exc
        size = status.st_size if stat.S_ISREG(status.st_mode) else None
        mode = stat.S_IMODE(status.st_mode)
        yield Input(file, path, mtime=status.st_mtime_ns, mode=mode, size=size)


def default_name(source: Source) -> str | None:
    """The name a path is stored under where none is given: itself with ``/``, or its last part
    where it is absolute or climbs out of the present folder. None for what has no path.

    In Unicode form NFC: a name typed on one system is found from another.
    """
    if not isinstance(source, (str, os.PathLike)):
        return None
    path = Path(source)
    leads_away = path.is_absolute() or ".." in path.parts
    return unicodedata.normalize("NFC", path.name if leads_away else path.as_posix())


def name_for(source: Source, name: str | None) -> str:
    """The name to store `source` under: the one given, else its own. Raises `UsageError`."""
    chosen = default_name(source) if name is None else name
    if chosen is None:
        raise UsageError("what has no path needs a name")
    check_name(chosen)
    return chosen


def _unreadable(name: str, exc: OSError) -> Unreadable:
    return Unreadable(f"cannot read {name}: {exc.strerror}")
