"""Rename: one change stores the content under the new name and a tombstone under the old one.

Only the metadata, which holds the name, is encrypted and sent again. Older versions stay under the
old name, for `history` and `restore`.
"""

from __future__ import annotations

import time

from protocol.codec.values import Value, changed
from protocol.records.records import MOVE, FileRecord
from protocol.wire.messages import Done, Error
from protocol.wire.messages.files import Record, RecordChange
from sfsc.crypto.envelope import Metadata, check_name, content_record
from sfsc.errors import ConflictError, NotFound, UsageError
from sfsc.session.commit import (
    MAX_CONFLICTS,
    build_tombstone,
    find_current_file,
    was_accepted,
    with_present_wraps,
)
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session
from sfsc.trust.file_records import Entry, VerifiedFile, parse_record
from sfsc.trust.state import KnownFile


class Renames:
    """Renames the user's files."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def mv(self, name: str, to: str) -> Entry:
        """Rename the file `name` to `to`, and return its entry. Raises `NotFound`, and
        `ConflictError` if `to` exists."""
        check_name(to)
        if name == to:
            raise UsageError("the old and the new name are the same")
        session = self._session
        file, file_id = find_current_file(session, name), session.account.file_id(to)
        file = session.without_left(file)
        target = session.find_newest(file_id)
        for _ in range(MAX_CONFLICTS):
            if file.deleted:
                raise NotFound(f"{name} was deleted meanwhile")
            if target is not None and not target.deleted:
                raise ConflictError(
                    f"there is a file {to} already", "delete it first, or choose another name"
                )
            file = with_present_wraps(session, file)
            move = _Move.build(session, file, target, file_id, to)
            connection, since = session.connections, session.followed_size
            reply = session.ask(move.request)
            if not isinstance(reply, Error):
                receipt = expect_reply(reply, Done).receipt
                session.verify_receipt(
                    receipt, move.record, move.body, move.signature, move.tombstone
                )
                session.link_receipts()
                return self._moved(move, file)
            if was_accepted(session, connection, reply, move.record, move.body):
                return self._moved(move, file)
            if reply.code != "conflict" or reply.head is None:
                session.renew_keys(reply)
                file, target = find_current_file(session, name), session.find_newest(file_id)
                continue
            shown = parse_record(reply.head.head or reply.head.content).file_id
            if shown == file.file_id:
                file = session.verify_newest(reply.head, shown, since)
            else:
                target = session.verify_newest(reply.head, move.record.file_id, since)
        raise ConflictError("others keep changing the files", "run the command again")

    def _moved(self, move: _Move, file: VerifiedFile) -> Entry:
        state = self._session.state
        entry = Entry.from_record(move.record, move.record, move.metadata)
        with state.transaction():
            state.remember_file(
                KnownFile.from_record(move.record, move.body, entry.version), entry.pack()
            )
            state.remember_file(
                KnownFile.from_record(move.left, move.tombstone[0], file.version), None
            )
        return entry


class _Move(Value):
    """The two signed records of a rename. `left` is the tombstone of the old file, `tombstone` its
    exact bytes and signature."""

    record: FileRecord
    body: bytes
    signature: bytes
    left: FileRecord
    tombstone: tuple[bytes, bytes]
    metadata: Metadata
    request: Record

    @classmethod
    def build(
        cls,
        session: Session,
        file: VerifiedFile,
        target: VerifiedFile | None,
        file_id: str,
        name: str,
    ) -> _Move:
        """Build the move of `file` to `name`. `file_id` belongs to that name, `target` is its
        present file."""
        key, metadata = session.account.open_version(file)
        renamed = changed(metadata, name=name)
        sealed = key.seal_metadata(renamed)
        record = content_record(
            session.author,
            key,
            file_id=file_id,
            head=None if target is None else target.head_body,
            version=1 if target is None else target.version + 1,
            ciphertext_size=file.content.ciphertext_size or 0,
            segments_root=file.content.segments_root or b"",
            metadata=sealed,
            readers=file.head.readers,
            seen=session.seen,
            created=int(time.time()),
            op=MOVE,
            origin=(file.file_id, file.version),
        )
        body = record.encode()
        left = build_tombstone(session, file.head, file.head_body, record.file_id)
        tombstone = left.encode()
        signature, signed = session.sign(body, tombstone)
        wraps = session.wrap(key, record.readers)
        request = Record(
            (RecordChange(body, signature, sealed, wraps), RecordChange(tombstone, signed, b"", ()))
        )
        return cls(record, body, signature, left, (tombstone, signed), renamed, request)
