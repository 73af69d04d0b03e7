"""Identity chains, shown by a server that may lie about them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from protocol.codec.values import changed
from protocol.log.auditlog import EntryDraft
from protocol.records.records import Statement, key_id, record_hash
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages.sharing import Identity, Lookup, SignedStatement
from sfsc.errors import (
    BadReceipt,
    BrokenChain,
    IntegrityError,
    ProtocolFailure,
    Rollback,
    Tampered,
)
from sfsc.keys.bundle import open_bundle
from sfsc.trust.identity_chain import fetch_newest_bundle, follow_chain
from tests.sfsc.simulator import SimulatedLog

KEY, NEXT, STRANGER = (SigningKey.from_seed(bytes([n]) * 32) for n in range(3))


class Server:
    """A log that contains ada's chain; `links` is what the server shows."""

    def __init__(self, count: int = 5) -> None:
        self.log = SimulatedLog()
        self.log.fill(3)
        self.bodies: list[bytes] = []
        self.links: list[SignedStatement] = []
        self.page = 2
        self.tamper: Callable[[Identity], Identity] = lambda shown: shown
        for _ in range(count):
            self.add()

    def add(self, signer: SigningKey = KEY, **changes: Any) -> None:
        body = self.next(**changes).encode()
        self.append(body, (signer.sign(Label.STATEMENT, body),))

    def next(self, **changes: Any) -> Statement:
        if self.bodies:
            last = Statement.parse(self.bodies[-1])
            fields: dict[str, Any] = {
                "n": last.n + 1,
                "prev": record_hash(self.bodies[-1]),
                "reason": "device",
                "created": last.created + 1,
            }
            return changed(last, **(fields | changes))
        first = Statement(
            server=self.log.server_id,
            user="ada",
            kind="user",
            n=1,
            generation=1,
            oldest=1,
            sign_pub=KEY.public,
            wrap_alg="x25519",
            wrap_pub=b"w" * 32,
            devices=(),
            recovery=None,
            custodians=(),
            writers=(),
            voids=(),
            bundle_sha256=bytes(32),
            created=1,
            due=2,
            expires=3,
            prev=b"",
            reason="enrol",
            tag_commit=bytes(32),
        )
        return changed(first, **changes)

    def append(self, body: bytes, signatures: tuple[bytes, ...], owner: str = "ada") -> None:
        sigs = {key_id("ed25519", KEY.public).hex(): signatures[0]}
        draft = EntryDraft(op="statement", actor=owner, owner=owner, rec=body, sigs=sigs)
        seq = self.log.append(draft)
        self.bodies.append(body)
        self.links.append(SignedStatement(body, signatures, seq, self.log.lines[seq]))

    def ask(self, request: Lookup) -> Identity:
        start = request.first - 1
        shown = self.links[start : start + self.page]
        end = start + len(shown)
        return self.tamper(Identity(tuple(shown), end + 1 if end < len(self.links) else 0))

    def follow(self, known: int = 0, first: bytes | None = None) -> tuple[bytes, ...]:
        pinned = record_hash(self.bodies[0]) if first is None else first
        known_bodies = tuple(self.bodies[:known])
        shown = follow_chain(self.ask, self.log.server_id, "ada", pinned, known_bodies)
        assert [n for n, _ in shown.entries] == list(range(known + 1, len(shown.chain) + 1))
        for n, entry in shown.entries:
            assert (entry.seq, entry.rec) == (self.links[n - 1].index, shown.chain[n - 1])
        return shown.chain


@pytest.mark.parametrize("known", [0, 1, 3, 5])
@pytest.mark.parametrize("page", [1, 2, 5, 8])
def test_chain_is_verified(known: int, page: int) -> None:
    server = Server()
    server.page = page
    assert server.follow(known) == tuple(server.bodies)


def test_rotation_is_verified() -> None:
    server = Server(1)
    statement = server.next(reason="rotate", generation=2, sign_pub=NEXT.public, due=9, expires=10)
    body = statement.encode()
    signatures = NEXT.sign(Label.STATEMENT, body), KEY.sign(Label.STATEMENT, body)
    server.append(body, signatures)
    assert server.follow() == tuple(server.bodies)


