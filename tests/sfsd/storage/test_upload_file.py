from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import merkle
from protocol.codec.merkle import PIECE_SIZE
from sfsd.errors import (
    IncompleteError,
    StagingClosedError,
    StoreFailedError,
    StoreFullError,
    StoreRefusedError,
)
from sfsd.fs.descriptors import SyncGuard
from sfsd.fs.files import Files
from sfsd.storage.change import digest_of
from sfsd.storage.upload_file import MAX_PIECES, MIN_FREE_BYTES, UploadFile
from tests.sfsd.simulated_disk import SimulatedDisk

ID = bytes(range(16))
BIG = bytes(range(256)) * (PIECE_SIZE // 256)


def begin(folder: Path, files: Files | None = None) -> UploadFile:
    files = files or Files()
    return UploadFile(files, SyncGuard(files), folder, ID)


def test_pieces_in_any_order_by_many_threads(tmp_path: Path) -> None:
    pieces = [bytes([n]) * PIECE_SIZE for n in range(20)] + [b"last"]
    staged = begin(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        order = [*range(20, -1, -2), *range(1, 20, 2)]
        list(pool.map(lambda index: staged.write(index, memoryview(pieces[index])), order))
    staged.seal()
    whole = b"".join(pieces)
    assert (tmp_path / f"{ID.hex()}.ct").read_bytes() == whole
    assert staged.size == staged.received == len(whole)
    assert staged.leaves == [merkle.leaf_hash(piece) for piece in pieces]
    assert staged.root == digest_of("x.ct", whole)
    staged.discard()
    assert list(tmp_path.iterdir()) == []


def test_missing_and_short_pieces(tmp_path: Path) -> None:
    staged = begin(tmp_path)
    with pytest.raises(IncompleteError):
        staged.seal()
    staged.write(1, b"end")
    assert staged.received == 0
    with pytest.raises(IncompleteError):
        _ = staged.size
    staged.write(0, b"short")
    assert staged.received == PIECE_SIZE + 3
    for ask in (lambda: staged.size, lambda: staged.leaves, lambda: staged.root, staged.seal):
        with pytest.raises(IncompleteError):
            ask()
    staged.write(0, BIG)  # sent again, complete
    staged.seal()
    assert staged.size == PIECE_SIZE + 3
    staged.discard()


@pytest.mark.parametrize(("index", "size"), [(0, 0), (0, PIECE_SIZE + 1), (-1, 1), (MAX_PIECES, 1)])
def test_an_invalid_piece(tmp_path: Path, index: int, size: int) -> None:
    staged = begin(tmp_path)
    with pytest.raises(ValueError, match="piece"):
        staged.write(index, bytes(size))
    staged.discard()


def test_nothing_changes_once_sealed(tmp_path: Path) -> None:
    staged = begin(tmp_path)
    staged.write(0, b"abc")
    staged.seal()
    with pytest.raises(StagingClosedError):
        staged.write(0, b"xyz")
    staged.seal()
    assert (tmp_path / f"{ID.hex()}.ct").read_bytes() == b"abc"
    staged.discard()


class Slow(Files):
    """Real files whose writes wait until they are released."""

    def __init__(self) -> None:
        self.began, self.go, self.synced = (threading.Event() for _ in range(3))

    def sync(self, handle: int) -> None:
        self.synced.set()
        super().sync(handle)

    def write_at(self, handle: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        self.began.set()
        assert self.go.wait(10)
        return super().write_at(handle, data, offset)


def test_sealing_waits_for_a_write_that_is_under_way(tmp_path: Path) -> None:
    files = Slow()
    staged = begin(tmp_path, files)
    files.go.set()
    staged.write(0, b"abc")
    files.go.clear()
    files.began.clear()
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(staged.write, 0, b"xyz")
        assert files.began.wait(10)
        sealing = pool.submit(staged.seal)
        assert not files.synced.wait(0.2)
        files.go.set()
        writing.result(10)
        sealing.result(10)
    assert staged.root == digest_of("x.ct", b"xyz")
    staged.discard()


def test_discard_closes_after_running_writes(tmp_path: Path) -> None:
    files = Slow()
    staged = begin(tmp_path, files)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(staged.write, 0, b"xyz")
        assert files.began.wait(10)
        staged.discard()
        other = files.open_new(tmp_path / "other")  # would get the number of a closed descriptor
        files.go.set()
        writing.result(10)
    files.close(other)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert (tmp_path / "other").read_bytes() == b""
    with pytest.raises(StagingClosedError):
        staged.write(1, b"x")
    staged.discard()


def test_an_upload_that_the_log_may_name_is_not_removed(tmp_path: Path) -> None:
    staged = begin(tmp_path)
    staged.write(0, b"abc")
    staged.mark_logged()
    staged.discard()
    assert (tmp_path / f"{ID.hex()}.ct").read_bytes() == b"abc"


def test_an_upload_id_is_16_bytes_and_used_once(tmp_path: Path) -> None:
    files = Files()
    with pytest.raises(ValueError, match="upload id"):
        UploadFile(files, SyncGuard(files), tmp_path, b"short")
    first = begin(tmp_path)
    with pytest.raises(StoreRefusedError):
        begin(tmp_path)
    first.discard()


@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, StoreFullError), (errno.EIO, StoreRefusedError)]
)
def test_a_failed_write_can_be_retried(tmp_path: Path, code: int, error: type[Exception]) -> None:
    disk = SimulatedDisk(tmp_path)
    staged = begin(tmp_path, disk)
    disk.fail_at = {len(disk.calls): code}
    with pytest.raises(error) as refused:
        staged.write(0, b"abc")
    assert str(tmp_path) not in str(refused.value)
    assert staged.received == 0
    staged.write(0, b"abc")
    assert staged.received == 3
    staged.discard()


