"""Limits on connections, and counters of rejected ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.names import OPERATOR
from protocol.codec.values import changed
from sfsd.errors import Refused
from sfsd.net.connection_limits import (
    KEPT_FOR_OPERATOR,
    ConnectionLimiter,
    IncidentCounter,
    normalized_address,
    source_network,
)
from sfsd.settings.config import ConnectionLimits

LIMITS = ConnectionLimits(
    unauthenticated=10, unauthenticated_per_address=6, connections=8, connections_per_address=4
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


def test_connections_after_the_handshake_have_places_of_their_own() -> None:
    limiter = ConnectionLimiter[str](LIMITS)
    for number in range(3):
        assert limiter.admit(f"old{number}", "a") is None
        assert limiter.handshaken(f"old{number}") is None
    assert limiter.handshaken("old0") is None, "no second time"
    for number in range(3):
        assert limiter.admit(f"silent{number}", "a") is None
    assert limiter.admit("new", "a") == "silent0"
    assert limiter.handshaken("new") == "old0"
    assert limiter.handshaken("old0") is None, "it is gone"
    assert limiter.connections == 5


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


STEPS = st.sampled_from(["in", "handshake", "login", "out"])


def has_room(
    known: list[tuple[str, str]], limits: ConnectionLimits, source: str, user: str
) -> bool:
    """Tell whether `user` may log in from `source` beside sessions of (source, user)."""
    users = [(origin, who) for origin, who in known if who != OPERATOR]
    return len(known) < limits.connections and (
        user == OPERATOR
        or (
            len(users) < limits.connections - KEPT_FOR_OPERATOR
            and [who for _, who in users].count(user) < limits.user_connections
            and [origin for origin, _ in users].count(source) < limits.connections_per_address
        )
    )


def check_victim(victim: int | None, there: dict[int, str], source: str) -> None:
    """Check which of the connections in a stage goes in favour of one of `source`."""
    same = [number for number, origin in there.items() if origin == source]
    if len(same) == LIMITS.unauthenticated_per_address // 2:
        assert victim == same[0]
    elif len(there) == LIMITS.unauthenticated // 2:
        assert victim in there
    else:
        assert victim is None


@given(st.lists(st.tuples(STEPS, SOURCES, USERS)))
def test_limiter_agrees_with_a_list_of_connections(steps: list[tuple[str, str, str]]) -> None:
    """Compare with a list of connections; after all are released, nothing is counted."""
    limits = changed(LIMITS, user_connections=3)
    limiter = ConnectionLimiter[int](limits)
    stages: dict[str, dict[int, str]] = {"in": {}, "handshake": {}}  # oldest first
    known: dict[int, tuple[str, str]] = {}
    for number, (step, source, user) in enumerate(steps):
        waiting = [*stages["handshake"], *stages["in"]]
        if step == "in" or (step == "handshake" and stages["in"]):
            if step == "in":
                one, victim = number, limiter.admit(number, source)
            else:
                one, source = next(iter(stages["in"].items()))
                del stages["in"][one]
                victim = limiter.handshaken(one)
            there = stages[step]
            check_victim(victim, there, source)
            there.pop(victim, None)  # type: ignore[arg-type]
            there[one] = source
        elif step == "login" and waiting:
            one = waiting[0]
            source = stages["handshake"].get(one) or stages["in"][one]
            if has_room(list(known.values()), limits, source, user):
                limiter.log_in(one, user)
                known[one] = (source, user)
                for stage in stages.values():
                    stage.pop(one, None)
            else:
                with pytest.raises(Refused):
                    limiter.log_in(one, user)
        elif step == "out" and (waiting or known):
            one = next(iter([*known, *waiting]))
            for table in (known, *stages.values()):
                table.pop(one, None)  # type: ignore[attr-defined]
            limiter.release(one)
            limiter.release(one)
        assert limiter.connections == len(known) + sum(map(len, stages.values()))
        assert limiter.sessions == len(known)
        assert limiter.users() == {who for _, who in known.values() if who != OPERATOR}
    for one in (*known, *stages["in"], *stages["handshake"]):
        limiter.release(one)
    assert limiter.connections == limiter.sessions == 0
    assert not limiter.users()
    assert not limiter._silent._sources
    assert not limiter._greeted._sources
    assert limiter._silent._count == limiter._greeted._count == limiter._of_source.total() == 0


def test_incidents_are_reported_once() -> None:
    incidents = IncidentCounter()
    assert incidents.report() is None
    for kind in ("no TLS", "broke the protocol", "no TLS"):
        incidents.count(kind)
    assert incidents.report() == "no TLS: 2, broke the protocol: 1"
    assert incidents.report() is None


def test_other_limits_apply_to_the_next_connections() -> None:
    limiter = ConnectionLimiter[int](LIMITS)
    for number in range(3):
        assert limiter.admit(number, "a") is None
        limiter.log_in(number, "ada")
    limiter.set_limits(changed(LIMITS, user_connections=2, unauthenticated_per_address=1))
    assert limiter.sessions == 3
    assert limiter.admit(10, "a") is None
    with pytest.raises(Refused, match="this account"):
        limiter.log_in(10, "ada")
    assert limiter.admit(11, "a") == 10  # one place before login
    limiter.set_limits(LIMITS)
    assert limiter.admit(12, "a") is None
    limiter.log_in(12, "ada")
