"""One failed system call of the daemon on a file of its root, at every call of some scenarios.

A call fails with EIO, ENOSPC, EMFILE or a short write, once or until the daemon ends. In the long
sweep, opening, examining and reading a file also fail, with EIO, EACCES or ENOMEM. The client is
told, or is killed first, or the daemon is killed while it handles the failure. A counting run of
each scenario finds the calls. Afterwards the daemon must start. Acknowledged files open, every
other file is old or new, other users' files open, and the account can be used. No logged bytes are
lost, and `sfsd fsck --read-data` and `sfsd audit verify` find nothing. `tests.e2e.fault_runner`
runs a point.

A test run has 48 of about 25,000 points, and the long sweep chooses from 32,000. `make fault-sweep`
sets SFS_FAULT_POINTS to 2,000. Each of the two workers has one core and takes about a second a
point.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.fault_runner import MODES, NO_ROOM, READING, Point
from tests.harness import environment

SAMPLE = 48
COUNT = int(os.environ.get("SFS_FAULT_POINTS") or SAMPLE)
SEED = os.environ.get("SFS_FAULT_SEED") or "19"
SHIM = Path(__file__).with_name("fault_shim.c")
PARTS: tuple[tuple[str, ...], ...] = (
    ("put small", "share", "delete", "transaction", "stop"),
    ("put large", "two users", "rotate", "start"),
)
"""Scenarios of each test; two tests, for two cores."""
if COUNT > SAMPLE:
    PARTS = ((*PARTS[0], "put many", "move"), (*PARTS[1], "put huge", "rotate compromised"))
SCENARIOS = [scenario for part in PARTS for scenario in part]


def points_of(scenario: str, calls: Sequence[str]) -> list[Point]:
    """Return every point of a scenario that makes these calls, each "CALL PATH-CLASS"."""
    return [
        Point(scenario, call, number, fault, mode, lasting)
        for call, count in sorted(Counter(calls).items())
        for number in range(1, count + 1)
        for mode in MODES
        # While the daemon starts or stops, no client waits for an answer.
        if mode != "client killed" or scenario not in ("start", "stop")
        for fault, lasting in _faults(call.split()[0], mode)
    ]


def _faults(call: str, mode: str) -> Iterator[tuple[str, bool]]:
    if call in READING:
        if mode == "told":
            yield from (("EIO", False), ("EACCES", False), ("ENOMEM", False))
        return
    for fault in ("EIO", "ENOSPC", *(["EMFILE"] if call.startswith("open-") else [])):
        yield from ((fault, False), (fault, True))
    if call in ("write", "pwrite"):
        yield "short", False
    if mode == "daemon killed":
        yield from (("instead", False), ("after", False))


def sampled(points: Sequence[Point], count: int, chance: random.Random) -> list[Point]:
    """Return `count` random points, or all: in each round one of each call, the calls of the commit
    point first. Most calls of a scenario are of a few kinds."""
    by_call: dict[str, list[Point]] = {}
    for point in chance.sample(points, len(points)):
        by_call.setdefault(point.call, []).append(point)
    calls = chance.sample(sorted(by_call), len(by_call))
    calls.sort(key=lambda call: not call.endswith("audit.jsonl"))
    rounds = itertools.zip_longest(*(by_call[call] for call in calls))
    return [point for chosen in rounds for point in chosen if point is not None][:count]


class Runner:
    """A process of `tests.e2e.fault_runner` with the shim.

    The answers so far, one a line, are in the file `answers`: a long sweep takes an hour.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if sys.platform != "linux" or compiler is None:
            pytest.skip("the shim needs Linux and a C compiler (cc or gcc)")
        shim = folder / "shim.so"
        options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([compiler, *options, "-o", shim, SHIM, "-ldl"], check=True)
        (folder / "runner").mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.fault_runner", folder / "runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment({"LD_PRELOAD": str(shim)}),
            text=True,
        )
        self._answers = folder / "answers"

    def ask(self, **request: object) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the runner ended early; stderr says why"
        with self._answers.open("a") as answers:
            answers.write(answer)
        return json.loads(answer)

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    runner = Runner(tmp_path)
    yield runner
    runner.close()


def chosen_points(runner: Runner, scenario: str) -> list[Point]:
    calls = runner.ask(count=scenario, reads=COUNT > SAMPLE)
    assert isinstance(calls, list)
    share, rest = divmod(COUNT, len(SCENARIOS))
    return sampled(
        points_of(scenario, calls),
        share + (SCENARIOS.index(scenario) < rest),
        random.Random(f"{SEED} {scenario}"),
    )


@pytest.mark.slow
@pytest.mark.timeout(0 if COUNT > SAMPLE else 500)
@pytest.mark.parametrize("part", range(len(PARTS)))
def test_one_failed_call(runner: Runner, part: int) -> None:
    points = [point for scenario in PARTS[part] for point in chosen_points(runner, scenario)]
    broken: list[str] = []
    failed_calls = 0
    for point in points:
        answer = runner.ask(point=dataclasses.asdict(point))
        assert isinstance(answer, dict)
        failed_calls += answer["fired"]
        if "broken" in answer:
            broken.append(f"{point}\n{answer['broken']}\n{answer['output']}")
    figures = f"{len(points)} points, {failed_calls} with a failed call, {len(broken)} broken"
    sys.stdout.write(f"{figures}\n")
    assert not broken, "\n\n".join([figures, *broken[:20]])
    # A call may be absent once: how often the daemon syncs in the background depends on timing.
    assert failed_calls > 0.9 * len(points), figures


@pytest.mark.slow
def test_the_daemon_goes_on_once_there_is_room(runner: Runner) -> None:
    sidecar = "open-create store/users/alice/files/*/*.*.json"
    for scenario in ("put small", "start"):
        point = Point(scenario, sidecar, 1, "ENOSPC", NO_ROOM, lasting=True)
        answer = runner.ask(without_room=dataclasses.asdict(point))
        assert answer == {}, answer
