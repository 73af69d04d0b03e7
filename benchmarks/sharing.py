"""``make bench-sharing``: one file of many readers, and one reader of many files.

Time and peak resident memory, over a real daemon. The client's work runs in this process, each part
in a fresh one that is forked for it. JSON lines go to stdout.

    BENCH_READERS  readers of one file, default 200
    BENCH_SHARED   files of one reader, default 5,000
    BENCH_DIR      where to work
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import sfsc
from benchmarks.memory import peak
from tests.harness import Client, Daemon

READERS = int(os.environ.get("BENCH_READERS", "200"))
SHARED = int(os.environ.get("BENCH_SHARED", "5000"))


def tell(work: str, count: int, seconds: float, **more: float) -> None:
    line = {"work": work, "count": count, "seconds": round(seconds, 2), **more}
    print(json.dumps(line), flush=True)


def alone(work: str, count: int, action: Callable[[], object]) -> None:
    """Do `action` in a process of its own; tell its seconds and the most memory it had (MiB)."""

    def measured() -> None:
        began = time.perf_counter()
        action()
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        tell(work, count, seconds, client_mib=round(peak, 1))

    process = multiprocessing.get_context("fork").Process(target=measured)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work} failed")


def small_files(count: int) -> Iterator[tuple[io.BytesIO, str]]:
    for number in range(count):
        yield io.BytesIO(b"x" * 100), f"many/{number:05}"


def many_readers(daemon: Daemon, folder: Path, owner: Client) -> None:
    names = [f"reader{number}" for number in range(READERS)]
    for name in names:
        daemon.client(name, folder / name, "--no-passphrase")

    def share() -> None:
        with sfsc.connect(owner.home) as store:
            store.put(io.BytesIO(b"read by many"), name="popular")
            for name in names:
                store.share("popular", name, trust_first_use=True)

    def put() -> None:
        with sfsc.connect(owner.home) as store:
            store.put(io.BytesIO(b"the next version"), name="popular")

    def get() -> None:
        with sfsc.connect(folder / names[-1]) as store:
            store.get_shared(owner_name(owner), "popular", io.BytesIO(), trust_first_use=True)

    alone("share one file with each of", READERS, share)
    alone("put a version for all of them", READERS, put)
    alone("one of them reads it", 1, get)


def many_files(daemon: Daemon, folder: Path, owner: Client) -> None:
    reader = daemon.client("collector", folder / "collector", "--no-passphrase")

    def put() -> None:
        with sfsc.connect(owner.home) as store:
            for _ in store.put_many(small_files(SHARED)):
                pass

    def share() -> None:
        with sfsc.connect(owner.home) as store:
            for _ in store.share_tree("many", "collector", trust_first_use=True):
                pass

    def inbox() -> None:
        with sfsc.connect(reader.home) as store:
            store.person(owner_name(owner))
            assert len(store.inbox()) == SHARED

    def fetch() -> None:
        with sfsc.connect(reader.home) as store:
            place = folder / "fetched"
            user = owner_name(owner)
            for _ in store.get_tree("many", place, user, trust_first_use=True):
                pass

    def rotate() -> None:
        with sfsc.connect(reader.home) as store:
            assert store.rotate().files == SHARED

    alone("put", SHARED, put)
    alone("share -r", SHARED, share)
    alone("inbox, first", SHARED, inbox)
    alone("inbox, again", SHARED, inbox)
    alone("get -r", SHARED, fetch)
    alone("the reader rotates", SHARED, rotate)


def owner_name(owner: Client) -> str:
    return owner.home.name


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="sfs-bench-", dir=os.environ.get("BENCH_DIR")) as made:
        folder = Path(made)
        daemon = Daemon(folder / "root")
        daemon.init()
        with daemon:
            owner = daemon.client("sharer", folder / "sharer", "--no-passphrase")
            many_files(daemon, folder, owner)
            many_readers(daemon, folder, owner)
            tell("daemon's memory after all of it", 1, 0.0, daemon_mib=round(peak(daemon), 1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
