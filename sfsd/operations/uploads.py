"""Storing a file: in one message, or in pieces and a commit.

Everything a record must satisfy is in `sfsd.admission`. A record that is the head already was
stored by the same request before its answer got lost: it gets the same receipt.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from protocol.merkle import leaf_hash
from protocol.messages import Done, Reply
from protocol.messages.base import Wrap
from protocol.messages.uploads import (
    Aborted,
    Data,
    PutAbort,
    PutCommit,
    PutOpen,
    PutResume,
    PutSmall,
    UploadState,
)
from protocol.records import PUT, REENCRYPT, FileRecord
from protocol.values import Value, changed
from sfsd.admission import Admitted, Head, check_content, parse_record
from sfsd.changes import Adopt, Change, Effect, Remove, Write
from sfsd.documents import Document, WrittenSidecar
from sfsd.errors import Absent, Refused
from sfsd.index import holding_of
from sfsd.layout import INLINE_LEAVES, Sidecar, inbox_path
from sfsd.ledger import Ledger
from sfsd.pending import Upload
from sfsd.world import USER, Commit, Principal, World, draft, operation


@operation(PutSmall, access=USER, logged="upload or reencrypt")
def put_small(world: World, who: Principal, message: PutSmall) -> Reply | Commit[Reply]:
    record, head = _locate(world, who, message.record)
    if (receipt := repeated(world, who, head, message.record)) is not None:
        return receipt
    ciphertext = bytes(message.ciphertext)
    leaf = leaf_hash(ciphertext)  # at most 256 KiB: one piece, whose leaf is the root
    content = _Content(len(ciphertext), leaf, leaf, message.metadata, message.wraps)
    ledger, quota = world.accounts.quota(who.user)
    if record.op == REENCRYPT:
        path = head.paths(record.version or 0).ciphertext
        admitted = _admit(world, record, message.record, message.signature, head, content)
        return _reencrypt(world, who, admitted, content, Write(path, ciphertext, leaf))
    path = head.paths(head.next_version).ciphertext
    return _put(
        world,
        who,
        _admit(world, record, message.record, message.signature, head, content),
        content,
        Write(path, ciphertext, leaf),
        claim=Claim(partial(ledger.reserve, content.size, quota), ledger, content.size),
        kept=lambda: ledger.release(content.size),
    )


@operation(PutOpen, access=USER)
def put_open(world: World, who: Principal, message: PutOpen) -> UploadState:
    if message.owner != who.user:
        raise Refused("not-found", "no such file")
    world.accounts.acting(who.user)
    _check_writable(world)
    ledger, quota = world.accounts.quota(who.user)
    del ledger  # loaded where there is a quota; the upload finds it through its owner's files
    files = world.index.of(who.user)
    if message.version:
        _check_replaces(Head.of(files, message.file_id), message)
    upload = world.uploads.open(files, message.file_id, message.size, quota, message.version)
    return UploadState(upload.upload_id, 0)


def _check_replaces(head: Head, message: PutOpen) -> None:
    """Raise `Refused` unless there is such a version, of just this size."""
    record = _kept_version(head, message.version).value.content_record
    if record.ciphertext_size != message.size:
        raise Refused("bad-request", f"that version has {record.ciphertext_size} bytes")


@operation(Data, access=USER)
def data(world: World, who: Principal, message: Data) -> UploadState:
    upload = world.uploads.get(who.user, message.upload)
    _check_writable(world)
    _, quota = world.accounts.quota(who.user)
    offset = upload.write(message.offset, message.data, quota)
    world.uploads.touch(upload)
    return UploadState(message.upload, offset)


@operation(PutResume, access=USER, after_data=True)
def put_resume(world: World, who: Principal, message: PutResume) -> UploadState:
    upload = world.uploads.get(who.user, message.upload)
    return UploadState(message.upload, upload.settle())


@operation(PutAbort, access=USER, after_data=True)
def put_abort(world: World, who: Principal, message: PutAbort) -> Aborted:
    world.uploads.abort(world.uploads.get(who.user, message.upload))
    return Aborted()


@operation(PutCommit, access=USER, logged="upload or reencrypt", after_data=True)
def put_commit(world: World, who: Principal, message: PutCommit) -> Reply | Commit[Reply]:
    record, head = _locate(world, who, message.record)
    if (receipt := repeated(world, who, head, message.record)) is not None:
        return receipt
    upload = world.uploads.get(who.user, message.upload)
    if upload.file_id != record.file_id:
        raise Refused("bad-request", "the upload is for another file")
    if upload.replaces and (record.op, record.version) != (REENCRYPT, upload.replaces):
        raise Refused("bad-request", "the upload is to encrypt another version anew")
    upload.begin_commit()
    try:
        return _commit(world, who, message, record, head, upload)
    except BaseException:
        upload.end_commit()  # whatever it was, the ciphertext is kept for another try
        raise


def _commit(
    world: World,
    who: Principal,
    message: PutCommit,
    record: FileRecord,
    head: Head,
    upload: Upload,
) -> Commit[Reply]:
    size, leaves, root = upload.whole()
    content = _Content(size, root, b"".join(leaves), message.metadata, message.wraps)
    if record.op == REENCRYPT:
        return _reencrypt(
            world,
            who,
            _admit(world, record, message.record, message.signature, head, content),
            content,
            Adopt(head.paths(record.version or 0).ciphertext, upload.staged),
            kept=partial(world.uploads.forget, upload),
            undo=upload.end_commit,
        )
    ledger, quota = world.accounts.quota(who.user)
    return _put(
        world,
        who,
        _admit(world, record, message.record, message.signature, head, content),
        content,
        Adopt(head.paths(head.next_version).ciphertext, upload.staged),
        claim=Claim(partial(upload.reserve, size, quota), ledger, 0),
        kept=partial(world.uploads.forget, upload),
        undo=upload.end_commit,
    )


class _Content(Value):
    """`leaves` are the leaf hashes of the ciphertext's pieces, concatenated."""

    size: int
    root: bytes
    leaves: bytes
    metadata: bytes
    wraps: tuple[Wrap, ...]


