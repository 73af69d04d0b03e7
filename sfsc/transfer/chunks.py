"""Ciphertext on its way, in pieces of 1 MiB, over connections that may be lost: `Sending` is an
upload's, `Fetching` a download's. Both keep a bounded number of pieces under way and the memory of
those that are done, so that a file of any length takes the same few megabytes.
"""

from __future__ import annotations

import contextlib
import hmac
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
from sfsc.session.limits import MAX_WINDOW, Ticket
from sfsc.session.server_errors import answered
from sfsc.session.session import Session

if TYPE_CHECKING:  # loads logging and more: for what is longer than a piece
    from concurrent.futures import Future, ThreadPoolExecutor

_RING: Final = MAX_WINDOW // PIECE
"""Pieces sent and not acknowledged: all that a window has room for."""
_ASKED: Final = 8
"""Pieces asked for and not yet received."""
MAX_BEGINNINGS: Final = 3
"""How often a large file is begun where the server loses what it had."""
_ABORT_SECONDS: Final = 2.0
_AHEAD: Final = 2
"""Pieces that a worker makes, or opens, ahead of the one that is being sent or written."""


class UploadLost(Exception):
    """The server no longer has what was uploaded: the file must begin again, under a new key."""


class _Sent(Mutable):
    offset: int
    piece: memoryview
    leaf: bytes
    ticket: Ticket | None = None

    @property
    def end(self) -> int:
        return self.offset + len(self.piece)


class Workshop(Closing):
    """What the uploads of one session share: a thread that encrypts and hashes (which frees the
    interpreter lock) while the caller reads and sends, and the memory of pieces."""

    def __init__(self) -> None:
        self.memory = BufferPool(PIECE, keep=_RING)
        self._maker: ThreadPoolExecutor | None = None

    @property
    def maker(self) -> ThreadPoolExecutor:
        """Of one thread, so that what it is given is done in order."""
        if self._maker is None:
            from concurrent.futures import ThreadPoolExecutor

            self._maker = ThreadPoolExecutor(1, "sfsc-make")
        return self._maker

    def close(self) -> None:
        if self._maker is not None:
            self._maker.shutdown(cancel_futures=True)


