from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.log.auditlog import EntryDraft
from sfsd.errors import StoreFailedError
from sfsd.fs.files import Files
from sfsd.storage.change import Change, Write
from sfsd.storage.install import MANY
from sfsd.storage.store import DirectoryStore

if sys.platform != "linux":
    pytest.skip("syncfs is Linux's", allow_module_level=True)

from sfsd.fs import syncfs


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    handle = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield handle
    os.close(handle)


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Nothing is remembered of the kernel of another test."""
    syncfs._library.cache_clear()
    yield
    syncfs._library.cache_clear()


@pytest.mark.parametrize(("release", "told"), [("5.7.19", False), ("5.8.0", True), ("6.1", True)])
def test_a_kernel_that_does_not_tell_of_failures_is_not_asked(
    release: str, told: bool, monkeypatch: pytest.MonkeyPatch, forgetful: None
) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    assert (syncfs._library() is not None) is told


def test_a_file_system_that_is_not_known_is_not_asked(
    folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncfs, "_TRUSTED", frozenset[int]())
    assert syncfs.sync(folder) is False


def test_proc_is_not_trusted() -> None:
    handle = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert syncfs.sync(handle) is False
    finally:
        os.close(handle)


def test_a_failure_is_raised(folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = syncfs._library()
    assert found is not None
    monkeypatch.setattr(syncfs, "_type_of", lambda *_: syncfs._EXT)
    with pytest.raises(OSError) as raised:
        syncfs.sync(-1)
    assert raised.value.errno == errno.EBADF


class Watched(Files):
    """Real files; how often each kind of sync was asked for. `failing` makes the whole one fail."""

    def __init__(self, whole: bool, *, failing: bool = False) -> None:
        self.whole = whole
        self.failing = failing
        self.all = self.each = 0

    def sync_all(self, folder: int) -> bool:
        assert os.fstat(folder)
        self.all += 1
        if self.failing:
            raise OSError(errno.EIO, "lost")
        return self.whole

    def sync(self, handle: int) -> None:
        self.each += 1
        super().sync(handle)


def filled(root: Path, files: Watched, count: int) -> DirectoryStore:
    store = DirectoryStore(root, files)
    effects = tuple(Write(f"alice/n{number}", b"x") for number in range(count))
    store.publish(store.prepare([Change(EntryDraft("test", "alice"), {}, effects)], 0))
    files.all = files.each = 0
    return store


def test_many_files_are_settled_by_one_sync(tmp_path: Path) -> None:
    files = Watched(whole=True)
    filled(tmp_path, files, MANY).settle(force=True)
    assert files.all == 1
    assert files.each == 2  # staging/applied, and its folder


@pytest.mark.parametrize(("count", "whole"), [(MANY - 1, True), (MANY, False)])
def test_few_files_and_others_disks_are_synced_one_by_one(
    tmp_path: Path, count: int, whole: bool
) -> None:
    files = Watched(whole)
    filled(tmp_path, files, count).settle(force=True)
    assert files.all == (count >= MANY)
    assert files.each >= count + 2


def test_after_a_failed_sync_nothing_is_durable_and_the_stage_stays(tmp_path: Path) -> None:
    store = filled(tmp_path, Watched(whole=True, failing=True), MANY)
    with pytest.raises(StoreFailedError):
        store.settle(force=True)
    assert store.failed is not None
    assert not (tmp_path / "staging" / "applied").exists()
    assert list((tmp_path / "staging").glob("*.pack"))
