"""Storing files: small ones in one message each, a window of them at a time; large ones in pieces.

A large upload keeps the pieces that the server has not acknowledged in a ring, and after a lost
connection sends these again. **No segment is ever encrypted twice under one key**: where the server
has lost what it had, the file begins again from its first byte with a fresh key.

Only the record says what the file becomes. It stands on the file's present head, so it is made
last, and again when someone was faster; the ciphertext does not change with it.
"""

from __future__ import annotations

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
from sfsc.pieces import Sending, UploadLost
from sfsc.refusals import answered, refusal
from sfsc.segments import ciphertext_size
from sfsc.session import Session, known_file
from sfsc.sources import Input, Source, name_for, opened
from sfsc.state import KnownFile
from sfsc.window import Skip, Window

Build = Callable[[bytes, bytes, tuple[Wrap, ...]], Request]
"""(record, signature, wraps) to the request that stores a content under them."""
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
                done = self._put_large(plaintext, name, expected)
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
        window = Window[_Attempt](self._session)
        failure: SfscError | None = None
        try:
            for source, name in items:
                try:
                    yield from self._put_next(window, source, name_for(source, name))
                except SfscError as exc:
                    if skip is not None and isinstance(exc, Unreadable):
                        skip(str(source), exc)
                        continue
                    failure = exc
                    break
            while window:
                try:
                    yield from self._answered(window)
                except SfscError as exc:
                    failure = failure or exc
        finally:
            window.abandon()
        # Nothing that a server proves after these is worth asking for.
        if not isinstance(failure, IntegrityError | NetworkError):
            self._session.join()
        if failure is not None:
            raise failure

    def _put_next(self, window: Window[_Attempt], source: Source, name: str) -> Iterator[Put]:
        """Take up one more file; what must be answered before that is yielded."""
        # A second version of a file stands on the first, which must be there.
        file_id = self._session.file_id(name)
        while window.full or file_id in window:
            yield from self._answered(window)
        with opened(source) as plaintext:
            small = plaintext.small()
            if small is not None:
                attempt = self._small(plaintext, small, name, file_id, None)
                window.send(attempt, attempt.request, file_id)
                return
            # Beside the small ones that wait for the server's disk; told behind them.
            done = self._put_large(plaintext, name, None)
        while window:
            yield from self._answered(window)
        yield done

    def _answered(self, window: Window[_Attempt]) -> Iterator[Put]:
        """Wait for the oldest, and with it follow up on all that are answered by then: what they
        have taught us is remembered together, before anybody is told."""
        done: list[Put] = []
        failure: SfscError | None = None
        try:
            done.append(self._follow_up(*window.take()))
            while window.answered:
                done.append(self._follow_up(*window.take()))
        except SfscError as exc:
            failure = exc
        finally:
            self._remember()
        yield from done
        if failure is not None:
            raise failure

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

    def _put_large(self, plaintext: Input, name: str, expected: int | None) -> Put:
        for _ in range(MAX_BEGINNINGS):
            try:
                return self._upload(plaintext, name, expected)
            except UploadLost:
                if not plaintext.begin_again():
                    break
        raise Unreachable("the server has lost the upload", "put the file again")

    def _upload(self, plaintext: Input, name: str, expected: int | None) -> Put:
        key = ContentKey.fresh()
        file_id = self._session.file_id(name)
        size = 0 if plaintext.size is None else ciphertext_size(plaintext.size)
        begun = self._session.call(PutOpen(self._session.account.user, file_id, size), UploadState)
        with Sending(self._session, begun.upload) as stream:
            for piece in key.encryptor().pieces(plaintext, stream.allocate):
                stream.send(piece)
            root = merkle.root(stream.finish())
            content = self._content(plaintext, name, file_id, key, root, expected)

            def build(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
                return PutCommit(begun.upload, body, signature, content.sealed, wraps)

            attempt = self._attempt(content, self._base(content.file_id, expected), build)
            return self._finish(attempt, self._session.ask(attempt.request))

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
