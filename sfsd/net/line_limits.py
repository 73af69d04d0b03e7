"""Limit on the log lines of one user: the log only grows, so a flood of small changes would fill
the disk, whatever the quota."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Final

from protocol.codec.names import OPERATOR
from sfsd.errors import Refused
from sfsd.net.user_rates import TokenBucket

DAY: Final = 86_400.0


class LineLimits:
    """Token buckets of the lines that each user's changes, and each user's logins, add to the log.

    A bucket holds the lines of one day, and gains as many in a day. Changes and logins have buckets
    of their own, so that a thief who floods the log with one kind does not stop the owner from the
    other. `per_day` of 0 is no limit. The operator has none. Thread-safe.
    """

    def __init__(self, per_day: int, clock: Callable[[], float]) -> None:
        """`clock` returns seconds, and never goes back."""
        self._per_day = per_day
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, bool], TokenBucket] = {}

    def take(self, user: str, count: int = 1, *, login: bool = False) -> None:
        """Count lines of `user`. Raises `Refused` (busy), which names the wait, if there were too
        many; then they do not count."""
        if user == OPERATOR or not self._per_day:
            return
        with self._lock:
            now = self._clock()
            bucket = self._buckets.get((user, login))
            if bucket is None:
                bucket = TokenBucket(self._per_day / DAY, now, saved_seconds=DAY)
                self._buckets[user, login] = bucket
            if bucket.wait(now, count) == 0:
                bucket.take(count, now)
                return
            seconds = math.ceil(bucket.wait(now, count))
        what = "logins" if login else "changes"
        text = f"the log has as many {what} of this account as a day may have"
        raise Refused("busy", f"{text}; try again in {seconds:,} s")

    def set_per_day(self, per_day: int) -> None:
        """Apply another limit to every user."""
        with self._lock:
            now = self._clock()
            self._per_day = per_day
            if not per_day:
                self._buckets.clear()
            for bucket in self._buckets.values():
                bucket.set_rate(per_day / DAY, now)

    def forget_idle(self) -> None:
        """Forget users who have saved all that they can: a new bucket is the same."""
        with self._lock:
            now = self._clock()
            for key, bucket in list(self._buckets.items()):
                if bucket.is_full(now):
                    del self._buckets[key]
