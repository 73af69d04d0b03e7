"""Answers of a lying server: each lie has its own error, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import merkle
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
from sfsc.trust.server_log import SentChange, ServerTrust, TreeHead
from tests.sfsc.simulator import SPKI, SimulatedLog

RECORD = b"the exact bytes that were signed"
SIGNATURES = {"a1" * 32: bytes(64)}
SENT = SentChange("upload", "ada", "ada", "0" * 32, 3, RECORD, SIGNATURES)


def greeted(log: SimulatedLog) -> ServerTrust:
    trust = ServerTrust(log.server_id)
    trust.accept_welcome(log.welcome(), SPKI)
    return trust


def opened(log: SimulatedLog, entries: int = 5) -> ServerTrust:
    """Return a client whose session began when the log had `entries`."""
    log.fill(entries - log.size)
    trust = greeted(log)
    trust.accept_session(log.session(0))
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
    trust = ServerTrust(log.server_id)
    trust.accept_welcome(log.welcome(), SPKI)
    own = log.checkpoint()
    cosigned = own + "— witness.example.org/w {}\n".format("AAAA" * 32).encode()
    trust.accept_session(changed(log.session(0), checkpoint=cosigned))
    assert trust.newest.size == 5
    assert trust.newest.note == own
    trust.accept_session(changed(log.session(5), checkpoint=cosigned))
    assert trust.newest.note == own


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
        trust.accept_session(log.session(0))


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


# --- Session


@given(known=st.integers(0, 20), more=st.integers(0, 20))
def test_continued_log_is_accepted(known: int, more: int) -> None:
    log = SimulatedLog()
    log.fill(known)
    before = TreeHead(known, log.root(known), log.checkpoint())
    log.fill(more)
    trust = ServerTrust(log.server_id, newest=before)
    trust.accept_welcome(log.welcome(), SPKI)
    trust.accept_session(log.session(known))
    assert trust.newest == TreeHead(known + more, log.root(known + more), log.checkpoint())


def remembering(log: SimulatedLog) -> ServerTrust:
    trust = ServerTrust(
        log.server_id, newest=TreeHead(log.size, log.root(log.size), log.checkpoint())
    )
    trust.accept_welcome(log.welcome(), SPKI)
    return trust


def test_shorter_log_is_a_rollback() -> None:
    log = SimulatedLog()
    log.fill(8)
    trust = remembering(log)
    before = trust.newest
    with pytest.raises(Rollback):
        trust.accept_session(log.fork(7).session(8))
    assert trust.newest == before


@pytest.mark.parametrize("more", [0, 1, 5])
def test_another_log_is_a_fork(more: int) -> None:
    log = SimulatedLog()
    log.fill(8)
    other = log.fork(7)
    other.fill(1 + more)
    trust = remembering(log)
    with pytest.raises(Fork):
        trust.accept_session(other.session(8))


def test_missing_consistency_proof_is_refused() -> None:
    log = SimulatedLog()
    log.fill(4)
    trust = remembering(log)
    log.fill(4)
    with pytest.raises(Fork):
        trust.accept_session(changed(log.session(4), consistency=()))
    with pytest.raises(Fork):
        trust.accept_session(changed(log.session(4), consistency=log.consistency(3)))
    trust.accept_session(log.session(4))


def test_superfluous_consistency_proof_is_refused() -> None:
    log = SimulatedLog()
    log.fill(4)
    with pytest.raises(Fork):
        remembering(log).accept_session(changed(log.session(4), consistency=(bytes(32),)))


def test_a_checkpoint_of_another_key_or_log() -> None:
    log, other = SimulatedLog(), SimulatedLog()
    for lying in (log, other):
        lying.fill(3)
    with pytest.raises(BadRecord):
        greeted(log).accept_session(other.session(0))
    key, log.key = log.key, other.key
    forged = log.checkpoint()
    log.key = key
    with pytest.raises(BadRecord):
        greeted(log).accept_session(changed(log.session(0), checkpoint=forged))
    note = log.checkpoint().replace(b"\n3\n", b"\n4\n")
    with pytest.raises(BadRecord):
        greeted(log).accept_session(changed(log.session(0), checkpoint=note))


# --- receipts


@given(before=st.integers(0, 12), between=st.integers(0, 12), after=st.integers(0, 12))
def test_logged_change_is_accepted(before: int, between: int, after: int) -> None:
    log = SimulatedLog()
    trust = opened(log, before)
    log.fill(between)
    seq = upload(log)
    log.fill(after)
    entry = trust.verify_receipt(log.receipt(seq, before), SENT)
    assert joined(trust, log) == []
    assert (entry.seq, entry.rec) == (seq, RECORD)
    assert trust.newest.size == log.size


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
    trust = opened(log)
    before = trust.newest
    seq = upload(log, **changes)
    with pytest.raises(BadReceipt):
        trust.verify_receipt(log.receipt(seq, 5), SENT)
    assert trust.newest == before


def spoiled(**changes: object) -> Callable[[Receipt], Receipt]:
    return lambda receipt: changed(receipt, **changes)  # type: ignore[arg-type]


def flipped(receipt: Receipt) -> Receipt:
    line = bytearray(receipt.line)
    line[20] ^= 1
    return changed(receipt, line=bytes(line))


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (spoiled(line=b"{}"), BadReceipt),
        (flipped, BadReceipt),
        (spoiled(inclusion=()), BadReceipt),
        (lambda receipt: changed(receipt, inclusion=receipt.inclusion[:-1]), BadReceipt),
        (lambda receipt: changed(receipt, inclusion=receipt.inclusion[::-1]), BadReceipt),
        (spoiled(consistency=()), Fork),
        (lambda receipt: changed(receipt, consistency=receipt.consistency[:-1]), Fork),
        (spoiled(checkpoint=b""), BadRecord),
        (lambda receipt: changed(receipt, checkpoint=receipt.checkpoint[:-8]), BadRecord),
    ],
    ids=[
        "no line",
        "flipped line",
        "no inclusion",
        "short inclusion",
        "turned inclusion",
        "no consistency",
        "short consistency",
        "no checkpoint",
        "cut checkpoint",
    ],
)
def test_false_receipts_are_refused(
    spoil: Callable[[Receipt], Receipt], error: type[IntegrityError]
) -> None:
    log = SimulatedLog()
    trust = opened(log)
    seq = upload(log)
    log.fill(3)
    receipt = log.receipt(seq, 5)
    before = trust.newest
    with pytest.raises(error):
        trust.verify_receipt(spoil(receipt), SENT)
    assert trust.newest == before
    trust.verify_receipt(receipt, SENT)


def test_receipts_of_one_commit_share_their_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = SimulatedLog()
    trust = opened(log)
    first, second = upload(log), upload(log)
    worked_out: list[int] = []
    verify = merkle.verify_consistency

    def counting(
        old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]
    ) -> None:
        worked_out.append(new)
        verify(old, old_root, new, new_root, proof)

    monkeypatch.setattr(merkle, "verify_consistency", counting)
    for seq in (first, second):
        trust.verify_receipt(log.receipt(seq, 5), SENT)
    assert worked_out == [7]
    for spoil in (spoiled(consistency=()), spoiled(consistency=(bytes(32),))):
        with pytest.raises(Fork):
            trust.verify_receipt(spoil(log.receipt(second, 5)), SENT)
    with pytest.raises(BadReceipt):
        trust.verify_receipt(spoiled(inclusion=())(log.receipt(second, 5)), SENT)
    log.fill(1)
    trust.verify_receipt(log.receipt(second, 5), SENT)
    assert worked_out == [7, 7, 7, 8]


def test_receipt_of_a_forked_log_is_refused() -> None:
    log = SimulatedLog()
    trust = opened(log)
    other = log.fork(4)
    other.fill(1)
    with pytest.raises(Fork):
        trust.verify_receipt(other.receipt(upload(other), 5), SENT)


def test_receipt_of_a_shorter_log_is_refused() -> None:
    log = SimulatedLog()
    log.fill(3)
    seq = upload(log)
    trust = opened(log, 8)
    with pytest.raises(Rollback):
        trust.verify_receipt(log.receipt(seq, 5, size=5), SENT)
    assert trust.verify_receipt(log.receipt(seq, 8), SENT).seq == seq


def test_two_checkpoints_of_one_size_in_one_session() -> None:
    """Each continues the log at login; together they show the fork."""
    log = SimulatedLog()
    trust = opened(log)
    other = log.fork(5)
    trust.verify_receipt(log.receipt(upload(log), 5), SENT)
    with pytest.raises(Fork):
        trust.verify_receipt(other.receipt(upload(other, version=4), 5), changed(SENT, version=4))


def joined(trust: ServerTrust, log: SimulatedLog) -> list[tuple[int, int]]:
    """Return the gaps that an honest `log` was asked to prove."""
    gaps = trust.consistency_gaps()
    trust.close_gaps([log.consistency(*gap) for gap in gaps])
    return gaps


@given(
    parted=st.integers(5, 9), ours=st.integers(1, 5), theirs=st.integers(1, 5), proof=st.booleans()
)
def test_fork_between_two_receipts_is_detected(
    parted: int, ours: int, theirs: int, proof: bool
) -> None:
    """Both continue the log at login; no proof links one to the other."""
    log = SimulatedLog()
    trust = opened(log)
    before = trust.newest
    log.fill(parted - 5)
    other = log.fork(parted)
    log.fill(ours - 1)
    other.fill(theirs - 1)
    trust.verify_receipt(log.receipt(upload(log), 5), SENT)
    second = upload(other, version=4)

    def forked() -> None:
        trust.verify_receipt(other.receipt(second, 5), changed(SENT, version=4))
        gaps = trust.consistency_gaps()
        assert gaps == [tuple(sorted((log.size, other.size)))]
        longer = max(log, other, key=lambda one: one.size)
        trust.close_gaps([longer.consistency(*gap) if proof else () for gap in gaps])

    with pytest.raises(Fork):
        forked()
    assert trust.newest == before


def test_first_receipts_of_a_session_need_no_proof() -> None:
    log = SimulatedLog()
    trust = opened(log)
    first, second = upload(log), upload(log, version=4)
    trust.verify_receipt(log.receipt(first, 5), SENT)
    trust.verify_receipt(log.receipt(second, 5), changed(SENT, version=4))
    assert joined(trust, log) == []
    assert trust.newest.size == 7
    trust.verify_receipt(log.receipt(first, 5), SENT)
    assert trust.consistency_gaps() == []


def test_receipts_are_linked_by_size() -> None:
    log = SimulatedLog()
    trust = opened(log)
    first, second, third = upload(log), upload(log, version=4), upload(log)
    trust.verify_receipt(log.receipt(second, 5, size=7), changed(SENT, version=4))
    trust.verify_receipt(log.receipt(third, 5, size=8), SENT)
    trust.verify_receipt(log.receipt(first, 5, size=6), SENT)
    assert trust.newest.size == 5
    assert joined(trust, log) == [(6, 7), (7, 8)]
    assert trust.newest.size == 8
    log.fill(1)
    trust.verify_receipt(log.receipt(upload(log), 5), SENT)
    assert joined(trust, log) == [(8, 10)]
    assert trust.newest.size == 10


def test_older_receipt_does_not_change_newest() -> None:
    log = SimulatedLog()
    trust = opened(log)
    first, second = upload(log), upload(log, version=4)
    early = log.receipt(first, 5, size=6)
    trust.verify_receipt(log.receipt(second, 5), changed(SENT, version=4))
    assert joined(trust, log) == []
    trust.verify_receipt(early, SENT)
    assert joined(trust, log) == [(6, 7)]
    assert trust.newest.size == 7


def test_receipt_of_an_earlier_session_is_linked_with_the_next_login() -> None:
    log = SimulatedLog()
    trust = opened(log)
    trust.verify_receipt(log.receipt(upload(log), 5), SENT)
    log.fill(3)
    trust.accept_session(log.session(5))
    trust.verify_receipt(log.receipt(upload(log), 9), SENT)
    assert joined(trust, log) == [(6, 9), (9, 10)]
    assert trust.newest.size == 10


@pytest.mark.parametrize("again", [5, 6, 8])
def test_fork_while_disconnected_is_detected(again: int) -> None:
    """The next session starts on the fork: before, at or past the length that a receipt showed."""
    log = SimulatedLog()
    trust = opened(log)
    other = log.fork(5)
    trust.verify_receipt(log.receipt(upload(log), 5), SENT)
    other.fill(again - 5)

    def forked() -> None:
        trust.accept_session(other.session(5))
        trust.verify_receipt(
            other.receipt(upload(other, version=4), again), changed(SENT, version=4)
        )
        joined(trust, other)

    with pytest.raises(Fork):
        forked()
    # Without `close_gaps`, `newest` stays the log at login, which continued the known one.
    assert trust.newest.size == (8 if again == 8 else 5)


# --- enrolment


def test_the_first_checkpoint_needs_the_receipt_of_the_statement() -> None:
    sent = SentChange("enrol", "ada", "ada", None, None, b"statement", SIGNATURES)
    log = SimulatedLog()
    log.fill(3)
    enrolled = {"op": "enrol", "file": None, "version": None, "rec": b"statement"}
    seq = upload(log, **enrolled)
    receipt = log.receipt(seq, 4)
    entry = greeted(log).accept_enrolment(log.session(0, receipt), sent)
    assert entry.seq == 3
    with pytest.raises(BadReceipt):
        greeted(log).accept_enrolment(log.session(0), sent)
    other = log.receipt(upload(log, **enrolled, actor="eve"), 5)
    trust = greeted(log)
    with pytest.raises(BadReceipt):
        trust.accept_enrolment(log.session(0, other), sent)
    assert trust.newest.size == 0
