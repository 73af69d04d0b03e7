"""`SfsFileSystem`, the files of one account for programs that use fsspec."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import io
import os
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.config import apply_config
from fsspec.spec import AbstractFileSystem
from fsspec.transaction import Transaction
from fsspec.utils import isfilelike

from protocol.codec.values import Value
from sfsc.crypto.envelope import FILE, FOLDER, LINK
from sfsc.errors import ConflictError, NotFound, SfscError
from sfsc.filesystem import os_errors
from sfsc.filesystem.connection import Connection
from sfsc.filesystem.files import SfsFile, TextFile
from sfsc.filesystem.spool import Spool
from sfsc.keys.home import home_folder
from sfsc.library_log import log_warning
from sfsc.store import Store
from sfsc.trust.file_records import Entry

_DIRECTORY: Final = "directory"
_OPTIONS: Final = ("auto_rotate", "min_wrap_alg", "limit_rate")
_COPIED: Final = 64
"""Files that are copied together; the content of each takes 2 MiB of memory at most."""
_SLASH: Final = re.compile("/")
Info = dict[str, Any]
"""Facts about a file or folder: see `SfsFileSystem.info`."""


class _OneForEachHome(type(AbstractFileSystem)):  # type: ignore[misc]  # fsspec has no types
    """Makes `home` an argument of each file system, because fsspec keeps and pickles file systems
    by their arguments: another SFSC_HOME is another account."""

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        options = apply_config(cls, options)
        if "passphrase" in options:
            # fsspec would keep it, and write it into pickles.
            cause = "a file system takes no passphrase: set SFSC_PASSPHRASE or run `sfsc agent`"
            raise ValueError(cause)
        options["home"] = os.path.abspath(home_folder(options.get("home")))
        return super().__call__(*arguments, **options)


class _Batch:
    """Pairs (from, to) of a call on many files, which are done together."""

    def __init__(self) -> None:
        self.files: list[tuple[str, str]] = []
        self.folders: list[tuple[str, str]] = []


class _Deletion(Value):
    """A deletion in a transaction."""

    name: str


class _Move(Value):
    """A move in a transaction."""

    name: str
    to: str


class StoreTransaction(Transaction):  # type: ignore[misc]  # fsspec has no types
    """Transaction whose writes, deletions and moves become visible together, or not at all, when
    the block ends: see `sfsc.Store.transaction`, which has the limits."""

    fs: Any
    files: Any

    def complete(self, commit: bool = True) -> None:  # fsspec calls it so
        """End the transaction. Raises what `Store.transaction` does, as `OSError` or `ValueError`;
        then nothing is changed."""
        fs = self.fs
        files = list(self.files)
        self.files.clear()
        try:
            if commit:
                fs.change_together(files)
        finally:
            for one in files:
                if isinstance(one, SfsFile):
                    one.discard()
            fs._intrans, fs._transaction = False, None  # noqa: SLF001  # as its base class does
            self.fs = None


class SfsFileSystem(AbstractFileSystem, metaclass=_OneForEachHome):  # type: ignore[misc]
    """The files of one account: ``sfs://t/x`` is its file ``t/x``.

    `home` is the folder of the keyring, by default as for `sfsc.connect`. `auto_rotate`,
    `min_wrap_alg` and `limit_rate` are as there. The passphrase comes from where the command takes
    it. The connection is made at first use, and again in a process that was forked or that
    unpickles the file system; `close` ends it. Threads may share a file system: its calls take
    turns.

    A folder is there if a file is in it, or if it was made with `mkdir`. Nothing is cached here, so
    changes of other machines are seen at once. Errors of `sfsc` are raised as the `OSError` or
    `ValueError` that fits, with the former as the cause; only its `IntegrityError` stays.

    What is missing here is in `fsspec.AbstractFileSystem`.
    """

    protocol = "sfs"
    root_marker = ""
    transaction_type = StoreTransaction

    def __init__(self, *, home: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(**options)
        given: dict[str, Any] = {name: options[name] for name in _OPTIONS if name in options}
        self.home = os.fspath(home)
        self.connection = Connection(self.home, given)
        weakref.finalize(self, self.connection.close)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        stripped = super()._strip_protocol(path)
        if isinstance(stripped, list):
            return stripped
        return stripped.lstrip("/")

    @property
    def fsid(self) -> str:
        """Text that is the same for all file systems of one keyring."""
        return f"sfs-{self.home}"

    def close(self) -> None:
        """End the connection; the next call makes another one."""
        self.connection.close()

    # --- what there is -------------------------------------------------------------------------

    def info(self, path: str, **_options: Any) -> Info:
        """Return what is known of a file or folder.

        `name`, `size` (bytes; 0 for folders) and `type`: ``file``, ``directory`` or ``link``, which
        has a `destination`. Files and stored folders also have `created` and `mtime` (Unix
        seconds), `version`, `file_id`, `mode`, and `sha256` (hex), each None if it is unknown.
        Raises `FileNotFoundError`."""
        path = self._strip_protocol(path)
        if not path:
            return _folder("")
        try:
            with self.connection.use(path) as store:
                return _file(store.stat(path))
        except FileNotFoundError:
            for entry in self._entries(path):
                if entry.name.startswith(f"{path}/"):
                    return _folder(path, entry)
            raise

    def exists(self, path: str, **_options: Any) -> bool:
        """Return whether there is a file or folder. Raises all other errors than that."""
        return self._kind(path) is not None

    def isdir(self, path: str) -> bool:
        """Return whether there is a folder."""
        return self._kind(path) == _DIRECTORY

    def isfile(self, path: str) -> bool:
        """Return whether there is a file."""
        return self._kind(path) == FILE

    def _kind(self, path: str) -> str | None:
        try:
            return str(self.info(path)["type"])
        except FileNotFoundError:
            return None

    def created(self, path: str) -> dt.datetime:
        """Return when the current version of a file was stored, in UTC."""
        return self._time(path, "created")

    def modified(self, path: str) -> dt.datetime:
        """Return when a file was last changed before it was stored, in UTC."""
        return self._time(path, "mtime")

    def _time(self, path: str, which: str) -> dt.datetime:
        seconds = self.info(path).get(which)
        if seconds is None:
            raise os_errors.is_folder(path)
        return dt.datetime.fromtimestamp(seconds, dt.UTC)

    def ls(self, path: str, detail: bool = True, **_options: Any) -> list[Any]:
        """Return what is in a folder, or the entry of a file: as `info` has them, or only the
        names. Raises `FileNotFoundError`."""
        path = self._strip_protocol(path)
        found = _Listing(path, self._entries(path))
        if path in found.folders:
            children = [*found.folders[path][0].values(), *found.folders[path][1].values()]
            children.sort(key=lambda info: str(info["name"]))
        elif found.itself is not None:
            children = [found.itself]
        else:
            raise os_errors.not_found(path)
        return children if detail else [info["name"] for info in children]

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,  # fsspec calls it so
        detail: bool = False,
        **_options: Any,
    ) -> Any:
        """Return everything below a folder, from one listing, by name."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        path = self._strip_protocol(path)
        listing = _Listing(path, self._entries(path))
        found: dict[str, Info] = {}
        if withdirs and path and path in listing.folders:
            found[path] = listing.infos[path]
        for folder, (folders, files) in listing.folders.items():
            depth = _depth(folder, path)
            if maxdepth is not None and depth >= maxdepth:
                continue
            if withdirs:
                found.update((info["name"], info) for info in folders.values())
            found.update((info["name"], info) for info in files.values())
        if not listing.folders and listing.itself is not None:
            found[path] = listing.itself
        names = sorted(found)
        return {name: found[name] for name in names} if detail else names

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,  # fsspec calls it so
        on_error: Any = "omit",
        **options: Any,
    ) -> Iterator[tuple[str, Any, Any]]:
        """Yield each folder with the folders and the files in it, from one listing. `on_error` is
        for a `path` that does not exist; all other errors are raised."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        path = self._strip_protocol(path)
        listing = _Listing(path, self._entries(path))
        if path in listing.folders:
            detail = bool(options.get("detail"))
            yield from listing.walk(path, maxdepth, topdown=topdown, detail=detail)
        elif listing.itself is not None:
            alone = {"": listing.itself}
            yield (path, {}, alone) if options.get("detail") else (path, [], list(alone))
        elif on_error == "raise":
            raise os_errors.not_found(path)
        elif callable(on_error):
            on_error(os_errors.not_found(path))

    def du(
        self,
        path: str,
        total: bool = True,  # fsspec calls it so
        maxdepth: int | None = None,
        withdirs: bool = False,
        **_options: Any,
    ) -> int | dict[str, int]:
        """Return the bytes of everything below a folder: of all, or of each by name."""
        found: Any = self.find(path, maxdepth, withdirs=withdirs, detail=True)
        sizes = {str(info["name"]): int(info["size"]) for info in found.values()}
        return sum(sizes.values()) if total else sizes

    def _entries(self, path: str) -> list[Entry]:
        """Return the entries of the file `path` and of everything below the folder `path`. A
        damaged file is left out with a warning: it must not hide the others."""
        with self.connection.use(path) as store:
            return [
                entry
                for entry in store.ls(path, skip=_warn, folders=True)
                if not path or entry.name == path or entry.name.startswith(f"{path}/")
            ]

    # --- reading -------------------------------------------------------------------------------

    def _open(self, path: str, mode: str = "rb", **options: Any) -> SfsFile:
        return SfsFile(self, path, mode, **options)

    def open(self, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> Any:
        """Open a file; see `SfsFile`, and `fsspec.AbstractFileSystem.open` for the arguments."""
        if "b" in mode or options.get("compression") is not None:
            return super().open(path, mode, *arguments, **options)
        text = {
            name: options.pop(name) for name in ("encoding", "errors", "newline") if name in options
        }
        binary = super().open(path, mode.replace("t", "") + "b", *arguments, **options)
        return TextFile(binary, **text)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        """Return the content of a file, or its bytes from `start` to `end`, as a slice has them."""
        path = self._strip_protocol(path)
        with self.open(path, "rb", **options) as file:
            first, last, _ = slice(start, end).indices(file.size)
            file.seek(first)
            return bytes(file.read(max(0, last - first)))

    def cat(
        self,
        path: Any,
        recursive: bool = False,  # fsspec calls it so
        on_error: str = "raise",
        **options: Any,
    ) -> Any:
        """Return the content of a file, or of several by their names, which are fetched with many
        requests in flight. `on_error` is ``raise``, ``omit`` or ``return`` (the error itself)."""
        names = self.expand_path(path, recursive=recursive)
        if names == [self._strip_protocol(path)] and not recursive:
            return self.cat_file(names[0], **options)
        if recursive:
            names = sorted({file for name in names for file in self.find(name)})
        if options:
            return super().cat(names, on_error=on_error, **options)
        contents = dict(zip(names, self._contents(names), strict=True))
        return _without_errors(contents, on_error)

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **_options: Any,
    ) -> list[bytes | Exception]:
        """Return the bytes of each range, one for each of `paths`; an error instead, if `on_error`
        is ``return``. Whole files are fetched with many requests in flight, and of a file with
        several ranges only the segments that these need."""
        if max_gap is not None:
            raise NotImplementedError("max_gap: ranges are fetched in segments of 1 MiB")
        first = starts if isinstance(starts, list) else [starts] * len(paths)
        last = ends if isinstance(ends, list) else [ends] * len(paths)
        names: list[str] = self._strip_protocol(paths)
        parts = list(zip(names, first, last, strict=True))
        found: list[bytes | Exception] = [b""] * len(parts)
        whole = [place for place, (_, *limits) in enumerate(parts) if limits == [None, None]]
        contents = self._contents([names[place] for place in whole])
        for place, content in zip(whole, contents, strict=True):
            found[place] = content
        by_name: dict[str, list[int]] = {}
        for place, (name, *limits) in enumerate(parts):
            if limits != [None, None]:
                by_name.setdefault(name, []).append(place)
        for name, places in by_name.items():
            for place, content in zip(
                places, self._ranges(name, [parts[one][1:] for one in places]), strict=True
            ):
                found[place] = content
        if on_error == "raise":
            for content in found:
                if isinstance(content, Exception):
                    raise content
        return found

    def _ranges(
        self, name: str, limits: Sequence[tuple[int | None, int | None]]
    ) -> list[bytes | Exception]:
        """Return ranges of one file, or its error for each."""
        found: list[bytes | Exception] = [b""] * len(limits)
        try:
            with self.open(name, "rb") as file:
                slices = [slice(*one).indices(file.size)[:2] for one in limits]
                for place in sorted(range(len(slices)), key=lambda one: slices[one]):
                    start, end = slices[place]
                    file.seek(start)
                    found[place] = bytes(file.read(max(0, end - start)))
        except (OSError, ValueError, SfscError) as exc:
            return [exc] * len(limits)
        return found

    def _contents(self, names: Sequence[str]) -> list[bytes | Exception]:
        """Return the content of each file, or its error."""
        targets = [io.BytesIO() for _ in names]
        found: list[bytes | Exception] = [b""] * len(names)
        with self.connection.use() as store:
            for place, outcome in store.get_each(list(zip(names, targets, strict=True))):
                if isinstance(outcome, SfscError):
                    found[place] = os_errors.as_os_error(outcome, names[place])
                else:
                    found[place] = targets[place].getvalue()
                targets[place] = io.BytesIO()
        return found

    def get_file(
        self,
        rpath: str,
        lpath: Any,
        callback: Any = DEFAULT_CALLBACK,
        outfile: Any = None,
        batch: _Batch | None = None,
        **_options: Any,
    ) -> None:
        """Fetch a file to the path or stream `lpath`. A file of this machine appears when it is
        complete and verified, with the time and mode of the stored one."""
        rpath = self._strip_protocol(rpath)
        target = outfile if outfile is not None else lpath
        if not isfilelike(target):
            target = os.fspath(target)
            if os.path.isdir(target) and self.isfile(rpath):
                raise os_errors.is_folder(target)
            if folder := os.path.dirname(target):
                os.makedirs(folder, exist_ok=True)
            if batch is not None and not os.path.isdir(target):
                batch.files.append((rpath, target))
                return
        try:
            with self.connection.use(rpath, callback) as store:
                store.get(rpath, target)
        except FileNotFoundError:
            if isfilelike(target) or not self.isdir(rpath):
                raise
            os.makedirs(target, exist_ok=True)

    def get(self, rpath: Any, lpath: Any, *arguments: Any, **options: Any) -> None:
        """Fetch files, or a folder with `recursive`: see `fsspec.AbstractFileSystem.get`. Many are
        fetched with many requests in flight, unless there is a `callback`."""
        if "callback" in options or len(arguments) > 1:
            super().get(rpath, lpath, *arguments, **options)
            return
        batch = _Batch()
        super().get(rpath, lpath, *arguments, batch=batch, **options)
        for place in self._fetch(batch.files):
            os.makedirs(batch.files[place][1], exist_ok=True)

    def _fetch(self, wanted: Sequence[tuple[str, Any]]) -> list[int]:
        """Fetch (name, target) pairs. Return the places of those that are folders. Raises the first
        error, after the others are fetched."""
        errors: list[tuple[int, SfscError]] = []
        with self.connection.use() as store:
            for place, outcome in store.get_each(wanted):
                if isinstance(outcome, SfscError):
                    errors.append((place, outcome))
        missing = [wanted[place][0] for place, error in errors if isinstance(error, NotFound)]
        folders = self._folders_of(missing)
        for place, error in errors:
            if wanted[place][0] not in folders:
                with os_errors.os_errors(wanted[place][0]):
                    raise error
        return [place for place, _ in errors]

    def _folders_of(self, names: Sequence[str]) -> set[str]:
        """Return those of `names` that are folders, from one listing."""
        if not names:
            return set()
        prefix = min(names)
        while not all(name.startswith(prefix) for name in names):
            prefix = prefix[:-1]
        with self.connection.use() as store:
            parents = {
                entry.name[: slash.start()]
                for entry in store.ls(prefix, skip=_warn, folders=True)
                for slash in _SLASH.finditer(entry.name)
            }
        return parents.intersection(names)

    # --- writing -------------------------------------------------------------------------------

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **options: Any) -> None:
        """Store bytes as the newest version of a file, in `mode` ``create`` only if there is none
        (else `FileExistsError`)."""
        path = self._strip_protocol(path)
        expected = 0 if mode == "create" else None
        if self._intrans:
            with self.open(path, "xb" if expected == 0 else "wb", **options) as file:
                file.write(value)
        else:
            with self.connection.use(path) as store:
                store.write_bytes(path, value, expected=expected)

    def put_file(
        self,
        lpath: str,
        rpath: str,
        callback: Any = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        batch: _Batch | None = None,
        **_options: Any,
    ) -> None:
        """Store a file of this machine; `mode` as in `pipe_file`. A folder is made."""
        rpath = self._strip_protocol(rpath)
        expected = 0 if mode == "create" else None
        if batch is not None:
            (batch.folders if os.path.isdir(lpath) else batch.files).append((lpath, rpath))
        elif os.path.isdir(lpath):
            self.makedirs(rpath, exist_ok=True)
        elif self._intrans:
            with (
                open(lpath, "rb") as source,
                self.open(rpath, "xb" if expected == 0 else "wb") as to,
            ):
                while block := source.read(self.blocksize):
                    to.write(block)
                    callback.relative_update(len(block))
        else:
            with self.connection.use(rpath, callback) as store:
                store.put(lpath, name=rpath, expected=expected)

    def put(self, lpath: Any, rpath: Any, *arguments: Any, **options: Any) -> None:
        """Store files, or a folder with `recursive`: see `fsspec.AbstractFileSystem.put`. Many are
        sent with many requests in flight, unless there is a `callback` or a `mode`."""
        if {"callback", "mode"} & options.keys() or len(arguments) > 1 or self._intrans:
            super().put(lpath, rpath, *arguments, **options)
            return
        batch = _Batch()
        super().put(lpath, rpath, *arguments, batch=batch, **options)
        with self.connection.use() as store:
            for _ in store.put_many(batch.files):
                pass
        self._make_folders(batch)

    def cp_file(self, path1: str, path2: str, batch: _Batch | None = None, **_options: Any) -> None:
        """Copy a file: its content is fetched, and stored under another key. A folder is made."""
        one, two = self._strip_protocol(path1), self._strip_protocol(path2)
        if batch is not None:
            batch.files.append((one, two))
            return
        try:
            source = self.open(one, "rb")
        except IsADirectoryError:
            self.makedirs(two, exist_ok=True)
            return
        with source, self.open(two, "wb") as target:
            while block := source.read(self.blocksize):
                target.write(block)

    def copy(self, path1: Any, path2: Any, *arguments: Any, **options: Any) -> None:
        """Copy files, or a folder with `recursive`: see `fsspec.AbstractFileSystem.copy`. Contents
        are fetched, and stored under other keys."""
        if self._intrans:
            super().copy(path1, path2, *arguments, **options)
            return
        batch, made = _Batch(), _Batch()
        super().copy(path1, path2, *arguments, batch=batch, **options)
        for start in range(0, len(batch.files), _COPIED):
            some = batch.files[start : start + _COPIED]
            with contextlib.ExitStack() as stack:
                spools = [stack.enter_context(Spool()) for _ in some]
                folders = set(
                    self._fetch([(some[place][0], spools[place]) for place in range(len(some))])
                )
                made.folders += [some[place] for place in folders]
                files = [place for place in range(len(some)) if place not in folders]
                made.files += [some[place] for place in files]
                with self.connection.use() as store:
                    for _ in store.put_many(
                        (spools[place].open(), some[place][1]) for place in files
                    ):
                        pass
        self._make_folders(made)

    def _make_folders(self, batch: _Batch) -> None:
        """Store the folders of a batch, unless they are stored."""
        with self.connection.use() as store:
            for _, to in batch.folders:
                with contextlib.suppress(ConflictError):
                    store.mkdir(to)

    def mkdir(self, path: str, create_parents: bool = True, **_options: Any) -> None:
        """Store an empty folder. Raises `FileExistsError` if there is a file or folder, and
        `FileNotFoundError` if `create_parents` is false and it would be in no folder."""
        path = self._strip_protocol(path)
        self._refuse_in_transaction("folders cannot be made in a transaction: put files into them")
        if self.exists(path):
            raise os_errors.exists(path)
        if not create_parents and not self.isdir(self._parent(path)):
            raise os_errors.not_found(self._parent(path))
        with self.connection.use(path) as store:
            store.mkdir(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Store an empty folder, unless it is there. Raises `FileExistsError` if it is and
        `exist_ok` is false, or if there is such a file."""
        try:
            self.mkdir(path)
        except FileExistsError:
            if not exist_ok or not self.isdir(path):
                raise

    # --- deleting and moving -------------------------------------------------------------------

    def rmdir(self, path: str) -> None:
        """Delete a stored folder with nothing in it. Raises `OSError` if there is something."""
        path = self._strip_protocol(path)
        self._refuse_in_transaction("folders cannot be deleted in a transaction")
        names = [entry.name for entry in self._entries(path)]
        if not any(name.startswith(f"{path}/") for name in names):
            raise os_errors.is_file(path) if path in names else os_errors.not_found(path)
        if any(name not in (path, f"{path}/") for name in names):
            raise os_errors.not_empty(path)
        with self.connection.use(path) as store:
            store.rmdir(path)

    def rm_file(self, path: str) -> None:
        """Delete a file. Its versions stay as trash: `sfsc restore` brings it back."""
        self.rm(self._strip_protocol(path))

    _rm = rm_file

    def rm(
        self,
        path: Any,
        recursive: bool = False,  # fsspec calls it so
        maxdepth: int | None = None,
    ) -> None:
        """Delete files, with `recursive` also folders with all that is in them. Their versions stay
        as trash: `sfsc restore` brings them back. Raises `IsADirectoryError` for a folder without
        `recursive`."""
        names: list[str] = self.expand_path(path)
        if self._intrans:
            if recursive:
                self._refuse_in_transaction("a transaction deletes files, not folders")
            self.transaction.files.extend(map(_Deletion, names))
        elif not recursive:
            self._delete(names)
        else:
            for name in names:
                self._delete_tree(name, maxdepth)

    def _delete_tree(self, name: str, maxdepth: int | None) -> None:
        """Delete the file `name` and the folder `name`; with `maxdepth` only the files that are at
        most so many levels below it."""
        below = [entry.name for entry in self._entries(name)]
        if not below:
            raise os_errors.not_found(name)
        if maxdepth is not None:
            files = [one for one in below if not one.endswith("/")]
            self._delete([one for one in files if _depth(one, name) <= maxdepth])
            return
        if name in below:
            self._delete([name])
        if below != [name]:
            with self.connection.use(name) as store:
                for _ in store.rm_tree(name):
                    pass

    def _delete(self, names: Sequence[str]) -> None:
        """Delete files. Raises the first error, after the others are deleted."""
        errors: list[tuple[str, SfscError]] = []
        with self.connection.use() as store:
            for _ in store.rm_many(names, skip=lambda name, error: errors.append((name, error))):
                pass
        for name, error in errors:
            if isinstance(error, NotFound) and self.isdir(name):
                raise os_errors.is_folder(name) from error
            with os_errors.os_errors(name):
                raise error

    def mv(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,  # fsspec calls it so
        maxdepth: int | None = None,
        **options: Any,
    ) -> None:
        """Rename a file or folder, or move it into the folder `path2` if that is there. Contents
        are neither fetched nor stored again. A file `path2` is replaced and stays as trash; a
        folder is not (`FileExistsError`). Patterns and lists are copied and deleted."""
        plain = isinstance(path1, str) and isinstance(path2, str) and not set("*?[") & set(path1)
        if not plain or maxdepth is not None or path1.endswith("/"):
            self._refuse_in_transaction("a transaction moves one file at a time")
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **options)
            return
        one, two = self._strip_protocol(path1), self._strip_protocol(path2)
        if one == two:
            return
        if path2.endswith("/") or self.isdir(two):
            two = f"{two}/{one.rpartition('/')[2]}".lstrip("/")
        if self._intrans:
            self.transaction.files.append(_Move(one, two))
            return
        with self.connection.use(one) as store:
            if self.isdir(one):
                if self.exists(two):
                    raise os_errors.exists(two)
                for _ in store.mv_tree(one, two):
                    pass
            else:
                _replace(store, one, two)

    # --- transactions --------------------------------------------------------------------------

    def change_together(self, changes: Iterable[Any]) -> None:
        """Make the changes of a transaction: files that were written, deletions and moves. Of a
        file that was written several times, the last content counts."""
        last = {one.path: one for one in changes if isinstance(one, SfsFile)}
        with self.connection.use() as store, store.transaction() as change:
            for one in changes:
                if isinstance(one, _Deletion):
                    change.delete(one.name)
                elif isinstance(one, _Move):
                    change.move(one.name, one.to)
                elif not one.is_discarded and last[one.path] is one:
                    one.stage(change.put)

    def _refuse_in_transaction(self, cause: str) -> None:
        if self._intrans:
            raise OSError(errno.ENOTSUP, cause)


