"""State of each user, in memory for those who were last here."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import Generic, TypeVar

_State = TypeVar("_State")


class UserCache(Generic[_State]):
    """Base of what has one `_State` for each user: there is never more than one of the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: OrderedDict[str, _State] = OrderedDict()
        # One that has left `_recent` lives as long as a change or an upload in flight holds it.
        self._all: weakref.WeakValueDictionary[str, _State] = weakref.WeakValueDictionary()

    def for_user(self, user: str) -> _State:
        """Made where there is none yet. Safe on several threads."""
        with self._lock:
            state = self._all.get(user)
            if state is None:
                state = self._all[user] = self._make(user)
            self._recent[user] = state
            self._recent.move_to_end(user)
            while len(self._recent) > self._most():
                self._recent.popitem(last=False)
            return state

    def _make(self, user: str) -> _State:
        raise NotImplementedError

    def _most(self) -> int:
        """How many stay in memory."""
        raise NotImplementedError
