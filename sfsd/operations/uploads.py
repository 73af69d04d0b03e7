"""Store new content: sent with its record, or uploaded in pieces before.

The content becomes a file's newest version, or replaces a version's content under a new key
(reencrypt). `sfsd.rules.record_rules` has the rules for the record.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from protocol.codec.merkle import HASH_SIZE, leaf_hash
from protocol.codec.values import Value, changed
from protocol.records.records import REENCRYPT
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.uploads import (
    ALL_UPLOADS,
    Aborted,
    Data,
    PutAbort,
    PutOpen,
    PutResume,
    UploadState,
)
from sfsd.errors import Refused, require
from sfsd.operations.quota_claim import QuotaClaim, claim_growth
from sfsd.operations.signed_change import (
    SignedChange,
    inbox_effects,
    record_entry,
    update_inboxes,
    version_with_content,
)
from sfsd.rules.context import (
    USER,
    Principal,
    ServerContext,
    Transaction,
    operation,
)
from sfsd.rules.record_rules import AdmittedRecord, FileHead, check_content, not_found
from sfsd.state.documents import SidecarWrite
from sfsd.state.uploads import Upload
from sfsd.storage.change import Adopt, Change, Effect, Remove, Write
from sfsd.storage.json_files import INLINE_LEAVES, Sidecar


class NewContent(Value):
    """A ciphertext to store, with its metadata and wraps.

    `size` is in bytes. `leaves` are the concatenated leaf hashes of its pieces (32 bytes each) and
    `root` is their Merkle root. `store` makes the effect that puts the ciphertext at a path. `kept`
    runs once the bytes are held, `undo` if the change was not made. `upload` had the bytes, unless
    they came with the record.
    """

    size: int
    root: bytes
    leaves: bytes
    metadata: bytes
    wraps: tuple[Wrap, ...]
    store: Callable[[str], Effect]
    kept: Callable[[], None] = lambda: None
    undo: Callable[[], None] | None = None
    upload: Upload | None = None

    @property
    def has_few_leaves(self) -> bool:
        """Whether the leaf hashes are stored in the sidecar, not in a file of their own."""
        return len(self.leaves) <= INLINE_LEAVES * HASH_SIZE


def store_inline(server: ServerContext, who: Principal, change: SignedChange) -> Transaction[int]:
    """Store a ciphertext of at most 256 KiB that came with its record."""
    data = bytes(change.content)
    quota = change.signer.user.account.value.quota
    server.uploads.make_room(who, change.head.files, change.record.file_id, len(data), quota)
    leaf = leaf_hash(data)  # at most 256 KiB: one piece, whose leaf is the root
    content = NewContent(
        len(data),
        leaf,
        leaf,
        change.metadata,
        change.new_wraps(),
        lambda path: Write(path, data, leaf),
    )
    return _store(server, who, change, content)


@operation(PutOpen, access=USER)
def put_open(server: ServerContext, who: Principal, message: PutOpen) -> UploadState:
    """Begin an upload in pieces; with `version`, one that replaces that version's content."""
    if message.owner != who.user:
        raise not_found()
    server.users.require_active(who.user)
    server.check_storage()
    # This loads the ledger if there is a quota; the upload finds the ledger through `files`.
    _, quota = server.users.quota(who.user)
    files = server.index.for_user(who.user)
    if message.version:
        head = FileHead.load(files, message.file_id)
        _check_size_kept(version_with_content(head, message.version).value, message.size)
    upload = server.uploads.open_upload(
        who, files, message.file_id, message.size, quota, message.version
    )
    return UploadState(upload.upload_id, 0)


@operation(Data, access=USER, slow=True, bulk=True, weight=lambda message: len(message.data))
def data(server: ServerContext, who: Principal, message: Data) -> UploadState:
    """Store one piece of an upload; the reply says how many bytes are kept without a gap."""
    upload = server.uploads.get(who.user, message.upload)
    server.check_storage()
    _, quota = server.users.quota(who.user)
    if not upload.size:  # nothing was reserved for it
        server.uploads.make_room(who, upload.files, upload.file_id, len(message.data), quota)
    offset = upload.write(message.offset, message.data, quota)
    server.uploads.touch(upload)
    return UploadState(message.upload, offset)


@operation(PutResume, access=USER, after_data=True)
def put_resume(server: ServerContext, who: Principal, message: PutResume) -> UploadState:
    """Return how many bytes of an upload are kept without a gap; it belongs to this session now."""
    upload = server.uploads.get(who.user, message.upload)
    upload.session = who
    return UploadState(message.upload, upload.wait_for_writes())


@operation(PutAbort, access=USER, after_data=True)
def put_abort(server: ServerContext, who: Principal, message: PutAbort) -> Aborted:
    """Drop an upload and its bytes, or all uploads of the session."""
    if message.upload == ALL_UPLOADS:
        server.uploads.abort_session(who)
    else:
        server.uploads.abort(server.uploads.get(who.user, message.upload))
    return Aborted()


