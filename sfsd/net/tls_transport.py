"""TLS for the connections of the daemon, in a few KiB of memory each.

asyncio's own TLS keeps a receive buffer of 256 KiB for each connection, its buffers inside OpenSSL
never shrink, and its objects refer to each other in cycles, so that a closed connection stays in
memory until a cycle collection. Here all connections receive into one buffer, OpenSSL's buffers
stay small, and a connection that is lost drops its references.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Final, cast

from protocol.wire.frames import TLS_RECORD

RECEIVE: Final = 256 * 1024
"""Bytes of the buffer that all connections of a loop share."""
SHUTDOWN_SECONDS: Final = 5.0
"""Time for the peer of a closed connection to take the last bytes and close its side."""
MAX_UNTAKEN: Final = 1 << 20
"""Bytes of TLS's own answers, and of others before them, that wait for the peer. More arise only if
a peer asks for new traffic keys without end and takes no answers: such a connection is aborted."""
STEP: Final = 4 * TLS_RECORD
"""Bytes that OpenSSL gets or gives at a time. Its buffers grow to this, and never shrink."""
_NOTHING: Final = memoryview(b"")


def receive_buffer() -> memoryview:
    """Return a new buffer of `RECEIVE` bytes for `TLSTransport`."""
    return memoryview(bytearray(RECEIVE))


class TLSTransport(asyncio.Transport, asyncio.BufferedProtocol):
    """Server side of TLS between the transport of a socket and `protocol`.

    It is the protocol of the former and the transport of the latter. `protocol` may write before
    the handshake is done. It is told of a failed handshake, or of a peer that violates TLS, by an
    `ssl.SSLError` in `connection_lost`. Nothing here limits the time of a handshake. `received` may
    be shared by all connections of a loop: asyncio fills a protocol's buffer and reports it in one
    step. `on_handshake` is called once it is done. All methods run on the loop's thread.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        protocol: asyncio.BufferedProtocol,
        received: memoryview,
        on_handshake: Callable[[], object] | None = None,
    ) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._received = received
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._protocol: asyncio.BufferedProtocol | None = protocol
        self._on_handshake = on_handshake
        self._plain: asyncio.Transport | None = None
        self._early: list[bytes] = []  # written before the end of the handshake
        self._backlog = _NOTHING  # received and not yet given to OpenSSL
        self._handshaken = False
        self._paused = False
        self._closing = False
        self._failure: ssl.SSLError | None = None
        self._timer: asyncio.TimerHandle | None = None

    # Called by the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._plain = cast(asyncio.Transport, transport)
        if self._protocol is not None:
            self._protocol.connection_made(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio names it
        return self._received

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            return  # only the end of the peer's side is awaited
        received = self._received[:nbytes]
        if self._backlog:
            received = memoryview(b"".join((self._backlog, received)))
        self._backlog = received
        self._process()
        # The shared buffer belongs to all connections again.
        self._backlog = memoryview(bytes(self._backlog)) if self._backlog else _NOTHING

    def eof_received(self) -> bool:
        self._end_in_time()
        return False  # closes the transport once its buffer is sent

    def pause_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._handshaken and not self._closing:
            self._failure = ssl.SSLError("closed in the handshake")
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        protocol, self._protocol, self._plain = self._protocol, None, None
        self._on_handshake = None
        self._early.clear()
        self._backlog = _NOTHING
        if protocol is not None:
            protocol.connection_lost(self._failure or exc)

    # Called by `protocol`.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data` after all that was written before; drop it once the connection closes."""
        if self.is_closing():
            return
        if not self._handshaken:
            self._early.append(bytes(data))
            return
        try:
            self._send(self._encrypted(data))
        except ssl.SSLError as exc:
            self._fail(exc)

    def pause_reading(self) -> None:
        self._paused = True
        if self._plain is not None and not self._closing:
            self._plain.pause_reading()

    def resume_reading(self) -> None:
        if not self._paused:
            return
        self._paused = False
        if self._plain is not None and not self._closing:
            self._plain.resume_reading()
            self._loop.call_soon(self._process)

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default if self._plain is None else self._plain.get_extra_info(name, default)

    def is_reading(self) -> bool:
        return not self._paused

    def is_closing(self) -> bool:
        return self._closing or self._plain is None or self._plain.is_closing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._plain is not None:
            self._plain.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        early = sum(map(len, self._early))
        return early if self._plain is None else early + self._plain.get_write_buffer_size()

    def close(self) -> None:
        """Send what was written, end TLS, and wait for the peer to close its side.

        A socket that is closed before would reset the connection if bytes arrive, and the peer
        could lose the last answers.
        """
        plain = self._plain
        if plain is None or self.is_closing():
            return
        if not self._handshaken:
            self.abort()
            return
        self._closing = True
        self._backlog = _NOTHING
        self._end_in_time()
        try:
            self._tls.unwrap()
        except ssl.SSLError:  # our part is written; the peer's has not arrived
            self._send([self._outgoing.read()])
            plain.resume_reading()
        else:
            self._send([self._outgoing.read()])
            plain.close()

    def abort(self) -> None:
        self._closing = True
        if self._plain is not None:
            self._plain.abort()

    # TLS.

    def _process(self) -> None:
        """Decrypt the backlog and deliver it, as far as `protocol` reads."""
        try:
            while not self._closing and not self._paused and self._has_input():
                if self._handshaken:
                    self._deliver()
                    self._answer()
                else:
                    self._do_handshake()
        except ssl.SSLError as exc:
            self._fail(exc)

    def _has_input(self) -> bool:
        """Tell whether OpenSSL has something to read, if necessary by giving it `STEP` bytes of the
        backlog."""
        if not self._incoming.pending and not self._tls.pending():
            if not self._backlog:
                return False
            self._incoming.write(self._backlog[:STEP])
            self._backlog = self._backlog[STEP:]
        return True

    def _do_handshake(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
            self._handshaken = True
        self._send([self._outgoing.read()])
        if self._handshaken:
            early, self._early = self._early, []
            for data in early:
                self.write(data)
            if self._on_handshake is not None:
                self._on_handshake()

    def _deliver(self) -> None:
        """Fill the buffer of `protocol` as far as complete records are there."""
        protocol = self._protocol
        if protocol is None:
            return
        room = cast(bytearray, memoryview(protocol.get_buffer(-1)))  # any writable buffer will do
        filled, ended = 0, False
        try:
            while room and not ended and self._has_input():
                count = cast(int, self._tls.read(len(room), room))
                room = room[count:]
                filled += count
                ended = count == 0
        except ssl.SSLWantReadError:  # the rest of a record has yet to arrive, or to be given
            pass
        if filled:
            protocol.buffer_updated(filled)
        if ended:
            self.close()

    def _answer(self) -> None:
        """Send what TLS itself has to say."""
        if self._outgoing.pending:
            self._send([self._outgoing.read()])
            if self._plain is not None and self._plain.get_write_buffer_size() > MAX_UNTAKEN:
                self.abort()

    def _encrypted(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Return the TLS records of `data`, as many at a time as fit into `STEP` bytes."""
        records: list[bytes] = []
        rest = memoryview(data)
        while rest:
            count = self._tls.write(rest[:STEP])
            rest = rest[count:]
            records.append(self._outgoing.read())
        return records

    def _send(self, records: list[bytes]) -> None:
        # asyncio logs a warning for each write to a connection that the peer has reset.
        if self._plain is not None and not self._plain.is_closing():
            self._plain.write(b"".join(records))

    def _fail(self, exc: ssl.SSLError) -> None:
        """Send the alert of a violated protocol, and close."""
        self._failure = exc
        exc.__traceback__ = None  # its frames refer to this object
        self._closing = True
        self._send([self._outgoing.read()])
        self._end_in_time()
        if self._plain is not None:
            self._plain.close()

    def _end_in_time(self) -> None:
        """Abort the connection in `SHUTDOWN_SECONDS` if it is not lost before."""
        if self._timer is None and self._plain is not None:
            self._timer = self._loop.call_later(SHUTDOWN_SECONDS, self._plain.abort)
