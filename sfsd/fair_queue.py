"""Queue in which users take turns, so that a user who asks for much delays only themselves."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Item = TypeVar("_Item")


class FairQueue(Generic[_Key, _Item]):
    """First in, first out for each key; keys take turns (round robin). Not thread-safe.

    With `limit_of`, a key has at most that many taken items that are not `done`; its other items
    wait. The length of the queue is the number of all items that wait.
    """

    def __init__(self, limit_of: Callable[[_Key], int] | None = None) -> None:
        self._limit_of = limit_of
        self._ready: dict[_Key, deque[_Item]] = {}  # in order of their turns
        self._held: dict[_Key, deque[_Item]] = {}  # of keys at their limit
        self._taken: Counter[_Key] = Counter()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def ready(self) -> int:
        """Number of keys that have an item which can be taken."""
        return len(self._ready)

    def put(self, key: _Key, item: _Item) -> None:
        """Add an item at the end of the key's own queue."""
        self._size += 1
        found = self._ready.get(key) or self._held.get(key)
        if found is not None:
            found.append(item)
        else:
            self._wait_for_turn(key, deque([item]))

    def take(self, fits: Callable[[_Item], bool] = lambda _item: True) -> _Item:
        """Remove and return the item of the key whose turn it is, which then is last in turn. Keys
        whose next item does not fit are passed over, and keep their turn.

        Raises StopIteration if none is ready that fits.
        """
        key = next(key for key, items in self._ready.items() if fits(items[0]))
        found = self._ready.pop(key)
        self._size -= 1
        item = found.popleft()
        if self._limit_of is not None:
            self._taken[key] += 1
        if found:
            self._wait_for_turn(key, found)
        return item

    def done(self, key: _Key) -> None:
        """Take note that an item of the key, taken before, is worked off. Only with `limit_of`."""
        self._taken[key] -= 1
        if not self._taken[key]:
            del self._taken[key]
        if (found := self._held.pop(key, None)) is not None:
            self._ready[key] = found

    def _wait_for_turn(self, key: _Key, found: deque[_Item]) -> None:
        at_limit = self._limit_of is not None and self._taken[key] >= self._limit_of(key)
        (self._held if at_limit else self._ready)[key] = found
