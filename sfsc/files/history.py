"""A file's history: its records, verified from the first, and its versions restored or removed."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from protocol.codec.values import Value, field
from protocol.records.records import (
    CONTENT_OPS,
    MOVE,
    REENCRYPT,
    RESTORE,
    FileRecord,
    ReaderEntry,
    record_hash,
)
from protocol.wire.messages.files import History, HistoryPage
from sfsc.crypto.envelope import (
    ContentKey,
    Metadata,
    WrapBatches,
    content_record,
    requested_version,
)
from sfsc.crypto.segments import plaintext_size
from sfsc.errors import BadRecord, Damaged, NotFound, Rollback, UsageError
from sfsc.files.damaged import find_logged
from sfsc.session.changeset import Draft
from sfsc.session.commit import (
    FileChange,
    commit_change,
    fetch_version,
    find_file,
)
from sfsc.session.pipeline import Skip
from sfsc.session.session import Session
from sfsc.times import as_datetime
from sfsc.trust.file_records import Entry, FileOwner, VerifiedFile
from sfsc.trust.state import KnownFile

BuildDraft = Callable[[VerifiedFile, WrapBatches], Draft]
"""Drafts a change onto a file."""
MAX_REVISIONS: Final = 1_000_000
"""Maximum records of one file; a server that shows more is looping."""


class Revision(Value):
    """One record of a file. `version` is the version it created or restored, if any.

    `size` is in bytes of plaintext, None without content. `restored` is the version whose content
    was restored; `moved` the file_id that a rename came from or led to; `purged` the versions whose
    content was removed. `kept` tells whether the record's own version still has its content.
    `created` is in unix seconds by the signer's clock. `voided` tells whether an attacker with
    stolen keys signed it and it was undone.
    """

    revision: int
    op: str
    version: int | None
    size: int | None
    restored: int | None
    moved: str | None
    purged: tuple[int, ...]
    kept: bool
    created: int
    voided: bool

    @property
    def created_at(self) -> datetime | None:
        """Time of the record by the signer's clock, in UTC."""
        return as_datetime(self.created)


class ExportedKey(Value):
    """Opens a ciphertext with any implementation of Tink's AES256_GCM_HKDF_1MB. `dek` (32 bytes) is
    secret; `associated_data` is 16 bytes; `ciphertext` is the path of the blob below the server's
    root (docs/format.md)."""

    dek: bytes = field(repr=False)
    associated_data: bytes
    ciphertext: str


def exported_key(shown: VerifiedFile, key: ContentKey) -> ExportedKey:
    """Return what opens the ciphertext of the version that `shown` shows, whose key is `key`."""
    folder = f"store/users/{shown.content.owner}/files/{shown.file_id[:2]}"
    return ExportedKey(key.dek, key.content_id, f"{folder}/{shown.file_id}.{shown.version}.ct")


