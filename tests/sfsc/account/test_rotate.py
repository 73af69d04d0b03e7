"""A rotation against a real daemon that refuses, forgets or lies at one step."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

import sfsc
from protocol.codec.values import changed
from protocol.wire.messages import Done, Error, Message, Reply, Request
from protocol.wire.messages.changes import Committed
from protocol.wire.messages.rotation import (
    GetWraps,
    NewStatement,
    RotateBegin,
    RotateFinish,
    WrapsPage,
)
from sfsc.account.rotate import Rotation
from sfsc.errors import BadReceipt, BadRecord, SfscError
from sfsc.keys.home import unlock_home
from sfsc.keys.keyring import Keyring, PendingStatement
from sfsc.store import Store
from tests.changes import receipt_of
from tests.lying_server import LyingServer


@pytest.fixture
def ada(lying_server: LyingServer) -> Path:
    home = lying_server.enrol("ada")
    with connect(home) as store:
        store.put(io.BytesIO(b"1"), name="a")
    return home


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


def saved(home: Path) -> Keyring:
    return unlock_home(home, None).contents


@pytest.mark.parametrize("times", [1, 3])
def test_a_keyring_that_another_process_has_written_is_read_again(
    monkeypatch: pytest.MonkeyPatch, ada: Path, times: int
) -> None:
    """A `put` on the same machine may adopt a label or an address while a rotation begins."""
    build, left = Rotation._new_generation, [f"files.example:{number}" for number in range(times)]

    def meanwhile(self: Rotation, *arguments: Any) -> PendingStatement:
        made = build(self, *arguments)
        if left:
            wanted = (*saved(ada).addresses, left.pop())
            unlock_home(ada, None).update(lambda keyring: changed(keyring, addresses=wanted))
        return made

    monkeypatch.setattr(Rotation, "_new_generation", meanwhile)
    with connect(ada) as store:
        assert store.rotate().generation == 2
        assert store.read_bytes("a") == b"1"
    assert len(saved(ada).addresses) == 1 + times
    assert saved(ada).pending is None


def test_new_keys_are_saved_before_they_are_sent(lying_server: LyingServer, ada: Path) -> None:
    """If the reply is lost, only the keyring has the private keys of the new generation."""
    found: list[Keyring] = []

    def look(_who: object, request: Request) -> Reply | None:
        if isinstance(request, RotateBegin):
            found.append(saved(ada))
            pending = found[-1].pending
            assert pending is not None
            assert pending.keys is not None
            assert pending.statement == request.statement
        return None

    lying_server.intercept = look
    with connect(ada) as store:
        store.rotate()
    assert len(found) == 1
    assert saved(ada).pending is None


@pytest.mark.parametrize("code", ["bad-request", "refused", "denied"])
def test_a_refused_statement_is_not_sent_again(
    lying_server: LyingServer, ada: Path, code: str
) -> None:
    sent: list[bytes] = []

    def refuse(_who: object, request: Request) -> Reply | None:
        if not isinstance(request, RotateBegin):
            return None
        sent.append(request.statement)
        return Error(code, "not today") if len(sent) == 1 else None

    lying_server.intercept = refuse
    with connect(ada) as store, pytest.raises(SfscError):
        store.rotate()
    assert saved(ada).pending is None
    with connect(ada) as store:
        assert store.rotate().generation == 2
    assert len(set(sent)) == 2


@pytest.mark.parametrize("kind", [RotateBegin, RotateFinish])
def test_a_receipt_of_another_entry_is_refused(
    lying_server: LyingServer, ada: Path, kind: type[Request]
) -> None:
    """Otherwise the client would destroy its old keys for a statement that nobody has logged."""
    receipts = []

    def swap(_who: object, request: Message, reply: Message) -> Message:
        if isinstance(reply, Committed):
            receipts.append(receipt_of(reply))
        if isinstance(reply, Done) and isinstance(request, kind):
            return Done(changed(reply.receipt, line=receipts[0].line))
        return reply

    lying_server.tamper = swap
    with connect(ada) as store:
        store.put(io.BytesIO(b"2"), name="a")
        with pytest.raises(BadReceipt):
            store.rotate()
    assert len(saved(ada).generations) >= (1 if kind is RotateBegin else 2)


def test_a_statement_that_the_server_only_says_it_has_logged_is_refused(
    lying_server: LyingServer, ada: Path
) -> None:
    """Otherwise a user would put a recovery code into a safe that recovers nothing."""
    receipts = []

    def note(_who: object, _request: Message, reply: Message) -> Message:
        if isinstance(reply, Committed):
            receipts.append(receipt_of(reply))
        return reply

    def pretend(_who: object, request: Request) -> Reply | None:
        return Done(receipts[-1]) if isinstance(request, NewStatement) else None

    lying_server.tamper = note
    with connect(ada) as store:
        store.put(io.BytesIO(b"2"), name="a")
        lying_server.intercept = pretend
        with pytest.raises(BadReceipt):
            store.set_recovery(sfsc.new_recovery_code())
    assert len(saved(ada).statements) == 1
    lying_server.honest()
    with connect(ada) as store:
        assert store.has_recovery()  # it was pending, and is sent again


def test_a_plan_counts_versions_and_their_bytes(ada: Path) -> None:
    with connect(ada) as store:
        store.put(io.BytesIO(b"12345"), name="a")
        store.put(io.BytesIO(b""), name="b")
        plan = store.rotation_plan()
    assert (plan.versions, plan.size, plan.begun, plan.damaged) == (3, 6, False, 0)


def test_a_wrap_for_an_older_key_fails_the_verification(
    lying_server: LyingServer, ada: Path
) -> None:
    pages: list[WrapsPage] = []

    def note(_who: object, request: Message, reply: Message) -> Message:
        if isinstance(request, GetWraps) and isinstance(reply, WrapsPage):
            pages.append(reply)
        return reply

    lying_server.tamper = note
    with connect(ada) as store:
        store.rotate()
        assert store.verify_rotation().files == 1
    before = next(page.items[0].wrap for page in pages if page.items)

    def show_old(_who: object, request: Message, reply: Message) -> Message:
        if isinstance(request, GetWraps) and isinstance(reply, WrapsPage):
            return changed(reply, items=tuple(changed(one, wrap=before) for one in reply.items))
        return reply

    lying_server.tamper = show_old
    with connect(ada) as store, pytest.raises(BadRecord, match="wrapped for an older key"):
        store.verify_rotation()
