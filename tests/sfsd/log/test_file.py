from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.log.auditlog import MAX_LINE
from sfsd.errors import (
    JournalBusyError,
    JournalError,
    JournalFailedError,
    JournalFullError,
    JournalRefusedError,
)
from sfsd.fs.files import Files
from sfsd.log import file as log_file
from sfsd.log.file import DiskReserve, LogFile
from tests.sfsd.faults import FaultyFiles


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture
def log(tmp_path: Path, files: FaultyFiles) -> LogFile:
    log = LogFile(tmp_path / "log", files)
    log.append(b"first\n")
    files.calls.clear()
    return log


def test_an_append_is_one_write_and_one_sync(
    log: LogFile, files: FaultyFiles, tmp_path: Path
) -> None:
    log.append(b"second\nthird\n")
    assert files.calls == [("write", "log"), ("sync_data", "log")]
    assert (tmp_path / "log").read_bytes() == b"first\nsecond\nthird\n"
    assert log.end == 19


@pytest.mark.parametrize(
    ("code", "short", "error"),
    [
        (errno.EIO, None, JournalRefusedError),
        (errno.ENOSPC, None, JournalFullError),
        (errno.EDQUOT, None, JournalFullError),
        (0, 0, JournalFullError),
        (0, 3, JournalFullError),
    ],
)
def test_a_failed_write_is_undone(
    log: LogFile,
    files: FaultyFiles,
    tmp_path: Path,
    code: int,
    short: int | None,
    error: type[JournalError],
) -> None:
    files.fail("write", "log", code, short=short)
    with pytest.raises(JournalRefusedError) as caught:
        log.append(b"second\n")
    assert type(caught.value) is error
    assert files.calls == [("write", "log"), ("truncate", "log"), ("sync_data", "log")]
    assert (tmp_path / "log").read_bytes() == b"first\n"
    log.append(b"again\n")
    assert (tmp_path / "log").read_bytes() == b"first\nagain\n"


@pytest.mark.parametrize("call", ["truncate", "sync_data"])
def test_a_write_that_cannot_be_undone_is_final(
    log: LogFile, files: FaultyFiles, call: str
) -> None:
    files.fail("write", "log", short=3)
    files.fail(call, "log")
    with pytest.raises(JournalFailedError):
        log.append(b"second\n")


def test_a_failed_sync_is_final_and_not_undone(log: LogFile, files: FaultyFiles) -> None:
    files.fail("sync_data", "log", errno.ENOSPC)
    with pytest.raises(JournalFailedError):
        log.append(b"second\n")
    assert files.calls == [("write", "log"), ("sync_data", "log")]
    assert log.end == 6


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.ENFILE])
def test_a_lack_of_memory_before_the_write_is_busy(
    log: LogFile, files: FaultyFiles, tmp_path: Path, code: int
) -> None:
    files.fail("is_named", "log", code)
    with pytest.raises(JournalBusyError) as caught:
        log.append(b"second\n")
    assert caught.value.code == "busy"
    assert (tmp_path / "log").read_bytes() == b"first\n"
    log.append(b"again\n")
    assert (tmp_path / "log").read_bytes() == b"first\nagain\n"


class LittleMemory(Files):
    """Cannot examine a log that has more than `most` bytes, `times` times."""

    def __init__(self, most: int, times: int) -> None:
        self.most, self.times = most, times

    def is_named(self, handle: int, path: Path) -> bool:
        if self.size(handle) > self.most and self.times:
            self.times -= 1
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return super().is_named(handle, path)


def test_a_written_group_waits_for_memory_to_examine_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LogFile(tmp_path / "log", LittleMemory(0, 3))
    log.append(b"first\n")
    assert log.end == 6
    monkeypatch.setattr(log_file, "_EXAMINE_SECONDS", 0.05)
    log = LogFile(tmp_path / "log", LittleMemory(6, 1000))
    with pytest.raises(JournalFailedError):
        log.append(b"second\n")


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a", []),
        (b"a\nb", [b"a"]),
        (b"a\n\nb\n", [b"a", b"", b"b"]),
        (b"x" * MAX_LINE + b"\ny\n", [b"x" * MAX_LINE, b"y"]),
        (b"a\n" * 700_000, [b"a"] * 700_000),
    ],
)
def test_lines(tmp_path: Path, content: bytes, lines: list[bytes]) -> None:
    (tmp_path / "log").write_bytes(content)
    log = LogFile(tmp_path / "log", Files())
    assert list(log.lines(0, log.end)) == lines


