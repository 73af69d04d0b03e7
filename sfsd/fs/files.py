"""The file system as the daemon uses it: few calls, each of which a test can make fail.

`Files` has two halves. The first wraps single system calls and evens out the platforms; a test's
fault injector overrides these. The second combines them and holds the write orders on which
durability relies: *file before name, name before folder*. Every method raises OSError unchanged;
the journal and the store translate at their boundary.

A root process, such as an administration command beside a daemon that has its own account, gives
what it creates to the owner of the root (`Files.below`). Otherwise the daemon could not open it.

Windows and macOS: `fdatasync` becomes a full flush (on macOS with F_FULLFSYNC, because `fsync`
there leaves data in the drive's cache). Windows cannot flush a folder; NTFS journals its metadata
in order, so a later flush of any file on the volume makes earlier names durable too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Self

from protocol.buffers import largefiles
from protocol.buffers.file_status import is_folder
from protocol.codec.encoding import Buffer

if sys.platform == "darwin":
    import fcntl

FILE_MODE = 0o600
FOLDER_MODE = 0o700
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
"""`OSError.errno` values that mean there is no room, as opposed to a broken disk."""
NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""`OSError.errno` values that mean the process or system has too much open: it may work soon."""
_NOT_DAMAGE = NO_DESCRIPTORS | FULL_DISK | {errno.EACCES, errno.EPERM}
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""Errors of a file system that cannot sync a folder; it writes names in an order of its own."""

_BINARY: int = getattr(os, "O_BINARY", 0)
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY
_APPEND = os.O_RDWR | os.O_APPEND | _BINARY
_FOLDER: int = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
_NO_SYMLINK: int = getattr(os, "O_NOFOLLOW", 0)
_NO_HARD_LINKS = frozenset(
    {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES}
)
_seek_lock = threading.Lock()
_SYNCFS_KERNEL = (5, 8)
"""The first Linux whose syncfs reports lost writes (syncfs(2), "VERSIONS")."""
_EXT, _XFS, _BTRFS, _TMPFS = 0xEF53, 0x58465342, 0x9123683E, 0x01021994
_TRUSTED = frozenset({_EXT, _XFS, _BTRFS, _TMPFS})
"""`f_type` of statfs(2) for ext2 to ext4, XFS and Btrfs, which are known to write everything back
and to wait for the disk, and for tmpfs, which has no disk and for which a sync of one file does
nothing either. A file system in user space is free to do nothing."""
_STATFS_SIZE = 256
"""Bytes; the structure has 120, and `f_type` is its first word."""


@contextlib.contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Name `path` in an `OSError` that names no file, as those of reads and writes."""
    try:
        yield
    except OSError as exc:
        exc.filename = exc.filename or str(path)
        raise


def is_damage(exc: OSError) -> bool:
    """Return whether a failed open or read of a file that exists tells of a damaged disk, as
    opposed to missing rights, or too little memory or too few descriptors."""
    return exc.errno not in _NOT_DAMAGE


