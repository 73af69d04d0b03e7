"""Store files: small ones in one message each, many of them in flight; large ones in pieces.

A large upload keeps the pieces that the server has not acknowledged in a ring, and sends them again
after a lost connection. **No segment is ever encrypted twice under one key**: if the server has
lost what it had, the file begins again from its first byte with a fresh key.

Only the record says what the file becomes. It builds on the file's present head, so it is made
last, and made again after a conflict; the ciphertext does not change with it.

Among many files, nothing waits for a large one either: its commit is sent behind its pieces, which
the server processes first, and is answered in its turn. Small files are gathered, and each step is
taken for all of them (`step_by_step`).
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Self, TypeVar

from protocol.codec import merkle
from protocol.codec.values import Value, field
from protocol.records.records import FileRecord, ReaderEntry
from protocol.records.signatures import Label
from protocol.wire.messages import Done, Error, Receipt, Reply, Request
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.uploads import PutAbort, PutCommit, PutOpen, PutSmall, UploadState
from sfsc.closing import Closing
from sfsc.crypto.envelope import ContentKey, Metadata, content_record
from sfsc.crypto.segments import ciphertext_size
from sfsc.errors import (
    ConflictError,
    IntegrityError,
    LocalError,
    NetworkError,
    SfscError,
    Unreachable,
    UnreadableSource,
)
from sfsc.session.commit import MAX_CONFLICTS, was_accepted
from sfsc.session.limits import MAX_REQUESTS, Ticket
from sfsc.session.pipeline import Skip, Window
from sfsc.session.server_errors import expect_reply, to_exception
from sfsc.session.session import Session, known_file
from sfsc.transfer.chunks import MAX_UPLOAD_STARTS, EncryptionWorker, UploadLost, UploadStream
from sfsc.transfer.source import SMALL, Input, Source, name_for, opened
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
                receipt = expect_reply(reply, Done).receipt
                self._session.verify_receipt(
                    receipt, attempt.record, attempt.body, attempt.signature
                )
                return self._stored(attempt, receipt)
            if was_accepted(self._session, attempt.connection, reply, attempt.record, attempt.body):
                return self._stored(attempt, None)
            # Of a small one nothing can be lost: a server that says so is not to be asked again.
            if reply.code == "upload-lost" and not isinstance(attempt.request, PutSmall):
                raise UploadLost
            if not left:
                raise to_exception(reply)
            content, base = attempt.content, attempt.base
            if reply.code == "conflict" and reply.head is not None:
                base = known_file(self._session.verify_newest(reply.head, content.file_id, base))
            else:
                self._session.renew_keys(reply)
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
        file = self._session.find_newest(file_id)
        return None if file is None else known_file(file)

    def _stored(self, attempt: Attempt, receipt: Receipt | None) -> Put:
        content, record = attempt.content, attempt.record
        if isinstance(attempt.request, PutSmall):  # a large one has told of its pieces
            self._session.progress.advance(content.metadata.size)
        entry = Entry.from_record(record, record, content.metadata)
        known = KnownFile.from_record(record, attempt.body, entry.version)
        self._learnt.append((known, entry.pack()))
        self._looked_up.pop(content.file_id, None)
        return Put(entry.name, entry.file_id, entry.version, entry.size, receipt, attempt.body)


class _Asked(Value):
    file_id: str
    size: int
    ticket: Ticket
    connection: int


class Openings:
    """Over one session. No method raises what a request for an upload may come to: whoever opens
    one in its turn hears of that."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._coming: deque[tuple[str, int]] = deque()
        self._asked: _Asked | None = None

    def foresee(self, coming: Iterable[tuple[str, int]]) -> None:
        """(file_id, bytes of ciphertext) of the large files that come next, in order; of those
        that were foreseen before, all have had their turn."""
        self.abandon()
        self._coming.extend(coming)
        self._ask()

    def take(self, file_id: str, size: int) -> bytes | None:
        """The id of the upload that was opened for this file, if it was; then one is for the next.
        Waits for the answer."""
        asked = self._asked
        if asked is None or (asked.file_id, asked.size) != (file_id, size):
            return None
        self._asked, upload = None, None
        if asked.connection == self._session.connections:
            with contextlib.suppress(NetworkError):
                reply = self._session.transport.result(asked.ticket)
                upload = reply.upload if isinstance(reply, UploadState) else None
        self._ask()
        return upload

    def abandon(self) -> None:
        """Nobody wants what was opened ahead. An upload whose answer has not come yet is left to
        the server, which drops what gets no bytes."""
        asked, self._asked = self._asked, None
        self._coming.clear()
        if asked is None or asked.connection != self._session.connections:
            return
        transport = self._session.transport
        with contextlib.suppress(NetworkError):
            if transport.has_reply(asked.ticket):
                reply = transport.result(asked.ticket)
                if isinstance(reply, UploadState):
                    transport.abandon(transport.submit(PutAbort(reply.upload)))
                    transport.push()
            else:
                transport.abandon(asked.ticket)

    def _ask(self) -> None:
        if not self._coming:
            return
        file_id, size = self._coming.popleft()
        session = self._session
        with contextlib.suppress(NetworkError):
            ticket = session.transport.submit(PutOpen(session.account.user, file_id, size))
            session.transport.push()
            self._asked = _Asked(file_id, size, ticket, session.connections)


