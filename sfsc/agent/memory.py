"""Memory that holds a key: kept out of swap and of dumps as far as the system allows."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from typing import Final

from protocol.buffers.core_dumps import disable_core_dumps
from sfsc.agent.messages import KEY_LOCKED, LOCKED, UNLOCKED

_MCL_CURRENT, _MCL_FUTURE = 1, 2
_PR_SET_DUMPABLE: Final = 4


def protect_process() -> bool:
    """Make this process hard to read: no core dumps, no debugger of the same user (Linux), and all
    of its memory locked into RAM. Return whether it is locked: that needs a privilege, or a limit
    of locked memory that is larger than the process."""
    disable_core_dumps()
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux":
        library.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    return hasattr(library, "mlockall") and not library.mlockall(_MCL_CURRENT | _MCL_FUTURE)


class KeyPage:
    """A page of memory of its own for one key of 32 bytes. `memory` is as in `AgentAnswer`."""

    def __init__(self, *, all_locked: bool) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        if sys.platform == "linux":
            self._page.madvise(mmap.MADV_DONTDUMP)
        self.memory = LOCKED if all_locked else KEY_LOCKED if self._lock() else UNLOCKED

    def _lock(self) -> bool:
        library = ctypes.CDLL(None, use_errno=True)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        return not library.mlock(ctypes.c_void_p(start), ctypes.c_size_t(mmap.PAGESIZE))

    def store(self, key: bytes) -> None:
        """Write a key into the page."""
        self._page[: len(key)] = key

    def read(self) -> bytes:
        """Return a copy of the key."""
        return self._page[:32]

    def wipe(self) -> None:
        """Overwrite the page with zeros."""
        self._page[:] = bytes(mmap.PAGESIZE)
