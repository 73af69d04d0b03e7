"""How the benchmarks measure: product and comparison take turns, medians of several.

A slow minute of the machine so hits both, and only their ratio is to be believed. The first turn
warms up and is not counted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.table import Row
from tests.harness import REPOSITORY, environment

SECONDS = 600.0
"""Longest that one program may take."""


@dataclass(frozen=True)
class Work:
    """Something the product does in one run, and something else to compare it with.

    `product` and `beside` get the number of the turn, 0 being the warm-up; what they call in the
    form of a list is timed as a whole. See `Row` for the other fields.
    """

    name: str
    amount: float
    unit: str
    product: Callable[[int], object]
    beside: Callable[[int], object]
    beside_name: str = "pipe"
    goal: float | None = None
    limit: float | None = None
    prepare: Callable[[int], object] = lambda _turn: None
    """Called before each of the two, untimed."""
    check: Callable[[int], object] = lambda _turn: None
    """Called after each of the two, untimed; raises `SystemExit` for a wrong result."""


def measure(works: Sequence[Work], runs: int) -> list[Row]:
    """Every work, `runs` counted turns. Each turn's times go to stderr."""
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in works]
    for turn in range(runs + 1):
        for work, (product, beside) in zip(works, times, strict=True):
            for call, kept in ((work.product, product), (work.beside, beside)):
                work.prepare(turn)
                spent = seconds(lambda: call(turn))  # noqa: B023 - called at once
                work.check(turn)
                if turn:
                    kept.append(spent)
                who = "sfs" if call is work.product else work.beside_name
                print(f"{turn or 'warm-up'} {work.name}, {who}: {spent:.3f} s", file=sys.stderr)
    return [
        Row(
            work.name,
            work.amount,
            work.unit,
            tuple(product),
            tuple(beside),
            work.beside_name,
            work.goal,
            work.limit,
        )
        for work, (product, beside) in zip(works, times, strict=True)
    ]


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes, with nothing of an earlier turn left to be written to disk."""
    if hasattr(os, "sync"):
        os.sync()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run_python(*arguments: str | Path) -> None:
    """One Python program from its start to its end, compiled before as the product's are.

    A wait with a time limit looks every 50 ms only, so this one has none, and somebody who kills.
    """
    program = subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=REPOSITORY, env=environment({})
    )
    watchdog = threading.Timer(SECONDS, program.kill)
    watchdog.start()
    try:
        code = program.wait()
    finally:
        watchdog.cancel()
    if code:
        raise subprocess.CalledProcessError(code, program.args)


@dataclass(frozen=True)
class Pipe:
    """A running bare pipe: the port of its server and the folder it keeps files in."""

    port: str
    folder: Path

    def run(self, direction: str, *arguments: str | Path) -> None:
        """One client of the pipe, to its end."""
        run_python("-m", "benchmarks.bare_pipe", direction, self.port, str(self.folder), *arguments)


@contextmanager
def bare_pipe(folder: Path) -> Iterator[Pipe]:
    """Serve a bare pipe over `folder`."""
    with serving(folder, "benchmarks.bare_pipe", "serve") as port:
        yield Pipe(port, folder)


@contextmanager
def serving(folder: Path, module: str, *arguments: str) -> Iterator[str]:
    """A server that is no product, over `folder`, which is made; its port."""
    folder.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", module, *arguments, str(folder)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
