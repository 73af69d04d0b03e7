"""What a start does about a crash: at every call, by kill and by power failure."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from sfsd.changes import digest_of
from sfsd.errors import JournalDamagedError, RecoveryError
from sfsd.recovery import Recovered
from tests.sfsd.disk import Disk
from tests.sfsd.faults import Crash
from tests.sfsd.worlds import (
    Copy,
    Drop,
    Put,
    State,
    Step,
    Upload,
    World,
    check_start,
    snapshot,
    stored,
)

FULL = os.environ.get("SFS_CRASH_POINTS") == "full"

A, B, C = (f"alice/files/{name}/{name}0" for name in ("0a", "0b", "0c"))
SETTLE = "settle"
SCRIPT: list[list[Step] | str] = [
    [Step()],  # a login: an entry without effects
    [
        Step(
            (Put(f"{A}.1.ct", b"small"), Put(f"{A}.1.json", b"side", stamped=True)),
            {f"{A}.1.json": None},
        ),
        Step((Put("alice/account.json", b"1"),)),
        Step((Put(f"{B}.1.ct", b"other"), Put(f"{B}.1.json", b"", stamped=True))),
        Step((Put("alice/account.json", b"never"),), {"alice/account.json": b"0"}),
    ],
    [Step((Upload(f"{C}.1.ct", b"large " * 100), Put(f"{C}.1.json", b"big", stamped=True)))],
    SETTLE,
    [
        Step((Put("alice/account.json", b"2"),), {"alice/account.json": b"1"}),
        Step((Put("alice/account.json", b"3"),), {"alice/account.json": b"2"}),
        Step((Drop(f"{A}.1.ct"), Put(f"{A}.1.json", b"gone", stamped=True))),
        Step(),
    ],
    [Step((Copy("bob/files/0d/d0.1.ct", f"{C}.1.ct"), Put("bob/inbox/alice.c0", b"")))],
    [
        Step((Drop(f"{C}.1.ct"), Drop(f"{C}.1.json"))),
        Step((Copy("bob/files/0d/d0.2.ct", f"{C}.1.ct"),)),  # touched before it: refused
        Step((Upload(f"{B}.1.ct", b"replaced"),)),
    ],
    SETTLE,
    [Step((Drop("bob/inbox/alice.c0"), Copy(f"{A}.2.ct", f"{B}.1.ct")))],
    [Step((Put(f"{A}.2.ct", b"small again"),)), Step((Upload(f"{C}.1.ct", b"anew"),))],
]


def play(root: Path, disk: Disk) -> World:
    """Run the script until it ends or the disk does; what was begun is in the world either way."""
    world = World(root, disk)
    try:
        for act in SCRIPT:
            if isinstance(act, str):
                world.point.settle()
            else:
                world.commit(act)
        world.close()
    except Crash:
        disk.end()
    return world


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The changing calls of a whole run."""
    root = tmp_path_factory.mktemp("whole")
    disk = Disk(root)
    world = play(root, disk)
    assert [f.exception() for f in world.futures].count(None) == len(world.states) - 1
    assert stored(root) == world.states[-1]
    return disk.calls


def points(count: int, sample: int) -> list[int]:
    if FULL:
        return list(range(count))
    return sorted(Random(count).sample(range(count), min(sample, count)))


def judge(world: World, size: int, found: State) -> None:
    """After a start: nobody was told of what is not there, and nothing is there by halves."""
    assert world.acknowledged <= size
    assert found == world.state_at(size)


def crash(root: Path, at: int) -> tuple[World, Disk] | None:
    """The world that ended at call `at`, None if that was before it was there."""
    disk = Disk(root)
    disk.crash_at = at
    try:
        return play(root, disk), disk
    except Crash:
        disk.end()
        return None


def test_a_kill_at_any_call(calls: list[str], tmp_path: Path) -> None:
    for at in points(len(calls), 150):
        root = tmp_path / str(at)
        root.mkdir()
        crashed = crash(root, at)
        size, found = check_start(root, Disk(root))
        if crashed is None:
            assert (size, found) == (0, {})
        else:
            judge(crashed[0], size, found)


@pytest.mark.parametrize("luck", [0.0, 0.5, 0.9])
def test_a_power_failure_at_any_call(calls: list[str], tmp_path: Path, luck: float) -> None:
    for at in points(len(calls), 100):
        root, after = tmp_path / str(at), tmp_path / f"{at}-after"
        root.mkdir()
        crashed = crash(root, at)
        if crashed is None:
            continue
        world, disk = crashed
        disk.lose_power(after, Random(at), luck=luck)
        size, found = check_start(after, Disk(after))
        judge(world, size, found)
