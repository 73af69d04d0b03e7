"""Writers of a new large file, sequential and then synced, at little cost, and of a sparse one.

`DirectWriter` bypasses the page cache if the file system allows it. Bytes come in chunks of any
size and are written in whole pages, from page-aligned memory. Each chunk is placed as far from a
page boundary in memory as it is in the file, behind the rest of the chunk before, so that only this
rest is copied. A thread writes while the caller prepares the next chunk. The last bytes, which fill
no page, go through the cache. Direct writes still need a sync to be durable.

Without direct writes, write-back of the bytes starts as they come, so that the disk works while the
network does and the sync at the end is short. Blocks are reserved ahead, 64 MiB at a time: the file
system chooses their place once instead of for every page, and a full disk is noticed earlier. All
of these are hints; only the sync makes the file durable.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Final, Self

from protocol.buffers import largefiles
from protocol.buffers.largefiles import LARGE
from protocol.buffers.pool import PAGE, BufferPool
from protocol.codec.encoding import Buffer
from protocol.codec.values import Value
from sfsc.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

MAX_CHUNK: Final = 1024 * 1024
"""Bytes of the longest chunk."""
_PENDING: Final = 4
"""Chunks that may wait for the disk before the caller has to."""
_memory: Final = BufferPool(MAX_CHUNK + PAGE, keep=2 * _PENDING)


class _LentBuffer(Value):
    """`size` bytes of `memory`, after `lead` other bytes of the page in which they begin."""

    memory: memoryview
    lead: int
    size: int


class DirectWriter(Closing):
    """Writes a new file from its first byte. For one thread, except that `allocate` may be called
    on another. Methods raise OSError, also for earlier writes."""

    def __init__(self, descriptor: int, direct: int) -> None:
        """`direct` is a second descriptor of the file, opened for direct I/O and owned here."""
        self._descriptor = descriptor
        self._direct = direct
        self._direct_works = True
        self._closed = False
        self._allocated = 0
        self._lent: deque[_LentBuffer] = deque()
        self._written = 0
        self._rest = b""
        from concurrent.futures import ThreadPoolExecutor

        self._thread = ThreadPoolExecutor(1, "sfsc-write")
        self._writing: deque[Future[None]] = deque()

    @classmethod
    def for_empty_file(cls, descriptor: int) -> Self | None:
        """Return a writer for an open empty file, None if direct I/O is not supported."""
        direct = largefiles.open_direct(descriptor, writing=True)
        return None if direct is None else cls(descriptor, direct)

    def allocate(self, size: int) -> memoryview:
        """Return memory for the next `size` ≤ 1 MiB bytes for which none was allocated yet. If it
        is then passed to `write`, it is written without a copy."""
        lent = _LentBuffer(_memory.acquire(), self._allocated % PAGE, size)
        self._allocated += size
        self._lent.append(lent)
        return lent.memory[lent.lead : lent.lead + size]

    def write(self, data: Buffer) -> int:
        """Accept the next bytes; return how many, at least one. Waits if the disk is slow."""
        chunk = memoryview(data)[:MAX_CHUNK]
        lead = self._written % PAGE
        memory = self._take_lent(lead, chunk)
        if memory is None:
            memory = _memory.acquire()
            memory[lead : lead + len(chunk)] = chunk
        memory[:lead] = self._rest
        end = lead + len(chunk)
        whole = end - end % PAGE
        self._rest = bytes(memory[whole:end])
        if whole:
            offset = self._written - lead
            self._writing.append(self._thread.submit(self._write_pages, memory[:whole], offset))
        self._written += len(chunk)
        while len(self._writing) > _PENDING:
            self._writing.popleft().result()
        return len(chunk)

    def flush(self) -> None:
        """Write everything accepted; it is not durable yet."""
        while self._writing:
            self._writing.popleft().result()
        _write_all(self._descriptor, memoryview(self._rest), self._written - len(self._rest))

    def close(self) -> None:
        """Close `direct` and drop what was not written. Idempotent."""
        if not self._closed:
            self._closed = True
            self._thread.shutdown(cancel_futures=True)
            os.close(self._direct)

    def _take_lent(self, lead: int, chunk: memoryview) -> memoryview | None:
        """Return the buffer in which `chunk` lies, if it is the whole oldest lent buffer, and that
        was lent for this offset."""
        if not self._lent:
            return None
        lent = self._lent[0]
        if chunk.obj is not lent.memory.obj or (lent.lead, lent.size) != (lead, len(chunk)):
            return None
        self._lent.popleft()
        return lent.memory

    def _write_pages(self, memory: memoryview, offset: int) -> None:
        """Write whole pages; runs on the writer's thread."""
        while memory and self._direct_works:
            try:
                count = os.write(self._direct, memory)  # its position is the end of the last write
            except OSError as exc:
                # EINVAL: the file system does not support direct I/O, or not from this memory. A
                # full or broken disk would fail through the cache, too.
                if exc.errno != errno.EINVAL:
                    raise
                self._direct_works = False
            else:
                memory, offset = memory[count:], offset + count
        if memory:
            _write_all(self._descriptor, memory, offset)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    os.lseek(descriptor, offset, os.SEEK_SET)
    while data:
        data = data[os.write(descriptor, data) :]


