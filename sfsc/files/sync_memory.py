"""Memory of `sync` for a folder of this machine and a folder of the store: what both held when they
were last equal. It is a file in the client's home, encrypted under the key of its state.

Losing it loses no data: files that differ then count as changed on both sides.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from protocol.buffers.file_status import exists
from protocol.codec.values import Value
from sfsc.atomicfile import make_folder, replace_file
from sfsc.closing import Closing
from sfsc.crypto.envelope import FILE, FOLDER
from sfsc.errors import LocalError, SyncRunning
from sfsc.files.comparison import local_item
from sfsc.local_files import status_of
from sfsc.transfer.source import TreeItem
from sfsc.trust.file_records import Entry
from sfsc.trust.state import ClientState

FOLDER_NAME: Final = "sync"
"""Folder in the client's home."""
MAX_PAIRS: Final = 256
"""Pairs of folders that are remembered, the latest ones."""
_FORM: Final = 1
_CLOCK: Final = 2_000_000_000
"""Nanoseconds of the largest steps in which a file system keeps times."""


class Seen(Value):
    """A file, link or folder when both sides were equal: the version in the store, and kind, size
    and time of the last change (nanoseconds) here. A folder has its mode in place of a size, and no
    time, because each change of what is in it changes its time."""

    version: int
    kind: str
    size: int
    mtime: int

    @classmethod
    def from_item(cls, version: int, item: TreeItem) -> Seen:
        """Build from the version and the local item that is equal to it."""
        status = item.status
        if item.kind == FOLDER:
            return cls(version, item.kind, stat.S_IMODE(status.st_mode), 0)
        return cls(version, item.kind, status.st_size, status.st_mtime_ns)

    def matches(self, item: TreeItem) -> bool:
        """Return whether the local item has not changed since."""
        return Seen.from_item(self.version, item) == self


def forget_synchronised(home: Path) -> None:
    """Forget what was synchronised, for a server that may have gone back: a file that it does not
    have any more was not deleted by another machine, and its version numbers are used again. Raises
    `LocalError`."""
    try:
        for path in (home / FOLDER_NAME).glob("*[0-9a-f]"):  # other programs hold the locks
            path.unlink(missing_ok=True)
    except OSError as exc:
        raise LocalError(f"cannot remove {exc.filename}: {exc.strerror}") from exc


