"""Upload of files: small files many together, a large file in pieces before its record.

A large upload keeps the pieces that the server has not acknowledged in a ring, and sends them again
after a lost connection. If the process ends, the next one resumes the upload of a file of 8 MiB or
more from its journal (`upload_journal`). **No two segments are ever encrypted under one key and
nonce**: if the server has lost the upload, or the source has changed, the file starts again from
its first byte with a fresh key.

Only the record binds a content to its file. It builds on the file's present head, so it is made
last, and again after a conflict; the ciphertext does not change.

A large file does not hold up the files behind it: its commit is sent behind its pieces, which the
server processes first, and its reply is awaited in turn. Small files are collected, signed and sent
together.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

from protocol.codec import merkle
from protocol.codec.encoding import Buffer
from protocol.codec.values import Value, field
from protocol.records.records import FileRecord, ReaderEntry
from protocol.wire.messages import Error, FileView, Receipt, Reply, Request
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.uploads import PutAbort, PutOpen, PutResume, UploadState
from sfsc.closing import Closing
from sfsc.crypto.envelope import FILE, ContentKey, Metadata, WrapBatches, content_record
from sfsc.crypto.padding import padded_size
from sfsc.crypto.segments import Encryptor, SegmentChanged, ciphertext_size
from sfsc.errors import (
    ConflictError,
    LocalError,
    NetworkError,
    SfscError,
    Unreachable,
    UnreadableSource,
)
from sfsc.session.changeset import Draft
from sfsc.session.commit import (
    FATAL,
    TOGETHER,
    Committer,
    PlannedChange,
    SentChanges,
    UploadLost,
    commit_change,
    verify_head,
)
from sfsc.session.limits import Ticket
from sfsc.session.pipeline import Skip, Window
from sfsc.session.progress import Progress
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session, known_file
from sfsc.transfer.chunks import ABORT_SECONDS, MAX_UPLOAD_STARTS, EncryptionWorker, UploadStream
from sfsc.transfer.source import (
    SMALL,
    Source,
    SourceChanged,
    SourceReader,
    TreeItem,
    name_for,
    open_source,
)
from sfsc.transfer.status import STORED
from sfsc.transfer.upload_journal import RESUMABLE, JournalLost, UploadJournal, UploadJournals
from sfsc.trust.file_records import SETTINGS, SETTINGS_NAME, Entry
from sfsc.trust.state import KnownFile

_MAX_PIECES_HELD: Final = 8
"""Pieces in memory of large files whose commit is in flight; at this number no other is started."""
_FIRST: Final = 8
"""Small files that are sent first; each request in flight doubles the number of the next."""
_BATCH_SIZE: Final = 512 * 1024
"""Bytes of small files that are encrypted, signed and sent together."""
_REQUESTS: Final = 8
"""Requests in flight."""


class Put(Value):
    """A version that was stored: durable on the server, and proven to be in its log.

    `size` is that of the plaintext in bytes. `receipt` is the proof; None if the reply was lost
    with its connection and the record was then found in the file's signed history. `record` is the
    exact bytes that were signed. `unstable` says that the source changed each time that it was
    read: what was stored may be a mixture that it never held.

    `status` is ``stored``. For a file of a folder it may be ``unchanged``: version `version` was
    there before, and there is neither a receipt nor a record (it is empty).
    """

    name: str
    file_id: str
    version: int
    size: int
    receipt: Receipt | None = field(repr=False)
    record: bytes = field(repr=False)
    unstable: bool = False
    status: str = STORED


# --- records of new versions ------------------------------------------------------------------
_Sent = TypeVar("_Sent")


class Uploaded:
    """The files that one session stores: their known heads, and the new ones to remember."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._stored: list[tuple[KnownFile, bytes]] = []
        # What is remembered, and the newest head in the followed log.
        self._looked_up: dict[str, tuple[KnownFile | None, tuple[int, bytes] | None]] = {}

    def look_up(self, file_ids: Sequence[str]) -> None:
        """Read what is known of files that are changed now, and what the followed log has of them,
        in few queries."""
        known, logged = self.session.state.files(file_ids), self.session.newest_heads(file_ids)
        self._looked_up = {one: (known[one], logged[one]) for one in file_ids}

    def find_base(self, file_id: str, expected: int | None) -> KnownFile | None:
        """Return the remembered head if it is the newest one in the followed log. Ask the server
        for any other one, and if the caller expects another version.

        A machine that does not know the head of a file would wrap the content for readers of the
        file's folder, from whom another machine may have taken this file back."""
        session = self.session
        if file_id in self._looked_up:
            base, logged = self._looked_up.pop(file_id)  # once: the next put makes both stale
        else:
            base = session.state.file(file_id)
            logged = session.head_at(file_id, session.followed_size)
        head = None if base is None else FileRecord.parse(base.record)
        current = 0 if head is None else head.current
        # For a shared file the present head says who may read it: never use an older one.
        shared = head is not None and bool(head.readers)
        is_newest = logged == (None if base is None else (base.rev, base.hash))
        if shared or expected not in (None, current) or not is_newest:
            file = session.find_newest(file_id)
            base = None if file is None else known_file(session.without_left(file))
        return base

    def note(self, known: KnownFile, packed: bytes) -> None:
        """Note the new head of a file, with its entry for listings."""
        self._stored.append((known, packed))

    def remember(self) -> None:
        """Remember all noted files in one transaction, which costs as much as a single file."""
        stored, self._stored = self._stored, []
        if stored:
            self.session.state.remember_files(stored)


