"""Destinations of downloads: a file appears whole and verified, or not at all.

A file is written under a temporary name (mode 0600) in its folder and renamed into place. A large
file gets even the temporary name only once it is complete, if the system allows that, so that
nothing is left behind if the process is killed.

The names in a tree of files were chosen by the user who shared them, or years ago. So below the
destination, each folder of a path is opened by itself and never through a link: no name leads
outside, whatever existed there before, and whatever links the tree itself holds. Folders are for
their owner only until everything is in them; their own modes and times are set at the end.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import EllipsisType, TracebackType
from typing import BinaryIO, Final, Self, cast

from protocol.buffers.file_status import exists, file_status, is_file, is_folder
from protocol.buffers.largefiles import LARGE
from protocol.codec.encoding import Buffer
from protocol.codec.names import fits_windows
from protocol.codec.terminal_text import reorders
from protocol.codec.values import changed
from sfsc.atomicfile import sync_folder, sync_to_disk
from sfsc.closing import Closing
from sfsc.crypto.envelope import FOLDER, LINK, Metadata
from sfsc.errors import BadDestination, ConflictError, LocalError
from sfsc.session.pipeline import Skip
from sfsc.transfer.local_io import LargeFileWriter, SparseFileWriter

_PERMISSIONS: Final = 0o777
"""Permissions that are restored: no set-user-id, set-group-id or sticky bit from a server."""
_POSIX: Final = os.name == "posix"
_FOLDER: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | getattr(os, "O_BINARY", 0)
_UNNAMED: Final = os.O_WRONLY | getattr(os, "O_TMPFILE", 0) | getattr(os, "O_CLOEXEC", 0)
_UNSUPPORTED: Final = frozenset(
    {errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
)
_PRIVATE: Final = 0o700
"""Mode of new folders. Their own mode is set when everything is in them; one that is not stored
keeps this mode, because its files may have been in a folder for their owner only."""
OpenDestination = Callable[[Metadata], AbstractContextManager[BinaryIO]]
"""Opens the destination of a file once its metadata is known. What is written for a folder or a
link is discarded: both are made at the end of the block."""


class DestinationFolder(Closing):
    """An open folder. On POSIX everything in it is accessed through its descriptor, so that nobody
    can replace it by a link meanwhile. Windows has no such calls; there links are checked for.
    `created` says that `enter` made it."""

    def __init__(self, path: Path, descriptor: int | None, *, created: bool = False) -> None:
        """Use `open_folder`."""
        self.path = path
        self.created = created
        self._descriptor = descriptor
        self.expected: dict[str, os.stat_result | None] = {}
        """Status of what a name may replace, None for nothing. Other names may replace anything."""
        self._random = os.urandom(8).hex()
        self._count = itertools.count()

    @classmethod
    def open_folder(cls, path: Path) -> Self:
        """Open the folder that the user named; links in that path are followed. Raises
        `LocalError`."""
        with _translating_errors(path):
            if not _POSIX:
                if not is_folder(path):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                return cls(path, None)
            return cls(path, os.open(path, _FOLDER))

    def enter(self, part: str, *, create: bool = True) -> DestinationFolder:
        """Open the folder `part` in this one, and `create` it (mode 0700) if it does not exist.

        Raises `BadDestination` if anything else has that name, including a link to a folder.
        """
        path, created = self.path / part, False
        with _translating_errors(path):
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self._at(part), _PRIVATE, dir_fd=self._descriptor)
                    created = True
            try:
                if not _POSIX:
                    if _is_link(path) or not is_folder(path):
                        raise NotADirectoryError
                    return DestinationFolder(path, None, created=created)
                opened = os.open(part, _FOLDER | _NO_LINK, dir_fd=self._descriptor)
            except OSError as exc:
                if exc.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK, None):
                    raise
                raise BadDestination(f"{path} is a link or a file, not a folder") from exc
            return DestinationFolder(path, opened, created=created)

    def status(self, name: str) -> os.stat_result | None:
        """Return the status of what is here under this name, without following a link; None if
        there is nothing. Raises `LocalError`."""
        with _translating_errors(self.path, name):
            try:
                return os.stat(self._at(name), dir_fd=self._descriptor, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def allow_writing(self) -> None:
        """Let its owner write to this folder, if that is this user. Raises `LocalError`."""
        if sys.platform != "win32" and self._descriptor is not None:
            with _translating_errors(self.path):
                status = os.fstat(self._descriptor)
                if status.st_uid == os.geteuid() and status.st_mode & _PRIVATE != _PRIVATE:
                    os.fchmod(self._descriptor, stat.S_IMODE(status.st_mode) | _PRIVATE)

    def restore(self, metadata: Metadata) -> None:
        """Set the mode and the time of this folder. Raises `LocalError`."""
        with _translating_errors(self.path):
            _restore(self.path if self._descriptor is None else self._descriptor, metadata)

    def folds_case(self) -> bool:
        """Whether the file system ignores case in names here. Raises `LocalError`."""
        with _translating_errors(self.path):
            name = self.temporary_name()
            os.close(self.create(name))
            try:
                os.stat(self._at(name.upper()), dir_fd=self._descriptor)
            except FileNotFoundError:
                return False
            finally:
                self.remove(name)
            return True

    def temporary_name(self) -> str:
        """Return a name that no file in this folder has."""
        return f".sfsc-{self._random}-{next(self._count)}"

    def create(self, temporary: str) -> int:
        """Create a file that only its owner can read; return its descriptor. Raises OSError."""
        return os.open(self._at(temporary), _NEW, 0o600, dir_fd=self._descriptor)

    def replace(self, temporary: str, name: str) -> None:
        """Rename a file to `name`. Raises OSError, and `ConflictError` for another file there than
        the `expected` one."""
        if name in self.expected:
            self.require_unchanged(name, self.expected.pop(name))
        folder = self._descriptor
        os.replace(self._at(temporary), self._at(name), src_dir_fd=folder, dst_dir_fd=folder)

    def require_unchanged(self, name: str, expected: os.stat_result | None) -> None:
        """Raise `ConflictError` unless what is here under this name has this status, None for
        nothing."""
        if _identity(self.status(name)) != _identity(expected):
            raise ConflictError(f"{self.path / name} was changed meanwhile")

    def remove_folder(self, name: str) -> bool:
        """Remove a folder; return whether it was empty. Raises `LocalError`."""
        with _translating_errors(self.path, name):
            try:
                os.rmdir(self._at(name), dir_fd=self._descriptor)
            except OSError as exc:
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return False
            return True

    def rename(self, name: str, to: str) -> None:
        """Give a file or folder another name. Raises `LocalError`, also if that exists."""
        folder = self._descriptor
        with _translating_errors(self.path, name):
            if self.status(to) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.rename(self._at(name), self._at(to), src_dir_fd=folder, dst_dir_fd=folder)

    def remove(self, temporary: str) -> None:
        """Remove a file, if it is there. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._at(temporary), dir_fd=self._descriptor)

    def replacing_file(
        self, name: str, metadata: Metadata, *, durable: bool
    ) -> AbstractContextManager[BinaryIO]:
        """Open a new file that replaces `name` if the block ends without an error, and is removed
        otherwise.

        With `durable` it is synced to the disk first. Raises `LocalError` for every error of the
        file system, including those in the block.
        """
        if durable or metadata.sparse or metadata.size >= LARGE or not _POSIX:
            return self._replacing_large(name, metadata, durable=durable)
        return cast(AbstractContextManager[BinaryIO], _SmallFile(self, name, metadata))

    @contextlib.contextmanager
    def _replacing_large(
        self, name: str, metadata: Metadata, *, durable: bool
    ) -> Iterator[BinaryIO]:
        with _translating_errors(self.path, name):
            temporary = self.temporary_name()
            unnamed = self._create_unnamed(temporary) if metadata.size >= LARGE else None
            made = self.create(temporary) if unnamed is None else unnamed
            try:
                writer = SparseFileWriter(made) if metadata.sparse else None
                with writer or LargeFileWriter(made, metadata.size) as file:
                    yield cast(BinaryIO, file)
                    file.flush()
                    if unnamed is not None:
                        # Before the sync, so that the name is durable, too.
                        self._give_name(unnamed, temporary)
                    if durable:
                        sync_to_disk(made)
                    if _POSIX:
                        _restore(made, metadata)
                if not _POSIX:
                    _restore(self._at(temporary), metadata)
                self.replace(temporary, name)
            except BaseException:
                self.remove(temporary)
                raise
            if durable and self._descriptor is not None:
                # Windows cannot open a folder; its file system journals the rename.
                sync_folder(self._descriptor)

    @contextlib.contextmanager
    def replacing_link(self, name: str, metadata: Metadata) -> Iterator[BinaryIO]:
        """Make a symbolic link that replaces `name`, but not a folder, at the end of the block.
        Raises `LocalError`."""
        yield io.BytesIO()
        with _translating_errors(self.path, name):
            temporary, target = self.temporary_name(), metadata.target or ""
            os.symlink(target, self._at(temporary), dir_fd=self._descriptor)
            try:
                if _POSIX:
                    _set_time(temporary, metadata.mtime, self._descriptor)
                self.replace(temporary, name)
            except BaseException:
                self.remove(temporary)
                raise

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _create_unnamed(self, trial: str) -> int | None:
        """Create a file without a name in this folder; return None if the system cannot.

        Whether such a file can be given a name is tried with another one first, under the name
        `trial`: after a large download it would be too late.
        """
        if sys.platform == "linux" and self._descriptor is not None:
            with contextlib.suppress(OSError):  # a fault of the folder shows with a named file, too
                tried = os.open(".", _UNNAMED, 0o600, dir_fd=self._descriptor)
                try:
                    self._give_name(tried, trial)
                    os.unlink(trial, dir_fd=self._descriptor)
                finally:
                    os.close(tried)
                return os.open(".", _UNNAMED, 0o600, dir_fd=self._descriptor)
        return None

    def _give_name(self, unnamed: int, name: str) -> None:
        """Link the unnamed file to `name`. Raises OSError, also if the name exists."""
        os.link(f"/proc/self/fd/{unnamed}", name, dst_dir_fd=self._descriptor)

    def _at(self, name: str) -> str:
        return name if self._descriptor is not None else str(self.path / name)


