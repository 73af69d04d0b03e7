"""Makes a folder of the store hold what a folder of this machine holds, or the reverse.

One direction is one run: the *source* is what is copied from, the *target* what is changed. What
both held when they were last equal is remembered (`SyncMemory`), so that a run knows on which side
a file has changed:

- changed, or new, in the source only: it is copied to the target,
- missing in the target only: it is copied again,
- changed in the target only: it stays as it is (the other direction copies it),
- changed on both sides: the target's file gets a conflict name, then the source's is copied,
- deleted in the source: it is deleted in the target, if that is asked for and it has not changed.

Whatever stands in the way of a copy, as a file where a folder is to be, and must not be deleted,
gets a conflict name too. A run may be interrupted at any point: what it has done is found to be
equal by the next one.
"""

from __future__ import annotations

import re
import stat
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from protocol.codec.names import MAX_FILE_NAME
from protocol.codec.values import Mutable, Value, changed
from sfsc.crypto.envelope import FILE, FOLDER, LINK, Metadata, check_name
from sfsc.errors import (
    BadDestination,
    ConflictError,
    LocalError,
    NotFound,
    NotRegularFile,
    SfscError,
    UnreadableSource,
)
from sfsc.files.comparison import is_same
from sfsc.files.filters import Filters
from sfsc.files.listing import Files
from sfsc.files.names import full_folders
from sfsc.files.rename import Renames
from sfsc.files.sync_memory import Seen, SyncMemory
from sfsc.files.tree import folder_name, walk_folder
from sfsc.local_files import is_folder, status_of
from sfsc.session.pipeline import Skip
from sfsc.session.session import Session
from sfsc.transfer.destination import DestinationTree
from sfsc.transfer.download import DownloadItem, Downloads
from sfsc.transfer.source import TreeItem
from sfsc.transfer.status import CONFLICT, DELETED, FETCHED, SKIPPED, STORED, UNCHANGED
from sfsc.transfer.upload import Uploads
from sfsc.trust.file_records import Entry

_TEMPORARY: Final = re.compile(r"\.sfsc-[0-9a-f]{16}-[0-9]+")
"""Names that `DestinationFolder` gives to files that are not complete."""
_FILE_ID: Final = re.compile(r"[0-9a-f]{32}")
_ATTEMPTS: Final = 5
"""How often a run begins again because another machine has changed a file meanwhile."""
_MAX_PART: Final = 255
"""Bytes of the longest name of a file on most systems."""


class Synced(Value):
    """Result for `name`, a name in the store. `version` is the current one there, 0 if there is
    none; `size` is in bytes. `conflict_name` is the name under which the target's file was kept
    that has changed on both sides, or stood in the way. `cause` says why a file was skipped."""

    name: str
    version: int
    status: str
    size: int = 0
    conflict_name: str | None = None
    cause: str | None = None


class _Sides(Mutable):
    """Contents of both sides, by path below the two folders; paths of folders end with a slash.
    `unknown` are paths of which one side could not tell what it has, and nothing is done."""

    local: dict[str, TreeItem]
    stored: dict[str, Entry]
    unknown: set[str]
    all_stored_known: bool = True

    def is_unknown(self, path: str) -> bool:
        """Return whether nothing is known of `path`, or of a folder above it."""
        if not self.unknown:
            return False
        return any(one in self.unknown for one in (".", path.rstrip("/"), *_above(path)))


class _Plan(Mutable):
    """Steps of a run, in this order; paths as in `_Sides`. `aside` maps files and folders of the
    target that are renamed to their new paths, which have no slash at the end; `conflicts` are
    those that have changed on both sides."""

    deleted: list[str]
    aside: dict[str, str]
    conflicts: set[str]
    copied: list[str]