def test_a_short_write_continues(tmp_path: Path) -> None:
    disk = SimulatedDisk(tmp_path)
    staged = begin(tmp_path, disk)
    disk.fail_at = {len(disk.calls): None}
    staged.write(0, b"abcdefg")
    assert staged.path.read_bytes() == b"abcdefg"
    staged.discard()


def test_a_failed_sync_is_permanent(tmp_path: Path) -> None:
    disk = SimulatedDisk(tmp_path)
    syncs = SyncGuard(disk)
    staged = UploadFile(disk, syncs, tmp_path, ID)
    staged.write(0, b"abc")
    disk.fail_at = {len(disk.calls): errno.EIO}
    for _ in range(2):  # the second sync would falsely succeed
        with pytest.raises(StoreFailedError):
            staged.seal()
    assert syncs.failed is not None
    staged.discard()


class Nearly(Files):
    def free(self, folder: Path) -> int:
        return 1 << 20


def test_uploads_leave_space_for_committed_data(tmp_path: Path) -> None:
    staged = begin(tmp_path, Nearly())
    with pytest.raises(StoreFullError):
        staged.write(0, b"abc")
    staged.discard()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_received_counts_bytes_before_the_first_gap(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    staged = begin(tmp_path_factory.mktemp("staging"))
    for count, index in enumerate(order, 1):
        staged.write(index, BIG)
        arrived = set(order[:count])
        gap = next(n for n in range(6) if n not in arrived)
        assert staged.received == gap * PIECE_SIZE
    staged.discard()


class Reserving(Files):
    """Real files that record reserved ranges."""

    def __init__(self, free: int) -> None:
        self.reserved: list[tuple[int, int]] = []
        self._free = free

    def free(self, folder: Path) -> int:
        return self._free

    def reserve(self, handle: int, offset: int, length: int) -> None:
        super().reserve(handle, offset, length)
        self.reserved.append((offset, length))


@pytest.mark.parametrize(
    ("announced", "free", "expected"),
    [
        (17 * PIECE_SIZE + 3, 1 << 40, [(0, 16 * PIECE_SIZE), (16 * PIECE_SIZE, PIECE_SIZE + 3)]),
        (0, 1 << 40, []),
        (17 * PIECE_SIZE + 3, MIN_FREE_BYTES + 2 * PIECE_SIZE, [(16 * PIECE_SIZE, PIECE_SIZE + 3)]),
    ],
)
def test_blocks_are_reserved_in_steps_and_never_below_the_minimum(
    tmp_path: Path, announced: int, free: int, expected: list[tuple[int, int]]
) -> None:
    files = Reserving(free)
    staged = UploadFile(files, SyncGuard(files), tmp_path, ID, announced)
    pieces = [BIG] * 17 + [b"end"]
    for index, piece in enumerate(pieces):
        staged.write(index, piece)
    assert files.reserved == expected
    assert staged.path.read_bytes() == b"".join(pieces)
    staged.discard()
