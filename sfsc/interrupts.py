"""Signals that end a command, held back while a message is half queued or half sent.

A connection on which half a frame was sent is lost, and with it the way to tell the server that
its uploads will not be finished.
"""

from __future__ import annotations

import threading
from typing import Final


class _Deferral(threading.local):
    """Context manager; blocks may be nested, and must not wait for anything. Each thread has its
    own: a signal handler, on the main thread, is not held back by what others send."""

    def __init__(self) -> None:
        self._depth = 0
        self._pending: BaseException | None = None

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_error: object) -> None:
        self._depth -= 1
        if self._pending is not None and not self._depth:
            pending, self._pending = self._pending, None
            raise pending

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` now, or at the end of the outermost block. For a signal handler."""
        if not self._depth:
            raise error
        self._pending = error


deferred: Final = _Deferral()
"""The one of this process: signal handlers run on its main thread."""
