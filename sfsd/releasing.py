"""Files that have lost their names, closed behind everyone's back.

With its last name and its last handle a file gives its blocks back, and for that the file system
waits until what it is writing just then, for whomever, is on the disk: on a busy one that takes ten
times as long as giving the name away. So who replaces a file holds it open, and lets go of it here.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from sfsd.files import Files

if sys.platform == "linux":
    import resource

MOST = 4096
"""Handles that wait, or a quarter of those that the process may have, where that is less; past it
who replaces closes too. A disk that is told of each block which is given back takes longer for that
than it takes to replace a small file."""
TOGETHER = 64
"""Handles that wait for one another before they are closed: who replaces many files would else wake
the other thread, and wait for it to let go of the interpreter, for each."""
_LINGERS = 1.0
"""Seconds for which the thread waits for more; with nothing to close it ends."""


class Releasing:
    """Safe on several threads. Ends by itself; what it has not closed by then ends with us."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._most = min(MOST, _allowed() // 4)
        self._handles: list[int] = []
        self._closing = 0
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

    def release(self, handle: int) -> None:
        """Close it, within a second or two."""
        with self._changed:
            if len(self._handles) + self._closing < self._most:
                self._handles.append(handle)
                if len(self._handles) == TOGETHER:
                    self._changed.notify()
                if not self._running:
                    self._running = True
                    threading.Thread(target=self._run, name="releasing", daemon=True).start()
                return
        self._files.close(handle)

    def _run(self) -> None:
        while handles := self._next():
            for handle in handles:
                self._files.close(handle)

    def _next(self) -> list[int]:
        """Those to close now; none where this thread is to end."""
        with self._changed:
            self._closing = 0
            self._changed.wait_for(lambda: len(self._handles) >= TOGETHER, _LINGERS)
            handles, self._handles = self._handles, []
            self._closing = len(handles)
            self._running = bool(handles)
            return handles


def _allowed() -> int:
    """How many handles the process may have."""
    if sys.platform == "linux":
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return soft if soft != resource.RLIM_INFINITY else 4 * MOST
    else:
        return 0  # none is held
