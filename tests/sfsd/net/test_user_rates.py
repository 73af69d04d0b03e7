"""Limits on what one user does each second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.names import OPERATOR
from sfsd.net.user_rates import TokenBucket, UserRate, UserRates
from sfsd.settings.config import ConnectionLimits

MIB = 1 << 20


def served(rate: UserRate, size: int, seconds: float) -> int:
    """Return how many requests of `size` bytes start within `seconds`, if as many as may do."""
    now, started = 0.0, 0
    while now < seconds:
        wait = rate.wait(now)
        if wait:
            now += wait
        else:
            rate.take(requests=1, size=size, now=now)
            started += 1
    return started


@pytest.mark.parametrize(
    ("requests", "size", "most"),
    [(10, 0, 10 * 61), (1000, 8 * MIB, 60 * 4 // 8 + 2), (0, MIB, 61 * 4), (1, 4 * MIB, 61)],
)
def test_rates_hold_over_a_minute(requests: int, size: int, most: int) -> None:
    limits = ConnectionLimits(user_requests_per_second=requests, user_bytes_per_second=4 * MIB)
    assert 0.9 * most - 1 <= served(UserRate(limits, 0.0), size, 60.0) <= most + 1


def test_an_idle_user_saves_one_second() -> None:
    bucket = TokenBucket(10, 0.0)
    for now in (0.0, 1000.0):
        for _ in range(10):
            assert bucket.wait(now) == 0
            bucket.take(1, now)
        assert bucket.wait(now) > 0


@given(st.lists(st.integers(0, 50 * MIB), max_size=20), st.integers(1, 10**6))
def test_the_wait_is_never_too_short_or_much_too_long(sizes: list[int], rate: int) -> None:
    bucket, now = TokenBucket(rate, 0.0), 0.0
    for size in sizes:
        bucket.take(size, now)
        wait = bucket.wait(now)
        assert 0 <= wait <= sum(sizes) / rate + 0.002
        now += wait
        assert bucket.wait(now) == 0


def test_no_limits_and_the_operator() -> None:
    assert UserRates(ConnectionLimits()).of("ada", 0.0) is None
    rates = UserRates(ConnectionLimits(user_requests_per_second=1))
    assert rates.of(OPERATOR, 0.0) is None
    assert rates.of("ada", 0.0) is not None


def test_a_user_gains_nothing_by_connecting_again() -> None:
    rates = UserRates(ConnectionLimits(user_bytes_per_second=MIB))
    rate = rates.of("ada", 0.0)
    assert rate is not None
    rate.take(size=10 * MIB, now=0.0)
    rates.forget_idle(set(), 5.0)
    assert rates.of("ada", 5.0) is rate
    assert rate.wait(5.0) > 3
    rates.forget_idle({"ada"}, 1000.0)
    assert rates.of("ada", 1000.0) is rate
    rates.forget_idle(set(), 1000.0)
    assert rates.of("ada", 1000.0) is not rate


def test_new_limits_apply_to_users_who_are_known() -> None:
    rates = UserRates(ConnectionLimits(user_requests_per_second=10))
    ada = rates.of("ada", 0.0)
    assert ada is not None
    ada.take(requests=10, now=0.0)
    assert ada.wait(0.0) > 0
    rates.set_limits(ConnectionLimits(user_requests_per_second=1000), 0.0)
    assert ada.wait(0.0) > 0  # what was taken stays taken
    assert ada.wait(0.01) == 0
    rates.set_limits(ConnectionLimits(user_bytes_per_second=MIB), 1.0)
    ada.take(requests=10_000, now=1.0)
    assert ada.wait(1.0) == 0
    ada.take(size=MIB, now=1.0)  # a limit that is new begins with what an idle user has saved
    assert 0 < ada.wait(1.0) < 0.1
    rates.set_limits(ConnectionLimits(), 1.0)
    assert ada.wait(1.0) == 0
    assert rates.of("ada", 1.0) is None
