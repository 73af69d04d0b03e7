"""Changes of a file by a new record on its head: built, sent, proven to be in the log, and built
again on a newer head after a conflict."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, overload

from protocol.records.records import (
    DELETE,
    PURGE,
    FileRecord,
    ReaderEntry,
    carried_content,
    record_hash,
)
from protocol.wire.messages import Done, Error, Request
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.files import Record, RecordChange, Stat, Stated
from protocol.wire.messages.uploads import PutCommit
from sfsc.crypto.envelope import check_name
from sfsc.errors import ConflictError, NotFound
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session
from sfsc.trust.file_records import VerifiedFile
from sfsc.trust.state import KnownFile

MAX_CONFLICTS: Final = 16
"""Conflicts after which a change gives up."""
_MAY_HAVE_LANDED: Final = frozenset({"conflict", "upload-lost", "stale-generation"})
"""Error codes for a record that was accepted before: another record followed it, its upload is
gone, or keys were rotated."""
Built = tuple[FileRecord, Callable[[bytes, bytes], Request]]
"""A record, and a function that builds its request from its exact bytes and their signature."""


class UploadLost(Exception):
    """The server no longer has what was uploaded: the file must start again, under a new key."""


def change_request(
    metadata: bytes = b"", wraps: tuple[Wrap, ...] = ()
) -> Callable[[bytes, bytes], Request]:
    """Return the function for a record without new ciphertext; `metadata` is sealed."""
    return lambda body, signature: Record((RecordChange(body, signature, metadata, wraps),))


def find_file(session: Session, name: str) -> VerifiedFile:
    """Return the newest version of our file `name`, deleted or not. Raises `NotFound`."""
    check_name(name)
    try:
        return session.fetch_newest(session.account.file_id(name))
    except NotFound as exc:
        raise NotFound(f"no such file: {name}", "run `sfsc ls` to see what is stored") from exc


def find_current_file(session: Session, name: str) -> VerifiedFile:
    """Return the current version of our file `name`. Raises `NotFound`."""
    file = find_file(session, name)
    if file.deleted:
        raise NotFound(f"the file {name} was deleted", "run `sfsc history` to see its versions")
    return file


def fetch_version(session: Session, file: VerifiedFile, version: int) -> VerifiedFile:
    """Return one version of `file`, whose newest version is given, confirmed to be the one that the
    file's records name, and with a wrap for a key of this machine if there is one. Raises
    `NotFound`, and as `Session.confirm_version`."""
    if version != file.version:
        file = _fetch_stated(session, file.file_id, version)
    return with_present_wraps(session, session.confirm_version(file))


def with_present_wraps(session: Session, file: VerifiedFile) -> VerifiedFile:
    """Adopt the account's newest keys, and return a version of ours with a wrap for one of them.

    If the keys were rotated twice since it was fetched, those that its wraps are for are destroyed,
    and it is fetched again. Without any wrap for us it is returned as it is. Raises as
    `fetch_version`.
    """
    for _ in range(MAX_CONFLICTS):
        session.adopt_newest()
        account = session.account
        if not file.wraps or any(wrap.key_id in account.private_keys for wrap in file.wraps):
            break
        file = session.confirm_version(_fetch_stated(session, file.file_id, file.version))
        if session.account is account and not session.is_behind:
            break
    return file


def _fetch_stated(session: Session, file_id: str, version: int) -> VerifiedFile:
    since = session.followed_size
    stated = session.call(Stat(session.account.user, file_id, version), Stated)
    file = session.account.verify_version(stated.view, file_id, version, None)
    session.check_head(file.head, file.head_body, stated.view.at, since)
    return file


def build_tombstone(
    session: Session, head: FileRecord, body: bytes, to: str | None = None
) -> FileRecord:
    """Return the record that deletes a file, on its `head`, whose exact bytes are `body`. `to` is
    the file_id to which the file moved."""
    return build_record(session, head, body, op=DELETE, current=0, to=to)


def build_purge(session: Session, file: VerifiedFile, versions: tuple[int, ...]) -> FileRecord:
    """Return the record that removes the content of `versions`, which are sorted and not
    current."""
    head = file.head
    return build_record(
        session, head, file.head_body, op=PURGE, current=head.current, purged=versions
    )


def build_record(
    session: Session,
    head: FileRecord,
    body: bytes,
    *,
    op: str,
    current: int,
    to: str | None = None,
    purged: tuple[int, ...] | None = None,
    readers: tuple[ReaderEntry, ...] | None = None,
) -> FileRecord:
    """Return the record of `op` on `head`, whose exact bytes are `body`; without `readers` these
    stay the same."""
    author = session.author
    return FileRecord(
        server=author.server,
        owner=author.owner,
        actor=author.actor,
        generation=author.generation,
        file_id=head.file_id,
        rev=head.rev + 1,
        op=op,
        prev=record_hash(body),
        seen=session.seen,
        created=int(time.time()),
        readers=head.readers if readers is None else readers,
        current=current,
        content=carried_content(head, body) if current else b"",
        to=to,
        purged=purged,
    )


def was_accepted(
    session: Session, connection: int, refused: Error, record: FileRecord, body: bytes
) -> bool:
    """Whether the log has this very record although it is `refused` now. It was sent when
    `Session.connections` was `connection`.

    A record may be accepted, the reply lost with its connection, and another record added before
    the request is repeated. Only the followed log counts: a server could show a record as accepted
    that nobody else will ever see.
    """
    if session.connections == connection or refused.code not in _MAY_HAVE_LANDED:
        return False
    session.refresh_log()
    return session.log.has_record(record.file_id, record.rev, record_hash(body))


@overload
def change_file(
    session: Session, file: VerifiedFile, build: Callable[[VerifiedFile], Built]
) -> tuple[FileRecord, bytes]: ...
@overload
def change_file(
    session: Session, file: VerifiedFile, build: Callable[[VerifiedFile], Built | None]
) -> tuple[FileRecord, bytes] | None: ...
def change_file(
    session: Session, file: VerifiedFile, build: Callable[[VerifiedFile], Built | None]
) -> tuple[FileRecord, bytes] | None:
    """Add the record that `build` returns to the head of `file`; None means that nothing is left to
    do.

    After a conflict it is built again on the newer head. Returns the record and its exact bytes,
    proven to be in the log. Raises `ConflictError` if others keep changing the file, and
    `UploadLost` if the record commits an upload that the server no longer has.
    """
    for _ in range(MAX_CONFLICTS):
        session.adopt_newest()
        file = session.without_left(file)
        built = build(file)
        if built is None:
            return None
        record, build_request = built
        body = record.encode()
        (signature,), connection = session.sign(body), session.connections
        since = session.followed_size
        request = build_request(body, signature)
        reply = session.ask(request)
        if not isinstance(reply, Error):
            session.verify_receipt(expect_reply(reply, Done).receipt, record, body, signature)
            session.link_receipts()
            return record, body
        if was_accepted(session, connection, reply, record, body):
            return record, body
        if reply.code == "upload-lost" and isinstance(request, PutCommit):
            raise UploadLost
        if reply.code != "conflict" or reply.head is None:
            session.renew_keys(reply)
            continue
        file = session.verify_newest(reply.head, record.file_id, since)
    raise ConflictError("others keep changing the file", "run the command again")


def delete_file(
    session: Session, file: VerifiedFile, is_deleted: Callable[[VerifiedFile], bool]
) -> VerifiedFile:
    """Put a tombstone onto the head of `file`, unless `is_deleted` says that there is one. Return
    the file as it was before. Raises `ConflictError`."""

    def build(onto: VerifiedFile) -> Built | None:
        nonlocal file
        file = onto
        if is_deleted(onto):
            return None
        return build_tombstone(session, onto.head, onto.head_body), change_request()

    if (made := change_file(session, file, build)) is not None:
        session.state.remember_file(KnownFile.from_record(*made, file.version), None)
    return file
