"""One object of a kind for each thread."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from sfsc.closing import Closing
from sfsc.errors import UsageError

_Kept = TypeVar("_Kept", bound=Closing)


class PerThread(Generic[_Kept]):
    """Objects that are each used by one thread. That of a thread that has ended is given to the
    next thread that needs one."""

    def __init__(self, first: _Kept, another: Callable[[], _Kept]) -> None:
        """`first` is that of this thread; `another` makes one for another thread, on it."""
        self._another = another
        self._lock = threading.Lock()
        self._kept = [(weakref.ref(threading.current_thread()), first)]
        self._closed = False

    def get(self) -> _Kept:
        """Return the object of this thread. Raises `UsageError` once all are closed, and what
        `another` raises."""
        me = threading.current_thread()
        found = self._find(me)
        if found is not None:
            return found
        made = self._another()
        with self._lock:
            if not self._closed:
                self._kept.append((weakref.ref(me), made))
                return made
        made.close()
        raise UsageError("the store is closed", "connect again")

    def close_others(self) -> None:
        """Close all objects but the first one. Idempotent."""
        with self._lock:
            self._closed = True
            others, self._kept = self._kept[1:], self._kept[:1]
        for _, kept in others:
            kept.close()

    def _find(self, me: threading.Thread) -> _Kept | None:
        with self._lock:
            for owner, kept in self._kept:
                if owner() is me:
                    return kept
            if self._closed:  # its methods say that it is closed
                return self._kept[0][1]
            for index, (owner, kept) in enumerate(self._kept):
                thread = owner()
                if thread is None or not thread.is_alive():
                    self._kept[index] = (weakref.ref(me), kept)
                    return kept
        return None
