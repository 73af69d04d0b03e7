"""A version on its way to the server: its record onto one head, and what becomes of it.

Only the record says what the file becomes. It stands on the file's present head, so it is made
last, and again when someone was faster; the ciphertext does not change with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Self

from protocol.messages import Done, Error, Receipt, Reply, Request
from protocol.messages.base import Wrap
from protocol.messages.uploads import PutSmall
from protocol.records import FileRecord, Reader
from protocol.values import Value, changed, field
from sfsc.changes import MAX_CONFLICTS, landed
from sfsc.envelope import ContentKey, Metadata, content_record
from sfsc.errors import ConflictError
from sfsc.identity import SETTINGS, SETTINGS_NAME, Entry
from sfsc.pieces import UploadLost
from sfsc.refusals import answered, refusal
from sfsc.segments import ciphertext_size
from sfsc.session import Session, known_file
from sfsc.sources import Input
from sfsc.state import KnownFile

Build = Callable[[bytes, bytes, tuple[Wrap, ...]], Request]
"""(record, signature, wraps) to the request that stores a content under them."""


class Put(Value):
    """A version that is stored: durable on the server, and proven to stand in its log.

    `size` is of the plaintext in bytes. `receipt` is the proof; None where the acknowledgement was
    lost with its connection and the record was then found in the file's signed history. `record` is
    the exact bytes that were signed.
    """

    name: str
    file_id: str
    version: int
    size: int
    receipt: Receipt | None = field(repr=False)
    record: bytes = field(repr=False)


class Content(Value):
    """A version but for its record: nothing here depends on the file's head. `name` may be
    `SETTINGS`, which its metadata shows as another."""

    name: str
    file_id: str
    key: ContentKey
    metadata: Metadata
    sealed: bytes
    ciphertext_size: int
    segments_root: bytes
    expected: int | None

    @classmethod
    def of(
        cls,
        plaintext: Input,
        name: str,
        file_id: str,
        key: ContentKey,
        root: bytes,
        expected: int | None = None,
    ) -> Self:
        """Everything around a ciphertext with this `root`, once all of its source was read."""
        shown = SETTINGS_NAME if name == SETTINGS else name
        metadata = Metadata(shown, plaintext.count, plaintext.mtime, plaintext.mode)
        return cls(
            name=name,
            file_id=file_id,
            key=key,
            metadata=metadata,
            sealed=key.seal_metadata(metadata),
            ciphertext_size=ciphertext_size(plaintext.count),
            segments_root=root,
            expected=expected,
        )


class Attempt(Value):
    """A version with a record onto one head (`base`; None: a new file), as it was sent."""

    content: Content
    base: KnownFile | None
    record: FileRecord
    body: bytes
    signature: bytes
    request: Request
    connection: int
    build: Build


class Attempts:
    """Makes them over one session, and follows up on the answers."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._learnt: list[tuple[KnownFile, bytes]] = []
        self._looked_up: dict[str, KnownFile | None] = {}

    def make(self, content: Content, build: Build) -> Attempt:
        """The first attempt at `content`. Raises `ConflictError` for another head than expected."""
        return self._onto(self._base(content.file_id, content.expected), content, build)

    def settle(self, attempt: Attempt) -> Put:
        """Send an attempt, follow up on the answer, and remember what that taught us."""
        try:
            return self.follow_up(attempt, self._session.ask(attempt.request))
        finally:
            self.remember()

    def follow_up(self, attempt: Attempt, reply: Reply) -> Put:
        """Until its content is stored, or cannot be: other attempts are made and waited for. Raises
        `UploadLost` where its pieces are to be sent again, and `SfscError`."""
        for left in reversed(range(MAX_CONFLICTS)):
            if not isinstance(reply, Error):
                receipt = answered(reply, Done).receipt
                self._session.proven(receipt, attempt.record, attempt.body, attempt.signature)
                return self._stored(attempt, receipt)
            if reply.code in ("conflict", "upload-lost") and landed(
                self._session, attempt.connection, attempt.record, attempt.body
            ):
                return self._stored(attempt, None)
            if reply.code == "upload-lost":
                raise UploadLost
            if not left:
                raise refusal(reply)
            shown = reply.head if reply.code == "conflict" else None
            if shown is None:
                self._session.renew(reply)
            content, base = self._placed(attempt), attempt.base
            if content.file_id != attempt.content.file_id:
                base = self._base(content.file_id, content.expected)
            elif shown is not None:
                base = known_file(self._session.learn(shown, content.file_id, base))
            attempt = self._onto(base, content, attempt.build)
            reply = self._session.ask(attempt.request)
        raise ConflictError("others keep changing the file")

    def remember(self) -> None:
        """What was followed up on, in one transaction: it costs as much as a single file would."""
        learnt, self._learnt = self._learnt, []
        if learnt:
            self._session.state.remember_files(learnt)

    def look_up(self, file_ids: Sequence[str]) -> None:
        """Ask together what is known of files that are to be made an attempt at next, once each."""
        self._looked_up = self._session.state.files(file_ids)

    def _known(self, file_id: str) -> KnownFile | None:
        # What was looked up counts once: then there is something newer.
        if file_id in self._looked_up:
            return self._looked_up.pop(file_id)
        return self._session.state.file(file_id)

    def _onto(self, base: KnownFile | None, content: Content, build: Build) -> Attempt:
        """The record of `content` onto `base`, signed. Raises `ConflictError` for another head than
        the caller expected."""
        session = self._session
        head = None if base is None else FileRecord.parse(base.record)
        current = 0 if head is None else head.current
        if content.expected is not None and content.expected != current:
            raise ConflictError(
                f"version {current} is current, not {content.expected}",
                head=None if base is None else base.record,
            )
        readers = self._new_readers(content) if head is None else head.readers
        wraps = session.wrap(content.key, head, readers)
        record = content_record(
            session.author,
            content.key,
            file_id=content.file_id,
            head=None if base is None else base.record,
            version=1 if base is None else base.version + 1,
            ciphertext_size=content.ciphertext_size,
            segments_root=content.segments_root,
            metadata=content.sealed,
            readers=readers,
            seen=session.seen,
            created=int(time.time()),
        )
        body = record.encode()
        signature = session.sign(body)
        request = build(body, signature, wraps)
        return Attempt(content, base, record, body, signature, request, session.connections, build)

    def _new_readers(self, content: Content) -> tuple[Reader, ...]:
        if self._session.account.is_settings(content.file_id):
            return ()
        return self._session.new_readers(content.metadata.name)

    def _base(self, file_id: str, expected: int | None) -> KnownFile | None:
        """The head to put onto: the one remembered, which costs nothing; where that is stale, the
        conflict shows the present one. Where the caller expects a version, the server is asked
        unless the one remembered is that."""
        known = self._known(file_id)
        head = None if known is None else FileRecord.parse(known.record)
        current = 0 if head is None else head.current
        # Of a shared file the present head says whom it is encrypted for: never an older one.
        shared = head is not None and bool(head.readers)
        if not shared and (expected is None or expected == current):
            return known
        file = self._session.find(file_id)
        return None if file is None else known_file(file)

    def _placed(self, attempt: Attempt) -> Content:
        """What was to be put, under the id that its name has by now: a rotation may have moved the
        file to another. Raises `UploadLost` where its pieces lie under the old one."""
        content = attempt.content
        file_id = self._session.file_id(content.name)
        if file_id != content.file_id and not isinstance(attempt.request, PutSmall):
            raise UploadLost
        return changed(content, file_id=file_id)

    def _stored(self, attempt: Attempt, receipt: Receipt | None) -> Put:
        content, record = attempt.content, attempt.record
        if isinstance(attempt.request, PutSmall):  # a large one has told of its pieces
            self._session.progress.advance(content.metadata.size)
        entry = Entry.of(record, record, content.metadata)
        known = KnownFile.of(record, attempt.body, entry.version)
        self._learnt.append((known, entry.pack()))
        self._looked_up.pop(content.file_id, None)
        return Put(entry.name, entry.file_id, entry.version, entry.size, receipt, attempt.body)
