"""Source of an upload's plaintext: a path, any binary file with `readinto`, or an item of a folder,
which may be a folder or a symbolic link itself."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
import time
import unicodedata
from pathlib import Path
from typing import BinaryIO, Final, NoReturn, cast

from protocol.codec.values import Value
from protocol.wire.messages.base import MAX_SMALL
from sfsc.closing import Closing
from sfsc.crypto.envelope import FILE, FOLDER, check_any_name, check_name
from sfsc.crypto.padding import Padded, padded_size
from sfsc.crypto.primitives import TAG_SIZE
from sfsc.crypto.segments import HEADER_SIZE
from sfsc.errors import NotRegularFile, UnreadableSource, UsageError

SMALL: Final = MAX_SMALL - HEADER_SIZE - TAG_SIZE
"""Bytes of the longest plaintext whose ciphertext fits into one message."""

HASHED: Final = 64 * 2**20
"""Bytes of the longest plaintext whose SHA-256 is always computed: it would slow down longer ones
noticeably."""
_PAGE: Final = 4096
"""Bytes of the smallest hole of a sparse file."""
_NO_LINK: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class TreeItem(Value):
    """Item of a folder that is stored: a file, a folder or a symbolic link of this machine.

    `name` is the one to store it under; that of a folder ends with a slash. `kind` is as in
    `Metadata`, `status` the item's own, and `target` what a link points to. `full` says that it is
    a folder with something in it. `expected` is the version that must be current (0: no such file),
    None for any.
    """

    path: str
    name: str
    kind: str
    status: os.stat_result
    target: str | None = None
    full: bool = False
    expected: int | None = None

    def __str__(self) -> str:
        return self.path


Source = str | os.PathLike[str] | BinaryIO | TreeItem


def new_folder(name: str) -> TreeItem:
    """Return an empty folder `name` of which nothing exists, for its owner only, as made now."""
    now = time.time_ns()
    times = {"st_mtime_ns": now}
    status = os.stat_result((stat.S_IFDIR | 0o700, 0, 0, 1, 0, 0, 0, *[now // 10**9] * 3), times)
    return TreeItem(name, f"{name}/", FOLDER, status)


class SourceChanged(Exception):
    """A file changed while it was read for the first time; the source is at its beginning again."""


class SourceReader(Closing):
    """An open source. `count` is the number of bytes read since its beginning.

    `mtime` (nanoseconds, None for a time that does not fit), `mode`, `kind`, `target` and `sparse`
    go into the metadata. `size` is the size in bytes when the reading began, None if unknown; no
    more bytes are read, because a file may grow faster than it is read. Read errors raise
    `UnreadableSource`. The end of a ``with`` block closes a file that `open_source` opened, unless
    `keep_open` is set.

    A file that changes while it is read may give a mixture that it never held. So it is read a
    second time (`read_twice`); if it changes again, it is stored as it was read (`unstable`).
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        *,
        start: int | None,
        owned: bool,
        hash_all: bool = False,
        pad: bool = False,
    ) -> None:
        """`start` is the offset in `file` at which it begins, None if it is not seekable. `file` is
        closed here only if it is `owned`; then it is a file of the system, whose status counts.
        `hash_all` computes `sha256` also of more than `HASHED` bytes. With `pad` the content is
        stored with padding."""
        self.mtime: int | None = time.time_ns()
        self.mode: int | None = None
        self.pad = pad
        self.kind = FILE
        self.target: str | None = None
        self.sparse: bool = False
        self.size: int | None = None
        self.count: int = 0
        self.read_twice: bool = False
        self.unstable: bool = False
        self.name = name
        self.keep_open = False
        self._file = file
        self._status: os.stat_result | None = None
        self._start = start
        self._owned = owned
        self._most_hashed = sys.maxsize if hash_all else HASHED
        self._hash: hashlib._Hash | None = None
        self._lookahead = memoryview(b"")
        self._examine()

    @property
    def version(self) -> tuple[int, int, int] | None:
        """(size, mtime, ctime) when the reading began, in bytes and nanoseconds; None if the source
        is not a regular file."""
        return None if self._status is None else _version(self._status)

    def __exit__(self, *_error: object) -> None:
        if not self.keep_open:
            self.close()

    def close(self) -> None:
        """Close the file if it is owned. Idempotent."""
        if self._owned:
            self._file.close()

    def read_small(self) -> bytes | None:
        """Return the whole source if it has at most `SMALL` bytes with its padding, otherwise None;
        nothing is lost."""
        while True:
            try:
                plaintext = self._read_small()
                if plaintext is not None:
                    self.check_unchanged()
            except SourceChanged:
                continue
            return plaintext

    def _read_small(self) -> bytes | None:
        # One byte more than expected, so that most files are read in one call and a small buffer.
        room = SMALL + 1 if self.size is None else min(self.size, SMALL) + 1
        view, filled = memoryview(bytearray(room)), 0
        while filled not in (len(view), self.size):
            if not (count := self._read(view[filled:], filled)):
                break
            filled += count
        if self.stored_size(filled) <= SMALL:
            self.count = filled
            return bytes(view[:filled])
        self._lookahead = view[:filled]
        return None

    def readinto(self, buffer: memoryview, /) -> int:
        """Read like a file; what `read_small` has read ahead comes first."""
        if self._lookahead:
            count = min(len(buffer), len(self._lookahead))
            buffer[:count] = self._lookahead[:count]
            self._lookahead = self._lookahead[count:]
        else:
            count = self._read(buffer, self.count)
        self.count += count
        if self.count > self._most_hashed:
            self._hash = None
        elif self._hash is not None:
            self._hash.update(buffer[:count])
        if not count and len(buffer) and self.count < (self.size or 0) and not self.read_twice:
            self._start_again()  # shorter than announced; some file systems show such sizes
        return count

    def content(self) -> SourceReader | Padded:
        """Return what is encrypted: what is left of the source, and its padding."""
        return Padded(self) if self.pad else self

    def stored_size(self, size: int) -> int:
        """Return the bytes of plaintext that are stored if the source has `size` bytes."""
        return padded_size(size) if self.pad else size

    @property
    def sha256(self) -> bytes | None:
        """SHA-256 of all that `readinto` has returned, 32 bytes; None if it was not computed."""
        return None if self._hash is None else self._hash.digest()

    def check_unchanged(self) -> None:
        """Check after reading that the file did not change meanwhile; a stream cannot be checked.

        After the first change, go back to the beginning and raise `SourceChanged`. After the second
        one, set `unstable`.
        """
        if self._status is None or _version(self._status) == _version(self._stat()):
            return
        if not self.read_twice:
            self._start_again()
        self.unstable = True

    def _start_again(self) -> NoReturn:
        self.read_twice = True
        self.rewind()
        raise SourceChanged

    def rewind(self) -> bool:
        """Go back to the beginning, and take the present size, time and mode. Return False if the
        source is not seekable (a pipe)."""
        if self._start is None:
            return False
        try:
            self._file.seek(self._start)
        except OSError as exc:
            raise _unreadable(self.name, exc) from exc
        self._lookahead = memoryview(b"")
        self.count = 0
        self._examine()
        return True

    def _examine(self) -> None:
        """Take size, time and mode from the file's status."""
        self._hash = hashlib.sha256()
        if not self._owned:
            return
        status = self._stat()
        self.mtime, self.mode = _in_range(status.st_mtime_ns), stat.S_IMODE(status.st_mode)
        if stat.S_ISREG(status.st_mode):
            self._status = status
            # Files of /proc say that they are empty.
            self.size = status.st_size or None
            if status.st_size > self._most_hashed:
                self._hash = None
            self.sparse = _is_sparse(status)

    def _stat(self) -> os.stat_result:
        try:
            return os.fstat(self._file.fileno())
        except OSError as exc:
            raise _unreadable(self.name, exc) from exc

    def _read(self, buffer: memoryview, offset: int) -> int:
        """Read the bytes at `offset`, which is where the file stands."""
        if self.size is not None:
            buffer = buffer[: max(0, self.size - offset)]
        count: int | None
        try:
            count = self._file.readinto(buffer)  # type: ignore[attr-defined]
        except OSError as exc:
            raise _unreadable(self.name, exc) from exc
        if count is None:
            raise UnreadableSource(f"{self.name} is non-blocking and has no data yet")
        return count


