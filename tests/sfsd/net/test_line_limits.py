"""Each user adds a bounded number of lines to the log a day, changes and logins apart."""

from __future__ import annotations

import pytest

from protocol.codec.names import OPERATOR
from sfsd.errors import Refused
from sfsd.net.line_limits import DAY, LineLimits


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def taken(limits: LineLimits, user: str, *, login: bool = False, most: int = 1000) -> int:
    """Return how many lines the user may add now, up to `most`."""
    for count in range(most):
        try:
            limits.take(user, login=login)
        except Refused:
            return count
    return most


def test_a_new_user_may_add_the_lines_of_a_day() -> None:
    assert taken(LineLimits(48, Clock()), "ada") == 48


def test_the_refusal_names_the_wait_and_after_it_one_line_more_is_allowed() -> None:
    clock = Clock()
    limits = LineLimits(48, clock)
    taken(limits, "ada")
    with pytest.raises(Refused) as refused:
        limits.take("ada")
    assert refused.value.code == "busy"
    assert "try again in 1,801 s" in refused.value.cause  # half an hour, rounded up
    clock.now += 1801
    assert taken(limits, "ada") == 1


def test_a_refused_line_does_not_count() -> None:
    clock = Clock()
    limits = LineLimits(48, clock)
    taken(limits, "ada")
    for _ in range(100):
        clock.now += 60
        taken(limits, "ada", most=1)
    clock.now += DAY
    assert taken(limits, "ada") == 48


def test_users_and_logins_have_limits_of_their_own() -> None:
    limits = LineLimits(5, Clock())
    assert taken(limits, "mallory") == 5
    assert taken(limits, "mallory", login=True) == 5
    assert taken(limits, "ada") == 5


def test_the_operator_has_no_limit() -> None:
    limits = LineLimits(1, Clock())
    assert taken(limits, OPERATOR) == 1000
    assert taken(limits, OPERATOR, login=True) == 1000


def test_zero_is_no_limit() -> None:
    assert taken(LineLimits(0, Clock()), "ada") == 1000


def test_forgetting_idle_users_gives_nobody_lines() -> None:
    clock = Clock()
    limits = LineLimits(10, clock)
    taken(limits, "ada", most=4)
    limits.forget_idle()
    assert taken(limits, "ada") == 6
    clock.now += DAY
    limits.forget_idle()
    assert taken(limits, "ada") == 10


def test_another_limit_applies_at_once() -> None:
    clock = Clock()
    limits = LineLimits(48, clock)
    assert taken(limits, "ada") == 48
    limits.set_per_day(96)
    assert taken(limits, "ada") == 0
    clock.now += DAY / 2
    assert taken(limits, "ada") == 48
    assert taken(limits, "bob") == 96
    limits.set_per_day(0)
    assert taken(limits, "ada") == 1000
    limits.set_per_day(10)
    assert taken(limits, "ada") == 10