class Sync:
    """Synchronises one folder of this machine with one of the store."""

    def __init__(
        self,
        session: Session,
        folder: Path,
        prefix: str | None,
        *,
        down: bool = False,
        delete: bool = False,
        dry_run: bool = False,
        checksum: bool = False,
        links: bool = False,
        exclude: Sequence[str] = (),
    ) -> None:
        """`prefix` is the folder of the store ("": all; None: the folder's own path). `down` copies
        from it to `folder`, otherwise the other way. `delete` deletes in the target what was
        deleted in the source. `checksum` as in `is_same`. `links` makes the symbolic links that are
        stored. Patterns of `exclude` and of ``.sfsignore`` files in `folder` leave out what matches
        on both sides. Raises `UsageError`."""
        self._session = session
        self._folder = folder
        self._prefix = folder_name(folder) if prefix is None else prefix.strip("/")
        if self._prefix:
            check_name(self._prefix)
        self._start = len(self._prefix) + 1 if self._prefix else 0
        self._down = down
        self._delete = delete
        self._dry_run = dry_run
        self._checksum = checksum
        self._links = links
        self._exclude = exclude
        Filters(exclude)  # a malformed pattern is refused before anything is done

    def run(self, skip: Skip) -> Iterator[Synced]:
        """Do the work; yield a result for each file, link and empty folder of the source, and for
        what was deleted. What fails is passed to `skip`. Raises `LocalError`."""
        if not is_folder(self._folder) and not self._down:
            raise UnreadableSource(f"{self._folder} is not a folder")
        memory = SyncMemory(self._session.state, self._folder.resolve(), self._prefix)
        told: set[str] = set()
        with memory.locked(save=not self._dry_run):
            for attempt in range(_ATTEMPTS):
                try:
                    yield from self._run_once(memory, skip, told)
                except ConflictError:
                    # Another machine has changed a file since it was listed: see what it is now.
                    if attempt + 1 == _ATTEMPTS:
                        raise
                else:
                    return

    def _run_once(self, memory: SyncMemory, skip: Skip, told: set[str]) -> Iterator[Synced]:
        sides = self._examine(skip)
        self._check_folders(memory, sides)
        plan = _Plan([], {}, set(), [])
        decided = [*self._decide(sides, memory.seen, plan)]
        self._clear_the_way(sides, plan)
        full = _full_folders(sides)
        yield from (one for one in decided if one.name not in full and one.name not in told)
        if self._dry_run:
            done = self._planned(sides, plan)
        elif self._down:
            done = self._change_folder(sides, memory, plan, skip)
        else:
            done = self._change_store(sides, memory, plan, skip)
        for one in done:
            if one.name not in full or one.status == CONFLICT:
                told.add(one.name)
                yield one

    # --- what there is

    def _examine(self, skip: Skip) -> _Sides:
        sides = _Sides({}, {}, set())
        filters = Filters(self._exclude, self._folder)

        def note_local(what: str, error: SfscError) -> None:
            below = Path(what).relative_to(self._folder).as_posix()
            sides.unknown.add(unicodedata.normalize("NFC", below))
            skip(what, error)

        def note_stored(what: str, error: SfscError) -> None:
            if what.startswith(self._prefix) and not _FILE_ID.fullmatch(what):
                sides.unknown.add(what[self._start :].rstrip("/"))
            else:
                sides.all_stored_known = False  # only its id is known
            skip(what, error)

        # The keys and what is remembered stay here: each run would change them.
        home, folder = self._session.state.home.resolve(), self._folder.resolve()
        if home.is_relative_to(folder):
            sides.unknown.add(home.relative_to(folder).as_posix())

        if is_folder(self._folder):
            for item in walk_folder(self._folder, self._prefix, note_local, filters=filters):
                path = item.name[self._start :]
                if path and not _TEMPORARY.fullmatch(path.rpartition("/")[2]):
                    sides.local[path] = item
        prefix = f"{self._prefix}/" if self._prefix else ""
        for entry in Files(self._session).ls(prefix, note_stored, folders=True):
            path = entry.name[self._start :]
            if not path or filters.excludes(path):
                continue
            if self._may_be_made(entry, sides.local.get(path)):
                sides.stored[path] = entry
            else:
                cause = "is a link, and was not made"
                note_stored(entry.name, NotRegularFile(cause, "use --links"))
        if self._down:
            _separate(sides, note_stored)
        return sides

    def _may_be_made(self, entry: Entry, item: TreeItem | None) -> bool:
        """Return whether a stored link may be made here, or is here."""
        if entry.kind != LINK or self._links or not self._down:
            return True
        return item is not None and is_same(entry, item, checksum=False)

    def _check_folders(self, memory: SyncMemory, sides: _Sides) -> None:
        """Refuse to delete everything because the folder is not the one that was synchronised
        before, as when its disk is not there. Raises `LocalError`, and `NotFound` for a folder of
        the store that never held anything."""
        if self._down and not (sides.stored or sides.unknown or memory.is_known):
            raise NotFound(f"there is no file in {self._prefix or 'the store'}", "see `sfsc ls`")
        status = status_of(self._folder)
        if status is None:
            return
        identity = status.st_dev, status.st_ino
        if not sides.local and memory.seen and memory.identity != identity and self._delete:
            cause = f"{self._folder} is empty, and not the folder that was synchronised before"
            raise LocalError(cause, "is its disk mounted? Without --delete nothing is deleted")
        memory.identity = identity

    # --- what is to be done

    def _decide(self, sides: _Sides, seen: dict[str, Seen], plan: _Plan) -> Iterator[Synced]:
        """Fill `plan`; yield a result for each file of which nothing is to be done."""
        source: Mapping[str, object] = sides.stored if self._down else sides.local
        for path in sorted({*sides.local, *sides.stored, *seen}):
            if sides.is_unknown(path):
                continue
            item, entry, before = sides.local.get(path), sides.stored.get(path), seen.get(path)
            if item is None and entry is None:
                del seen[path]  # deleted on both sides
                continue
            if item is not None and entry is not None and self._is_same(entry, item, before):
                seen[path] = Seen.from_item(entry.version, item)
                yield self._result(entry, UNCHANGED)
                continue
            changed_here = self._is_changed_here(item, entry, before)
            changed_there = before is None or entry is None or entry.version != before.version
            in_source, in_target = changed_here, changed_there
            if self._down:
                in_source, in_target = changed_there, changed_here
            if path not in source:
                # Only a file that was in the source before can have been deleted there.
                unchanged = not in_target or path.endswith("/")
                if self._delete and before is not None and unchanged and sides.all_stored_known:
                    plan.deleted.append(path)
            elif item is None or entry is None or path.endswith("/"):
                plan.copied.append(path)
            elif in_source and in_target:
                plan.conflicts.add(path)
                plan.aside[path] = ""
                plan.copied.append(path)
            elif in_source:
                plan.copied.append(path)
            elif in_target:
                side = "here" if self._down else "in the store"
                yield changed(
                    self._result(entry, SKIPPED), cause=f"it was changed {side} since the last sync"
                )
            else:
                yield self._result(entry, UNCHANGED)

    def _is_same(self, entry: Entry, item: TreeItem, before: Seen | None) -> bool:
        """Return whether both sides are equal, as far as size, time and, if these are not enough,
        the content tell. Of folders only the mode counts."""
        if item.kind == FOLDER or entry.kind == FOLDER:
            return item.kind == entry.kind and stat.S_IMODE(item.status.st_mode) == entry.mode
        if is_same(entry, item, checksum=self._checksum):
            return True
        moved = before is None or (before.version != entry.version and not before.matches(item))
        # New, or changed, on both sides: perhaps to the same.
        return moved and item.kind == FILE and is_same(entry, item, checksum=True)

    def _is_changed_here(
        self, item: TreeItem | None, entry: Entry | None, before: Seen | None
    ) -> bool:
        if item is None or before is None or not before.matches(item):
            return True
        # The same size and time as what is stored, and yet another content.
        return (
            entry is not None
            and entry.version == before.version
            and item.kind == FILE
            and (item.status.st_size, item.status.st_mtime_ns) == (entry.size, entry.mtime_ns)
        )

    def _clear_the_way(self, sides: _Sides, plan: _Plan) -> None:
        """Find what stands in the way of the copies, and stays: a file where a folder is to be, or
        the reverse. Choose all conflict names."""
        target: Iterable[str] = sides.local if self._down else sides.stored
        left = set(target).difference(plan.deleted)
        files = {path for path in left if not path.endswith("/")}
        with_files = {above for path in files for above in _above(path)}
        for path in plan.copied:
            # What is at the place of a folder is in its way, too.
            for above in (*_above(path), path.removesuffix("/")):
                if above in files and above != path:
                    plan.aside.setdefault(above, "")
            if path in with_files:
                plan.aside[f"{path}/"] = ""
            elif not path.endswith("/"):
                # Folders without files: these may go, because a file takes their place.
                plan.deleted += [one for one in left if one.startswith(f"{path}/")]
        taken = set[str]()
        for path in (*sides.local, *sides.stored) if plan.aside else ():
            taken.update((path.rstrip("/"), *_above(path)))
        for path in plan.aside:
            plan.aside[path] = conflict_name(path.rstrip("/"), taken)
            taken.add(plan.aside[path])

    def _planned(self, sides: _Sides, plan: _Plan) -> Iterator[Synced]:
        for path in plan.deleted:
            yield self._about(path, sides, DELETED)
        for path, to in plan.aside.items():
            if path not in plan.conflicts:
                yield self._kept(self._about(path, sides, CONFLICT), to)
        for path in plan.copied:
            done = self._about(path, sides, FETCHED if self._down else STORED)
            yield self._kept(done, plan.aside[path]) if path in plan.conflicts else done

    # --- the store is changed

    def _change_store(
        self, sides: _Sides, memory: SyncMemory, plan: _Plan, skip: Skip
    ) -> Iterator[Synced]:
        entries = [sides.stored[path] for path in plan.deleted]
        self._session.progress.expect_items(len(entries))
        for entry in Files(self._session).rm_many(entries, skip, only_version=True):
            memory.seen.pop(entry.name[self._start :], None)
            yield self._result(entry, DELETED)
        for path, to in plan.aside.items():
            yield from self._set_stored_aside(path, to, sides, memory, plan)
        items = [self._upload_item(path, sides, plan) for path in plan.copied]
        sizes = [item.status.st_size for item in items if item.kind == FILE]
        self._session.progress.expect(sum(sizes))
        self._session.progress.expect_items(len(items))
        uploads = Uploads(self._session)
        uploads.announce(items)
        sources = ((item, None) for item in items)
        for put in uploads.put_many(sources, skip=skip, hash_all=self._checksum):
            path = put.name[self._start :]
            memory.seen[path] = Seen.from_item(put.version, sides.local[path])
            done = Synced(put.name, put.version, STORED, put.size)
            yield self._kept(done, plan.aside[path]) if path in plan.conflicts else done

    def _upload_item(self, path: str, sides: _Sides, plan: _Plan) -> TreeItem:
        """Return what is stored, on the condition that the store still has what was listed."""
        renamed = path in plan.aside or any(f"{above}/" in plan.aside for above in _above(path))
        entry = None if renamed else sides.stored.get(path)
        return changed(sides.local[path], expected=0 if entry is None else entry.version)

    def _set_stored_aside(
        self, path: str, to: str, sides: _Sides, memory: SyncMemory, plan: _Plan
    ) -> Iterator[Synced]:
        """Rename a file of the store, or all files in a folder of it."""
        renames, moved = Renames(self._session), [path]
        if path.endswith("/"):
            moved = [
                one for one in sides.stored if one.startswith(path) and one not in plan.deleted
            ]
        for one in moved:
            entry, name = sides.stored[one], self._prefixed(to + one[len(path.rstrip("/")) :])
            memory.seen.pop(one, None)
            if entry.kind == FOLDER:
                list(Files(self._session).rm_many([entry]))
                continue
            try:
                there = renames.mv(entry.name, name)
            except NotFound:
                continue  # another machine has deleted it
            if one not in plan.conflicts:
                done = Synced(entry.name, there.version, CONFLICT, entry.size)
                yield changed(done, conflict_name=name)

    # --- the folder is changed

    def _change_folder(
        self, sides: _Sides, memory: SyncMemory, plan: _Plan, skip: Skip
    ) -> Iterator[Synced]:
        if not (plan.deleted or plan.aside or plan.copied):
            return
        folders = [path for path in sides.stored if path.endswith("/")]
        with DestinationTree(self._folder, folders=folders) as tree:
            for path in folders:
                # Its owner may write to it meanwhile; its time is not synchronised.
                metadata = Metadata(self._prefixed(path), 0, None, sides.stored[path].mode, FOLDER)
                if path in sides.local:
                    tree.keep_folder(path, metadata)
            # What is in a folder is deleted before it.
            for path in sorted(plan.deleted, reverse=True):
                if self._remove_local(path, sides, tree, skip):
                    memory.seen.pop(path, None)
                    yield self._about(path, sides, DELETED)
            renamed = self._set_local_aside(sides, memory, plan, tree, skip)
            for path, to in renamed.items():
                if path not in plan.conflicts:
                    yield self._kept(self._about(path, sides, CONFLICT), to)
            progress = self._session.progress
            progress.expect(sum(sides.stored[path].size for path in plan.copied))
            progress.expect_items(len(plan.copied))
            items = self._downloads(sides, plan, renamed, tree, skip)
            for got in Downloads(self._session).get_many(items, skip, None):
                path = got.name[self._start :]
                memory.note_fetched(path, sides.stored[path], self._folder / path)
                done = Synced(got.name, got.version, FETCHED, got.size)
                yield self._kept(done, renamed[path]) if path in plan.conflicts else done
            tree.restore_folders(skip)

    def _remove_local(self, path: str, sides: _Sides, tree: DestinationTree, skip: Skip) -> bool:
        try:
            return tree.remove(path, sides.local[path].status)
        except SfscError as exc:
            skip(str(tree.path / path), exc)
            return False

    def _set_local_aside(
        self, sides: _Sides, memory: SyncMemory, plan: _Plan, tree: DestinationTree, skip: Skip
    ) -> dict[str, str]:
        """Rename files and folders of this machine; return {path: new path} of those renamed."""
        renamed: dict[str, str] = {}
        for path, to in plan.aside.items():
            try:
                tree.rename(path.rstrip("/"), to)
            except SfscError as exc:
                skip(str(tree.path / path), exc)
                continue
            renamed[path] = to
            inside = [one for one in sides.local if path.endswith("/") and one.startswith(path)]
            for one in {path, *inside}:
                sides.local.pop(one, None)
                memory.seen.pop(one, None)
        return renamed

    def _downloads(
        self,
        sides: _Sides,
        plan: _Plan,
        renamed: Mapping[str, str],
        tree: DestinationTree,
        skip: Skip,
    ) -> Iterator[DownloadItem]:
        for path in plan.copied:
            entry, item = sides.stored[path], sides.local.get(path)
            if path in plan.conflicts and path not in renamed:
                continue  # it could not be renamed, so it must not be replaced
            try:
                if entry.kind == FOLDER:
                    place = tree.destination(path)
                else:
                    there = tree.status(path)
                    if there is not None and stat.S_ISDIR(there.st_mode):
                        # Only what is left out is in it.
                        tree.rename(path, conflict_name(path, {*sides.local, *sides.stored}))
                    expected = None if item is None else item.status
                    place = tree.destination(path, expected=expected)
            except SfscError as exc:
                skip(entry.name, exc)
                continue
            about = entry.name, entry.file_id, entry.version, str(tree.path / path), place
            yield DownloadItem(*about, entry.size)

    # --- results

    def _prefixed(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def _kept(self, done: Synced, to: str) -> Synced:
        """Return the result of a file that was kept under the path `to`."""
        return changed(done, status=CONFLICT, conflict_name=self._prefixed(to))

    def _result(self, entry: Entry, status: str) -> Synced:
        return Synced(entry.name, entry.version, status, entry.size)

    def _about(self, path: str, sides: _Sides, status: str) -> Synced:
        entry, item = sides.stored.get(path), sides.local.get(path)
        version = 0 if entry is None else entry.version
        size = entry.size if entry is not None else 0
        if item is not None and item.kind == FILE:
            size = item.status.st_size
        return Synced(self._prefixed(path), version, status, size)


def _separate(sides: _Sides, note: Callable[[str, SfscError], None]) -> None:
    """Remove from what is stored that of which a file system can hold only one: a folder entry
    beside a file of the same name, and a file beside a folder with files, which is passed to
    `note`."""
    files = {path for path in sides.stored if not path.endswith("/")}
    with_files = {above for path in files for above in _above(path)}
    for path in files & with_files:
        entry = sides.stored.pop(path)
        note(entry.name, BadDestination(f"{entry.name} is a file and a folder in the store"))
    files -= with_files
    for path in [one for one in sides.stored if one.endswith("/")]:
        if path.rstrip("/") in files:
            del sides.stored[path]


def _full_folders(sides: _Sides) -> set[str]:
    """Return the names of folders with something in them; they have no result."""
    full = {item.name for item in sides.local.values() if item.full}
    return full | full_folders(entry.name for entry in sides.stored.values())


def conflict_name(path: str, taken: set[str]) -> str:
    """Return another path in the same folder, which is not in `taken`: ``a (conflict 2026-11-30
    211503).txt`` for ``a.txt``, in UTC."""
    folder, slash, last = path.rpartition("/")
    suffix = PurePosixPath(last).suffix
    stem = last.removesuffix(suffix)
    when = time.strftime("%Y-%m-%d %H%M%S", time.gmtime())
    for number in range(1, 1_000_000):
        more = (
            f" (conflict {when}){suffix}" if number == 1 else f" (conflict {when} {number}){suffix}"
        )
        room = min(_MAX_PART, MAX_FILE_NAME - 64 - len(f"{folder}{slash}".encode()))
        room = max(0, room - len(more.encode()))
        made = folder + slash + stem.encode()[:room].decode(errors="ignore") + more
        if made not in taken:
            return made
    raise LocalError(f"there are too many conflicts of {path}", "rename or delete some")


def _above(path: str) -> Iterator[str]:
    """Yield the folders above a path, outermost first, without a slash at the end."""
    parts = path.rstrip("/").split("/")
    for end in range(1, len(parts)):
        yield "/".join(parts[:end])
