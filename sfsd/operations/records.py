"""Changing files without new ciphertext: delete, restore, move, purge.

One request carries the signed record, and a move two: what the log has of a move is one entry whose
`rec` is the record of the new file, the tombstone of the old one standing in its detail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from protocol.codec.base64text import to_text
from protocol.codec.values import Value, changed, field
from protocol.log.auditlog import TOMBSTONE, TOMBSTONE_SIGS
from protocol.records.records import DELETE, MOVE, PURGE, RESTORE, FileRecord
from protocol.wire.messages import Done, Reply
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.files import Record, RecordChange
from sfsd.errors import Absent, DamagedError, Refused, require
from sfsd.operations.uploads import repeated
from sfsd.operations.versions import (
    entry_of,
    inbox_effects,
    kept_version,
    saw_notes,
    version_of,
)
from sfsd.rules.context import USER, Commit, Principal, ServerContext, operation
from sfsd.rules.record_rules import AdmittedRecord, FileHead, check_content, not_found, parse_record
from sfsd.state.documents import Document
from sfsd.state.file_index import holding_of
from sfsd.storage.change import Change, Effect, Link, Remove, Write
from sfsd.storage.json_files import Sidecar
from sfsd.storage.paths import VersionPaths

STRIPPED: Final = 32
"""Versions whose wraps a move removes: its log line names each beside two records."""


@operation(Record, access=USER, logged="delete, restore, move or purge", weight=PIECE)
def record_change(server: ServerContext, who: Principal, message: Record) -> Reply | Commit[Reply]:
    if len(message.changes) == 2:
        return _move(server, who, *message.changes)
    if len(message.changes) != 1:
        raise Refused("bad-request", "one record, or the two of a move")
    change = message.changes[0]
    record = _own(who, change)
    decide = {DELETE: _delete, RESTORE: _restore, PURGE: _purge}.get(record.op)
    if decide is None:
        raise Refused("bad-request", f"a {record.op} record does not come this way")
    head = FileHead.load(server.index.for_user(who.user), record.file_id)
    if (receipt := repeated(server, who, head, change.record)) is not None:
        return receipt
    if head.document is None:
        raise not_found()
    admitted = server.admission.admit(record, change.record, change.signature, head)
    return commit(server, who, admitted, decide(server, admitted, head.document, change))


class Decided(Value):
    """What an op does: `version` for the log, sidecars to write, versions whose bytes go.

    `left` is the file that a move leaves, which has no current version any more. `accounts` are
    those whose history it belongs to, where they are not the record's. `added` and `dropped`
    are users who find the file in their inbox from now on, or no more.
    """

    version: int | None
    sidecars: tuple[tuple[FileHead, int, Sidecar], ...]
    effects: tuple[Effect, ...] = ()
    expect: Mapping[str, bytes | None] = field(default_factory=dict)
    gone: tuple[int, ...] = ()
    detail: Mapping[str, object] = field(default_factory=dict)
    left: str | None = None
    accounts: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


def commit(
    server: ServerContext, who: Principal, admitted: AdmittedRecord, decided: Decided
) -> Commit[Reply]:
    record, files = admitted.record, admitted.head.files
    written = tuple(
        Write(head.paths(version).sidecar, sidecar.encode)
        for head, version, sidecar in decided.sidecars
    )
    notes = inbox_effects(server, record, decided.added, decided.dropped)

    def then(seq: int) -> None:
        for _, version, sidecar in decided.sidecars:
            files.note_written(changed(sidecar, seq=seq), version)
            for holding in holding_of(sidecar):
                files.ledger.hold(holding)
        for version in decided.gone:
            files.ledger.drop(record.file_id, version)
            server.read_handles.invalidate(record.owner, record.file_id, version)
        files.ledger.mark(record.file_id, living=record.current != 0)
        if decided.left is not None:
            files.ledger.mark(decided.left, living=False)
        saw_notes(server, record, decided.added, decided.dropped)

    entry = entry_of(
        who,
        record.op,
        admitted,
        decided.version,
        detail=decided.detail,
        accounts=decided.accounts or admitted.accounts,
    )
    # What the record was judged by counts: an op may have read that same sidecar again since.
    expect = {**decided.expect, **admitted.expect}
    change = Change(entry, expect, (*decided.effects, *written, *notes), None, then)
    return Commit(change, lambda seq: Done(server.receipt(seq, who)))


def _delete(
    server: ServerContext,  # noqa: ARG001 - one form for every op
    admitted: AdmittedRecord,
    newest: Document[Sidecar],
    change: RecordChange,
) -> Decided:
    """A tombstone: nothing is removed, restore brings it back."""
    sidecar = _delete_to(admitted, newest, change, to=None)
    return Decided(None, ((admitted.head, admitted.head.version, sidecar),))


def _delete_to(
    admitted: AdmittedRecord, newest: Document[Sidecar], change: RecordChange, *, to: str | None
) -> Sidecar:
    """The newest sidecar with the tombstone in it; `to` is the file_id of a move's other end."""
    record, before = admitted.record, newest.value.head_record
    require(not change.metadata and not change.wraps, "a delete brings nothing")
    require(record.current == 0, "nothing is current after a delete")
    require(record.to == to, "a tombstone names where a move leads, and a delete nothing")
    # What a thief has deleted is his word; the owner may put his own upon it.
    voided, _ = admitted.user.chain.voided_keys()
    if before.current == 0 and before.generation not in voided:
        raise Refused("conflict", "the file is deleted", head=admitted.head.view(record.owner))
    return changed(newest.value, head=admitted.signed)


