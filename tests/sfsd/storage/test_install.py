"""How published files become durable in place."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from protocol.log.auditlog import EntryDraft
from sfsd.errors import StoreFailedError
from sfsd.fs.files import Files
from sfsd.storage.change import Change, Write
from sfsd.storage.install import SYNCFS_MIN_FILES
from sfsd.storage.store import DirectoryStore

if sys.platform != "linux":
    pytest.skip("only Linux has syncfs", allow_module_level=True)


class CountingFiles(Files):
    """Real files that count each kind of sync; `failing` makes `sync_all` fail."""

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


def store_with(root: Path, files: CountingFiles, count: int) -> DirectoryStore:
    store = DirectoryStore(root, files)
    effects = tuple(Write(f"alice/n{number}", b"x") for number in range(count))
    store.publish(store.prepare([[Change(EntryDraft("test", "alice"), {}, effects)]], 0))
    files.all = files.each = 0
    return store


def test_many_files_are_settled_by_one_sync(tmp_path: Path) -> None:
    files = CountingFiles(whole=True)
    store_with(tmp_path, files, SYNCFS_MIN_FILES).settle(force=True)
    assert files.all == 1
    assert files.each == 2  # staging/applied, and its folder


@pytest.mark.parametrize(
    ("count", "whole"), [(SYNCFS_MIN_FILES - 1, True), (SYNCFS_MIN_FILES, False)]
)
def test_few_files_and_untrusted_file_systems_are_synced_one_by_one(
    tmp_path: Path, count: int, whole: bool
) -> None:
    files = CountingFiles(whole)
    store_with(tmp_path, files, count).settle(force=True)
    assert files.all == (count >= SYNCFS_MIN_FILES)
    assert files.each >= count + 2


def test_a_failed_sync_keeps_the_stage(tmp_path: Path) -> None:
    store = store_with(tmp_path, CountingFiles(whole=True, failing=True), SYNCFS_MIN_FILES)
    with pytest.raises(StoreFailedError):
        store.settle(force=True)
    assert store.failed is not None
    assert not (tmp_path / "staging" / "applied").exists()
    assert list((tmp_path / "staging").glob("*.pack"))