class Claim(Value):
    """Quota, taken on the committer's thread; `reserved` bytes where it is given back."""

    reserve: Callable[[], None]
    ledger: Ledger
    reserved: int

    def take(self) -> None:
        self.reserve()

    def give_back(self) -> None:
        self.ledger.release(self.reserved)


def _locate(world: World, who: Principal, body: bytes) -> tuple[FileRecord, Head]:
    record = parse_record(body)
    if record.op not in (PUT, REENCRYPT):
        raise Refused("bad-request", f"a {record.op} record stores no new content")
    if record.owner != who.user:
        raise Refused("not-found", "no such file")
    return record, Head.of(world.index.of(who.user), record.file_id)


def repeated(world: World, who: Principal, head: Head, body: bytes) -> Done | None:
    """The receipt of a record that is the head already, None for any other."""
    if head.document is None or head.document.value.last.record != body:
        return None
    seq = head.document.value.seq
    if world.journal.entry(seq).rec != body:
        # Something without a record of its own has been written since; History still has ours.
        raise Refused("conflict", "the file has changed", head=head.view(who.user))
    return Done(world.receipt(seq, who))


def inbox_effects(
    world: World, record: FileRecord, added: tuple[str, ...], dropped: tuple[str, ...]
) -> list[Effect]:
    """The notes that users get and lose by a record. Raises `Refused` where one has too many."""
    for user in added:
        world.inboxes.of(user).check_room(record.owner)
    effects: list[Effect] = [
        Write(inbox_path(user, record.owner, record.file_id), b"") for user in added
    ]
    effects += [Remove(inbox_path(user, record.owner, record.file_id)) for user in dropped]
    return effects


def saw_notes(
    world: World, record: FileRecord, added: tuple[str, ...], dropped: tuple[str, ...]
) -> None:
    """What `inbox_effects` decided was done."""
    note = (record.owner, record.file_id)
    for user in added:
        world.inboxes.of(user).saw(note, present=True)
    for user in dropped:
        world.inboxes.of(user).saw(note, present=False)


def _admit(
    world: World,
    record: FileRecord,
    body: bytes,
    signature: bytes,
    head: Head,
    content: _Content,
) -> Admitted:
    """Every rule of a put; what its wraps rely on is among what the result expects."""
    admitted = world.admission.admit(record, body, signature, head)
    check_content(
        admitted,
        size=content.size,
        root=content.root,
        metadata=content.metadata,
        content_ids=head.files.content_ids(record.file_id),
    )
    expect = world.admission.check_wraps(admitted, content.wraps)
    return changed(admitted, expect={**admitted.expect, **expect})


