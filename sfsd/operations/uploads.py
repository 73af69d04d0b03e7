"""Storing a file: in one message, or in pieces and a commit.

Everything a record must satisfy is in `sfsd.rules.record_rules`. If a record already is the head,
the same request stored it before its answer got lost: it gets the same receipt.
"""

from __future__ import annotations

from functools import partial

from protocol.codec.merkle import leaf_hash
from protocol.records.records import PUT, REENCRYPT, FileRecord
from protocol.wire.messages import Done, Reply
from protocol.wire.messages.uploads import (
    Aborted,
    Data,
    PutAbort,
    PutCommit,
    PutOpen,
    PutResume,
    PutSmall,
    UploadState,
)
from sfsd.errors import Refused
from sfsd.operations.versions import (
    Claim,
    Content,
    add_version,
    admit,
    check_size_kept,
    kept_version,
    reencrypt,
)
from sfsd.rules.context import USER, Commit, Principal, ServerContext, operation, weight_of_parts
from sfsd.rules.record_rules import FileHead, parse_record
from sfsd.state.uploads import Upload
from sfsd.storage.change import Adopt, Write


def _weight_of_put(message: PutSmall | PutCommit) -> int:
    """Return the bytes that a put makes the daemon hold, without its ciphertext."""
    return weight_of_parts(message.record, message.metadata, wraps=len(message.wraps))


@operation(
    PutSmall,
    access=USER,
    logged="upload or reencrypt",
    weight=lambda message: _weight_of_put(message) + len(message.ciphertext),
)
def put_small(server: ServerContext, who: Principal, message: PutSmall) -> Reply | Commit[Reply]:
    record, head = _locate(server, who, message.record)
    if (receipt := repeated(server, who, head, message.record)) is not None:
        return receipt
    ciphertext = bytes(message.ciphertext)
    leaf = leaf_hash(ciphertext)  # at most 256 KiB: one piece, whose leaf is the root
    content = Content(len(ciphertext), leaf, leaf, message.metadata, message.wraps)
    ledger, quota = server.users.quota(who.user)
    if record.op == REENCRYPT:
        path = head.paths(record.version or 0).ciphertext
        admitted = admit(server, record, message.record, message.signature, head, content)
        return reencrypt(server, who, admitted, content, Write(path, ciphertext, leaf))
    path = head.paths(head.next_version).ciphertext
    return add_version(
        server,
        who,
        admit(server, record, message.record, message.signature, head, content),
        content,
        Write(path, ciphertext, leaf),
        claim=Claim(
            ledger,
            quota,
            record.content_id or b"",
            partial(ledger.reserve, content.size, quota),
            content.size,
        ),
    )


@operation(PutOpen, access=USER)
def put_open(server: ServerContext, who: Principal, message: PutOpen) -> UploadState:
    if message.owner != who.user:
        raise Refused("not-found", "no such file")
    server.users.require_active(who.user)
    _check_writable(server)
    # The ledger is loaded where there is a quota; the upload finds it through its owner's files.
    _, quota = server.users.quota(who.user)
    files = server.index.for_user(who.user)
    if message.version:
        _check_replaces(FileHead.load(files, message.file_id), message)
    upload = server.uploads.open_upload(
        files, message.file_id, message.size, quota, message.version
    )
    return UploadState(upload.upload_id, 0)


def _check_replaces(head: FileHead, message: PutOpen) -> None:
    """Raise `Refused` unless there is such a version, of just this size."""
    check_size_kept(kept_version(head, message.version).value, message.size)


@operation(Data, access=USER, slow=True, weight=lambda message: len(message.data))
def data(server: ServerContext, who: Principal, message: Data) -> UploadState:
    upload = server.uploads.get(who.user, message.upload)
    _check_writable(server)
    _, quota = server.users.quota(who.user)
    offset = upload.write(message.offset, message.data, quota)
    server.uploads.touch(upload)
    return UploadState(message.upload, offset)


@operation(PutResume, access=USER, after_data=True)
def put_resume(server: ServerContext, who: Principal, message: PutResume) -> UploadState:
    upload = server.uploads.get(who.user, message.upload)
    return UploadState(message.upload, upload.wait_for_writes())


@operation(PutAbort, access=USER, after_data=True)
def put_abort(server: ServerContext, who: Principal, message: PutAbort) -> Aborted:
    server.uploads.abort(server.uploads.get(who.user, message.upload))
    return Aborted()


@operation(
    PutCommit,
    access=USER,
    logged="upload or reencrypt",
    after_data=True,
    weight=_weight_of_put,
)
def put_commit(server: ServerContext, who: Principal, message: PutCommit) -> Reply | Commit[Reply]:
    record, head = _locate(server, who, message.record)
    if (receipt := repeated(server, who, head, message.record)) is not None:
        return receipt
    upload = server.uploads.get(who.user, message.upload)
    if upload.file_id != record.file_id:
        raise Refused("bad-request", "the upload is for another file")
    if upload.replaces and (record.op, record.version) != (REENCRYPT, upload.replaces):
        raise Refused("bad-request", "the upload is to encrypt another version anew")
    upload.begin_commit()
    try:
        return _commit(server, who, message, record, head, upload)
    except BaseException:
        upload.end_commit()  # whatever it was, the ciphertext is kept for another try
        raise


def _commit(
    server: ServerContext,
    who: Principal,
    message: PutCommit,
    record: FileRecord,
    head: FileHead,
    upload: Upload,
) -> Commit[Reply]:
    size, leaves, root = upload.seal()
    content = Content(size, root, b"".join(leaves), message.metadata, message.wraps)
    if record.op == REENCRYPT:
        return reencrypt(
            server,
            who,
            admit(server, record, message.record, message.signature, head, content),
            content,
            Adopt(head.paths(record.version or 0).ciphertext, upload.staged),
            kept=partial(server.uploads.forget, upload),
            undo=upload.end_commit,
        )
    ledger, quota = server.users.quota(who.user)
    return add_version(
        server,
        who,
        admit(server, record, message.record, message.signature, head, content),
        content,
        Adopt(head.paths(head.next_version).ciphertext, upload.staged),
        claim=Claim(
            ledger, quota, record.content_id or b"", partial(upload.reserve, size, quota), 0
        ),
        kept=partial(server.uploads.forget, upload),
        undo=upload.end_commit,
    )


def _locate(server: ServerContext, who: Principal, body: bytes) -> tuple[FileRecord, FileHead]:
    record = parse_record(body)
    if record.op not in (PUT, REENCRYPT):
        raise Refused("bad-request", f"a {record.op} record stores no new content")
    if record.owner != who.user:
        raise Refused("not-found", "no such file")
    return record, FileHead.load(server.index.for_user(who.user), record.file_id)


def repeated(server: ServerContext, who: Principal, head: FileHead, body: bytes) -> Done | None:
    """The receipt of a record that is the head already, None for any other."""
    if head.document is None or head.document.value.last.record != body:
        return None
    seq = head.document.value.seq
    if server.journal.entry(seq).rec != body:
        # Something without a record of its own has been written since; History still has ours.
        raise Refused("conflict", "the file has changed", head=head.view(who.user))
    return Done(server.receipt(seq, who))


def _check_writable(server: ServerContext) -> None:
    if server.failed is not None:
        raise Refused("unavailable", "a sync failed: until a restart, nothing changes")
