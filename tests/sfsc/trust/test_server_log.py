"""Answers of a lying server: each lie has its own error, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from protocol.codec.values import changed
from protocol.log import checkpoint
from protocol.log.auditlog import EntryDraft
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Receipt
from protocol.wire.messages.session import Welcome
from sfsc.errors import (
    BadReceipt,
    BadRecord,
    Fork,
    IntegrityError,
    ProtocolFailure,
    Rollback,
    WrongServer,
)
from sfsc.trust.server_log import SentChange, ServerTrust, TreeHead, log_keys, stored_statements
from tests.sfsc.simulator import SPKI, SimulatedLog

RECORD = b"the exact bytes that were signed"
SIGNATURES = {"a1" * 32: bytes(64)}
SENT = SentChange("upload", "ada", "ada", "0" * 32, 3, RECORD, SIGNATURES)


def greeted(log: SimulatedLog) -> ServerTrust:
    trust = ServerTrust(log.server_id)
    trust.accept_welcome(log.welcome(), SPKI)
    return trust


def upload(log: SimulatedLog, **changes: object) -> int:
    fields: dict[str, object] = {
        "op": "upload",
        "actor": "ada",
        "owner": "ada",
        "file": "0" * 32,
        "version": 3,
        "rec": RECORD,
        "sigs": SIGNATURES,
    }
    return log.append(EntryDraft(**(fields | changes)))  # type: ignore[arg-type]


# --- Welcome


def test_pinned_server_is_accepted() -> None:
    log = SimulatedLog()
    trust = ServerTrust(log.server_id)
    statement = trust.accept_welcome(log.welcome(), SPKI)
    assert (statement.n, statement.server_pub) == (1, log.server.public)


def test_cosignatures_of_witnesses_are_not_kept() -> None:
    log = SimulatedLog()
    log.fill(5)
    trust, own = greeted(log), log.checkpoint()
    cosigned = own + "— witness.example.org/w {}\n".format("AAAA" * 32).encode()
    for _ in range(2):
        assert trust.verify_note(cosigned) == TreeHead(5, log.root(5), own)


def test_other_server_is_refused() -> None:
    log, other = SimulatedLog(), SimulatedLog()
    with pytest.raises(WrongServer) as caught:
        ServerTrust(log.server_id).accept_welcome(other.welcome(), SPKI)
    assert caught.value.pinned == log.server_id.hex()
    assert caught.value.shown == other.server_id.hex()


def test_other_tls_key_is_refused() -> None:
    log = SimulatedLog()
    with pytest.raises(WrongServer):
        ServerTrust(log.server_id).accept_welcome(log.welcome(), bytes(32))


def test_each_tls_key_of_the_statement_is_accepted() -> None:
    log, keys = SimulatedLog(), (bytes(32), SPKI, b"\xff" * 32)
    body, signature = log.statement(1, SPKI, tls_spki_sha256=tuple(sorted(keys)))
    welcome = changed(log.welcome(), statement=body, signature=signature)
    for key in keys:
        assert ServerTrust(log.server_id).accept_welcome(welcome, key).n == 1
    with pytest.raises(WrongServer):
        ServerTrust(log.server_id).accept_welcome(welcome, b"k" * 32)


def resigned(log: SimulatedLog, signer: SigningKey) -> Welcome:
    welcome = log.welcome()
    return changed(welcome, signature=signer.sign(Label.SERVER_STATEMENT, welcome.statement))


def other_label(log: SimulatedLog) -> Welcome:
    welcome = log.welcome()
    return changed(welcome, signature=log.server.sign(Label.STATEMENT, welcome.statement))


def stated(**changes: Any) -> Callable[[SimulatedLog], Welcome]:
    def make(log: SimulatedLog) -> Welcome:
        body, signature = log.statement(1, SPKI, **changes)
        return changed(log.welcome(), statement=body, signature=signature)

    return make


def foreign_vkey(log: SimulatedLog) -> Welcome:
    vkey = checkpoint.Verifier(checkpoint.origin_of(bytes(32)), log.key.public).vkey
    return stated(log_vkey=vkey)(log)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda log: resigned(log, log.key), BadRecord),
        (other_label, BadRecord),
        (lambda log: changed(log.welcome(), statement=b"\x80"), BadRecord),
        (lambda log: changed(log.welcome(), statement=log.welcome().statement + b"\0"), BadRecord),
        (lambda log: changed(log.welcome(), statement=log.statement(n=2)[0]), BadRecord),
        (stated(log_vkey="not a key"), BadRecord),
        (foreign_vkey, BadRecord),
        (lambda log: changed(log.welcome(), versions=(1,)), ProtocolFailure),
    ],
    ids=[
        "other signer",
        "other label",
        "no statement",
        "trailing byte",
        "signature of another",
        "no vkey",
        "vkey of another log",
        "no common version",
    ],
)
def test_false_welcomes_are_refused(
    make: Callable[[SimulatedLog], Welcome], error: type[Exception]
) -> None:
    log = SimulatedLog()
    trust = ServerTrust(log.server_id)
    with pytest.raises(error):
        trust.accept_welcome(make(log), SPKI)
    # Nothing was accepted: there is still no key to verify a checkpoint with.
    with pytest.raises(ProtocolFailure):
        trust.verify_note(log.checkpoint())


def test_older_or_duplicate_server_statement_is_refused() -> None:
    log = SimulatedLog()
    second = log.welcome(n=2)
    known = ServerTrust(log.server_id, statement=second.statement)
    with pytest.raises(Rollback):
        known.accept_welcome(log.welcome(n=1), SPKI)
    body, signature = log.statement(n=2, created=1)
    with pytest.raises(Fork):
        known.accept_welcome(changed(second, statement=body, signature=signature), SPKI)
    known.accept_welcome(second, SPKI)
    known.accept_welcome(log.welcome(n=3), SPKI)
    with pytest.raises(Rollback):
        known.accept_welcome(second, SPKI)


# --- checkpoints


def test_stored_statements_count_if_the_server_has_signed_them() -> None:
    """Otherwise an edited state would make the client refuse the honest server."""
    log, eve = SimulatedLog(), SigningKey.generate()
    first, third = log.statement(1), log.statement(3)
    forged = log.statement(9)[0]
    stored = [
        SimulatedLog().statement(7),
        third,
        (forged, eve.sign(Label.SERVER_STATEMENT, forged)),
        (b"\x80", bytes(64)),
        (third[0], first[1]),
        (b"", b""),
        first,
    ]
    found = stored_statements(log.server_id, stored)
    assert [(body, signature) for body, signature, _ in found] == [third, first]
    assert [key.public for key in log_keys(log.server_id, stored)] == [log.key.public] * 2


def test_a_checkpoint_of_another_key_or_log() -> None:
    log, other = SimulatedLog(), SimulatedLog()
    for lying in (log, other):
        lying.fill(3)
    key, log.key = log.key, other.key
    forged = log.checkpoint()
    log.key = key
    altered = log.checkpoint().replace(b"\n3\n", b"\n4\n")
    for note in (other.checkpoint(), forged, altered, b"", log.checkpoint()[:-8]):
        with pytest.raises(BadRecord):
            greeted(log).verify_note(note)


def test_a_checkpoint_before_the_welcome() -> None:
    log = SimulatedLog()
    with pytest.raises(ProtocolFailure):
        ServerTrust(log.server_id).verify_note(log.checkpoint())


# --- receipts


def test_logged_change_is_accepted() -> None:
    log = SimulatedLog()
    log.fill(3)
    seq = upload(log)
    log.fill(2)
    entry, head = greeted(log).verify_receipt(log.receipt(seq, 3), SENT)
    assert (entry.seq, entry.rec) == (seq, RECORD)
    assert head == TreeHead(6, log.root(6), log.checkpoint())


@pytest.mark.parametrize(
    "changes",
    [
        {"op": "delete"},
        {"actor": "eve"},
        {"owner": "eve"},
        {"owner": None},
        {"file": "1" * 32},
        {"file": None},
        {"version": 2},
        {"version": None},
        {"rec": RECORD + b"!"},
        {"rec": None},
        {"sigs": {}},
        {"sigs": {"a1" * 32: bytes(63) + b"\1"}},
        {"sigs": {"b2" * 32: bytes(64)}},
        {"sigs": SIGNATURES | {"b2" * 32: bytes(64)}},
    ],
    ids=lambda changes: "-".join(f"{key}={str(value)[:12]}" for key, value in changes.items()),
)
def test_entry_that_differs_from_the_change_is_refused(changes: dict[str, object]) -> None:
    log = SimulatedLog()
    seq = upload(log, **changes)
    with pytest.raises(BadReceipt):
        greeted(log).verify_receipt(log.receipt(seq, 0), SENT)


def flipped(receipt: Receipt) -> Receipt:
    line = bytearray(receipt.line)
    line[20] ^= 1
    return changed(receipt, line=bytes(line))


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda receipt: changed(receipt, line=b"{}"), BadReceipt),
        (flipped, BadReceipt),
        (lambda receipt: changed(receipt, checkpoint=b""), BadRecord),
        (lambda receipt: changed(receipt, checkpoint=receipt.checkpoint[:-8]), BadRecord),
    ],
    ids=["no line", "flipped line", "no checkpoint", "cut checkpoint"],
)
def test_false_receipts_are_refused(
    spoil: Callable[[Receipt], Receipt], error: type[IntegrityError]
) -> None:
    log = SimulatedLog()
    receipt, trust = log.receipt(upload(log), 0), greeted(log)
    with pytest.raises(error):
        trust.verify_receipt(spoil(receipt), SENT)
    trust.verify_receipt(receipt, SENT)
