"""A user's own chain: a statement onto the newest one, and the bundle that goes with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol.messages import Reply
from protocol.messages.rotation import GetBundle, NewStatement, SealedBundle
from protocol.messages.sharing import Identity, Lookup
from protocol.records import RecoveryKey, Statement, record_hash
from protocol.signatures import Label, SigningKey
from tests.sfsd.builders import (
    Daemon,
    Person,
    check_receipt,
    daemon,
    done,
    file_id,
    login,
    refused,
)

DEVICE = (b"d" * 16, b"x" * 1216)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path) as running:
        yield running


@pytest.fixture
def ada(served: Daemon) -> Person:
    return served.person("ada")


def onto(
    before: Statement, *keys: SigningKey, bundle: bytes = b"bundle 2", **changed: Any
) -> NewStatement:
    fields: dict[str, Any] = {
        "n": before.n + 1,
        "prev": record_hash(before.encode()),
        "reason": "device",
        "bundle_sha256": hashlib.sha256(bundle).digest(),
    }
    body = replace(before, **(fields | changed)).encode()
    return NewStatement(body, tuple(key.sign(Label.STATEMENT, body) for key in keys), bundle)


def chain(reply: Reply) -> list[bytes]:
    assert isinstance(reply, Identity), reply
    return [one.statement for one in reply.statements]


def test_a_device_joins_the_chain(served: Daemon, ada: Person) -> None:
    assert ada.ask(GetBundle()) == SealedBundle(ada.bundle)
    joined = onto(ada.first, ada.key, devices=(DEVICE,))
    entry = check_receipt(done(ada.ask(joined)), joined.statement)
    assert (entry.op, entry.owner, entry.detail["n"]) == ("statement", "ada", 2)
    assert entry.paths.keys() == {"ada/statements.json", "ada/bundle"}
    assert ada.ask(GetBundle()) == SealedBundle(b"bundle 2")
    bodies = [ada.first.encode(), joined.statement]
    bob = served.person("bob")
    assert chain(ada.ask(Lookup("ada", 1))) == chain(bob.ask(Lookup("ada", 1))) == bodies
    assert chain(bob.ask(Lookup("ada", 2))) == bodies[1:]
    # The same bytes again get the same receipt, and work goes on.
    again = check_receipt(done(ada.ask(joined)), joined.statement)
    assert again.seq == entry.seq
    ada.put(file_id(1))
    assert len(served.entries("statement")) == 1


def test_it_survives_a_restart(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        ada = served.person("ada")
        joined = onto(ada.first, ada.key, devices=(DEVICE,))
        done(ada.ask(joined))
    with daemon(tmp_path, served.clock) as served:
        ada.served = served
        ada.who = ada.log_in()
        assert chain(ada.ask(Lookup("ada", 2))) == [joined.statement]
        assert ada.ask(GetBundle()) == SealedBundle(b"bundle 2")


def test_who_is_overtaken_is_told(ada: Person) -> None:
    first = onto(ada.first, ada.key, devices=(DEVICE,))
    second = onto(ada.first, ada.key, devices=(), created=ada.first.created + 1)
    done(ada.ask(first))
    refused(ada.ask(second), "conflict")
    refused(ada.ask(onto(ada.first, ada.key, n=7)), "conflict")


def test_the_recovery_key_continues_the_chain(served: Daemon, ada: Person) -> None:
    code = SigningKey.generate()
    recovery = RecoveryKey(code.public, b"y" * 1216)
    made = onto(ada.first, ada.key, reason="recovery-key", recovery=recovery)
    done(ada.ask(made))
    second = Statement.parse(made.statement)
    session = served.open(login("ada", code, generation=0))[0]
    assert served.ask(session, GetBundle()) == SealedBundle(b"bundle 2")
    replaced = replace(recovery, xwing_pub=b"z" * 1216)
    stolen = onto(second, ada.key, reason="recovery-key", recovery=replaced)
    refused(ada.ask(stolen), "bad-request")
    rightful = onto(second, ada.key, code, reason="recovery-key", recovery=replaced)
    entry = check_receipt(done(served.ask(session, rightful)), rightful.statement)
    assert len(entry.sigs) == 2


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "a rotation": ("bad-request", {"reason": "rotate"}),
    "a finish": ("bad-request", {"reason": "finish"}),
    "another generation": ("bad-request", {"generation": 2}),
    "another key": ("bad-request", {"wrap_pub": b"v" * 32}),
    "another bundle": ("bad-request", {"bundle_sha256": bytes(32)}),
    "a clock that is wrong": ("bad-request", {"created": 5}),
    "a device that is none": ("bad-request", {"devices": ((b"d" * 16, b"x" * 100),)}),
    "a device twice": ("bad-request", {"devices": (DEVICE, DEVICE)}),
    "somebody else's": ("bad-request", {"user": "bob"}),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_statement_that_breaks_a_rule_is_refused(ada: Person, case: str) -> None:
    code, changed = WRONG[case]
    refused(ada.ask(onto(ada.first, ada.key, **changed)), code)
    assert chain(ada.ask(Lookup("ada", 1))) == [ada.first.encode()]


def test_a_statement_by_a_stranger(ada: Person) -> None:
    refused(ada.ask(onto(ada.first, SigningKey.generate())), "refused")
    refused(ada.ask(NewStatement(b"\x80", (), b"")), "bad-request")


def test_a_bundle_that_is_not_the_chains(served: Daemon, ada: Person) -> None:
    path = served.world.store.users / "ada" / "bundle"
    path.write_bytes(b"another")
    refused(ada.ask(GetBundle()), "damaged")
    path.unlink()
    refused(ada.ask(GetBundle()), "damaged")


def test_a_chain_of_many(served: Daemon, ada: Person) -> None:
    before = ada.first
    for number in range(40):
        made = onto(before, ada.key, devices=((bytes([number]) * 16, DEVICE[1]),))
        done(ada.ask(made))
        before = Statement.parse(made.statement)
    found: list[bytes] = []
    first = 1
    while first:
        page = ada.ask(Lookup("ada", first))
        assert isinstance(page, Identity)
        found += chain(page)
        first = page.next
    assert len(found) == 41
    assert found[-1] == before.encode()