class Files:
    """The real file system. Handles are descriptors as `os.open` returns them."""

    _owner: tuple[int, int] | None = None
    """User and group id that new files and folders get, or None: those of this process."""

    @classmethod
    def below(cls, root: Path) -> Self:
        """Return Files that create everything below `root` for the owner of `root`. This needs
        system calls only if this process runs as root and `root` belongs to another account."""
        files = cls()
        if sys.platform != "win32" and os.geteuid() == 0:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                status = os.stat(root)
                if status.st_uid != 0:
                    files._owner = status.st_uid, status.st_gid
        return files

    # Single system calls.

    def open_new(self, path: Path | str) -> int:
        """Return a handle to write to a file that does not exist yet."""
        return self._create(path, _NEW)

    def open_append(self, path: Path) -> int:
        """Return a handle to read anywhere and to append; the file is created if needed."""
        if self._owner is not None:
            # An existing file keeps its owner: the name may be a symlink to any file.
            with contextlib.suppress(FileExistsError):
                return self._create(path, _APPEND | os.O_CREAT | os.O_EXCL)
        return os.open(path, _APPEND | os.O_CREAT, FILE_MODE)

    def open_update(self, path: Path) -> int:
        """Return a handle to read and overwrite an existing file."""
        return os.open(path, os.O_RDWR | _BINARY)

    def open_read(self, path: Path | str) -> int:
        return os.open(path, os.O_RDONLY | _BINARY)

    def open_direct(self, handle: int, *, writing: bool) -> int | None:
        """Return a second handle that reads or writes past the page cache, or None if unsupported.
        Memory, offsets and lengths must then be whole pages."""
        return largefiles.open_direct(handle, writing=writing)

    def close(self, handle: int) -> None:
        os.close(handle)

    def write(self, handle: int, data: Buffer) -> int:
        """Write once; return how many bytes were written, which may be too few."""
        return os.write(handle, data)

    def read_at(self, handle: int, length: int, offset: int) -> bytes:
        """Return up to `length` bytes from `offset`. Safe beside other readers and an appender."""
        if sys.platform != "win32":
            return os.pread(handle, length, offset)
        else:
            with _seek_lock:
                os.lseek(handle, offset, os.SEEK_SET)
                return os.read(handle, length)

    def read_into(self, handle: int, memory: memoryview, offset: int) -> int:
        """Fill `memory` from `offset`; return how many bytes were read."""
        if sys.platform != "win32":
            return os.preadv(handle, [memory], offset)
        else:
            data = self.read_at(handle, len(memory), offset)
            memory[: len(data)] = data
            return len(data)

    def write_at(self, handle: int, data: Buffer, offset: int) -> int:
        """Write at `offset` once; return the bytes written. Safe beside writes of other ranges."""
        if sys.platform != "win32":
            return os.pwrite(handle, data, offset)
        else:
            with _seek_lock:
                os.lseek(handle, offset, os.SEEK_SET)
                return os.write(handle, data)

    def start_writing_back(self, handle: int, offset: int, length: int) -> None:
        """Hint that these bytes will be synced soon (length 0: to the end); promises nothing. On
        Linux it queues the dirty pages of the range. Many files, or a long one, then go to the disk
        in parallel, and the sync that follows is short."""
        if sys.platform == "linux":
            os.posix_fadvise(handle, offset, length, os.POSIX_FADV_DONTNEED)

    def allocate(self, handle: int, size: int) -> None:
        """Allocate `size` bytes on the disk for a new file, zeros until they are written. Otherwise
        ext4 allocates them when the file replaces another, and writes the file out before that.
        This takes longer than everything else about a small file."""
        if sys.platform == "linux" and size:
            try:
                os.posix_fallocate(handle, 0, size)
            except OSError as exc:
                if exc.errno in FULL_DISK:
                    raise  # other errors: unsupported here, and not needed

    def reserve(self, handle: int, offset: int, length: int) -> None:
        """Hint that this range will be written; promises nothing and keeps the file's size."""
        largefiles.reserve(handle, offset, length)

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def is_named(self, handle: int, path: Path) -> bool:
        """Return whether `path` is a name of the open file."""
        try:
            return os.path.samestat(os.fstat(handle), os.stat(path))
        except FileNotFoundError:
            return False

    def free(self, folder: Path) -> int:
        """Return how many bytes can still be written to the disk that holds `folder`."""
        return shutil.disk_usage(folder).free

    def free_files(self, folder: Path) -> int | None:
        """Return how many files can still be created there, None if that has no limit of its
        own."""
        if sys.platform == "win32":
            return None
        else:
            status = os.statvfs(folder)
            return status.f_favail if status.f_files else None

    def same_disk(self, one: Path, other: Path) -> bool:
        """Return whether both folders are on one file system."""
        return os.stat(one).st_dev == os.stat(other).st_dev

    def truncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def sync(self, handle: int) -> None:
        """Write the data and metadata of one file to the disk."""
        if sys.platform == "darwin":
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
        else:
            os.fsync(handle)

    def sync_data(self, handle: int) -> None:
        """Write the data and size of one file to the disk."""
        if sys.platform == "linux":
            os.fdatasync(handle)
        else:
            self.sync(handle)

    def sync_folder(self, folder: Path) -> None:
        """Write to the disk the names created, changed or removed in `folder`. Does nothing if the
        file system cannot sync a folder (some network file systems and FUSE)."""
        if sys.platform != "win32":
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self.sync(handle)
            except OSError as exc:
                if exc.errno not in _NO_FOLDER_SYNC:
                    raise
            finally:
                os.close(handle)

    def sync_all(self, folder: int) -> bool:
        """Write the whole file system that holds the open `folder` to the disk. One such sync
        replaces one sync for each of many files. Return False, having done nothing, if it is
        unavailable or its failures might go unreported. An error is raised once for each handle
        that was opened before it happened, whichever program's bytes were lost."""
        if sys.platform == "linux":
            return _syncfs(folder)
        else:
            return False

    def replace(self, source: Path | str, target: Path | str) -> None:
        """Rename `source` to `target` in one step, whether or not `target` exists."""
        os.replace(source, target)

    def move(self, source: Path, target: Path) -> None:
        """Rename, or copy and remove if `target` is on another file system. Raises
        FileNotFoundError if there is no `source`."""
        try:
            self.replace(source, target)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            self.remove(target)
            self._copy_new(source, target)
            self.remove(source)

    def link(self, source: Path, target: Path) -> None:
        """Add a second name for one file. Raises FileExistsError if `target` exists."""
        os.link(source, target)

    def remove(self, path: Path | str) -> None:
        """Remove a file; a missing file is no error."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def make_folder(self, path: Path) -> None:
        """Create `path` and its missing parents (0700); an existing folder is no error."""
        if self._owner is None:
            path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        elif not is_folder(path):
            self.make_folder(path.parent)
            with self._opened_parent(path) as parent:
                os.mkdir(path.name, FOLDER_MODE, dir_fd=parent)
                made = os.open(path.name, _FOLDER | _NO_SYMLINK, dir_fd=parent)
                with self.closing(made) as folder:
                    self._give_to_owner(folder, parent)

    def _create(self, path: Path | str, flags: int) -> int:
        if self._owner is None:
            return os.open(path, flags, FILE_MODE)
        with self._opened_parent(path) as parent:
            handle = os.open(os.path.basename(path), flags, FILE_MODE, dir_fd=parent)
            try:
                self._give_to_owner(handle, parent)
            except OSError:
                os.close(handle)
                raise
            return handle

    def _opened_parent(self, path: Path | str) -> contextlib.AbstractContextManager[int]:
        folder = os.path.dirname(path) or os.curdir
        return self.closing(os.open(folder, _FOLDER))

    def _give_to_owner(self, handle: int, parent: int) -> None:
        """Give a file or folder that was just created in the open folder `parent` to the owner of
        the root. That account could replace a folder on the path by a symlink, so this is done only
        in folders of its own, where it may create files anyway."""
        if sys.platform != "win32" and self._owner and os.fstat(parent).st_uid == self._owner[0]:
            os.fchown(handle, *self._owner)

    # Combined calls.

    @contextlib.contextmanager
    def closing(self, handle: int) -> Iterator[int]:
        """Yield `handle` and close it at the end of the block."""
        try:
            yield handle
        finally:
            self.close(handle)

    def write_all(self, handle: int, data: Buffer) -> None:
        """Write every byte; for files that are not read before they are complete."""
        view = memoryview(data)
        while view:
            view = view[self.write(handle, view) :]

    def write_all_at(self, handle: int, data: Buffer, offset: int) -> None:
        """Write every byte, starting at `offset`."""
        view = memoryview(data)
        while view:
            written = self.write_at(handle, view, offset)
            view, offset = view[written:], offset + written

    def read_exactly(self, handle: int, length: int, offset: int) -> bytes:
        """Return `length` bytes from `offset`. Raises EOFError if the file ends before."""
        data = self.read_at(handle, length, offset)
        while len(data) < length:
            more = self.read_at(handle, length - len(data), offset + len(data))
            if not more:
                raise EOFError(f"{length} bytes wanted at {offset}, {len(data)} there")
            data += more
        return data

    def write_new(
        self, path: Path | str, data: Buffer, *, durable: bool = False, allocate: bool = False
    ) -> None:
        """Create `path` with `data`. Raises FileExistsError if `path` exists. With `durable` the
        file is synced, and its name is durable after `sync_folder` of its folder. Without it, a
        kill may leave part of the data, and power loss may leave nothing. `allocate` calls
        `Files.allocate`. A failed attempt is removed, so it can be retried."""
        handle = self.open_new(path)
        try:
            with naming(path), self.closing(handle):
                if allocate:
                    self.allocate(handle, len(data))
                self.write_all(handle, data)
                if durable:
                    self.sync(handle)
        except OSError:
            self.remove(path)
            raise

    def replace_durable(self, path: Path, data: Buffer) -> None:
        """Replace `path`: old or new content, never a mixture; the new is durable on return."""
        self._replace_with(path, data, durable=True)
        self.sync_folder(path.parent)

    def replace_soon(self, path: Path, data: Buffer) -> None:
        """Replace without a sync: atomic if killed, but power loss may leave nothing."""
        self._replace_with(path, data, durable=False)

    def replace_staged(self, path: Path | str, data: Buffer) -> None:
        """Replace as `replace_soon`, for bytes that stay durable elsewhere until a sync of `path`.
        Power loss may leave zeros. Takes a third of the time if another file has that name."""
        self._replace_with(path, data, durable=False, allocate=True)

    def temporary(self, path: Path) -> Path:
        """Return the name beside `path` under which its next content is written."""
        return Path(_temporary(str(path)))

    def link_or_rename(self, source: Path, target: Path) -> None:
        """Give the bytes of `source` the name `target`, in place of another file there, without
        writing them again. A link keeps `source`; a file system without links renames it. The
        bytes are copied only if `target` is on another file system. Syncs nothing."""
        temporary = self.temporary(target)
        self.remove(temporary)
        try:
            self.link(source, temporary)
        except OSError as exc:
            if exc.errno not in _NO_HARD_LINKS:
                raise
            try:
                self.replace(source, target)
            except OSError as again:
                if again.errno != errno.EXDEV:
                    raise
            else:
                return
            self._copy_new(source, temporary)
        self.replace(temporary, target)
        # If both were names of one file already, rename(2) did nothing and left the temporary.
        self.remove(temporary)

    def link_or_copy(self, source: Path, target: Path) -> None:
        """Make `target` a hard link of `source`, or a copy if links are unsupported. Raises
        FileExistsError if `target` exists. Syncs nothing."""
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

    def _replace_with(
        self, path: Path | str, data: Buffer, *, durable: bool, allocate: bool = False
    ) -> None:
        temporary = _temporary(str(path))
        try:
            self.write_new(temporary, data, durable=durable, allocate=allocate)
        except FileExistsError:
            # One daemon owns a root, so this can only be left over from a crash. It is removed, not
            # overwritten: it may be a second name of a file that is in use.
            self.remove(temporary)
            self.write_new(temporary, data, durable=durable, allocate=allocate)
        try:
            self.replace(temporary, path)
        except OSError:
            self.remove(temporary)
            raise


def _temporary(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.tmp")


def _syncfs(folder: int) -> bool:
    """Call syncfs(2), which Python lacks; return False if the file system is not trusted. Raises
    OSError if something could not be written since `folder` was opened."""
    library = _syncfs_library()
    if library is None or _file_system_type(library, folder) not in _TRUSTED:
        return False
    if library.syncfs(folder) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return True


@cache
def _syncfs_library() -> ctypes.CDLL | None:
    """Return the C library, or None if it or the kernel has no syncfs that reports failures."""
    version = re.match(r"(\d+)\.(\d+)", platform.release())
    if version is None or (int(version[1]), int(version[2])) < _SYNCFS_KERNEL:
        return None
    library = ctypes.CDLL(None, use_errno=True)
    return library if hasattr(library, "syncfs") and hasattr(library, "fstatfs") else None


def _file_system_type(library: ctypes.CDLL, folder: int) -> int | None:
    result = ctypes.create_string_buffer(_STATFS_SIZE)
    if library.fstatfs(folder, result) != 0:
        return None
    return ctypes.c_ulong.from_buffer(result).value
