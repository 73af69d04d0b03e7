"""The file system as the daemon uses it: few calls, each of which a test can make fail.

`Files` has two halves. The first wraps single system calls and only evens out the platforms; a
test's fault injector overrides these. The second is made of the first and holds the orders of
durability that everything else relies on: *file before name, name before folder*. Every method
raises OSError as it is; the journal and the store translate at their boundary.

Windows and macOS: `fdatasync` becomes a full flush (on macOS with F_FULLFSYNC, as `fsync` there
leaves data in the drive's cache). Windows cannot flush a folder; NTFS journals its metadata in
order, so a later flush of any file on the volume makes earlier names durable too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import threading
from pathlib import Path

from protocol.buffers import largefiles

if sys.platform == "darwin":
    import fcntl
elif sys.platform == "linux":
    from sfsd.fs import syncfs

FILE_MODE = 0o600
FOLDER_MODE = 0o700
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
"""`OSError.errno` values that mean there is no room, as opposed to a broken disk."""

_BINARY: int = getattr(os, "O_BINARY", 0)
_NO_HARD_LINKS = frozenset(
    {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES}
)
_seek_lock = threading.Lock()


class Files:
    """The real file system. Handles are descriptors, as `os.open` returns them."""

    # Single calls.

    def open_new(self, path: Path | str) -> int:
        """A handle to write to a file that does not exist yet."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, FILE_MODE)

    def open_append(self, path: Path) -> int:
        """A handle to read anywhere and to write at the end; the file is made if need be."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY, FILE_MODE)

    def open_update(self, path: Path) -> int:
        """A handle to read and overwrite a file that exists."""
        return os.open(path, os.O_RDWR | _BINARY)

    def open_read(self, path: Path | str) -> int:
        return os.open(path, os.O_RDONLY | _BINARY)

    def open_direct(self, handle: int, *, writing: bool) -> int | None:
        """A second handle of an open file, to read or to write past the page cache; None where
        that cannot be had. Memory, offsets and lengths must then be whole pages."""
        return largefiles.open_direct(handle, writing=writing)

    def close(self, handle: int) -> None:
        os.close(handle)

    def write(self, handle: int, data: bytes | bytearray | memoryview) -> int:
        """One write; returns how many bytes it took, which may be too few."""
        return os.write(handle, data)

    def read_at(self, handle: int, length: int, offset: int) -> bytes:
        """Up to `length` bytes from `offset`. Safe beside other readers and an appender."""
        if sys.platform != "win32":
            return os.pread(handle, length, offset)
        else:
            with _seek_lock:
                os.lseek(handle, offset, os.SEEK_SET)
                return os.read(handle, length)

    def read_into(self, handle: int, memory: memoryview, offset: int) -> int:
        """As `read_at`, into `memory`, as many bytes as it has; how many there were."""
        if sys.platform != "win32":
            return os.preadv(handle, [memory], offset)
        else:
            data = self.read_at(handle, len(memory), offset)
            memory[: len(data)] = data
            return len(data)

    def write_at(self, handle: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        """One write at `offset`; returns how many bytes it took. Safe beside others' ranges."""
        if sys.platform != "win32":
            return os.pwrite(handle, data, offset)
        else:
            with _seek_lock:
                os.lseek(handle, offset, os.SEEK_SET)
                return os.write(handle, data)

    def start_writing_back(self, handle: int, offset: int, length: int) -> None:
        """A hint that these bytes are synced soon (0: up to the end); promises nothing.

        On Linux it queues the dirty pages of the range, so that many files or a long one go to the
        disk side by side, and what is synced after is short.
        """
        if sys.platform == "linux":
            os.posix_fadvise(handle, offset, length, os.POSIX_FADV_DONTNEED)

    def allocate(self, handle: int, size: int) -> None:
        """Room on the disk for a new file's bytes, which are `size` zeros until they are written.

        ext4 otherwise looks for it when the file takes another's name, and writes the file out
        before it does: that takes longer than all else about a small file.
        """
        if sys.platform == "linux" and size:
            try:
                os.posix_fallocate(handle, 0, size)
            except OSError as exc:
                if exc.errno in FULL_DISK:
                    raise  # elsewhere it is not to be had, and not needed

    def reserve(self, handle: int, offset: int, length: int) -> None:
        """A hint that all these bytes are to be written; promises nothing, moves no end of a
        file."""
        largefiles.reserve(handle, offset, length)

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def free(self, folder: Path) -> int:
        """Bytes that can still be written to the disk that holds `folder`."""
        return shutil.disk_usage(folder).free

    def truncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def sync(self, handle: int) -> None:
        """Data and metadata of one file are on the disk when this returns."""
        if sys.platform == "darwin":
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
        else:
            os.fsync(handle)

    def sync_data(self, handle: int) -> None:
        """Data and size of one file are on the disk when this returns."""
        if sys.platform == "linux":
            os.fdatasync(handle)
        else:
            self.sync(handle)

    def sync_folder(self, folder: Path) -> None:
        """Names made, changed or removed in `folder` are on the disk when this returns."""
        if sys.platform != "win32":
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self.sync(handle)
            finally:
                os.close(handle)

    def sync_all(self, folder: int) -> bool:
        """All of the file system that holds the open `folder` is on the disk when this is True.

        False where that cannot be had, or its failures not be told: then nothing was done. An error
        is raised once for each handle that was opened before it happened, whichever program's
        bytes were lost.
        """
        if sys.platform == "linux":
            return syncfs.sync(folder)
        else:
            return False

    def replace(self, source: Path | str, target: Path | str) -> None:
        """Give `source` the name `target`, whether or not that exists, in one step."""
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        """A second name for one file; FileExistsError if `target` is there."""
        os.link(source, target)

    def remove(self, path: Path | str) -> None:
        """Remove a file; that it is gone already is fine."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def make_folder(self, path: Path) -> None:
        """Make `path` and its missing parents (0700); that it is there already is fine."""
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)

    # Made of them.

    def write_all(self, handle: int, data: bytes | bytearray | memoryview) -> None:
        """Write every byte; for files that nobody reads before they are complete."""
        view = memoryview(data)
        while view:
            view = view[self.write(handle, view) :]

    def write_all_at(self, handle: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write every byte, from `offset` on."""
        view = memoryview(data)
        while view:
            written = self.write_at(handle, view, offset)
            view, offset = view[written:], offset + written

    def read_exactly(self, handle: int, length: int, offset: int) -> bytes:
        """`length` bytes from `offset`; EOFError if the file ends before."""
        data = self.read_at(handle, length, offset)
        while len(data) < length:
            more = self.read_at(handle, length - len(data), offset + len(data))
            if not more:
                raise EOFError(f"{length} bytes wanted at {offset}, {len(data)} there")
            data += more
        return data

    def write_new_durable(self, path: Path, data: bytes | bytearray | memoryview) -> None:
        """Make `path` with `data` and sync it. Its name lasts after `sync_folder` of its folder.

        What a failure leaves behind is removed, so the same path can be tried again.
        """
        self._write_new(path, data, durable=True)

    def write_new(self, path: Path | str, data: bytes | bytearray | memoryview) -> None:
        """As `write_new_durable`, but no sync: a kill may leave a part of it, power loss nothing.
        FileExistsError if `path` is there."""
        self._write_new(path, data, durable=False)

    def replace_durable(self, path: Path, data: bytes | bytearray | memoryview) -> None:
        """Old or new content under `path`, never a mixture; the new is on the disk on return."""
        self._replace_with(path, data, durable=True)
        self.sync_folder(path.parent)

    def replace_soon(self, path: Path, data: bytes | bytearray | memoryview) -> None:
        """As `replace_durable` for a killed process, but no sync: power loss may leave nothing."""
        self._replace_with(path, data, durable=False)

    def replace_staged(self, path: Path | str, data: bytes | bytearray | memoryview) -> None:
        """As `replace_soon`, for bytes that are durable elsewhere until a sync of `path`: power
        loss may leave zeros. Takes a third of the time where another file has that name."""
        self._replace_with(path, data, durable=False, allocate=True)

    def temporary(self, path: Path) -> Path:
        """The name beside `path` under which its next content is made."""
        return Path(_temporary(str(path)))

    def link_or_copy(self, source: Path, target: Path) -> None:
        """`target` becomes a hard link of `source`, or a copy where links cannot be made.

        FileExistsError if `target` is there. SyncGuard nothing.
        """
        try:
            self.link(source, target)
        except OSError as exc:
            if exc.errno not in _NO_HARD_LINKS:
                raise
            self._copy_new(source, target)

    def _copy_new(self, source: Path, target: Path) -> None:
        with open(source, "rb") as reader:
            handle = self.open_new(target)
            try:
                with os.fdopen(handle, "wb") as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)
            except OSError:
                self.remove(target)
                raise

    def _write_new(
        self,
        path: Path | str,
        data: bytes | bytearray | memoryview,
        *,
        durable: bool,
        allocate: bool = False,
    ) -> None:
        handle = self.open_new(path)
        try:
            try:
                if allocate:
                    self.allocate(handle, len(data))
                self.write_all(handle, data)
                if durable:
                    self.sync(handle)
            finally:
                self.close(handle)
        except OSError:
            self.remove(path)
            raise

    def _replace_with(
        self,
        path: Path | str,
        data: bytes | bytearray | memoryview,
        *,
        durable: bool,
        allocate: bool = False,
    ) -> None:
        temporary = _temporary(str(path))
        try:
            self._write_new(temporary, data, durable=durable, allocate=allocate)
        except FileExistsError:
            # One daemon owns a root, so this can only be a crash's leftover. It is not written
            # into: it may be a second name of a file that is in use.
            self.remove(temporary)
            self._write_new(temporary, data, durable=durable, allocate=allocate)
        try:
            self.replace(temporary, path)
        except OSError:
            self.remove(temporary)
            raise


def _temporary(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.tmp")
