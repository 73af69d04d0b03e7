"""Where fetched files land: whole and verified at their place, or not there at all.

A file is made under a temporary name (0600) in its own folder and takes its place by a rename. A
large one gets even that name, where it can be done, only when all of it is there, so that nothing
stays of one that is cut off by whatever kills us.

A tree of files comes from names that a server, or whoever shared them, has chosen: below the folder
that was meant, each step of the way is opened as the folder it is and never through a link, so that
no name leads elsewhere, be it by what stood there before.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Final, Self, cast

from protocol.buffers.largefiles import LARGE
from protocol.codec.names import is_device_name
from sfsc.atomicfile import sync_to_disk
from sfsc.closing import Closing
from sfsc.crypto.envelope import Metadata
from sfsc.errors import BadDestination, LocalError
from sfsc.transfer.local_io import LargeFileWriter

_PERMISSIONS: Final = 0o777
"""No set-user-id, set-group-id or sticky bit comes back from a server."""
_POSIX: Final = os.name == "posix"
_FOLDER: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | getattr(os, "O_BINARY", 0)
_UNNAMED: Final = os.O_WRONLY | getattr(os, "O_TMPFILE", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_SUCH_THING: Final = frozenset(
    {errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
)
_FOREIGN: Final = frozenset('<>:"|?*')
"""What no file name on Windows can hold; a colon would name another stream of a file."""
Place = Callable[[Metadata], AbstractContextManager[BinaryIO]]
"""Where a file goes, once its metadata is known."""


class Folder(Closing):
    """An open folder. On POSIX everything in it is reached through its descriptor, so that nobody
    can put a link in its place meanwhile; Windows has no such thing, and links are looked for."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        """Use `open`."""
        self.path = path
        self._descriptor = descriptor
        self._random = os.urandom(8).hex()
        self._count = itertools.count()

    @classmethod
    def open(cls, path: Path) -> Self:
        """The folder that the user named; links on the way are his own. Raises `LocalError`."""
        with _writing(path):
            if not _POSIX:
                if not path.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                return cls(path, None)
            return cls(path, os.open(path, _FOLDER))

    def enter(self, part: str) -> Folder:
        """The folder `part` in this one, made where there is none.

        Raises `BadDestination` where something else stands there, a link to a folder included.
        """
        path = self.path / part
        with _writing(path):
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._at(part), 0o777, dir_fd=self._descriptor)
            try:
                if not _POSIX:
                    if _is_link(path) or not path.is_dir():
                        raise NotADirectoryError
                    return Folder(path, None)
                opened = os.open(part, _FOLDER | _NO_LINK, dir_fd=self._descriptor)
            except OSError as exc:
                if exc.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK, None):
                    raise
                raise BadDestination(f"{path} is a link or a file, and should be a folder") from exc
            return Folder(path, opened)

    def folds_case(self) -> bool:
        """Whether names that differ in nothing but case are one here. Raises `LocalError`."""
        with _writing(self.path):
            name = self._temporary()
            os.close(os.open(self._at(name), _NEW, 0o600, dir_fd=self._descriptor))
            try:
                os.stat(self._at(name.upper()), dir_fd=self._descriptor)
            except FileNotFoundError:
                return False
            finally:
                os.unlink(self._at(name), dir_fd=self._descriptor)
            return True

    def _temporary(self) -> str:
        return f".sfsc-{self._random}-{next(self._count)}"

    @contextlib.contextmanager
    def arriving(self, name: str, metadata: Metadata, *, durable: bool) -> Iterator[BinaryIO]:
        """A file to write that takes its place as `name` when the block ends well, and else is
        gone. With `durable` it is on the disk by then. Raises `LocalError` for every fault of the
        file system, those in the block included."""
        with _writing(self.path, name):
            temporary = self._temporary()
            unnamed = self._unnamed(temporary) if metadata.size >= LARGE else None
            made = unnamed
            if made is None:
                made = os.open(self._at(temporary), _NEW, 0o600, dir_fd=self._descriptor)
            try:
                with _writer(made, metadata, durable=durable) as file:
                    yield file
                    file.flush()
                    if unnamed is not None:
                        # Before the sync, which is to make it the file of a name.
                        self._give_name(unnamed, temporary)
                    if durable:
                        sync_to_disk(made)
                    if _POSIX:
                        _restore(made, metadata)
                if not _POSIX:
                    _restore(self._at(temporary), metadata)
                os.replace(
                    self._at(temporary),
                    self._at(name),
                    src_dir_fd=self._descriptor,
                    dst_dir_fd=self._descriptor,
                )
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._at(temporary), dir_fd=self._descriptor)
                raise
            if durable and self._descriptor is not None:
                # Windows cannot open a folder; there the rename itself is journalled.
                sync_to_disk(self._descriptor)

    def close(self) -> None:
        """Twice does no harm."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _unnamed(self, trial: str) -> int | None:
        """A file in this folder without a name, None where there is no such thing.

        That one can be given a name is tried with another, now, under the name `trial`: it would be
        late to learn of it when a large file is there.
        """
        if sys.platform == "linux" and self._descriptor is not None:
            with contextlib.suppress(OSError):  # what is wrong with the folder shows the other way
                tried = os.open(".", _UNNAMED, 0o600, dir_fd=self._descriptor)
                try:
                    self._give_name(tried, trial)
                    os.unlink(trial, dir_fd=self._descriptor)
                finally:
                    os.close(tried)
                return os.open(".", _UNNAMED, 0o600, dir_fd=self._descriptor)
        return None

    def _give_name(self, unnamed: int, name: str) -> None:
        """Raises OSError, also where something has that name."""
        os.link(f"/proc/self/fd/{unnamed}", name, dst_dir_fd=self._descriptor)

    def _at(self, name: str) -> str:
        return name if self._descriptor is not None else str(self.path / name)


