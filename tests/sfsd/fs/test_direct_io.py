"""Direct and cached I/O give the same bytes, whatever the file system supports."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.buffers.largefiles import LARGE
from protocol.buffers.pool import PAGE, BufferPool
from protocol.codec.merkle import PIECE_SIZE
from protocol.log.auditlog import EntryDraft
from sfsd.errors import StagingClosedError, StoreFullError, StoreRefusedError, UnreadableError
from sfsd.fs.descriptors import SyncGuard
from sfsd.fs.direct_io import MIN_READ, DirectFile, RecentlyOpened
from sfsd.fs.files import Files
from sfsd.storage.change import Adopt, Change, digest_of
from sfsd.storage.store import Blob, DirectoryStore
from sfsd.storage.upload_file import UploadFile
from tests import temporary

ID = bytes(range(16))
SIZE = LARGE + 2 * PIECE_SIZE + 5
_lender = BufferPool(PIECE_SIZE, keep=4)


def piece(index: int, length: int = PIECE_SIZE) -> memoryview:
    """Return page-aligned bytes, as a frame delivers them."""
    view = _lender.acquire()[:length]
    view[:] = (index.to_bytes(4, "big") * (length // 4 + 1))[:length]
    return view


def expected(size: int = SIZE) -> bytes:
    full, rest = divmod(size, PIECE_SIZE)
    pieces = [bytes(piece(index)) for index in range(full)]
    return b"".join([*pieces, bytes(piece(full, rest))])


@pytest.fixture
def tmp_path(disk_folder: Path) -> Path:
    """Return a folder on the disk: direct I/O to memory has no rules to keep."""
    return disk_folder


class Way(Files):
    """Real files that record direct handles, and what each kind of handle wrote and read. `cannot`
    names an unsupported call: "open" has no direct handle, "write" and "read" fail with EINVAL."""

    def __init__(self, cannot: str = "") -> None:
        self.cannot = cannot
        self.direct: set[int] = set()
        self.past: list[str] = []
        self.through: list[str] = []
        self.opened: set[int] = set()
        self.failing: int | None = None
        self.writers = self.most_writers = 0
        self._counting = threading.Lock()

    def open_new(self, path: Path | str) -> int:
        handle = super().open_new(path)
        self.opened.add(handle)
        return handle

    def open_direct(self, handle: int, *, writing: bool) -> int | None:
        if self.cannot == "open":
            return None
        # Also on platforms without direct I/O: a second ordinary handle is enough for these tests.
        same = super().open_direct(handle, writing=writing)
        direct = os.dup(handle) if same is None else same
        self.direct.add(direct)
        self.opened.add(direct)
        return direct

    def close(self, handle: int) -> None:
        self.opened.discard(handle)
        self.direct.discard(handle)
        super().close(handle)

    def write_at(self, handle: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        with self._counting:
            self.writers += 1
            self.most_writers = max(self.most_writers, self.writers)
        try:
            self._went(handle, "write")
            return super().write_at(handle, data, offset)
        finally:
            with self._counting:
                self.writers -= 1

    def read_at(self, handle: int, length: int, offset: int) -> bytes:
        self._went(handle, "read")
        return super().read_at(handle, length, offset)

    def read_into(self, handle: int, memory: memoryview, offset: int) -> int:
        self._went(handle, "read")
        return super().read_into(handle, memory, offset)

    def _went(self, handle: int, call: str) -> None:
        if handle not in self.direct:
            self.through.append(call)
            return
        if self.cannot == call:
            raise OSError(errno.EINVAL, "not so")
        if self.failing is not None:
            raise OSError(self.failing, os.strerror(self.failing))
        self.past.append(call)


def begin(folder: Path, files: Files, size: int = SIZE) -> UploadFile:
    return UploadFile(files, SyncGuard(files), folder, ID, size)


def fill(staged: UploadFile, size: int = SIZE) -> None:
    full, rest = divmod(size, PIECE_SIZE)
    for index in range(full):
        staged.write(index, piece(index))
    staged.write(full, piece(full, rest))


@pytest.mark.parametrize(
    ("cannot", "past", "through"), [("", 18, 1), ("open", 0, 19), ("write", 0, 19)]
)
def test_a_large_upload_is_the_same_either_way(
    tmp_path: Path, cannot: str, past: int, through: int
) -> None:
    files = Way(cannot)
    staged = begin(tmp_path, files)
    fill(staged)
    staged.seal()
    # The last piece is not a number of whole pages.
    assert (files.past, files.through) == (["write"] * past, ["write"] * through)
    assert staged.path.read_bytes() == expected()
    assert (staged.size, staged.root) == (SIZE, digest_of("x.ct", expected()))
    staged.discard()
    assert not files.opened


def test_a_small_upload_and_one_of_unknown_size_go_through_the_cache(tmp_path: Path) -> None:
    for size in (LARGE - 1, 0):
        files = Way()
        staged = begin(tmp_path, files, size)
        staged.write(0, piece(0))
        assert (files.past, files.through) == ([], ["write"])
        staged.discard()
        assert not files.opened


def test_memory_that_is_not_page_aligned_is_written_through_the_cache(tmp_path: Path) -> None:
    staged = begin(tmp_path, Files())
    memory = memoryview(bytearray(PIECE_SIZE + 1))
    memory[:] = b"\x05" * len(memory)
    staged.write(0, memory[1:])
    staged.write(1, piece(1))
    assert staged.path.read_bytes() == b"\x05" * PIECE_SIZE + bytes(piece(1))
    staged.discard()


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=10))
def test_repeated_pieces_replace_earlier_ones_on_either_way(order: list[tuple[int, bool]]) -> None:
    """A short piece goes through the cache, a whole one over it is direct, and then the reverse."""
    with temporary.disk_folder() as folder:
        staged = begin(folder, Files())
        model = bytearray()
        for turn, (index, whole) in enumerate(order, 1):
            data = piece(turn, PIECE_SIZE if whole else 5000)
            staged.write(index, data)
            at = index * PIECE_SIZE
            model.extend(bytes(max(0, at + len(data) - len(model))))
            model[at : at + len(data)] = data
            assert staged.path.read_bytes() == model
        staged.discard()


@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, StoreFullError), (errno.EIO, StoreRefusedError)]
)
def test_a_failed_direct_write_is_reported_and_can_be_retried(
    tmp_path: Path, code: int, error: type[Exception]
) -> None:
    files = Way()
    staged = begin(tmp_path, files)
    files.failing = code
    with pytest.raises(error):
        staged.write(0, piece(0))
    assert staged.received == 0
    assert not files.through  # a full or broken disk fails both ways
    files.failing = None
    staged.write(0, piece(0))
    assert staged.received == PIECE_SIZE
    staged.discard()


def test_an_upload_without_its_direct_handle_leaves_nothing(tmp_path: Path) -> None:
    class Exhausted(Way):
        def open_direct(self, handle: int, *, writing: bool) -> int | None:
            raise OSError(errno.EMFILE, "too many")

    files = Exhausted()
    with pytest.raises(StoreRefusedError):
        begin(tmp_path, files)
    assert not files.opened
    assert not list(tmp_path.iterdir())


def test_one_piece_of_an_upload_is_written_at_a_time(tmp_path: Path) -> None:
    files = Way()
    staged = begin(tmp_path, files)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda index: staged.write(index, piece(index)), range(18)))
    staged.write(18, piece(18, 5))
    assert files.most_writers == 1
    assert staged.path.read_bytes() == expected()
    staged.discard()


def blob(folder: Path, files: Way, content: bytes) -> Blob:
    path = folder / "blob"
    path.write_bytes(content)
    handle = files.open_read(path)
    return Blob(files, "a", handle, files.size(handle), DirectFile(files, handle, writing=False))


_CONTENT = os.urandom(3 * PIECE_SIZE + 4321)


@given(
    st.integers(0, len(_CONTENT) + PAGE), st.one_of(st.integers(0, PIECE_SIZE), st.just(PIECE_SIZE))
)
def test_any_range_is_read_as_through_the_cache(offset: int, length: int) -> None:
    files = Way()
    with temporary.disk_folder() as folder:
        opened = blob(folder, files, _CONTENT)
        assert opened.read_range(offset, length) == _CONTENT[offset : offset + length]
        assert files.past == (["read"] if length >= MIN_READ else [])
        opened.close()


def test_a_returned_buffer_survives_later_reads(tmp_path: Path) -> None:
    opened = blob(tmp_path, Way(), _CONTENT)
    parts = [opened.read_range(at, PIECE_SIZE) for at in range(0, len(_CONTENT), PIECE_SIZE)]
    assert b"".join(parts) == _CONTENT
    assert all(memoryview(part).readonly for part in parts)
    opened.close()


@pytest.mark.parametrize("cannot", ["open", "read"])
def test_short_reads_go_through_the_cache(tmp_path: Path, cannot: str) -> None:
    files = Way(cannot)
    opened = blob(tmp_path, files, _CONTENT)
    for _ in range(2):
        assert opened.read_range(1, PIECE_SIZE) == _CONTENT[1 : PIECE_SIZE + 1]
    assert (files.past, files.through) == ([], ["read", "read"])
    opened.close()


def test_a_closed_or_failing_blob_raises(tmp_path: Path) -> None:
    files = Way()
    opened = blob(tmp_path, files, _CONTENT)
    files.failing = errno.EIO
    with pytest.raises(UnreadableError):
        opened.read_range(0, PIECE_SIZE)
    opened.close()
    assert not files.direct
    with pytest.raises(StagingClosedError):
        opened.read_range(0, PIECE_SIZE)


def test_a_large_file_goes_past_the_cache_once_and_then_through_it(tmp_path: Path) -> None:
    files = Way()
    store = DirectoryStore(tmp_path, files)
    staged = store.create_upload_file(ID, SIZE)
    fill(staged)
    staged.seal()
    path = "alice/x.ct"
    store.publish(
        store.prepare([[Change(EntryDraft("test", "alice"), {}, (Adopt(path, staged),))]], 0)
    )
    files.past.clear()
    for past in (1, 1, 1):  # only the first time
        opened = store.open_blob(path)
        assert opened.read_range(PIECE_SIZE, PIECE_SIZE) == bytes(piece(1))
        opened.close()
        assert len(files.past) == past
    assert not files.direct


def test_recently_opened_forgets_old_paths() -> None:
    recent = RecentlyOpened(2)
    assert [recent.seen_again(path) for path in ("a", "b", "a", "c", "b", "c")] == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]
