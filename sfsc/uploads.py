"""Storing files: small ones in one message each, a window of them at a time; large ones in pieces.

A large upload keeps the pieces that the server has not acknowledged in a ring, and after a lost
connection sends these again. **No segment is ever encrypted twice under one key**: where the server
has lost what it had, the file begins again from its first byte with a fresh key.

Among many, nothing waits for a large file either: its commit is sent behind its pieces, which the
server takes up first, and is answered in its turn.

Only the record says what the file becomes. It stands on the file's present head, so it is made
last, and again when someone was faster; the ciphertext does not change with it.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import field, replace
from typing import Final

from protocol import merkle
from protocol.messages import Done, Error, Receipt, Reply, Request
from protocol.messages.base import Wrap
from protocol.messages.uploads import PutCommit, PutOpen, PutSmall, UploadState
from protocol.records import FileRecord, Reader
from protocol.values import Value
from sfsc.changes import MAX_CONFLICTS, landed
from sfsc.closing import Closing
from sfsc.envelope import ContentKey, Metadata, content_record
from sfsc.errors import (
    ConflictError,
    IntegrityError,
    NetworkError,
    SfscError,
    Unreachable,
    Unreadable,
)
from sfsc.identity import SETTINGS, SETTINGS_NAME, Entry
from sfsc.pieces import Sending, UploadLost, Workshop
from sfsc.refusals import answered, refusal
from sfsc.segments import ciphertext_size
from sfsc.session import Session, known_file
from sfsc.sources import Input, Source, name_for, opened
from sfsc.state import KnownFile
from sfsc.window import Skip, Window

Build = Callable[[bytes, bytes, tuple[Wrap, ...]], Request]
"""(record, signature, wraps) to the request that stores a content under them."""
_HELD: Final = 8
"""Pieces in memory of large files whose commit is under way, from which on no other is begun."""
MAX_BEGINNINGS: Final = 3
"""How often a large file is begun where the server loses what it had."""


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


class _Content(Value):
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


class _Attempt(Value):
    """A version with a record onto one head (`base`; None: a new file), as it was sent."""

    content: _Content
    base: KnownFile | None
    record: FileRecord
    body: bytes
    signature: bytes
    request: Request
    connection: int
    build: Build


class _Large:
    """A large file whose pieces were sent, and its commit with them or next. Its source stays open
    for another beginning, and is closed by `held`."""

    def __init__(self, plaintext: Input, name: str, expected: int | None) -> None:
        self.plaintext = plaintext
        self.name = name
        self.expected = expected
        self.held = contextlib.ExitStack()
        self.attempt: _Attempt
        self.sending: Sending
        self._beginnings = 1

    def begin_again(self) -> None:
        """Go back to the first byte of what the server has lost. Raises `Unreachable` where it does
        so too often, or where the source cannot."""
        if self._beginnings == MAX_BEGINNINGS or not self.plaintext.begin_again():
            raise Unreachable("the server has lost the upload", "put the file again")
        self._beginnings += 1


class _Many(Closing):
    """Files under way, oldest first."""

    def __init__(self, session: Session) -> None:
        self.window = Window[_Attempt | _Large](session)
        self.workshop = Workshop()
        self._large: list[_Large] = []

    @property
    def has_room(self) -> bool:
        """Whether a large file may be begun beside those under way."""
        return sum(large.sending.under_way for large in self._large) < _HELD

    def send(self, attempt: _Attempt) -> None:
        self.window.send(attempt, attempt.request, attempt.content.file_id)

    def commit(self, large: _Large) -> None:
        """Send the commit of what was sent."""
        self._large.append(large)
        attempt = large.attempt
        ahead = large.sending.ahead_of_commit
        self.window.send(large, attempt.request, attempt.content.file_id, ahead)

    def done(self, large: _Large) -> None:
        self._large.remove(large)
        large.held.close()

    def close(self) -> None:
        self.window.abandon()
        for large in self._large:
            large.sending.abandon()
            large.held.close()
        self._large.clear()
        self.workshop.close()


class Uploads:
    """Puts files over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._learnt: list[tuple[KnownFile, bytes]] = []

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
                with Workshop() as workshop:
                    large = _Large(plaintext, name, expected)
                    done = self._commit(large, workshop)
            else:
                attempt = self._small(plaintext, small, name, self._session.file_id(name), expected)
                done = self._finish(attempt, self._session.ask(attempt.request))
        self._session.join()
        return done

    def put_settings(self, data: bytes, *, expected: int) -> Put:
        """Store the account's settings, at most 64 KiB, onto the version `expected` (0: none).
        Raises `ConflictError` where another machine was faster."""
        with opened(io.BytesIO(data)) as plaintext:
            file_id = self._session.file_id(SETTINGS)
            attempt = self._small(plaintext, plaintext.small() or b"", SETTINGS, file_id, expected)
            done = self._finish(attempt, self._session.ask(attempt.request))
        self._session.join()
        return done

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
        with _Many(self._session) as many:
            for source, name in items:
                try:
                    yield from self._put_next(many, source, name_for(source, name))
                except SfscError as exc:
                    if skip is not None and isinstance(exc, Unreadable):
                        skip(str(source), exc)
                        continue
                    failure = exc
                    break
            while many.window:
                try:
                    yield from self._answered(many)
                except SfscError as exc:
                    failure = failure or exc
        # Nothing that a server proves after these is worth asking for.
        if not isinstance(failure, IntegrityError | NetworkError):
            self._session.join()
        if failure is not None:
            raise failure

    def _put_next(self, many: _Many, source: Source, name: str) -> Iterator[Put]:
        """Take up one more file; what must be answered before that is yielded."""
        # A second version of a file stands on the first, which must be there.
        file_id = self._session.file_id(name)
        while many.window.full or file_id in many.window:
            yield from self._answered(many)
        with contextlib.ExitStack() as stack:
            plaintext = stack.enter_context(opened(source))
            small = plaintext.small()
            if small is not None:
                many.send(self._small(plaintext, small, name, file_id, None))
                return
            while not many.has_room:
                yield from self._answered(many)
            large = _Large(plaintext, name, None)
            self._send(large, many.workshop)
            large.held = stack.pop_all()
            many.commit(large)

    def _answered(self, many: _Many) -> Iterator[Put]:
        """Wait for the oldest, and with it follow up on all that are answered by then: what they
        have taught us is remembered together, before anybody is told."""
        done: list[Put] = []
        failure: SfscError | None = None
        try:
            done.append(self._taken(many))
            while many.window.answered:
                done.append(self._taken(many))
        except SfscError as exc:
            failure = exc
        finally:
            self._remember()
        yield from done
        if failure is not None:
            raise failure

    def _taken(self, many: _Many) -> Put:
        item, reply = many.window.take()
        if isinstance(item, _Attempt):
            return self._follow_up(item, reply)
        try:
            return self._committed(item, reply, many.workshop)
        finally:
            many.done(item)

    # --- what is put --------------------------------------------------------------------------

    def _small(
        self, plaintext: Input, whole: bytes, name: str, file_id: str, expected: int | None
    ) -> _Attempt:
        key = ContentKey.fresh()
        ciphertext = key.encryptor().seal(whole, last=True)
        root = merkle.root([merkle.leaf_hash(ciphertext)])
        content = self._content(plaintext, name, file_id, key, root, expected)

        def build(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
            return PutSmall(body, signature, content.sealed, wraps, ciphertext)

        return self._attempt(content, self._base(content.file_id, expected), build)

    def _send(self, large: _Large, workshop: Workshop) -> None:
        """Send all of a large file, and make its commit. Raises as `_Large.begin_again`."""
        while True:
            try:
                return self._upload(large, workshop)
            except UploadLost:
                large.begin_again()

    def _upload(self, large: _Large, workshop: Workshop) -> None:
        key, plaintext = ContentKey.fresh(), large.plaintext
        file_id = self._session.file_id(large.name)
        size = 0 if plaintext.size is None else ciphertext_size(plaintext.size)
        begun = self._session.call(PutOpen(self._session.account.user, file_id, size), UploadState)
        with Sending(self._session, begun.upload, workshop) as sending:
            for piece in key.encryptor().pieces(plaintext, sending.allocate):
                sending.send(piece)
            root = merkle.root(sending.leaves())
            content = self._content(plaintext, large.name, file_id, key, root, large.expected)

            def build(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
                return PutCommit(begun.upload, body, signature, content.sealed, wraps)

            base = self._base(content.file_id, large.expected)
            large.attempt = self._attempt(content, base, build)
            large.sending = sending

    def _commit(self, large: _Large, workshop: Workshop) -> Put:
        """Store a large file, and wait for it. Raises as `_Large.begin_again`."""
        while True:
            self._send(large, workshop)
            try:
                with large.sending:
                    large.sending.finish()
                    return self._finish(large.attempt, self._session.ask(large.attempt.request))
            except UploadLost:
                large.begin_again()

    def _committed(self, large: _Large, reply: Reply, workshop: Workshop) -> Put:
        """Follow up on the answer to a commit that was sent behind its pieces."""
        try:
            with large.sending as sending:
                if isinstance(reply, Error) and reply.code not in ("conflict", "upload-lost"):
                    sending.finish()  # where a piece was refused, that is the reason
                done = self._follow_up(large.attempt, reply)
                sending.committed()
                return done
        except UploadLost:
            large.begin_again()
        return self._commit(large, workshop)

    def _content(
        self,
        plaintext: Input,
        name: str,
        file_id: str,
        key: ContentKey,
        root: bytes,
        expected: int | None,
    ) -> _Content:
        """Everything around a ciphertext, once all of the source was read."""
        shown = SETTINGS_NAME if name == SETTINGS else name
        metadata = Metadata(shown, plaintext.count, plaintext.mtime, plaintext.mode)
        return _Content(
            name=name,
            file_id=file_id,
            key=key,
            metadata=metadata,
            sealed=key.seal_metadata(metadata),
            ciphertext_size=ciphertext_size(plaintext.count),
            segments_root=root,
            expected=expected,
        )

    def _attempt(self, content: _Content, base: KnownFile | None, build: Build) -> _Attempt:
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
        return _Attempt(content, base, record, body, signature, request, session.connections, build)

    def _new_readers(self, content: _Content) -> tuple[Reader, ...]:
        if self._session.account.is_settings(content.file_id):
            return ()
        return self._session.new_readers(content.metadata.name)

    def _base(self, file_id: str, expected: int | None) -> KnownFile | None:
        """The head to put onto: the one remembered, which costs nothing; where that is stale, the
        conflict shows the present one. Where the caller expects a version, the server is asked
        unless the one remembered is that."""
        known = self._session.state.file(file_id)
        head = None if known is None else FileRecord.parse(known.record)
        current = 0 if head is None else head.current
        # Of a shared file the present head says whom it is encrypted for: never an older one.
        shared = head is not None and bool(head.readers)
        if not shared and (expected is None or expected == current):
            return known
        file = self._session.find(file_id)
        return None if file is None else known_file(file)

    # --- what became of it --------------------------------------------------------------------

    def _finish(self, attempt: _Attempt, reply: Reply) -> Put:
        """Follow up on the reply to an attempt, and remember what that taught us."""
        try:
            return self._follow_up(attempt, reply)
        finally:
            self._remember()

    def _follow_up(self, attempt: _Attempt, reply: Reply) -> Put:
        """Until its content is stored, or cannot be."""
        for left in reversed(range(MAX_CONFLICTS)):
            if not isinstance(reply, Error):
                receipt = answered(reply, Done).receipt
                self._session.proven(receipt, attempt.record, attempt.body, attempt.signature)
                return self._stored(attempt, receipt)
            if (
                reply.code in ("conflict", "upload-lost")
                and self._session.connections != attempt.connection
                and landed(self._session, attempt.record, attempt.body)
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
            attempt = self._attempt(content, base, attempt.build)
            reply = self._session.ask(attempt.request)
        raise ConflictError("others keep changing the file")

    def _placed(self, attempt: _Attempt) -> _Content:
        """What was to be put, under the id that its name has by now: a rotation may have moved the
        file to another. Raises `UploadLost` where its pieces lie under the old one."""
        content = attempt.content
        file_id = self._session.file_id(content.name)
        if file_id != content.file_id and not isinstance(attempt.request, PutSmall):
            raise UploadLost
        return replace(content, file_id=file_id)

    def _stored(self, attempt: _Attempt, receipt: Receipt | None) -> Put:
        content, record = attempt.content, attempt.record
        if isinstance(attempt.request, PutSmall):  # a large one has told of its pieces
            self._session.progress.advance(content.metadata.size)
        entry = Entry.of(record, record, content.metadata)
        known = KnownFile.of(record, attempt.body, entry.version)
        self._learnt.append((known, entry.pack()))
        return Put(entry.name, entry.file_id, entry.version, entry.size, receipt, attempt.body)

    def _remember(self) -> None:
        """In one transaction, which costs as much as a single file would."""
        learnt, self._learnt = self._learnt, []
        if learnt:
            with self._session.state.changing():
                for known, entry in learnt:
                    self._session.state.remember_file(known, entry)
