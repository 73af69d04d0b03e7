"""Work on folders of many stored files whose contents do not move: list, share and delete."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sfsc
from benchmarks.measure import SECONDS, Pipe, Work, run_python
from benchmarks.works import SMALL
from tests.harness import PASSPHRASE, Client, Daemon

NAMES = int(os.environ.get("BENCH_NAMES", "20000"))
CHANGED = int(os.environ.get("BENCH_CHANGED", "10000"))
GOAL = 5000
"""Files that are shared, or deleted, in a second."""
LISTED_SECONDS = 0.6
UNCHANGED_SECONDS = 1.5
SYNCED_SECONDS = 2.0
EDITS = 10
"""Files that change before each `sync`."""
_PRINT = f"for number in range({NAMES}): print(f'names/{{number:05}}')"


@dataclass(frozen=True)
class Folders:
    """Folders of small files of `client`. `source` is a folder of `CHANGED` files of 4 KiB for the
    pipe, beside which the homes of readers are made."""

    daemon: Daemon
    client: Client
    pipe: Pipe
    source: Path

    def listing(self) -> list[Work]:
        """List names that this machine knows."""
        self._fill("names", NAMES)
        self.client.run("ls", "-R", seconds=SECONDS)
        return [
            Work(
                f"ls -R of {NAMES} known names",
                NAMES,
                "names",
                lambda _turn: self.client.run("ls", "-R", "names/", seconds=SECONDS),
                lambda _turn: run_python("-c", _PRINT),
                "python -c print",
                limit=LISTED_SECONDS,
            )
        ]

    def incremental(self, tree: Path) -> list[Work]:
        """Store a folder of `NAMES` files in which nothing has changed, and synchronise it after
        `EDITS` changes. The pipe's client sends as many files as have changed."""
        self.client.run("put", "-r", tree, "--name", "tree", seconds=SECONDS)
        self.client.run("sync", tree, "tree", seconds=SECONDS)
        edited = tree.with_name("edited")
        edited.mkdir()
        names = [path.relative_to(tree) for path in tree.rglob("*") if path.is_file()][:EDITS]

        def edit(_turn: int) -> None:
            for number, name in enumerate(names):
                content = os.urandom(SMALL)
                (tree / name).write_bytes(content)
                (edited / f"{number}").write_bytes(content)

        return [
            Work(
                f"put -r of {NAMES} unchanged files",
                NAMES,
                "files",
                lambda _turn: self._expect("put", "-r", tree, "--name", "tree", changed=0),
                lambda _turn: run_python("-c", _PRINT),
                "python -c print",
                limit=UNCHANGED_SECONDS,
                # The last edits of the other row.
                prepare=lambda _turn: self.client.run("sync", tree, "tree", seconds=SECONDS),
            ),
            Work(
                f"sync of {NAMES} files, {EDITS} changed",
                NAMES,
                "files",
                lambda _turn: self._expect("sync", tree, "tree", changed=EDITS),
                lambda turn: self.pipe.run("up", edited, f"edited-{turn}"),
                limit=SYNCED_SECONDS,
                prepare=edit,
            ),
        ]

    def _expect(self, *arguments: str | Path, changed: int) -> None:
        """Run a command that stores `changed` files."""
        totals = self.client.run(*arguments, seconds=SECONDS).lines[-1]
        if not totals.startswith(f"{changed} stored, "):
            raise SystemExit(f"{arguments}: {totals}")

    def changes(self) -> list[Work]:
        """Share a folder of each turn, then delete it."""
        return [
            Work(
                f"share -r of {CHANGED} files",
                CHANGED,
                "files",
                lambda turn: self.client.run(
                    *("share", "-r", f"changed-{turn}", f"reader{turn}", "--trust-first-use"),
                    seconds=SECONDS,
                ),
                lambda turn: self.pipe.run("up", self.source, f"shared-{turn}"),
                limit=CHANGED / GOAL,
                prepare=self._prepare,
            ),
            Work(
                f"rm -r of {CHANGED} files",
                CHANGED,
                "files",
                lambda turn: self.client.run("rm", "-r", f"changed-{turn}", seconds=SECONDS),
                lambda turn: self.pipe.run("up", self.source, f"deleted-{turn}"),
                limit=CHANGED / GOAL,
            ),
        ]

    def _prepare(self, turn: int) -> None:
        """Enrol a reader, because nobody shares more than 10,000 files with one, and store files
        for the turn."""
        home = self.source.with_name(f"reader{turn}")
        if not home.exists():
            self.daemon.client(home.name, home)
        self._fill(f"changed-{turn}", CHANGED)

    def _fill(self, folder: str, count: int) -> None:
        """Store `count` files, unless they are there."""

        def items() -> Iterator[tuple[io.BytesIO, str]]:
            for number in range(count):
                yield io.BytesIO(os.urandom(SMALL)), f"{folder}/{number:05}"

        with sfsc.connect(self.client.home, passphrase=lambda: PASSPHRASE) as store:
            if next(store.ls(f"{folder}/"), None) is None:
                for _ in store.put_many(items()):
                    pass
