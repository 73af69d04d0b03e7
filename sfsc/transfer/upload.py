"""Upload of files: a small file in one message, with many in flight; a large file in pieces.

A large upload keeps the pieces that the server has not acknowledged in a ring, and sends them again
after a lost connection. **No segment is ever encrypted twice under one key**: if the server has
lost the upload, the file starts again from its first byte with a fresh key.

Only the record binds a content to its file. It builds on the file's present head, so it is made
last, and again after a conflict; the ciphertext does not change.

A large file does not hold up the files behind it: its commit is sent behind its pieces, which the
server processes first, and its reply is awaited in turn. Small files are collected, and each step
is done for all of them (`run_stepwise`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final, Self, TypeVar

from protocol.codec import merkle
from protocol.codec.values import Value, field
from protocol.records.records import FileRecord, ReaderEntry
from protocol.wire.messages import Done, Error, Receipt, Reply, Request
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.uploads import PutAbort, PutCommit, PutOpen, PutSmall, UploadState
from sfsc.closing import Closing
from sfsc.crypto.envelope import ContentKey, Metadata, WrapBatches, content_record
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
from sfsc.session.commit import MAX_CONFLICTS, UploadLost, was_accepted
from sfsc.session.limits import MAX_REQUESTS, Ticket
from sfsc.session.pipeline import Skip, Window
from sfsc.session.server_errors import expect_reply, to_exception
from sfsc.session.session import Session, known_file
from sfsc.transfer.chunks import MAX_UPLOAD_STARTS, EncryptionWorker, UploadStream
from sfsc.transfer.source import (
    SMALL,
    Source,
    SourceChanged,
    SourceReader,
    name_for,
    open_source,
)
from sfsc.trust.file_records import SETTINGS, SETTINGS_NAME, Entry
from sfsc.trust.state import KnownFile

BuildRequest = Callable[[bytes, bytes, tuple[Wrap, ...]], Request]
"""(record, signature, wraps) -> the request that stores a content under them."""
_MAX_PIECES_HELD: Final = 8
"""Pieces in memory of large files whose commit is in flight; at this number no other is started."""
_BATCH: Final = 16
_BATCH_SIZE: Final = 64 * 1024
"""Small files, and bytes of them, that are encrypted, signed and sent together. Far fewer than a
window holds, so that the server is never idle."""
_FATAL: Final = (IntegrityError, NetworkError)
"""After these errors nothing more is sent, and no further proof is requested from the server."""
_Item = TypeVar("_Item")


class Put(Value):
    """A version that was stored: durable on the server, and proven to be in its log.

    `size` is that of the plaintext in bytes. `receipt` is the proof; None if the reply was lost
    with its connection and the record was then found in the file's signed history. `record` is the
    exact bytes that were signed. `unstable` says that the source changed each time that it was
    read: what was stored may be a mixture that it never held.
    """

    name: str
    file_id: str
    version: int
    size: int
    receipt: Receipt | None = field(repr=False)
    record: bytes = field(repr=False)
    unstable: bool = False


# --- records of new versions ------------------------------------------------------------------


class VersionContent(Value):
    """A version without its record; nothing here depends on the file's head."""

    file_id: str
    key: ContentKey
    metadata: Metadata
    sealed_metadata: bytes
    ciphertext_size: int
    segments_root: bytes
    expected: int | None
    unstable: bool

    @classmethod
    def from_source(
        cls,
        source: SourceReader,
        name: str,
        file_id: str,
        key: ContentKey,
        root: bytes,
        expected: int | None = None,
        sha256: bytes | None = None,
    ) -> Self:
        """Describe a ciphertext with this `root`, after all of its source was read. `sha256` is the
        hash of the plaintext, if it is known."""
        shown = SETTINGS_NAME if name == SETTINGS else name
        metadata = Metadata(shown, source.count, source.mtime, source.mode, sha256=sha256)
        sealed, size = key.seal_metadata(metadata), ciphertext_size(source.count)
        return cls(file_id, key, metadata, sealed, size, root, expected, source.unstable)