def test_lines_of_a_range(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one\ntwo\nthree\n")
    log = LogFile(tmp_path / "log", Files())
    assert list(log.lines(4, 8)) == [b"two"]
    assert list(log.lines(4, 13)) == [b"two"]
    assert log.read(4, 7) == b"two"
    with pytest.raises(JournalError):
        log.read(8, 15)
    with pytest.raises(JournalError):
        list(log.lines(0, 15))


def test_an_endless_line_is_not_collected(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"a\n" + b"x" * 5_000_000 + b"\nb\n")
    log = LogFile(tmp_path / "log", Files())
    first, endless = log.lines(0, log.end)
    assert first == b"a"
    assert MAX_LINE < len(endless) < 2_000_000


def test_truncate_drops_the_rest_and_syncs(
    log: LogFile, files: FaultyFiles, tmp_path: Path
) -> None:
    log.append(b"torn")
    files.calls.clear()
    log.truncate(6)
    assert files.calls == [("truncate", "log"), ("sync", "log")]
    assert (tmp_path / "log").read_bytes() == b"first\n"
    files.calls.clear()
    log.truncate(6)  # lines of a killed process may not be on the disk yet
    assert files.calls == [("sync", "log")]


def holds(reserve: DiskReserve) -> bool:
    return reserve.held


def test_the_reserve_occupies_and_frees_space(tmp_path: Path) -> None:
    path = tmp_path / "reserve"
    reserve = DiskReserve(path, 5000, Files())
    assert not holds(reserve)
    reserve.refill()
    assert holds(reserve)
    assert path.stat().st_size == 5000
    assert path.stat().st_blocks * 512 >= 5000
    assert DiskReserve(path, 5000, Files()).held
    reserve.release()
    assert not holds(reserve)
    assert not path.exists()


def test_a_reserve_cut_by_a_crash_is_recreated(tmp_path: Path) -> None:
    (tmp_path / "reserve").write_bytes(bytes(10))
    reserve = DiskReserve(tmp_path / "reserve", 5000, Files())
    assert not holds(reserve)
    reserve.refill()
    assert (tmp_path / "reserve").stat().st_size == 5000


def test_a_reserve_without_space_is_retried(tmp_path: Path, files: FaultyFiles) -> None:
    reserve = DiskReserve(tmp_path / "reserve", 5000, files)
    files.fail("write", "reserve", errno.ENOSPC)
    reserve.refill()
    assert not holds(reserve)
    assert not (tmp_path / "reserve").exists()
    reserve.refill()
    assert holds(reserve)
    files.fail("remove", "reserve")
    reserve.release()
    assert holds(reserve)
    reserve.release()
    assert not holds(reserve)


def test_a_reserve_larger_than_the_disk_is_not_written(tmp_path: Path, files: FaultyFiles) -> None:
    reserve = DiskReserve(tmp_path / "reserve", 1 << 60, files)
    reserve.refill()
    assert not holds(reserve)
    assert ("write", "reserve") not in files.calls


def _truncate(path: Path) -> None:
    os.truncate(path, 2)


def _move(path: Path) -> None:
    path.rename(path.with_name("log.1"))


def _move_and_create(path: Path) -> None:
    _move(path)
    path.touch()


def _extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows does not move or remove an open file")
@pytest.mark.parametrize("harm", [_truncate, _move, _move_and_create, Path.unlink, _extend])
@pytest.mark.parametrize("during", [False, True])
def test_a_log_that_another_program_changed_takes_no_more_entries(
    log: LogFile,
    files: FaultyFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path], None],
    during: bool,
) -> None:
    path = tmp_path / "log"
    if during:
        monkeypatch.setattr(files, "sync_data", lambda _handle: harm(path))
    else:
        harm(path)
    with pytest.raises(JournalFailedError, match="restart"):
        log.append(b"second\n")
    assert log.end == len(b"first\n")
    assert during or ("write", "log") not in files.calls


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allocates behind the end")
def test_blocks_are_kept_behind_the_end_of_the_log(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", Files(), 1 << 20)
    held = (tmp_path / "log").stat().st_blocks * 512
    if not held:
        pytest.skip("this file system cannot allocate blocks in advance")
    for _ in range(20):
        log.append(b"x" * 100_000 + b"\n")
        status = (tmp_path / "log").stat()
        assert status.st_size == log.end
        assert status.st_blocks * 512 - log.end >= 15 * (1 << 20) // 16 - 200_000
    log.close()
