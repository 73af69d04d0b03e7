"""Change files without new ciphertext: delete, restore, move, purge.

A request carries one signed record, and a move two. A move is one log entry: its `rec` is the
record of the new file, and its detail has the tombstone of the old file.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from protocol.codec.base64text import to_text
from protocol.codec.values import Value, changed, field
from protocol.log.auditlog import TOMBSTONE, TOMBSTONE_SIGS
from protocol.records.record_signatures import SIGNATURE_SIZE
from protocol.records.records import DELETE, MOVE, PURGE, RESTORE
from protocol.wire.messages import Reply
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.files import Record, RecordChange
from sfsd.errors import Absent, DamagedError, Refused, require
from sfsd.operations.uploads import (
    inbox_effects,
    load_own,
    read_version,
    record_entry,
    repeated_receipt,
    update_inboxes,
    version_with_content,
)
from sfsd.rules.context import USER, Decision, Principal, ServerContext, Transaction, operation
from sfsd.rules.record_rules import AdmittedRecord, FileHead, check_content, not_found, reader_names
from sfsd.state.documents import Document
from sfsd.state.file_index import holding_of
from sfsd.storage.change import Change, Effect, Link, Remove, Write
from sfsd.storage.json_files import Sidecar
from sfsd.storage.paths import VersionPaths

STRIPPED: Final = 32
"""Versions that a move may remove wraps from: its log entry names each, beside two records."""


@operation(Record, access=USER, logged="delete, restore, move or purge", weight=PIECE)
def record_change(server: ServerContext, who: Principal, message: Record) -> Decision:
    """Append one record to a file, or the two records of a move."""
    if len(message.changes) == 2:
        return _move(server, who, *message.changes)
    if len(message.changes) != 1:
        raise Refused("bad-request", "expected one record, or the two of a move")
    change = message.changes[0]
    record, head = load_own(server, who, change.record)
    decide = {DELETE: _delete, RESTORE: _restore, PURGE: _purge}.get(record.op)
    if decide is None:
        raise Refused("bad-request", f"wrong request for a {record.op} record")
    if (receipt := repeated_receipt(server, who, head, change.record)) is not None:
        return receipt
    if head.document is None:
        raise not_found()
    admitted = server.admission.admit(record, change.record, change.signature, head)
    return commit_record(server, who, admitted, decide(server, admitted, change))


class RecordEffects(Value):
    """Effects of a record besides its log entry.

    `version` is the version that the entry names. `sidecars` are written. `gone` are the versions
    whose bytes are removed. `left` is the file that a move leaves without a current version.
    `accounts`, if not empty, replace `AdmittedRecord.accounts`. The file is put into the inboxes of
    `added` and removed from those of `dropped`.
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


def commit_record(
    server: ServerContext, who: Principal, admitted: AdmittedRecord, decided: RecordEffects
) -> Transaction[Reply]:
    """Return the change that appends `admitted` with its effects."""
    record, files = admitted.record, admitted.head.files
    written = tuple(
        Write(head.paths(version).sidecar, sidecar.encode)
        for head, version, sidecar in decided.sidecars
    )
    notes = inbox_effects(server, record, decided.added, decided.dropped)

    def on_published(seq: int) -> None:
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
        update_inboxes(server, record, decided.added, decided.dropped)

    accounts = decided.accounts or admitted.accounts
    entry = record_entry(
        who, record.op, admitted, decided.version, detail=decided.detail, accounts=accounts
    )
    # The digests that the record was checked against win: an op may have read the same sidecar
    # again since.
    expect = {**decided.expect, **admitted.expect}
    change = Change(entry, expect, (*decided.effects, *written, *notes), None, on_published)
    return Transaction(change, lambda seq: server.done(seq, who))


def _delete(
    _server: ServerContext, admitted: AdmittedRecord, change: RecordChange
) -> RecordEffects:
    """Add a tombstone. No bytes are removed, so that a restore can undo it."""
    sidecar = _with_tombstone(admitted, change, to=None)
    return RecordEffects(None, ((admitted.head, admitted.head.version, sidecar),))


def _with_tombstone(admitted: AdmittedRecord, change: RecordChange, *, to: str | None) -> Sidecar:
    """Return the newest sidecar with a tombstone; `to` is the file_id that a move leads to."""
    record, newest = admitted.record, admitted.head.newest.value
    before = newest.head_record
    require(not change.metadata and not change.wraps, "a delete has no metadata or wraps")
    require(record.current == 0, "a delete leaves no current version")
    require(record.to == to, "only a move's tombstone names another file")
    # A thief may have deleted the file with a voided key; the owner may delete it again.
    voided, _ = admitted.user.chain.voided_keys()
    if before.current == 0 and before.generation not in voided:
        raise Refused("conflict", "the file is deleted", head=admitted.head.view(record.owner))
    return changed(newest, head=admitted.signed)


def _restore(
    server: ServerContext, admitted: AdmittedRecord, change: RecordChange
) -> RecordEffects:
    """Make an old content the newest version by a hard link to its bytes."""
    record, head = admitted.record, admitted.head
    source_id, source_version = record.from_ or ("", 0)
    require(source_id == record.file_id, "a restore takes a version of the same file")
    source = version_with_content(head, source_version)
    old = head.paths(source_version)
    taken = _link_content(server, admitted, source, old, change, shared_as=record.file_id)
    return changed(taken, detail={"from": source_version})


