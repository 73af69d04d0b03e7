"""One connection: bytes from the loop ↔ `protocol.Connection` ↔ `Service`.

What a peer may make us hold is bounded on every side. Before login: one frame of 16 KiB, and a few
seconds. After: a number of requests under way, and of bytes that they brought or will be answered
with, for this connection and for all together; past that its further requests wait and nothing more
is read. What it does not fetch of its answers stops them, and after a while the connection. A peer
that breaks the protocol is dropped without an answer: it is not one of ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final, Protocol, cast

from protocol.codec.errors import RemoteProtocolError
from protocol.wire.connection import WELCOME_ID, Connection, ReceivedMessage, Role, UnknownRequest
from protocol.wire.messages import Error, Message, Reply, Request
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.session import Enroll, Login
from sfsd.config import ConnectionLimits
from sfsd.errors import Refused
from sfsd.net.dispatch import Dispatcher, Principal
from sfsd.net.memory_budget import MAX_CONNECTION_BYTES, MemoryBudget, weight_of
from sfsd.net.write_queue import WriteQueue

MAX_UNDER_WAY: Final = 256
"""Requests of one connection that are worked on at once; a client's own window is smaller."""
MAX_UNSENT: Final = 4 * PIECE
"""Bytes of answers that wait for a peer to take them; past it no further answer is sent."""
MIN_TAKEN: Final = 64 * 1024
"""Bytes of them that a peer takes every `write_seconds`, or is cut off."""
MAX_BURST: Final = 16
"""Requests that came together and are worked on as one; others of the same connection go beside."""
_SHUTTING_DOWN: Final = Error("shutting-down", "the server is stopping; nothing was done")
_log = logging.getLogger(__name__)


class ConnectionObserver(Protocol):
    """What a session tells the server that made it."""

    def opened(self, session: ClientConnection) -> None:
        """A login succeeded."""

    def ended(self, session: ClientConnection) -> None:
        """The connection is gone: once, whatever ended it, if ever it was made."""

    def incident(self, kind: str) -> None:
        """The peer is cut off; `kind` says why in a few fixed words."""