class _Listing:
    """A listing as a tree.

    `folders` maps the path of each folder to the folders and files in it, by their last part;
    `infos` to what is known of itself. `itself` is the file at the root of the listing, if it is
    one.
    """

    def __init__(self, root: str, entries: Iterable[Entry]) -> None:
        self.itself: Info | None = None
        self.folders: dict[str, tuple[dict[str, Info], dict[str, Info]]] = {}
        self.infos: dict[str, Info] = {}
        self._root = root
        if not root:
            self._add_folder("")
        for entry in entries:
            if entry.kind == FOLDER:
                self._add_folder(entry.name.rstrip("/")).update(_folder(entry.name, entry))
            elif entry.name == root:
                self.itself = _file(entry)
            else:
                parent, _, last = entry.name.rpartition("/")
                self._add_folder(parent)
                self.folders[parent][1][last] = _file(entry)

    def _add_folder(self, path: str) -> Info:
        """Return the info of a folder, which is added with those that it is in."""
        if path not in self.folders:
            self.folders[path] = {}, {}
            self.infos[path] = _folder(path)
            if path != self._root:
                parent, _, last = path.rpartition("/")
                self._add_folder(parent)
                self.folders[parent][0][last] = self.infos[path]
        return self.infos[path]

    def walk(
        self, path: str, maxdepth: int | None, *, topdown: bool, detail: bool
    ) -> Iterator[tuple[str, Any, Any]]:
        """Yield as `SfsFileSystem.walk`. The caller may change the folders that are yielded."""
        folders, files = self.folders.get(path, ({}, {}))
        shown: Any = dict(folders) if detail else list(folders)
        if topdown:
            yield path, shown, dict(files) if detail else list(files)
        if maxdepth is None or maxdepth > 1:
            deeper = None if maxdepth is None else maxdepth - 1
            for last in list(shown):
                below = f"{path}/{last}".lstrip("/")
                yield from self.walk(below, deeper, topdown=topdown, detail=detail)
        if not topdown:
            yield path, shown, dict(files) if detail else list(files)