class NewVersion(PlannedChange[Put]):
    """A content that becomes the newest version of its file: the `ciphertext` of a small file, or
    what was uploaded as `upload`."""

    def __init__(
        self,
        uploaded: Uploaded,
        file_id: str,
        key: ContentKey,
        metadata: Metadata,
        sealed: bytes,
        root: bytes,
        expected: int | None,
        *,
        size: int,
        unstable: bool,
        ciphertext: Buffer = b"",
        upload: bytes | None = None,
    ) -> None:
        """`sealed` is the encrypted metadata. `root` is that of the ciphertext, which has `size`
        bytes."""
        self.name: str = metadata.name
        self.file_id: str = file_id
        self.metadata = metadata
        self.unstable = unstable
        self.ciphertext = ciphertext
        self.upload = upload
        self._uploaded = uploaded
        self._session = uploaded.session
        self._key = key
        self._sealed = sealed
        self._root = root
        self._size = size
        self._expected = expected
        self._base: KnownFile | None = None
        self._found = False

    def draft(self, batches: WrapBatches) -> Draft:
        session, key, sealed = self._session, self._key, self._sealed
        if not self._found:
            self._base = self._uploaded.find_base(self.file_id, self._expected)
            self._found = True
        readers = self._check_head()
        base = self._base
        version = 1 if base is None else base.version + 1
        record = content_record(
            session.author,
            key,
            file_id=self.file_id,
            head=None if base is None else base.record,
            version=version,
            ciphertext_size=self._size,
            segments_root=self._root,
            metadata=sealed,
            readers=readers,
            seen=session.seen,
            created=int(time.time()),
        )
        wraps = session.wrap(key, version, readers, batches)
        return Draft(record, record.encode(), sealed, wraps, self.ciphertext, self.upload)

    def _check_head(self) -> tuple[ReaderEntry, ...]:
        """Return the readers of the new version. Raises `ConflictError` for another head than the
        caller expected."""
        session, name, expected = self._session, self.name, self._expected
        is_settings = session.account.is_settings(self.file_id)
        head = None if self._base is None else FileRecord.parse(self._base.record)
        deleted = head is not None and not head.current and not is_settings
        # A content keeps the readers of the head, so those of the folder must be there first.
        if deleted and (file := session.share_deleted(name)) is not None:
            self._base, head = known_file(file), file.head
        current = 0 if head is None else head.current
        if expected not in (None, current):
            if not current:
                cause = f"no such file: {name}"
            elif not expected:
                cause = f"{name} already exists"
            else:
                cause = f"version {current} of {name} is current, not {expected}"
            raise ConflictError(cause, head=None if self._base is None else self._base.record)
        if head is not None:
            return head.readers
        return () if is_settings else session.new_readers(name)

    def rebase(self, session: Session, head: FileView | None, since: int) -> None:
        self._base = known_file(verify_head(session, self.file_id, head, since))

    def adapts(self, session: Session, refused: Error) -> bool:
        # Readers of the file's folder who take no more files do not get a new one.
        if refused.code != "share-refused" or self._base is not None:
            return False
        session.leave_out(refused.readers, refused.text)
        return True

    def committed(self, draft: Draft, receipt: Receipt | None) -> Put:
        record, metadata = draft.record, self.metadata
        if self.upload is None:  # a large file reports each piece
            self._session.progress.advance(metadata.size)
        entry = Entry.from_record(record, record, metadata)
        self._uploaded.note(KnownFile.from_record(record, draft.body, entry.version), entry.pack())
        return Put(
            entry.name,
            entry.file_id,
            entry.version,
            entry.size,
            receipt,
            draft.body,
            self.unstable,
        )