class SyncMemory:
    """Memory for `folder` and the names that begin with `prefix`, by path below both."""

    def __init__(self, state: ClientState, folder: Path, prefix: str) -> None:
        """`folder` is an absolute path without links."""
        self._state = state
        digest = hashlib.sha256(os.fsencode(f"{folder}\0{prefix}")).hexdigest()
        self._bound = f"sync:{digest}"
        self._path = state.home / FOLDER_NAME / digest[:32]
        self._saved = ""
        self.identity: tuple[int, int] = (0, 0)
        """Device and inode of the folder when it was last synced."""
        self.seen: dict[str, Seen] = {}

    @contextlib.contextmanager
    def locked(self, *, save: bool) -> Iterator[None]:
        """Read what is remembered; with `save`, save it at the end of the block, also if that
        raises. Raises `LocalError`, and `SyncRunning` if another process holds the lock."""
        from filelock import FileLock, Timeout

        lock = FileLock(self._path.with_suffix(".lock"), timeout=0, mode=0o600)
        try:
            make_folder(self._path.parent)
            lock.acquire()
        except Timeout as exc:
            raise SyncRunning("another command is synchronising this folder") from exc
        except OSError as exc:
            raise LocalError(f"cannot write {lock.lock_file}: {exc.strerror}") from exc
        try:
            self._read()
            try:
                yield
            finally:
                if save:
                    self.save()
        finally:
            lock.release()

    def note_fetched(self, path: str, entry: Entry, local: str | Path) -> None:
        """Remember what was written to `local`, unless it was changed since: then it counts as
        changed."""
        self.seen.pop(path, None)
        try:
            status = os.lstat(local)
            if entry.kind != FILE:
                item = local_item(str(local), status)
                if item is not None and item.kind == entry.kind:
                    self.seen[path] = Seen.from_item(entry.version, item)
                return
        except OSError:
            return
        if stat.S_ISREG(status.st_mode):
            size, mtime = status.st_size, status.st_mtime_ns
            if size != entry.size or abs(mtime - (entry.mtime_ns or mtime)) >= _CLOCK:
                size, mtime = entry.size, entry.mtime_ns or 0
            self.seen[path] = Seen(entry.version, FILE, size, mtime)

    @property
    def is_known(self) -> bool:
        """Whether both sides were ever synchronised."""
        return bool(self._saved)

    def save(self) -> None:
        """Save what has changed. Raises `LocalError`."""
        self._state.check_current()
        rows = {
            path: [one.version, one.kind, one.size, one.mtime] for path, one in self.seen.items()
        }
        text = json.dumps([_FORM, self.identity, rows], separators=(",", ":"))
        if text == self._saved:
            return
        try:
            if not self._saved:
                self._drop_oldest()
            replace_file(self._path, self._state.seal(text.encode(), self._bound))
        except OSError as exc:
            raise LocalError(f"cannot write {self._path}: {exc.strerror}") from exc
        self._saved = text

    def _drop_oldest(self) -> None:
        """Make room for another pair. Raises OSError."""
        kept = [path for path in self._path.parent.iterdir() if not path.suffix]
        kept.sort(key=lambda path: path.stat().st_mtime_ns)
        for path in kept[: max(0, len(kept) + 1 - MAX_PAIRS)]:
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            if not exists(self._path):
                return
            sealed = self._path.read_bytes()
        except OSError as exc:
            raise LocalError(f"cannot read {self._path}: {exc.strerror}") from exc
        try:
            text = self._state.unseal(sealed, self._bound).decode()
        except LocalError:
            return  # sealed under the key that this machine had before
        form, identity, rows = json.loads(text)
        if form == _FORM:
            self._saved = text
            self.identity = (identity[0], identity[1])
            self.seen = {path: Seen(*row) for path, row in rows.items()}


class Copies(Closing):
    """Remembers what `put -r` and `get -r` have made equal, so that a later `sync` of the same
    folders knows which side has changed since. A context manager; what it remembers is saved at the
    end. Nothing fails because it cannot be saved."""

    def __init__(self, state: ClientState) -> None:
        self._state = state
        self._stack = contextlib.ExitStack()
        self._memories: list[tuple[str, str, SyncMemory]] = []
        self._items: dict[str, TreeItem] = {}

    def add(self, folder: Path, prefix: str) -> None:
        """Remember what is copied between `folder` and `prefix` in the store."""
        memory = SyncMemory(self._state, folder.resolve(), prefix)
        with contextlib.suppress(LocalError):
            self._stack.enter_context(memory.locked(save=True))
            self._memories.append((f"{prefix}/" if prefix else "", str(folder), memory))

    def passing(self, items: Iterator[TreeItem]) -> Iterator[TreeItem]:
        """Yield the items, of which `note_stored` may be called."""
        for item in items:
            self._items[item.name] = item
            yield item

    def note_stored(self, name: str, version: int) -> None:
        """Remember that the item `name` is equal to its stored version."""
        item = self._items.pop(name, None)
        if item is None:
            return  # of a folder that two sources share
        for start, _, memory in self._memories:
            if name.startswith(start) and name != start:
                memory.seen[name[len(start) :]] = Seen.from_item(version, item)

    def note_fetched(self, entry: Entry) -> None:
        """Remember that a local file is equal to what was fetched for this entry."""
        for start, folder, memory in self._memories:
            if entry.name.startswith(start) and entry.name != start:
                path = entry.name[len(start) :]
                memory.note_fetched(path, entry, f"{folder}{os.sep}{path}")

    def close(self) -> None:
        """Save everything."""
        for _, folder, memory in self._memories:
            with contextlib.suppress(LocalError):
                if (status := status_of(folder)) is not None:
                    memory.identity = status.st_dev, status.st_ino
        with contextlib.suppress(LocalError):
            self._stack.close()
