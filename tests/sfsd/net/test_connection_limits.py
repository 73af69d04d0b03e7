"""Limits on connections, and counters of rejected ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.names import OPERATOR
from protocol.codec.values import changed
from sfsd.config import ConnectionLimits
from sfsd.errors import Refused
from sfsd.net.connection_limits import (
    KEPT_FOR_OPERATOR,
    ConnectionLimiter,
    IncidentCounter,
    normalized_address,
    source_network,
)

LIMITS = ConnectionLimits(
    unauthenticated=5, unauthenticated_per_address=3, connections=8, connections_per_address=4
)


@pytest.mark.parametrize(
    ("host", "shown", "source"),
    [
        ("192.0.2.7", "192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::1", "fe80::/64"),
    ],
)
def test_source_of_a_connection(host: str, shown: str, source: str) -> None:
    assert normalized_address(host) == shown
    assert source_network(shown) == source


def test_connections_of_one_address_take_places_of_each_other_only() -> None:
    limiter = ConnectionLimiter[str](LIMITS)
    assert limiter.admit("other", "192.0.2.2") is None
    assert [limiter.admit(f"s{n}", "192.0.2.1") for n in range(5)] == [None, None, None, "s0", "s1"]
    assert limiter.connections == 4


def test_the_oldest_connection_of_the_largest_source_goes_if_all_places_are_taken() -> None:
    limiter = ConnectionLimiter[str](LIMITS)
    for name, source in (("a1", "a"), ("b1", "b"), ("c1", "c"), ("b2", "b"), ("c2", "c")):
        assert limiter.admit(name, source) is None
    assert limiter.admit("d1", "d") == "b1"
    assert limiter.admit("e1", "e") == "c1"
    assert limiter.admit("f1", "f") == "a1", "the oldest, as none has more than one"


@pytest.mark.parametrize("source", ["127.0.0.1", "127.1.2.3", source_network("::1")])
def test_local_addresses_have_the_same_limits(source: str) -> None:
    limiter = ConnectionLimiter[int](LIMITS)
    for n in range(5):
        assert limiter.admit(n, f"192.0.2.{n}") is None
    assert limiter.admit(5, source) == 0
    assert limiter.connections == 5


def log_in(limiter: ConnectionLimiter[int], number: int, user: str, source: str) -> str:
    """Admit a connection and log it in; return "", or code and cause of a refusal."""
    limiter.admit(number, source)
    try:
        limiter.log_in(number, user)
    except Refused as exc:
        limiter.release(number)
        return f"{exc.code}: {exc.cause}"
    return ""


def test_sessions_of_one_user() -> None:
    limiter = ConnectionLimiter[int](changed(LIMITS, user_connections=2, connections=100))
    for number in range(2):
        assert not log_in(limiter, number, "ada", f"192.0.2.{number}")
    assert "busy: this account" in log_in(limiter, 2, "ada", "192.0.2.2")
    assert not log_in(limiter, 3, "bob", "192.0.2.2")
    limiter.release(0)
    assert not log_in(limiter, 4, "ada", "192.0.2.2")


def test_sessions_of_one_address() -> None:
    limiter = ConnectionLimiter[int](changed(LIMITS, connections=100))
    for number in range(4):
        assert not log_in(limiter, number, f"user{number}", "192.0.2.1")
    assert "busy: your address" in log_in(limiter, 4, "user4", "192.0.2.1")
    assert not log_in(limiter, 5, OPERATOR, "192.0.2.1")
    limiter.release(0)
    assert not log_in(limiter, 6, "user4", "192.0.2.1")


def test_places_are_kept_for_the_operator() -> None:
    limiter = ConnectionLimiter[int](LIMITS)
    users = [log_in(limiter, n, f"user{n}", f"192.0.2.{n}") for n in range(5)]
    assert [bool(cause) for cause in users] == [False] * 4 + [True], "eight less four"
    assert "busy: the server" in users[4]
    for number in range(100, 100 + KEPT_FOR_OPERATOR):
        assert not log_in(limiter, number, OPERATOR, "127.0.0.1")
    assert limiter.sessions == LIMITS.connections
    assert log_in(limiter, 200, OPERATOR, "127.0.0.1")
    limiter.release(0)
    assert not log_in(limiter, 201, OPERATOR, "127.0.0.1")
    assert log_in(limiter, 202, "user0", "192.0.2.0"), "five sessions of the operator, three users"


def test_one_connection_in_total_is_the_first_to_come() -> None:
    limiter = ConnectionLimiter[int](changed(LIMITS, connections=1))
    assert not log_in(limiter, 1, "ada", "192.0.2.1")
    assert log_in(limiter, 2, "bob", "192.0.2.2")


SOURCES = st.integers(0, 4).map(lambda number: f"192.0.2.{number}")
USERS = st.sampled_from(["ada", "bob", "eve", OPERATOR])


@given(st.lists(st.tuples(st.sampled_from(["in", "login", "out"]), SOURCES, USERS)))
def test_limiter_agrees_with_a_list_of_connections(steps: list[tuple[str, str, str]]) -> None:
    """Compare with a list of connections; after all are released, nothing is counted."""
    limits = changed(LIMITS, user_connections=3)
    limiter = ConnectionLimiter[int](limits)
    here: dict[int, tuple[str, str | None]] = {}
    for number, (step, source, user) in enumerate(steps):
        waiting = [one for one, (_, known) in here.items() if known is None]
        if step == "in":
            same = [one for one in waiting if here[one][0] == source]
            victim = limiter.admit(number, source)
            if len(same) == limits.unauthenticated_per_address:
                assert victim == same[0]
            elif len(waiting) == limits.unauthenticated:
                assert victim in waiting
            else:
                assert victim is None
            if victim is not None:
                del here[victim]
            here[number] = (source, None)
        elif step == "login" and waiting:
            known = [(one, who) for one, who in here.values() if who is not None]
            users = [(one, who) for one, who in known if who != OPERATOR]
            source = here[waiting[0]][0]
            room = len(known) < limits.connections and (
                user == OPERATOR
                or (
                    len(users) < limits.connections - KEPT_FOR_OPERATOR
                    and [who for _, who in users].count(user) < limits.user_connections
                    and [one for one, _ in users].count(source) < limits.connections_per_address
                )
            )
            if room:
                limiter.log_in(waiting[0], user)
                here[waiting[0]] = (source, user)
            else:
                with pytest.raises(Refused):
                    limiter.log_in(waiting[0], user)
        elif step == "out" and here:
            oldest = next(iter(here))
            del here[oldest]
            limiter.release(oldest)
            limiter.release(oldest)
        assert limiter.connections == len(here)
        assert limiter.sessions == sum(known is not None for _, known in here.values())
        assert limiter.users() == {who for _, who in here.values() if who not in (None, OPERATOR)}
    for one in here:
        limiter.release(one)
    assert vars(limiter) == vars(ConnectionLimiter[int](limits))


def test_incidents_are_reported_once() -> None:
    incidents = IncidentCounter()
    assert incidents.report() is None
    for kind in ("no TLS", "broke the protocol", "no TLS"):
        incidents.count(kind)
    assert incidents.report() == "no TLS: 2, broke the protocol: 1"
    assert incidents.report() is None
