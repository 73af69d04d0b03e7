"""The limit of descriptors, and the budgets taken from it."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from sfsd.errors import StoreBusyError, StoreFailedError, StoreWaitsError
from sfsd.fs.descriptors import (
    DescriptorBudget,
    SyncGuard,
    descriptor_limit,
    raise_descriptor_limit,
)
from sfsd.net.listener import _within_descriptors
from sfsd.settings.config import ConnectionLimits
from tests.sfsd.faults import FaultyFiles

if sys.platform != "win32":
    import resource

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows states no limit")


@posix_only
@pytest.mark.parametrize(("stated", "most"), [(256, 256), (524_288, 524_288), (None, 1 << 20)])
def test_the_limit_follows_the_system(
    monkeypatch: pytest.MonkeyPatch, stated: int | None, most: int
) -> None:
    soft = resource.RLIM_INFINITY if stated is None else stated
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, soft))
    assert descriptor_limit() == most
    budget = DescriptorBudget()
    assert budget.acquire(most // 4)
    assert not budget.acquire(1)


@posix_only
@pytest.mark.parametrize("soft", [128, 1024, 12_000, 16_384, 24_576, 32_768, 65_536, 1 << 20])
def test_half_is_left_for_the_log_and_the_store(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    """However many connections are configured, and whatever users hold open."""
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, soft))
    connections = _within_descriptors(ConnectionLimits(connections=1_000_000)).connections
    budget = DescriptorBudget()
    assert budget.acquire(soft // 4)
    assert not budget.acquire(1)
    assert connections + soft // 4 <= soft // 2


def test_a_budget_gives_all_that_is_asked_for_or_nothing() -> None:
    budget = DescriptorBudget(5)
    assert budget.acquire(2)
    assert not budget.acquire(4)
    assert budget.acquire(3)
    assert not budget.acquire(1)
    budget.release(2)
    assert not budget.acquire(3)
    assert budget.acquire(2)


@posix_only
def test_the_soft_limit_is_raised_to_the_hard_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 524_288)]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limit_pair: limits.append(limit_pair))
    raise_descriptor_limit()
    raise_descriptor_limit()
    assert limits == [(1024, 524_288), (524_288, 524_288)]


@posix_only
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((256, 2**63 - 1), (10_240, 2**63 - 1)),
        ((256, 4096), (4096, 4096)),
        ((60_000, 2**63 - 1), None),
    ],
)
def test_macos_gets_a_finite_limit(
    monkeypatch: pytest.MonkeyPatch, before: tuple[int, int], after: tuple[int, int] | None
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(resource, "getrlimit", lambda _which: before)
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limit_pair: asked.append(limit_pair))
    raise_descriptor_limit()
    assert asked == ([] if after is None else [after])


@posix_only
@pytest.mark.parametrize("error", [ValueError("not allowed"), PermissionError(1, "no")])
def test_a_limit_that_cannot_be_raised_stays(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, 524_288))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_descriptor_limit()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_a_folder_that_cannot_be_opened_for_lack_of_descriptors_is_no_failed_sync(
    tmp_path: Path, code: int
) -> None:
    files = FaultyFiles()
    syncs = SyncGuard(files)
    files.fail("sync_folder", tmp_path.name, code)
    with pytest.raises(StoreBusyError) as raised:
        syncs.folder(tmp_path)
    assert raised.value.code == "busy"
    assert syncs.failed is None
    syncs.folder(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EIO])
def test_a_failed_sync_of_a_file_is_final(tmp_path: Path, code: int) -> None:
    files = FaultyFiles()
    syncs = SyncGuard(files)
    handle = files.open_new(tmp_path / "file")
    files.fail("sync", "file", code)
    for _ in range(2):
        with pytest.raises(StoreFailedError):
            syncs.file(handle)
    files.close(handle)


def test_a_lack_of_room_does_not_hide_a_failed_sync(tmp_path: Path) -> None:
    syncs = SyncGuard(FaultyFiles())
    syncs.record("no room", awaits_room=True)
    with pytest.raises(StoreWaitsError):
        syncs.check()
    syncs.record("a sync failed")
    syncs.record("no room", awaits_room=True)
    assert (syncs.failed, syncs.awaits_room) == ("a sync failed", False)
    with pytest.raises(StoreFailedError) as caught:
        syncs.folder(tmp_path)
    assert not isinstance(caught.value, StoreWaitsError)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_a_folder_is_no_failure(tmp_path: Path, code: int) -> None:
    files = FaultyFiles()
    syncs = SyncGuard(files)
    files.fail("sync", "folder", code)
    syncs.folder(tmp_path)
    files.fail("sync", "folder", errno.EIO)
    with pytest.raises(StoreFailedError):
        syncs.folder(tmp_path)
