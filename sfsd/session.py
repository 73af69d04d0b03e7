"""One connection: bytes from the loop ↔ `protocol.Connection` ↔ `Service`.

What a peer may make us hold is bounded on every side. Before login: one frame of 16 KiB, and a few
seconds. After: a number of requests and of bulk bytes under way; past that its further requests
wait and nothing more is read. What it does not fetch of its answers stops them, and after a while
the connection. A peer that breaks the protocol is dropped without an answer: it is not one of ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from protocol.connection import WELCOME_ID, Connection, Incoming, Role, Unknown
from protocol.encoding import Buffer
from protocol.errors import RemoteProtocolError
from protocol.messages import Error, Reply, Request
from protocol.messages.base import PIECE
from protocol.messages.downloads import Read
from protocol.messages.session import Enroll, Login
from protocol.messages.uploads import Data
from sfsd.config import Limits
from sfsd.errors import Refused
from sfsd.service import Principal, Service

MAX_UNDER_WAY: Final = 128
"""Requests of one connection that are worked on at once; a client's own window is smaller."""
MAX_BYTES_UNDER_WAY: Final = 24 * PIECE
"""Bulk bytes of them; a client may have the Welcome's window of Data, and Reads beside it."""
_JOIN: Final = 16 * 1024
"""A frame up to this many bytes is sent as one piece, so as one TLS record."""
_log = logging.getLogger(__name__)


