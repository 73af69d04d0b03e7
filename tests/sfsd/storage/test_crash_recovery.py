"""Recovery after a kill or a power failure at every call."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from protocol.log.auditlog import EntryDraft
from sfsd.errors import (
    JournalFailedError,
    RecoveryError,
    SfsdError,
    StoreFailedError,
    StoreRefusedError,
    UnreadableError,
)
from sfsd.fs.files import Files
from sfsd.storage.crash_recovery import RecoveryReport, recover
from sfsd.storage.store import PACK_SPARE_SIZE, PACK_SPARES, DirectoryStore
from tests.sfsd.faults import Crash
from tests.sfsd.journals import open_journal
from tests.sfsd.simulated_disk import SimulatedDisk
from tests.sfsd.store_model import (
    Asked,
    Copy,
    Drop,
    Put,
    State,
    Step,
    StoreModel,
    Upload,
    check_start,
    error_of,
    stored,
)
from tests.temporary import memory

FULL = os.environ.get("SFS_CRASH_POINTS") == "full"

A, B, C, D, E = (f"alice/files/{name}/{name}0" for name in ("0a", "0b", "0c", "0d", "0e"))
SETTLE = "settle"
SCRIPT: list[list[Asked] | str] = [
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
    [
        Step((Put("bob/account.json", b"before the set"),)),
        (
            Step((Upload(f"{D}.1.ct", b"of a set"), Put(f"{D}.1.json", b"d" * 700, stamped=True))),
            Step((Put("alice/account.json", b"4"),), {"alice/account.json": b"3"}),
            Step((Copy(f"{D}.2.ct", f"{A}.2.ct"), Drop(f"{B}.1.json"))),
        ),
        (  # its last change is stale: nothing of it remains
            Step((Put("bob/account.json", b"never"), Upload(f"{E}.1.ct", b"never"))),
            Step((Copy(f"{E}.2.ct", f"{A}.2.ct"),)),
            Step((Drop("alice/account.json"),), {"alice/account.json": b"3"}),
        ),
        Step((Put("alice/account.json", b"3"),), {"alice/account.json": b"4"}),
    ],
    [
        Step((Put(f"{A}.2.ct", b"small again"),), {"alice/account.json": b"3"}),
        Step((Upload(f"{C}.1.ct", b"anew"),)),
        Step((Put("bob/account.json", b"there"),)),
        Step((Drop("bob/account.json"),)),  # a kill may leave its temporary
    ],
    [Step((Copy("carol/files/0a/a0.1.ct", f"{A}.2.ct"),))],  # not yet settled in place
]


def play(root: Path, disk: SimulatedDisk) -> StoreModel:
    """Run the script until it ends or the disk does; what was begun is in the model either way."""
    model = StoreModel(root, disk)
    try:
        disk.mark("began")
        for act in SCRIPT:
            if isinstance(act, str):
                model.point.settle()
                continue
            with suppress(StoreRefusedError):  # an upload that could not be staged
                model.commit(act)
        disk.mark("ended")
        model.close()
    except Crash:
        disk.end()
    return model


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Path]:
    """Return a folder for many small trees."""
    with tempfile.TemporaryDirectory(dir=memory() or tmp_path) as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Run:
    """The changing calls of a complete run; those of the script are [began, ended)."""

    calls: list[str]
    began: int
    ended: int


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("whole")
    disk = SimulatedDisk(root)
    model = play(root, disk)
    assert model.acknowledged == len(model.states) - 1
    assert [size for size in range(len(model.states)) if size in model.inside], "no set"
    assert stored(root) == model.states[-1]
    return Run(disk.calls, disk.marks["began"], disk.marks["ended"])


def points(count: int, sample: int) -> list[int]:
    if FULL:
        return list(range(count))
    return sorted(Random(count).sample(range(count), min(sample, count)))


def judge(model: StoreModel, size: int, found: State) -> None:
    """Check after a start that every acknowledged change is complete, and no change is partial."""
    assert model.acknowledged <= size
    assert found == model.state_at(size)


def crash(root: Path, at: int) -> tuple[StoreModel, SimulatedDisk] | None:
    """The model that ended at call `at`, None if that was before it was there."""
    disk = SimulatedDisk(root)
    disk.crash_at = at
    try:
        return play(root, disk), disk
    except Crash:
        disk.end()
        return None


def test_a_kill_at_any_call(run: Run, ground: Path) -> None:
    for at in points(len(run.calls), 60):
        root = ground / str(at)
        root.mkdir()
        crashed = crash(root, at)
        size, found = check_start(root, SimulatedDisk(root))
        if crashed is None:
            assert (size, found) == (0, {})
        else:
            judge(crashed[0], size, found)


@pytest.mark.parametrize("luck", [0.0, 0.5, 0.9])
def test_a_power_failure_at_any_call(run: Run, ground: Path, luck: float) -> None:
    for at in points(len(run.calls), 40):
        root, after = ground / str(at), ground / f"{at}-after"
        root.mkdir()
        crashed = crash(root, at)
        if crashed is None:
            continue
        model, disk = crashed
        disk.lose_power(after, Random(at), luck=luck)
        size, found = check_start(after, SimulatedDisk(after))
        judge(model, size, found)


def test_a_crash_at_any_call_of_the_start_after_a_crash(run: Run, ground: Path) -> None:
    chance = Random(1)
    for at in points(run.ended, 12)[1:]:
        if FULL:
            gc.collect()  # closes the path tables of models that ended; their files are limited
        for again in range(0, 200, 1 if FULL else 7):
            root, lost, found = (ground / f"{at}-{again}-{part}" for part in "abc")
            root.mkdir()
            crashed = crash(root, at)
            if crashed is None:
                break
            crashed[1].lose_power(lost, chance)
            disk = SimulatedDisk(lost)
            disk.crash_at = again
            try:
                StoreModel(lost, disk).journal.close()
                break
            except Crash:
                disk.end()
            disk.lose_power(found, chance)
            judge(crashed[0], *check_start(found, SimulatedDisk(found)))


@pytest.mark.parametrize("fault", [errno.EIO, errno.ENOSPC, None], ids=["EIO", "ENOSPC", "short"])
def test_a_failure_at_any_call(run: Run, ground: Path, fault: int | None) -> None:
    for at in points(run.ended, 40):
        if fault is None and not run.calls[at].startswith("write"):
            continue
        root, after = ground / str(at), ground / f"{at}-after"
        root.mkdir()
        disk = SimulatedDisk(root)
        disk.fail_at = {at: fault}
        try:
            model = play(root, disk)
        except (OSError, SfsdError):
            assert at < run.began  # it did not start
            check_start(root, SimulatedDisk(root))
            continue
        failed = model.point.failed
        if at >= run.began:
            if run.calls[at].startswith("sync"):
                assert failed is not None
            elif fault != errno.EIO:
                assert failed is None
        if failed is not None:
            [refused] = model.commit([Step()])
            assert isinstance(error_of(refused), StoreFailedError | JournalFailedError)
        disk.end()
        disk.lose_power(after, Random(at))
        judge(model, *check_start(after, SimulatedDisk(after)))
        judge(model, *check_start(root, SimulatedDisk(root)))


def test_a_power_failure_after_the_start_after_a_kill(run: Run, ground: Path) -> None:
    for at in points(len(run.calls), 60):
        root, after = ground / str(at), ground / f"{at}-after"
        root.mkdir()
        crashed = crash(root, at)
        if crashed is None:
            continue
        model, disk = crashed
        disk.crash_at = None  # the machine stays up, with all unsynced data
        StoreModel(root, disk).journal.close()
        disk.lose_power(after, Random(at), luck=0)
        judge(model, *check_start(after, SimulatedDisk(after)))


class KilledAtSync(Files):
    """Real files. Once `armed`, the process ends before the log is synced."""

    armed = False

    def sync_data(self, handle: int) -> None:
        if self.armed:
            raise Crash
        super().sync_data(handle)


def test_a_log_that_is_cut_anywhere_has_a_set_completely_or_not_at_all(ground: Path) -> None:
    """A kill, a full disk or a power failure may leave any beginning of what was written."""
    root, files = ground / "root", KilledAtSync()
    model = StoreModel(root, files)
    model.commit([Step((Put("alice/account.json", b"0"),))])
    log = root / "logs" / "audit.jsonl"
    before, files.armed = log.stat().st_size, True
    group: list[Asked] = [
        Step((Put("alice/account.json", b"1"),)),
        tuple(Step((Put(f"{name}.1.json", name.encode(), stamped=True),)) for name in (A, B, C)),
        (Step((Upload(f"{D}.1.ct", b"d"),)), Step((Put(f"{D}.1.json", b"d"),))),
    ]
    with pytest.raises(Crash):
        model.commit(group)
    assert model.inside == {3, 4, 6}
    written = log.read_bytes()
    ends = [at for at in range(before, len(written) + 1) if written[at - 1 : at] == b"\n"]
    assert len(ends) == 1 + 6
    sizes = []
    for end in (at for whole in ends for at in (whole - 200, whole - 1, whole)):
        if end < before:
            continue
        after = ground / str(end)
        shutil.copytree(root, after)
        os.truncate(after / "logs" / "audit.jsonl", end)
        size, found = check_start(after)
        assert found == model.state_at(size)
        assert size == max(
            whole for whole in range(1, 8) if ends[whole - 1] <= end and whole not in model.inside
        )
        sizes.append(size)
    assert set(sizes) == {1, 2, 5, 7}


SIDE = f"{A}.1.json"


@pytest.fixture
def unsettled(tmp_path: Path) -> Path:
    """Return a root whose one change is logged and staged, but not installed."""
    model = StoreModel(tmp_path)
    model.commit([Step((Put(SIDE, b"side"), Upload(f"{A}.1.ct", b"cipher")))])
    for path in (SIDE, f"{A}.1.ct"):
        (tmp_path / "store" / "users" / path).unlink()
    model.journal.close()
    return tmp_path


def staged_file(root: Path) -> Files:
    """Leave a file in staging/, which so is not empty, and return the real file system."""
    (root / "staging").mkdir()
    (root / "staging" / f"{'1' * 32}.ct").write_bytes(b"of an upload")
    return Files()


def staged(root: Path, suffix: str) -> Path:
    [path] = (root / "staging").glob(f"*{suffix}")
    return path


def test_staged_files_are_installed_and_then_removed(unsettled: Path) -> None:
    (unsettled / "staging" / f"{'0' * 32}.ct").write_bytes(b"of an upload that never ended")
    (unsettled / "staging" / "notes.txt").write_bytes(b"not ours")
    model = StoreModel(unsettled)
    assert model.recovered == RecoveryReport(entries=1, installed=2, dropped=3)
    assert stored(unsettled) == {SIDE: b"side", f"{A}.1.ct": b"cipher"}
    assert {path.name for path in (unsettled / "staging").iterdir()} == {"applied", "notes.txt"}
    model.journal.close()


def test_without_its_mark_the_whole_store_is_compared_with_the_log(unsettled: Path) -> None:
    StoreModel(unsettled).journal.close()
    (unsettled / "staging" / "applied").unlink()
    model = StoreModel(unsettled)
    assert model.recovered == RecoveryReport(entries=1, installed=0, dropped=0)
    model.journal.close()
    (unsettled / "staging" / "applied").write_bytes(b"")
    (unsettled / "store" / "users" / SIDE).write_bytes(b"changed")
    model = StoreModel(unsettled)
    assert [file.path for file in model.recovered.lost] == [SIDE]
    model.journal.close()


def _remove(path: Path) -> None:
    path.unlink()


def _flip_last(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip_first(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[0] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("harm", [_remove, _flip_first, _flip_last, _cut])
@pytest.mark.parametrize(("suffix", "path"), [(".pack", SIDE), (".ct", f"{A}.1.ct")])
def test_a_start_reports_the_file_that_is_missing(
    unsettled: Path, harm: Callable[[Path], None], suffix: str, path: str
) -> None:
    harm(staged(unsettled, suffix))
    for _ in range(2):  # as long as nobody sets it aside, for example because of a crash
        model = StoreModel(unsettled)
        assert path in [file.path for file in model.recovered.lost]
        assert model.store.installer.applied == -1
        model.journal.close()
    assert path not in stored(unsettled)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("path", [SIDE, f"{A}.1.ct"])
def test_a_file_in_place_that_cannot_be_read_is_not_lost(unsettled: Path, path: str) -> None:
    StoreModel(unsettled).journal.close()
    (unsettled / "staging" / "applied").unlink()
    target = unsettled / "store" / "users" / path
    kept = target.read_bytes()
    target.unlink()
    target.symlink_to(target.name)  # opening it fails: too many levels of symbolic links
    model = StoreModel(unsettled)
    assert (model.recovered.lost, model.store.failed) == ((), None)
    assert model.store.installer.applied == 0
    with pytest.raises(UnreadableError):
        model.store.read(path)
    model.journal.close()
    target.unlink()
    target.write_bytes(kept)  # the operator has repaired the disk
    model = StoreModel(unsettled)
    assert model.store.digest_in_place(path) == model.journal.entry(0).paths[path]
    model.journal.close()


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_what_cannot_be_read_is_replaced_from_the_stage(unsettled: Path) -> None:
    target = unsettled / "store" / "users" / SIDE
    target.symlink_to(target.name)
    model = StoreModel(unsettled)
    assert model.recovered == RecoveryReport(entries=1, installed=2, dropped=2)
    assert stored(unsettled) == {SIDE: b"side", f"{A}.1.ct": b"cipher"}
    model.journal.close()


def test_an_empty_stage_is_reported_and_refuses_no_start(unsettled: Path) -> None:
    for suffix in (".pack", ".ct"):
        staged(unsettled, suffix).unlink()
    model = StoreModel(unsettled)
    assert {file.path for file in model.recovered.lost} == {SIDE, f"{A}.1.ct"}
    model.journal.close()


@pytest.mark.parametrize("text", [b"", b"1", b"-1\n", b"1\n\n", b"x\n", b"1" * 17 + b"\n"])
def test_without_a_valid_mark_everything_is_compared(unsettled: Path, text: bytes) -> None:
    (unsettled / "staging" / "applied").write_bytes(text)
    model = StoreModel(unsettled)
    assert model.recovered == RecoveryReport(entries=1, installed=2, dropped=2)
    assert (unsettled / "staging" / "applied").read_bytes() == b"0\n"
    model.journal.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_takes_nothing_does_not_prevent_a_start(unsettled: Path, code: int) -> None:
    disk = SimulatedDisk(unsettled)
    journal, store = open_journal(unsettled / "logs", disk), DirectoryStore(unsettled, disk)
    disk.fail_at = dict.fromkeys(range(len(disk.calls), 1000), code)
    assert recover(store, journal).lost == ()
    assert store.failed is not None
    assert store.syncs.awaits_room == (code == errno.ENOSPC)
    with pytest.raises(StoreFailedError):
        store.settle(force=True)
    disk.end()
    check_start(unsettled)
    assert stored(unsettled) == {SIDE: b"side", f"{A}.1.ct": b"cipher"}


class NoNewFiles(Files):
    """A file system whose last inode, descriptor or block is used up: `code` says which."""

    def __init__(self, code: int) -> None:
        self.code = code

    def open_new(self, path: Path | str) -> int:
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE])
def test_files_in_place_need_no_new_file_at_a_start(tmp_path: Path, code: int) -> None:
    """Nothing was settled before the kill, so there is no staging/applied to overwrite."""
    model = StoreModel(tmp_path)
    model.commit([Step((Put(SIDE, b"side"), Upload(f"{A}.1.ct", b"cipher")))])
    model.journal.close()
    assert not (tmp_path / "staging" / "applied").exists()
    files = NoNewFiles(code)
    journal, store = open_journal(tmp_path / "logs", files), DirectoryStore(tmp_path, files)
    assert recover(store, journal) == RecoveryReport(entries=1, installed=0, dropped=2)
    assert (store.failed, store.installer.applied) == (None, -1)
    journal.close()
    again = StoreModel(tmp_path)
    assert again.recovered == RecoveryReport(entries=1, installed=0, dropped=0)
    assert (again.store.installer.applied, again.store.failed) == (0, None)
    again.journal.close()


class FullUntilReleased(Files):
    """A disk that is full as long as logs/reserve exists."""

    def __init__(self, root: Path) -> None:
        self.held = root / "logs" / "reserve"

    def open_new(self, path: Path | str) -> int:
        if self.held.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().open_new(path)


def test_a_start_on_a_full_disk_uses_the_reserve(unsettled: Path) -> None:
    files = FullUntilReleased(unsettled)
    assert files.held.exists()
    model = StoreModel(unsettled, files)
    assert model.recovered == RecoveryReport(entries=1, installed=2, dropped=2)
    assert (model.store.failed, model.journal.full) == (None, True)
    assert stored(unsettled) == {SIDE: b"side", f"{A}.1.ct": b"cipher"}
    model.journal.close()


def test_a_pack_in_a_spare_file_is_one_again_after_a_start(tmp_path: Path) -> None:
    model = StoreModel(tmp_path)
    model.store.pack_spares.refill()
    model.commit([Step((Upload(f"{A}.1.ct", b"c" * PACK_SPARE_SIZE),))])
    pack = staged(tmp_path, ".pack")
    data = pack.read_bytes()
    pack.unlink()
    assert model.store.pack_spares.write(pack, data, whole=True)
    model.journal.close()
    folder = tmp_path / "staging" / ".spare"
    left = sorted(folder.iterdir())
    left.pop().unlink()  # two are missing
    again = StoreModel(tmp_path)
    assert again.recovered.dropped == 2
    # The pack only: the ciphertext is as long, but is the installed file under another name.
    assert len(list(folder.iterdir())) == len(left) + 1 == PACK_SPARES - 1
    installed = again.store.users / f"{A}.1.ct"
    assert not any(path.samefile(installed) for path in folder.iterdir())
    again.journal.close()


def test_a_log_shorter_than_the_applied_mark_is_refused(unsettled: Path) -> None:
    (unsettled / "staging" / "applied").write_bytes(b"1\n")
    with pytest.raises(RecoveryError) as refused:
        StoreModel(unsettled)
    assert refused.value.path == "logs/audit.jsonl"


@pytest.mark.parametrize(
    ("paths", "stage"),
    [
        ({"../outside": None}, None),
        ({"../outside": "00" * 32}, "0" * 32),
        ({SIDE: "00" * 32}, None),
        ({SIDE: "00" * 32}, "../../logs/audit"),
        ({SIDE: "00" * 32}, "0" * 32),
    ],
)
def test_an_entry_cannot_name_a_path_outside(
    tmp_path: Path, paths: dict[str, str | None], stage: str | None
) -> None:
    journal = open_journal(tmp_path / "logs")
    journal.append([EntryDraft("test", "alice", stage=stage, detail={"paths": paths})])
    journal.close()
    if SIDE in paths:
        model = StoreModel(tmp_path, staged_file(tmp_path))
        assert [file.path for file in model.recovered.lost] == [SIDE]
        model.journal.close()
        return
    with pytest.raises(RecoveryError) as refused:
        StoreModel(tmp_path)
    assert refused.value.path in paths
