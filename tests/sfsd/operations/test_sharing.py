"""Looking up other people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol import auditlog, merkle
from protocol.checkpoint import verify
from protocol.messages.sharing import Identity, Lookup
from sfsd.world import Access
from tests.sfsd.builders import VERIFIER, Daemon, Person, daemon, refused


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path) as running:
        yield running


def test_a_statement_comes_with_its_place_in_the_log(served: Daemon) -> None:
    ada, bob = served.person("ada"), served.person("bob")
    reply = ada.ask(Lookup("bob", 1))
    assert isinstance(reply, Identity)
    (link,) = reply.statements
    assert (link.statement, reply.next) == (bob.first.encode(), 0)
    point = verify(reply.checkpoint, VERIFIER)
    entry = auditlog.parse(link.line, seq=link.index)
    assert (entry.op, entry.owner, entry.rec) == ("enrol", "bob", link.statement)
    leaf = merkle.leaf_hash(entry.hash)
    merkle.verify_inclusion(leaf, link.index, point.size, link.inclusion, point.root)
    assert "192.0.2.7" not in link.line.decode()  # others see it
    old = ada.who.known_size
    assert bool(reply.consistency) == (old != point.size)


def test_past_the_end_of_a_chain_there_is_nothing(served: Daemon) -> None:
    ada = served.person("ada")
    reply = ada.ask(Lookup("ada", 2))
    assert isinstance(reply, Identity)
    assert (reply.statements, reply.next) == ((), 0)


def test_the_invited_and_the_unknown_look_the_same(served: Daemon) -> None:
    ada = served.person("ada")
    served.ask(served.operator(), Person("eve", served).invitation())
    invited = refused(ada.ask(Lookup("eve", 1)), "not-found")
    assert invited == refused(ada.ask(Lookup("nobody", 1)), "not-found")


def test_an_older_key_looks_up_its_own_user_only(served: Daemon) -> None:
    ada = served.person("ada")
    served.person("bob")
    who, _ = served.open(ada.enroll())
    assert who.access is Access.RESTRICTED
    assert isinstance(served.ask(who, Lookup("ada", 1)), Identity)
    refused(served.ask(who, Lookup("bob", 1)), "not-allowed")