def open_source(source: Source, *, hash_all: bool = False, pad: bool = False) -> SourceReader:
    """Open a source for reading; `hash_all` and `pad` as in `SourceReader`. Raises
    `UnreadableSource`, and `UsageError` for another type."""
    if isinstance(source, TreeItem):
        return _open_item(source, hash_all=hash_all, pad=pad)
    if not isinstance(source, (str, os.PathLike)):
        if not hasattr(source, "readinto"):
            cause = f"expected a path or a binary file object, got {type(source).__name__}"
            raise UsageError(cause, 'open the file with "rb", or wrap bytes in io.BytesIO')
        start = source.tell() if source.seekable() else None
        return SourceReader(
            source, "the source", start=start, owned=False, hash_all=hash_all, pad=pad
        )
    path = os.fspath(source)
    try:
        file = io.FileIO(path)
        try:
            start = 0 if file.seekable() else None
            binary = cast(BinaryIO, file)
            return SourceReader(binary, path, start=start, owned=True, hash_all=hash_all, pad=pad)
        except BaseException:
            file.close()
            raise
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _open_item(item: TreeItem, *, hash_all: bool, pad: bool) -> SourceReader:
    """Open an item of a folder. A file is not opened through a link, which may have taken its place
    since the folder was listed. Raises `UnreadableSource`."""
    if item.kind != FILE:
        reader = SourceReader(io.BytesIO(), item.path, start=0, owned=False)
        reader.kind, reader.target = item.kind, item.target
        reader.mtime = _in_range(item.status.st_mtime_ns)
        if item.target is None:
            reader.mode = stat.S_IMODE(item.status.st_mode)
        return reader
    try:
        file = io.FileIO(os.open(item.path, _NO_LINK | getattr(os, "O_BINARY", 0)))
    except OSError as exc:
        raise _unreadable(item.path, exc) from exc
    try:
        binary = cast(BinaryIO, file)
        reader = SourceReader(binary, item.path, start=0, owned=True, hash_all=hash_all, pad=pad)
        if reader.version is None:
            raise NotRegularFile(f"{item.path} is not a file any more, and was not stored")
        return reader
    except BaseException:
        file.close()
        raise