# --- small and large files --------------------------------------------------------------------


class SmallFile(Value):
    """A small file, read completely; `source` may be closed by then."""

    source: SourceReader
    plaintext: bytes
    name: str
    file_id: str
    expected: int | None = None

    def content(self) -> bytes:
        """Return the plaintext with its padding, if it has any."""
        plaintext = self.plaintext
        return plaintext.ljust(self.source.stored_size(len(plaintext)), b"\0")


def metadata_of(source: SourceReader, name: str, sha256: bytes | None) -> Metadata:
    """Return the metadata of a source, after all of it was read. `sha256` is the hash of the
    plaintext, if it is known."""
    return Metadata.of_checked(
        SETTINGS_NAME if name == SETTINGS else name,
        source.count,
        source.mtime,
        source.mode,
        source.kind,
        source.target,
        sha256,
        None,
        source.sparse and source.count > 0,
    )


def encrypt_small(uploaded: Uploaded, files: Sequence[SmallFile]) -> list[NewVersion]:
    """Encrypt small files, each under a fresh key. Each step runs for all files before the next
    step, which keeps its code in the processor's cache and saves a sixth of the time."""
    keys = [ContentKey.generate() for _ in files]
    encryptors = [key.encryptor() for key in keys]
    pairs = zip(encryptors, files, strict=True)
    ciphertexts = [made.seal_segment(one.content(), last=True) for made, one in pairs]
    roots = [merkle.leaf_hash(ciphertext) for ciphertext in ciphertexts]  # of a single piece each
    hashes = [hashlib.sha256(one.plaintext).digest() for one in files]
    described = [
        metadata_of(one.source, one.name, digest) for one, digest in zip(files, hashes, strict=True)
    ]
    sealed = [key.seal_metadata(one) for key, one in zip(keys, described, strict=True)]
    parts = zip(files, keys, described, sealed, roots, ciphertexts, strict=True)
    return [
        NewVersion(
            *(uploaded, one.file_id, key, metadata, hidden, root, one.expected),
            size=len(ciphertext),
            unstable=one.source.unstable,
            ciphertext=ciphertext,
        )
        for one, key, metadata, hidden, root, ciphertext in parts
    ]


class LargeFile:
    """A large file, whose source stays open so that the upload can start again."""

    def __init__(
        self,
        source: SourceReader,
        name: str,
        file_id: str,
        expected: int | None = None,
        *,
        resumable: bool = True,
    ) -> None:
        self.source = source
        self.resumable = resumable
        self.name = name
        self.file_id = file_id
        self.expected = expected
        self.sent: SentChanges[Put]
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
        return self.sent.request


