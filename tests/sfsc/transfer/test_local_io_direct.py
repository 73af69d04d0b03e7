"""`DirectWriter` writes the exact bytes, in chunks of any size, on any file system."""

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
from sfsc.transfer.local_io import MAX_CHUNK, DirectWriter
from tests import temporary

_BINARY: int = getattr(os, "O_BINARY", 0)


class Disk:
    """A file with its two descriptors; `writes` are (through the direct one, offset, length)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plain = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | _BINARY, 0o600)
        direct = largefiles.open_direct(self.plain, writing=True)
        # If the platform has no direct I/O, a second ordinary descriptor serves the same tests.
        self.direct = os.open(path, os.O_RDWR | _BINARY) if direct is None else direct
        self.file = DirectWriter(self.plain, self.direct)
        self.writes: list[tuple[bool, int, int]] = []
        self.failing: int | None = None
        self.most = 1 << 30
        self.gate = threading.Event()
        self.gate.set()
        self._write = os.write

    def write(self, descriptor: int, data: memoryview) -> int:
        if descriptor not in (self.plain, self.direct):
            return self._write(descriptor, data)
        if descriptor == self.direct:
            self.gate.wait(10)
            if self.failing is not None:
                raise OSError(self.failing, os.strerror(self.failing))
        offset = os.lseek(descriptor, 0, os.SEEK_CUR)
        count = self._write(descriptor, data[: self.most])
        self.writes.append((descriptor == self.direct, offset, count))
        return count

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()

    def put(self, content: Buffer, step: int = MAX_CHUNK) -> None:
        for start in range(0, len(content), step):
            view = memoryview(content)[start : start + step]
            while view:
                view = view[self.file.write(view) :]

    def close(self) -> None:
        self.file.close()
        os.close(self.plain)


@pytest.fixture
def tmp_path(disk_folder: Path) -> Path:
    """Return a folder on the disk: direct I/O to memory has no rules to keep."""
    return disk_folder


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk(tmp_path / "x")
    monkeypatch.setattr(os, "write", made.write)
    yield made
    monkeypatch.undo()
    made.close()


@pytest.mark.parametrize("size", [0, 1, PAGE, MAX_CHUNK, 9 * MAX_CHUNK, 9 * MAX_CHUNK + 5])
@pytest.mark.parametrize("step", [MAX_CHUNK - 16, 3 * MAX_CHUNK, 100_000])
def test_whole_pages_are_written_directly_and_the_rest_through_the_cache(
    disk: Disk, size: int, step: int
) -> None:
    content = os.urandom(size)
    disk.put(content, step)
    disk.file.flush()
    assert disk.content == content
    direct = [(offset, length) for by, offset, length in disk.writes if by]
    assert sum(length for _, length in direct) == size - size % PAGE
    assert not any(offset % PAGE or length % PAGE for offset, length in direct)
    rest = [(size - size % PAGE, size % PAGE)] if size % PAGE else []
    assert [(offset, length) for by, offset, length in disk.writes if not by] == rest


@given(st.lists(st.tuples(st.integers(1, MAX_CHUNK), st.booleans()), max_size=12), st.booleans())
def test_chunks_of_any_size_from_allocated_and_other_memory(
    chunks: list[tuple[int, bool]], flushing: bool
) -> None:
    with temporary.disk_folder() as folder:
        disk = Disk(folder / "x")
        expected = b""
        for size, allocated in chunks:
            data = os.urandom(size)
            expected += data
            if allocated:
                buffer = disk.file.allocate(size)
                buffer[:] = data
                assert disk.file.write(buffer) == size
            else:
                disk.put(data)
            if flushing:
                disk.file.flush()
                assert disk.content == expected
        disk.file.flush()
        assert disk.content == expected
        disk.close()


def test_an_allocated_buffer_is_written_without_a_copy_but_not_a_part_of_it(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = MAX_CHUNK - 16
    buffers = [disk.file.allocate(size) for _ in range(3)]  # ahead of what is written
    for number, buffer in enumerate(buffers):
        buffer[:] = bytes([number]) * size
    acquired = list[memoryview]()
    acquire = local_io._memory.acquire
    monkeypatch.setattr(local_io, "_memory", RecordingPool(acquire, acquired))
    for buffer in buffers[:2]:
        assert disk.file.write(buffer) == size
    assert not acquired
    disk.put(buffers[2][:10])
    disk.put(buffers[2][10:])
    assert len(acquired) == 2
    disk.file.flush()
    assert disk.content == b"".join(bytes([number]) * size for number in range(3))


class RecordingPool:
    """Buffer pool that records the buffers acquired from it."""

    def __init__(self, acquire: object, noted: list[memoryview]) -> None:
        self._acquire = acquire
        self._noted = noted

    def acquire(self) -> memoryview:
        assert callable(self._acquire)
        memory: memoryview = self._acquire()
        self._noted.append(memory)
        return memory


def test_fallback_to_the_cache_if_direct_writes_are_not_supported(disk: Disk) -> None:
    content = os.urandom(5 * MAX_CHUNK + 77)
    disk.put(content[: 2 * MAX_CHUNK + 9])
    disk.file.flush()
    disk.failing = errno.EINVAL
    disk.put(content[2 * MAX_CHUNK + 9 :])
    disk.file.flush()
    assert disk.content == content
    assert [by for by, _, _ in disk.writes] == [True, True, False, False, False, False, False]


def test_a_short_write_is_continued(disk: Disk) -> None:
    disk.most = 3 * PAGE
    content = os.urandom(MAX_CHUNK + 1)
    disk.put(content)
    disk.file.flush()
    assert disk.content == content


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_other_errors_are_raised_without_a_fallback(disk: Disk, code: int) -> None:
    disk.failing = code
    disk.put(os.urandom(MAX_CHUNK))
    with pytest.raises(OSError) as raised:
        disk.file.flush()
    assert raised.value.errno == code
    assert not disk.writes


def test_write_waits_for_a_slow_disk(disk: Disk) -> None:
    disk.gate.clear()
    taken = list[int]()

    def put() -> None:
        for _ in range(9):
            taken.append(disk.file.write(bytes(MAX_CHUNK)))

    thread = threading.Thread(target=put)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    assert len(taken) == local_io._PENDING
    disk.gate.set()
    thread.join()
    disk.file.flush()
    assert disk.content == bytes(9 * MAX_CHUNK)


def test_close_drops_unwritten_chunks_and_is_idempotent(disk: Disk) -> None:
    disk.gate.clear()
    disk.put(bytes(4 * MAX_CHUNK))
    threading.Timer(0.1, disk.gate.set).start()
    disk.file.close()
    disk.file.close()
    assert len(disk.writes) <= 1
    with pytest.raises(OSError):
        os.fstat(disk.direct)
