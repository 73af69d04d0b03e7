"""Rename: one change stores the content under the new name and a tombstone under the old one.

Only the metadata, which holds the name, is encrypted and sent again. Older versions stay under the
old name, for `history` and `restore`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from protocol.codec.values import changed
from protocol.records.records import MOVE
from protocol.wire.messages import FileView, Receipt
from sfsc.crypto.envelope import Metadata, WrapBatches, check_name, content_record
from sfsc.errors import ConflictError, NotFound, UsageError
from sfsc.session.changeset import Draft
from sfsc.session.commit import (
    PlannedChange,
    build_tombstone,
    commit_change,
    find_current_file,
    with_present_wraps,
)
from sfsc.session.session import Session
from sfsc.trust.file_records import Entry, parse_record
from sfsc.trust.state import KnownFile, MadeRecord


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
        return commit_change(self._session, Move(self._session, name, to))


class Move(PlannedChange[Entry]):
    """The change of one name to another."""

    def __init__(self, session: Session, name: str, to: str) -> None:
        self._session = session
        self.name = name
        self._to = to
        self._file_id = session.account.file_id(to)
        self.metadata: Metadata
        self._find(session)

    def _find(self, session: Session) -> None:
        self._file = session.without_left(find_current_file(session, self.name))
        self._target = session.find_newest(self._file_id)

    def draft(self, batches: WrapBatches) -> Draft:
        session, file, target = self._session, self._file, self._target
        if file.deleted:
            raise NotFound(f"{self.name} was deleted meanwhile")
        if target is not None and not target.deleted:
            raise ConflictError(
                f"there is a file {self._to} already", "delete it first, or choose another name"
            )
        file = self._file = with_present_wraps(session, file)
        key, metadata = session.account.open_version(file)
        self.metadata = changed(metadata, name=self._to)
        sealed = key.seal_metadata(self.metadata)
        version = 1 if target is None else target.version + 1
        record = content_record(
            session.author,
            key,
            file_id=self._file_id,
            head=None if target is None else target.head_body,
            version=version,
            ciphertext_size=file.content.ciphertext_size or 0,
            segments_root=file.content.segments_root or b"",
            metadata=sealed,
            readers=file.head.readers,
            seen=session.seen,
            created=int(time.time()),
            op=MOVE,
            origin=(file.file_id, file.version),
        )
        left = build_tombstone(session, file.head, file.head_body, self._file_id)
        wraps = tuple((version, wrap) for wrap in session.wrap(key, record.readers, batches))
        body, tombstone = record.encode(), (left, left.encode())
        return Draft(record, body, sealed, wraps, tombstone=tombstone)

    def rebase(self, session: Session, head: FileView | None, since: int) -> None:
        shown = "" if head is None else parse_record(head.head or head.content).file_id
        if head is None:
            self._find(session)
        elif shown == self._file.file_id:
            self._file = session.verify_newest(head, shown, since)
        else:
            self._target = session.verify_newest(head, self._file_id, since)

    def renewed(self, session: Session) -> None:
        self._find(session)

    def made_records(self, draft: Draft) -> Iterable[MadeRecord]:
        return () if draft.tombstone is None else ((*draft.tombstone, self._file.version),)

    def committed(self, draft: Draft, _receipt: Receipt | None) -> Entry:
        made = draft.record
        entry = Entry.from_record(made, made, self.metadata)
        known = KnownFile.from_record(made, draft.body, entry.version)
        self._session.state.remember_file(known, entry.pack())
        return entry
