"""A store on a disk of its own, a full disk, and file systems without hard links."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from protocol.log.auditlog import EntryDraft
from sfsd.errors import StoreFullError
from sfsd.fs.files import Files
from sfsd.log.journal import Journal
from sfsd.storage.change import Adopt, Change, Write
from sfsd.storage.committer import GroupCommitter, Made, Pending
from sfsd.storage.crash_recovery import recover
from sfsd.storage.store import DirectoryStore
from tests.sfsd import journals
from tests.sfsd.store_model import stored

PLENTY = 1 << 40


class Disks(Files):
    """A file system without links if `links` is unset, whose store is on another disk if `split`
    is set. `room` and `files_left` are what is free on the disk of the store."""

    def __init__(self, users: Path, *, split: bool = False, links: bool = True) -> None:
        self.users = users
        self.split = split
        self.links = links
        self.room = self.room_in_staging = PLENTY
        self.files_left: int | None = None
        self.copied = 0
        self.code = 0

    def open_new(self, path: Path | str) -> int:
        if self.code:
            raise OSError(self.code, os.strerror(self.code))
        return super().open_new(path)

    def _is_store(self, path: Path) -> bool:
        return self.users in (path, *path.parents)

    def same_disk(self, one: Path, other: Path) -> bool:
        return not self.split or self._is_store(one) == self._is_store(other)

    def free(self, folder: Path) -> int:
        return self.room if self._is_store(folder) else self.room_in_staging

    def free_files(self, folder: Path) -> int | None:
        return self.files_left if self._is_store(folder) else None

    def link(self, source: Path, target: Path) -> None:
        if not self.links:
            raise OSError(errno.EPERM, "no links here")
        if not self.same_disk(source, target):
            raise OSError(errno.EXDEV, "another disk")
        super().link(source, target)

    def replace(self, source: Path | str, target: Path | str) -> None:
        if not self.same_disk(Path(source), Path(target)):
            raise OSError(errno.EXDEV, "another disk")
        super().replace(source, target)

    def _copy_new(self, source: Path, target: Path) -> None:
        self.copied += 1
        super()._copy_new(source, target)


class Root:
    """A root on such disks, whose changes are made on the calling thread."""

    def __init__(self, path: Path, files: Disks) -> None:
        self.journal: Journal = journals.open_journal(path / "logs", files)
        self.store = DirectoryStore(path, files)
        self.lost = recover(self.store, self.journal).lost
        self.point = GroupCommitter(self.store, self.journal)

    def upload(self, data: bytes) -> Adopt:
        staged = self.store.create_upload_file(os.urandom(16), len(data))
        staged.write(0, data)
        return Adopt("ada/x.ct", staged)

    def commit(self, *effects: Adopt | Write) -> Made:
        pending = Pending((Change(EntryDraft("test", "ada"), {}, effects),))
        self.point.commit([pending])
        return outcome(pending)


def outcome(pending: Pending) -> Made:
    [made] = pending.future.result(0)
    return made


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return tmp_path / "store" / "users"


@pytest.mark.parametrize(("split", "links"), [(True, True), (False, False), (True, False)])
@pytest.mark.parametrize("installed", [False, True])
def test_a_logged_ciphertext_is_never_copied(
    tmp_path: Path, users: Path, *, split: bool, links: bool, installed: bool
) -> None:
    files = Disks(users, split=split, links=links)
    root = Root(tmp_path, files)
    adopt = root.upload(b"cipher")
    assert adopt.staged.path.parent == (users / ".staging" if split else tmp_path / "staging")
    assert root.commit(adopt, Write("ada/x.json", b"side")) == 0
    if not installed and links:
        (users / "ada" / "x.ct").unlink()  # as if the power had failed; the stage still has it
    root.journal.close()
    again = Root(tmp_path, files)
    assert again.lost == ()
    assert stored(tmp_path) == {"ada/x.ct": b"cipher", "ada/x.json": b"side"}
    assert files.copied == 0
    again.journal.close()


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("lacking", ["room", "room_in_staging", "files_left"])
def test_room_is_looked_for_on_the_disk_that_will_hold_the_bytes(
    tmp_path: Path, users: Path, lacking: str, *, split: bool
) -> None:
    files = Disks(users, split=split)
    root = Root(tmp_path, files)
    setattr(files, lacking, 1)
    assert isinstance(root.commit(Write("ada/x.json", b"side")), StoreFullError)
    assert (root.journal.size, root.point.failed) == (0, None)
    setattr(files, lacking, PLENTY)
    assert root.commit(Write("ada/x.json", b"side")) == 0
    root.journal.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_still_takes_changes_that_create_no_file(
    tmp_path: Path, users: Path, code: int
) -> None:
    files = Disks(users)
    root = Root(tmp_path, files)
    root.store.refill_spares()
    for name in ("x", "y"):
        root.commit(Write(f"ada/{name}.json", b"before"))
    root.point.settle()
    files.room = files.room_in_staging = 0
    files.code = code
    new = Pending((Change(EntryDraft("test", "ada"), {}, (Write("ada/new", b"n"),)),))
    made = [_replacement(root, name, b"after " * 20) for name in ("x", "y")]
    root.point.commit([made[0], new, made[1]])
    assert [outcome(one) for one in made] == [2, 3]
    assert isinstance(outcome(new), StoreFullError)
    root.point.settle()
    assert (root.point.failed, root.store.unsettled) == (None, 0)
    assert (tmp_path / "staging" / "applied").read_bytes() == b"3\n"
    for _ in range(5):  # the packs' spare files are used again
        last = _replacement(root, "x", b"again")
        root.point.commit([last])
        assert isinstance(outcome(last), int)
        root.point.settle()
    root.journal.close()
    files.code = 0
    again = Root(tmp_path, files)
    again.journal.close()
    held = {path: data for path, data in stored(tmp_path).items() if not path.startswith(".")}
    assert held == {"ada/x.json": b"again", "ada/y.json": b"after " * 20}


def _replacement(root: Root, name: str, data: bytes) -> Pending:
    path = f"ada/{name}.json"
    expect = {path: root.store.stored_digest(path)}
    return Pending((Change(EntryDraft("test", "ada"), expect, (Write(path, data),)),))


@pytest.mark.parametrize("split", [False, True])
def test_there_is_room_again_on_both_disks(tmp_path: Path, users: Path, *, split: bool) -> None:
    files = Disks(users, split=split)
    store = DirectoryStore(tmp_path, files)
    assert store.has_room()
    for lacking, amount in (("room", 1 << 20), ("room_in_staging", 1 << 20), ("files_left", 0)):
        setattr(files, lacking, amount)
        assert not store.has_room()
        setattr(files, lacking, PLENTY)
    assert store.has_room()


def test_an_upload_that_does_not_fit_is_refused_at_once(tmp_path: Path, users: Path) -> None:
    files = Disks(users, split=True)
    root = Root(tmp_path, files)
    files.room = 40 << 20
    with pytest.raises(StoreFullError):
        root.store.create_upload_file(bytes(16), 20 << 20)
    root.store.create_upload_file(bytes(16), 1 << 20).discard()
    root.journal.close()
