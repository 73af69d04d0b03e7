"""A large file on its way from memory to the disk without a place in the page cache.

Its bytes come in any portions and go out in whole pages, from memory that begins at one: each
portion lies there as far from the beginning of a page as it does in the file, behind what was left
of the one before, so that no more than this rest is copied. A thread writes while the caller makes
the next. The last bytes, which fill no page, go through the cache.

What a direct write has put on the disk, a sync must still make the file's.
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


class Direct(Closing):
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
