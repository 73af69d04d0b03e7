"""The caps on connections, and the counting of what was turned away."""

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
def test_whom_a_connection_counts_against(host: str, shown: str, source: str) -> None:
    assert normalized_address(host) == shown
    assert source_network(shown) == source


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::2:0:0:0:1", False),
     ("192.0.2.127", False), ("fe80::1", False)],
)  # fmt: skip
def test_this_machine(host: str, local: bool) -> None:
    assert is_local(source_network(normalized_address(host))) is local


def test_one_address_gets_its_share() -> None:
    gate = ConnectionLimiter(LIMITS)
    assert [gate.admit("192.0.2.1") for _ in range(4)] == [True, True, True, False]
    assert gate.admit("192.0.2.2")
    gate.recognise("192.0.2.1")
    assert gate.admit("192.0.2.1")
    gate.recognise("192.0.2.1")
    assert not gate.admit("192.0.2.1"), "four connections of one address, two before login"
    gate.leave("192.0.2.1", known=True)
    assert gate.admit("192.0.2.1")


def test_strangers_in_all() -> None:
    gate = ConnectionLimiter(LIMITS)
    assert [gate.admit(f"192.0.2.{n}") for n in range(6)] == [True] * 5 + [False]
    gate.leave("192.0.2.0", known=False)
    assert gate.admit("192.0.2.9")


def test_connections_in_all() -> None:
    gate = ConnectionLimiter(LIMITS)
    for n in range(8):
        assert gate.admit(f"192.0.2.{n}")
        gate.recognise(f"192.0.2.{n}")
    assert not gate.admit("192.0.2.100")


def test_the_operator_gets_in_whoever_holds_the_places() -> None:
    gate = ConnectionLimiter(LIMITS)
    for n in range(5):
        assert gate.admit(f"192.0.2.{n}")
    assert [gate.admit("127.0.0.1") for _ in range(4)] == [True, True, True, False]


@given(st.lists(st.tuples(st.sampled_from(["in", "login", "out"]), st.integers(0, 4))))
def test_nothing_is_forgotten_or_counted_twice(steps: list[tuple[str, int]]) -> None:
    """Against a plain list of connections; at the end all leave and nothing is left."""
    gate = ConnectionLimiter(LIMITS)
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
            assert gate.admit(source) is room
            if room:
                here.append((source, False))
        elif step == "login" and (source, False) in here:
            here[here.index((source, False))] = (source, True)
            gate.recognise(source)
        elif step == "out" and which < len(here):
            left, known = here.pop(which)
            gate.leave(left, known=known)
        assert gate.connections.total() == len(here)
        assert gate.strangers.total() == sum(not known for _, known in here)
    for source, known in here:
        gate.leave(source, known=known)
    assert not gate.connections
    assert not gate.strangers


def test_incidents_are_told_once() -> None:
    incidents = IncidentCounter()
    assert incidents.report() is None
    for kind in ("no TLS", "broke the protocol", "no TLS"):
        incidents.count(kind)
    assert incidents.report() == "no TLS: 2, broke the protocol: 1"
    assert incidents.report() is None