_WRITE_BACK: Final = 8 << 20
"""Bytes whose write-back is started together; a shorter file is left to the sync."""
_RESERVE: Final = 64 << 20
"""Bytes reserved together, so that a failed download wastes no more than these."""


class LargeFileWriter(io.FileIO):
    """A new file of `size` bytes, written in order. `allocate`, if not None, is
    `DirectWriter.allocate`."""

    allocate: Callable[[int], memoryview] | None = None

    def __init__(self, descriptor: int, size: int) -> None:
        """Take ownership of the descriptor."""
        super().__init__(descriptor, "wb")
        self._size = size
        self._written = 0
        self._written_back = 0
        self._reserved = 0 if size > _WRITE_BACK else size
        self._direct = DirectWriter.for_empty_file(descriptor) if size >= LARGE else None
        if self._direct is not None:
            self.allocate = self._direct.allocate

    def write(self, data: Buffer, /) -> int:  # type: ignore[override]
        """Write like a raw file: possibly less than all of `data`."""
        if self._written + len(data) > self._reserved < self._size:
            self._reserve_ahead()
        if self._direct is not None:
            count = self._direct.write(data)
        else:
            count = super().write(data)
        self._written += count
        if self._direct is None and self._written - self._written_back >= _WRITE_BACK:
            self._start_write_back()
        return count

    def flush(self) -> None:
        """Write everything accepted; it is not durable yet."""
        if self._direct is not None:
            self._direct.flush()
        super().flush()

    def close(self) -> None:
        """Close the file; bytes that were not flushed may be lost."""
        if self._direct is not None:
            self._direct.close()
            self._direct = None  # before FileIO.close, which flushes
        super().close()

    def _reserve_ahead(self) -> None:
        length = min(_RESERVE, self._size - self._reserved)
        self._reserved += length
        if not largefiles.reserve(self.fileno(), self._reserved - length, length):
            self._reserved = self._size  # do not try again; a full disk fails a write

    def _start_write_back(self) -> None:
        """Start write-back of the bytes written since the last call; dirty pages stay cached."""
        if sys.platform == "linux":
            length = self._written - self._written_back
            os.posix_fadvise(self.fileno(), self._written_back, length, os.POSIX_FADV_DONTNEED)
        self._written_back = self._written


_ZEROS: Final = bytes(PAGE)


class SparseFileWriter(io.FileIO):
    """A new file, written in order, in which pages of zero bytes become holes."""

    def __init__(self, descriptor: int) -> None:
        """Take ownership of the descriptor."""
        super().__init__(descriptor, "wb")
        self._written = 0

    def write(self, data: Buffer, /) -> int:  # type: ignore[override]
        """Write all of `data`, except what are zero bytes up to the end of a page: what is never
        written of a new file is zero."""
        view = memoryview(data)
        begin = end = 0
        while end < len(view):
            page = view[end : end + PAGE - (self._written + end) % PAGE]
            if page.tobytes() == _ZEROS[: len(page)]:
                _write_all(self.fileno(), view[begin:end], self._written + begin)
                begin = end + len(page)
            end += len(page)
        _write_all(self.fileno(), view[begin:end], self._written + begin)
        self._written += len(view)
        return len(view)

    def flush(self) -> None:
        """Give the file its size, also if it ends with a hole."""
        if os.fstat(self.fileno()).st_size != self._written:  # closing it must not change its time
            os.ftruncate(self.fileno(), self._written)
        super().flush()