class FileHistory:
    """Versions of the user's own files."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def history(self, name: str, skip: Skip | None = None) -> list[Revision]:
        """Return every record of `name`, oldest first, deleted or not. Each is verified to be
        signed and to follow the one before it. If the newest version is damaged, `skip` is called
        with that error, and the records are those of the account's log; without `skip` the error is
        raised. Raises `NotFound`, `BadRecord` or `Rollback`."""
        try:
            records = self.records(find_file(self._session, name))
        except Damaged as exc:
            if skip is None:
                raise
            skip(name, exc)
            logged = find_logged(self._session, name)[1]
            records = sorted(logged.values(), key=lambda record: record.rev)
        gone = {version for record in records for version in record.purged or ()}
        voided = self._session.account.is_voided
        return [_revision(record, gone, voided=voided(record)) for record in records]

    def restore(self, name: str, version: int | None = None) -> Entry:
        """Make the content of an old `version` the newest version. The default, for a deleted file,
        is its last version. No content is encrypted or sent again. Raises `NotFound` if the version
        does not exist or was purged, and `UsageError` if there is nothing to restore."""
        file = find_file(self._session, name)
        if version is None and not file.deleted:
            raise UsageError("the file is not deleted", "name the --version to bring back")
        if version is None:
            file = self._session.confirm_version(file, newest=True)
        source = self._fetch_version(file, requested_version(version) or file.version)
        return self.apply_restore(file, *self.build_restore(source))[1]

    def apply_restore(
        self, file: VerifiedFile, build: BuildDraft, metadata: Metadata
    ) -> tuple[FileRecord, Entry]:
        """Add to `file` what `build_restore` returned. Return the record and the file's entry."""
        session, change = self._session, FileChange(file, build)
        made = commit_change(session, change)
        return made, remember_restored(session, made, change.body, metadata)

    def build_restore(self, source: VerifiedFile) -> tuple[BuildDraft, Metadata]:
        """Return a builder of the record that makes the version `source` the newest one, and the
        metadata of that version. Raises like `OwnAccount.open_version`."""
        key, metadata = self._session.account.open_version(source)

        def build(onto: VerifiedFile, batches: WrapBatches) -> Draft:
            place = onto.head, onto.head_body, onto.version + 1
            return draft_restore(self._session, source, key, metadata, place, batches)

        return build, metadata

    def export_key(self, name: str, version: int | None = None) -> ExportedKey:
        """Return what opens the ciphertext of one version, by default the current one, without any
        key of the account. Raises `NotFound`."""
        file = find_file(self._session, name)
        if version is None and file.deleted:
            raise NotFound(f"there is no file {name}", "it was deleted: see `sfsc history`")
        shown = self._fetch_version(file, requested_version(version) or file.version)
        key, _ = self._session.account.open_version(shown)
        return exported_key(shown, key)

    def _fetch_version(self, file: VerifiedFile, version: int) -> VerifiedFile:
        if version > file.version:
            raise NotFound(f"there is no version {version}", "see `sfsc history`")
        found = fetch_version(self._session, file, version)
        if not found.metadata:
            raise NotFound(f"the content of version {version} was removed", "see `sfsc history`")
        return found

    def shared_history(self, owner: FileOwner, newest: VerifiedFile) -> list[Revision]:
        """Return every record of a file that another user shares, like `history`; `newest` is its
        newest version."""
        records = self.records(newest, owner)
        gone = {version for record in records for version in record.purged or ()}
        return [_revision(record, gone, voided=owner.is_voided(record)) for record in records]

    def records(self, newest: VerifiedFile, owner: FileOwner | None = None) -> list[FileRecord]:
        """Return every record of the file in order; `newest` is its newest version, `owner` another
        user whose file it is. Raises like `history`."""
        session, file_id = self._session, newest.file_id
        signer = session.account if owner is None else owner
        records: list[FileRecord] = []
        prev, first = b"", 1
        while first:
            page = session.call(History(signer.user, file_id, first), HistoryPage)
            for signed in page.records:
                record = signer.verify_record(signed, file_id, historic=True)
                if (record.rev, record.prev) != (len(records) + 1, prev):
                    raise BadRecord(
                        f"record {len(records) + 1} of the file does not follow the one before it"
                    )
                if record.rev == newest.head.rev and signed.record != newest.head_body:
                    raise BadRecord("the file's history ends with another record than its head")
                records.append(record)
                prev = record_hash(signed.record)
            if page.next not in (0, len(records) + 1) or len(records) > MAX_REVISIONS:
                raise BadRecord("the file's history has gaps or no end")
            if page.next and not page.records:
                raise BadRecord("the server sent an empty page of the file's history")
            first = page.next
        if len(records) < newest.head.rev:
            raise Rollback(f"the server shows {len(records)} of {newest.head.rev} records")
        return records


