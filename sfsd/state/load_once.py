"""State that is read from the disk once, while changes to it go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

_Found = TypeVar("_Found")


class LoadOnce:
    """Base of such state. Loading holds no lock; what changes meanwhile is done again after it.

    A change is published on the disk before it is noted here, and noting one twice is harmless. So
    a change is either in what `read` finds, or noted while it reads, or noted later: never missed.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._loaded = threading.Event()
        self._one_loader = threading.Lock()
        self._meanwhile: list[Callable[[], None]] | None = None

    def _load(self, read: Callable[[], _Found], enter: Callable[[_Found], None]) -> None:
        """Unless it is loaded: `enter` what `read` finds. What `read` raises passes through."""
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
        """Do `change` now, or after the running load, or not at all: a load to come sees it."""
        with self._lock:
            if self._loaded.is_set():
                change()
            elif self._meanwhile is not None:
                self._meanwhile.append(change)