class Attempt:
    """A content with a record onto one head (`base`; None for a new file). Each step of
    `RecordCommitter` sets attributes that the next one needs."""

    __slots__ = (
        *("base", "body", "build", "connection", "content", "head"),
        *("readers", "record", "request", "signature", "since", "wraps"),
    )

    def __init__(
        self, content: VersionContent, build: BuildRequest, base: KnownFile | None = None
    ) -> None:
        self.content = content
        self.build = build
        self.base = base
        self.head: FileRecord | None
        self.readers: tuple[ReaderEntry, ...]
        self.wraps: tuple[Wrap, ...]
        self.record: FileRecord
        self.body: bytes
        self.signature: bytes
        self.request: Request
        self.connection: int
        self.since: int


def run_stepwise(items: list[_Item], steps: Sequence[Callable[[_Item], None]]) -> SfscError | None:
    """Run each step for all of `items` before the next step: interleaved with other steps, above
    all with cryptography, a step loses its code and tables from the processor's caches and takes a
    sixth longer.

    If a step fails for an item, that item and all behind it are removed from `items`. The steps
    continue for those before it. Return the error of the first failed item.
    """
    failure: SfscError | None = None
    for step in steps:
        for place, item in enumerate(items):
            try:
                step(item)
            except SfscError as exc:
                failure = exc  # an item that failed in an earlier step was behind this one
                del items[place:]
                break
    return failure


