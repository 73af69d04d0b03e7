"""Frames on their way out of one connection, as they are until there is room for them.

What a transport cannot send at once it copies, and TLS grows and clears a buffer for all that is
ahead of that: of several MiB each byte was moved four times. So the transport gets no more than it
sends soon, and the rest waits here, uncopied. Small frames of one turn of the loop share a TLS
record and a call of the system.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Final

from protocol.codec.encoding import Buffer
from protocol.wire.frames import TLS_RECORD, split_for_tls_records

CHUNK: Final = 256 * 1024
"""Bytes that the transport is given at once, and has waiting before it is given no more."""


class WriteQueue:
    """For one transport, on the loop's thread. Order is kept."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._small: list[Buffer] = []  # frames of this turn of the loop
        self._chunks: deque[Buffer] = deque()
        self._held = 0
        self._paused = False
        transport.set_write_buffer_limits(high=CHUNK)

    @property
    def size(self) -> int:
        """Bytes, about, that the peer has yet to take, those of the transport included."""
        return self._held + self._transport.get_write_buffer_size()

    def put(self, frame: list[Buffer]) -> None:
        """Send the pieces of a frame behind all that was put before."""
        size = sum(map(len, frame))
        self._held += size
        if size > TLS_RECORD:
            self._chunks.extend(self._joined())
            self._chunks.extend(_chunks(frame))
            self._push()
        else:
            if not self._small:
                asyncio.get_running_loop().call_soon(self.flush)
            self._small.extend(frame)

    def flush(self) -> None:
        """Do not wait for more small frames."""
        self._chunks.extend(self._joined())
        self._push()

    def pause(self) -> None:
        """The transport has enough."""
        self._paused = True

    def resume(self) -> None:
        """The transport has room again."""
        self._paused = False
        self._push()

    def finish(self) -> None:
        """Give the transport all that is left: it closes once it has sent it."""
        self._paused = False
        self._chunks.extend(self._joined())
        while self._chunks:
            self._write()

    def drop(self) -> None:
        """The connection is gone."""
        self._small.clear()
        self._chunks.clear()
        self._held = 0

    def _joined(self) -> Iterator[Buffer]:
        if self._small:
            small, self._small = b"".join(self._small), []
            yield small

    def _push(self) -> None:
        while self._chunks and not self._paused:
            self._write()

    def _write(self) -> None:
        chunk = self._chunks.popleft()
        self._held -= len(chunk)
        self._transport.write(chunk)


def _chunks(frame: list[Buffer]) -> Iterator[Buffer]:
    """The bytes of a large frame, in order."""
    for piece in split_for_tls_records(frame):
        for start in range(0, len(piece), CHUNK):
            yield piece[start : start + CHUNK]
