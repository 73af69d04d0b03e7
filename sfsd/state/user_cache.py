"""LRU cache of per-user state."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

_State = TypeVar("_State")


class UserCache(Generic[_State]):
    """At most one `_State` for each user, created on demand. Safe on several threads."""

    def __init__(self, create: Callable[[str], _State], capacity: int) -> None:
        """Keep the `capacity` most recently used states, made by `create`."""
        self._create = create
        self._capacity = capacity
        self._lock = threading.Lock()
        self._recent: OrderedDict[str, _State] = OrderedDict()
        # An evicted state lives as long as a running change or upload refers to it.
        self._all: weakref.WeakValueDictionary[str, _State] = weakref.WeakValueDictionary()

    def cached(self, user: str) -> _State | None:
        """Return the state of `user` if there is one; this does not count as a use."""
        with self._lock:
            return self._all.get(user)

    def for_user(self, user: str) -> _State:
        """Return the state of `user`."""
        with self._lock:
            state = self._all.get(user)
            if state is None:
                state = self._all[user] = self._create(user)
            self._recent[user] = state
            self._recent.move_to_end(user)
            while len(self._recent) > self._capacity:
                self._recent.popitem(last=False)
            return state