class _Begun(Value):
    """An upload that is open on the server, which has `stored` bytes of it."""

    key: ContentKey
    encryptor: Encryptor
    upload: bytes
    journal: UploadJournal | None
    stored: int = 0


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
        self.window: Window[SentChanges[Put] | LargeFile] = Window(session)
        self._collected: list[SmallFile] = []
        self._collected_size = 0
        self.worker: EncryptionWorker = EncryptionWorker()
        self._opener = opener
        self._large: list[LargeFile] = []
        self._waiting: set[str] = set()

    @property
    def accepts_large(self) -> bool:
        """Whether memory allows to start another large file."""
        return sum(large.stream.pieces_held for large in self._large) < _MAX_PIECES_HELD

    @property
    def full(self) -> bool:
        return len(self.window) >= _REQUESTS

    def __contains__(self, file_id: str) -> bool:
        return file_id in self._waiting

    def collect(self, small: SmallFile) -> None:
        """Add a small file to those that are sent next."""
        self._collected.append(small)
        self._collected_size += len(small.plaintext)
        self._waiting.add(small.file_id)

    @property
    def has_collected(self) -> bool:
        return bool(self._collected)

    @property
    def has_batch(self) -> bool:
        """Whether to send the collected files now: there are enough, or the server has less to do
        than they are."""
        enough = min(TOGETHER, _FIRST << len(self.window))
        return len(self._collected) >= enough or self._collected_size >= _BATCH_SIZE

    def take_collected(self) -> list[SmallFile]:
        """Return the collected files, which are the caller's to send from now on."""
        collected, self._collected, self._collected_size = self._collected, [], 0
        return collected

    def send(self, sent: SentChanges[Put]) -> None:
        self.window.send(sent, sent.request)

    def commit(self, large: LargeFile) -> None:
        """Send the commit of a file whose pieces were sent."""
        self._large.append(large)
        self._waiting.add(large.file_id)
        self.window.send(large, large.commit_request)

    def take(self) -> tuple[SentChanges[Put] | LargeFile, Reply]:
        """Wait for the oldest reply. Its files wait no longer."""
        item, reply = self.window.take()
        done = [item.file_id] if isinstance(item, LargeFile) else item.file_ids
        self._waiting.difference_update(done)
        return item, reply

    def remove(self, large: LargeFile) -> None:
        self._large.remove(large)
        large.source.close()

    def close(self) -> None:
        """Discard everything in flight and close the sources."""
        self.window.abandon()
        self._opener.abandon()
        for large in self._large:
            large.stream.close()
            large.source.close()
        self._large.clear()
        self.worker.close()