_HELD: Final = 8
"""Pieces in memory of large files whose commit is under way, from which on no other is begun."""
_TOGETHER: Final = 16
_TOGETHER_SIZE: Final = 64 * 1024
"""Small files, and bytes of them, that are encrypted, signed and sent together; far fewer than a
window has, so that the server always has something to do."""


class Large:
    """A large file whose pieces were sent, and its commit with them or next. Its source is kept
    open for another beginning."""

    def __init__(self, plaintext: Input, name: str, expected: int | None) -> None:
        self.plaintext = plaintext
        self.name = name
        self.expected = expected
        self.attempt: Attempt
        self.sending: UploadStream
        self._beginnings = 1

    def begin_again(self) -> None:
        """Go back to the first byte of what the server has lost. Raises `Unreachable` where it does
        so too often, or where the source cannot."""
        if self._beginnings == MAX_UPLOAD_STARTS or not self.plaintext.begin_again():
            raise Unreachable("the server has lost the upload", "put the file again")
        self._beginnings += 1


class Small:
    """A small file, read whole; each step of encrypting it sets what comes below it."""

    def __init__(
        self, source: Input, whole: bytes, name: str, file_id: str, expected: int | None = None
    ) -> None:
        """`source` was read, and may be closed."""
        self.source = source
        self.whole = whole
        self.name = name
        self.file_id = file_id
        self.expected = expected
        self.key: ContentKey
        self.ciphertext: memoryview
        self.draft: Draft

    def encrypt(self) -> None:
        self.key = ContentKey.generate()
        self.ciphertext = self.key.encryptor().seal_segment(self.whole, last=True)

    def describe(self) -> None:
        """All of the attempt that does not depend on the file's head."""
        ciphertext = self.ciphertext
        root = merkle.root([merkle.leaf_hash(ciphertext)])
        content = Content.of(self.source, self.name, self.file_id, self.key, root, self.expected)

        def build(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
            return PutSmall(body, signature, content.sealed, wraps, ciphertext)

        self.draft = Draft(content, build)


class Many(Closing):
    """Files under way, oldest first, and behind them small ones that wait for one another."""

    def __init__(self, session: Session, openings: Openings) -> None:
        self.window = Window[Attempt | Large](session)
        self.gathered: list[Small] = []
        self._openings = openings
        self.workshop = EncryptionWorker()
        self._large: list[Large] = []

    @property
    def has_room(self) -> bool:
        """Whether a large file may be begun beside those under way."""
        return sum(large.sending.pieces_held for large in self._large) < _HELD

    @property
    def full(self) -> bool:
        return len(self.window) + len(self.gathered) >= MAX_REQUESTS

    def __contains__(self, file_id: str) -> bool:
        return file_id in self.window or any(one.file_id == file_id for one in self.gathered)

    @property
    def are_enough(self) -> bool:
        """Whether what is gathered should wait for no others: neither a server that has less to do
        than that should."""
        count = len(self.gathered)
        return (
            count > len(self.window)
            or count >= _TOGETHER
            or sum(len(one.whole) for one in self.gathered) >= _TOGETHER_SIZE
        )

    def send(self, attempt: Attempt) -> None:
        self.window.send(attempt, attempt.request, attempt.content.file_id)

    def commit(self, large: Large) -> None:
        """Send the commit of what was sent."""
        self._large.append(large)
        attempt = large.attempt

        def commit_request() -> Request:
            large.sending.resume_before_commit()
            return attempt.request

        self.window.send(large, commit_request, attempt.content.file_id)

    def done(self, large: Large) -> None:
        self._large.remove(large)
        large.plaintext.close()

    def close(self) -> None:
        self.window.abandon()
        self._openings.abandon()
        for large in self._large:
            large.sending.abandon()
            large.plaintext.close()
        self._large.clear()
        self.workshop.close()


_LAST: Final = (IntegrityError, NetworkError)
"""After these nothing is sent any more, and nothing that the server proves is worth asking for."""


class Uploads:
    """Puts files over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._attempts = Attempts(session)
        self._openings = Openings(session)

    def put(self, source: Source, name: str | None = None, *, expected: int | None = None) -> Put:
        """Store what `source` holds as the newest version of `name`.

        With `expected` only onto that version (0: only where there is no such file), else whatever
        is there. Raises `SfscError`.
        """
        name = name_for(source, name)
        with opened(source) as plaintext:
            self._session.progress.expect(plaintext.size or 0)
            small = plaintext.small()
            if small is None:
                with EncryptionWorker() as workshop:
                    large = Large(plaintext, name, expected)
                    done = self._commit(large, workshop)
            else:
                file_id = self._session.account.file_id(name)
                done = self._store(Small(plaintext, small, name, file_id, expected))
        self._session.link_receipts()
        return done

    def put_settings(self, data: bytes, *, expected: int) -> Put:
        """Store the account's settings, at most 64 KiB, onto the version `expected` (0: none).
        Raises `ConflictError` where another machine was faster."""
        with opened(io.BytesIO(data)) as plaintext:
            file_id = self._session.account.settings_id
            small = plaintext.small() or b""
            done = self._store(Small(plaintext, small, SETTINGS, file_id, expected))
        self._session.link_receipts()
        return done

    def foresee(self, sources: Sequence[tuple[str, str]]) -> None:
        """That these paths are to be put next, in order, under these names, all checked: what is
        known of them is asked together, and large ones are opened ahead."""
        ids = [self._session.account.file_id(name) for _, name in sources]
        self._attempts.look_up(ids)
        sizes = [(file_id, _size(path)) for file_id, (path, _) in zip(ids, sources, strict=True)]
        self._openings.foresee((one, ciphertext_size(size)) for one, size in sizes if size > SMALL)

    def put_many(
        self,
        items: Iterable[tuple[Source, str | None]],
        *,
        skip: Skip | None = None,
    ) -> Iterator[Put]:
        """Store many, small ones without waiting for each; answers in order.

        A source that cannot be read is told to `skip`, and the work goes on. Whatever else fails
        ends it: the error is raised behind the answers of all that was sent before.
        Each answer is proven to stand in a log that continues the one of the login; that all of
        them stand in one and the same is proven last, and `Fork` raised where they do not.
        """
        failure: SfscError | None = None
        with Many(self._session, self._openings) as many:
            for source, name in items:
                try:
                    yield from self._put_next(many, source, name_for(source, name))
                except SfscError as exc:
                    if skip is not None and isinstance(exc, UnreadableSource):
                        skip(str(source), exc)
                        continue
                    failure = exc
                    break
            if isinstance(failure, _LAST):
                many.gathered.clear()
            while many.window or many.gathered:
                try:
                    yield from self._answered(many)
                except SfscError as exc:
                    failure = failure or exc
        if not isinstance(failure, _LAST):
            self._session.link_receipts()
        if failure is not None:
            raise failure

    def _put_next(self, many: Many, source: Source, name: str) -> Iterator[Put]:
        """Take up one more file; what must be answered before that is yielded."""
        # A second version of a file stands on the first, which must be there.
        file_id = self._session.account.file_id(name)
        while many.full or file_id in many:
            yield from self._answered(many)
        with opened(source) as plaintext:
            small = plaintext.small()
            if small is not None:
                many.gathered.append(Small(plaintext, small, name, file_id))
                if many.are_enough:
                    self._send_gathered(many)
                return
            self._send_gathered(many)
            while not many.has_room:
                yield from self._answered(many)
            large = Large(plaintext, name, None)
            self._send(large, many.workshop)
            plaintext.kept = True
            many.commit(large)

    def _send_gathered(self, many: Many) -> None:
        """Encrypt, sign and send what was gathered; where that fails for one, those before it."""
        gathered, many.gathered = many.gathered, []
        attempts, failure = self._made(gathered)
        for attempt in attempts:
            many.send(attempt)
        self._session.transport.push()
        if failure is not None:
            raise failure

    def _answered(self, many: Many) -> Iterator[Put]:
        """Wait for the oldest, and with it follow up on all that are answered by then: what they
        have taught us is remembered together, before anybody is told."""
        self._send_gathered(many)
        done: list[Put] = []
        failure: SfscError | None = None
        try:
            done.append(self._taken(many))
            while many.window.has_reply:
                done.append(self._taken(many))
        except SfscError as exc:
            failure = exc
        finally:
            self._attempts.remember()
        yield from done
        if failure is not None:
            raise failure

    def _taken(self, many: Many) -> Put:
        item, reply = many.window.take()
        if isinstance(item, Attempt):
            return self._attempts.follow_up(item, reply)
        try:
            return self._committed(item, reply, many.workshop)
        except UnreadableSource as exc:
            # Read again from its beginning: it is not the source whose turn it is, nor left out.
            raise LocalError(exc.cause, exc.hint) from exc
        finally:
            many.done(item)

    # --- what is put --------------------------------------------------------------------------

    def _made(self, small: list[Small]) -> Made:
        """An attempt at each, up to the first that fails, and its error."""
        failure = step_by_step(small, (Small.encrypt, Small.describe))
        attempts, earlier = self._attempts.make_all([one.draft for one in small])
        return attempts, earlier or failure

    def _store(self, small: Small) -> Put:
        """Store a small file, and wait for it."""
        return self._attempts.settle(only(self._made([small])))

    def _send(self, large: Large, workshop: EncryptionWorker) -> None:
        """Send all of a large file, and make its commit. Raises as `Large.begin_again`."""
        while True:
            try:
                return self._upload(large, workshop)
            except UploadLost:
                large.begin_again()

    def _upload(self, large: Large, workshop: EncryptionWorker) -> None:
        key, plaintext = ContentKey.generate(), large.plaintext
        file_id = self._session.account.file_id(large.name)
        size = 0 if plaintext.size is None else ciphertext_size(plaintext.size)
        upload = self._openings.take(file_id, size) or self._opened(file_id, size)
        with UploadStream(self._session, upload, workshop) as sending:
            sending.send(key.encryptor(), plaintext)
            root = merkle.root(sending.leaves())
            content = Content.of(plaintext, large.name, file_id, key, root, large.expected)

            def build(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
                return PutCommit(upload, body, signature, content.sealed, wraps)

            large.attempt = self._attempts.make(content, build)
            large.sending = sending

    def _opened(self, file_id: str, size: int) -> bytes:
        asked = PutOpen(self._session.account.user, file_id, size)
        return self._session.call(asked, UploadState).upload

    def _commit(self, large: Large, workshop: EncryptionWorker) -> Put:
        """Store a large file, and wait for it. Raises as `Large.begin_again`."""
        while True:
            self._send(large, workshop)
            try:
                with large.sending:
                    large.sending.finish()
                    return self._attempts.settle(large.attempt)
            except UploadLost:
                large.begin_again()

    def _committed(self, large: Large, reply: Reply, workshop: EncryptionWorker) -> Put:
        """Follow up on the answer to a commit that was sent behind its pieces."""
        try:
            with large.sending as sending:
                if isinstance(reply, Error) and reply.code not in ("conflict", "upload-lost"):
                    sending.finish()  # where a piece was refused, that is the reason
                done = self._attempts.follow_up(large.attempt, reply)
                sending.committed()
                return done
        except UploadLost:
            large.begin_again()
        return self._commit(large, workshop)


def _size(path: str) -> int:
    """Bytes of the file at `path`; 0 where that cannot be told, as whoever opens it will hear."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