def store_upload(
    server: ServerContext, who: Principal, change: SignedChange, upload_id: bytes
) -> Transaction[int]:
    """Store the ciphertext of an upload under its record."""
    record, upload = change.record, server.uploads.get(who.user, upload_id)
    if upload.file_id != record.file_id:
        raise Refused("bad-request", "the upload is for another file")
    if upload.replaces and (record.op, record.version) != (REENCRYPT, upload.replaces):
        raise Refused("bad-request", f"the upload is to reencrypt version {upload.replaces}")
    upload.begin_commit()
    try:
        size, leaves, root = upload.seal()
        content = NewContent(
            size,
            root,
            b"".join(leaves),
            change.metadata,
            change.new_wraps(),
            lambda path: Adopt(path, upload.staged),
            partial(server.uploads.forget, upload),
            upload.end_commit,
            upload,
        )
        return _store(server, who, change, content)
    except BaseException:
        upload.end_commit()  # keep the ciphertext for a retry, whatever the error was
        raise


def _store(
    server: ServerContext,
    who: Principal,
    change: SignedChange,
    content: NewContent,
) -> Transaction[int]:
    """Check a put against every rule and return its change."""
    record, head = change.record, change.head
    admitted = change.admit(server)
    check_content(
        admitted,
        size=content.size,
        root=content.root,
        metadata=content.metadata,
        content_ids=head.files.content_ids(record.file_id),
    )
    expect = server.admission.check_wraps(admitted, content.wraps)
    admitted = changed(admitted, expect={**admitted.expect, **expect})
    leaves = content.leaves if content.has_few_leaves else None
    sidecar = Sidecar(0, admitted.signed, None, content.metadata, content.wraps, leaves)
    if record.op == REENCRYPT:
        return _reencrypt(server, who, admitted, content, sidecar)
    return _add_version(server, who, admitted, content, sidecar)


def _add_version(
    server: ServerContext,
    who: Principal,
    admitted: AdmittedRecord,
    content: NewContent,
    sidecar: Sidecar,
) -> Transaction[int]:
    """Return the change that makes `content` the newest version."""
    record, head = admitted.record, admitted.head
    version, files = head.next_version, head.files
    paths = head.paths(version)
    written = SidecarWrite(paths.sidecar, sidecar)
    effects = [content.store(paths.ciphertext), written.effect]
    if not content.has_few_leaves:
        effects.append(Write(paths.leaves, content.leaves))
    added = () if head.document else tuple(reader[0] for reader in record.readers)
    effects += inbox_effects(server, record, added, ())
    claim = _claim(server, admitted, content, [written])

    def on_published(_seq: int) -> None:
        files.note_published(written)
        server.documents.remember(written)
        claim.release()
        files.ledger.mark(record.file_id, living=True)
        update_inboxes(server, record, added, ())
        content.kept()

    entry = record_entry(who, "upload", admitted, version)
    change = Change(entry, admitted.expect, tuple(effects), claim, on_published)
    return Transaction(change, lambda seq: seq, content.undo)


def _reencrypt(
    server: ServerContext,
    who: Principal,
    admitted: AdmittedRecord,
    content: NewContent,
    sidecar: Sidecar,
) -> Transaction[int]:
    """Return the change that replaces a version's bytes by as many new bytes under a new key.

    A content that several versions shared is then held twice. A rotation must not fail for that, so
    twice the quota is granted (decision 0027).
    """
    record, head, files = admitted.record, admitted.head, admitted.head.files
    version = record.version or 0
    target = version_with_content(head, version)
    _check_size_kept(target.value, content.size)
    paths = head.paths(version)
    written = [SidecarWrite(paths.sidecar, sidecar)]
    if version != head.version and head.document is not None:
        renewed = changed(head.document.value, head=admitted.signed)
        written.append(SidecarWrite(head.document.path, renewed))
    leaves = Remove(paths.leaves) if content.has_few_leaves else Write(paths.leaves, content.leaves)
    # The sidecars come last: a reader of the new sidecar finds the bytes that it describes.
    effects = [content.store(paths.ciphertext), leaves, *(one.effect for one in written)]
    claim = _claim(server, admitted, content, written, encrypts_again=True)

    def on_published(_seq: int) -> None:
        for one in written:
            files.note_published(one)
        claim.release()
        server.read_handles.invalidate(record.owner, record.file_id, version)
        content.kept()

    entry = record_entry(who, "reencrypt", admitted, version)
    # The digests that the record was checked against win: the target may be the same sidecar, read
    # again since.
    expect = {target.path: target.digest, **admitted.expect}
    change = Change(entry, expect, tuple(effects), claim, on_published)
    return Transaction(change, lambda seq: seq, content.undo)


def _claim(
    server: ServerContext,
    admitted: AdmittedRecord,
    content: NewContent,
    written: list[SidecarWrite],
    *,
    encrypts_again: bool = False,
) -> QuotaClaim:
    """Return the claim for a new content and the sidecars written with it."""
    return claim_growth(
        server,
        admitted.user,
        admitted.head.files,
        written,
        content=0 if content.upload else content.size,
        content_id=admitted.record.content_id or b"",
        upload=content.upload,
        encrypts_again=encrypts_again,
    )


def _check_size_kept(before: Sidecar, size: int) -> None:
    """Check that reencryption keeps the ciphertext's size. Raises `Refused`.

    The same plaintext has the same size; a longer content would take more of the quota.
    """
    had = before.content_record.ciphertext_size
    require(size == had, f"that version has {had} bytes")
