"""The files that are moved, and moving them through the product and through the bare pipe."""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import SECONDS, Pipe, Work
from tests.harness import Client

BIG = int(os.environ.get("BENCH_BYTES", str(1 << 30)))
FILES = int(os.environ.get("BENCH_FILES", "2000"))
MANY = int(os.environ.get("BENCH_MANY_FILES", "20000"))
SMALL = 4096
TREE = Path(os.environ.get("BENCH_TREE", "/usr/share/doc"))


def random_file(path: Path, size: int) -> Path:
    """`size` bytes that do not compress, written in pieces."""
    with path.open("wb") as file:
        for start in range(0, size, 1 << 20):
            file.write(os.urandom(min(1 << 20, size - start)))
    return path


def small_files(folder: Path, count: int = FILES) -> Path:
    """`count` files of 4 KiB."""
    folder.mkdir()
    for number in range(count):
        random_file(folder / f"f{number:05d}", SMALL)
    return folder


def real_tree(folder: Path) -> Path | None:
    """The regular files of `TREE`, None where this machine has no such folder."""
    if not TREE.is_dir():
        return None
    for source in regular_files(TREE):
        target = folder / source.relative_to(TREE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return folder


def regular_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path


def check_same(source: Path, target: Path) -> None:
    """Raise `SystemExit` unless every file of `source` is in `target`, byte for byte."""
    pairs = (
        [(path, target / path.relative_to(source)) for path in regular_files(source)]
        if source.is_dir()
        else [(source, target)]
    )
    if not all(filecmp.cmp(one, other, shallow=False) for one, other in pairs):
        raise SystemExit("what came back differs from what was sent")


@dataclass(frozen=True)
class Transfers:
    """`source`, a file or a folder, through the product and through the pipe."""

    client: Client
    pipe: Pipe
    source: Path
    scratch: Path
    name: str
    amount: float
    unit: str
    goal: float | None = None

    def works(self) -> list[Work]:
        """Up, then down, under a name of each turn."""
        return [
            Work(
                f"{self.name} up",
                self.amount,
                self.unit,
                self._put,
                lambda turn: self.pipe.run("up", self.source, self._at(turn)),
                goal=self.goal,
            ),
            Work(
                f"{self.name} down",
                self.amount,
                self.unit,
                self._get,
                lambda turn: self.pipe.run("down", self._at(turn), self._target),
                goal=self.goal,
                prepare=lambda _turn: clear(self._target),
                check=lambda _turn: check_same(self.source, self._target),
            ),
        ]

    @property
    def _target(self) -> Path:
        return self.scratch / "fetched"

    def _at(self, turn: int) -> str:
        return f"{self.source.name}-{turn}"

    def _put(self, turn: int) -> None:
        recursive = ("-r",) if self.source.is_dir() else ()
        words = ("put", *recursive, self.source, "--name", self._at(turn))
        self.client.run(*words, seconds=SECONDS)

    def _get(self, turn: int) -> None:
        if self.source.is_dir():
            # A folder arrives below the target under its own name.
            self.client.run("get", "-r", self._at(turn), "-o", self._target, seconds=SECONDS)
            (self._target / self._at(turn)).rename(self.scratch / "arrived")
            self._target.rmdir()
            (self.scratch / "arrived").rename(self._target)
        else:
            self.client.run("get", self._at(turn), "-o", self._target, seconds=SECONDS)


def clear(path: Path) -> None:
    """Have nothing stand at `path`. A folder is moved aside, to be deleted with the one it is in:
    for minutes after many files were deleted ext4 without a journal looks longer for a free inode
    (0.3 ms for each new file), and whoever is measured next would pay for that."""
    if path.is_dir():
        path.rename(Path(tempfile.mkdtemp(prefix="cleared-", dir=path.parent)) / path.name)
    path.unlink(missing_ok=True)
