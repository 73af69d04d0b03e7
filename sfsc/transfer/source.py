"""Where the plaintext of an upload comes from: a path, or any binary file that can be read into."""

from __future__ import annotations

import io
import os
import stat
import time
import unicodedata
from pathlib import Path
from typing import BinaryIO, Final, cast

from protocol.wire.messages.base import MAX_SMALL
from sfsc.closing import Closing
from sfsc.crypto.envelope import check_name
from sfsc.crypto.primitives import TAG_SIZE
from sfsc.crypto.segments import HEADER_SIZE
from sfsc.errors import UnreadableSource, UsageError

SMALL: Final = MAX_SMALL - HEADER_SIZE - TAG_SIZE
"""Bytes of the longest plaintext whose ciphertext goes in one message."""

Source = str | os.PathLike[str] | BinaryIO


class Input(Closing):
    """A source that is being read. `count` is how many bytes were read since its beginning.

    `mtime` (nanoseconds, None for a time that they have no room for) and `mode` are what its
    metadata shall say, `size` what it has in bytes as far as that is known beforehand. Faults of
    reading are `UnreadableSource`. The end of a ``with`` block closes what `opened` has opened,
    unless it was to be `kept`.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        *,
        mtime: int | None,
        mode: int | None,
        size: int | None,
        start: int | None,
        owned: bool,
    ) -> None:
        """`start` is the place in `file` that it begins at, None where it cannot be gone back to;
        `owned` ones are closed here."""
        self.mtime = mtime
        self.mode = mode
        self.size = size
        self.count = 0
        self.kept = False
        self._file = file
        self._name = name
        self._start = start
        self._owned = owned
        self._ahead = memoryview(b"")

    def __exit__(self, *_error: object) -> None:
        if not self.kept:
            self.close()

    def close(self) -> None:
        """Twice does no harm."""
        if self._owned:
            self._file.close()

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
            raise UnreadableSource(f"{self._name} has nothing to read yet, and does not block")
        return count


def opened(source: Source) -> Input:
    """Open the source to be read. Raises `UnreadableSource`, and `UsageError` for another type."""
    if not isinstance(source, (str, os.PathLike)):
        if not hasattr(source, "readinto"):
            hint = 'open the file with "rb"; bytes are a file by io.BytesIO'
            raise UsageError(f"a path or a binary file is stored, no {type(source).__name__}", hint)
        now = time.time_ns()
        start = source.tell() if source.seekable() else None
        return Input(
            source, "the source", mtime=now, mode=None, size=None, start=start, owned=False
        )
    path = os.fspath(source)
    try:
        file = io.FileIO(path)
        try:
            status = os.fstat(file.fileno())
            regular = stat.S_ISREG(status.st_mode)
            return Input(
                cast(BinaryIO, file),
                path,
                mtime=_in_range(status.st_mtime_ns),
                mode=stat.S_IMODE(status.st_mode),
                size=status.st_size if regular else None,
                start=0 if regular or file.seekable() else None,
                owned=True,
            )
        except BaseException:
            file.close()
            raise
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _in_range(mtime: int) -> int | None:
    # Past the year 2262 a clock has gone wrong, which is no reason to store nothing.
    return mtime if -(2**63) <= mtime < 2**63 else None


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
    try:
        check_name(chosen)
    except UsageError as exc:
        if name is not None:
            raise
        # Of several sources: which, and what can be done without renaming it.
        cause = f"{source!s} cannot be stored under its own name: {exc.cause}"
        raise UsageError(cause, "give it one with --name") from exc
    return chosen


def _unreadable(name: str, exc: OSError) -> UnreadableSource:
    return UnreadableSource(f"cannot read {name}: {exc.strerror}")