def remember_restored(
    session: Session, record: FileRecord, body: bytes, metadata: Metadata
) -> Entry:
    """Remember a restored version: its record, the exact bytes, and its metadata. Return its
    entry."""
    entry = Entry.from_record(record, record, metadata)
    packed = None if session.account.is_settings(record.file_id) else entry.pack()
    known = KnownFile.from_record(record, body, entry.version)
    session.state.remember_file(known, packed)
    return entry


def draft_restore(
    session: Session,
    source: VerifiedFile,
    key: ContentKey,
    metadata: Metadata,
    onto: tuple[FileRecord, bytes, int],
    batches: WrapBatches,
) -> Draft:
    """Return the draft that makes the content of the version `source` the newest one. `key` and
    `metadata` are those of `source`; `onto` is the file's last record, its exact bytes, and the
    number of the new version."""
    head, body, version = onto
    content, sealed = source.content, key.seal_metadata(metadata)
    record = content_record(
        session.author,
        key,
        file_id=source.file_id,
        head=body,
        version=version,
        ciphertext_size=content.ciphertext_size or 0,
        segments_root=content.segments_root or b"",
        metadata=sealed,
        readers=head.readers,
        seen=session.seen,
        created=int(time.time()),
        op=RESTORE,
        origin=(source.file_id, source.version),
    )
    wraps = session.wrap(key, version, head.readers, batches)
    return Draft(record, record.encode(), sealed, wraps)


class PastReaders:
    """Which of a file's readers had the key of an older version, as its signed records show. A
    reader gets the newest version's key when added to the file, and the key of each later version
    while the grant lasts. `share --history` gives older keys as well, but only the server knows of
    those, and a server must not be able to name who gets a key: they do not count here."""

    def __init__(self, session: Session) -> None:
        self._history = FileHistory(session)
        self._head = b""  # hash of the record up to which the rest was read
        self._first: dict[tuple[str, bytes], int] = {}
        """Oldest version that a reader got without a gap since, by user and first statement."""
        self._expired: set[tuple[str, bytes, int]] = set()
        """Versions that were made after a reader's grant had ended."""

    def readers_of_version(self, file: VerifiedFile, version: int) -> tuple[ReaderEntry, ...]:
        """Return the present readers of `file` that have the key of its `version`. Of the newest
        version these are all readers. Raises like `FileHistory.records`."""
        readers = file.head.readers
        if version == file.version or not readers:
            return readers
        self._read(file)
        return tuple(
            (user, first, expires)
            for user, first, expires in readers
            if self._first.get((user, first), version + 1) <= version
            and (user, first, version) not in self._expired
        )

    def _read(self, file: VerifiedFile) -> None:
        head, digest = file.head, record_hash(file.head_body)
        if self._head and self._head in (digest, head.prev if head.op == REENCRYPT else digest):
            self._head = digest  # encrypting again changes no readers: nothing new to read
            return
        self._head, self._first, self._expired, newest = b"", {}, set(), 0
        for record in self._history.records(file):
            if record.op in CONTENT_OPS - {REENCRYPT}:
                newest = record.version or newest
                self._expired |= {
                    (user, first, newest)
                    for user, first, expires in record.readers
                    if expires and record.created >= expires
                }
            # Readers that are added to a deleted file get no key of it.
            since = newest if record.current else newest + 1
            self._first = {
                (user, first): self._first.get((user, first), since)
                for user, first, _ in record.readers
            }
        self._head = digest


def _revision(record: FileRecord, gone: set[int], *, voided: bool) -> Revision:
    size = record.ciphertext_size
    return Revision(
        revision=record.rev,
        op=record.op,
        version=record.version,
        size=None if size is None else plaintext_size(size),
        restored=record.from_[1] if record.op == RESTORE and record.from_ else None,
        moved=record.from_[0] if record.op == MOVE and record.from_ else record.to,
        purged=record.purged or (),
        kept=record.version is not None and record.version not in gone,
        created=record.created,
        voided=voided,
    )
