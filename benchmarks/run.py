"""``make bench``: a real daemon and real clients against the bare pipe, in the same run.

Every measurement is a whole process, from its start to its exit: ``sfsc put`` with its passphrase
on one side, the pipe's client on the other. Product and pipe take turns, so that a slow minute of
the machine hits both; the first turn warms up and is not counted. JSON lines go to stdout, the
table to stderr.

    BENCH_BYTES  size of the file, default 1 GiB        BENCH_RUNS  counted turns, default 5
    BENCH_DIR    where to work: on the disk to measure, default the system's temporary folder
"""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.table import Row, table
from tests.harness import REPOSITORY, Client, Daemon

SIZE = int(os.environ.get("BENCH_BYTES", str(1 << 30)))
RUNS = int(os.environ.get("BENCH_RUNS", "5"))
SECONDS = 600.0


@dataclass(frozen=True)
class Pipe:
    """A running bare pipe: the port of its server and the folder it keeps files in."""

    port: str
    folder: Path

    def run(self, direction: str, *arguments: str | Path) -> None:
        """One client of the pipe, to its end."""
        words = [direction, self.port, str(self.folder), *map(str, arguments)]
        subprocess.run(
            [sys.executable, "-m", "benchmarks.bare_pipe", *words],
            cwd=REPOSITORY,
            check=True,
            timeout=SECONDS,
        )


@contextmanager
def bare_pipe(folder: Path) -> Iterator[Pipe]:
    """Serve a bare pipe over `folder`."""
    folder.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bare_pipe", "serve", str(folder)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        try:
            assert server.stdout is not None
            yield Pipe(server.stdout.readline().strip(), folder)
        finally:
            server.terminate()


def random_file(path: Path, size: int) -> None:
    """`size` bytes that do not compress, written in pieces."""
    with path.open("wb") as file:
        for start in range(0, size, 1 << 20):
            file.write(os.urandom(min(1 << 20, size - start)))


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes, with nothing of an earlier turn left to be written to disk."""
    if hasattr(os, "sync"):
        os.sync()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Transfers:
    """One file, `source`, through the product and through the pipe."""

    client: Client
    pipe: Pipe
    source: Path
    scratch: Path

    def rows(self) -> list[Row]:
        """Every turn's times. Raises `SystemExit` when what came back is not what went."""
        times: dict[str, list[float]] = {}
        for turn in range(RUNS + 1):
            spent = self.turn(f"turn-{turn}")
            shown = ", ".join(f"{work} {taken:.2f} s" for work, taken in spent.items())
            print(turn or "warm-up", shown, file=sys.stderr)
            if turn:
                for work, taken in spent.items():
                    times.setdefault(work, []).append(taken)
        return [
            Row(f"{_size()} {way}", SIZE, tuple(times[f"sfs {way}"]), tuple(times[f"pipe {way}"]))
            for way in ("up", "down")
        ]

    def turn(self, name: str) -> dict[str, float]:
        """Seconds of each kind of work, done once, the product's under `name`."""
        client, pipe, source, target = self.client, self.pipe, self.source, self.scratch / "fetched"
        put = ("put", source, "--name", name)
        get = ("get", name, "-o", target)
        spent = {
            "sfs up": seconds(lambda: client.run(*put, seconds=SECONDS)),
            "pipe up": seconds(lambda: pipe.run("up", source, name)),
            "sfs down": self._fetched(target, lambda: client.run(*get, seconds=SECONDS)),
            "pipe down": self._fetched(target, lambda: pipe.run("down", name, target)),
        }
        (pipe.folder / name).unlink()
        return spent

    def _fetched(self, target: Path, work: Callable[[], object]) -> float:
        target.unlink(missing_ok=True)
        spent = seconds(work)
        if not filecmp.cmp(self.source, target, shallow=False):
            raise SystemExit("what came back differs from what was sent")
        return spent


def _size() -> str:
    return f"{SIZE / 2**30:g} GiB" if SIZE % 2**28 == 0 else f"{SIZE / 2**20:g} MiB"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="sfs-bench-", dir=os.environ.get("BENCH_DIR")) as work:
        scratch = Path(work)
        source = scratch / "source"
        random_file(source, SIZE)
        daemon = Daemon(scratch / "root")
        daemon.init()
        with daemon, bare_pipe(scratch / "pipe") as pipe:
            client = daemon.client("bench", scratch / "home")
            rows = Transfers(client, pipe, source, scratch).rows()
    for row in rows:
        print(row.to_json())
    print(table(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
