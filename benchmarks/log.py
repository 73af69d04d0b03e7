"""``make bench-log``: a daemon's root with a long log: started, proven from, and verified.

Verification is the command's own, beside a bare loop of SHA-256 over the same lines. The lines are
of the daemon's making and of the usual length. JSON lines go to stdout.

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

from protocol.log.auditlog import EntryDraft
from sfsd import server_keys
from sfsd.log.journal import Journal
from sfsd.log.verify import verify_links, verify_log
from sfsd.storage.store import DirectoryStore
from tests.harness import Daemon

ENTRIES = int(os.environ.get("BENCH_ENTRIES", "1000000"))
STRICT = min(ENTRIES, 100_000)
GROUP = 512
PROOFS = 1000


def tell(work: str, value: float, unit: str, target: str) -> None:
    print(json.dumps({"work": work, "value": round(value, 4), "unit": unit, "target": target}))
    sys.stdout.flush()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def open_journal(root: Path) -> Journal:
    keys = server_keys.load(root / "keys")
    return Journal(root / "logs", keys.log_key, keys.origin)


def fill(root: Path) -> None:
    """A log of `ENTRIES` downloads by 100 users, all of them applied."""
    journal = open_journal(root)
    for first in range(journal.size, ENTRIES, GROUP):
        journal.append(
            [
                EntryDraft(
                    op="download",
                    actor=f"user{seq % 100}",
                    owner=f"user{seq % 7}",
                    session=0,
                    detail={"items": [[f"{seq % 5000:032x}", 1]]},
                    tag_keys={f"user{seq % 100}": bytes(32)},
                )
                for seq in range(first, min(first + GROUP, ENTRIES))
            ]
        )
        journal.save_mark()
    journal.close()
    DirectoryStore(root).installer.write_applied(ENTRIES - 1)


def verification(root: Path) -> None:
    lines = (root / "logs" / "audit.jsonl").read_bytes().split(b"\n")[:-1]

    def bare() -> None:
        for line in lines:
            hashlib.sha256(line).digest()

    hashed = min(seconds(bare) for _ in range(3))
    checked = min(seconds(lambda: verify_links(root)) for _ in range(3))
    tell(f"audit verify of {len(lines)}, beside hashlib", hashed / checked, "ratio", ">= 0.3")
    tell("audit verify", checked, "s", "")
    if len(lines) <= STRICT:
        strict = seconds(lambda: verify_log(root))
        tell("audit verify --strict, beside hashlib", hashed / strict, "ratio", "")


def proofs(root: Path) -> None:
    journal = open_journal(root)
    chosen = random.Random(5)
    times = []
    for _ in range(PROOFS):
        old = chosen.randrange(1, journal.size)
        times.append(seconds(lambda: journal.prove_consistency(old, journal.size)))  # noqa: B023 - called at once
    journal.close()
    tell("consistency proof, median", sorted(times)[PROOFS // 2] * 1e3, "ms", "<= 5")
    tell("consistency proof, slowest", max(times) * 1e3, "ms", "<= 5")


def starts(daemon: Daemon) -> None:
    """The whole process, from its start until it accepts connections."""
    tell("daemon start", seconds(daemon.start), "s", "<= 2")
    daemon.add_user("alice")
    daemon.kill()
    tell("daemon start after SIGKILL", seconds(daemon.start), "s", "<= 2")
    daemon.stop()


def main() -> int:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        daemon = Daemon(Path(name) / "root")
        daemon.init()
        (daemon.root / "sfsd.toml").write_text('public = "127.0.0.1:7373"\n')
        daemon.start()
        daemon.stop()
        fill(daemon.root)
        starts(daemon)
        proofs(daemon.root)
        verification(daemon.root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
