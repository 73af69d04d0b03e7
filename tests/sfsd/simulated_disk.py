"""Simulated disk that loses unsynced data in a power failure and can crash at any call.

`SimulatedDisk` makes every call on the real file system and also records what a sync made durable:
for each file its bytes at its last sync, for each folder its names at its last sync. Nothing is
really synced, so thousands of crashes take seconds. `lose_power` writes one possible state after a
power failure: of everything changed since its last sync, the old or the new version at random.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from random import Random

from sfsd.fs.files import Files
from tests.sfsd.faults import Crash

SECTOR = 512
"""Bytes that a disk writes atomically; a file that grew may end at any multiple."""
Bytes = bytes | bytearray | memoryview


class Node:
    """Bytes of a file: `now` is what reads return, `durable` what survives a power failure."""

    def __init__(self, content: bytes = b"") -> None:
        self.now = bytearray(content)
        self.durable = content


Folder = dict[str, "Node | None"]
"""Nodes by name; None is a folder, whose names are recorded under its path."""


class SimulatedDisk(Files):
    """File system that raises `Crash` at the changing call number `crash_at`, counted from 0.

    `fail_at` maps call numbers to an errno, or to None for a short write.
    """

    def __init__(self, root: Path) -> None:
        """Take everything below `root` as durable."""
        self.root = root
        self.calls: list[str] = []
        self.marks: dict[str, int] = {}
        self.crash_at: int | None = None
        self.fail_at: dict[int, int | None] = {}
        self._now: dict[Path, Folder] = {}
        self._durable: dict[Path, Folder] = {}
        self._open: dict[int, tuple[Node, bool]] = {}
        for folder, names, files in os.walk(root):
            path = Path(folder)
            self._now[path] = dict.fromkeys(names)
            nodes: dict[tuple[int, int], Node] = {}
            for name in files:
                found = (path / name).stat()
                node = nodes.setdefault((found.st_dev, found.st_ino), Node())
                node.now[:] = node.durable = (path / name).read_bytes()
                self._now[path][name] = node
            self._durable[path] = dict(self._now[path])

    def mark(self, name: str) -> None:
        """Store the number of the next call as `marks[name]`."""
        self.marks[name] = len(self.calls)

    def _step(self, call: str, path: Path | None = None) -> bool:
        """Count a changing call; return whether a write must be short."""
        count = len(self.calls)
        if self.crash_at is not None and count >= self.crash_at:
            raise Crash  # neither this call nor any later one is made
        self.calls.append(call if path is None else f"{call} {path.name}")
        if count not in self.fail_at:
            return False
        code = self.fail_at[count]
        if code is None:
            return True
        raise OSError(code, os.strerror(code))

    def open_new(self, path: Path | str) -> int:
        path = Path(path)
        self._step("open_new", path)
        handle = super().open_new(path)
        node = self._now[path.parent][path.name] = Node()
        self._open[handle] = (node, False)
        return handle

    def open_append(self, path: Path) -> int:
        self._step("open_append", path)
        handle = super().open_append(path)
        node = self._now[path.parent].setdefault(path.name, Node())
        assert node is not None
        self._open[handle] = (node, True)
        return handle

    def open_update(self, path: Path) -> int:
        handle = super().open_update(path)
        node = self._now[path.parent][path.name]
        assert node is not None
        self._open[handle] = (node, False)
        return handle

    def open_direct(self, handle: int, *, writing: bool) -> int | None:
        direct = super().open_direct(handle, writing=writing)
        if direct is not None and handle in self._open:
            self._open[direct] = self._open[handle]
        return direct

    def close(self, handle: int) -> None:
        self._open.pop(handle, None)
        super().close(handle)

    def write(self, handle: int, data: Bytes) -> int:
        short = self._step("write")
        node, appends = self._open[handle]
        start = len(node.now) if appends else os.lseek(handle, 0, os.SEEK_CUR)
        taken = super().write(handle, data[: len(data) // 2] if short else data)
        node.now[start : start + taken] = data[:taken]
        return taken

    def write_at(self, handle: int, data: Bytes, offset: int) -> int:
        short = self._step("write_at")
        node, _ = self._open[handle]
        taken = super().write_at(handle, data[: len(data) // 2] if short else data, offset)
        node.now.extend(bytes(max(0, offset - len(node.now))))
        node.now[offset : offset + taken] = data[:taken]
        return taken

    def start_writing_back(self, handle: int, offset: int, length: int) -> None:
        """Do nothing: the call guarantees nothing."""

    def allocate(self, handle: int, size: int) -> None:
        self._step("allocate")
        super().allocate(handle, size)
        node = self._open[handle][0]
        node.now.extend(bytes(os.fstat(handle).st_size - len(node.now)))

    def truncate(self, handle: int, size: int) -> None:
        self._step("truncate")
        super().truncate(handle, size)
        node = self._open[handle][0]
        del node.now[size:]
        node.now.extend(bytes(size - len(node.now)))

    def sync(self, handle: int) -> None:
        self._step("sync")
        node = self._open[handle][0]
        node.durable = bytes(node.now)

    def sync_all(self, folder: int) -> bool:
        return False

    def sync_data(self, handle: int) -> None:
        self.sync(handle)

    def sync_folder(self, folder: Path) -> None:
        self._step("sync_folder", folder)
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no folder", str(folder))
        if self.root in (folder, *folder.parents):
            self._durable[folder] = dict(self._now[folder])

    def replace(self, source: Path | str, target: Path | str) -> None:
        source, target = Path(source), Path(target)
        self._step("replace", target)
        super().replace(source, target)
        here, there = self._now[source.parent], self._now[target.parent]
        if there.get(target.name) is not here[source.name]:  # otherwise POSIX does nothing
            there[target.name] = here.pop(source.name)

    def link(self, source: Path, target: Path) -> None:
        self._step("link", target)
        super().link(source, target)
        self._now[target.parent][target.name] = self._now[source.parent][source.name]

    def remove(self, path: Path | str) -> None:
        path = Path(path)
        self._step("remove", path)
        super().remove(path)
        self._now.get(path.parent, {}).pop(path.name, None)

    def make_folder(self, path: Path) -> None:
        self._step("make_folder", path)
        super().make_folder(path)
        missing = [folder for folder in (path, *path.parents) if folder not in self._now]
        for folder in reversed(missing):
            if self.root in folder.parents:
                self._now[folder] = {}
                self._durable[folder] = {}
                self._now[folder.parent][folder.name] = None

    def end(self) -> None:
        """Close all descriptors, as the end of the process does."""
        for handle in list(self._open):
            self.close(handle)

    def lose_power(self, target: Path, chance: Random, *, luck: float = 0.5) -> None:
        """Write to `target` a possible state after a power failure.

        `luck` is the probability that unsynced data survives; 0 loses all of it.
        """
        contents: dict[int, bytes] = {}
        self._survive(self.root, target, chance, luck, contents)

    def _survive(
        self, folder: Path, target: Path, chance: Random, luck: float, contents: dict[int, bytes]
    ) -> None:
        target.mkdir()
        now, durable = self._now.get(folder, {}), self._durable.get(folder, {})
        for name in sorted(now.keys() | durable.keys()):
            names = now if chance.random() < luck else durable
            if name not in names:
                continue
            node = names[name]
            if node is None:
                self._survive(folder / name, target / name, chance, luck, contents)
                continue
            if id(node) not in contents:
                contents[id(node)] = self._content(node, chance, luck)
            (target / name).write_bytes(contents[id(node)])

    def _content(self, node: Node, chance: Random, luck: float) -> bytes:
        if bytes(node.now) == node.durable or chance.random() >= luck:
            return node.durable
        if node.now.startswith(node.durable) and chance.random() < 0.5:
            sectors = range(len(node.durable) // SECTOR, len(node.now) // SECTOR + 1)
            return bytes(node.now[: max(len(node.durable), chance.choice(sectors) * SECTOR)])
        return bytes(node.now)
