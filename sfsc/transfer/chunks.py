"""Transfer of ciphertext in pieces of 1 MiB, over connections that may be lost: `UploadStream` and
`DownloadStream`.

Both keep a bounded number of pieces in flight and reuse their memory, so that a file of any length
takes the same few megabytes.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from protocol.buffers.pool import BufferPool
from protocol.codec.encoding import Buffer
from protocol.codec.merkle import leaf_hash
from protocol.codec.values import Mutable
from protocol.wire.messages import Error, Reply
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.downloads import Bytes, Read
from protocol.wire.messages.uploads import Aborted, Data, PutAbort, PutResume, UploadState
from sfsc.closing import Closing
from sfsc.crypto.segments import Allocate, ByteSource, Decryptor, Encryptor
from sfsc.errors import NetworkError, ProtocolFailure, Tampered
from sfsc.session.commit import UploadLost
from sfsc.session.limits import MAX_WINDOW, Ticket
from sfsc.session.pipeline import Window
from sfsc.session.retry import LOST
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session

if TYPE_CHECKING:  # loads logging and more: for what is longer than a piece
    from concurrent.futures import Future, ThreadPoolExecutor

    from sfsc.transfer.upload_journal import UploadJournal

_RING: Final = MAX_WINDOW // PIECE
"""Pieces sent and not acknowledged: as many as a window holds."""
_ASKED: Final = 8
"""Pieces requested and not yet received."""
MAX_UPLOAD_STARTS: Final = 3
"""How often a large upload is started if the server loses what it had."""
ABORT_SECONDS: Final = 2.0
_AHEAD: Final = 2
"""Pieces that the worker thread encrypts, or decrypts, ahead of the one being sent or written."""
_AHEAD_OF_JOURNAL: Final = 6
"""Pieces that are encrypted ahead if their hashes are journaled: one sync covers all that are
done."""


class _SentPiece(Mutable):
    offset: int
    piece: memoryview
    leaf: bytes
    ticket: Ticket | None = None

    @property
    def end(self) -> int:
        return self.offset + len(self.piece)


class EncryptionWorker(Closing):
    """Resources shared by the uploads of one session: a thread that encrypts and hashes (which
    releases the interpreter lock) while the caller reads and sends, and a pool of buffers for
    pieces."""

    def __init__(self) -> None:
        self.memory: BufferPool = BufferPool(PIECE, keep=_RING)
        self._thread: ThreadPoolExecutor | None = None

    @property
    def thread(self) -> ThreadPoolExecutor:
        """A pool of one thread, so that its tasks run in order."""
        if self._thread is None:
            from concurrent.futures import ThreadPoolExecutor

            self._thread = ThreadPoolExecutor(1, "sfsc-make")
        return self._thread

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)


class UploadStream:
    """Encrypts the pieces of one upload and sends them in order. As a context manager, it tells the
    server to drop the upload if the block raises.

    After a lost connection it sends the unacknowledged pieces again. Methods raise `UploadLost` if
    the server has nothing left to resume from, and the exception of an `Error` reply.

    With a `journal`, no piece is sent before its hash is on the disk. If the block raises because
    the server cannot be reached, the upload and its journal stay for the next process.
    """

    def __init__(
        self,
        session: Session,
        upload: bytes,
        worker: EncryptionWorker,
        journal: UploadJournal | None = None,
        stored: int = 0,
    ) -> None:
        """`stored` are the bytes that the server has of a resumed upload."""
        self._session = session
        self._upload = upload
        self._journal = journal
        self._stored = stored
        self._offset = 0
        self._encrypting: deque[Future[tuple[memoryview, bytes]]] = deque()
        self._ring: deque[_SentPiece] = deque()
        self._leaves: list[bytes] = []
        self._memory = worker.memory
        self._worker = worker
        self._connection = session.connections

    def send(self, encryptor: Encryptor, source: ByteSource) -> None:
        """Encrypt and send all of `source`; wait only while the ring is full."""
        thread = self._worker.thread
        ahead = _AHEAD if self._journal is None else _AHEAD_OF_JOURNAL
        for portion, last in encryptor.plaintext_segments(source, self._allocate):
            self._encrypting.append(thread.submit(self._encrypt, encryptor, portion, last))
            if len(self._encrypting) > ahead:
                self._send_oldest()
        while self._encrypting:
            self._send_oldest()

    def _send_oldest(self) -> None:
        self._keep_hashes()
        piece, leaf = self._encrypting.popleft().result()
        if self._offset + len(piece) <= self._stored:
            self._offset += len(piece)
            self._leaves.append(leaf)
            self._session.progress.advance(len(piece))
            return
        while len(self._ring) >= _RING:
            self._session.with_reconnect(self._collect)
        self._ring.append(_SentPiece(self._offset, piece, leaf))
        self._offset += len(piece)
        self._session.with_reconnect(self._submit)

    def _keep_hashes(self) -> None:
        """Store the hash of the next piece, and of those behind it that are encrypted by now."""
        if self._journal is not None and self._journal.count <= self._offset // PIECE:
            self._encrypting[0].result()
            done = itertools.takewhile(lambda one: one.done(), self._encrypting)
            self._journal.add(self._offset // PIECE, [one.result()[1] for one in done])

    def _encrypt(
        self, encryptor: Encryptor, portion: memoryview, last: bool
    ) -> tuple[memoryview, bytes]:
        """Return the next piece and its leaf hash; runs on the worker thread, and so in order. The
        piece is hashed while it is still in that core's cache."""
        piece = encryptor.seal_segment(portion, last=last, allocate=self._allocate)
        return piece, leaf_hash(piece)

    def _allocate(self, _size: int) -> memoryview:
        """Return memory for a segment or its piece, neither of which is longer than 1 MiB."""
        return self._memory.acquire()

    @property
    def pieces_held(self) -> int:
        """Number of pieces in memory, because no acknowledgement was processed yet."""
        return len(self._ring)

    def leaves(self) -> list[bytes]:
        """Return the leaf hashes of all pieces, acknowledged or not."""
        return [*self._leaves, *(sent.leaf for sent in self._ring)]

    def finish(self) -> None:
        """Wait until the server has all pieces."""
        while self._ring:
            self._session.with_reconnect(self._collect)

    def committed(self) -> None:
        """Release all pieces: a committed version has them, so no acknowledgement is needed any
        more."""
        self.abandon()
        self._acknowledged(self._offset)
        if self._journal is not None:
            self._journal.discard()

    def abandon(self) -> None:
        """Discard the replies to the pieces in flight."""
        if self._connection == self._session.connections:
            for sent in self._ring:
                if sent.ticket is not None:
                    self._session.transport.abandon(sent.ticket)

    def close(self) -> None:
        """Discard the replies to the pieces in flight. What was sent can be resumed, if there is a
        journal."""
        self.abandon()
        if self._journal is not None:
            self._journal.close()

    def resume_before_commit(self) -> None:
        """Send again what this connection has not carried, so that the pieces precede the commit.
        If the server has lost the upload, its reply to the commit reports that."""
        with contextlib.suppress(UploadLost):
            self._submit()

    def _submit(self) -> None:
        """Send the pieces that were not sent over this connection."""
        if self._connection != self._session.connections:
            self._resume()
        transport = self._session.transport
        for sent in self._ring:
            if sent.ticket is None:
                sent.ticket = transport.submit(Data(self._upload, sent.offset, sent.piece))

    def _collect(self) -> None:
        """Wait for the oldest piece's acknowledgement."""
        self._submit()
        if not self._ring:
            return
        oldest = self._ring[0]
        if oldest.ticket is None:
            raise ProtocolFailure("a piece was not sent")
        self._state(self._session.transport.result(oldest.ticket))
        oldest.ticket = None
        # The server writes pieces concurrently, so the offset in a reply may lag. But a reply
        # means that its piece is stored, and the pieces before it were acknowledged before.
        self._acknowledged(oldest.end)

    def _resume(self) -> None:
        """On a new connection, release what the server has and mark the rest as unsent."""
        state = self._state(self._session.transport.call(PutResume(self._upload)))
        ends = {self._offset, *(sent.offset for sent in self._ring)}
        if state.offset not in ends:
            raise ProtocolFailure("the server resumes the upload from an impossible offset")
        self._acknowledged(state.offset)
        for sent in self._ring:
            sent.ticket = None
        self._connection = self._session.connections

    def _state(self, reply: Reply) -> UploadState:
        if isinstance(reply, Error) and reply.code == "upload-lost":
            raise UploadLost
        return expect_reply(reply, UploadState)

    def _acknowledged(self, offset: int) -> None:
        while self._ring and self._ring[0].end <= offset:
            done = self._ring.popleft()
            self._session.progress.advance(len(done.piece))
            self._leaves.append(done.leaf)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            return
        kept = isinstance(error, LOST) and self._journal is not None
        gone = isinstance(error, UploadLost) or (not kept and self._abort())
        if self._journal is not None:
            if gone:
                self._journal.discard()
            else:
                self._journal.close()

    def _abort(self) -> bool:
        """Release the space on the server at once instead of after a day, if the connection still
        works. Return whether that was done."""
        with contextlib.suppress(NetworkError):
            self.abandon()
            expect_reply(
                self._session.transport.call(PutAbort(self._upload), ABORT_SECONDS), Aborted
            )
            return True
        return False


