"""How long, and how often, a session tries to connect again."""

from __future__ import annotations

import itertools
import math

import pytest

from sfsc.errors import Unreachable, UsageError
from sfsc.session.limits import DEFAULT_RETRY, resolve_retry
from sfsc.session.progress import Progress
from sfsc.session.retry import connect_again, pauses


class Told(Progress):
    def __init__(self) -> None:
        self.events: list[object] = []

    def reconnecting(self, cause: str, seconds: float) -> None:
        self.events.append((cause, seconds))

    def reconnected(self) -> None:
        self.events.append("end")


def test_pauses_grow_and_end_with_the_time_that_is_allowed() -> None:
    assert list(pauses(0)) == [0.0]
    assert list(pauses(DEFAULT_RETRY)) == [0.0, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0]
    assert sum(pauses(300)) <= 300 < sum(pauses(300)) + 30
    assert list(itertools.islice(pauses(math.inf), 12))[-2:] == [30.0, 30.0]


def test_each_attempt_but_the_immediate_one_is_told_until_one_succeeds() -> None:
    told, paused, outcomes = Told(), list[float](), iter([Unreachable("still down"), None])

    def connect() -> None:
        if (failure := next(outcomes)) is not None:
            raise failure

    connect_again(connect, paused.append, 16.0, told)
    assert told.events == [("still down", 0.1), "end"]
    assert paused == [0.0, 0.1]


def test_the_last_error_is_raised_if_none_succeeds() -> None:
    told = Told()

    def connect() -> None:
        raise Unreachable("down")

    with pytest.raises(Unreachable, match="down"):
        connect_again(connect, lambda _seconds: None, 0.5, told)
    assert [event for event in told.events if event != "end"] == [
        ("down", 0.1),
        ("down", 0.3),
    ]
    assert told.events[-1] == "end"


def test_the_environment_sets_the_time_unless_the_program_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SFSC_RETRY_FOR", raising=False)
    assert resolve_retry(None) == DEFAULT_RETRY
    monkeypatch.setenv("SFSC_RETRY_FOR", "5m")
    assert (resolve_retry(None), resolve_retry(2.5)) == (300.0, 2.5)
    monkeypatch.setenv("SFSC_RETRY_FOR", "long")
    with pytest.raises(UsageError, match="SFSC_RETRY_FOR"):
        resolve_retry(None)
