"""Pool of reusable page-aligned buffers for bulk bytes.

Fresh memory costs as much as encrypting the bytes put there: the system clears each page, and under
a hypervisor may have to request it. There is no release call, which a reader of a view could forget
or make too early: a buffer returns to the pool when its last view is garbage collected.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any, Final

PAGE: Final = 4096
"""Smallest page size of any machine in bytes; every buffer starts at a page boundary."""


class BufferPool:
    """Pool of buffers of `size` bytes that keeps at most `keep` free ones. Thread-safe."""

    def __init__(self, size: int, keep: int) -> None:
        self.size: Final = size
        self._free: deque[Any] = deque(maxlen=keep)  # when full, appending drops a free buffer
        self._leases: dict[int, weakref.ref[Any]] = {}

    def acquire(self) -> memoryview:
        """Return `size` writable bytes with arbitrary content: expose only bytes that you wrote."""
        # Both imports cost more than a small file takes, so only bulk transfers pay for them.
        import ctypes
        import mmap

        try:
            memory = self._free.pop()  # the last one returned is the likeliest to be in CPU caches
        except IndexError:
            memory = mmap.mmap(-1, self.size)
        # Every view of this object, and every view of those, keeps it alive, and it the memory.
        lease = (ctypes.c_ubyte * self.size).from_buffer(memory)
        key = id(lease)

        def returned(_: object) -> None:
            # Runs on any thread that drops the last view, perhaps inside `acquire`: so no lock.
            del self._leases[key]
            self._free.append(memory)

        self._leases[key] = weakref.ref(lease, returned)
        return memoryview(lease).cast("B")
