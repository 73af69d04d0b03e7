"""Whole folders: every regular file below one goes up under its path, and comes back to it.

One file that cannot be read, named or placed does not stop the others; whoever asks is told of it.
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
from sfsc.session.pipeline import Skip
from sfsc.session.session import Session
from sfsc.transfer.destination import DestinationTree
from sfsc.transfer.download import DownloadItem, Downloads, Got
from sfsc.transfer.source import default_name
from sfsc.transfer.upload import Put, Uploads
from sfsc.trust.file_records import Entry, FileOwner

MAX_DEPTH: Final = 512
"""Folders in one another; a name of 1,024 bytes has no more."""
TOGETHER: Final = 32
"""Files that are looked up together."""
SharedEntries = tuple[FileOwner, list[Entry]]
"""A user, and files that he shares."""


class Trees:
    """Puts, gets and deletes folders over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def put(self, folder: Path, name: str | None, skip: Skip) -> Iterator[Put]:
        """Store every regular file below `folder` as `name`/its path below (None: the folder's own
        path; "": the path below alone). Links are not followed, and told to `skip` as all else
        that cannot be stored. Raises `UnreadableSource` where `folder` is none."""
        if not os.path.isdir(folder):
            raise UnreadableSource(f"{folder} is no folder")
        prefix = folder_name(folder) if name is None else name.strip("/")
        if prefix:
            check_name(prefix)
        uploads = Uploads(self._session)
        return uploads.put_many(_foreseen(uploads, _sources(folder, prefix, skip)), skip=skip)

    def get(
        self, name: str, target: Path, skip: Skip, shared: SharedEntries | None = None
    ) -> Iterator[Got]:
        """Fetch every file whose name lies in the folder `name` ("": all) to its place below
        `target`: ``a/b`` with all that is in it arrives as ``target/b``. `shared` are those of
        another user, who shares them; else it is our own.

        Not synced one by one: after a power cut, fetch it again. Raises `NotFound`.
        """
        owner, entries = shared or (None, self.inside(name))
        above = len(name.strip("/").rpartition("/")[0])
        self._session.progress.expect(sum(entry.size for entry in entries))
        with DestinationTree(target) as tree:
            items = _items(entries, above and above + 1, tree, skip)
            yield from Downloads(self._session).get_many(items, skip, owner)

    def rm(self, name: str) -> Iterator[Entry]:
        """Delete every file in the folder `name`. Raises `NotFound`."""
        return Files(self._session).rm_many(self.inside(name))

    def inside(self, name: str) -> list[Entry]:
        """Every file in the folder `name` ("": all), by name. Raises `NotFound` for none."""
        folder = name.strip("/")
        if folder:
            check_name(folder)
        found = list(Files(self._session).ls(f"{folder}/" if folder else ""))
        if not found:
            raise NotFound(f"there is no file in {folder or 'the store'}", "see `sfsc ls`")
        return found


def folder_name(folder: Path) -> str:
    """The name that a folder's files are stored below: its own path, "" for the present folder."""
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


def _foreseen(uploads: Uploads, sources: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    while some := list(islice(sources, TOGETHER)):
        uploads.announce(some)
        yield from some


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
    """Every regular file below `folder`, sorted, with its path from the top."""
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
            # Else it would be a new version of the other one, which nobody has asked for.
            skip(
                item.path,
                UnreadableSource("has the name of another, which only spells it otherwise"),
            )
            continue
        names.add(name)
        try:
            is_dir, is_file = _kind(item)
        except OSError as exc:
            skip(item.path, UnreadableSource(f"cannot be looked at: {exc.strerror}"))
            continue
        if is_dir and len(here) >= MAX_DEPTH:
            skip(item.path, UnreadableSource("too many folders in one another"))
        elif is_dir:
            yield from _walk(item.path, here, skip)
        elif is_file:
            yield item.path, here
        else:
            what = "a link" if item.is_symlink() else "neither a file nor a folder"
            skip(item.path, NotRegularFile(f"is {what}, and was not stored"))


def _kind(item: os.DirEntry[str]) -> tuple[bool, bool]:
    """Whether it is a folder, or a file. Raises OSError: some file systems must be asked for it."""
    return item.is_dir(follow_symlinks=False), item.is_file(follow_symlinks=False)