class Uploads:
    """Uploads files over one session."""

    def __init__(self, session: Session, *, pad: bool | None = None) -> None:
        """With `pad`, contents are stored with padding; None: as the account's settings say."""
        self._session = session
        self._pad = pad
        self._uploaded = Uploaded(session)
        self._committer = Committer[Put](session)
        self._opener = UploadOpener(session)
        self._journals = UploadJournals(session)

    def put(self, source: Source, name: str | None = None, *, expected: int | None = None) -> Put:
        """Store what `source` holds as the newest version of `name`.

        With `expected`, only if that version is current (0: if there is no such file). Raises
        `SfscError`.
        """
        name = name_for(source, name)
        file_id = self._session.account.file_id(name)
        with (
            _tracking_uploads(self._session),
            open_source(source, pad=self._pads()) as reader,
        ):
            self._session.progress.expect(reader.size or 0)
            plaintext = reader.read_small()
            if plaintext is None:
                with EncryptionWorker() as worker:
                    done = self._put_large(LargeFile(reader, name, file_id, expected), worker)
            else:
                done = self._put_small(SmallFile(reader, plaintext, name, file_id, expected))
        self._session.link_receipts()
        return done

    def stage(self, source: Source, name: str, expected: int | None = None) -> NewVersion:
        """Encrypt what `source` holds as a change that is still to be committed. A large content is
        uploaded now; `discard` drops it. Raises `SfscError`."""
        file_id = self._session.account.file_id(name)
        with (
            _tracking_uploads(self._session),
            open_source(source, pad=self._pads()) as reader,
        ):
            self._session.progress.expect(reader.size or 0)
            plaintext = reader.read_small()
            if plaintext is not None:
                small = SmallFile(reader, plaintext, name, file_id, expected)
                return encrypt_small(self._uploaded, [small])[0]
            large = LargeFile(reader, name, file_id, expected, resumable=False)
            with EncryptionWorker() as worker:
                return _until_sent(large, lambda: self._send_all(large, worker))

    def _send_all(self, large: LargeFile, worker: EncryptionWorker) -> NewVersion:
        """Send a large file. Return the change that commits it, once the server has all pieces.
        Raises as `_send_content`."""
        change, stream = self._send_content(large, worker)
        with stream:
            stream.finish()
        return change

    def _pads(self) -> bool:
        return self._session.pads() if self._pad is None else self._pad

    def look_up(self, file_ids: Sequence[str]) -> None:
        """Read what is known of files that are changed now, in few queries."""
        self._uploaded.look_up(file_ids)

    def remember(self) -> None:
        """Remember the versions that were stored."""
        self._uploaded.remember()

    def discard(self, changes: Iterable[NewVersion]) -> None:
        """Have the server drop the uploads of changes that are not committed, if the connection
        works."""
        for upload in (one.upload for one in changes if one.upload is not None):
            self._abort(upload)

    def _abort(self, upload: bytes) -> None:
        with contextlib.suppress(NetworkError):
            self._session.transport.call(PutAbort(upload), ABORT_SECONDS)

    def put_settings(self, data: bytes, *, expected: int) -> Put:
        """Store the account's settings, at most 64 KiB, if version `expected` (0: none) is current.
        Raises `ConflictError` if another machine was faster."""
        with open_source(io.BytesIO(data)) as reader:
            file_id, plaintext = self._session.account.settings_id, reader.read_small() or b""
            return self._put_small(SmallFile(reader, plaintext, SETTINGS, file_id, expected))

    def announce(self, items: Iterable[TreeItem]) -> None:
        """Open uploads of large files ahead, for these items of a folder that are put next, in
        order."""
        sized = padded_size if self._pads() else int
        self._opener.announce(
            (self._session.account.file_id(item.name), ciphertext_size(sized(item.status.st_size)))
            for item in items
            if item.kind == FILE
            and item.status.st_size > SMALL
            # The server drops what it has of the file for a client that begins again.
            and not self._journals.has(self._session.account.file_id(item.name))
        )

    def put_many(
        self,
        items: Iterable[tuple[Source, str | None]],
        *,
        skip: Skip | None = None,
        hash_all: bool = False,
    ) -> Iterator[Put]:
        """Store many files, with several requests in flight; yields results in order. `hash_all`
        as in `SourceReader`.

        A source that cannot be read is reported to `skip`, and the others are stored. One that
        changes while it is read is read again, then stored. Any other error ends the work; it is
        raised after the results of everything sent before. Each result is proven to be in a log
        that continues the log at login. That all of these are one log is proven last, and `Fork`
        raised if not.
        """
        failure: SfscError | None = None
        if self._session.progress.wanted and isinstance(items, Sequence):
            _expect_sources(self._session.progress, [source for source, _ in items])
        with (
            _tracking_uploads(self._session),
            UploadQueue(self._session, self._opener) as queue,
        ):
            for source, name in items:
                try:
                    reader = functools.partial(
                        open_source, source, hash_all=hash_all, pad=self._pads()
                    )
                    expected = source.expected if isinstance(source, TreeItem) else None
                    name = name_for(source, name)
                    yield from self._enqueue(queue, reader, name, expected, skip)
                except SfscError as exc:
                    if skip is not None and isinstance(exc, UnreadableSource):
                        skip(str(source), exc)
                        continue
                    failure = exc
                    break
            if isinstance(failure, FATAL):
                queue.take_collected()
            while queue.window or queue.has_collected:
                try:
                    yield from self._finish_oldest(queue, skip)
                except SfscError as exc:
                    failure = failure or exc
        if not isinstance(failure, FATAL):
            self._session.link_receipts()
        if failure is not None:
            raise failure

    def _enqueue(
        self,
        queue: UploadQueue,
        opened: Callable[[], SourceReader],
        name: str,
        expected: int | None,
        skip: Skip | None,
    ) -> Iterator[Put]:
        """Add one file, which `opened` opens; yield the results that must come first."""
        # A second version of a file builds on the first, which must be stored.
        file_id = self._session.account.file_id(name)
        while queue.full or file_id in queue:
            yield from self._finish_oldest(queue, skip)
        with opened() as reader:
            plaintext = reader.read_small()
            if plaintext is not None:
                queue.collect(SmallFile(reader, plaintext, name, file_id, expected))
                if queue.has_batch:
                    self._send_collected(queue)
                return
            self._send_collected(queue)
            while not queue.accepts_large:
                yield from self._finish_oldest(queue, skip)
            large = LargeFile(reader, name, file_id, expected)
            self._send_pieces(large, queue.worker)
            reader.keep_open = True
            queue.commit(large)

    def _send_collected(self, queue: UploadQueue) -> None:
        """Encrypt, sign and send the collected files, up to the first that fails."""
        collected = queue.take_collected()
        if not collected:
            return
        changes = encrypt_small(self._uploaded, collected)
        self._uploaded.look_up([small.file_id for small in collected])
        sent, failure = self._committer.prepare(changes)
        for one in sent:
            queue.send(one)
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
            self._finish(queue, skip, done)
            while queue.window.has_reply:
                self._finish(queue, skip, done)
        except SfscError as exc:
            failure = exc
        finally:
            self._uploaded.remember()
        yield from done
        if failure is not None:
            raise failure

    def _finish(self, queue: UploadQueue, skip: Skip | None, done: list[Put]) -> None:
        """Wait for the oldest reply and add its results to `done`. A source that had to be read
        again, and could not be, is reported to `skip`."""
        item, reply = queue.take()
        if isinstance(item, SentChanges):
            found, failure = self._committer.finish(item, reply)
            done += found
            if failure is not None:
                raise failure
            return
        try:
            done.append(self._finish_large(item, reply, queue.worker))
        except UnreadableSource as exc:
            if skip is None:
                # The caller would report the present source, and this is an earlier one.
                raise LocalError(exc.cause, exc.hint) from exc
            skip(item.source.name, exc)
        finally:
            queue.remove(item)

    def _put_small(self, small: SmallFile) -> Put:
        """Store a small file and wait for it."""
        try:
            return commit_change(self._session, encrypt_small(self._uploaded, [small])[0])
        finally:
            self._uploaded.remember()

    def _put_large(self, large: LargeFile, worker: EncryptionWorker) -> Put:
        """Store a large file and wait for it. Raises as `LargeFile.rewind`."""
        while True:
            self._send_pieces(large, worker)
            try:
                with large.stream as stream:
                    stream.finish()
                    done = self._committed(large, self._session.ask(large.sent.request))
                    stream.committed()
                    return done
            except UploadLost:
                large.rewind()

    def _committed(self, large: LargeFile, reply: Reply) -> Put:
        """Return the result of a large file's commit. Raises as `Committer.finish`, and its
        error."""
        try:
            found, failure = self._committer.finish(large.sent, reply)
        finally:
            self._uploaded.remember()
        if failure is not None:
            raise failure
        return found[0]

    def _send_pieces(self, large: LargeFile, worker: EncryptionWorker) -> None:
        """Send all pieces of a large file and prepare its commit. Raises as `LargeFile.rewind`."""
        _until_sent(large, lambda: self._upload(large, worker))

    def _upload(self, large: LargeFile, worker: EncryptionWorker) -> None:
        change, stream = self._send_content(large, worker)
        with stream:
            sent, failure = self._committer.prepare([change])
            if failure is not None:
                raise failure
            (large.sent,), large.stream = sent, stream

    def _send_content(
        self, large: LargeFile, worker: EncryptionWorker
    ) -> tuple[NewVersion, UploadStream]:
        """Send all pieces of a large file. Return the change that commits it, and the stream, of
        which the last pieces are not acknowledged yet. Raises `UploadLost` and `SourceChanged`."""
        source, begun = large.source, self._resume(large) or self._begin(large)
        self._session.progress.begin_file(large.name, source.size)
        try:
            with UploadStream(
                self._session, begun.upload, worker, begun.journal, begun.stored
            ) as stream:
                stream.send(begun.encryptor, source.content())
                source.check_unchanged()
                root = merkle.root(stream.leaves())
                metadata = metadata_of(source, large.name, source.sha256)
                sealed = begun.key.seal_metadata(metadata)
                version = NewVersion(
                    *(self._uploaded, large.file_id, begun.key, metadata, sealed, root),
                    large.expected,
                    size=ciphertext_size(source.stored_size(source.count)),
                    unstable=source.unstable,
                    upload=begun.upload,
                )
                return version, stream
        except JournalLost as exc:
            large.resumable = False
            raise UploadLost from exc
        except SegmentChanged as exc:
            raise UploadLost from exc

    def _begin(self, large: LargeFile) -> _Begun:
        """Open an upload under a fresh key."""
        session, source, key = self._session, large.source, ContentKey.generate()
        # A file that has changed once may shrink again: then it would not be as long as announced.
        known = source.size if not source.read_twice else None
        size = ciphertext_size(source.stored_size(known)) if known else 0
        upload = self._opener.take(large.file_id, size)
        if upload is None:
            message = PutOpen(session.account.user, large.file_id, size)
            upload = session.call(message, UploadState).upload
        encryptor, journal, version = key.encryptor(), None, source.version
        if large.resumable and version is not None and (known or 0) >= RESUMABLE:
            journal = self._journals.create(
                large.file_id, upload, key, encryptor, version, pad=source.pad
            )
        return _Begun(key, encryptor, upload, journal)

    def _resume(self, large: LargeFile) -> _Begun | None:
        """Return the upload of the file that another process began, with what the server has of it;
        None if there is none that can be continued. Such a one is dropped."""
        journal = self._journals.find(large.file_id) if large.resumable else None
        if journal is None:
            return None
        session = self._session
        try:
            if journal.is_of(large.source.version, pad=large.source.pad):
                reply = session.ask(PutResume(journal.upload))
                if not (isinstance(reply, Error) and reply.code == "upload-lost"):
                    stored = expect_reply(reply, UploadState).offset
                    # A segment without a hash was not sent, or somebody has changed the journal.
                    if stored <= journal.count * PIECE:
                        encryptor = journal.encryptor()
                        return _Begun(journal.key, encryptor, journal.upload, journal, stored)
            self._abort(journal.upload)
            journal.discard()
        except BaseException:
            journal.close()
            raise
        return None

    def _finish_large(self, large: LargeFile, reply: Reply, worker: EncryptionWorker) -> Put:
        """Handle the reply to a commit that was sent behind its pieces."""
        try:
            with large.stream as stream:
                refused = large.sent.refused(reply)
                if refused is not None and refused.code not in ("conflict", "upload-lost"):
                    stream.finish()  # raises the error of a rejected piece, which is the cause
                done = self._committed(large, reply)
                stream.committed()
                return done
        except UploadLost:
            large.rewind()
        return self._put_large(large, worker)


def _expect_sources(progress: Progress, sources: Sequence[Source]) -> None:
    """Announce the sizes of sources; those of streams are not known."""
    progress.expect_items(len(sources))
    for source in sources:
        if isinstance(source, (str, os.PathLike)):
            with contextlib.suppress(OSError):  # raised again when it is read
                progress.expect(os.stat(source).st_size)


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


def _until_sent(large: LargeFile, send: Callable[[], _Sent]) -> _Sent:
    """Return the result of `send`, which begins again from the first byte if the server has lost
    the upload, or if the source changed while it was read. Raises as `LargeFile.rewind`."""
    while True:
        try:
            return send()
        except UploadLost:
            large.rewind()
        except SourceChanged:
            continue  # it is at its beginning
