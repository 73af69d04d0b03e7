"""Change files without new ciphertext: delete, restore, move, purge.

A move has two records and is one log entry: its `rec` is the record of the new file, and its detail
has the tombstone of the old file.
"""

from __future__ import annotations

from typing import Final

from protocol.codec.base64text import to_text
from protocol.codec.values import changed
from protocol.log.auditlog import TOMBSTONE, TOMBSTONE_SIGS
from protocol.records.records import DELETE
from sfsd.errors import Absent, DamagedError, Refused, require
from sfsd.operations.signed_change import (
    RecordEffects,
    SignedChange,
    commit_record,
    read_version,
    version_with_content,
)
from sfsd.rules.context import Principal, ServerContext, Transaction
from sfsd.rules.record_rules import AdmittedRecord, check_content, not_found, reader_names
from sfsd.state.documents import Document
from sfsd.storage.change import Effect, Link, Remove, Write
from sfsd.storage.json_files import Sidecar
from sfsd.storage.paths import VersionPaths

STRIPPED: Final = 32
"""Versions that a move may remove wraps from: its log entry names each, beside two records."""


def delete(server: ServerContext, who: Principal, change: SignedChange) -> Transaction[int]:
    """Add a tombstone. No bytes are removed, so that a restore can undo it."""
    admitted = _admit(server, change)
    sidecar = _with_tombstone(admitted, change, to=None)
    written = ((admitted.head, admitted.head.version, sidecar),)
    effects = RecordEffects(None, written, exceeds_quota=True)
    return commit_record(server, who, admitted, effects)


def _with_tombstone(admitted: AdmittedRecord, change: SignedChange, *, to: str | None) -> Sidecar:
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


def restore(server: ServerContext, who: Principal, change: SignedChange) -> Transaction[int]:
    """Make an old content the newest version by a hard link to its bytes."""
    admitted = _admit(server, change)
    record, head = admitted.record, admitted.head
    source_id, source_version = record.from_ or ("", 0)
    require(source_id == record.file_id, "a restore takes a version of the same file")
    source = version_with_content(head, source_version)
    old = head.paths(source_version)
    taken = _link_content(server, admitted, source, old, change, shared_as=record.file_id)
    effects = changed(taken, detail={"from": source_version})
    return commit_record(server, who, admitted, effects)


def move(server: ServerContext, who: Principal, change: SignedChange) -> Transaction[int]:
    """Link a file's current content to another file and leave a tombstone, in one change.

    No reader gains or loses the content, so the entry is in the account logs only of the owner and
    of readers of a file that was there before.
    """
    record, head, leaving = change.record, change.head, change.left
    if leaving is None or leaving.record.op != DELETE:
        raise Refused("bad-request", "expected a move and its tombstone")
    left = leaving.head
    require(record.file_id != leaving.record.file_id, "a file cannot move onto itself")
    current, readers = left.newest.value.head_record.current, left.newest.value.head_record.readers
    gone = leaving.admit(server)
    made = change.admit(server)
    if head.record is not None and head.record.current:
        raise Refused("conflict", "a file with that name exists", head=head.view(who.user))
    deleted = _with_tombstone(gone, leaving, to=record.file_id)
    require(record.from_ == (left.file_id, current), "a move takes the current version")
    require(record.readers == readers, "a move keeps the readers")
    source = version_with_content(left, current)
    taken = _link_content(server, made, source, left.paths(current), change, shared_as=left.file_id)
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
            TOMBSTONE: to_text(leaving.body),
            TOMBSTONE_SIGS: {name: to_text(one) for name, one in gone.sigs.items()},
        },
        left=left.file_id,
        accounts=tuple(sorted({record.owner, record.actor} | dropped)),
        added=tuple(offered),
        dropped=tuple(sorted(dropped)),
    )
    return commit_record(server, who, made, decided)


def _admit(server: ServerContext, change: SignedChange) -> AdmittedRecord:
    """Check the record against the rules for all ops; its file must exist. Raises `Refused`."""
    if change.head.document is None:
        raise not_found()
    return change.admit(server)


def _link_content(
    server: ServerContext,
    admitted: AdmittedRecord,
    source: Document[Sidecar],
    old: VersionPaths,
    change: SignedChange,
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
    wraps = change.new_wraps()
    expect = server.admission.check_wraps(admitted, wraps, shared_as=shared_as)
    new = head.paths(head.next_version)
    effects: list[Effect] = [Link(new.ciphertext, old.ciphertext, made.segments_root or b"")]
    if source.value.leaves is None:
        try:
            effects.append(Write(new.leaves, server.store.read(old.leaves)))
        except Absent as exc:
            raise DamagedError("missing leaf hashes", path=old.leaves) from exc
    sidecar = Sidecar(0, admitted.signed, None, change.metadata, wraps, source.value.leaves)
    return RecordEffects(
        head.next_version,
        ((head, head.next_version, sidecar),),
        tuple(effects),
        {**expect, source.path: source.digest},
    )


def purge(server: ServerContext, who: Principal, change: SignedChange) -> Transaction[int]:
    """Remove bytes, metadata and wraps of old versions permanently; their records stay.

    The sidecar of a damaged version is built again from the log.
    """
    admitted = _admit(server, change)
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
    decided = RecordEffects(
        None,
        tuple((head, version, sidecar) for version, sidecar in sidecars.items()),
        tuple(effects),
        expect,
        purged,
        {"purged": list(purged)},
        exceeds_quota=True,
    )
    return commit_record(server, who, admitted, decided)
