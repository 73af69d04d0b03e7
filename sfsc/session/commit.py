"""Records put onto files' heads without new ciphertext: sent, proven to stand in the log, and built
again where someone was faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, overload

from protocol.records.records import DELETE, PURGE, FileRecord, ReaderEntry, record_hash
from protocol.wire.messages import Done, Error
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.files import History, HistoryPage, Record, RecordChange
from sfsc.crypto.envelope import check_name
from sfsc.errors import ConflictError, NotFound
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session, known_file
from sfsc.trust.file_records import VerifiedFile

MAX_CONFLICTS: Final = 16
"""How often someone may be faster before a change gives up."""
_MAY_HAVE_LANDED: Final = frozenset({"conflict", "upload-lost", "stale-generation"})
"""Error codes for a record that was accepted before: another record followed it, its upload is
gone, or keys were rotated."""
Built = tuple[FileRecord, bytes, tuple[Wrap, ...]]
"""A record, and the sealed metadata and the wraps that go with it."""


def find_file(session: Session, name: str) -> VerifiedFile:
    """Return the newest version of our file `name`, deleted or not. Raises `NotFound`."""
    check_name(name)
    try:
        return session.fetch_newest(session.account.file_id(name))
    except NotFound as exc:
        raise NotFound(f"there never was a file {name}", "`sfsc ls` shows what there is") from exc


def find_current_file(session: Session, name: str) -> VerifiedFile:
    """The current version of our file `name`. Raises `NotFound`."""
    file = find_file(session, name)
    if file.deleted:
        raise NotFound(f"there is no file {name}", "it was deleted: see `sfsc history`")
    return file


def build_tombstone(
    session: Session, head: FileRecord, body: bytes, to: str | None = None
) -> FileRecord:
    """The record that deletes a file onto its `head`, whose exact bytes are `body`; `to` is the
    file_id that the file moved to."""
    return build_record(session, head, body, op=DELETE, current=0, to=to)


def build_purge(session: Session, file: VerifiedFile, versions: tuple[int, ...]) -> FileRecord:
    """The record that removes the content of `versions`, sorted and none of them current."""
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
    """The record of `op` onto `head`, whose exact bytes are `body`; readers stay where none are
    named."""
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
        to=to,
        purged=purged,
    )


def was_accepted(
    session: Session, connection: int, refused: Error, record: FileRecord, body: bytes
) -> bool:
    """Whether the file's history has this very record, which was sent when `connection` was the
    session's (`Session.connections`) and is `refused` now.

    Of a record sent twice the first may have been accepted, its answer lost with the connection,
    and something else put upon it since. One that was sent once is not asked about.
    """
    if session.connections == connection or refused.code not in _MAY_HAVE_LANDED:
        return False
    reply = session.ask(History(record.owner, record.file_id, record.rev))
    if isinstance(reply, Error) and reply.code == "not-found":
        return False
    return any(item.record == body for item in expect_reply(reply, HistoryPage).records)


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
    """Put the record that `build` makes onto the head of `file`.

    Where someone was faster, it is built again onto the newer head; None from `build` says that
    nothing is left to do. Returns the record and its exact bytes, proven to stand in the log.
    Raises `ConflictError` where others keep changing the file.
    """
    for _ in range(MAX_CONFLICTS):
        built = build(file)
        if built is None:
            return None
        record, metadata, wraps = built
        body = record.encode()
        signature, connection = session.sign(body), session.connections
        reply = session.ask(Record((RecordChange(body, signature, metadata, wraps),)))
        if not isinstance(reply, Error):
            session.verify_receipt(expect_reply(reply, Done).receipt, record, body, signature)
            session.link_receipts()
            return record, body
        if was_accepted(session, connection, reply, record, body):
            return record, body
        if reply.code != "conflict" or reply.head is None:
            session.renew_keys(reply)
            continue
        file = session.verify_newest(reply.head, record.file_id, known_file(file))
    raise ConflictError("others keep changing the file", "run the command again")