class _SmallFile:
    """A small file of `DestinationFolder.replacing_file` that is not synced, with few calls of the
    system and little around them."""

    def __init__(self, folder: DestinationFolder, name: str, metadata: Metadata) -> None:
        self._folder = folder
        self._name = name
        self._metadata = metadata
        self._temporary = folder.temporary_name()
        self._made = -1

    def __enter__(self) -> Self:
        try:
            self._made = self._folder.create(self._temporary)
        except OSError as exc:
            raise _local_error(self._folder.path, self._name, exc) from exc
        return self

    def write(self, data: Buffer) -> int:
        """Write as a raw file does."""
        return os.write(self._made, data)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        folder, metadata = self._folder, self._metadata
        try:
            try:
                if error is None:
                    _restore(self._made, metadata)
            finally:
                os.close(self._made)
            if error is None:
                folder.replace(self._temporary, self._name)
                return
        except (OSError, ConflictError) as exc:
            error = exc
        with contextlib.suppress(OSError):  # `error` says more
            folder.remove(self._temporary)
        if isinstance(error, OSError):
            raise _local_error(folder.path, self._name, error) from error
        if isinstance(error, ConflictError):
            raise error


class DestinationTree(Closing):
    """Opens files by their names with ``/`` below a folder, which is created if needed.

    The most recently used subfolder stays open, because names come sorted.
    """

    def __init__(
        self,
        path: Path,
        *,
        folds_case: bool | None = None,
        foreign: bool = False,
        folders: Iterable[str] = (),
    ) -> None:
        """`folds_case` says whether the file system ignores case in names; None detects it.
        `foreign` files are another user's: see `check_foreign_name`, `check_foreign_target` and
        `limit_to_umask`; no folder that existed before gets their modes. `folders` are the names of
        the folders that get a mode: their owner may write to them until then. Raises
        `LocalError`."""
        make_folders(path)
        self._foreign = foreign
        self._writable = frozenset[str]() if foreign else frozenset(folders)
        self._created: set[str] = set()
        self._metadata: dict[str, Metadata] = {}
        self._top = DestinationFolder.open_folder(path)
        self._prefix = str(path / "_").removesuffix("_")
        self._absent: list[str] | None = None  # a folder that could not be entered
        self._creates = False  # whether `_last` was entered to write to it
        self._parts: list[str] = []
        self._last = self._top
        self._names: dict[str, str] | None = None  # case-folded -> first name
        try:
            if self._top.folds_case() if folds_case is None else folds_case:
                self._names = {}
        except BaseException:
            self._top.close()
            raise

    @property
    def path(self) -> Path:
        return self._top.path

    def destination(
        self, name: str, *, expected: os.stat_result | EllipsisType | None = ...
    ) -> OpenDestination:
        """Return the destination for `name`, which ends with a slash for a folder; as
        `DestinationFolder.replacing_file`, one at a time. If `expected` is given, it replaces only
        a file with this status (None: no file), and raises `ConflictError` for another one.

        Files are not synced: the server still has them. Raises `BadDestination` for a name that no
        file can have here.
        """
        *parts, last = check_local_name(name.removesuffix("/"))
        if self._foreign:
            check_foreign_name(name)

        def open_file(metadata: Metadata) -> AbstractContextManager[BinaryIO]:
            if self._foreign:
                metadata = limit_to_umask(metadata)
                check_foreign_target(name, metadata.target)
            if metadata.kind == FOLDER:
                self._folder([*parts, last])
                return self._making_folder(name, metadata)
            folder = self._folder(parts)
            self._check_collision(name)
            if not isinstance(expected, EllipsisType):
                folder.expected[last] = expected
            if metadata.kind == LINK:
                return folder.replacing_link(last, metadata)
            return folder.replacing_file(last, metadata, durable=False)

        return open_file

    def location(self, name: str) -> str:
        """Return the path of `name`."""
        return self._prefix + name.removesuffix("/").replace("/", os.sep)

    def status(self, name: str) -> os.stat_result | None:
        """Return the status of what is at `name`, without following a link; None if there is
        nothing, or if its folder cannot be entered, which writing to it reports. Creates nothing.
        Raises `BadDestination` as `destination` does."""
        *parts, last = check_local_name(name.removesuffix("/"))
        if parts == self._absent:
            return None
        try:
            folder = self._folder(parts, create=False)
        except LocalError:
            self._absent = parts
            return None
        self._check_collision(name)
        return folder.status(last)

    def remove(self, name: str, expected: os.stat_result) -> bool:
        """Remove the file or link `name` if it still has this status, or the folder `name` if it is
        empty; return whether it was. Raises `ConflictError` and `LocalError`."""
        *parts, last = check_local_name(name.removesuffix("/"))
        folder = self._folder(parts, create=False)
        if name.endswith("/"):
            return folder.remove_folder(last)
        folder.require_unchanged(last, expected)
        with _translating_errors(folder.path, last):
            folder.remove(last)
        return True

    def rename(self, name: str, to: str) -> None:
        """Rename the file or folder `name` (without a slash at its end) within its folder. Raises
        `LocalError`, also if the new name exists."""
        *parts, last = check_local_name(name)
        folder = self._folder(parts, create=False)
        folder.rename(last, to.rpartition("/")[2])

    def keep_folder(self, name: str, metadata: Metadata) -> None:
        """Note the metadata that the folder `name`, which exists, has and keeps: what is written to
        it changes its time."""
        if not self._foreign:
            self._metadata[name] = metadata

    @contextlib.contextmanager
    def _making_folder(self, name: str, metadata: Metadata) -> Iterator[BinaryIO]:
        yield io.BytesIO()
        if not self._foreign:
            self._metadata[name] = metadata
        elif name in self._created:
            # Its owner must be able to delete it.
            self._metadata[name] = changed(metadata, mode=(metadata.mode or 0) | _PRIVATE)

    def restore_folders(self, skip: Skip) -> None:
        """Set the modes and times of the folders that were fetched, once everything is in them:
        those deepest first. Report those that fail to `skip`."""
        for name in sorted(self._metadata, key=lambda name: name.count("/"), reverse=True):
            try:
                self._folder(name.split("/")[:-1], create=False).restore(self._metadata[name])
            except LocalError as exc:
                skip(name, exc)

    def _check_collision(self, name: str) -> None:
        """Raise `BadDestination` if `name` is the same file as another one that was written
        before."""
        if self._names is None:
            return
        other = self._names.setdefault(name.casefold(), name)
        if other == name:
            return
        with _translating_errors(self.path, name):
            first, second = file_status(self.path / other), file_status(self.path / name)
        if first is not None and second is not None and os.path.samestat(first, second):
            raise BadDestination(f"{name} would overwrite {other}, which is another file")

    def _folder(self, parts: list[str], *, create: bool = True) -> DestinationFolder:
        if create and not self._creates:
            self._close_last()  # what was entered may not be writable
            self._absent = None
        self._creates = create
        if parts != self._parts:
            self._close_last()
            folder, name = self._top, ""
            try:
                for part in parts:
                    name += f"{part}/"
                    below = folder.enter(part, create=create)
                    if folder is not self._top:
                        folder.close()
                    folder = below
                    if folder.created:
                        self._created.add(name)
                    elif create and name in self._writable:
                        folder.allow_writing()
            except BaseException:
                if folder is not self._top:
                    folder.close()
                raise
            self._parts, self._last = parts, folder
        return self._last

    def _close_last(self) -> None:
        if self._last is not self._top:
            self._last.close()
        self._parts, self._last = [], self._top

    def close(self) -> None:
        """Close all folders. Idempotent."""
        self._close_last()
        self._top.close()