class RecordCommitter:
    """Builds and signs the records of new versions, and handles the server's replies."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stored: list[tuple[KnownFile, bytes]] = []
        self._looked_up: dict[str, KnownFile | None] = {}
        self._logged: dict[str, tuple[int, bytes] | None] = {}  # newest heads in the followed log

    def prepare(self, attempts: list[Attempt]) -> SfscError | None:
        """Build and sign the record of each attempt; as `run_stepwise`. The error is a
        `ConflictError` for another head than expected.

        The requests must be sent at once: `Session.signing_key` signs nothing after a split view
        was found.
        """
        self._logged = self._session.newest_heads([one.content.file_id for one in attempts])
        return self._run(attempts, (self._find_base, *self._new_steps()))

    def prepare_one(self, content: VersionContent, build: BuildRequest) -> Attempt:
        """Build and sign the record of one content. Raises `SfscError`."""
        attempt = Attempt(content, build)
        if failure := self.prepare([attempt]):
            raise failure
        return attempt

    def send(self, attempt: Attempt) -> Put:
        """Send an attempt and handle the reply, as `finish`; remember the result."""
        try:
            return self.finish(attempt, self._session.ask(attempt.request))
        finally:
            self.remember()

    def finish(self, attempt: Attempt, reply: Reply) -> Put:
        """Handle the reply; after a conflict or a key rotation, make other attempts and await them.

        Raises `UploadLost` if the pieces must be sent again, and `SfscError`.
        """
        for left in reversed(range(MAX_CONFLICTS)):
            content, body = attempt.content, attempt.body
            if not isinstance(reply, Error):
                receipt = expect_reply(reply, Done).receipt
                self._session.verify_receipt(receipt, attempt.record, body, attempt.signature)
                return self._put(attempt, receipt)
            if was_accepted(self._session, attempt.connection, reply, attempt.record, body):
                return self._put(attempt, None)
            # A small file has no upload to lose: if the server claims so, do not ask it again.
            if reply.code == "upload-lost" and not isinstance(attempt.request, PutSmall):
                raise UploadLost
            if not left:
                raise to_exception(reply)
            base = attempt.base
            if reply.code == "conflict" and reply.head is not None:
                base = known_file(
                    self._session.verify_newest(reply.head, content.file_id, attempt.since)
                )
            elif reply.code == "share-refused" and base is None:
                self._session.leave_out(reply.readers, reply.text)
            else:
                self._session.renew_keys(reply)
            attempt = Attempt(content, attempt.build, base)
            if failure := self._run([attempt], self._new_steps()):
                raise failure
            reply = self._session.ask(attempt.request)
        raise ConflictError("others keep changing the file", "run the command again")

    def remember(self) -> None:
        """Remember all finished files in one transaction, which costs as much as a single file."""
        stored, self._stored = self._stored, []
        if stored:
            self._session.state.remember_files(stored)

    def look_up(self, file_ids: Sequence[str]) -> None:
        """Read what is known of files that are uploaded next, in one query."""
        self._looked_up = self._session.state.files(file_ids)

    def _run(
        self, attempts: list[Attempt], steps: Sequence[Callable[[Attempt], None]]
    ) -> SfscError | None:
        """Run `steps`, then sign, for as many of `attempts` as possible; as `run_stepwise`."""
        failure = run_stepwise(attempts, steps)
        if not attempts:
            return failure
        try:
            if self._session.is_behind:  # another device rotated: a step has found it in the log
                self._session.adopt_newest()
                failure = run_stepwise(attempts, self._new_steps()) or failure
            signer = self._session.record_signer()
        except SfscError as exc:
            attempts.clear()
            return exc
        for attempt in attempts:
            (attempt.signature,) = signer.sign((attempt.body,))
            attempt.request = attempt.build(attempt.body, attempt.signature, attempt.wraps)
            attempt.connection = self._session.connections
            attempt.since = self._session.followed_size
        return failure

    def _new_steps(self) -> tuple[Callable[[Attempt], None], ...]:
        wrap = partial(self._wrap, batches=self._session.account.wrap_batches())
        return self._check_head, wrap, self._build_record

    def _find_base(self, attempt: Attempt) -> None:
        """Use the remembered head if it is the newest one in the followed log. Ask the server for
        any other one, and if the caller expects another version.

        A machine that does not know the head of a file would wrap the content for readers of the
        file's folder, from whom another machine may have taken this file back."""
        session, content = self._session, attempt.content
        file_id, expected = content.file_id, content.expected
        if file_id in self._looked_up:
            attempt.base = self._looked_up.pop(file_id)  # once: the next put makes it stale
        else:
            attempt.base = session.state.file(file_id)
        base = attempt.base
        known = None if base is None else (base.rev, base.hash)
        head = None if base is None else FileRecord.parse(base.record)
        current = 0 if head is None else head.current
        # For a shared file the present head says who may read it: never use an older one.
        shared = head is not None and bool(head.readers)
        if shared or expected not in (None, current) or known != self._logged[file_id]:
            file = session.find_newest(file_id)
            attempt.base = None if file is None else known_file(session.without_left(file))

    def _check_head(self, attempt: Attempt) -> None:
        """Raise `ConflictError` for another head than the caller expected."""
        base, content = attempt.base, attempt.content
        head, name = None if base is None else FileRecord.parse(base.record), content.metadata.name
        if head is not None and not head.current:
            # A content keeps the readers of the head, so those of the folder must be there first.
            is_settings = self._session.account.is_settings(content.file_id)
            if not is_settings and (file := self._session.share_deleted(name)) is not None:
                attempt.base, head = known_file(file), file.head
                base = attempt.base
        attempt.head = head
        current = 0 if head is None else head.current
        if content.expected not in (None, current):
            if not current:
                cause = f"no such file: {name}"
            elif not content.expected:
                cause = f"{name} already exists"
            else:
                cause = f"version {current} of {name} is current, not {content.expected}"
            raise ConflictError(cause, head=None if base is None else base.record)
        if head is not None:
            attempt.readers = head.readers
        elif self._session.account.is_settings(content.file_id):
            attempt.readers = ()
        else:
            attempt.readers = self._session.new_readers(name)

    def _wrap(self, attempt: Attempt, batches: WrapBatches) -> None:
        key = attempt.content.key
        attempt.wraps = self._session.wrap(key, attempt.readers, batches)

    def _build_record(self, attempt: Attempt) -> None:
        content, base = attempt.content, attempt.base
        attempt.record = content_record(
            self._session.author,
            content.key,
            file_id=content.file_id,
            head=None if base is None else base.record,
            version=1 if base is None else base.version + 1,
            ciphertext_size=content.ciphertext_size,
            segments_root=content.segments_root,
            metadata=content.sealed_metadata,
            readers=attempt.readers,
            seen=self._session.seen,
            created=int(time.time()),
        )
        attempt.body = attempt.record.encode()

    def _put(self, attempt: Attempt, receipt: Receipt | None) -> Put:
        content, record = attempt.content, attempt.record
        if isinstance(attempt.request, PutSmall):  # a large file reports each piece
            self._session.progress.advance(content.metadata.size)
        entry = Entry.from_record(record, record, content.metadata)
        known = KnownFile.from_record(record, attempt.body, entry.version)
        self._stored.append((known, entry.pack()))
        self._looked_up.pop(content.file_id, None)
        return Put(
            entry.name,
            entry.file_id,
            entry.version,
            entry.size,
            receipt,
            attempt.body,
            content.unstable,
        )


