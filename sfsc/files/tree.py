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
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from protocol.codec.values import Value
from sfsc.crypto.envelope import (
    FILE,
    FOLDER,
    LINK,
    MAX_TARGET,
    Metadata,
    check_any_name,
    check_name,
)
from sfsc.errors import (
    LocalError,
    NotFound,
    NotRegularFile,
    SfscError,
    UnreadableSource,
    UnsupportedKind,
    UsageError,
)
from sfsc.files.comparison import is_same, local_item
from sfsc.files.filters import Filters
from sfsc.files.listing import Files
from sfsc.files.names import both_kinds, full_folders
from sfsc.files.sync_memory import Copies
from sfsc.local_files import is_file, is_folder
from sfsc.session.pipeline import Skip
from sfsc.session.progress import Progress
from sfsc.session.session import Session
from sfsc.transfer.destination import DestinationTree
from sfsc.transfer.download import DownloadItem, Downloads, Got
from sfsc.transfer.source import TreeItem, default_name, name_for
from sfsc.transfer.status import FETCHED, SKIPPED, UNCHANGED
from sfsc.transfer.upload import Put, Uploads
from sfsc.trust.file_records import Entry, FileOwner

MAX_DEPTH: Final = 512
"""Maximum nesting of folders; a name of 1,024 bytes has no more."""
_LOOKED_UP: Final = 512
"""Items of which is looked up together what is stored."""
_COUNTED: Final = 32_768
"""Items that are found before the first is put, if a total is wanted: about 25 MB."""
_ANNOUNCED: Final = 32
"""Files that are announced together, before the first of them is put."""
SharedEntries = tuple[FileOwner, list[Entry]]
"""(another user, files that they share)."""


class Replace(Value):
    """Which existing files `Trees.get` replaces: those that differ from what is stored (`checksum`
    as in `is_same`), or all with `always`. Without `overwrite` it replaces none, and with `newer`
    only those whose stored content was changed later than they. Folders get their mode and time in
    any case."""

    always: bool = False
    checksum: bool = False
    overwrite: bool = True
    newer: bool = False

    def decide(self, entry: Entry, path: str, there: os.stat_result | None) -> str:
        """Return `FETCHED` if what is at `path` (None: nothing) is to be replaced, else `UNCHANGED`
        or `SKIPPED`. Raises `LocalError`."""
        if self.always or there is None:
            return FETCHED
        try:
            item = local_item(path, there)
        except OSError as exc:
            raise LocalError(f"cannot read {path}: {exc.strerror}") from exc
        if item is not None and is_same(entry, item, checksum=self.checksum):
            return UNCHANGED
        if entry.kind == FOLDER:
            return FETCHED  # its mode and time, which what is written to it changes
        stored = entry.mtime * 1_000_000_000 if entry.mtime_ns is None else entry.mtime_ns
        kept = not self.overwrite or (self.newer and there.st_mtime_ns >= stored)
        return SKIPPED if kept else FETCHED