def _restore(
    server: ServerContext,
    admitted: AdmittedRecord,
    newest: Document[Sidecar],  # noqa: ARG001 - one form for every op
    change: RecordChange,
) -> Decided:
    """An old content as a new version: the same bytes under a second name."""
    record, head = admitted.record, admitted.head
    source_id, source_version = record.from_ or ("", 0)
    require(source_id == record.file_id, "a restore takes a version of the same file")
    source = kept_version(head, source_version)
    taken = _take_over(server, admitted, source, head.paths(source_version), change)
    return changed(taken, detail={"from": source_version})


def _move(
    server: ServerContext, who: Principal, arriving: RecordChange, leaving: RecordChange
) -> Reply | Commit[Reply]:
    """A file under another name: its current content there, a tombstone here, one change.

    Nobody gains or loses the content by it, so it stands in nobody's history but the owner's and
    that of readers whom the file that was there before had.
    """
    record, tombstone = _own(who, arriving), _own(who, leaving)
    require((record.op, tombstone.op) == (MOVE, DELETE), "two records are a move and its tombstone")
    require(record.file_id != tombstone.file_id, "a file cannot move onto itself")
    files = server.index.for_user(who.user)
    head = FileHead.load(files, record.file_id)
    if (receipt := repeated(server, who, head, arriving.record)) is not None:
        return receipt
    left = FileHead.load(files, tombstone.file_id)
    if left.document is None or left.record is None:
        raise not_found()
    gone = server.admission.admit(tombstone, leaving.record, leaving.signature, left)
    made = server.admission.admit(record, arriving.record, arriving.signature, head)
    if head.record is not None and head.record.current:
        raise Refused("conflict", "there is a file of that name", head=head.view(who.user))
    buried = _delete_to(gone, left.document, leaving, to=record.file_id)
    current, readers = left.record.current, left.record.readers
    require(record.from_ == (left.file_id, current), "a move takes the current version")
    require(record.readers == readers, "a move leaves the readers as they are")
    source = kept_version(left, current)
    taken = _take_over(server, made, source, left.paths(current), arriving)
    before = () if head.record is None else head.record.readers
    dropped = {reader[0] for reader in before} - {reader[0] for reader in readers}
    stripped = _without_wraps(head, dropped)
    decided = changed(
        taken,
        sidecars=(
            *taken.sidecars,
            *((head, version, sidecar) for version, (_, sidecar) in stripped.items()),
            (left, left.version, buried),
        ),
        expect={
            **taken.expect,
            **gone.expect,
            **{document.path: document.digest for document, _ in stripped.values()},
        },
        detail={
            "from": [left.file_id, current],
            TOMBSTONE: to_text(leaving.record),
            TOMBSTONE_SIGS: {name: to_text(one) for name, one in gone.sigs.items()},
        },
        left=left.file_id,
        accounts=tuple(sorted({record.owner, record.actor} | dropped)),
        added=tuple(reader[0] for reader in readers),
        dropped=tuple(sorted(dropped)),
    )
    return commit(server, who, made, decided)


