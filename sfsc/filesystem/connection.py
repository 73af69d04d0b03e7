"""The connection of a file system, which is made at first use.

Programs use a file system from several threads, as pyarrow does, and fork. A store belongs to one
thread at a time, so the calls of a file system take turns. They do not get a store each: it would
cost a login, and with a passphrase half a second, for each thread. A process that was forked makes
a connection of its own: two processes that encrypt on one connection would end it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from sfsc.api import connect
from sfsc.filesystem.os_errors import os_errors
from sfsc.session.progress import Progress

if TYPE_CHECKING:
    from sfsc.store import Store

_connections: Final = weakref.WeakSet[Any]()
_of_parent: Final = list[Any]()
"""Stores of the parent process. They are never closed here, because that would end its sessions."""


class Connection:
    """The store in the folder `home`, used by one thread at a time. `options` are arguments of
    `sfsc.connect`."""

    def __init__(self, home: str, options: dict[str, Any]) -> None:
        self._home = home
        self._options = options
        self._store: Store | None = None
        self._lock = threading.RLock()
        self._progress = _Relayed()
        _connections.add(self)

    @contextlib.contextmanager
    def use(self, path: str | None = None, callback: Any = None) -> Iterator[Store]:
        """Wait for other threads, then give the store to the block, whose errors are raised as
        `as_os_error` says. `callback` is told of the progress (an `fsspec.Callback`)."""
        with self._lock, os_errors(path):
            if self._store is None:
                self._store = connect(self._home, progress=self._progress, **self._options)
            before = self._progress.callback
            self._progress.begin(callback)
            try:
                yield self._store
            finally:
                self._progress.begin(before)

    def close(self) -> None:
        """Close the store. The next use connects again. Idempotent."""
        with self._lock:
            store, self._store = self._store, None
            if store is not None:
                store.close()

    def leave_to_parent(self) -> None:
        """Begin again in a forked process. The lock may be that of a thread of the parent."""
        if self._store is not None:
            _of_parent.append(self._store)
        self._store = None
        self._lock = threading.RLock()
        self._progress = _Relayed()


class _Relayed(Progress):
    """Progress of a store, passed on to the callback of the present call."""

    callback: Any = None

    def begin(self, callback: Any) -> None:
        self.callback = callback
        self._size = self._done = 0

    def expect(self, size: int) -> None:
        if self.callback is not None:
            self._size += size
            self.callback.set_size(self._size)

    def advance(self, size: int) -> None:
        """Report bytes, but never more than were announced: uploads count those of ciphertext."""
        if self.callback is not None:
            step = min(size, self._size - self._done)
            self._done += step
            self.callback.relative_update(step)


def _after_fork() -> None:
    for connection in list(_connections):
        connection.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
