"""``make bench-growth``: what work costs as the store of one user grows.

The same operations over a store of `BENCH_FEW` and of `BENCH_MANY` files, by a fresh machine of the
user that has listed nothing: put, get and stat by name, the first page of a listing, and the start
of the daemon. JSON lines go to stdout, each with the ratio of the two medians.

    BENCH_FEW  default 1,000    BENCH_MANY  default 100,000    BENCH_DIR  where to work
"""

from __future__ import annotations

import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import sfsc
from protocol.wire.messages.files import MAX_PAGE, List, Listing
from sfsc.keys.home import home_folder, unlock_home
from sfsc.session.session import Session
from sfsc.trust.state import open_client_state
from tests.harness import Client, Daemon

FEW = int(os.environ.get("BENCH_FEW", "1000"))
MANY = int(os.environ.get("BENCH_MANY", "100000"))
ROUNDS = 200
STARTS = 5
GOAL = 1.2
START_SECONDS = 2.0


def name_of(number: int) -> str:
    return f"folder{number % 100:02}/file{number:06}"


def fill(client: Client, files: int) -> None:
    def items() -> Iterator[tuple[io.BytesIO, str]]:
        for number in range(files):
            yield io.BytesIO(b"x" * 100), name_of(number)

    with sfsc.connect(client.home) as store:
        for _ in store.put_many(items()):
            pass


class Growth(ExitStack):
    """One store of `files` files and its user, seen from a machine that knows nothing of them."""

    def __init__(self, client: Client, machine: Path, files: int) -> None:
        super().__init__()
        self._files = files
        self._chance = random.Random(files)
        machine.mkdir()
        (machine / "keyring").write_bytes((client.home / "keyring").read_bytes())
        self._store = self.enter_context(sfsc.connect(machine))
        file = unlock_home(home_folder(machine), None)
        state = self.enter_context(open_client_state(machine, file))
        self._session = Session(file.contents, state)
        self._session.connect()
        self.callback(self._session.close)

    def works(self) -> dict[str, Callable[[], object]]:
        """Each of them once, on a file that chance picks."""
        page = List("", MAX_PAGE, 0)
        return {
            "stat": lambda: self._store.stat(self._one()),
            "get": lambda: self._store.get(self._one(), io.BytesIO()),
            "put": lambda: self._store.put(io.BytesIO(b"y" * 100), name=self._one()),
            "first page of ls": lambda: self._session.call(page, Listing),
        }

    def _one(self) -> str:
        return name_of(self._chance.randrange(self._files))


def medians(few: Growth, many: Growth) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each work over the two stores, which take turns at it."""
    found: dict[str, tuple[float, float]] = {}
    for name, work in few.works().items():
        other = many.works()[name]
        spent = [(milliseconds(work), milliseconds(other)) for _ in range(ROUNDS)]
        of_few, of_many = zip(*spent, strict=True)
        found[name] = statistics.median(of_few), statistics.median(of_many)
    return found


def milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def start_seconds(daemon: Daemon) -> float:
    """Median seconds from the start of the process to the first accepted connection."""
    spent: list[float] = []
    for _ in range(STARTS):
        daemon.stop()
        began = time.perf_counter()
        daemon.start()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def main() -> int:
    with ExitStack() as stack:
        directory = os.environ.get("BENCH_DIR")
        made = stack.enter_context(tempfile.TemporaryDirectory(prefix="sfs-bench-", dir=directory))
        daemons, stores = list[Daemon](), list[Growth]()
        for files in (FEW, MANY):
            daemon = Daemon(Path(made) / f"root-{files}")
            daemon.init()
            stack.enter_context(daemon)
            client = daemon.client("keeper", Path(made) / f"home-{files}", "--no-passphrase")
            began = time.perf_counter()
            fill(client, files)
            rate = files / (time.perf_counter() - began)
            told = {"work": "fill", "files": files, "files_a_second": round(rate)}
            print(json.dumps(told), flush=True)
            machine = Path(made) / f"machine-{files}"
            stores.append(stack.enter_context(Growth(client, machine, files)))
            daemons.append(daemon)
        for work, (few, many) in medians(*stores).items():
            line = {"work": work, "ms_few": round(few, 3), "ms_many": round(many, 3)}
            ratio = many / few
            reached = {"ratio": round(ratio, 3), "goal": GOAL, "reached": ratio <= GOAL}
            print(json.dumps(line | reached), flush=True)
        for store in stores:
            store.close()
        seconds = start_seconds(daemons[-1])
        start = {"work": "daemon start", "seconds": round(seconds, 3), "goal": START_SECONDS}
        print(json.dumps({**start, "reached": seconds <= START_SECONDS}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