class Trees:
    """Uploads, downloads and deletes folders."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def put(
        self,
        sources: Sequence[Path],
        name: str | None,
        skip: Skip,
        *,
        links: bool = True,
        always: bool = False,
        checksum: bool = False,
        exclude: Sequence[str] = (),
        dry_run: bool = False,
        pad: bool | None = None,
    ) -> Iterator[Put]:
        """Store files, and everything below folders, each under its own path or `name` ("": what
        is in the folder has its path below it). Links are stored as links, without `links` not at
        all. What is not stored is reported to `skip`. Folders are stored too; only empty ones are
        yielded. What is the same (`is_same`, with `checksum`) is not stored again, unless `always`
        is set. The patterns `exclude` and those of ``.sfsignore`` files say what is left out of
        folders: see `Filters`. With `dry_run`, nothing is stored, and the results have the versions
        that are there (0: none). `pad` as in `Uploads`. Raises `UnreadableSource` if a source is
        neither a file nor a folder, and `UsageError` for a malformed pattern."""
        prefixes = [_prefix(source, name) for source in sources]
        filters = [Filters(exclude, source) for source in sources]
        with Copies(self._session.state) as copies:
            if not dry_run:
                for source, prefix in zip(sources, prefixes, strict=True):
                    if is_folder(source):
                        copies.add(source, prefix)
            found = copies.passing(
                item
                for source, prefix, one in zip(sources, prefixes, filters, strict=True)
                for item in _items(source, prefix, skip, links=links, filters=one)
            )
            if not dry_run:
                found = _announcing(found, self._session.progress)
            uploads = Uploads(self._session, pad=pad)
            yield from self._put(
                uploads, found, skip, copies, always=always, checksum=checksum, dry_run=dry_run
            )

    def _put(
        self,
        uploads: Uploads,
        found: Iterator[TreeItem],
        skip: Skip,
        copies: Copies,
        *,
        always: bool,
        checksum: bool,
        dry_run: bool,
    ) -> Iterator[Put]:
        """Store items; for the other arguments see `put`."""
        full, unchanged = set[str](), deque[Put]()
        pairs: Iterator[tuple[TreeItem, Entry | None]] = ((item, None) for item in found)
        if dry_run or not always:
            pairs = self._with_stored(found)
        if not always:
            pairs = _changed(pairs, checksum, unchanged, copies, self._session.progress)
        if dry_run:
            yield from (_planned(item, entry) for item, entry in pairs if not item.full)
        else:
            items = _announced(uploads, (item for item, _ in pairs), full)
            for put in uploads.put_many(items, skip=skip, hash_all=checksum):
                while unchanged:
                    yield unchanged.popleft()
                copies.note_stored(put.name, put.version)
                if put.name not in full:
                    yield put
        yield from unchanged

    def _with_stored(self, found: Iterator[TreeItem]) -> Iterator[tuple[TreeItem, Entry | None]]:
        """Yield each item with what is stored under its name. A file that the server has damaged or
        hides counts as not stored, and so is stored again."""
        files = Files(self._session)
        damaged = files.damaged()
        while some := list(islice(found, _LOOKED_UP)):
            known = files.named([item.name for item in some], damaged)
            yield from ((item, known.get(item.name)) for item in some)

    def get(
        self,
        name: str,
        target: Path,
        skip: Skip,
        shared: SharedEntries | None = None,
        *,
        links: bool = False,
        replace: Replace | None = None,
        exclude: Sequence[str] = (),
        dry_run: bool = False,
    ) -> Iterator[Got]:
        """Download everything in the folder `name` ("": all) below `target`: all of ``a/b`` arrives
        as ``target/b``. `shared` holds files of another user, instead of our own; one whose name
        has control or bidi characters is passed to `skip`. Symbolic links are made only with
        `links`; otherwise they are passed to `skip`. `replace` says which existing files are
        replaced, and the patterns `exclude` what is left out, by its path in the folder. With
        `dry_run`, nothing is written. New folders have mode 0700; those that were stored get their
        mode and time at the end. Only empty ones are yielded. Files are not synced one by one:
        after a power cut, download them again. Raises `NotFound`, and `UsageError` for a malformed
        pattern."""
        filters, folder = Filters(exclude), name.strip("/")
        owner, entries = shared or (None, self.list_folder(name, skip))
        if exclude:
            inside = len(folder) + 1 if folder else 0
            # The folder itself has no path in it.
            entries = [
                one
                for one in entries
                if not one.name[inside:] or not filters.excludes(one.name[inside:])
            ]
        above = len(folder.rpartition("/")[0])
        start, how = above and above + 1, replace or Replace()
        full = full_folders(entry.name for entry in entries)
        folders = [entry.name[start:] for entry in entries if entry.kind == FOLDER]
        if dry_run and not is_folder(target):
            shown = [one for one in entries if one.name not in full]
            yield from (
                _got(one, str(target / one.name[start:]), FETCHED)
                for one in shown
                if one.kind != LINK or links
            )
            return
        detected = False if dry_run else None  # which makes a file for a moment
        listed = {entry.name: entry for entry in entries}
        with (
            DestinationTree(
                target, folds_case=detected, foreign=owner is not None, folders=folders
            ) as tree,
            Copies(self._session.state) as copies,
        ):
            if owner is None and not dry_run:
                copies.add(target / folder[start:], folder)
            places = ((entry, entry.name[start:]) for entry in entries)
            wanted, kept = _decide(places, tree, skip, how, links=links)
            for got in kept:
                if got.status == UNCHANGED:
                    copies.note_fetched(listed[got.name])
                if got.name not in full:
                    yield got
            if dry_run:
                done = iter([_got(entry, tree.location(path), FETCHED) for entry, path in wanted])
            else:
                self._session.progress.expect(sum(entry.size for entry, _ in wanted))
                self._session.progress.expect_items(len(wanted))
                items = (_download(entry, path, tree) for entry, path in wanted)
                done = Downloads(self._session).get_many(items, skip, owner)
            for got in done:
                copies.note_fetched(listed[got.name])
                if got.name not in full:
                    yield got
            if not dry_run:
                tree.restore_folders(skip)

    def get_names(
        self, names: Sequence[str], target: Path, skip: Skip, replace: Replace
    ) -> Iterator[Got]:
        """Download files, each to the last part of its name in `target`; `replace` as in `get`.
        Raises `UsageError` if two would be written to one place."""
        places: dict[str, str] = {}
        for name in names:
            last = name.rpartition("/")[2]
            if (other := places.setdefault(last, name)) != name:
                hint = "fetch them one by one, each with its own -o PATH"
                raise UsageError(f"{other} and {name} would both be written to {last}", hint)
        items = [(entry, entry.name.rpartition("/")[2]) for entry in self._named(names, skip)]
        with DestinationTree(target) as tree:
            wanted, kept = _decide(items, tree, skip, replace, links=False)
            yield from kept
            self._session.progress.expect(sum(entry.size for entry, _ in wanted))
            chosen = (_download(entry, path, tree) for entry, path in wanted)
            self._session.progress.expect_items(len(wanted))
            yield from Downloads(self._session).get_many(chosen, skip)

    def _named(self, names: Sequence[str], skip: Skip) -> Iterator[Entry]:
        """Yield the files of these names. Those that cannot be fetched are passed to `skip`."""
        files, unreadable = Files(self._session), dict[str, SfscError]()
        known = files.named(names, files.damaged())
        if not known.keys() >= set(names):  # only the listing of all files says why
            known = {entry.name: entry for entry in files.ls("", unreadable.__setitem__)}
        for name in dict.fromkeys(names):
            entry = known.get(name)
            if entry is None:
                missing = NotFound(f"no such file: {name}", "run `sfsc ls` to see what is stored")
                skip(name, unreadable.get(name, missing))
            elif entry.kind != FILE:
                skip(name, UnsupportedKind(f"{name} is a {entry.kind}, not a file", "use -r"))
            else:
                yield entry

    def rm(self, name: str, skip: Skip) -> Iterator[Entry]:
        """Delete everything in the folder `name`. Raises `NotFound`."""
        entries = self.list_folder(name, skip)
        self._session.progress.expect_items(len(entries))
        full = full_folders(entry.name for entry in entries)
        for entry in Files(self._session).rm_many(entries, skip):
            if entry.name not in full:
                yield entry

    def list_folder(self, name: str, skip: Skip) -> list[Entry]:
        """Return every file, link and folder in the folder `name` ("": all), by name, and the
        folder itself; the file `name` if there is no such folder. Those that cannot be listed are
        passed to `skip`. Raises `NotFound` if there is neither, and `UsageError` if a folder and a
        file have this name and no slash at its end says which is meant."""
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
        if folder and not name.endswith("/") and self._exists(folder):
            if found or unreadable:
                raise both_kinds(folder)
            return [Files(self._session).stat(folder)]
        if not found and not unreadable:
            raise NotFound(f"there is no file in {folder or 'the store'}", "see `sfsc ls`")
        return found

    def _exists(self, name: str) -> bool:
        """Return whether the log has a file of this name that was not deleted."""
        file_id = self._session.account.file_id(name)
        head = self._session.state.logged_heads([file_id]).get(file_id)
        return head is not None and not head.facts.ended


def folder_name(folder: Path) -> str:
    """Return the prefix for a folder's files: its own path, or "" for the present folder."""
    name = default_name(folder) or ""
    return "" if name == "." else name