def _is_sparse(status: os.stat_result) -> bool:
    """Return whether a file takes at least a page less than its size. A file system that compresses
    says so of others too, which is harmless."""
    if sys.platform != "win32":
        return status.st_blocks * 512 + _PAGE <= status.st_size
    else:
        return False


def _version(status: os.stat_result) -> tuple[int, int, int]:
    """Return what changes with a file's content. The change time also shows a write whose
    modification time was set back."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _in_range(mtime: int) -> int | None:
    # A time after the year 2262 is a wrong clock, which must not prevent the upload.
    return mtime if -(2**63) <= mtime < 2**63 else None


def default_name(source: Source) -> str | None:
    """Return the name under which a path is stored by default: the path with ``/``, or its last
    part if it is absolute or contains ``..``. None for a source without a path.

    The name has Unicode form NFC, so that a name typed on one system is found from another.
    """
    if not isinstance(source, (str, os.PathLike)):
        return None
    path = Path(source)
    leads_away = path.is_absolute() or ".." in path.parts
    return unicodedata.normalize("NFC", path.name if leads_away else path.as_posix())


def name_for(source: Source, name: str | None) -> str:
    """Return the name under which to store `source`: the given one, or its default. With a slash at
    its end, `name` is a folder, in which a path keeps its last part. Raises `UsageError`."""
    if isinstance(source, TreeItem):
        check_any_name(source.name)
        return source.name
    chosen = default_name(source) if name is None else name
    if name is not None and name.endswith("/") and (own := default_name(source)) is not None:
        chosen = name.lstrip("/") + own.rpartition("/")[2]
    if chosen is None:
        raise UsageError("a source without a path needs a name", "pass `name`")
    try:
        check_name(chosen)
    except UsageError as exc:
        if name is not None:
            raise
        # Say which of several sources, and what to do without renaming it.
        cause = f"{source!s} cannot be stored under its own name: {exc.cause}"
        raise UsageError(cause, "give it one with --name") from exc
    return chosen


def _unreadable(name: str, exc: OSError) -> UnreadableSource:
    return UnreadableSource(f"cannot read {name}: {exc.strerror}")