def _depth(name: str, root: str) -> int:
    """Return how many levels a name is below the folder `root`."""
    below = name.rstrip("/")[len(root) :].strip("/")
    return below.count("/") + 1 if below else 0


def _folder(path: str, entry: Entry | None = None) -> Info:
    """Return what is known of a folder. `entry` is its own, or that of something in it."""
    path = path.rstrip("/")
    info: Info = {"name": path, "size": 0, "type": _DIRECTORY}
    return info | _facts(entry) if entry is not None and entry.name == f"{path}/" else info


def _file(entry: Entry) -> Info:
    """Return what is known of a file or link."""
    info: Info = {"name": entry.name, "size": entry.size, "type": entry.kind} | _facts(entry)
    return info | {"destination": entry.target} if entry.kind == LINK else info


def _facts(entry: Entry) -> Info:
    return {
        "created": float(entry.created),
        "mtime": float(entry.mtime) if entry.mtime_ns is None else entry.mtime_ns / 1e9,
        "mode": entry.mode,
        "version": entry.version,
        "file_id": entry.file_id,
        "sha256": None if entry.sha256 is None else entry.sha256.hex(),
    }


def _replace(store: Store, one: str, two: str) -> None:
    """Rename a file; one that has the new name becomes trash."""
    try:
        store.mv(one, two)
    except ConflictError:
        store.rm(two)
        store.mv(one, two)


def _without_errors(contents: Mapping[str, Any], on_error: str) -> dict[str, Any]:
    for content in contents.values():
        if isinstance(content, Exception) and on_error == "raise":
            raise content
    return {
        name: content
        for name, content in contents.items()
        if on_error == "return" or not isinstance(content, Exception)
    }


def _warn(name: str, error: SfscError) -> None:
    log_warning(f"{name} cannot be listed", error.cause, error.hint)