def _prefix(source: Path, name: str | None) -> str:
    """Return the name of a file, or the prefix for what is in a folder. Raises `UnreadableSource`
    and `UsageError`."""
    if not is_folder(source):
        if not is_file(source):
            raise UnreadableSource(f"{source} is neither a file nor a folder")
        return name_for(source, name)
    prefix = folder_name(source) if name is None else name.strip("/")
    if prefix:
        check_name(prefix)
    return prefix


def _items(
    source: Path, name: str, skip: Skip, *, links: bool, filters: Filters | None
) -> Iterator[TreeItem]:
    if is_folder(source):
        yield from walk_folder(source, name, skip, links=links, filters=filters)
        return
    try:
        # The user named it, so a link is followed.
        yield TreeItem(os.path.realpath(source), name, FILE, os.stat(source))
    except OSError as exc:
        skip(str(source), UnreadableSource(f"cannot be examined: {exc.strerror}"))


def _changed(
    pairs: Iterator[tuple[TreeItem, Entry | None]],
    checksum: bool,
    unchanged: deque[Put],
    copies: Copies,
    progress: Progress,
) -> Iterator[tuple[TreeItem, Entry | None]]:
    """Yield the items that differ from what is stored, which is beside them. Add the others to
    `unchanged`, without folders in which there is something."""
    for item, entry in pairs:
        if entry is None or not is_same(entry, item, checksum=checksum):
            yield item, entry
            continue
        copies.note_stored(item.name, entry.version)
        progress.advance_items()
        if item.kind == FILE:
            progress.expect(-item.status.st_size)
        if not item.full:
            about = entry.name, entry.file_id, entry.version, entry.size
            unchanged.append(Put(*about, None, b"", status=UNCHANGED))