def _put(
    world: World,
    who: Principal,
    admitted: Admitted,
    content: _Content,
    ciphertext: Effect,
    *,
    claim: Claim,
    kept: Callable[[], None],
    undo: Callable[[], None] | None = None,
) -> Commit[Reply]:
    """The change that makes `content` the newest version. `kept` runs once its bytes are held."""
    record, head = admitted.record, admitted.head
    version, files = head.next_version, head.files
    paths = head.paths(version)
    inline = len(content.leaves) <= INLINE_LEAVES * 32
    sidecar = Sidecar(
        seq=0,
        content=admitted.signed,
        head=None,
        metadata=content.metadata,
        wraps=content.wraps,
        leaves=content.leaves if inline else None,
    )
    written = WrittenSidecar(paths.sidecar, sidecar)
    effects = [ciphertext, written.effect]
    if not inline:
        effects.append(Write(paths.leaves, content.leaves))
    added = () if head.document else tuple(reader[0] for reader in record.readers)
    effects += inbox_effects(world, record, added, ())

    def then(_seq: int) -> None:
        files.saw(written.value, version)
        world.documents.wrote(written)
        for holding in holding_of(sidecar):
            files.ledger.hold(holding)
        files.ledger.mark(record.file_id, living=True)
        saw_notes(world, record, added, ())
        kept()

    entry = draft(
        who,
        "upload",
        owner=record.owner,
        file=record.file_id,
        version=version,
        rec=admitted.signed.record,
        sigs=admitted.sigs,
        accounts=admitted.accounts,
    )
    change = Change(entry, admitted.expect, tuple(effects), claim, then)
    return Commit(change, lambda seq: Done(world.receipt(seq, who)), undo)


def _reencrypt(
    world: World,
    who: Principal,
    admitted: Admitted,
    content: _Content,
    ciphertext: Effect,
    *,
    kept: Callable[[], None] = lambda: None,
    undo: Callable[[], None] | None = None,
) -> Commit[Reply]:
    """The change that gives a version, which stays what it is, new bytes under a new key. It needs
    no more room than before, so no quota is asked for."""
    record, head, files = admitted.record, admitted.head, admitted.head.files
    version = record.version or 0
    target = _kept_version(head, version)
    paths = head.paths(version)
    inline = len(content.leaves) <= INLINE_LEAVES * 32
    sidecar = Sidecar(
        seq=0,
        content=admitted.signed,
        head=None,
        metadata=content.metadata,
        wraps=content.wraps,
        leaves=content.leaves if inline else None,
    )
    written = {version: sidecar}
    if version != head.version and head.document is not None:
        newest = changed(head.document.value, head=admitted.signed)
        written[head.version] = newest
    leaves = Remove(paths.leaves) if inline else Write(paths.leaves, content.leaves)
    # The sidecars last: who has read the new one finds what it describes (`store.stands`).
    effects = [
        ciphertext,
        leaves,
        *(Write(head.paths(number).sidecar, one.encode) for number, one in written.items()),
    ]

    def then(seq: int) -> None:
        for number, one in written.items():
            files.saw(changed(one, seq=seq), number)
        for holding in holding_of(sidecar):
            files.ledger.hold(holding)
        world.opened.forget(record.owner, record.file_id, version)
        kept()

    entry = draft(
        who,
        "reencrypt",
        owner=record.owner,
        file=record.file_id,
        version=version,
        rec=admitted.signed.record,
        sigs=admitted.sigs,
        accounts=admitted.accounts,
    )
    # What the record was judged by counts: the target may be that same sidecar, read again since.
    expect = {target.path: target.digest, **admitted.expect}
    change = Change(entry, expect, tuple(effects), None, then)
    return Commit(change, lambda seq: Done(world.receipt(seq, who)), undo)


def _kept_version(head: Head, version: int) -> Document[Sidecar]:
    try:
        document = head.files.sidecar(head.file_id, version)
    except Absent as exc:
        raise Refused("not-found", "no such version") from exc
    if document.value.metadata is None:
        raise Refused("not-found", "the content of this version was removed")
    return document


def _check_writable(world: World) -> None:
    if world.failed is not None:
        raise Refused("unavailable", "a sync failed: until a restart, nothing changes")
