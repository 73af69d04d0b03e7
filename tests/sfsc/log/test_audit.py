"""An account's history from a server that may lie about it: each lie has its error."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.codec.values import changed
from protocol.log import checkpoint
from protocol.log.auditlog import EntryDraft
from protocol.log.tlogproof import TlogProof, verify
from protocol.records.records import DELETE, FileRecord, Statement, record_hash
from protocol.records.signatures import SigningKey
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.base import DamagedVersion
from protocol.wire.messages.files import List, Listing
from protocol.wire.messages.log import (
    LogCheckpoint,
    LogHead,
    LogLinesPage,
    LogProof,
    LogProven,
)
from sfsc.errors import (
    BadReceipt,
    BadRecord,
    BrokenChain,
    Damaged,
    Fork,
    IntegrityError,
    NotFound,
    ProtocolFailure,
    Rollback,
)
from sfsc.files.listing import Files
from sfsc.files.rename import Renames
from sfsc.log.audit import Audit
from sfsc.session.session import Session
from sfsc.transfer.upload import Put, Uploads
from tests.record_signing import packed_signature
from tests.sfsc import storing
from tests.sfsc.simulator import SimulatedLog, Simulator


def put(session: Session, name: str, content: bytes = b"content") -> Put:
    return Uploads(session).put(io.BytesIO(content), name)


def work(session: Session) -> None:
    for name in ("a", "b", "a"):
        put(session, name)
    Files(session).rm("b")
    Renames(session).mv("a", "c")


def audit(server: Simulator, session: Session) -> object:
    return Audit(session).verify(lambda: (server.statement,))


def test_a_valid_history(server: Simulator, session: Session) -> None:
    work(session)
    found = Audit(session).verify(lambda: (server.statement,))
    assert (found.records, found.statements, found.files) == (6, 1, 3)
    assert found.entries == server.log.heads["ada"][0]
    assert found.log_size == server.log.size


LIES: dict[str, Callable[[LogLinesPage], LogLinesPage]] = {
    "the first left out": lambda page: changed(page, lines=page.lines[1:]),
    "one twice": lambda page: changed(page, lines=(page.lines[0], *page.lines)),
    "the wrong order": lambda page: changed(page, lines=page.lines[::-1]),
    "other places": lambda page: changed(
        page, lines=tuple(changed(one, seq=one.seq + 1) for one in page.lines)
    ),
    "another's line": lambda page: changed(
        page, lines=tuple(changed(one, data=page.lines[-1].data) for one in page.lines)
    ),
    "no lines": lambda page: changed(
        page, lines=tuple(changed(one, data=bytes(32)) for one in page.lines)
    ),
    "nothing": lambda page: changed(page, lines=()),
}


@pytest.mark.parametrize("lie", LIES)
def test_omitted_or_inserted_entries_are_detected(
    server: Simulator, session: Session, lie: str
) -> None:
    work(session)

    def hook(_request: Request, reply: Reply) -> Reply:
        return LIES[lie](reply) if isinstance(reply, LogLinesPage) else reply

    server.tamper = hook
    with pytest.raises((BadReceipt, ProtocolFailure)):
        audit(server, session)
    with pytest.raises((BadReceipt, ProtocolFailure)):
        Audit(session).entries()


def forged(session: Session, key: SigningKey, **changes: object) -> tuple[bytes, bytes, FileRecord]:
    """Return a deletion of `a` in ada's name."""
    head = session.fetch_newest(session.account.file_id("a"))
    fields: dict[str, object] = {
        "rev": head.head.rev + 1,
        "prev": record_hash(head.head_body),
        "op": DELETE,
        "current": 0,
    }
    own = ("content_id", "version", "ciphertext_size", "segments_root", "dek_commit")
    cleared = dict.fromkeys((*own, "metadata_sha256"))
    record = changed(head.head, **(cleared | fields | changes))  # type: ignore[arg-type]
    body = record.encode()
    account = session.account
    packed = packed_signature(key, body, server=account.server_id, first=account.first)
    return body, packed, record


@pytest.mark.parametrize(
    "changes", [{}, {"rev": 9}, {"prev": bytes(32)}, {"generation": 2}, {"owner": "eve"}]
)
@pytest.mark.parametrize("own", [True, False])
def test_a_forged_change(
    server: Simulator, session: Session, changes: dict[str, object], *, own: bool
) -> None:
    put(session, "a")
    if own and not changes:
        return  # that one would be right
    key = session._signing if own else SigningKey.generate()
    body, signature, record = forged(session, key, **changes)
    draft = EntryDraft(
        op="delete",
        actor="ada",
        owner="ada",
        file=record.file_id,
        rec=body,
        sigs={"00" * 32: signature},
        accounts=("ada",),
    )
    server.log.append(draft)
    with pytest.raises((BadRecord, BadReceipt)):
        audit(server, session)


