"""Direct I/O: large ciphertexts bypass the page cache.

A file of gigabytes evicts other data, above all sidecars, and taking a page for each 4 KiB costs
more than encrypting it. So whole pieces are written straight to the disk from page-aligned memory,
and are read the same way. A file that is opened again soon is read through the cache.

Linux only, and only on file systems that support it (`Files.open_direct`); everything else goes
through the cache. Both ways may be mixed in one file: the kernel writes out the cached pages of a
range that is read or written directly, and drops them before and after a write. A direct write is
not durable: a sync must still record the file's metadata and flush the disk's own cache.
"""

from __future__ import annotations

import errno
import threading
from collections import OrderedDict
from typing import Final

from protocol.buffers.pool import PAGE, BufferPool
from protocol.codec.encoding import Buffer
from protocol.codec.merkle import PIECE_SIZE
from sfsd.fs.descriptors import SharedHandle
from sfsd.fs.files import Files

MIN_READ: Final = 64 * 1024
"""Bytes of the shortest read that is worth a disk access of its own."""
_REMEMBERED_PATHS: Final = 1024
"""Recently opened files that are remembered; each takes about 200 bytes."""
_read_buffers: Final = BufferPool(PIECE_SIZE + 2 * PAGE, keep=16)


class DirectFile:
    """A second, direct handle on an open file. Safe on several threads. A False or None result
    means that the direct handle cannot do it; the caller then uses the other handle."""

    def __init__(self, files: Files, handle: int, *, writing: bool) -> None:
        """Open beside `handle`. Raises OSError unchanged."""
        self._files = files
        direct = files.open_direct(handle, writing=writing)
        self._shared = None if direct is None else SharedHandle(files, direct)
        self._usable = True

    def write(self, piece: Buffer, offset: int) -> bool:
        """Write a whole piece at a multiple of its size; return whether that was possible. Raises
        OSError, and StagingClosedError once closed."""
        if self._shared is None or not self._usable or len(piece) != PIECE_SIZE:
            return False
        with self._shared.use() as handle:
            try:
                # A frame's bulk is received at a page boundary (`protocol.wire.frames`).
                self._files.write_all_at(handle, piece, offset)
            except OSError as exc:
                return self._give_up(exc)
        return True

    def read(self, offset: int, length: int) -> memoryview | None:
        """Return `length` bytes from `offset`, fewer at the end of the file. Raises as `write`."""
        first = offset % PAGE
        whole = -(-(first + length) // PAGE) * PAGE
        if self._shared is None or not self._usable:
            return None
        if length < MIN_READ or whole > _read_buffers.size:
            return None
        memory = _read_buffers.acquire()[:whole]
        with self._shared.use() as handle:
            try:
                count = self._files.read_into(handle, memory, offset - first)
            except OSError as exc:
                self._give_up(exc)
                return None
        # Only what was just read is returned: the rest of the buffer holds older data.
        return memory[first : min(count, first + length)].toreadonly()

    def close(self) -> None:
        """Close the handle; running calls finish first. Idempotent."""
        if self._shared is not None:
            self._shared.close()

    def _give_up(self, exc: OSError) -> bool:
        """Stop using direct I/O: the file system does not accept such calls, or not this memory."""
        if exc.errno != errno.EINVAL:
            raise exc
        self._usable = False
        return False


class RecentlyOpened:
    """The most recently opened files. Safe on several threads."""

    def __init__(self, size: int = _REMEMBERED_PATHS) -> None:
        self._size = size
        self._paths: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def seen_again(self, path: str) -> bool:
        """Return whether `path` was opened recently, and record it."""
        with self._lock:
            known = path in self._paths
            self._paths[path] = None
            self._paths.move_to_end(path)
            if len(self._paths) > self._size:
                self._paths.popitem(last=False)
            return known
