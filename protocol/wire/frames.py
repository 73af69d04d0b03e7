"""Frames: ``u32 big-endian length | body``. Bytes in, bodies out, whatever is inside.

How bytes are received: the transport asks `get_buffer` where to put them. That is a scratch buffer
of 64 KiB, out of which many small frames are cut per read. Once the header of a large frame was
seen, it is a buffer of exactly the body's length, so that bulk bytes land where they stay. A large
body is handed on as a view that may outlive everything; its buffer is never used again.

A length is checked before anything is allocated for it. Every byte is moved at most once, however
it arrives: the rest of a read moves to the front of the scratch only after frames were cut off.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from protocol.buffers.pool import PAGE, BufferPool
from protocol.codec.encoding import MAX_BODY, VIEW_FROM, Buffer
from protocol.codec.errors import FrameError, LocalProtocolError

MAX_OPENING_BODY = 16 * 1024
"""Bytes of the longest body before the other side is known."""
SCRATCH = 64 * 1024
TLS_RECORD = 16 * 1024
"""Bytes of the longest TLS record (RFC 8446 section 5.1). Frames up to as many share one."""

_LONG = 512 * 1024
"""A body from this many bytes on is received into lent memory; others would hold too much of it."""
_memory = BufferPool(-(-MAX_BODY // PAGE) * PAGE, keep=16)
_LENGTH = struct.Struct(">I")


class FrameReader:
    """Cuts received bytes into frame bodies.

    `limit` is the longest body allowed, in bytes; it may change between two bodies, and counts for
    every header that is looked at afterwards.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._scratch = memoryview(bytearray(SCRATCH))
        self._start = 0  # of the bytes in scratch that were received and not yet handed on
        self._end = 0
        self._body: memoryview | None = None  # of the large frame under way
        self._filled = 0  # bytes of that body

    def get_buffer(self) -> memoryview:
        """Where the next bytes belong; never empty once `next_body` has answered None."""
        if self._body is not None:
            return self._body[self._filled :]
        return self._scratch[self._end :]

    def buffer_updated(self, count: int) -> None:
        """`count` bytes were put at the front of what `get_buffer` gave."""
        if self._body is not None:
            self._filled += count
        else:
            self._end += count

    def next_body(self) -> memoryview | None:
        """The next whole body, or None where more bytes are needed; ask until then.

        A body of less than `VIEW_FROM` bytes is valid until the next call only, a longer one for
        ever. Raises `FrameError` for a length that is zero or past `limit`.
        """
        if self._body is None:
            length = self._length()
            if length is None:
                self._compact()
                return None
            if length < VIEW_FROM:
                return self._cut(length)
            self._begin(length)
        return self._finish()

    def _length(self) -> int | None:
        """What the header at the front of scratch declares; None where it is not whole."""
        if self._end - self._start < _LENGTH.size:
            return None
        length: int = _LENGTH.unpack_from(self._scratch, self._start)[0]
        if not 0 < length <= self.limit:
            raise FrameError(f"a frame of {length} bytes where 1 to {self.limit} are allowed")
        return length

    def _cut(self, length: int) -> memoryview | None:
        """The small body at the front of scratch; None where it is not whole."""
        first = self._start + _LENGTH.size
        if self._end < first + length:
            self._compact()
            return None
        self._start = first + length
        return self._scratch[first : self._start].toreadonly()

    def _finish(self) -> memoryview | None:
        """The large body under way; None where it is not whole."""
        if self._body is None or self._filled < len(self._body):
            return None
        whole, self._body = self._body, None
        return whole.toreadonly()

    def _begin(self, length: int) -> None:
        """A buffer for a large body, and into it what scratch already holds of it."""
        first = self._start + _LENGTH.size
        self._filled = min(length, self._end - first)
        self._body = _room(length)
        self._body[: self._filled] = self._scratch[first : first + self._filled]
        self._start = first + self._filled

    def _compact(self) -> None:
        """The rest to the front. It is less than a small frame, so that half the scratch is free,
        and it never moves again: only behind a frame cut off at the front is `_start` not 0."""
        if self._start:
            held = self._end - self._start
            self._scratch[:held] = self._scratch[self._start : self._end]
            self._start, self._end = 0, held


def _room(length: int) -> memoryview:
    """Memory for a large body. That of a long one ends where a page ends: so its bulk, where that
    is a number of whole pages, begins at a page, and can go to a disk as it is."""
    if not _LONG <= length <= _memory.size:
        return memoryview(bytearray(length))
    return _memory.acquire()[_memory.size - length :]


def encode_frame(body: list[Buffer], limit: int = MAX_BODY) -> list[Buffer]:
    """The pieces of a body as the pieces of a frame; bulk bytes stay a piece of their own.

    Raises `LocalProtocolError` where the other side would refuse the length.
    """
    length = sum(len(piece) for piece in body)
    if not 0 < length <= limit:
        raise LocalProtocolError(f"a body of {length} bytes where 1 to {limit} are allowed")
    head, *rest = body
    return [_LENGTH.pack(length) + head, *rest]


def split_for_tls_records(pieces: list[Buffer]) -> Iterator[memoryview]:
    """The bytes of a frame's pieces in order, cut so that its small head shares a TLS record with
    what follows it, and bulk bytes are not copied beyond that record."""
    head, *rest = [memoryview(piece) for piece in pieces]
    room = max(0, TLS_RECORD - len(head))
    first = rest.pop(0) if rest else memoryview(b"")
    yield memoryview(b"".join((head, first[:room])))
    yield from (piece for piece in (first[room:], *rest) if piece)