def test_a_change_without_a_signature(server: Simulator, session: Session) -> None:
    put(session, "a")
    body, _, record = forged(session, SigningKey.generate())
    draft = EntryDraft("delete", "ada", "ada", record.file_id, rec=body, accounts=("ada",))
    server.log.append(draft)
    with pytest.raises(BadRecord):
        audit(server, session)


@pytest.mark.parametrize("logged", [True, False])
def test_a_concurrent_statement(server: Simulator, session: Session, *, logged: bool) -> None:
    """It is made after the log and before the chain is read: the log must have it by then."""
    put(session, "a")
    newer = changed(Statement.parse(server.statement), n=2, prev=bytes(32)).encode()

    first = record_hash(server.statement)

    def chain() -> tuple[bytes, ...]:
        if logged:
            draft = EntryDraft("statement", "ada", "ada", rec=newer, accounts=("ada",))
            server.log.append(changed(draft, identity=(first, 2)))
        return server.statement, newer

    if logged:
        assert Audit(session).verify(chain).statements == 2
    else:
        with pytest.raises(BrokenChain):
            Audit(session).verify(chain)


def test_a_forged_statement(server: Simulator, session: Session) -> None:
    other = changed(Statement.parse(server.statement), n=2, prev=bytes(32)).encode()
    draft = EntryDraft("statement", "ada", "ada", rec=other, accounts=("ada",))
    first = record_hash(server.statement)
    server.log.append(changed(draft, identity=(first, 2)))
    with pytest.raises(BrokenChain):
        audit(server, session)
    server.log.append(draft)  # without the tag that others search for
    with pytest.raises(BadReceipt):
        audit(server, session)


def test_a_store_older_than_the_log(server: Simulator, session: Session) -> None:
    put(session, "a")
    before = server.files[session.account.file_id("a")]
    kept = dataclasses.replace(before, records=list(before.records), versions=dict(before.versions))
    put(session, "a", b"again")
    server.files[session.account.file_id("a")] = kept
    with pytest.raises(Rollback):
        audit(server, session)


def test_a_store_that_lacks_a_file(server: Simulator, session: Session) -> None:
    put(session, "a")
    put(session, "b")
    del server.files[session.account.file_id("a")]
    with pytest.raises(Rollback):
        audit(server, session)


def test_a_stored_file_that_is_not_in_the_log(server: Simulator, session: Session) -> None:
    put(session, "a")
    honest = server.log.fork(server.log.size)
    put(session, "b")
    server.log = honest  # which never had the second file
    session.state.reset_log()
    session.close()
    session._log = None
    session.connect()
    with pytest.raises(IntegrityError):
        audit(server, session)


def test_concurrent_changes_from_another_machine(
    server: Simulator, session: Session, other: Session
) -> None:
    """Its puts after the log and before the store is read are in the log by then."""
    work(session)
    steps: list[Callable[[], object]] = [
        lambda: put(other, "new"),
        lambda: put(other, "c", b"other content"),
        lambda: Files(other).rm("new"),
    ]

    def hook(request: Request) -> Reply | None:
        if isinstance(request, List):
            server._lock.release()
            while steps:
                steps.pop(0)()
            server._lock.acquire()
        return None

    server.intercept = hook
    assert audit(server, session)


def test_an_endless_listing(server: Simulator, session: Session) -> None:
    put(session, "a")

    def hook(request: Request, reply: Reply) -> Reply:
        return changed(reply, next="0" * 32) if isinstance(reply, Listing) else reply

    server.tamper = hook
    with pytest.raises((ProtocolFailure, IntegrityError)):
        audit(server, session)
    assert len(server.asked(List)) < 5


# --- events


def test_events_of_a_file(server: Simulator, session: Session) -> None:
    work(session)
    a, c = session.account.file_id("a"), session.account.file_id("c")
    told = [(one.op, one.name) for one in Audit(session).log(a, {a: "a", c: "c"})]
    assert told == [("upload", "a"), ("upload", "a"), ("move", "c")]
    told = [(one.op, one.name) for one in Audit(session).log(c, {c: "c"})]
    assert told == [("move", "c")]
    assert len(list(Audit(session).log(None, {}))) == server.log.heads["ada"][0]
    with pytest.raises(NotFound):
        Audit(session).log("0" * 32, {})


