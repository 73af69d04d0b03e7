"""A large file that is written from its beginning to its end and then synced, at little cost.

Its bytes start on their way to the disk as they come, so that the disk works while the network
does and the sync at the end is short. On Linux, blocks are reserved a stretch ahead: which block a
page goes to is then decided once, not for every page as it is written, and a full disk is found
earlier. Both are hints; what is on the disk is the sync's word alone.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.encoding import Buffer

_BEGIN: Final = 8 << 20
"""Bytes that are handed to the disk together; a file that is no longer is left to the sync."""
_AHEAD: Final = 64 << 20
"""Bytes that are reserved together, so that one that fails holds no more than these for nothing."""
_KEEP_SIZE: Final = 1
"""`FALLOC_FL_KEEP_SIZE` of fallocate(2): the file is as long as what was written."""


class Landing(io.FileIO):
    """A new file of `size` bytes, all of which are to come."""

    def __init__(self, descriptor: int, size: int) -> None:
        """Takes the descriptor over, and closes it."""
        super().__init__(descriptor, "wb")
        self._size = size
        self._written = 0
        self._begun = 0
        self._reserved = 0
        self._reserve = _fallocate() if size > _BEGIN else None

    def write(self, data: Buffer, /) -> int:  # type: ignore[override]
        """As a raw file's: it may take less than it is given."""
        if self._reserve is not None and self._written + len(data) > self._reserved < self._size:
            self._reserve_ahead()
        count = super().write(data)
        self._written += count
        if self._written - self._begun >= _BEGIN:
            self._begin_writing_back()
        return count

    def _reserve_ahead(self) -> None:
        length = min(_AHEAD, self._size - self._reserved)
        if self._reserve is not None and not self._reserve(self.fileno(), self._reserved, length):
            self._reserve = None  # what cannot be had is not asked for again; a write tells why
        self._reserved += length

    def _begin_writing_back(self) -> None:
        """Queues what was written since the last time. Pages that are not clean yet stay cached."""
        if sys.platform == "linux":
            length = self._written - self._begun
            os.posix_fadvise(self.fileno(), self._begun, length, os.POSIX_FADV_DONTNEED)
        self._begun = self._written


def _fallocate() -> Callable[[int, int, int], bool] | None:
    """Reserves blocks for (descriptor, offset, length), and tells whether it could; None where
    there is no such call. `os.posix_fallocate` is not it: where the file system cannot, that one
    writes to every block."""
    if sys.platform == "linux":
        import ctypes  # only for large files: a tenth of what the smallest command takes

        call = getattr(ctypes.CDLL(None), "fallocate64", None)
        if call is None:
            return None
        call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

        def reserve(descriptor: int, offset: int, length: int) -> bool:
            return bool(call(descriptor, _KEEP_SIZE, offset, length) == 0)

        return reserve
    else:
        return None
