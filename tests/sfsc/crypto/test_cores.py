"""The same answers, in the same order, whoever gives them, and whatever becomes of a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pytest

from protocol.records.signatures import SigningKey
from sfsc.crypto import cores
from sfsc.crypto.cores import CHUNK, Cores
from sfsc.crypto.primitives import PrivateKey
from sfsc.errors import BadRecord
from tests.harness import REPOSITORY


@dataclass(frozen=True)
class Doubled:
    """Says as well which process has said so."""

    secret: bytes = field(default=b"", repr=False)
    bad: int = -1

    def __call__(self, numbers: list[int]) -> list[tuple[int, int]]:
        if self.bad in numbers:
            raise BadRecord(f"{self.bad} is bad")
        return [(2 * number, os.getpid()) for number in numbers]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few calls are enough to start processes; they find this module as we do."""
    monkeypatch.setattr(cores, "ENOUGH", 3)
    monkeypatch.syspath_prepend(str(REPOSITORY))


def slowly(count: int, pool: Cores[int, tuple[int, int]]) -> Iterator[int]:
    """Numbers, the later ones once a worker is there to take them."""
    for number in range(count):
        if number == 4 * CHUNK:
            await_worker(pool)
        yield number


def await_worker(pool: Cores[int, tuple[int, int]]) -> int:
    """The pid of the first worker, once it has answered."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        process = pool._workers[0]._process
        if process is not None and pool._workers[0].ready:
            return process.pid
        time.sleep(0.01)
    raise AssertionError("no worker")


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_answers_come_in_order_from_here_and_elsewhere(workers: int) -> None:
    count = 12 * CHUNK + 5
    with Cores(Doubled(), workers) as pool:
        found = list(pool.map(slowly(count, pool) if workers else range(count)))
    assert [one for one, _ in found] == [2 * number for number in range(count)]
    who = {pid for _, pid in found}
    assert os.getpid() in who
    assert (len(who) > 1) == bool(workers)


def test_few_things_start_no_process() -> None:
    with Cores(Doubled(), 2) as pool:
        assert [one for one, _ in pool.map(range(3))] == [0, 2, 4]
        assert all(worker._process is None for worker in pool._workers)


@pytest.mark.parametrize("count", [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK - 1])
def test_the_function_gets_some_at_a_time(count: int) -> None:
    asked: list[int] = []

    def lengths(items: list[int]) -> list[int]:
        asked.append(len(items))
        return items

    with Cores(lengths, 0) as pool:
        assert list(pool.map(range(count))) == list(range(count))
    assert asked == [CHUNK] * (count // CHUNK) + [count % CHUNK] * (count % CHUNK > 0)


def test_an_error_is_raised_in_its_place() -> None:
    bad = 9 * CHUNK + 7
    found: list[int] = []
    with Cores(Doubled(bad=bad), 1) as pool, pytest.raises(BadRecord, match=f"{bad} is bad"):
        found.extend(one for one, _ in pool.map(slowly(12 * CHUNK, pool)))
    # It was called with a few more, which have no answers either.
    assert bad - CHUNK < len(found) <= bad
    assert found == [2 * number for number in range(len(found))]


def test_what_a_killed_worker_had_is_done_here() -> None:
    count = 30 * CHUNK
    with Cores(Doubled(), 1) as pool:
        answers = pool.map(slowly(count, pool))
        found = [one for one, _ in islice(answers, 6 * CHUNK)]
        os.kill(await_worker(pool), signal.SIGKILL)
        found += [one for one, _ in answers]
        assert not pool._workers[0].ready
    assert found == [2 * number for number in range(count)]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_worker_is_told_secrets_by_its_pipe_only() -> None:
    secret = b"correct horse battery staple"
    with Cores(Doubled(secret), 1) as pool:
        list(pool.map(slowly(6 * CHUNK, pool)))
        folder = Path(f"/proc/{await_worker(pool)}")
        assert secret not in (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()


def test_workers_end_with_their_parent() -> None:
    program = (
        "import os, signal\n"
        "from tests.sfsc.crypto.test_cores import *\n"
        "cores.ENOUGH = 3\n"
        "pool = Cores(Doubled(), 1)\n"
        "list(pool.map(slowly(6 * CHUNK, pool)))\n"
        "print(await_worker(pool), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    worker = int(done.stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError("it is still there")


def test_keys_go_to_a_worker_and_are_the_same_there() -> None:
    import pickle

    signing, wrapping = SigningKey.generate(), PrivateKey.generate("xwing")
    assert pickle.loads(pickle.dumps(signing)).seed == signing.seed
    there = pickle.loads(pickle.dumps(wrapping))
    assert there.unwrap(wrapping.public.wrap(bytes(32), b"info"), b"info") == bytes(32)
