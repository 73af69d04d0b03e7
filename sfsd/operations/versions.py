"""What a content does to its file: it becomes the newest version, or takes an older content's place
under another key. How its bytes come is for `sfsd.operations.uploads`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol.codec.merkle import HASH_SIZE
from protocol.codec.values import Value, changed
from protocol.log.auditlog import EntryDraft
from protocol.records.records import FileRecord
from protocol.wire.messages import Done, Reply
from protocol.wire.messages.base import SignedRecord, Wrap
from sfsd.errors import Absent, Refused, require
from sfsd.rules.context import Commit, Principal, ServerContext, draft
from sfsd.rules.record_rules import AdmittedRecord, FileHead, check_content
from sfsd.state.documents import Document, SidecarWrite
from sfsd.state.file_index import holding_of
from sfsd.state.quota import Ledger
from sfsd.storage.change import Change, Effect, Remove, Write
from sfsd.storage.json_files import INLINE_LEAVES, Sidecar
from sfsd.storage.paths import inbox_path


class Content(Value):
    """A ciphertext and what belongs to it. `size` in bytes; `leaves` are the leaf hashes of its
    pieces (32 bytes each), concatenated, `root` is theirs."""

    size: int
    root: bytes
    leaves: bytes
    metadata: bytes
    wraps: tuple[Wrap, ...]

    @property
    def has_few_leaves(self) -> bool:
        """Whether they stand in the sidecar, not in a file of their own."""
        return len(self.leaves) <= INLINE_LEAVES * HASH_SIZE

    def sidecar(self, signed: SignedRecord) -> Sidecar:
        """That of the version that `signed` makes of it."""
        return Sidecar(
            seq=0,
            content=signed,
            head=None,
            metadata=self.metadata,
            wraps=self.wraps,
            leaves=self.leaves if self.has_few_leaves else None,
        )


class Claim(Value):
    """Quota, taken on the committer's thread for a content that counts: `reserve` takes it, and
    `reserved` bytes are given back where it was not needed, or is held by then.

    Without a `quota` (0) nothing is counted, and the ids of all that is there are not known.
    """

    ledger: Ledger
    quota: int
    content_id: bytes
    reserve: Callable[[], None]
    reserved: int

    def take(self) -> None:
        if self.quota:
            self.ledger.announce(self.content_id)
        try:
            self.reserve()
        except Refused:
            self._retract()
            raise

    def give_back(self) -> None:
        self._retract()
        self.ledger.release(self.reserved)

    def _retract(self) -> None:
        if self.quota:
            self.ledger.retract(self.content_id)


def admit(
    server: ServerContext,
    record: FileRecord,
    body: bytes,
    signature: bytes,
    head: FileHead,
    content: Content,
) -> AdmittedRecord:
    """Every rule of a put; what its wraps rely on is among what the result expects."""
    admitted = server.admission.admit(record, body, signature, head)
    check_content(
        admitted,
        size=content.size,
        root=content.root,
        metadata=content.metadata,
        content_ids=head.files.content_ids(record.file_id),
    )
    expect = server.admission.check_wraps(admitted, content.wraps)
    return changed(admitted, expect={**admitted.expect, **expect}) if expect else admitted


def add_version(
    server: ServerContext,
    who: Principal,
    admitted: AdmittedRecord,
    content: Content,
    ciphertext: Effect,
    *,
    claim: Claim,
    kept: Callable[[], None] = lambda: None,
    undo: Callable[[], None] | None = None,
) -> Commit[Reply]:
    """The change that makes `content` the newest version. `kept` runs once its bytes are held."""
    record, head = admitted.record, admitted.head
    version, files = head.next_version, head.files
    paths = head.paths(version)
    sidecar = content.sidecar(admitted.signed)
    written = SidecarWrite(paths.sidecar, sidecar)
    effects = [ciphertext, written.effect]
    if not content.has_few_leaves:
        effects.append(Write(paths.leaves, content.leaves))
    added = () if head.document else tuple(reader[0] for reader in record.readers)
    effects += inbox_effects(server, record, added, ())

    def then(_seq: int) -> None:
        files.note_written(written.value, version)
        server.documents.remember(written)
        for holding in holding_of(sidecar):
            files.ledger.hold(holding)
        claim.give_back()
        files.ledger.mark(record.file_id, living=True)
        saw_notes(server, record, added, ())
        kept()

    entry = entry_of(who, "upload", admitted, version)
    change = Change(entry, admitted.expect, tuple(effects), claim, then)
    return Commit(change, lambda seq: Done(server.receipt(seq, who)), undo)


def reencrypt(
    server: ServerContext,
    who: Principal,
    admitted: AdmittedRecord,
    content: Content,
    ciphertext: Effect,
    *,
    kept: Callable[[], None] = lambda: None,
    undo: Callable[[], None] | None = None,
) -> Commit[Reply]:
    """The change that gives a version, which stays what it is, as many new bytes under a new key.
    No quota is asked for: a rotation must not fail on one. A content that several versions shared
    is held twice from then on, for which there is as much room again (decision 0027)."""
    record, head, files = admitted.record, admitted.head, admitted.head.files
    version = record.version or 0
    target = kept_version(head, version)
    check_size_kept(target.value, content.size)
    claim = _claim_anew(server, record, target.value, content.size, files.ledger)
    paths = head.paths(version)
    sidecar = content.sidecar(admitted.signed)
    written = {version: sidecar}
    if version != head.version and head.document is not None:
        newest = changed(head.document.value, head=admitted.signed)
        written[head.version] = newest
    leaves = Remove(paths.leaves) if content.has_few_leaves else Write(paths.leaves, content.leaves)
    # The sidecars last: who has read the new one finds what it describes (`store.stands`).
    effects = [
        ciphertext,
        leaves,
        *(Write(head.paths(number).sidecar, one.encode) for number, one in written.items()),
    ]

    def then(seq: int) -> None:
        for number, one in written.items():
            files.note_written(changed(one, seq=seq), number)
        for holding in holding_of(sidecar):
            files.ledger.hold(holding)
        claim.give_back()
        server.read_handles.invalidate(record.owner, record.file_id, version)
        kept()

    entry = entry_of(who, "reencrypt", admitted, version)
    # What the record was judged by counts: the target may be that same sidecar, read again since.
    expect = {target.path: target.digest, **admitted.expect}
    change = Change(entry, expect, tuple(effects), claim, then)
    return Commit(change, lambda seq: Done(server.receipt(seq, who)), undo)


def check_size_kept(before: Sidecar, size: int) -> None:
    """Raise `Refused` unless a version that is encrypted anew is as long as it was, as the same
    plaintext is: else who has no quota left would make it longer."""
    had = before.content_record.ciphertext_size
    require(size == had, f"that version has {had} bytes")


def _claim_anew(
    server: ServerContext, record: FileRecord, before: Sidecar, size: int, ledger: Ledger
) -> Claim:
    _, quota = server.users.quota(record.owner)

    def reserve() -> None:
        try:
            ledger.reserve(size, 2 * quota)
        except Refused as exc:
            why = "the content that versions share would be held twice, past twice the quota"
            raise Refused(exc.code, f"{why}; purge one of them") from exc

    content_id = record.content_id or b""
    if not quota or not ledger.is_shared(before.content_record.content_id or b""):
        return Claim(ledger, quota, content_id, lambda: None, 0)
    return Claim(ledger, quota, content_id, reserve, size)


def entry_of(
    who: Principal, op: str, admitted: AdmittedRecord, version: int | None, **fields: Any
) -> EntryDraft:
    """What the log says of a record that was admitted; `fields` of the draft beside that."""
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


def version_of(head: FileHead, version: int) -> Document[Sidecar]:
    """Raises `Refused` where the file has no such version."""
    try:
        return head.files.sidecar(head.file_id, version)
    except Absent as exc:
        raise Refused("not-found", "no such version") from exc


def kept_version(head: FileHead, version: int) -> Document[Sidecar]:
    """A version whose content is there. Raises `Refused`."""
    document = version_of(head, version)
    if document.value.metadata is None:
        raise Refused("not-found", "the content of this version was removed")
    return document


def inbox_effects(
    server: ServerContext, record: FileRecord, added: tuple[str, ...], dropped: tuple[str, ...]
) -> list[Effect]:
    """The notes that users get and lose by a record. Raises `Refused` where one has too many."""
    for user in added:
        server.inboxes.for_user(user).check_room(record.owner)
    effects: list[Effect] = [
        Write(inbox_path(user, record.owner, record.file_id), b"") for user in added
    ]
    effects += [Remove(inbox_path(user, record.owner, record.file_id)) for user in dropped]
    return effects


def saw_notes(
    server: ServerContext, record: FileRecord, added: tuple[str, ...], dropped: tuple[str, ...]
) -> None:
    """What `inbox_effects` decided was done."""
    note = (record.owner, record.file_id)
    for user in added:
        server.inboxes.for_user(user).note_changed(note, present=True)
    for user in dropped:
        server.inboxes.for_user(user).note_changed(note, present=False)