def _announcing(found: Iterator[TreeItem], progress: Progress) -> Iterator[TreeItem]:
    """Yield the items, and announce them. If anybody wants to know, many are found before the first
    is yielded, so that the total is known."""
    size = _COUNTED if progress.wanted else 0
    while some := list(islice(found, size)):
        progress.expect(sum(item.status.st_size for item in some if item.kind == FILE))
        progress.expect_items(len(some), more=len(some) == size)
        yield from some
    yield from found


def _planned(item: TreeItem, entry: Entry | None) -> Put:
    """Return the result of an item that is not stored, because nothing is."""
    size = item.status.st_size if item.kind == FILE else 0
    if entry is None:
        return Put(item.name, "", 0, size, None, b"")
    return Put(item.name, entry.file_id, entry.version, size, None, b"")


def _decide(
    places: Iterable[tuple[Entry, str]],
    tree: DestinationTree,
    skip: Skip,
    replace: Replace,
    *,
    links: bool,
) -> tuple[list[tuple[Entry, str]], list[Got]]:
    """Return what is to be fetched, and what stays as it is. `places` are entries with their paths
    in `tree`."""
    wanted, kept = list[tuple[Entry, str]](), list[Got]()
    for entry, below in places:
        location = tree.location(below)
        try:
            if entry.kind == LINK and not links:
                raise NotRegularFile("is a link, and was not made without --links")
            tree.destination(below)  # raises for a name that no file can have here
            outcome = replace.decide(entry, location, tree.status(below))
        except SfscError as exc:
            skip(entry.name, exc)
            continue
        if outcome == FETCHED:
            wanted.append((entry, below))
            continue
        if entry.kind == FOLDER and outcome == UNCHANGED:
            metadata = Metadata(entry.name, 0, entry.mtime_ns, entry.mode, FOLDER)
            tree.keep_folder(below, metadata)
        kept.append(_got(entry, location, outcome))
    return wanted, kept