def _without_wraps(
    head: FileHead, dropped: set[str]
) -> dict[int, tuple[Document[Sidecar], Sidecar]]:
    """By number: the versions that have wraps of `dropped`, as they are and without these. What is
    past `STRIPPED` goes with the next access record; none can be read meanwhile."""
    found: dict[int, tuple[Document[Sidecar], Sidecar]] = {}
    for version in range(head.version if dropped else 0, 0, -1):
        document = head.files.sidecar(head.file_id, version)
        wraps = tuple(wrap for wrap in document.value.wraps if wrap.user not in dropped)
        if wraps != document.value.wraps:
            found[version] = document, changed(document.value, wraps=wraps)
        if len(found) == STRIPPED:
            break
    return found


def _take_over(
    server: ServerContext,
    admitted: AdmittedRecord,
    source: Document[Sidecar],
    old: VersionPaths,
    change: RecordChange,
) -> Decided:
    """The content of `source`, which lies at `old`, as the next version of the record's file."""
    record, head = admitted.record, admitted.head
    made = source.value.content_record
    require(
        (record.content_id, record.dek_commit) == (made.content_id, made.dek_commit),
        "not the content of the version it takes over",
    )
    # The one content under a second name: its id was used before, with these very bytes and key.
    check_content(
        admitted,
        size=made.ciphertext_size or 0,
        root=made.segments_root or b"",
        metadata=change.metadata,
        content_ids={},
    )
    expect = server.admission.check_wraps(admitted, change.wraps)
    new = head.paths(head.next_version)
    effects: list[Effect] = [Link(new.ciphertext, old.ciphertext, made.segments_root or b"")]
    if source.value.leaves is None:
        effects.append(Write(new.leaves, _leaves(server, old.leaves)))
    sidecar = Sidecar(
        seq=0,
        content=admitted.signed,
        head=None,
        metadata=change.metadata,
        wraps=change.wraps,
        leaves=source.value.leaves,
    )
    return Decided(
        head.next_version,
        ((head, head.next_version, sidecar),),
        tuple(effects),
        {**expect, source.path: source.digest},
    )


def _purge(
    server: ServerContext,  # noqa: ARG001 - one form for every op
    admitted: AdmittedRecord,
    newest: Document[Sidecar],
    change: RecordChange,
) -> Decided:
    """Bytes, metadata and wraps of old versions go for good; their records stay."""
    record, head = admitted.record, admitted.head
    purged = record.purged or ()
    require(not change.metadata and not change.wraps, "a purge brings nothing")
    require(record.current == newest.value.head_record.current, "a purge leaves current as it is")
    require(bool(purged) and list(purged) == sorted(set(purged)), "versions sorted, each once")
    require(record.current not in purged, "the current version cannot be purged; delete it first")
    sidecars: dict[int, Sidecar] = {}
    expect: dict[str, bytes | None] = {}
    effects: list[Effect] = []
    for version in purged:
        # One whose content is gone already, as by retention, may be named all the same.
        document = version_of(head, version)
        expect[document.path] = document.digest
        sidecars[version] = changed(document.value, metadata=None, wraps=(), leaves=None)
        paths = head.paths(version)
        effects += [Remove(paths.ciphertext), Remove(paths.leaves)]
    last = sidecars.get(head.version, newest.value)
    sidecars[head.version] = changed(last, head=admitted.signed)
    return Decided(
        None,
        tuple((head, version, sidecar) for version, sidecar in sidecars.items()),
        tuple(effects),
        expect,
        purged,
        {"purged": list(purged)},
    )


def _leaves(server: ServerContext, path: str) -> bytes:
    try:
        return server.store.read(path)
    except Absent as exc:
        raise DamagedError("the leaf hashes are not there", path=path) from exc


def _own(who: Principal, change: RecordChange) -> FileRecord:
    record = parse_record(change.record)
    if record.owner != who.user:
        raise not_found()
    return record