class ClientConnection(asyncio.BufferedProtocol):
    """Made for each accepted connection; all methods run on the loop's thread.

    `user` is who logs in or has logged in, "" before; `principal` is set once he has.
    """

    def __init__(
        self,
        service: Dispatcher,
        limits: ConnectionLimits,
        address: str,
        *,
        deadline: float,
        budget: MemoryBudget,
        keeper: ConnectionObserver,
    ) -> None:
        """`address` is the peer's IP, `deadline` the loop's time by which login must be done."""
        self.user = ""
        self.principal: Principal | None = None
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._service = service
        self._limits = limits
        self._address = address
        self._deadline = deadline
        self._budget = budget
        self._keeper = keeper
        self._connection = Connection(Role.SERVER)
        self._waiting: deque[ReceivedMessage] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._weight = 0
        self._outgoing: WriteQueue | None = None
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
        self._outgoing = WriteQueue(self._transport)
        self._timer = self._loop.call_at(self._deadline, self._too_late)
        self._send(WELCOME_ID, self._service.welcome())
        self._outgoing.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._connection.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        try:
            received = self._connection.buffer_updated(nbytes)
        except RemoteProtocolError:
            self._cut_off("broke the protocol")
            return
        if received:
            self._last_request = self._loop.time()
            self._waiting.extend(received)
            self._start_waiting()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        if self._outgoing is not None:
            self._outgoing.pause()

    def resume_writing(self) -> None:
        if self._outgoing is not None:
            self._outgoing.resume()
            self._judge_unsent()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio names it
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._waiting.clear()
        if self._outgoing is not None:
            self._outgoing.drop()
        self._writable.set()  # what waits to write finds the transport closing, and ends
        if self.principal is not None:
            self._service.closed(self.principal)
        self._keeper.ended(self)
        self.closed.set_result(None)

    # The server's side.

    @property
    def connected(self) -> bool:
        """Whether the connection was made, and is or was one."""
        return self._transport is not None

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close the connection once what is in its buffer was sent; start nothing more."""
        if self._transport is not None and self._outgoing is not None:
            self._outgoing.finish()
            self._transport.close()

    async def drain(self, seconds: float) -> None:
        """Finish what is under way, refuse what comes now, and close. Twice does no harm."""
        self._draining = True
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        self.close()

    # Requests.

    def _start_waiting(self) -> None:
        """Begin as many of the waiting requests as there is room for; read on when none wait."""
        transport = self._transport
        if transport is None or transport.is_closing():
            self._waiting.clear()
            return
        burst, together = list[ReceivedMessage](), 0
        while self._waiting and self._has_room(weight := weight_of(self._waiting[0].message)):
            incoming = self._waiting.popleft()
            self._under_way += 1
            self._weight += weight
            self._budget.used += weight
            if not self._is_swift(incoming.message):
                self._begin([incoming], weight)
                continue
            burst.append(incoming)
            together += weight
            if len(burst) == MAX_BURST:
                self._begin(burst, together)
                burst, together = [], 0
        if burst:
            self._begin(burst, together)
        if self._waiting:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _has_room(self, weight: int) -> bool:
        if not self._under_way:
            return True  # so each connection always gets on, and wakes itself when it does
        return (
            self._writable.is_set()
            and self._under_way < MAX_UNDER_WAY
            and self._weight + weight <= MAX_CONNECTION_BYTES
            and self._budget.used + weight <= self._budget.limit
        )

    def _is_swift(self, message: Message) -> bool:
        return self.principal is not None and self._service.is_swift(cast(Request, message))

    def _begin(self, burst: list[ReceivedMessage], weight: int) -> None:
        task = self._loop.create_task(self._work(burst, weight))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def _work(self, burst: list[ReceivedMessage], weight: int) -> None:
        try:
            if len(burst) == 1:
                await self._answer(burst[0])
            else:
                await self._answer_all(burst)
        finally:
            self._under_way -= len(burst)
            self._weight -= weight
            self._budget.used -= weight

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            # A mistake of ours: it costs this connection, and the daemon goes on.
            _log.error("a request of %s failed", self._address, exc_info=exc)
            self.abort()
        self._start_waiting()

    async def _answer(self, incoming: ReceivedMessage) -> None:
        message = incoming.message
        if isinstance(message, Login | Enroll):
            await self._open(incoming.request_id, message)
            return
        if self._draining:
            reply: Reply = _SHUTTING_DOWN
        elif isinstance(message, UnknownRequest):
            reply = Error("unknown-request", "this server does not know that request")
        else:
            # The connection lets requests through only once a login was accepted.
            reply = await self._service.handle(
                cast(Principal, self.principal), cast(Request, message)
            )
        await self._reply(incoming.request_id, reply)

    async def _answer_all(self, burst: list[ReceivedMessage]) -> None:
        if self._draining:
            for incoming in burst:
                await self._reply(incoming.request_id, _SHUTTING_DOWN)
            return
        messages = [cast(Request, incoming.message) for incoming in burst]
        answers = self._service.handle_all(cast(Principal, self.principal), messages)
        async for place, reply in answers:
            if not self._writable.is_set():
                await self._until_writable()
            self._send(burst[place].request_id, reply)

    async def _reply(self, request_id: int, reply: Reply) -> None:
        await self._until_writable()
        self._send(request_id, reply)

    async def _until_writable(self) -> None:
        while not self._writable.is_set():  # it wakes all that wait, and one may fill the line
            await self._writable.wait()

    async def _open(self, request_id: int, message: Login | Enroll) -> None:
        if self._draining:
            self._refuse(request_id, Error("shutting-down", "the server is stopping"))
            return
        self.user = message.user  # from now on a disabled account closes this connection too
        try:
            principal, reply = await self._service.open(
                message, welcome_sha256=self._connection.welcome_sha256, address=self._address
            )
        except Refused as exc:
            self._refuse(request_id, Error(exc.code, exc.cause))
            return
        if self._transport is None or self._transport.is_closing():
            self._service.closed(principal)
            return
        self.principal = principal
        self._send(request_id, reply)
        if self._outgoing is not None:
            self._outgoing.flush()
        self._connection.established()
        self._watch_idle()
        self._keeper.opened(self)

    def _refuse(self, request_id: int, error: Error) -> None:
        self._send(request_id, error)
        self.close()

    def _send(self, request_id: int, reply: Reply) -> None:
        transport, outgoing = self._transport, self._outgoing
        if transport is None or outgoing is None or transport.is_closing():
            return
        outgoing.put(self._connection.respond(request_id, reply))
        self._judge_unsent()

    @property
    def unsent(self) -> int:
        """Bytes of answers that the peer has yet to take."""
        return 0 if self._outgoing is None else self._outgoing.size

    def _judge_unsent(self) -> None:
        """Stop answering at `MAX_UNSENT`, and go on once most of it was taken."""
        if self._writable.is_set():
            if self.unsent > MAX_UNSENT:
                self._writable.clear()
                self._watch_writing()
        elif self.unsent <= MAX_UNSENT // 4:
            self._writable.set()
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

    # Time.

    def _cut_off(self, why: str) -> None:
        self._keeper.incident(why)
        self.abort()

    def _too_late(self) -> None:
        if self.principal is None:
            self._cut_off("no login in time")

    def _watch_idle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now = self._loop.time()
        if self._tasks:
            self._last_request = now
        left = self._last_request + self._limits.idle_seconds - now
        # The login that opens the session is itself a task, so this is never at once.
        if left <= 0:
            self.close()
        else:
            self._timer = self._loop.call_later(left, self._watch_idle)

    def _watch_writing(self, unsent: int | None = None) -> None:
        """Cut off a peer that takes next to nothing of its answers."""
        transport = self._transport
        if transport is None or self._writable.is_set():
            return
        now_unsent = self.unsent
        if unsent is not None and now_unsent > unsent - MIN_TAKEN:
            self._cut_off("took no answers")
            return
        self._write_timer = self._loop.call_later(
            self._limits.write_seconds, self._watch_writing, now_unsent
        )