class Sending:
    """Makes the pieces of one upload, and sends them in order. A context: where it is left by an
    exception, the server is told to drop the upload.

    A lost connection is survived by sending again what was not acknowledged. Methods raise
    `UploadLost` where the server has nothing left to go on from, and what a refusal stands for.
    """

    def __init__(self, session: Session, upload: bytes, workshop: Workshop) -> None:
        self._session = session
        self._upload = upload
        self._offset = 0
        self._making: deque[Future[tuple[memoryview, bytes]]] = deque()
        self._ring: deque[_Sent] = deque()
        self._leaves: list[bytes] = []
        self._memory = workshop.memory
        self._workshop = workshop
        self._connection = session.connections

    def send(self, encryptor: Encryptor, source: ByteSource) -> None:
        """Encrypt all that `source` holds, and send it; waits only while the ring is full."""
        maker = self._workshop.maker
        for portion, last in encryptor.plaintext_segments(source, self._allocate):
            self._making.append(maker.submit(self._made, encryptor, portion, last))
            if len(self._making) > _AHEAD:
                self._send_oldest()
        while self._making:
            self._send_oldest()

    def _send_oldest(self) -> None:
        piece, leaf = self._making.popleft().result()
        while len(self._ring) >= _RING:
            self._surviving(self._collect)
        self._ring.append(_Sent(self._offset, piece, leaf))
        self._offset += len(piece)
        self._surviving(self._submit)

    def _made(
        self, encryptor: Encryptor, portion: memoryview, last: bool
    ) -> tuple[memoryview, bytes]:
        """The next piece and its leaf hash: on the one thread that makes pieces, so in order. What
        was just written is still in that core's cache when it is hashed."""
        piece = encryptor.seal_segment(portion, last=last, allocate=self._allocate)
        return piece, leaf_hash(piece)

    def _allocate(self, _size: int) -> memoryview:
        """For a segment or its piece, neither of which is longer than 1 MiB."""
        return self._memory.acquire()

    @property
    def under_way(self) -> int:
        """Pieces whose memory is held, since no acknowledgement was taken up."""
        return len(self._ring)

    def leaves(self) -> list[bytes]:
        """The leaf hashes of all pieces, whether or not the server has them yet."""
        return [*self._leaves, *(sent.leaf for sent in self._ring)]

    def finish(self) -> None:
        """Wait until the server has all pieces."""
        while self._ring:
            self._surviving(self._collect)

    def committed(self) -> None:
        """A version stands that has all pieces: no acknowledgement is waited for any more."""
        self.abandon()
        self._acknowledged(self._offset)

    def abandon(self) -> None:
        """Nobody asks any more what became of the pieces."""
        if self._connection == self._session.connections:
            for sent in self._ring:
                if sent.ticket is not None:
                    self._session.transport.abandon(sent.ticket)

    def ahead_of_commit(self) -> None:
        """Have the pieces on this connection, or at the server, before the commit. Where it has
        lost the upload, its answer to the commit will say why."""
        with contextlib.suppress(UploadLost):
            self._catch_up()

    def _surviving(self, action: Callable[[], None]) -> None:
        def caught_up() -> None:
            self._catch_up()
            action()

        self._session.surviving(caught_up, lambda: None)

    def _catch_up(self) -> None:
        """Where another connection was opened since, here or by others."""
        if self._connection != self._session.connections:
            self._resume()

    def _submit(self) -> None:
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
            raise ProtocolFailure("a piece that was not sent")
        self._state(self._session.transport.result(oldest.ticket))
        oldest.ticket = None
        # Pieces are written side by side, so the offset in an answer may lag behind; but an answer
        # means that its piece is kept, and those before it were answered before.
        self._acknowledged(oldest.end)

    def _resume(self) -> None:
        """On a new connection: let go of what the server has, send the rest again."""
        state = self._state(self._session.transport.call(PutResume(self._upload)))
        ends = {self._offset, *(sent.offset for sent in self._ring)}
        if state.offset not in ends:
            raise ProtocolFailure("the server goes on from an offset that cannot be")
        self._acknowledged(state.offset)
        for sent in self._ring:
            sent.ticket = None
        self._connection = self._session.connections
        self._submit()

    def _state(self, reply: Reply) -> UploadState:
        if isinstance(reply, Error) and reply.code == "upload-lost":
            raise UploadLost
        return answered(reply, UploadState)

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
        if error is not None and not isinstance(error, UploadLost):
            self._abort()

    def _abort(self) -> None:
        """Free the space at once instead of in an hour, where the connection still stands."""
        with contextlib.suppress(NetworkError):
            self.abandon()
            answered(self._session.transport.call(PutAbort(self._upload), _ABORT_SECONDS), Aborted)


class Opener:
    """Opens the pieces of one blob in any order, on any thread: each against its leaf of the signed
    `segments_root`, whose `leaves` (32 bytes each) were proven, then by its own tag."""

    def __init__(self, decryptor: Decryptor, leaves: bytes) -> None:
        self._decryptor = decryptor
        self._leaves = leaves
        self.segment_count = decryptor.segment_count
        self.piece_size = decryptor.piece_size

    def open(self, index: int, piece: Buffer, allocate: Allocate = bytearray) -> memoryview:
        """The plaintext of piece `index`; `allocate` as `Decryptor.open`. Raises `Tampered`."""
        expected = self._leaves[32 * index : 32 * index + 32]
        if not hmac.compare_digest(leaf_hash(piece), expected):
            raise Tampered(f"piece {index} of the file is not what was signed")
        return self._decryptor.open_segment(index, piece, allocate)


