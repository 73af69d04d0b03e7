"""Frames: ``u32 big-endian length ‖ body``, with any body.

The transport receives into `get_buffer`. That is normally a scratch buffer of 64 KiB, which takes
many small frames per read. A reader holds one only while it has bytes of an incomplete frame, so
that an idle connection costs no memory. After the header of a large frame it is a buffer of exactly
the body's length, so that bulk bytes need no copy. A large body is returned as a writable view of
any lifetime; its buffer is not reused while a view exists.

A length is checked before memory is allocated for it. Every byte is moved at most once: the rest of
a read moves to the front of the scratch buffer only after frames were removed there.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator

from protocol.buffers.pool import PAGE, BufferPool
from protocol.codec.encoding import MAX_BODY, VIEW_FROM, Buffer
from protocol.codec.errors import FrameError, LocalProtocolError

MAX_OPENING_BODY = 16 * 1024
"""Longest body in bytes before the peer is authenticated."""
SCRATCH = 64 * 1024
TLS_RECORD = 16 * 1024
"""Longest TLS record in bytes (RFC 8446 section 5.1)."""

_LONG = 512 * 1024
"""Smallest body in bytes received into a pool buffer; a shorter one would waste most of it."""
_memory = BufferPool(-(-MAX_BODY // PAGE) * PAGE, keep=16)
_free_scratches: deque[memoryview] = deque(maxlen=16)  # when full, appending drops one of them
_NO_SCRATCH = memoryview(b"")
_LENGTH = struct.Struct(">I")


class FrameReader:
    """Splits received bytes into frame bodies.

    `limit` is the longest body allowed, in bytes. It may change between two bodies and applies to
    every header read afterwards.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._scratch = _NO_SCRATCH
        self._start = 0  # start of the received and unconsumed bytes in scratch; _end is their end
        self._end = 0
        self._body: memoryview | None = None  # of the incomplete large frame
        self._filled = 0  # received bytes of that body

    def get_buffer(self) -> memoryview:
        """Return the buffer for the next bytes; not empty once `next_body` has returned None."""
        if self._body is not None:
            return self._body[self._filled :]
        if not self._scratch:
            self._scratch = _acquire_scratch()
        return self._scratch[self._end :]

    def buffer_updated(self, count: int) -> None:
        """Take `count` bytes received at the front of the buffer from `get_buffer`."""
        if self._body is not None:
            self._filled += count
        else:
            self._end += count

    def next_body(self) -> memoryview | None:
        """Return the next complete body; None if more bytes are needed. Call it until then.

        A body shorter than `VIEW_FROM` bytes is valid until the next call only, others always.
        Raises `FrameError` for a length that is zero or past `limit`.
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
        """Return the length in the header at the front of scratch; None if it is incomplete."""
        if self._end - self._start < _LENGTH.size:
            return None
        length: int = _LENGTH.unpack_from(self._scratch, self._start)[0]
        if not 0 < length <= self.limit:
            raise FrameError(f"frame has {length} bytes, allowed are 1 to {self.limit}")
        return length

    def _cut(self, length: int) -> memoryview | None:
        """Remove the small body at the front of scratch; None if it is incomplete."""
        first = self._start + _LENGTH.size
        if self._end < first + length:
            self._compact()
            return None
        self._start = first + length
        return self._scratch[first : self._start].toreadonly()

    def _finish(self) -> memoryview | None:
        """Return the large body; None if it is incomplete."""
        if self._body is None or self._filled < len(self._body):
            return None
        whole, self._body = self._body, None
        return whole

    def _begin(self, length: int) -> None:
        """Allocate a large body and move the part of it in scratch there."""
        first = self._start + _LENGTH.size
        self._filled = min(length, self._end - first)
        self._body = _allocate(length)
        self._body[: self._filled] = self._scratch[first : first + self._filled]
        self._start = first + self._filled
        if self._start == self._end:
            self._compact()

    def _compact(self) -> None:
        """Move the rest to the front, so that at least half of scratch is free. Without a rest,
        give scratch away.

        The rest is less than a small frame. It never moves again, because `_start` is above 0 only
        after a frame was removed at the front.
        """
        if self._start == self._end:
            if self._scratch:
                _free_scratches.append(self._scratch)
            self._scratch = _NO_SCRATCH
            self._start = self._end = 0
        elif self._start:
            held = self._end - self._start
            self._scratch[:held] = self._scratch[self._start : self._end]
            self._start, self._end = 0, held


def _acquire_scratch() -> memoryview:
    try:
        return _free_scratches.pop()
    except IndexError:  # also if another thread was faster
        return memoryview(bytearray(SCRATCH))


def _allocate(length: int) -> memoryview:
    """Allocate memory for a large body. A long one ends at a page boundary.

    Its bulk bytes, if they are whole pages, then start at a page and can be written with O_DIRECT.
    """
    if not _LONG <= length <= _memory.size:
        return memoryview(bytearray(length))
    return _memory.acquire()[_memory.size - length :]


def encode_frame(body: list[Buffer], limit: int = MAX_BODY) -> list[Buffer]:
    """Return the pieces of a frame with this body; bulk bytes stay a separate piece.

    Raises `LocalProtocolError` for a length that the peer would refuse.
    """
    length = sum(len(piece) for piece in body)
    if not 0 < length <= limit:
        raise LocalProtocolError(f"body has {length} bytes, allowed are 1 to {limit}")
    head, *rest = body
    return [_LENGTH.pack(length) + head, *rest]


def split_for_tls_records(pieces: list[Buffer]) -> Iterator[memoryview]:
    """Yield a frame's bytes in order; the first view is one full TLS record with the small head.

    Only that record is copied; later bulk bytes are not.
    """
    head, *rest = [memoryview(piece) for piece in pieces]
    room = max(0, TLS_RECORD - len(head))
    first = rest.pop(0) if rest else memoryview(b"")
    yield memoryview(b"".join((head, first[:room])))
    yield from (piece for piece in (first[room:], *rest) if piece)
