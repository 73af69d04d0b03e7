"""Upload, download and delete whole folders, each file under its path.

A file that cannot be read, named or written is reported and does not stop the others.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from sfsc.crypto.envelope import check_name
from sfsc.errors import NotFound, NotRegularFile, SfscError, UnreadableSource
from sfsc.files.listing import Files
from sfsc.local_files import is_folder
from sfsc.session.pipeline import Skip
from sfsc.session.session import Session
from sfsc.transfer.destination import BY_UMASK, PRIVATE, DestinationTree
from sfsc.transfer.download import DownloadItem, Downloads, Got
from sfsc.transfer.source import default_name
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

    def put(self, folder: Path, name: str | None, skip: Skip) -> Iterator[Put]:
        """Store every regular file below `folder` under the prefix `name` (None: the folder's own
        path; "": no prefix). Links are not followed. They and files that cannot be stored are
        reported to `skip`. Raises `UnreadableSource` if `folder` is not a folder."""
        if not is_folder(folder):
            raise UnreadableSource(f"{folder} is not a folder")
        prefix = folder_name(folder) if name is None else name.strip("/")
        if prefix:
            check_name(prefix)
        uploads = Uploads(self._session)
        return uploads.put_many(_announced(uploads, _sources(folder, prefix, skip)), skip=skip)

    def get(
        self,
        name: str,
        target: Path,
        skip: Skip,
        shared: SharedEntries | None = None,
        *,
        umask_folders: bool = False,
    ) -> Iterator[Got]:
        """Download every file in the folder `name` ("": all) below `target`: all of ``a/b`` arrives
        as ``target/b``. `shared` holds files of another user, instead of our own; one whose name
        has control or bidi characters is passed to `skip`. New folders have mode 0700, or what the
        umask leaves with `umask_folders`. Files are not synced one by one: after a power cut,
        download them again. Raises `NotFound`."""
        owner, entries = shared or (None, self.list_folder(name, skip))
        above = len(name.strip("/").rpartition("/")[0])
        self._session.progress.expect(sum(entry.size for entry in entries))
        mode = BY_UMASK if umask_folders else PRIVATE
        with DestinationTree(target, mode=mode, foreign=owner is not None) as tree:
            items = _items(entries, above and above + 1, tree, skip)
            yield from Downloads(self._session).get_many(items, skip, owner)

    def rm(self, name: str, skip: Skip) -> Iterator[Entry]:
        """Delete every file in the folder `name`. Raises `NotFound`."""
        return Files(self._session).rm_many(self.list_folder(name, skip))

    def list_folder(self, name: str, skip: Skip) -> list[Entry]:
        """Return every file in the folder `name` ("": all), by name; those that cannot be listed
        are passed to `skip`. Raises `NotFound` if there is neither."""
        folder = name.strip("/")
        if folder:
            check_name(folder)
        unreadable = False

        def note(what: str, error: SfscError) -> None:
            nonlocal unreadable
            unreadable = True
            skip(what, error)

        found = list(Files(self._session).ls(f"{folder}/" if folder else "", note))
        if not found and not unreadable:
            raise NotFound(f"there is no file in {folder or 'the store'}", "see `sfsc ls`")
        return found


def folder_name(folder: Path) -> str:
    """Return the prefix for a folder's files: its own path, or "" for the present folder."""
    name = default_name(folder) or ""
    return "" if name == "." else name


def _items(
    entries: list[Entry], above: int, tree: DestinationTree, skip: Skip
) -> Iterator[DownloadItem]:
    for entry in entries:
        below = entry.name[above:]
        try:
            destination = tree.destination(below)
        except SfscError as exc:
            skip(entry.name, exc)
            continue
        yield DownloadItem(entry.name, entry.file_id, entry.version, tree.path / below, destination)


def _announced(uploads: Uploads, sources: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    while some := list(islice(sources, _ANNOUNCED)):
        uploads.announce(some)
        yield from some


def names_below(folder: Path, name: str | None) -> Iterator[tuple[str, str]]:
    """Yield (path, name) of every file that `Trees.put` would store. What it would report is left
    out."""
    prefix = folder_name(folder) if name is None else name.strip("/")
    return _sources(folder, prefix, lambda _what, _error: None)


def _sources(folder: Path, prefix: str, skip: Skip) -> Iterator[tuple[str, str]]:
    for path, parts in _walk(folder, (), skip):
        name = unicodedata.normalize("NFC", "/".join((prefix, *parts) if prefix else parts))
        try:
            check_name(name)
        except SfscError as exc:
            skip(path, UnreadableSource(f"cannot be stored under its name: {exc.cause}"))
            continue
        yield path, name


def _walk(
    folder: str | Path, parts: tuple[str, ...], skip: Skip
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every regular file below `folder`, sorted, with its path from the top."""
    try:
        with os.scandir(folder) as scanned:
            found = sorted(scanned, key=lambda item: item.name)
    except OSError as exc:
        skip(str(folder), UnreadableSource(f"cannot be read: {exc.strerror}"))
        return
    names: set[str] = set()
    for item in found:
        here = (*parts, item.name)
        name = unicodedata.normalize("NFC", item.name)
        if name in names:
            # Otherwise it would silently become a new version of the other file.
            skip(
                item.path,
                UnreadableSource("has the same name as another file, in another Unicode form"),
            )
            continue
        names.add(name)
        try:
            is_dir, is_file = _kind(item)
        except OSError as exc:
            skip(item.path, UnreadableSource(f"cannot be examined: {exc.strerror}"))
            continue
        if is_dir and len(here) >= MAX_DEPTH:
            skip(item.path, UnreadableSource("the folders are nested too deeply"))
        elif is_dir:
            yield from _walk(item.path, here, skip)
        elif is_file:
            yield item.path, here
        else:
            what = "a link" if item.is_symlink() else "neither a file nor a folder"
            skip(item.path, NotRegularFile(f"is {what}, and was not stored"))


def _kind(item: os.DirEntry[str]) -> tuple[bool, bool]:
    """Return (is a folder, is a regular file). Raises OSError: some file systems must be asked."""
    return item.is_dir(follow_symlinks=False), item.is_file(follow_symlinks=False)
