"""Upload, download and delete whole folders, each file under its path.

A symbolic link is stored as a link, and is never followed. A folder is stored too, under its name
with a slash at its end: so its mode and time come back, and an empty one exists at all. Listings
leave out the folders in which there is something.

A file that cannot be read, named or written is reported and does not stop the others.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from sfsc.crypto.envelope import FILE, FOLDER, LINK, MAX_TARGET, check_any_name, check_name
from sfsc.errors import NotFound, NotRegularFile, SfscError, UnreadableSource
from sfsc.files.listing import Files, full_folders
from sfsc.local_files import is_folder
from sfsc.session.pipeline import Skip
from sfsc.session.session import Session
from sfsc.transfer.destination import DestinationTree
from sfsc.transfer.download import DownloadItem, Downloads, Got
from sfsc.transfer.source import TreeItem, default_name
from sfsc.transfer.upload import Put, Uploads
from sfsc.trust.file_records import Entry, FileOwner

MAX_DEPTH: Final = 512
"""Maximum nesting of folders; a name of 1,024 bytes has no more."""
_ANNOUNCED: Final = 32
"""Files that are announced together, before the first of them is put."""
SharedEntries = tuple[FileOwner, list[Entry]]
"""(another user, files that they share)."""


class Trees:
    """Uploads, downloads and deletes folders."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def put(
        self, folder: Path, name: str | None, skip: Skip, *, links: bool = True
    ) -> Iterator[Put]:
        """Store everything below `folder` under the prefix `name` (None: the folder's own path; "":
        no prefix). Links are stored as links, without `links` not at all. What is not stored is
        reported to `skip`. Folders are stored too; only empty ones are yielded. Raises
        `UnreadableSource` if `folder` is not a folder."""
        if not is_folder(folder):
            raise UnreadableSource(f"{folder} is not a folder")
        prefix = folder_name(folder) if name is None else name.strip("/")
        if prefix:
            check_name(prefix)
        uploads, full = Uploads(self._session), set[str]()
        items = _announced(uploads, walk_folder(folder, prefix, skip, links=links), full)
        for put in uploads.put_many(items, skip=skip):
            if put.name not in full:
                yield put

    def get(
        self,
        name: str,
        target: Path,
        skip: Skip,
        shared: SharedEntries | None = None,
        *,
        links: bool = False,
    ) -> Iterator[Got]:
        """Download everything in the folder `name` ("": all) below `target`: all of ``a/b`` arrives
        as ``target/b``. `shared` holds files of another user, instead of our own; one whose name
        has control or bidi characters is passed to `skip`. Symbolic links are made only with
        `links`; otherwise they are passed to `skip`. New folders have mode 0700; those that were
        stored get their mode and time at the end. Only empty ones are yielded. Files are not synced
        one by one: after a power cut, download them again. Raises `NotFound`."""
        owner, entries = shared or (None, self.list_folder(name, skip))
        above = len(name.strip("/").rpartition("/")[0])
        self._session.progress.expect(sum(entry.size for entry in entries))
        full = full_folders(entries)
        folders = [entry.name[above and above + 1 :] for entry in entries if entry.kind == FOLDER]
        with DestinationTree(target, foreign=owner is not None, folders=folders) as tree:
            items = _items(entries, above and above + 1, tree, skip, links=links)
            for got in Downloads(self._session).get_many(items, skip, owner):
                if got.name not in full:
                    yield got
            tree.restore_folders(skip)

    def rm(self, name: str, skip: Skip) -> Iterator[Entry]:
        """Delete everything in the folder `name`. Raises `NotFound`."""
        entries = self.list_folder(name, skip)
        full = full_folders(entries)
        for entry in Files(self._session).rm_many(entries):
            if entry.name not in full:
                yield entry

    def list_folder(self, name: str, skip: Skip) -> list[Entry]:
        """Return every file, link and folder in the folder `name` ("": all), by name, and the
        folder itself; those that cannot be listed are passed to `skip`. Raises `NotFound` if there
        is neither."""
        folder = name.strip("/")
        if folder:
            check_name(folder)
        unreadable = False

        def note(what: str, error: SfscError) -> None:
            nonlocal unreadable
            unreadable = True
            skip(what, error)

        prefix = f"{folder}/" if folder else ""
        found = list(Files(self._session).ls(prefix, note, folders=True))
        if not found and not unreadable:
            raise NotFound(f"there is no file in {folder or 'the store'}", "see `sfsc ls`")
        return found


def folder_name(folder: Path) -> str:
    """Return the prefix for a folder's files: its own path, or "" for the present folder."""
    name = default_name(folder) or ""
    return "" if name == "." else name


