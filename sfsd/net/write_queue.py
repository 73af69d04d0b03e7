"""Queue of outgoing frames of one connection, kept uncopied until the transport has room.

A transport copies what it cannot send at once, and TLS grows and clears a buffer for all that is
queued before it: each byte of several MiB was moved four times. So the transport gets no more than
it will send soon. Small frames of one turn of the loop share a TLS record and a system call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Final

from protocol.codec.encoding import Buffer
from protocol.wire.frames import TLS_RECORD, split_for_tls_records

CHUNK: Final = 256 * 1024
"""Bytes of one write to the transport, and its write buffer size above which it gets no more."""


class WriteQueue:
    """Frames for one transport, sent in order. Call its methods on the loop's thread."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._small: list[Buffer] = []  # frames of this turn of the loop
        self._chunks: deque[Buffer] = deque()
        self._queued_size = 0
        self._paused = False
        transport.set_write_buffer_limits(high=CHUNK)

    @property
    def size(self) -> int:
        """About how many bytes the peer has yet to take, including the transport's buffer."""
        return self._queued_size + self._transport.get_write_buffer_size()

    def put(self, frame: list[Buffer]) -> None:
        """Send the pieces of a frame after all earlier frames."""
        size = sum(map(len, frame))
        self._queued_size += size
        if size > TLS_RECORD:
            self._chunks.extend(self._join_small())
            self._chunks.extend(_chunks(frame))
            self._write_chunks()
        else:
            if not self._small:
                asyncio.get_running_loop().call_soon(self.flush)
            self._small.extend(frame)

    def flush(self) -> None:
        """Send the small frames now instead of at the end of this turn of the loop."""
        self._chunks.extend(self._join_small())
        self._write_chunks()

    def pause(self) -> None:
        """Stop writing: the transport's buffer is full."""
        self._paused = True

    def resume(self) -> None:
        """Go on writing: the transport has room again."""
        self._paused = False
        self._write_chunks()

    def finish(self) -> None:
        """Give the transport everything: it is closed, but sends its buffer first."""
        self._paused = False
        self._chunks.extend(self._join_small())
        while self._chunks:
            self._write_one()

    def drop(self) -> None:
        """Discard everything: the connection is gone."""
        self._small.clear()
        self._chunks.clear()
        self._queued_size = 0

    def _join_small(self) -> Iterator[Buffer]:
        if self._small:
            small, self._small = b"".join(self._small), []
            yield small

    def _write_chunks(self) -> None:
        while self._chunks and not self._paused:
            self._write_one()

    def _write_one(self) -> None:
        chunk = self._chunks.popleft()
        self._queued_size -= len(chunk)
        self._transport.write(chunk)


def _chunks(frame: list[Buffer]) -> Iterator[Buffer]:
    """Yield the bytes of a large frame in order, at most `CHUNK` at a time."""
    for piece in split_for_tls_records(frame):
        for start in range(0, len(piece), CHUNK):
            yield piece[start : start + CHUNK]