# --- comparing


def test_comparing_another_users_checkpoint(
    server: Simulator, session: Session, home: Path
) -> None:
    notes = [server.log.checkpoint()]
    for number in range(5):
        put(session, f"{number}")
        notes.append(server.log.checkpoint())
    for note in notes:
        theirs, ours = Audit(session).compare(note)
        assert theirs <= ours == server.log.size
    for nonsense in (b"", b"nonsense", SimulatedLog().checkpoint(0), notes[0][:-9]):
        with pytest.raises(BadRecord):
            Audit(session).compare(nonsense)
    twin = server.log.fork(3)
    for size in (4, server.log.size, server.log.size + 9):
        twin.fill(size - twin.size)
        with pytest.raises((Fork, Rollback)) as caught:
            Audit(session).compare(twin.checkpoint())
        assert caught.value.evidence is not None
    assert len(list((home / "evidence").iterdir())) == 1


def test_a_false_consistency_proof(server: Simulator, session: Session) -> None:
    put(session, "a")
    twin = server.log.fork(server.log.size - 1)
    twin.fill(4)

    def hook(request: Request, reply: Reply) -> Reply:
        if isinstance(reply, LogCheckpoint):
            return changed(reply, checkpoint=twin.checkpoint())
        return reply

    server.tamper = hook
    with pytest.raises(IntegrityError):
        Audit(session).compare(twin.checkpoint())


def test_a_connection_lost_during_the_comparison(server: Simulator, session: Session) -> None:
    """The next login finds a longer log than the proof was requested for."""
    note = server.log.checkpoint()
    put(session, "a")
    server.tamper = storing.once(LogProof, storing.drop)
    theirs, ours = Audit(session).compare(note)
    assert theirs < ours
    assert session.state.distrust_evidence() is None


# --- exported proofs


def test_an_invalid_inclusion_proof(server: Simulator, session: Session) -> None:
    done = put(session, "a")

    def hook(_request: Request, reply: Reply) -> Reply:
        return LogProven(reply.proof[1:]) if isinstance(reply, LogProven) else reply

    server.tamper = hook
    with pytest.raises(BadReceipt):
        Audit(session).proof_of(None, done.record)


def test_a_proof_of_a_change_whose_receipt_was_lost(server: Simulator, session: Session) -> None:
    done = [put(session, f"{number}") for number in range(9)]
    verifier = checkpoint.Verifier(
        checkpoint.origin_of(server.log.server_id), server.log.key.public
    )
    for one in done:
        data = Audit(session).proof_of(None, one.record)
        entry, signed = verify(TlogProof.parse(data), verifier)
        assert (entry.rec, signed.size) == (one.record, server.log.size)
    never = changed(FileRecord.parse(done[0].record), created=1).encode()
    with pytest.raises(NotFound):
        Audit(session).proof_of(None, never)


def test_a_server_that_declines_the_proof(server: Simulator, session: Session) -> None:
    put(session, "a")

    def hook(request: Request) -> Reply | None:
        return Error("busy", "later") if isinstance(request, LogHead) else None

    server.intercept = hook
    with pytest.raises(Exception, match="later"):
        audit(server, session)


def test_a_damaged_file_is_named_and_the_log_is_complete(
    server: Simulator, session: Session
) -> None:
    work(session)
    gone = session.account.file_id("c")

    def damage(_request: Request, reply: Reply) -> Reply:
        if not isinstance(reply, Listing):
            return reply
        left = tuple(
            one for one in reply.views if FileRecord.parse(one.content.record).file_id != gone
        )
        found = tuple(DamagedVersion("ada", gone, 1) for _ in reply.views[len(left) :])
        return changed(reply, views=left, damaged=found)

    server.tamper = damage
    with pytest.raises(Damaged) as caught:
        audit(server, session)
    assert (caught.value.file_id, caught.value.version) == (gone, 1)


def test_files_that_another_device_stores_meanwhile(
    server: Simulator, session: Session, other: Session
) -> None:
    work(session)

    def chain() -> tuple[bytes, ...]:
        put(other, "a", b"theirs")
        put(other, "new", b"theirs")
        return (server.statement,)

    assert Audit(session).verify(chain).files == 3