def _move(
    server: ServerContext, who: Principal, arriving: RecordChange, leaving: RecordChange
) -> Decision:
    """Link a file's current content to another file and leave a tombstone, in one change.

    No reader gains or loses the content, so the entry is in the account logs only of the owner and
    of readers of a file that was there before.
    """
    record, head = load_own(server, who, arriving.record)
    tombstone, left = load_own(server, who, leaving.record)
    require((record.op, tombstone.op) == (MOVE, DELETE), "expected a move and its tombstone")
    require(record.file_id != tombstone.file_id, "a file cannot move onto itself")
    if (receipt := repeated_receipt(server, who, head, arriving.record)) is not None:
        return receipt
    current, readers = left.newest.value.head_record.current, left.newest.value.head_record.readers
    # Two records under one signature of two records: these are its two leaves.
    same = arriving.signature[:SIGNATURE_SIZE] == leaving.signature[:SIGNATURE_SIZE]
    require(same, "the two records of a move are signed together")
    admit = partial(server.admission.admit, together=2)
    gone = admit(tombstone, leaving.record, leaving.signature, left)
    made = admit(record, arriving.record, arriving.signature, head)
    if head.record is not None and head.record.current:
        raise Refused("conflict", "a file with that name exists", head=head.view(who.user))
    deleted = _with_tombstone(gone, leaving, to=record.file_id)
    require(record.from_ == (left.file_id, current), "a move takes the current version")
    require(record.readers == readers, "a move keeps the readers")
    source = version_with_content(left, current)
    taken = _link_content(
        server, made, source, left.paths(current), arriving, shared_as=left.file_id
    )
    # A reader who has left the file does not get it again under its new name.
    offered = (
        name for name, _, _ in readers if not server.wishes.has_left(name, who.user, left.file_id)
    )
    dropped = reader_names(head.record) - reader_names(left.record)
    # The next access record strips versions past `STRIPPED`; nobody can read them meanwhile.
    stripped = head.without_wraps(dropped, STRIPPED)
    decided = changed(
        taken,
        sidecars=(
            *taken.sidecars,
            *((head, version, sidecar) for version, (_, sidecar) in stripped.items()),
            (left, left.version, deleted),
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
        added=tuple(offered),
        dropped=tuple(sorted(dropped)),
    )
    return commit_record(server, who, made, decided)


def _link_content(
    server: ServerContext,
    admitted: AdmittedRecord,
    source: Document[Sidecar],
    old: VersionPaths,
    change: RecordChange,
    *,
    shared_as: str,
) -> RecordEffects:
    """Link the content of `source`, stored at `old`, as the next version of the record's file.

    `shared_as` is the file whose readers the record keeps.
    """
    record, head = admitted.record, admitted.head
    made = source.value.content_record
    require(
        (record.content_id, record.dek_commit) == (made.content_id, made.dek_commit),
        "not the content of the version that the record names",
    )
    # `content_ids` is empty because the id is in use already, for these very bytes and this key.
    check_content(
        admitted,
        size=made.ciphertext_size or 0,
        root=made.segments_root or b"",
        metadata=change.metadata,
        content_ids={},
    )
    expect = server.admission.check_wraps(admitted, change.wraps, shared_as=shared_as)
    new = head.paths(head.next_version)
    effects: list[Effect] = [Link(new.ciphertext, old.ciphertext, made.segments_root or b"")]
    if source.value.leaves is None:
        try:
            effects.append(Write(new.leaves, server.store.read(old.leaves)))
        except Absent as exc:
            raise DamagedError("missing leaf hashes", path=old.leaves) from exc
    sidecar = Sidecar(0, admitted.signed, None, change.metadata, change.wraps, source.value.leaves)
    return RecordEffects(
        head.next_version,
        ((head, head.next_version, sidecar),),
        tuple(effects),
        {**expect, source.path: source.digest},
    )


def _purge(server: ServerContext, admitted: AdmittedRecord, change: RecordChange) -> RecordEffects:
    """Remove bytes, metadata and wraps of old versions permanently; their records stay.

    The sidecar of a damaged version is built again from the log.
    """
    record, head, newest = admitted.record, admitted.head, admitted.head.newest
    purged = record.purged or ()
    require(not change.metadata and not change.wraps, "a purge has no metadata or wraps")
    require(record.current == newest.value.head_record.current, "a purge keeps the current version")
    require(bool(purged) and list(purged) == sorted(set(purged)), "versions must be sorted, unique")
    require(record.current not in purged, "the current version cannot be purged; delete it first")
    sidecars: dict[int, Sidecar] = {}
    expect: dict[str, bytes | None] = {}
    effects: list[Effect] = []
    for version in purged:
        # The content may be gone already, for example by retention.
        paths = head.paths(version)
        try:
            document = read_version(head, version)
        except DamagedError:
            expect[paths.sidecar] = server.store.stored_digest(paths.sidecar)
            sidecars[version] = head.files.logged(head.file_id).sidecar_without_content(version)
        else:
            expect[document.path] = document.digest
            sidecars[version] = changed(
                document.value, metadata=None, wraps=(), leaves=None, lost=False
            )
        effects += [Remove(paths.ciphertext), Remove(paths.leaves)]
    last = sidecars.get(head.version, newest.value)
    sidecars[head.version] = changed(last, head=admitted.signed)
    return RecordEffects(
        None,
        tuple((head, version, sidecar) for version, sidecar in sidecars.items()),
        tuple(effects),
        expect,
        purged,
        {"purged": list(purged)},
    )
