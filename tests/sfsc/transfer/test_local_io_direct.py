"""Past the page cache: byte for byte what was written, in whatever portions, on any file system."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.buffers import largefiles
from protocol.buffers.pool import PAGE
from protocol.codec.encoding import Buffer
from sfsc.transfer import local_io
from sfsc.transfer.local_io import PORTION, DirectWriter

_BINARY: int = getattr(os, "O_BINARY", 0)


class Disk:
    """A file with its two handles, and what was written by which: (direct, offset, length)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plain = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | _BINARY, 0o600)
        beside = largefiles.open_direct(self.plain, writing=True)
        # Also where the platform cannot: a second handle does for what is looked at here.
        self.past = os.open(path, os.O_RDWR | _BINARY) if beside is None else beside
        self.file = DirectWriter(self.plain, self.past)
        self.writes: list[tuple[bool, int, int]] = []
        self.failing: int | None = None
        self.most = 1 << 30
        self.gate = threading.Event()
        self.gate.set()
        self._write = os.write

    def write(self, handle: int, data: memoryview) -> int:
        if handle not in (self.plain, self.past):
            return self._write(handle, data)
        if handle == self.past:
            self.gate.wait(10)
            if self.failing is not None:
                raise OSError(self.failing, os.strerror(self.failing))
        offset = os.lseek(handle, 0, os.SEEK_CUR)
        count = self._write(handle, data[: self.most])
        self.writes.append((handle == self.past, offset, count))
        return count

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()

    def put(self, content: Buffer, step: int = PORTION) -> None:
        for start in range(0, len(content), step):
            view = memoryview(content)[start : start + step]
            while view:
                view = view[self.file.write(view) :]

    def close(self) -> None:
        self.file.close()
        os.close(self.plain)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk(tmp_path / "x")
    monkeypatch.setattr(os, "write", made.write)
    yield made
    monkeypatch.undo()
    made.close()


@pytest.mark.parametrize("size", [0, 1, PAGE, PORTION, 9 * PORTION, 9 * PORTION + 5])
@pytest.mark.parametrize("step", [PORTION - 16, 3 * PORTION, 100_000])
def test_whole_pages_go_past_the_cache_and_the_rest_through_it(
    disk: Disk, size: int, step: int
) -> None:
    content = os.urandom(size)
    disk.put(content, step)
    disk.file.flush()
    assert disk.content == content
    past = [(offset, length) for by, offset, length in disk.writes if by]
    assert sum(length for _, length in past) == size - size % PAGE
    assert not any(offset % PAGE or length % PAGE for offset, length in past)
    rest = [(size - size % PAGE, size % PAGE)] if size % PAGE else []
    assert [(offset, length) for by, offset, length in disk.writes if not by] == rest


@given(st.lists(st.tuples(st.integers(1, PORTION), st.booleans()), max_size=12), st.booleans())
def test_any_portions_from_rooms_and_from_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, portions: list[tuple[int, bool]], flushing: bool
) -> None:
    disk = Disk(tmp_path_factory.mktemp("disk") / "x")
    expected = b""
    for size, from_room in portions:
        data = os.urandom(size)
        expected += data
        if from_room:
            room = disk.file.room(size)
            room[:] = data
            assert disk.file.write(room) == size
        else:
            disk.put(data)
        if flushing:
            disk.file.flush()
            assert disk.content == expected
    disk.file.flush()
    assert disk.content == expected
    disk.close()


def test_what_lies_in_its_room_is_not_copied_and_a_part_of_it_is(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = PORTION - 16
    rooms = [disk.file.room(size) for _ in range(3)]  # ahead of what is written
    for number, room in enumerate(rooms):
        room[:] = bytes([number]) * size
    lent = list[memoryview]()
    acquire = local_io._memory.acquire
    monkeypatch.setattr(local_io, "_memory", Lent(acquire, lent))
    for room in rooms[:2]:
        assert disk.file.write(room) == size
    assert not lent
    disk.put(rooms[2][:10])
    disk.put(rooms[2][10:])
    assert len(lent) == 2
    disk.file.flush()
    assert disk.content == b"".join(bytes([number]) * size for number in range(3))


class Lent:
    """Buffer pool that notes the buffers acquired from it."""

    def __init__(self, acquire: object, noted: list[memoryview]) -> None:
        self._acquire = acquire
        self._noted = noted

    def acquire(self) -> memoryview:
        assert callable(self._acquire)
        memory: memoryview = self._acquire()
        self._noted.append(memory)
        return memory


def test_a_file_system_that_takes_no_such_writes_after_all(disk: Disk) -> None:
    content = os.urandom(5 * PORTION + 77)
    disk.put(content[: 2 * PORTION + 9])
    disk.file.flush()
    disk.failing = errno.EINVAL
    disk.put(content[2 * PORTION + 9 :])
    disk.file.flush()
    assert disk.content == content
    assert [by for by, _, _ in disk.writes] == [True, True, False, False, False, False, False]


def test_a_write_that_takes_less_is_gone_on_with(disk: Disk) -> None:
    disk.most = 3 * PAGE
    content = os.urandom(PORTION + 1)
    disk.put(content)
    disk.file.flush()
    assert disk.content == content


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failure_is_raised_and_nothing_is_tried_through_the_cache(disk: Disk, code: int) -> None:
    disk.failing = code
    disk.put(os.urandom(PORTION))
    with pytest.raises(OSError) as raised:
        disk.file.flush()
    assert raised.value.errno == code
    assert not disk.writes


def test_a_disk_that_is_behind_is_waited_for(disk: Disk) -> None:
    disk.gate.clear()
    taken = list[int]()

    def put() -> None:
        for _ in range(9):
            taken.append(disk.file.write(bytes(PORTION)))

    thread = threading.Thread(target=put)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    assert len(taken) == local_io._PENDING
    disk.gate.set()
    thread.join()
    disk.file.flush()
    assert disk.content == bytes(9 * PORTION)


def test_closing_drops_what_was_not_written_and_twice_is_fine(disk: Disk) -> None:
    disk.gate.clear()
    disk.put(bytes(4 * PORTION))
    threading.Timer(0.1, disk.gate.set).start()
    disk.file.close()
    disk.file.close()
    assert len(disk.writes) <= 1
    with pytest.raises(OSError):
        os.fstat(disk.past)
