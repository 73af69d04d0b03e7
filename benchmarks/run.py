"""``make bench``: a real daemon and real clients beside the least that could be done instead.

Every measurement of files is of whole processes, from start to exit: ``sfsc put`` with its
passphrase on one side, the bare pipe's client on the other. JSON lines go to stdout, the table to
stderr.

    BENCH_ROWS   which, of big,small,tree,folders,incremental,starts,asyncio,appends,clients;
                 default all
    BENCH_RUNS   counted turns, default 5
    BENCH_BYTES  size of the big file, default 1 GiB
    BENCH_FILES  number of the small files, default 2,000
    BENCH_TREE   the real tree, default /usr/share/doc
    BENCH_NAMES  number of the names that are listed, and of the files that are compared, default
                 20,000
    BENCH_CHANGED  number of the files that are shared and deleted, default 10,000
    BENCH_DIR    where to work: on the disk to measure, default the system's temporary folder
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import asynchronous, clients, folders, starts
from benchmarks.appends import Appends
from benchmarks.measure import Pipe, Work, bare_pipe, measure, serving
from benchmarks.table import Row, table
from benchmarks.works import BIG, FILES, Transfers, random_file, real_tree, regular_files
from benchmarks.works import small_files as many_files
from tests.harness import Client, Daemon

RUNS = int(os.environ.get("BENCH_RUNS", "5"))
ROWS = os.environ.get(
    "BENCH_ROWS", "big,small,tree,folders,incremental,starts,asyncio,appends,clients"
).split(",")


def groups(daemon: Daemon, client: Client, pipe: Pipe, scratch: Path) -> Iterator[list[Work]]:
    """The works that were asked for; each group is measured to its end before the next is made."""
    if "big" in ROWS:
        big = random_file(scratch / "big", BIG)
        yield Transfers(client, pipe, big, scratch, _size(BIG), BIG / 1e6, "MB", 0.75).works()
        big.unlink()
    if "small" in ROWS:
        small = many_files(scratch / "small")
        name = f"{FILES} files of 4 KiB"
        yield Transfers(client, pipe, small, scratch, name, FILES, "files").works()
    if "tree" in ROWS and (tree := real_tree(scratch / "tree")):
        count = sum(1 for _ in regular_files(tree))
        size = sum(path.stat().st_size for path in regular_files(tree)) / 1e6
        name = f"tree of {count} files, {size:.0f} MB"
        yield Transfers(client, pipe, tree, scratch, name, count, "files").works()
    if "folders" in ROWS:
        source = many_files(scratch / "changed", folders.CHANGED)
        work = folders.Folders(daemon, client, pipe, source)
        yield work.listing()
        yield work.changes()
    if "incremental" in ROWS:
        work = folders.Folders(daemon, client, pipe, scratch)
        yield work.incremental(many_files(scratch / "many", folders.NAMES))
    if "starts" in ROWS:
        yield starts.works(client, pipe, scratch)
    if "asyncio" in ROWS:
        yield asynchronous.works(client, scratch)
    if "appends" in ROWS:
        yield [Appends(scratch / "appends").work()]
    if "clients" in ROWS:
        echo = scratch / "echo"
        with (
            serving(echo, "benchmarks.bare_echo") as port,
            clients.Clients(client.home) as many,
            clients.Bare(port, echo) as bare,
        ):
            yield many.works(bare)


def _size(size: int) -> str:
    return f"{size / 2**30:g} GiB" if size % 2**28 == 0 else f"{size / 2**20:g} MiB"


def main() -> None:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="sfs-bench-", dir=os.environ.get("BENCH_DIR")) as work:
        scratch = Path(work)
        daemon = Daemon(scratch / "root")
        daemon.init()
        # One more than the default allows: 64 clients at once, and one beside them.
        (daemon.root / "sfsd.toml").write_text(
            "[limits]\nconnections_per_address = 80\nuser_connections = 80\n"
        )
        with daemon, bare_pipe(scratch / "pipe") as pipe:
            client = daemon.client("bench", scratch / "home")
            for works in groups(daemon, client, pipe, scratch):
                rows += measure(works, RUNS)
    for row in rows:
        print(row.to_json())
    print(table(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
