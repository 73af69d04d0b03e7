"""A version on its way to the server: its record onto one head, and what becomes of it.

Only the record says what the file becomes. It stands on the file's present head, so it is made
last, and again when someone was faster; the ciphertext does not change with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from protocol.codec.values import Value, changed, field
from protocol.records.records import FileRecord, ReaderEntry
from protocol.records.signatures import Label
from protocol.wire.messages import Done, Error, Receipt, Reply, Request
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.uploads import PutSmall
from sfsc.crypto.envelope import ContentKey, Metadata, content_record
from sfsc.crypto.segments import ciphertext_size
from sfsc.errors import ConflictError, SfscError
from sfsc.session.commit import MAX_CONFLICTS, landed
from sfsc.session.server_errors import answered, refusal
from sfsc.session.session import Session, known_file
from sfsc.transfer.chunks import UploadLost
from sfsc.transfer.source import Input
from sfsc.trust.file_records import SETTINGS, SETTINGS_NAME, Entry
from sfsc.trust.state import KnownFile

Build = Callable[[bytes, bytes, tuple[Wrap, ...]], Request]
"""(record, signature, wraps) to the request that stores a content under them."""
_Item = TypeVar("_Item")


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


Made = tuple[list[Attempt], SfscError | None]
"""Those that could be made, up to the first that could not, and its error."""


def only(made: Made) -> Attempt:
    """The one that was to be made. Raises its error."""
    attempts, failure = made
    if failure is not None:
        raise failure
    return attempts[0]


class Draft:
    """An attempt at `content` that is being made; each step sets what comes below it."""

    __slots__ = ("base", "body", "build", "content", "head", "readers", "record", "wraps")

    def __init__(self, content: Content, build: Build) -> None:
        self.content = content
        self.build = build
        self.base: KnownFile | None
        self.head: FileRecord | None
        self.readers: tuple[ReaderEntry, ...]
        self.wraps: tuple[Wrap, ...]
        self.record: FileRecord
        self.body: bytes


def step_by_step(items: list[_Item], steps: Sequence[Callable[[_Item], None]]) -> SfscError | None:
    """Take each step for all of `items` before the next: behind other steps, and cryptography above
    all, a step finds its code and tables gone from the processor's caches, and takes a sixth more.

    One that a step fails for ends it: it goes from `items`, with all behind it, those before it go
    on, and its error is returned.
    """
    failure: SfscError | None = None
    for step in steps:
        for place, item in enumerate(items):
            try:
                step(item)
            except SfscError as exc:
                failure = exc  # one that failed in a step before stood behind this one
                del items[place:]
                break
    return failure


class Attempts:
    """Makes them over one session, and follows up on the answers."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._learnt: list[tuple[KnownFile, bytes]] = []
        self._looked_up: dict[str, KnownFile | None] = {}

    def make(self, content: Content, build: Build) -> Attempt:
        """The first attempt at `content`. Raises `ConflictError` for another head than expected."""
        return only(self.make_all([Draft(content, build)]))

    def make_all(self, drafts: list[Draft]) -> Made:
        """The first attempt at each of them, up to the first that fails, and its error. They are
        to be sent at once: what was signed for a server that has told two stories by now is not."""
        return self._stepped(drafts, (self._find, *self._steps))

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
            if landed(self._session, attempt.connection, reply, attempt.record, attempt.body):
                return self._stored(attempt, None)
            # Of a small one nothing can be lost: a server that says so is not to be asked again.
            if reply.code == "upload-lost" and not isinstance(attempt.request, PutSmall):
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
        """Another attempt at `content`, onto `base`. Raises as `make`."""
        draft = Draft(content, build)
        draft.base = base
        return only(self._stepped([draft], self._steps))

    def _find(self, draft: Draft) -> None:
        """The head to put onto."""
        draft.base = self._base(draft.content.file_id, draft.content.expected)

    @property
    def _steps(self) -> tuple[Callable[[Draft], None], ...]:
        """From the head to put onto to the record that is to be signed."""
        return self._place, self._wrap, self._write

    def _place(self, draft: Draft) -> None:
        """Raises `ConflictError` for another head than the caller expected."""
        base, content = draft.base, draft.content
        draft.head = head = None if base is None else FileRecord.parse(base.record)
        current = 0 if head is None else head.current
        if content.expected is not None and content.expected != current:
            name = content.metadata.name
            cause = (
                f"version {current} of {name} is current, not {content.expected}"
                if current and content.expected
                else (f"there is a file {name} already" if current else f"there is no file {name}")
            )
            raise ConflictError(cause, head=None if base is None else base.record)
        draft.readers = self._new_readers(content) if head is None else head.readers

    def _wrap(self, draft: Draft) -> None:
        draft.wraps = self._session.wrap(draft.content.key, draft.head, draft.readers)

    def _write(self, draft: Draft) -> None:
        content, base = draft.content, draft.base
        draft.record = content_record(
            self._session.author,
            content.key,
            file_id=content.file_id,
            head=None if base is None else base.record,
            version=1 if base is None else base.version + 1,
            ciphertext_size=content.ciphertext_size,
            segments_root=content.segments_root,
            metadata=content.sealed,
            readers=draft.readers,
            seen=self._session.seen,
            created=int(time.time()),
        )
        draft.body = draft.record.encode()

    def _stepped(self, drafts: list[Draft], steps: Sequence[Callable[[Draft], None]]) -> Made:
        failure = step_by_step(drafts, steps)
        if not drafts:
            return [], failure
        try:
            signing = self._session.signing_key()
        except SfscError as exc:
            return [], exc
        signatures = [signing.sign(Label.RECORD, draft.body) for draft in drafts]
        return list(map(self._attempt, drafts, signatures)), failure

    def _attempt(self, draft: Draft, signature: bytes) -> Attempt:
        return Attempt(
            content=draft.content,
            base=draft.base,
            record=draft.record,
            body=draft.body,
            signature=signature,
            request=draft.build(draft.body, signature, draft.wraps),
            connection=self._session.connections,
            build=draft.build,
        )

    def _new_readers(self, content: Content) -> tuple[ReaderEntry, ...]:
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