class Tree(Closing):
    """Places files by their names with ``/`` below a folder, which is made where there is none.

    A context; the last folder that was used stays open, since names come sorted.
    """

    def __init__(self, path: Path, *, folds_case: bool | None = None) -> None:
        """With `folds_case` names that differ in nothing but case may be one there; None: that is
        found out. Raises `LocalError`."""
        with _writing(path):
            path.mkdir(parents=True, exist_ok=True)
        self._top = Folder.open(path)
        self._parts: list[str] = []
        self._last = self._top
        self._placed: dict[str, str] | None = None  # by what their names have in common
        try:
            if self._top.folds_case() if folds_case is None else folds_case:
                self._placed = {}
        except BaseException:
            self._top.close()
            raise

    @property
    def path(self) -> Path:
        return self._top.path

    def place(self, name: str) -> Place:
        """Where a file of that name goes: as `Folder.arriving`, one at a time; not synced: the
        server still has it. Raises `BadDestination` for a name that can be no file here."""
        *parts, last = check_placeable(name)

        def arriving(metadata: Metadata) -> AbstractContextManager[BinaryIO]:
            folder = self._folder(parts)
            self._check_no_other(name)
            return folder.arriving(last, metadata, durable=False)

        return arriving

    def _check_no_other(self, name: str) -> None:
        """Raise `BadDestination` if `name` has the place of another, which came before."""
        if self._placed is None:
            return
        other = self._placed.setdefault(name.casefold(), name)
        if other == name:
            return
        with contextlib.suppress(OSError):  # one of them is not there: two places, or none yet
            if (self.path / other).samefile(self.path / name):
                raise BadDestination(
                    f"{name} would take the place of {other}, which is another file"
                )

    def _folder(self, parts: list[str]) -> Folder:
        if parts != self._parts:
            self._leave()
            folder = self._top
            try:
                for part in parts:
                    below = folder.enter(part)
                    if folder is not self._top:
                        folder.close()
                    folder = below
            except BaseException:
                if folder is not self._top:
                    folder.close()
                raise
            self._parts, self._last = parts, folder
        return self._last

    def _leave(self) -> None:
        if self._last is not self._top:
            self._last.close()
        self._parts, self._last = [], self._top

    def close(self) -> None:
        """Twice does no harm."""
        self._leave()
        self._top.close()


def check_placeable(name: str) -> tuple[str, ...]:
    """The parts of a file's name (already a valid one), for a place below some folder.

    Raises `BadDestination` for what Windows takes for a device, on every system: the folder may be
    one that Windows sees too. On Windows also for what its file names cannot hold.
    """
    parts = tuple(name.split("/"))
    for part in parts:
        if is_device_name(part):
            raise BadDestination(f"{name} is the name of a device on Windows")
        if sys.platform == "win32" and (part[-1] in ". " or _FOREIGN & set(part)):
            raise BadDestination(f"{name} cannot be the name of a file on Windows")
    return parts


@contextlib.contextmanager
def arriving(path: Path, metadata: Metadata) -> Iterator[BinaryIO]:
    """A file at a path that the user chose; see `Folder.arriving`, durable.

    A device or a pipe is written to, not replaced.
    """
    with _writing(path):
        if path.exists() and not path.is_file():
            with path.open("wb") as stream:
                yield stream
            return
    with (
        Folder.open(path.parent) as folder,
        folder.arriving(path.name, metadata, durable=True) as file,
    ):
        yield file


def _writer(made: int, metadata: Metadata, *, durable: bool) -> BinaryIO:
    if durable or metadata.size >= LARGE:
        return cast(BinaryIO, LargeFileWriter(made, metadata.size))
    return cast(BinaryIO, io.FileIO(made, "wb"))


def _restore(target: int | str, metadata: Metadata) -> None:
    """Time and permissions of the source, where it had any; else it stays with its owner alone."""
    if metadata.mode is not None:
        with _where_there_are_such():
            os.chmod(target, metadata.mode & _PERMISSIONS)
    if metadata.mtime is not None:
        with _where_there_are_such():
            os.utime(target, ns=(metadata.mtime, metadata.mtime))


@contextlib.contextmanager
def _where_there_are_such() -> Iterator[None]:
    """A file system without permissions (FAT), or that cannot hold a time, still holds the file."""
    try:
        yield
    except OverflowError:
        return
    except OSError as exc:
        if exc.errno not in _NO_SUCH_THING:
            raise


def _is_link(path: Path) -> bool:
    """Whether `path` leads elsewhere: a symbolic link, on Windows also a junction."""
    status = os.lstat(path)
    if sys.platform != "win32":
        return stat.S_ISLNK(status.st_mode)
    else:
        return bool(status.st_file_attributes & stat.FILE_ATTRIBUTE_REPARSE_POINT)


@contextlib.contextmanager
def _writing(path: Path, name: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise LocalError(f"cannot write {path / name}: {exc.strerror}") from exc
