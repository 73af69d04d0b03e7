"""Memory for bulk bytes that is used again once nobody looks at it any more.

Memory that is given back to the system and taken anew costs as much as encrypting what is put
there: the system clears each page, and under a hypervisor may have to ask for it. Nobody has to say
that he is done, which a reader of a view could forget or say too soon: what is lent is free again
when the last view of it is gone, and not before.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any, Final

PAGE: Final = 4096
"""Bytes of the smallest page of any machine; what is lent begins at one."""


class BufferPool:
    """Lends pieces of `size` bytes, each from the beginning of a page on, and keeps up to `keep` of
    those that are free. Any thread."""

    def __init__(self, size: int, keep: int) -> None:
        self.size: Final = size
        self._free: deque[Any] = deque(maxlen=keep)  # a piece too many drops another, unlent
        self._lent: dict[int, weakref.ref[Any]] = {}

    def acquire(self) -> memoryview:
        """`size` bytes to write to; what is in them is anything, so it is for the borrower to show
        nobody what he has not written."""
        # Both take a command's start longer than a small file does, so only who moves bulk pays.
        import ctypes
        import mmap

        try:
            memory = self._free.pop()  # the last one returned is the likeliest to be in the caches
        except IndexError:
            memory = mmap.mmap(-1, self.size)
        # Every view that is made of this object, and of those views, keeps it; and it the memory.
        lease = (ctypes.c_ubyte * self.size).from_buffer(memory)
        key = id(lease)

        def returned(_: object) -> None:
            # On whichever thread let go of the last view, perhaps inside `acquire`: so no lock.
            del self._lent[key]
            self._free.append(memory)

        self._lent[key] = weakref.ref(lease, returned)
        return memoryview(lease).cast("B")
