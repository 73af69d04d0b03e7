"""One signed record of a changeset, and what all kinds of them have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol.codec.encoding import Buffer
from protocol.codec.values import Value, field
from protocol.log.auditlog import EntryDraft
from protocol.records.records import MOVE, FileRecord
from protocol.wire.messages.base import GenerationSignature, Wrap
from sfsd.errors import Absent, LostVersionError, Refused, require
from sfsd.operations.quota_claim import claim_growth
from sfsd.rules.context import Principal, ServerContext, Transaction, draft
from sfsd.rules.record_rules import AdmittedRecord, FileHead, SignedLeaf, Signer
from sfsd.state.documents import Document, SidecarWrite
from sfsd.storage.change import Change, Effect, Remove, Write
from sfsd.storage.json_files import Sidecar
from sfsd.storage.paths import inbox_path


class SignedChange(Value):
    """A record that its user asks to append to `head`, and what it describes.

    `body` is the record's exact bytes, `signed` its leaf of the tree that `signer` signed.
    `metadata` is encrypted. `wraps` are (version, wrap). The content comes with the request
    (`content`), was uploaded before (`upload`), or is none. A move has a second record, `left`, for
    the old name.
    """

    record: FileRecord
    body: bytes
    signed: SignedLeaf
    head: FileHead
    signer: Signer
    metadata: bytes = b""
    wraps: tuple[tuple[int, Wrap], ...] = ()
    content: Buffer = b""
    upload: bytes | None = None
    left: SignedChange | None = None

    def admit(self, server: ServerContext) -> AdmittedRecord:
        """Check the rules for records of every op. Raises `Refused`."""
        return server.admission.admit(self.record, self.body, self.signed, self.head, self.signer)

    def new_wraps(self) -> tuple[Wrap, ...]:
        """Return the wraps of the version that the record describes. Raises `Refused` if any is of
        another version."""
        versions = {version for version, _ in self.wraps}
        require(versions <= {self.record.version}, "a wrap is for another version")
        return tuple(wrap for _, wrap in self.wraps)


def repeated_entry(server: ServerContext, change: SignedChange) -> int | None:
    """Return the log entry of a record that is the head already, None for any other record.

    An earlier request appended it, and its reply was lost. Raises `Refused` (conflict) if an entry
    without a record of its own has changed the file since; the history still has the record. So it
    does if the record came with other ones: two machines that delete a file within one second may
    write the same bytes, and each would take the other's entry for a false one.
    """
    document = change.head.document
    if document is None or document.value.last.record != change.body:
        return None
    seq, signatures = document.value.seq, document.value.last.signatures
    signed = GenerationSignature(change.record.generation, change.signed.packed) in signatures
    if not signed or server.journal.entry(seq).rec != change.body:
        owner = change.record.owner
        raise Refused("conflict", "the file has changed", head=change.head.view(owner))
    return seq


class RecordEffects(Value):
    """Effects of a record besides its log entry.

    `version` is the version that the entry names. `sidecars` are written. `gone` are the versions
    whose bytes are removed. `left` is the file that a move leaves without a current version.
    `accounts`, if not empty, replace `AdmittedRecord.accounts`. The file is put into the inboxes of
    `added` and removed from those of `dropped`. With `exceeds_quota`, the change is made whatever
    the quota is.
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
    exceeds_quota: bool = False


def commit_record(
    server: ServerContext, who: Principal, admitted: AdmittedRecord, decided: RecordEffects
) -> Transaction[int]:
    """Return the change that appends `admitted` with its effects."""
    record, files = admitted.record, admitted.head.files
    written = [
        SidecarWrite(head.paths(version).sidecar, sidecar)
        for head, version, sidecar in decided.sidecars
    ]
    notes = inbox_effects(server, record, decided.added, decided.dropped)
    claim = None
    if not decided.exceeds_quota:
        claim = claim_growth(server, admitted.user, files, written)

    def on_published(_seq: int) -> None:
        for one in written:
            files.note_published(one)
        if claim is not None:
            claim.release()
        for version in decided.gone:
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
    effects = (*decided.effects, *(one.effect for one in written), *notes)
    change = Change(entry, expect, effects, claim, on_published)
    return Transaction(change, lambda seq: seq)


def record_entry(
    who: Principal, op: str, admitted: AdmittedRecord, version: int | None, **fields: Any
) -> EntryDraft:
    """Return the draft log entry of a record; `fields` override its fields."""
    record = admitted.record
    known = {
        "owner": record.owner,
        "file": record.file_id,
        "version": version,
        "rec": admitted.signed.record,
        "sigs": admitted.sigs,
        "accounts": admitted.accounts,
    }
    return draft(who, op, **(known | fields))


def read_version(head: FileHead, version: int) -> Document[Sidecar]:
    """Return a version's sidecar. Raises `Refused` (not-found)."""
    try:
        return head.files.sidecar(head.file_id, version)
    except Absent as exc:
        raise Refused("not-found", "no such version") from exc


def version_with_content(head: FileHead, version: int) -> Document[Sidecar]:
    """Return the sidecar of a version that was not purged. Raises `Refused` (not-found)."""
    document = read_version(head, version)
    if document.value.lost:
        raise LostVersionError("lost", path=document.path)
    if document.value.metadata is None:
        raise Refused("not-found", "the content of this version was removed")
    return document


def inbox_effects(
    server: ServerContext, record: FileRecord, added: tuple[str, ...], dropped: tuple[str, ...]
) -> list[Effect]:
    """Return the effects that put the file into inboxes of `added` and remove it for `dropped`.

    Raises `Refused` (share-refused) if a reader takes no more files of this owner.
    """
    if added:
        server.wishes.check_new(record.owner, added, moved=record.op == MOVE)
    effects: list[Effect] = [
        Write(inbox_path(user, record.owner, record.file_id), b"") for user in added
    ]
    return effects + [Remove(inbox_path(user, record.owner, record.file_id)) for user in dropped]


def update_inboxes(
    server: ServerContext, record: FileRecord, added: tuple[str, ...], dropped: tuple[str, ...]
) -> None:
    """Update the inbox index after the effects of `inbox_effects` were made."""
    for user in (*added, *dropped):
        server.inboxes.for_user(user).note_changed(
            (record.owner, record.file_id), present=user in added
        )