class Fetching:
    """Fetches a blob piece by piece, and opens each, in order.

    `reopen` gives a handle on the same version over the present connection. `first` are the blob's
    first bytes, as many as GetOpen brought.
    """

    def __init__(
        self,
        session: Session,
        opener: Opener,
        first: Buffer,
        handle: bytes,
        reopen: Callable[[], bytes],
    ) -> None:
        self._session = session
        self._opener = opener
        self._first = memoryview(first)[: opener.piece_size(0)]
        self._handle = handle
        self._reopen = reopen
        self._next = 1 if self._has_first else 0
        self._asked: deque[tuple[int, Ticket | None]] = deque()
        self._connection = session.connections
        self._memory = BufferPool(PIECE, keep=2 * _AHEAD)

    def ask_ahead(self) -> None:
        """Ask for as many pieces as are under way at once, before `segments` comes to them."""
        self._ask()
        self._session.surviving(self._submit, self._again)

    @property
    def ahead(self) -> int:
        """Bytes, about, that were asked for and that `segments` has not come to."""
        return PIECE * len(self._asked)

    def abandon(self) -> None:
        """Nobody wants what was asked for."""
        if self._connection == self._session.connections:
            for _, ticket in self._asked:
                if ticket is not None:
                    self._session.transport.abandon(ticket)
        self._asked.clear()

    def segments(self, allocate: Allocate | None = None) -> Iterator[memoryview]:
        """All plaintext in order, a segment at a time, in memory that is used again when nobody
        looks at it; or that `allocate` gave, as `Decryptor.open`: on another thread, but in order.

        Raises `Tampered` for a piece that is not what was signed, and as `Session.surviving`.
        """
        memory = allocate or (lambda _size: self._memory.acquire())
        if self._opener.segment_count == 1:
            # There is nothing to do meanwhile: a thread would cost more than the work.
            for index, piece in self._pieces():
                yield self._opener.open(index, piece, allocate or bytearray)
            return
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1, "sfsc-open") as opener:
            opening: deque[Future[memoryview]] = deque()
            try:
                for index, piece in self._pieces():
                    opening.append(opener.submit(self._opener.open, index, piece, memory))
                    if len(opening) > _AHEAD:
                        yield opening.popleft().result()
                while opening:
                    yield opening.popleft().result()
            finally:
                self.abandon()

    def _pieces(self) -> Iterator[tuple[int, Buffer]]:
        if self._has_first:
            yield 0, self._first
        self._ask()
        while self._asked:
            data = self._session.surviving(self._receive, self._again)
            index, _ = self._asked.popleft()
            yield index, self._whole(index, data)
            self._ask()

    @property
    def _has_first(self) -> bool:
        """Whether piece 0 came whole with GetOpen."""
        return len(self._first) == self._opener.piece_size(0)

    def _ask(self) -> None:
        """Put down as many pieces as may be under way."""
        while self._next < self._opener.segment_count and len(self._asked) < _ASKED:
            self._asked.append((self._next, None))
            self._next += 1

    def _submit(self) -> None:
        """Send what was not sent yet."""
        if self._connection != self._session.connections:
            self._again()  # lost while others waited for something
        transport = self._session.transport
        for place, (index, ticket) in enumerate(self._asked):
            if ticket is None:
                self._asked[place] = (index, transport.submit(self._read(index)))

    def _again(self) -> None:
        """Handle and tickets are of a connection that is gone."""
        self._handle = self._reopen()
        self._connection = self._session.connections
        self._asked = deque((index, None) for index, _ in self._asked)

    def _receive(self) -> Buffer:
        """The oldest piece that was put down."""
        self._submit()
        _, oldest = self._asked[0]
        if oldest is None:
            raise ProtocolFailure("a piece that was not asked for")
        return answered(self._session.transport.result(oldest), Bytes).data

    def _read(self, index: int) -> Read:
        begin = len(self._first) if index == 0 else 0
        length = self._opener.piece_size(index) - begin
        return Read(self._handle, index * PIECE + begin, length)

    def _whole(self, index: int, data: Buffer) -> Buffer:
        """A received piece, piece 0 behind what came with GetOpen; its length is checked later."""
        return b"".join((self._first, data)) if index == 0 and self._first else data
