"""State that is loaded from the disk once, while changes to it continue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

_Found = TypeVar("_Found")


class LoadOnce:
    """Base of state that is loaded once. Loading holds no lock; changes made meanwhile are applied
    again. A change is published on the disk before it is applied here, and applying it twice is
    harmless. So each change is either in the data that `read` finds, or applied during or after the
    load: never missed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._loaded = threading.Event()
        self._one_loader = threading.Lock()
        self._meanwhile: list[Callable[[], None]] | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the state is complete."""
        return self._loaded.is_set()

    def _load(self, read: Callable[[], _Found], enter: Callable[[_Found], None]) -> None:
        """Load with `read` and `enter` unless already loaded. Errors of `read` pass through."""
        if self._loaded.is_set():
            return
        with self._one_loader:
            if self._loaded.is_set():
                return
            with self._lock:
                self._meanwhile = []
            try:
                found = read()
                with self._lock:
                    enter(found)
                    for again in self._meanwhile:
                        again()
                    self._loaded.set()
            finally:
                self._meanwhile = None

    def _note(self, change: Callable[[], None]) -> None:
        """Apply `change` now, or after the running load; do nothing if a later load will see it."""
        with self._lock:
            if self._loaded.is_set():
                change()
            elif self._meanwhile is not None:
                self._meanwhile.append(change)
