"""Large ciphertexts on their way between memory and disk without a place in the page cache.

A file of gigabytes drives out of the cache what others have there, sidecars above all, and to take
a page for each 4 KiB of it costs more than to encrypt it. So whole pieces go straight to the disk,
from memory at the beginning of a page, and so do those that are read, until a file is opened again
soon: then it is read through the cache, and has its place there.

Linux only, and only where the file system can (`Files.open_direct`); everything else goes through
the cache. Both ways may be mixed in one file: the kernel writes out what the cache has of a range
that is read or written past it, and drops it there before and after a write. Durable is neither:
what a direct write has put on the disk, a sync must still make the file's, and have the disk's own
cache write out.
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

SMALLEST: Final = 64 * 1024
"""Bytes of the shortest read that is worth a disk's answer of its own."""
_REMEMBERED: Final = 1024
"""Files that were opened last; a name of them takes about 200 bytes."""
_memory: Final = BufferPool(PIECE_SIZE + 2 * PAGE, keep=16)


class DirectFile:
    """A handle beside another on the same file. What cannot be done with it is told by False or
    None, and is then to be done with the other. Any thread."""

    def __init__(self, files: Files, handle: int, *, writing: bool) -> None:
        """`handle` is the other. Raises OSError as it is."""
        self._files = files
        direct = files.open_direct(handle, writing=writing)
        self._shared = None if direct is None else SharedHandle(files, direct)
        self._able = True

    def write(self, piece: Buffer, offset: int) -> bool:
        """Write a whole piece at a multiple of its size; whether that could be done so. Raises
        OSError, and StagingClosedError once closed."""
        if self._shared is None or not self._able or len(piece) != PIECE_SIZE:
            return False
        with self._shared.use() as handle:
            try:
                # A frame's bulk is received at a page boundary (`protocol.wire.frames`).
                self._files.write_all_at(handle, piece, offset)
            except OSError as exc:
                return self._not_so(exc)
        return True

    def read(self, offset: int, length: int) -> memoryview | None:
        """Up to `length` bytes from `offset`, fewer at the end of the file. Raises as `write`."""
        first = offset % PAGE
        whole = -(-(first + length) // PAGE) * PAGE
        if self._shared is None or not self._able:
            return None
        if length < SMALLEST or whole > _memory.size:
            return None
        memory = _memory.acquire()[:whole]
        with self._shared.use() as handle:
            try:
                count = self._files.read_into(handle, memory, offset - first)
            except OSError as exc:
                self._not_so(exc)
                return None
        # Only what was read just now is shown: the rest is what the memory had before.
        return memory[first : min(count, first + length)].toreadonly()

    def close(self) -> None:
        """Twice is fine, and so is a call that is still running."""
        if self._shared is not None:
            self._shared.close()

    def _not_so(self, exc: OSError) -> bool:
        """False where the file system takes no such calls, or not of this memory, after all."""
        if exc.errno != errno.EINVAL:
            raise exc
        self._able = False
        return False


class RecentlyOpened:
    """Which files were opened last. Any thread."""

    def __init__(self, size: int = _REMEMBERED) -> None:
        self._size = size
        self._paths: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def seen_again(self, path: str) -> bool:
        """Whether `path` was opened lately; now it was."""
        with self._lock:
            known = path in self._paths
            self._paths[path] = None
            self._paths.move_to_end(path)
            if len(self._paths) > self._size:
                self._paths.popitem(last=False)
            return known
