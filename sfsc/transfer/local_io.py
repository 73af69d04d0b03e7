"""A new large file, written from its beginning to its end and then synced, at little cost.

It bypasses the page cache if the file system allows (`DirectWriter`): bytes come in portions of any
size and go out in whole pages, from page-aligned memory. Each portion lies as far from a page
boundary in memory as it does in the file, after the rest of the portion before, so that only this
rest is copied. A thread writes while the caller prepares the next portion. The last bytes, which
fill no page, go through the cache. A direct write still needs a sync to be durable.

Otherwise the bytes start on their way to the disk as they come, so that the disk works while the
network does and the sync at the end is short. Blocks are reserved ahead, 64 MiB at a time: the file
system decides once where they lie, not for every page, and a full disk is found earlier. All of
these are hints; only the sync says what is on the disk.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING, Final, Self

from protocol.buffers import largefiles
from protocol.buffers.pool import PAGE, BufferPool
from protocol.codec.encoding import Buffer
from protocol.codec.values import Value
from sfsc.closing import Closing

if TYPE_CHECKING:
    from concurrent.futures import Future
import io
import sys
from typing import TYPE_CHECKING

from protocol.buffers.largefiles import LARGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.codec.encoding import Buffer

PORTION: Final = 1024 * 1024
"""Bytes of the longest portion."""
_PENDING: Final = 4
"""Portions that wait to be written before the caller does."""
_memory: Final = BufferPool(PORTION + PAGE, keep=2 * _PENDING)


class _Room(Value):
    """`size` bytes of `memory`, behind `lead` others of the page that they begin in."""

    memory: memoryview
    lead: int
    size: int


class DirectWriter(Closing):
    """A new file, from its first byte on. For one thread, but for `room`, which another may call.
    Methods raise OSError, also of what was written before."""

    def __init__(self, descriptor: int, direct: int) -> None:
        """`direct` is a second handle of the file behind `descriptor`, and is closed here."""
        self._descriptor = descriptor
        self._direct = direct
        self._able = True
        self._closed = False
        self._offered = 0
        self._rooms: deque[_Room] = deque()
        self._written = 0
        self._rest = b""
        from concurrent.futures import ThreadPoolExecutor

        self._writer = ThreadPoolExecutor(1, "sfsc-write")
        self._writing: deque[Future[None]] = deque()

    @classmethod
    def beside(cls, descriptor: int) -> Self | None:
        """For an open file that is empty; None where the cache must serve."""
        direct = largefiles.open_direct(descriptor, writing=True)
        return None if direct is None else cls(descriptor, direct)

    def room(self, size: int) -> memoryview:
        """Memory for the next `size` ≤ 1 MiB bytes that nobody has asked room for yet. What is then
        written as a view of it is written from there."""
        room = _Room(_memory.acquire(), self._offered % PAGE, size)
        self._offered += size
        self._rooms.append(room)
        return room.memory[room.lead : room.lead + size]

    def write(self, data: Buffer) -> int:
        """Take the next bytes, at least one of them; how many. Waits while the disk is behind."""
        portion = memoryview(data)[:PORTION]
        lead = self._written % PAGE
        memory = self._taken(lead, portion)
        if memory is None:
            memory = _memory.acquire()
            memory[lead : lead + len(portion)] = portion
        memory[:lead] = self._rest
        end = lead + len(portion)
        whole = end - end % PAGE
        self._rest = bytes(memory[whole:end])
        if whole:
            self._writing.append(
                self._writer.submit(self._put, memory[:whole], self._written - lead)
            )
        self._written += len(portion)
        while len(self._writing) > _PENDING:
            self._writing.popleft().result()
        return len(portion)

    def flush(self) -> None:
        """All that was taken is written, if not durable."""
        while self._writing:
            self._writing.popleft().result()
        _write_all(self._descriptor, memoryview(self._rest), self._written - len(self._rest))

    def close(self) -> None:
        """Drop what is not written. Twice does no harm."""
        if not self._closed:
            self._closed = True
            self._writer.shutdown(cancel_futures=True)
            os.close(self._direct)

    def _taken(self, lead: int, portion: memoryview) -> memoryview | None:
        """The memory that `portion` lies in, where that is all of the oldest room that was given,
        and this is its place."""
        if not self._rooms:
            return None
        room = self._rooms[0]
        if portion.obj is not room.memory.obj or (room.lead, room.size) != (lead, len(portion)):
            return None
        self._rooms.popleft()
        return room.memory

    def _put(self, memory: memoryview, offset: int) -> None:
        """On the writer's thread."""
        while memory and self._able:
            try:
                count = os.write(self._direct, memory)  # whose position is where the last ended
            except OSError as exc:
                # The file system takes no such calls, or not of this memory, after all. A disk that
                # is full or broken is that both ways.
                if exc.errno != errno.EINVAL:
                    raise
                self._able = False
            else:
                memory, offset = memory[count:], offset + count
        if memory:
            _write_all(self._descriptor, memory, offset)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    os.lseek(descriptor, offset, os.SEEK_SET)
    while data:
        data = data[os.write(descriptor, data) :]


_BEGIN: Final = 8 << 20
"""Bytes that are handed to the disk together; a file that is no longer is left to the sync."""
_AHEAD: Final = 64 << 20
"""Bytes that are reserved together, so that one that fails holds no more than these for nothing."""


class LargeFileWriter(io.FileIO):
    """A new file of `size` bytes, all of which are to come.

    `room`, where there is one, gives memory for the next bytes that nobody has asked room for yet,
    1 MiB at most: what is written as it lies there is not copied.
    """

    room: Callable[[int], memoryview] | None = None

    def __init__(self, descriptor: int, size: int) -> None:
        """Takes the descriptor over, and closes it."""
        super().__init__(descriptor, "wb")
        self._size = size
        self._written = 0
        self._begun = 0
        self._reserved = 0 if size > _BEGIN else size
        self._direct = DirectWriter.beside(descriptor) if size >= LARGE else None
        if self._direct is not None:
            self.room = self._direct.room

    def write(self, data: Buffer, /) -> int:  # type: ignore[override]
        """As a raw file's: it may take less than it is given."""
        if self._written + len(data) > self._reserved < self._size:
            self._reserve_ahead()
        if self._direct is not None:
            count = self._direct.write(data)
        else:
            count = super().write(data)
        self._written += count
        if self._direct is None and self._written - self._begun >= _BEGIN:
            self._begin_writing_back()
        return count

    def flush(self) -> None:
        """All that was taken is the file's."""
        if self._direct is not None:
            self._direct.flush()
        super().flush()

    def close(self) -> None:
        """What was not flushed may be lost."""
        if self._direct is not None:
            self._direct.close()
            self._direct = None  # a raw file flushes when it closes
        super().close()

    def _reserve_ahead(self) -> None:
        length = min(_AHEAD, self._size - self._reserved)
        self._reserved += length
        if not largefiles.reserve(self.fileno(), self._reserved - length, length):
            self._reserved = self._size  # what cannot be had is not asked for again; a write tells

    def _begin_writing_back(self) -> None:
        """Queues what was written since the last time. Pages that are not clean yet stay cached."""
        if sys.platform == "linux":
            length = self._written - self._begun
            os.posix_fadvise(self.fileno(), self._begun, length, os.POSIX_FADV_DONTNEED)
        self._begun = self._written
