"""A flood of one user's requests does not keep another user from logging in (a sample)."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest

from benchmarks.flood import (
    LOOP_MS,
    Account,
    accounts,
    bodies,
    flooded,
    log_size,
    measure,
    occupied,
    requests,
    wait_until_quiet,
)
from tests.harness import Daemon

MOST = 10
"""`make flood` measures on a quiet machine and allows 3."""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and the clocks of processes")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Account, Account]]:
    """A daemon, with alice's account and mallory's, who has many files."""
    folder = tmp_path_factory.mktemp("flood")
    daemon = Daemon(folder / "root")
    daemon.init()
    with daemon:
        alice, mallory = (
            daemon.client(name, folder / name, "--no-passphrase") for name in ("alice", "mallory")
        )
        yield daemon, *accounts(daemon, alice, mallory, 300)


@pytest.mark.parametrize("kind", ["List", "GetWraps"])
def test_others_log_in_beside_a_flood_of_heavy_requests(
    served: tuple[Daemon, Account, Account], kind: str
) -> None:
    """Counts what the daemon computes while alice waits: that hardly depends on other programs."""
    daemon, alice, mallory = served
    request = requests(mallory, log_size(daemon))[kind]
    assert daemon.process is not None
    # Linux: the clock of the processor time of a process (clock_getcpuclockid).
    computed = partial(time.clock_gettime, (~daemon.process.pid << 3) | 2)
    wait_until_quiet(daemon)
    idle = measure(alice, 0.5, computed)
    with flooded(mallory, request, reads=False):
        during = measure(alice, 1.5, computed)
    assert min(during.logins) <= MOST * statistics.median(idle.logins)
    assert min(during.stats) <= MOST * statistics.median(idle.stats)


def test_no_legal_body_occupies_the_loop() -> None:
    for name, body in bodies():
        assert occupied(body) <= LOOP_MS, name
