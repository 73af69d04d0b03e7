"""A large file that is written from its beginning to its end and then synced, at little cost.

It bypasses the page cache if that is possible (`sfsc.transfer.direct`). Otherwise its bytes start
on their way to the disk as they come, so that the disk works while the network does and the sync at
the end is short. Blocks are reserved a stretch ahead: which block a page goes to is then decided
once, not for every page as it is written, and a full disk is found earlier. All of these are hints;
what is on the disk is the sync's word alone.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Final

from protocol.buffers import largefiles
from protocol.buffers.largefiles import LARGE
from sfsc.transfer.direct import Direct

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.codec.encoding import Buffer

_BEGIN: Final = 8 << 20
"""Bytes that are handed to the disk together; a file that is no longer is left to the sync."""
_AHEAD: Final = 64 << 20
"""Bytes that are reserved together, so that one that fails holds no more than these for nothing."""


class Landing(io.FileIO):
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
        self._direct = Direct.beside(descriptor) if size >= LARGE else None
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