@pytest.mark.parametrize("moves", [0, 1, 3])
def test_bundle_newer_than_the_chain(moves: int) -> None:
    """Another device published between the two requests."""
    server = Server(2)
    server.add(bundle_sha256=hashlib.sha256(b"bundle 0").digest())
    published = 0

    def fetch() -> bytes:
        nonlocal published
        if published < moves:
            published += 1
            server.add(bundle_sha256=hashlib.sha256(b"bundle %d" % published).digest())
        return b"bundle %d" % published

    def follow_on(known: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return server.follow(len(known))

    chain, sealed = fetch_newest_bundle(server.follow(), follow_on, fetch)
    assert (chain, sealed) == (tuple(server.bodies), b"bundle %d" % moves)
    assert Statement.parse(chain[-1]).bundle_sha256 == hashlib.sha256(sealed).digest()


def test_bundle_named_by_no_statement_is_returned() -> None:
    """The chain does not continue to a statement that names it, and `open_bundle` refuses it."""
    server = Server(2)
    server.add(bundle_sha256=hashlib.sha256(b"bundle").digest())
    chain = server.follow()
    asked = []

    def follow_on(known: tuple[bytes, ...]) -> tuple[bytes, ...]:
        asked.append(known)
        return server.follow(len(known))

    assert fetch_newest_bundle(chain, follow_on, lambda: b"another") == (chain, b"another")
    assert asked == [chain]
    with pytest.raises(Tampered):
        open_bundle(b"another", Statement.parse(chain[-1]), [])


def test_other_first_statement_than_pinned_is_refused() -> None:
    with pytest.raises(BrokenChain) as caught:
        Server().follow(first=bytes(32))
    assert (caught.value.pinned, caught.value.shown) != (None, None)


LIES: dict[str, tuple[Callable[[Identity], Identity], type[IntegrityError] | type[Exception]]] = {
    "the first left out": (
        lambda page: changed(page, statements=page.statements[1:]),
        BrokenChain,
    ),
    "one twice": (lambda page: changed(page, statements=page.statements[:1] * 2), BrokenChain),
    "swapped": (lambda page: changed(page, statements=page.statements[::-1]), BrokenChain),
    "no signatures": (
        lambda page: changed(
            page, statements=tuple(changed(one, signatures=()) for one in page.statements)
        ),
        BrokenChain,
    ),
    "other signatures": (
        lambda page: changed(
            page,
            statements=tuple(
                changed(one, signatures=(STRANGER.sign(Label.STATEMENT, one.statement),))
                for one in page.statements
            ),
        ),
        BrokenChain,
    ),
    "a line that says something else": (
        lambda page: changed(
            page,
            statements=tuple(
                changed(one, statement=one.statement + b"\0") for one in page.statements
            ),
        ),
        BrokenChain,
    ),
    "a line that is none": (
        lambda page: changed(
            page, statements=tuple(changed(one, line=b"{}") for one in page.statements)
        ),
        BadReceipt,
    ),
    "another place": (
        lambda page: changed(
            page, statements=tuple(changed(one, index=one.index + 1) for one in page.statements)
        ),
        BadReceipt,
    ),
    "round in circles": (lambda page: changed(page, next=1), ProtocolFailure),
    "a gap": (lambda page: changed(page, next=page.next + 1), ProtocolFailure),
    "nothing, and more": (lambda page: changed(page, statements=(), next=1), ProtocolFailure),
    "nothing": (lambda page: changed(page, statements=(), next=0), Rollback),
}


@pytest.mark.parametrize("lie", LIES)
def test_false_chains_are_refused(lie: str) -> None:
    server = Server()
    server.tamper, error = LIES[lie]
    with pytest.raises(error):
        server.follow()


def test_shorter_chain_is_a_rollback() -> None:
    server = Server()
    known = tuple(server.bodies)
    del server.links[2:]
    with pytest.raises(Rollback):
        follow_chain(server.ask, server.log.server_id, "ada", record_hash(known[0]), known)


def test_diverging_chain_is_refused() -> None:
    server = Server()
    known = tuple(server.bodies)
    del server.links[4:], server.bodies[4:]
    server.add(created=77)
    server.add()
    with pytest.raises(BrokenChain):
        follow_chain(server.ask, server.log.server_id, "ada", record_hash(known[0]), known)


def test_statement_outside_the_log_is_refused() -> None:
    server = Server(2)
    body = server.next().encode()
    forged = SignedStatement(body, (KEY.sign(Label.STATEMENT, body),), 0, server.log.lines[0])
    server.links.append(forged)
    with pytest.raises(BadReceipt):
        server.follow()


def test_statement_of_another_user_is_refused() -> None:
    server = Server(1)
    body = server.next().encode()
    server.append(body, (KEY.sign(Label.STATEMENT, body),), owner="eve")
    with pytest.raises(BadReceipt):
        server.follow()
