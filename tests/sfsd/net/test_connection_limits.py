"""Limits on connections, and counters of rejected ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfsd.config import ConnectionLimits
from sfsd.net.connection_limits import (
    ConnectionLimiter,
    IncidentCounter,
    is_local,
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


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::2:0:0:0:1", False),
     ("192.0.2.127", False), ("fe80::1", False)],
)  # fmt: skip
def test_local_addresses(host: str, local: bool) -> None:
    assert is_local(source_network(normalized_address(host))) is local


def test_limits_of_one_address() -> None:
    limiter = ConnectionLimiter(LIMITS)
    assert [limiter.admit("192.0.2.1") for _ in range(4)] == [True, True, True, False]
    assert limiter.admit("192.0.2.2")
    limiter.authenticated("192.0.2.1")
    assert limiter.admit("192.0.2.1")
    limiter.authenticated("192.0.2.1")
    assert not limiter.admit("192.0.2.1"), "four connections of one address, two before login"
    limiter.release("192.0.2.1", logged_in=True)
    assert limiter.admit("192.0.2.1")


def test_limit_on_all_unauthenticated_connections() -> None:
    limiter = ConnectionLimiter(LIMITS)
    assert [limiter.admit(f"192.0.2.{n}") for n in range(6)] == [True] * 5 + [False]
    limiter.release("192.0.2.0", logged_in=False)
    assert limiter.admit("192.0.2.9")


def test_limit_on_all_connections() -> None:
    limiter = ConnectionLimiter(LIMITS)
    for n in range(8):
        assert limiter.admit(f"192.0.2.{n}")
        limiter.authenticated(f"192.0.2.{n}")
    assert not limiter.admit("192.0.2.100")


def test_local_connections_are_exempt_from_the_total() -> None:
    limiter = ConnectionLimiter(LIMITS)
    for n in range(5):
        assert limiter.admit(f"192.0.2.{n}")
    assert [limiter.admit("127.0.0.1") for _ in range(4)] == [True, True, True, False]


@given(st.lists(st.tuples(st.sampled_from(["in", "login", "out"]), st.integers(0, 4))))
def test_limiter_agrees_with_a_list_of_connections(steps: list[tuple[str, int]]) -> None:
    """Compare with a list of connections; after all are released, nothing is counted."""
    limiter = ConnectionLimiter(LIMITS)
    here: list[tuple[str, bool]] = []
    for step, which in steps:
        source = f"192.0.2.{which}"
        if step == "in":
            mine = [known for other, known in here if other == source]
            room = (
                len(here) < 8
                and sum(not known for _, known in here) < 5
                and len(mine) < 4
                and mine.count(False) < 3
            )
            assert limiter.admit(source) is room
            if room:
                here.append((source, False))
        elif step == "login" and (source, False) in here:
            here[here.index((source, False))] = (source, True)
            limiter.authenticated(source)
        elif step == "out" and which < len(here):
            left, known = here.pop(which)
            limiter.release(left, logged_in=known)
        assert limiter.connections.total() == len(here)
        assert limiter.unauthenticated.total() == sum(not known for _, known in here)
    for source, known in here:
        limiter.release(source, logged_in=known)
    assert not limiter.connections
    assert not limiter.unauthenticated


def test_incidents_are_reported_once() -> None:
    incidents = IncidentCounter()
    assert incidents.report() is None
    for kind in ("no TLS", "broke the protocol", "no TLS"):
        incidents.count(kind)
    assert incidents.report() == "no TLS: 2, broke the protocol: 1"
    assert incidents.report() is None