def _download(entry: Entry, path: str, tree: DestinationTree) -> DownloadItem:
    place = tree.location(path), tree.destination(path)
    return DownloadItem(entry.name, entry.file_id, entry.version, *place, entry.size)


def _got(entry: Entry, location: str, status: str) -> Got:
    about = entry.name, entry.file_id, entry.version, entry.size, entry.mtime
    return Got(*about, location, status)


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


def names_below(
    sources: Sequence[Path], name: str | None, exclude: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """Yield (path, name) of every file and link that `Trees.put` would store. What it would report
    is left out, and so are folders: two sources may share one."""
    for source in sources:
        prefix, filters = _prefix(source, name), Filters(exclude, source)
        for item in _items(source, prefix, lambda _what, _error: None, links=True, filters=filters):
            if item.kind != FOLDER:
                yield item.path, item.name


def walk_folder(
    folder: str | Path,
    prefix: str,
    skip: Skip,
    *,
    links: bool = True,
    filters: Filters | None = None,
) -> Iterator[TreeItem]:
    """Yield everything below `folder` that can be stored, sorted, a folder before what is in it,
    with its name under `prefix`; first the folder itself, unless the prefix is "". Report the rest
    to `skip`: also links, unless `links` is set; not what `filters` exclude. Links are not
    followed, except `folder` itself."""
    try:
        status = os.stat(folder)
    except OSError as exc:
        skip(str(folder), UnreadableSource(f"cannot be examined: {exc.strerror}"))
        return
    walk = _Walk(skip, links, filters, len(prefix) + 1 if prefix else 0)
    yield from walk.items(os.fspath(folder), prefix, status, 0)


class _Walk(Value):
    """How a folder is walked; `start` is the length of what precedes a path below it in a name."""

    skip: Skip
    links: bool
    filters: Filters | None
    start: int

    def items(
        self, folder: str, name: str, status: os.stat_result, depth: int
    ) -> Iterator[TreeItem]:
        """Yield the folder and everything in it; `name` is without a slash at its end."""
        try:
            with os.scandir(folder) as scanned:
                found = sorted(scanned, key=lambda item: item.name)
        except OSError as exc:
            self.skip(folder, UnreadableSource(f"cannot be read: {exc.strerror}"))
            return
        items: list[TreeItem] = []
        names: set[str] = set()
        for item in found:
            last = unicodedata.normalize("NFC", item.name)
            if last in names:
                # Otherwise it would silently become a new version of the other file.
                self.skip(
                    item.path,
                    UnreadableSource("has the same name as another file, in another Unicode form"),
                )
                continue
            names.add(last)
            below = f"{name}/{last}" if name else last
            try:
                if self.filters is None or not self.filters.excludes(self._path(item, below)):
                    items.append(_item(item, below, depth, links=self.links))
            except SfscError as exc:
                self.skip(item.path, exc)
        if name:
            yield TreeItem(folder, f"{name}/", FOLDER, status, full=bool(items))
        for made in items:
            if made.kind == FOLDER:
                yield from self.items(
                    made.path, made.name.removesuffix("/"), made.status, depth + 1
                )
            else:
                yield made

    def _path(self, item: os.DirEntry[str], name: str) -> str:
        """Return the path of an item for the filters. Raises `UnreadableSource`."""
        try:
            return name[self.start :] + "/" * item.is_dir(follow_symlinks=False)
        except OSError as exc:
            raise UnreadableSource(f"cannot be examined: {exc.strerror}") from exc


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
