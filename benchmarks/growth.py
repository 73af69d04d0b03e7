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
from pathlib import Path

import sfsc
from protocol.messages.files import MAX_PAGE, List, Listing
from sfsc.home import folder, open_state, unlock
from sfsc.session import Session
from tests.harness import Client, Daemon

FEW = int(os.environ.get("BENCH_FEW", "1000"))
MANY = int(os.environ.get("BENCH_MANY", "100000"))
ROUNDS = 200
STARTS = 5
GOAL = 1.2
START_SECONDS = 2.0


def name_of(number: int) -> str:
    return f"folder{number % 100:02}/file{number:06}"


def fill(client: Client, first: int, last: int) -> None:
    def items() -> Iterator[tuple[io.BytesIO, str]]:
        for number in range(first, last):
            yield io.BytesIO(b"x" * 100), name_of(number)

    with sfsc.connect(client.home) as store:
        for _ in store.put_many(items()):
            pass


def medians(client: Client, scratch: Path, files: int) -> dict[str, float]:
    """Median milliseconds of each operation, over a store of so many files."""
    chance = random.Random(files)
    home = scratch / f"machine-{files}"
    home.mkdir()
    (home / "keyring").write_bytes((client.home / "keyring").read_bytes())

    def one() -> str:
        return name_of(chance.randrange(files))

    with sfsc.connect(home) as store:
        found = {
            "stat": median(lambda: store.stat(one())),
            "get": median(lambda: store.get(one(), io.BytesIO())),
            "put": median(lambda: store.put(io.BytesIO(b"y" * 100), name=one())),
        }
    keyring = unlock(folder(home), None).contents
    with open_state(home, keyring) as state:
        session = Session(keyring, state)
        session.connect()
        page = List("", MAX_PAGE, 0)
        found["first page of ls"] = median(lambda: session.call(page, Listing), ROUNDS // 10)
        session.close()
    return found


def median(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    spent: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        spent.append((time.perf_counter() - began) * 1e3)
    return statistics.median(spent)


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
    with tempfile.TemporaryDirectory(prefix="sfs-bench-", dir=os.environ.get("BENCH_DIR")) as made:
        scratch = Path(made)
        daemon = Daemon(scratch / "root")
        daemon.init()
        with daemon:
            client = daemon.client("keeper", scratch / "home", "--no-passphrase")
            fill(client, 0, FEW)
            few = medians(client, scratch, FEW)
            began = time.perf_counter()
            fill(client, FEW, MANY)
            rate = (MANY - FEW) / (time.perf_counter() - began)
            print(json.dumps({"work": "fill", "files_a_second": round(rate)}), flush=True)
            many = medians(client, scratch, MANY)
            for work, milliseconds in many.items():
                ratio = milliseconds / few[work]
                line = {
                    "work": work,
                    "ms_few": round(few[work], 3),
                    "ms_many": round(milliseconds, 3),
                }
                line |= {"ratio": round(ratio, 3), "goal": GOAL, "reached": ratio <= GOAL}
                print(json.dumps(line), flush=True)
            seconds = start_seconds(daemon)
            told = {"work": "daemon start", "seconds": round(seconds, 3), "goal": START_SECONDS}
            print(json.dumps({**told, "reached": seconds <= START_SECONDS}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
