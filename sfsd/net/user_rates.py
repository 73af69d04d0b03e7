"""Limits on the requests and bytes of one user each second, over all connections of the user.

A request over the limit is not refused: it waits, and meanwhile nothing more is read from its
connection.
"""

from __future__ import annotations

from typing import Final

from protocol.codec.names import OPERATOR
from sfsd.settings.config import ConnectionLimits

_BURST_SECONDS: Final = 1.0
"""Time for which a user who asked for nothing has saved requests and bytes."""


class TokenBucket:
    """Token bucket that may go into debt: the size of an answer is known only once it is made.

    It gains `rate` tokens a second, and holds at most what it gains in `saved_seconds`. A `rate`
    of 0 is no limit. `now` is in seconds of any clock that never goes back.
    """

    def __init__(self, rate: float, now: float, saved_seconds: float = _BURST_SECONDS) -> None:
        self._rate = rate
        self._saved_seconds = saved_seconds
        self._most = self._tokens = rate * saved_seconds
        self._at = now

    def set_rate(self, rate: float, now: float) -> None:
        """Go on with another rate; debts stay. A bucket without a limit before begins full."""
        self._refill(now)
        unlimited = not self._rate
        self._rate = rate
        self._most = rate * self._saved_seconds
        self._tokens = self._most if unlimited else min(self._tokens, self._most)

    def take(self, amount: float, now: float) -> None:
        """Remove `amount` tokens, also if there are fewer."""
        if self._rate:
            self._refill(now)
            self._tokens -= amount

    def wait(self, now: float, tokens: float = 0) -> float:
        """Return the seconds until the bucket holds that many tokens, or with 0 any part of one: 0
        if it does now."""
        if not self._rate:
            return 0.0
        self._refill(now)
        if self._tokens > 0 and self._tokens >= tokens:
            return 0.0
        return (tokens - self._tokens) / self._rate + _LEAST_WAIT

    def is_full(self, now: float) -> bool:
        """Tell whether a new bucket would hold as many tokens."""
        self._refill(now)
        return self._tokens >= self._most

    def _refill(self, now: float) -> None:
        gained = (now - self._at) * self._rate
        self._tokens = min(self._tokens + gained, self._most)
        self._at = now


_LEAST_WAIT: Final = 0.001
"""Seconds added to a wait, so that a timer that rounds down does not find the bucket empty."""


class UserRate:
    """Requests and bytes of one user."""

    def __init__(self, limits: ConnectionLimits, now: float) -> None:
        self._requests = TokenBucket(limits.user_requests_per_second, now)
        self._bytes = TokenBucket(limits.user_bytes_per_second, now)

    def set_limits(self, limits: ConnectionLimits, now: float) -> None:
        """Go on with other limits."""
        self._requests.set_rate(limits.user_requests_per_second, now)
        self._bytes.set_rate(limits.user_bytes_per_second, now)

    def take(self, *, requests: int = 0, size: int = 0, now: float) -> None:
        """Count requests that start, or `size` bytes that were received or sent."""
        self._requests.take(requests, now)
        self._bytes.take(size, now)

    def wait(self, now: float) -> float:
        """Return the seconds until the user's next request may start; 0 if it may now."""
        return max(self._requests.wait(now), self._bytes.wait(now))

    def is_idle(self, now: float) -> bool:
        """Tell whether the user has saved as much as a new one: nothing is lost by forgetting."""
        return self._requests.is_full(now) and self._bytes.is_full(now)


class UserRates:
    """`UserRate` of each user with sessions, and of others until they are as good as new: a user
    must not gain by connecting again."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._rates: dict[str, UserRate] = {}

    def of(self, user: str, now: float) -> UserRate | None:
        """Return the rate of `user`, which all sessions of the user share; None without limits."""
        limits = self._limits
        if user == OPERATOR or not limits.user_requests_per_second | limits.user_bytes_per_second:
            return None
        rate = self._rates.get(user)
        if rate is None:
            rate = self._rates[user] = UserRate(self._limits, now)
        return rate

    def set_limits(self, limits: ConnectionLimits, now: float) -> None:
        """Apply new limits to every user."""
        self._limits = limits
        for rate in self._rates.values():
            rate.set_limits(limits, now)

    def forget_idle(self, present: set[str], now: float) -> None:
        """Forget users without a session, if they have saved all that they can; `present` have
        sessions."""
        for user, rate in list(self._rates.items()):
            if user not in present and rate.is_idle(now):
                del self._rates[user]