class Session(asyncio.BufferedProtocol):
    """Made for each accepted connection; all methods run on the loop's thread.

    `on_open` and `on_close` tell the server that a login succeeded, and that the connection is
    gone (once, whatever ended it).
    """

    def __init__(
        self,
        service: Service,
        limits: Limits,
        address: str,
        *,
        deadline: float,
        on_open: Callable[[Session], None],
        on_close: Callable[[Session], None],
    ) -> None:
        """`deadline` is the loop's time by which the login must be done."""
        self.principal: Principal | None = None
        self.closed = asyncio.get_running_loop().create_future()
        self._service = service
        self._limits = limits
        self._address = address
        self._deadline = deadline
        self._on_open, self._on_close = on_open, on_close
        self._loop = asyncio.get_running_loop()
        self._connection = Connection(Role.SERVER)
        self._waiting: deque[Incoming] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes_under_way = 0
        self._writable = asyncio.Event()
        self._writable.set()
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._last_request = self._loop.time()
        self._transport: asyncio.Transport | None = None

    # The loop's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=4 * PIECE)
        self._timer = self._loop.call_at(self._deadline, self._too_late)
        self._send(WELCOME_ID, self._service.welcome())

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._connection.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        try:
            received = self._connection.buffer_updated(nbytes)
        except RemoteProtocolError as exc:
            _log.info("%s broke the protocol: %s", self._address, type(exc).__name__)
            self.abort()
            return
        if received:
            self._last_request = self._loop.time()
            self._waiting.extend(received)
            self._start_waiting()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writable.clear()
        self._watch_writing()

    def resume_writing(self) -> None:
        self._writable.set()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio names it
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._waiting.clear()
        self._writable.set()  # what waits to write finds the transport closing, and ends
        if self.principal is not None:
            self._service.closed(self.principal)
        self._on_close(self)
        if not self.closed.done():
            self.closed.set_result(None)

    # The server's side.

    @property
    def connected(self) -> bool:
        """Whether the connection was made; then `on_close` is called when it ends."""
        return self._transport is not None

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    async def drain(self, seconds: float) -> None:
        """Finish what is under way, refuse what comes now, and close. Twice does no harm."""
        self._draining = True
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()

    def revoke(self) -> None:
        """Close a session whose user may no longer have one."""
        if self._transport is not None:
            self._transport.close()

    # Requests.

    def _start_waiting(self) -> None:
        """Begin as many of the waiting requests as there is room for; read on when none wait."""
        while self._waiting and self._room_for(self._waiting[0]):
            incoming = self._waiting.popleft()
            weight = _weight(incoming)
            self._bytes_under_way += weight
            task = self._loop.create_task(self._work(incoming, weight))
            self._tasks.add(task)
            task.add_done_callback(self._done)
        transport = self._transport
        if transport is not None and not transport.is_closing():
            if self._waiting:
                transport.pause_reading()
            else:
                transport.resume_reading()

    def _room_for(self, incoming: Incoming) -> bool:
        if not self._tasks:
            return True
        if len(self._tasks) >= MAX_UNDER_WAY or not self._writable.is_set():
            return False
        return self._bytes_under_way + _weight(incoming) <= MAX_BYTES_UNDER_WAY

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            # A mistake of ours: it costs this connection, and the daemon goes on.
            _log.error("a request failed", exc_info=exc)
            self.abort()
        self._start_waiting()

    async def _work(self, incoming: Incoming, weight: int) -> None:
        try:
            await self._answer(incoming)
        finally:
            self._bytes_under_way -= weight

    async def _answer(self, incoming: Incoming) -> None:
        message = incoming.message
        if isinstance(message, Login | Enroll):
            await self._open(incoming.request_id, message)
            return
        if self._draining:
            reply: Reply = Error("shutting-down", "the server is stopping")
        elif isinstance(message, Unknown):
            reply = Error("unknown-request", "this server does not know that request")
        else:
            # The connection lets requests through only once a login was accepted.
            reply = await self._service.handle(
                cast(Principal, self.principal), cast(Request, message)
            )
        await self._writable.wait()
        self._send(incoming.request_id, reply)

    async def _open(self, request_id: int, message: Login | Enroll) -> None:
        if self._draining:
            self._refuse(request_id, Error("shutting-down", "the server is stopping"))
            return
        try:
            principal, reply = await self._service.open(
                message, welcome_sha256=self._connection.welcome_sha256, address=self._address
            )
        except Refused as exc:
            self._refuse(request_id, Error(exc.code, exc.cause[:500]))
            return
        if self._transport is None or self._transport.is_closing():
            self._service.closed(principal)
            return
        self.principal = principal
        self._send(request_id, reply)
        self._connection.established()
        self._watch_idle()
        self._on_open(self)

    def _refuse(self, request_id: int, error: Error) -> None:
        self._send(request_id, error)
        if self._transport is not None:
            self._transport.close()

    def _send(self, request_id: int, reply: Reply) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        for piece in _joined(self._connection.respond(request_id, reply)):
            transport.write(piece)

    # Time.

    def _too_late(self) -> None:
        if self.principal is None:
            self.abort()

    def _watch_idle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now = self._loop.time()
        if self._tasks:
            self._last_request = now
        left = self._last_request + self._limits.idle_seconds - now
        # The login that opens the session is itself a task, so this is never at once.
        if left <= 0:
            self._close_idle()
        else:
            self._timer = self._loop.call_later(left, self._watch_idle)

    def _close_idle(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _watch_writing(self, unsent: int | None = None) -> None:
        """Abort a peer that took nothing of its answers for `write_seconds`."""
        transport = self._transport
        if transport is None or self._writable.is_set():
            return
        now_unsent = transport.get_write_buffer_size()
        if unsent is not None and now_unsent >= unsent:
            self.abort()
            return
        self._write_timer = self._loop.call_later(
            self._limits.write_seconds, self._watch_writing, now_unsent
        )


def _weight(incoming: Incoming) -> int:
    """Bulk bytes that a request makes us hold: those it brings, or those it asks for."""
    message = incoming.message
    if isinstance(message, Read):
        return message.length
    if isinstance(message, Data):
        return len(message.data)
    return 0


def _joined(pieces: list[Buffer]) -> list[Buffer]:
    if sum(map(len, pieces)) <= _JOIN:
        return [b"".join(pieces)]
    return pieces