def _identity(status: os.stat_result | None) -> tuple[int, ...]:
    """Return what tells a file from another one, and from itself after a change."""
    if status is None:
        return ()
    times = status.st_mtime_ns, status.st_ctime_ns
    return stat.S_IFMT(status.st_mode), status.st_ino, status.st_size, *times


def make_folders(path: Path) -> None:
    """Create the folder `path` and its missing parents (mode 0700). Raises `LocalError`."""
    with _translating_errors(path):
        missing = itertools.takewhile(lambda one: not exists(one), (path, *path.parents))
        for one in reversed(list(missing)):
            one.mkdir(_PRIVATE, exist_ok=True)
        if not is_folder(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def check_local_name(name: str) -> tuple[str, ...]:
    """Return the parts of a valid file name, for a path below some folder.

    Raises `BadDestination` on Windows for a name that it takes for a device or cannot store.
    """
    parts = tuple(name.split("/"))
    if sys.platform == "win32" and not all(map(fits_windows, parts)):
        raise BadDestination(f"{name} is not a valid file name on Windows")
    return parts


def check_foreign_name(name: str) -> None:
    """Raise `BadDestination` if a name that another user chose has a control or bidi character: in
    a listing the file would look like another one, such as ``a.txt`` for a program."""
    if reorders(name):
        raise BadDestination(f"{name} has characters that make it look like another name")


def check_foreign_target(name: str, target: str | None) -> None:
    """Raise `BadDestination` if a link that another user chose could lead out of the tree that is
    fetched, or has a control or bidi character.

    Its target must be relative, and have ``..`` only at the beginning, at most as often as the link
    is deep in the tree. As this holds for all links, none of them leads out through another.
    """
    if target is None:
        return
    up = 0
    parts = target.replace("\\", "/").split("/")
    while up < len(parts) and parts[up] == "..":
        up += 1
    leads_out = up > name.count("/") or ".." in parts[up:] or not parts[0] or ":" in parts[0]
    if leads_out or reorders(target):
        raise BadDestination(f"{name} is a link that leads elsewhere: {target}")


def limit_to_umask(metadata: Metadata) -> Metadata:
    """Return the metadata of another user's file without the permissions that this process's umask
    forbids: the sharer must not open a file to others on this machine."""
    if metadata.mode is None:
        return metadata
    return changed(metadata, mode=metadata.mode & ~_umask())


_reading_umask: Final = threading.Lock()


def _umask() -> int:
    """Return the umask, which the system tells only to those who set it. Meanwhile other threads
    create files that are for their owner only."""
    with _reading_umask:
        present = os.umask(0o077)
        os.umask(present)
    return present


@contextlib.contextmanager
def replacing_file(path: Path, metadata: Metadata) -> Iterator[BinaryIO]:
    """Open a file at a path that the user chose; as `DestinationFolder.replacing_file`, durable.

    A device or a pipe is written to, not replaced.
    """
    with _translating_errors(path):
        if exists(path) and not is_file(path):
            with path.open("wb") as stream:
                yield stream
            return
    with (
        DestinationFolder.open_folder(path.parent) as folder,
        folder.replacing_file(path.name, metadata, durable=True) as file,
    ):
        yield file


def _restore(target: int | str | Path, metadata: Metadata) -> None:
    """Restore time and permissions of the source, if it had any; otherwise only its owner can read
    it. What the file system does not have (FAT has no permissions), it ignores."""
    if metadata.mode is not None:
        try:
            os.chmod(target, metadata.mode & _PERMISSIONS)
        except (OSError, OverflowError) as exc:
            _check_unsupported(exc)
    _set_time(target, metadata.mtime)


def _set_time(target: int | str | Path, mtime: int | None, folder: int | None = None) -> None:
    """Set the time of a file, or of a link in the open `folder`, if it has any."""
    try:
        if mtime is not None and folder is None:
            os.utime(target, ns=(mtime, mtime))
        elif mtime is not None:
            os.utime(target, ns=(mtime, mtime), dir_fd=folder, follow_symlinks=False)
    except (OSError, OverflowError) as exc:
        _check_unsupported(exc)


def _check_unsupported(error: OSError | OverflowError) -> None:
    if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
        raise error


def _is_link(path: Path) -> bool:
    """Whether `path` is a symbolic link, or on Windows also a junction."""
    status = os.lstat(path)
    if sys.platform != "win32":
        return stat.S_ISLNK(status.st_mode)
    else:
        return bool(status.st_file_attributes & stat.FILE_ATTRIBUTE_REPARSE_POINT)


@contextlib.contextmanager
def _translating_errors(path: Path, name: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise _local_error(path, name, exc) from exc


def _local_error(path: Path, name: str, error: OSError) -> LocalError:
    return LocalError(f"cannot write {path / name}: {error.strerror}")
