"""``make bench-log``: a long log verified, proven from, and opened.

Verification is measured beside a bare loop of SHA-256 over the same lines. Lines are synthetic but
of the daemon's own making and of the usual length. JSON lines go to stdout.

    BENCH_ENTRIES  entries, default 1,000,000      BENCH_DIR  where to work
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from protocol import auditlog, checkpoint
from protocol.auditlog import Draft
from protocol.signatures import SigningKey
from sfsd.journal import Consistency, Journal

ENTRIES = int(os.environ.get("BENCH_ENTRIES", "1000000"))
VERIFIED = min(ENTRIES, 100_000)
GROUP = 512
PROOFS = 1000
KEY = SigningKey.from_seed(bytes(32))
ORIGIN = checkpoint.origin_of(bytes(32))


def tell(work: str, value: float, unit: str, target: str) -> None:
    print(json.dumps({"work": work, "value": round(value, 4), "unit": unit, "target": target}))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def open_journal(folder: Path) -> Journal:
    return Journal(folder, KEY, ORIGIN, reserve=0)


def fill(folder: Path) -> None:
    """A log of `ENTRIES` downloads by 100 users."""
    journal = open_journal(folder)
    for first in range(0, ENTRIES, GROUP):
        journal.append(
            [
                Draft(
                    op="download",
                    actor=f"user{seq % 100}",
                    owner=f"user{seq % 7}",
                    file=f"{seq % 5000:032x}",
                    version=1,
                    session=0,
                    accounts=(f"user{seq % 100}",),
                )
                for seq in range(first, min(first + GROUP, ENTRIES))
            ]
        )
        journal.keep_mark()
    journal.close()


def verification(journal: Journal) -> None:
    lines = list(journal.lines(0, VERIFIED))

    def bare() -> None:
        for line in lines:
            hashlib.sha256(line).digest()

    def verified() -> None:
        for _ in auditlog.verify_chain(lines):
            pass

    hashed = min(seconds(bare) for _ in range(3))
    tell("parse and chain, beside hashlib", hashed / min(seconds(verified) for _ in range(3)),
         "ratio", ">= 0.3")  # fmt: skip
    everything = seconds(journal.verify) * VERIFIED / ENTRIES
    tell("the daemon's own check, beside hashlib", hashed / everything, "ratio", ">= 0.3")


def proofs(journal: Journal) -> None:
    chosen = random.Random(5)
    times = []
    for _ in range(PROOFS):
        what = Consistency(chosen.randrange(1, ENTRIES), ENTRIES)
        times.append(seconds(lambda: journal.prove(what)))  # noqa: B023 - called at once
    tell("consistency proof, median", sorted(times)[PROOFS // 2] * 1e3, "ms", "<= 5")
    tell("consistency proof, slowest", max(times) * 1e3, "ms", "<= 5")


def main() -> int:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name) / "logs"
        fill(folder)
        start = time.perf_counter()
        journal = open_journal(folder)
        tell(f"opening a log of {ENTRIES}", time.perf_counter() - start, "s", "<= 2")
        proofs(journal)
        verification(journal)
        journal.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