def _items(
    entries: list[Entry], above: int, tree: DestinationTree, skip: Skip, *, links: bool
) -> Iterator[DownloadItem]:
    for entry in entries:
        below = entry.name[above:]
        try:
            if entry.kind == LINK and not links:
                raise NotRegularFile(f"{entry.name} is a link, and was not made", "use --links")
            destination = tree.destination(below)
        except SfscError as exc:
            skip(entry.name, exc)
            continue
        yield DownloadItem(entry.name, entry.file_id, entry.version, tree.path / below, destination)


def _announced(
    uploads: Uploads, items: Iterator[TreeItem], full: set[str]
) -> Iterator[tuple[TreeItem, None]]:
    """Yield the items to put, and announce them to `uploads`. Add the names of folders in which
    there is something to `full`."""
    while some := list(islice(items, _ANNOUNCED)):
        full.update(item.name for item in some if item.full)
        uploads.announce(some)
        for item in some:
            yield item, None


def names_below(folder: Path, name: str | None) -> Iterator[tuple[str, str]]:
    """Yield (path, name) of every file and link that `Trees.put` would store. What it would report
    is left out, and so are folders: two sources may share one."""
    prefix = folder_name(folder) if name is None else name.strip("/")
    for item in walk_folder(folder, prefix, lambda _what, _error: None):
        if item.kind != FOLDER:
            yield item.path, item.name


def walk_folder(
    folder: str | Path, prefix: str, skip: Skip, *, links: bool = True
) -> Iterator[TreeItem]:
    """Yield everything below `folder` that can be stored, sorted, a folder before what is in it,
    with its name under `prefix`; first the folder itself, unless the prefix is "". Report the rest
    to `skip`: also links, unless `links` is set. Links are not followed, except `folder` itself."""
    try:
        status = os.stat(folder)
    except OSError as exc:
        skip(str(folder), UnreadableSource(f"cannot be examined: {exc.strerror}"))
        return
    yield from _walk(os.fspath(folder), prefix, status, 0, skip, links=links)


def _walk(
    folder: str, name: str, status: os.stat_result, depth: int, skip: Skip, *, links: bool
) -> Iterator[TreeItem]:
    try:
        with os.scandir(folder) as scanned:
            found = sorted(scanned, key=lambda item: item.name)
    except OSError as exc:
        skip(folder, UnreadableSource(f"cannot be read: {exc.strerror}"))
        return
    items: list[TreeItem] = []
    names: set[str] = set()
    for item in found:
        last = unicodedata.normalize("NFC", item.name)
        if last in names:
            # Otherwise it would silently become a new version of the other file.
            skip(
                item.path,
                UnreadableSource("has the same name as another file, in another Unicode form"),
            )
            continue
        names.add(last)
        try:
            items.append(_item(item, f"{name}/{last}" if name else last, depth, links=links))
        except SfscError as exc:
            skip(item.path, exc)
    if name:
        yield TreeItem(folder, f"{name}/", FOLDER, status, full=bool(items))
    for made in items:
        if made.kind == FOLDER:
            below = made.name.removesuffix("/")
            yield from _walk(made.path, below, made.status, depth + 1, skip, links=links)
        else:
            yield made


def _item(item: os.DirEntry[str], name: str, depth: int, *, links: bool) -> TreeItem:
    """Return what is to be stored for an item of a folder. Raises `UnreadableSource`."""
    try:
        status = item.stat(follow_symlinks=False)
        is_folder, is_link = item.is_dir(follow_symlinks=False), item.is_symlink()
        target = os.readlink(item.path) if is_link and links else None
    except OSError as exc:
        raise UnreadableSource(f"cannot be examined: {exc.strerror}") from exc
    if is_link and target is None:
        raise NotRegularFile("is a link, and was not stored")
    if not (is_folder or is_link or stat.S_ISREG(status.st_mode)):
        raise NotRegularFile("is neither a file, a folder nor a link, and was not stored")
    if is_folder and depth + 1 >= MAX_DEPTH:
        raise UnreadableSource("the folders are nested too deeply")
    if is_folder:
        name += "/"
    try:
        check_any_name(name)
    except SfscError as exc:
        raise UnreadableSource(f"cannot be stored under its name: {exc.cause}") from exc
    if target is not None:
        _check_target(target)
    kind = FOLDER if is_folder else LINK if is_link else FILE
    return TreeItem(item.path, name, kind, status, target)


def _check_target(target: str) -> None:
    """Raise `UnreadableSource` unless the target of a link can be stored."""
    try:
        size = len(target.encode())
    except UnicodeEncodeError as exc:
        raise UnreadableSource("is a link to a path that is not valid Unicode") from exc
    if not 0 < size <= MAX_TARGET:
        raise UnreadableSource(f"is a link to a path of {size} bytes, allowed are {MAX_TARGET}")