class PieceDecryptor:
    """Decrypts the pieces of one version in any order, on any thread.

    Each piece is verified against its leaf of the signed `segments_root`, then by its own tag. The
    caller has verified `leaves` (32 bytes each) against the root, which is in `record`.
    """

    def __init__(self, decryptor: Decryptor, leaves: bytes, record: bytes) -> None:
        self._decryptor = decryptor
        self._leaves = leaves
        self._record = record
        self.segment_count: int = decryptor.segment_count
        self.piece_size: Callable[[int], int] = decryptor.piece_size

    def decrypt(self, index: int, piece: Buffer, allocate: Allocate = bytearray) -> memoryview:
        """Return the plaintext of piece `index`, in memory from `allocate`. Raises `Tampered`."""
        expected = self._leaves[32 * index : 32 * index + 32]
        try:
            if not hmac.compare_digest(leaf_hash(piece), expected):
                raise Tampered(f"piece {index} of the file is not what was signed")
            return self._decryptor.open_segment(index, piece, allocate)
        except Tampered as exc:
            exc.proofs = (
                ("the record of the content", self._record),
                (f"piece {index} of {PIECE} bytes each", bytes(piece)),
                ("leaf hashes of all pieces, whose root is in the record", self._leaves),
            )
            raise


class DownloadStream:
    """Downloads the pieces of one version and decrypts them, in order.

    `handle` returns a read handle that is valid on the present connection. `first` is the beginning
    of the ciphertext, as much as came with Open.
    """

    def __init__(
        self,
        session: Session,
        decryptor: PieceDecryptor,
        first: Buffer,
        handle: Callable[[], bytes],
    ) -> None:
        self._session = session
        self._decryptor = decryptor
        self._first = memoryview(first)[: decryptor.piece_size(0)]
        self._has_first = len(self._first) == decryptor.piece_size(0)
        self._handle = handle
        self._next = 1 if self._has_first else 0
        self._window = Window[int](session, _ASKED)
        self._memory = BufferPool(PIECE, keep=2 * _AHEAD)

    def prefetch(self) -> None:
        """Request the next pieces, as many as may be in flight."""
        while self._next < self._decryptor.segment_count and not self._window.full:
            self._window.send(self._next, functools.partial(self._request, self._next))
            self._next += 1

    @property
    def prefetched(self) -> int:
        """Approximate number of bytes that were requested and not yet yielded by `segments`."""
        return PIECE * len(self._window)

    def abandon(self) -> None:
        """Discard the pieces that were requested."""
        self._window.abandon()

    def segments(self, allocate: Allocate | None = None) -> Iterator[memoryview]:
        """Yield all plaintext in order, a segment at a time, in memory that is reused once the
        caller drops its reference, or that `allocate` returned: called on another thread, in order.

        Raises `Tampered` for a piece that is not what was signed, and as `Session.with_reconnect`.
        """
        memory = allocate or (lambda _size: self._memory.acquire())
        if self._decryptor.segment_count == 1:
            # Nothing to overlap with: a thread would cost more than the work.
            for index, piece in self._pieces():
                yield self._decryptor.decrypt(index, piece, allocate or bytearray)
            return
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1, "sfsc-open") as worker:
            pending: deque[Future[memoryview]] = deque()
            try:
                for index, piece in self._pieces():
                    pending.append(worker.submit(self._decryptor.decrypt, index, piece, memory))
                    if len(pending) > _AHEAD:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                self.abandon()

    def _pieces(self) -> Iterator[tuple[int, Buffer]]:
        if self._has_first:
            yield 0, self._first
        self.prefetch()
        while self._window:
            index, reply = self._window.take()
            data = self._data(index, reply)
            # Piece 0 follows what came with Open. The length is verified with the leaf hash.
            yield index, b"".join((self._first, data)) if index == 0 and self._first else data
            self.prefetch()

    def _request(self, index: int) -> Read:
        begin = len(self._first) if index == 0 else 0
        length = self._decryptor.piece_size(index) - begin
        return Read(self._handle(), index * PIECE + begin, length)

    def _data(self, index: int, reply: Reply) -> Buffer:
        def ask_again() -> Buffer:
            return expect_reply(self._session.transport.call(self._request(index)), Bytes).data

        if isinstance(reply, Error) and reply.code == "stale-generation":
            return self._session.with_reconnect(ask_again)
        return expect_reply(reply, Bytes).data
