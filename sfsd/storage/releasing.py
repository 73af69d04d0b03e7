"""Files that have lost their names, closed behind everyone's back.

With its last name and its last handle a file gives its blocks back, and for that the file system
waits until what it is writing just then, for whomever, is on the disk: on a busy one that takes ten
times as long as giving the name away. ext4 then looks at each file that it has lost of late before
it makes another. So who replaces a file holds it open, and lets go of it here; and as long as more
come they wait, if they are small: whoever replaces many makes as many.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Final

from sfsd.fs.descriptors import descriptor_quarter
from sfsd.fs.files import Files

if sys.platform != "win32":
    import resource

MOST: Final = 16 * 1024
"""Handles that wait, or fewer where the process may not have as many; past it who replaces closes
too."""
ROOM: Final = 64 << 20
"""Bytes of files that may wait for long, for want of which somebody may be refused meanwhile."""
TOGETHER: Final = 64
"""Handles closed at a time while more come, once nearly as many wait as may."""
_OPEN_MAX: Final = 10_240
"""Handles that macOS lets a process have where it states no limit; it begins with 256, fewer than
the connections that a daemon accepts."""
_LINGERS = 1.0
"""Seconds without another one after which all are closed; with nothing to close the thread ends."""
_LONGEST: Final = 10
"""Times so long that one waits at most, however many come."""


class Releasing:
    """Safe on several threads. Ends by itself; what it has not closed by then ends with us."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._most = most_waiting()
        self._enough = self._most - min(self._most // 16, 8 * TOGETHER)
        self._handles: deque[tuple[int, int]] = deque()
        self._closing = 0
        self._came = False
        self._bytes = 0
        self._changed = threading.Condition()
        self._running = False

    def hold(self, path: Path | str) -> int | None:
        """A handle of the file that is there and is about to be replaced, None where there is none
        or holding it would be in the way (Windows). Raises OSError."""
        if sys.platform == "linux":
            try:
                return self._files.open_read(path)
            except FileNotFoundError:
                return None
        else:
            return None

    def release(self, handle: int, *, size: int) -> None:
        """Close it once no more of them come, after some seconds at the latest; within a second or
        two where `size`, its bytes, make more than `ROOM` of all that wait."""
        with self._changed:
            if len(self._handles) + self._closing < self._most:
                self._handles.append((handle, size))
                self._came = True
                self._bytes += size
                if len(self._handles) == self._enough:
                    self._changed.notify()
                if not self._running:
                    self._running = True
                    threading.Thread(target=self._run, name="releasing", daemon=True).start()
                return
        self._files.close(handle)

    def _run(self) -> None:
        while handles := self._next():
            for handle in handles:
                # What could not be written of a file without a name is nobody's loss.
                with contextlib.suppress(OSError):
                    self._files.close(handle)

    def _next(self) -> list[int]:
        """Those to close now; none where this thread is to end."""
        with self._changed:
            self._closing = 0
            for _ in range(_LONGEST):
                self._came = False
                if self._changed.wait_for(lambda: len(self._handles) >= self._enough, _LINGERS):
                    return self._take(TOGETHER)
                if self._bytes > ROOM or not self._came:
                    break
            return self._take(len(self._handles))

    def _take(self, count: int) -> list[int]:
        """The oldest. The lock is held."""
        taken = [self._handles.popleft() for _ in range(min(count, len(self._handles)))]
        self._bytes -= sum([size for _, size in taken])
        self._closing = len(taken)
        self._running = bool(taken)
        return [handle for handle, _ in taken]


def most_waiting() -> int:
    """How many handles may wait."""
    if sys.platform == "linux":
        return min(MOST, descriptor_quarter())
    else:
        return 0  # none is held


def raise_descriptor_limit() -> None:
    """Let this process have as many handles as the system's administrator lets it have: by custom
    programs begin with fewer, for the sake of those that use `select`."""
    if sys.platform != "win32":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = hard
        if sys.platform == "darwin":
            most = max(soft, min(hard, _OPEN_MAX))
        if soft != most:
            # Refused where the system's own limit was lowered below it: then what there is serves.
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