# --- small and large files --------------------------------------------------------------------


class SmallFile:
    """A small file, read completely; `encrypt` and then `describe` set the attributes below.
    `source` may be closed by then."""

    def __init__(
        self,
        source: SourceReader,
        plaintext: bytes,
        name: str,
        file_id: str,
        expected: int | None = None,
    ) -> None:
        self.source = source
        self.plaintext = plaintext
        self.name = name
        self.file_id = file_id
        self.expected = expected
        self.key: ContentKey
        self.ciphertext: memoryview
        self.attempt: Attempt

    def encrypt(self) -> None:
        """Encrypt the plaintext under a fresh key."""
        self.key = ContentKey.generate()
        self.ciphertext = self.key.encryptor().seal_segment(self.plaintext, last=True)

    def describe(self) -> None:
        """Set `attempt`, as far as it does not depend on the file's head."""
        ciphertext = self.ciphertext
        root = merkle.root([merkle.leaf_hash(ciphertext)])
        content = VersionContent.from_source(
            self.source,
            self.name,
            self.file_id,
            self.key,
            root,
            self.expected,
            hashlib.sha256(self.plaintext).digest(),
        )

        def build(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
            return PutSmall(body, signature, content.sealed_metadata, wraps, ciphertext)

        self.attempt = Attempt(content, build)


class LargeFile:
    """A large file, whose source stays open so that the upload can start again."""

    def __init__(self, source: SourceReader, name: str, expected: int | None) -> None:
        self.source = source
        self.name = name
        self.expected = expected
        self.attempt: Attempt
        self.stream: UploadStream
        self._starts = 1

    def rewind(self) -> None:
        """Go back to the first byte because the server has lost the upload. Raises `Unreachable` if
        this happens too often, or if the source is not seekable."""
        if self._starts == MAX_UPLOAD_STARTS or not self.source.rewind():
            raise Unreachable("the server has lost the upload", "put the file again")
        self._starts += 1

    def commit_request(self) -> Request:
        """Return the commit, after sending pieces that the present connection has not carried."""
        self.stream.resume_before_commit()
        return self.attempt.request


class _OpenRequest(Value):
    file_id: str
    size: int
    ticket: Ticket
    connection: int


class UploadOpener:
    """Opens the uploads of large files before their turn, one at a time.

    No method raises the errors of such a request: they occur again when an upload is opened in its
    turn.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._coming: deque[tuple[str, int]] = deque()
        self._asked: _OpenRequest | None = None

    def announce(self, coming: Iterable[tuple[str, int]]) -> None:
        """Replace the list of large files that come next, in order: (file_id, ciphertext size)."""
        self.abandon()
        self._coming.extend(coming)
        self._ask()

    def take(self, file_id: str, size: int) -> bytes | None:
        """Wait for the upload of this file and return its id, None if none was opened. Then open
        one for the next file."""
        asked = self._asked
        if asked is None or file_id not in (asked.file_id, *(one for one, _ in self._coming)):
            return None
        if asked.file_id != file_id:  # the files before this one were not read, or have shrunk
            while self._coming.popleft()[0] != file_id:
                pass
        matches = (asked.file_id, asked.size) == (file_id, size)
        upload = self._take_opened(abort=not matches)
        self._ask()
        return upload

    def abandon(self) -> None:
        """Abort the upload that was opened. Without its id, because the reply has not arrived yet,
        it ends with the session: see `Session.abort_uploads`."""
        self._coming.clear()
        asked, transport = self._asked, self._session.transport
        if asked is None or asked.connection != self._session.connections:
            self._asked = None
        elif transport.has_reply(asked.ticket):
            self._take_opened(abort=True)
        else:
            self._asked = None
            transport.abandon(asked.ticket)

    def _take_opened(self, *, abort: bool) -> bytes | None:
        """Wait for the id of the upload that was opened, None if it was not; with `abort`, drop the
        upload and return None."""
        asked, self._asked = self._asked, None
        if asked is None or asked.connection != self._session.connections:
            return None
        transport = self._session.transport
        with contextlib.suppress(NetworkError):
            reply = transport.result(asked.ticket)
            if isinstance(reply, UploadState):
                if not abort:
                    return reply.upload
                transport.abandon(transport.submit(PutAbort(reply.upload)))
                transport.push()
        return None

    def _ask(self) -> None:
        if not self._coming:
            return
        file_id, size = self._coming.popleft()
        session = self._session
        with contextlib.suppress(NetworkError):
            ticket = session.transport.submit(PutOpen(session.account.user, file_id, size))
            session.transport.push()
            self._asked = _OpenRequest(file_id, size, ticket, session.connections)


class UploadQueue(Closing):
    """Files whose requests are in flight, oldest first, and behind them collected small files."""

    def __init__(self, session: Session, opener: UploadOpener) -> None:
        self.window = Window[Attempt | LargeFile](session)
        self.collected: list[SmallFile] = []
        self.worker = EncryptionWorker()
        self._opener = opener
        self._large: list[LargeFile] = []

    @property
    def accepts_large(self) -> bool:
        """Whether memory allows to start another large file."""
        return sum(large.stream.pieces_held for large in self._large) < _MAX_PIECES_HELD

    @property
    def full(self) -> bool:
        return len(self.window) + len(self.collected) >= MAX_REQUESTS

    def __contains__(self, file_id: str) -> bool:
        return file_id in self.window or any(one.file_id == file_id for one in self.collected)

    @property
    def has_batch(self) -> bool:
        """Whether to send the collected files now: there are enough, or the server has less to do
        than they are."""
        count = len(self.collected)
        return (
            count > len(self.window)
            or count >= _BATCH
            or sum(len(one.plaintext) for one in self.collected) >= _BATCH_SIZE
        )

    def send(self, attempt: Attempt) -> None:
        self.window.send(attempt, attempt.request, attempt.content.file_id)

    def commit(self, large: LargeFile) -> None:
        """Send the commit of a file whose pieces were sent."""
        self._large.append(large)
        self.window.send(large, large.commit_request, large.attempt.content.file_id)

    def remove(self, large: LargeFile) -> None:
        self._large.remove(large)
        large.source.close()

    def close(self) -> None:
        """Discard everything in flight and close the sources."""
        self.window.abandon()
        self._opener.abandon()
        for large in self._large:
            large.stream.abandon()
            large.source.close()
        self._large.clear()
        self.worker.close()


class Uploads:
    """Uploads files over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._committer = RecordCommitter(session)
        self._opener = UploadOpener(session)

    def put(self, source: Source, name: str | None = None, *, expected: int | None = None) -> Put:
        """Store what `source` holds as the newest version of `name`.

        With `expected`, only if that version is current (0: if there is no such file). Raises
        `SfscError`.
        """
        name = name_for(source, name)
        with _tracking_uploads(self._session), open_source(source) as reader:
            self._session.progress.expect(reader.size or 0)
            plaintext = reader.read_small()
            if plaintext is None:
                with EncryptionWorker() as worker:
                    done = self._put_large(LargeFile(reader, name, expected), worker)
            else:
                file_id = self._session.account.file_id(name)
                done = self._put_small(SmallFile(reader, plaintext, name, file_id, expected))
        self._session.link_receipts()
        return done

    def put_settings(self, data: bytes, *, expected: int) -> Put:
        """Store the account's settings, at most 64 KiB, if version `expected` (0: none) is current.
        Raises `ConflictError` if another machine was faster."""
        with open_source(io.BytesIO(data)) as reader:
            file_id, plaintext = self._session.account.settings_id, reader.read_small() or b""
            done = self._put_small(SmallFile(reader, plaintext, SETTINGS, file_id, expected))
        self._session.link_receipts()
        return done

    def announce(self, sources: Sequence[tuple[str, str]]) -> None:
        """Prepare for these (path, checked name) to be put next, in order: what is known of them is
        read at once, and the uploads of large files are opened ahead."""
        ids = [self._session.account.file_id(name) for _, name in sources]
        self._committer.look_up(ids)
        sizes = [(file_id, _size(path)) for file_id, (path, _) in zip(ids, sources, strict=True)]
        self._opener.announce((one, ciphertext_size(size)) for one, size in sizes if size > SMALL)

    def put_many(
        self,
        items: Iterable[tuple[Source, str | None]],
        *,
        skip: Skip | None = None,
    ) -> Iterator[Put]:
        """Store many files, with several requests in flight; yields results in order.

        A source that cannot be read is reported to `skip`, and the others are stored. One that
        changes while it is read is read again, then stored. Any other error ends the work; it is
        raised after the results of everything sent before. Each result is proven to be in a log
        that continues the log at login. That all of these are one log is proven last, and `Fork`
        raised if not.
        """
        failure: SfscError | None = None
        with (
            _tracking_uploads(self._session),
            UploadQueue(self._session, self._opener) as queue,
        ):
            for source, name in items:
                try:
                    yield from self._enqueue(queue, source, name_for(source, name), skip)
                except SfscError as exc:
                    if skip is not None and isinstance(exc, UnreadableSource):
                        skip(str(source), exc)
                        continue
                    failure = exc
                    break
            if isinstance(failure, _FATAL):
                queue.collected.clear()
            while queue.window or queue.collected:
                try:
                    yield from self._finish_oldest(queue, skip)
                except SfscError as exc:
                    failure = failure or exc
        if not isinstance(failure, _FATAL):
            self._session.link_receipts()
        if failure is not None:
            raise failure

    def _enqueue(
        self, queue: UploadQueue, source: Source, name: str, skip: Skip | None
    ) -> Iterator[Put]:
        """Add one file; yield the results that must come first."""
        # A second version of a file builds on the first, which must be stored.
        file_id = self._session.account.file_id(name)
        while queue.full or file_id in queue:
            yield from self._finish_oldest(queue, skip)
        with open_source(source) as reader:
            plaintext = reader.read_small()
            if plaintext is not None:
                queue.collected.append(SmallFile(reader, plaintext, name, file_id))
                if queue.has_batch:
                    self._send_collected(queue)
                return
            self._send_collected(queue)
            while not queue.accepts_large:
                yield from self._finish_oldest(queue, skip)
            large = LargeFile(reader, name, None)
            self._send_pieces(large, queue.worker)
            reader.keep_open = True
            queue.commit(large)

    def _send_collected(self, queue: UploadQueue) -> None:
        """Encrypt, sign and send the collected files, up to the first that fails."""
        collected, queue.collected = queue.collected, []
        attempts, failure = self._prepare(collected)
        for attempt in attempts:
            queue.send(attempt)
        self._session.transport.push()
        if failure is not None:
            raise failure

    def _finish_oldest(self, queue: UploadQueue, skip: Skip | None) -> Iterator[Put]:
        """Wait for the oldest reply and finish all files that have one by then. The results are
        remembered together before they are yielded."""
        self._send_collected(queue)
        done: list[Put] = []
        failure: SfscError | None = None
        try:
            done.extend(self._finish(queue, skip))
            while queue.window.has_reply:
                done.extend(self._finish(queue, skip))
        except SfscError as exc:
            failure = exc
        finally:
            self._committer.remember()
        yield from done
        if failure is not None:
            raise failure

    def _finish(self, queue: UploadQueue, skip: Skip | None) -> Iterator[Put]:
        """Wait for the oldest reply; yield its result, or nothing if its source had to be read
        again, could not be, and was reported to `skip`."""
        item, reply = queue.window.take()
        if isinstance(item, Attempt):
            yield self._committer.finish(item, reply)
            return
        try:
            yield self._finish_large(item, reply, queue.worker)
        except UnreadableSource as exc:
            if skip is None:
                # The caller would report the present source, and this is an earlier one.
                raise LocalError(exc.cause, exc.hint) from exc
            skip(item.source.name, exc)
        finally:
            queue.remove(item)

    def _prepare(self, small: list[SmallFile]) -> tuple[list[Attempt], SfscError | None]:
        """Return the attempts up to the first that fails, and its error."""
        later = run_stepwise(small, (SmallFile.encrypt, SmallFile.describe))
        attempts = [one.attempt for one in small]
        return attempts, self._committer.prepare(attempts) or later

    def _put_small(self, small: SmallFile) -> Put:
        """Store a small file and wait for it."""
        attempts, failure = self._prepare([small])
        if failure is not None:
            raise failure
        return self._committer.send(attempts[0])

    def _put_large(self, large: LargeFile, worker: EncryptionWorker) -> Put:
        """Store a large file and wait for it. Raises as `LargeFile.rewind`."""
        while True:
            self._send_pieces(large, worker)
            try:
                with large.stream:
                    large.stream.finish()
                    return self._committer.send(large.attempt)
            except UploadLost:
                large.rewind()

    def _send_pieces(self, large: LargeFile, worker: EncryptionWorker) -> None:
        """Send all pieces of a large file and prepare its commit. Raises as `LargeFile.rewind`."""
        while True:
            try:
                return self._upload(large, worker)
            except UploadLost:
                large.rewind()
            except SourceChanged:
                continue  # it is at its beginning

    def _upload(self, large: LargeFile, worker: EncryptionWorker) -> None:
        session, source, key = self._session, large.source, ContentKey.generate()
        file_id = session.account.file_id(large.name)
        # A file that has changed once may shrink again: then it would not be as long as announced.
        known = source.size is not None and not source.read_twice
        size = ciphertext_size(source.size or 0) if known else 0
        upload = self._opener.take(file_id, size)
        if upload is None:
            message = PutOpen(session.account.user, file_id, size)
            upload = session.call(message, UploadState).upload
        with UploadStream(session, upload, worker) as stream:
            stream.send(key.encryptor(), source)
            source.check_unchanged()
            root = merkle.root(stream.leaves())
            content = VersionContent.from_source(
                source, large.name, file_id, key, root, large.expected
            )

            def build(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
                return PutCommit(upload, body, signature, content.sealed_metadata, wraps)

            large.attempt = self._committer.prepare_one(content, build)
            large.stream = stream

    def _finish_large(self, large: LargeFile, reply: Reply, worker: EncryptionWorker) -> Put:
        """Handle the reply to a commit that was sent behind its pieces."""
        try:
            with large.stream as stream:
                if isinstance(reply, Error) and reply.code not in ("conflict", "upload-lost"):
                    stream.finish()  # raises the error of a rejected piece, which is the cause
                done = self._committer.finish(large.attempt, reply)
                stream.committed()
                return done
        except UploadLost:
            large.rewind()
        return self._put_large(large, worker)


@contextlib.contextmanager
def _tracking_uploads(session: Session) -> Iterator[None]:
    """Abort the session's uploads if the block is interrupted, or its results are not all read."""
    session.uploading += 1
    try:
        yield
    except SfscError:
        raise  # the failed upload was aborted, if the connection works
    except BaseException:
        session.abort_uploads()
        raise
    finally:
        session.uploading -= 1


def _size(path: str) -> int:
    """Return the size of a file in bytes, 0 if that fails: opening it reports the error."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
