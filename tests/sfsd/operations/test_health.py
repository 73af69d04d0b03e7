"""Why a daemon is not well: each cause, with the real store, log and committer."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.wire.messages.accounts import Status, StatusAnswer
from sfsd.errors import DamagedError
from sfsd.operations import health
from sfsd.settings.config import Config, HealthBounds
from tests.sfsd.builders import Daemon, daemon, file_id
from tests.sfsd.faults import FaultyFiles

ROOMY = Config(health=HealthBounds(free_space=0, free_files=0))


class ShortDisk(FaultyFiles):
    """A disk with as much room as the test says, whose syncs wait while `answers` is clear."""

    def __init__(self) -> None:
        super().__init__()
        self.room, self.rows = 1 << 40, 1 << 30
        self.answers = threading.Event()
        self.answers.set()

    def free(self, folder: Path) -> int:
        return self.room

    def free_files(self, folder: Path) -> int | None:
        return self.rows

    def sync(self, handle: int) -> None:
        self.answers.wait(20)
        super().sync(handle)


@pytest.fixture
def disk() -> ShortDisk:
    return ShortDisk()


@pytest.fixture
def served(tmp_path: Path, disk: ShortDisk) -> Iterator[Daemon]:
    bounds = HealthBounds(checkpoint_age=60, free_space=1 << 30, free_files=100)
    with daemon(tmp_path, config=Config(health=bounds), files=disk) as running:
        yield running


def reasons(served: Daemon) -> list[str]:
    return health.find_problems(served.context)


def test_an_idle_daemon_is_well_and_its_proof_leaves_nothing(
    served: Daemon, disk: ShortDisk
) -> None:
    served.person("ada").put(file_id(1), b"kept")
    size, before = served.context.journal.size, sorted(served.context.root.rglob("*"))
    served.clock.now += 10**8  # a log to which nothing is added stays signed
    disk.calls.clear()
    assert reasons(served) == []
    assert ("sync", ".write-proof") in disk.calls
    assert sorted(served.context.root.rglob("*")) == before
    assert served.context.journal.size == size


def test_a_disk_that_takes_nothing(served: Daemon, disk: ShortDisk) -> None:
    for code, why in [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only")]:
        disk.fail("write", ".write-proof", code)
        (reason,) = reasons(served)
        assert reason.startswith(f"cannot write: writing to logs/: {why}")
    assert reasons(served) == []


def test_a_disk_that_does_not_answer(
    served: Daemon, disk: ShortDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROOF_SECONDS", 0.05)
    disk.answers.clear()
    assert reasons(served) == ["cannot write: the disk has not answered for 0 seconds"]
    disk.answers.set()
    monkeypatch.undo()
    assert reasons(served) == []


def test_a_failed_sync_is_the_reason_until_a_restart(served: Daemon, disk: ShortDisk) -> None:
    ada = served.person("ada")
    disk.fail("sync_data", "audit.jsonl")
    ada.ask(ada.version(file_id(1), b"lost").small())
    (reason,) = reasons(served)
    assert reason.startswith("storage failure: the log could not be synced")


def test_entries_without_a_checkpoint(served: Daemon, disk: ShortDisk) -> None:
    served.person("ada")
    disk.fail("write", ".checkpoint.tmp", errno.EIO, times=10)
    size = served.context.journal.size
    bob = served.person("bob")
    assert reasons(served) == []
    served.clock.now += 61
    left = served.context.journal.size - size
    assert reasons(served) == [
        f"the last checkpoint lacks {left} entries, the first of which is 1 min 1 s old"
    ]
    disk.heal()
    bob.put(file_id(1), b"signed for")
    assert reasons(served) == []


def test_room_below_the_bounds(served: Daemon, disk: ShortDisk) -> None:
    disk.room, disk.rows = (1 << 30) - 1, 99
    assert reasons(served) == [
        "1024.0 MiB free on the disk of logs/, less than 1.0 GiB",
        "room for 99 files on the disk of logs/, fewer than 100",
    ]
    disk.room, disk.rows = 1 << 30, 100
    assert reasons(served) == []


def test_a_failed_job(served: Daemon) -> None:
    served.context.metrics.failed_jobs["retention"] = "the disk failed"
    answer = served.ask(served.operator(), Status(check=True))
    assert isinstance(answer, StatusAnswer)
    assert answer.reasons == ("retention: the disk failed",)


def test_a_damaged_account(tmp_path: Path) -> None:
    with daemon(tmp_path, config=ROOMY) as served:
        served.person("ada")
    path = served.context.store.users / "ada" / "account.json"
    path.write_bytes(path.read_bytes() + b" ")
    with daemon(tmp_path, served.clock, config=ROOMY) as again:
        assert reasons(again) == []  # nobody has read it
        with pytest.raises(DamagedError):
            again.context.users.account("ada")
        assert reasons(again) == ["the account of ada is damaged: `sfsd fsck` shows more"]


def test_a_stopped_committer_cannot_write(served: Daemon) -> None:
    served.context.committer.close()
    assert reasons(served) == ["cannot write: the daemon is stopping"]
