"""``make bench-peers``: the same work by sfs and by what a user would take instead.

All take turns in one run; the first turn warms up. Peers that are not there are installed where
this is Debian and we are root; one that cannot be had is named, and the exit code is then 1.
Nothing is said about durability: sfs acknowledges what is synced, rclone and restic what their
server has written.

    BENCH_PEERS  which, of rclone,restic,borg; default all     BENCH_RUNS  counted turns, default 3
    BENCH_ROWS   which, of big,small,many,tree; default all
    BENCH_MANY_FILES  number of files of the row `many`, default 20,000
    BENCH_BYTES, BENCH_FILES, BENCH_TREE, BENCH_DIR  as for make bench
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import PEERS, Contender, Product, missing
from benchmarks.measure import seconds
from benchmarks.table import Row, table
from benchmarks.works import (
    BIG,
    FILES,
    MANY,
    check_same,
    clear,
    random_file,
    real_tree,
    regular_files,
    small_files,
)
from tests.harness import Daemon

WANTED = os.environ.get("BENCH_PEERS", ",".join(PEERS)).split(",")
ROWS = os.environ.get("BENCH_ROWS", "big,small,many,tree").split(",")
RUNS = int(os.environ.get("BENCH_RUNS", "3"))
_PACKAGES = ("rclone", "restic", "borgbackup", "openssh-client", "openssh-server")


@dataclass(frozen=True)
class Job:
    """Files to move, and the least ratios wanted, up and down, by peer."""

    name: str
    source: Path
    amount: float
    unit: str
    goals: dict[str, tuple[float, float]]


def jobs(scratch: Path) -> Iterator[Job]:
    if "big" in ROWS:
        big = random_file(scratch / "big", BIG)
        yield Job(f"{BIG / 2**20:g} MiB", big, BIG / 1e6, "MB", {"rclone": (1.85, 1.28)})
        big.unlink()
    if "small" in ROWS:
        small = small_files(scratch / "small")
        goals = {"restic": (1.5, 1.5), "borg": (2.0, 2.5)}
        yield Job(f"{FILES} x 4 KiB", small, FILES, "files", goals)
        clear(small)
    if "many" in ROWS:
        many = small_files(scratch / "many", MANY)
        yield Job(f"{MANY} x 4 KiB", many, MANY, "files", {"restic": (0.8, 0.8)})
        clear(many)
    if "tree" in ROWS and (tree := real_tree(scratch / "tree")):
        count = sum(1 for _ in regular_files(tree))
        goals = {"restic": (1.0, 1.0), "borg": (1.5, 1.5)}
        yield Job(f"tree of {count}", tree, count, "files", goals)


def compare(job: Job, contenders: list[Contender], scratch: Path) -> list[Row]:
    """Every contender does `job`, in turns; rows of the first beside each of the others."""
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(RUNS + 1):
        for contender in contenders:
            name = f"{job.source.name}-{turn}"
            target = scratch / "fetched"
            arrived: list[Path] = []
            contender.fresh()
            up = seconds(lambda: contender.up(job.source, name))  # noqa: B023 - called at once
            down = seconds(
                lambda: arrived.append(contender.down(name, job.source, target))  # noqa: B023
            )
            check_same(job.source, arrived[0])
            clear(target)
            shown = f"up {up:.2f} s, down {down:.2f} s"
            print(f"{turn or 'warm-up'} {job.name}, {contender.name}: {shown}", file=sys.stderr)
            if turn:
                times.setdefault((contender.name, "up"), []).append(up)
                times.setdefault((contender.name, "down"), []).append(down)
    first, *others = contenders
    return [
        Row(
            f"{job.name} {way}",
            job.amount,
            job.unit,
            tuple(times[first.name, way]),
            tuple(times[other.name, way]),
            other.name,
            job.goals[other.name][way == "down"] if other.name in job.goals else None,
        )
        for way in ("up", "down")
        for other in others
    ]


def install() -> None:
    """Have Debian's packages installed, where that is possible and something is missing."""
    needed = [program for peer in WANTED for program in PEERS[peer][1]]
    installer = shutil.which("apt-get")
    if not missing(needed) or installer is None or os.getuid() != 0:
        return
    for words in (("update",), ("install", "-y", "--no-install-recommends", *_PACKAGES)):
        command = [installer, "-qq", *words]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            print(f"apt-get {words[0]} ended with {done.returncode}", file=sys.stderr)


def main() -> int:
    install()
    absent = {peer: lacking for peer in WANTED if (lacking := missing(PEERS[peer][1]))}
    rows: list[Row] = []
    with ExitStack() as stack:
        scratch = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="sfs-bench-", dir=os.environ.get("BENCH_DIR"))
            )
        )
        daemon = Daemon(scratch / "root")
        daemon.init()
        stack.enter_context(daemon)
        contenders: list[Contender] = [Product(daemon.client("bench", scratch / "home"))]
        present = [(peer, PEERS[peer][0]) for peer in WANTED if peer not in absent]
        contenders += [stack.enter_context(make(scratch / peer)) for peer, make in present]
        for job in jobs(scratch):
            rows += compare(job, contenders, scratch)
    for row in rows:
        print(row.to_json())
    print(table(rows), file=sys.stderr)
    for peer, lacking in absent.items():
        print(f"NOT MEASURED: {peer}: no {', '.join(lacking)} on this machine", file=sys.stderr)
    return 1 if absent else 0


if __name__ == "__main__":
    sys.exit(main())
