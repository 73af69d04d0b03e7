"""One client connection: bytes of the loop ↔ `protocol.wire.connection` ↔ `Dispatcher`.

Everything that a peer makes the daemon hold is bounded. Before login: one frame of 16 KiB, and a
few seconds. After login: the number of running requests, and the bytes of them and their answers,
for this connection and for all together; above a limit, further requests wait and nothing more is
read. A peer that does not read its answers gets no more of them, and is disconnected after a while.
A peer that violates the protocol is disconnected without an answer.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from typing import Final, Protocol, cast

from protocol.codec.errors import RemoteProtocolError
from protocol.wire.connection import WELCOME_ID, Connection, ReceivedMessage, Role, UnknownRequest
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.session import Enroll, Login
from sfsd.errors import Refused
from sfsd.net.dispatch import Dispatcher
from sfsd.net.memory_budget import MAX_CONNECTION_BYTES, MemoryBudget, weight_of
from sfsd.net.read_turns import BULK, ReadTurns
from sfsd.net.user_rates import UserRate
from sfsd.net.write_queue import WriteQueue
from sfsd.rules.context import Principal
from sfsd.settings.config import ConnectionLimits

MAX_RUNNING: Final = 256
"""Running requests of one connection; a client's own window is smaller."""
MAX_UNSENT: Final = 4 * PIECE
"""Bytes of answers that wait for the peer; above this no further answer is sent."""
MIN_TAKEN: Final = 64 * 1024
"""Bytes that a peer must take every `write_seconds`, or it is disconnected."""
MAX_DECODED: Final = 4
"""Requests of a connection that one turn of the loop decodes and starts."""
_SHUTTING_DOWN: Final = Error("shutting-down", "the server is stopping; nothing was done")
_log = logging.getLogger(__name__)


class ConnectionObserver(Protocol):
    """Callbacks from a connection to the server that accepted it."""

    def logged_in(self, connection: ClientConnection, user: str) -> UserRate | None:
        """Called when the login of `user` was verified; return the limit on its rate, if any.

        Raises `Refused`: the user has too many connections, or all users have.
        """

    def closed(self, connection: ClientConnection) -> None:
        """Called once when the connection is gone, if it was ever made."""

    def incident(self, kind: str) -> None:
        """Called when the peer is disconnected; `kind` says why in a few fixed words."""


class ClientConnection(asyncio.BufferedProtocol):
    """Protocol of one accepted connection; all methods run on the loop's thread.

    `user` is the name of the login request, "" before it; `principal` is set once it is accepted.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        limits: ConnectionLimits,
        address: str,
        *,
        deadline: float,
        budget: MemoryBudget,
        turns: ReadTurns,
        observer: ConnectionObserver,
    ) -> None:
        """`address` is the peer's IP; login must be done by `deadline`, in the loop's time."""
        self.user = ""
        self.principal: Principal | None = None
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._dispatcher = dispatcher
        self._metrics = dispatcher.context.metrics
        self._identity = dispatcher.context.identity  # that of the TLS key of this connection
        self._limits = limits
        self.address = address
        self._deadline = deadline
        self._budget = budget
        self._turns = turns
        self._observer = observer
        self._connection = Connection(Role.SERVER)
        self._waiting: deque[ReceivedMessage] = deque()
        self._unread = False  # whether complete requests may be among the received bytes
        self._waits_for_turn = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = 0
        self._weight = 0
        self._queue: WriteQueue | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._draining = False
        self._aborted = False
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._rate: UserRate | None = None
        self._rate_timer: asyncio.TimerHandle | None = None
        self._last_request = self._loop.time()
        self._transport: asyncio.Transport | None = None

    # Called by the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._aborted:
            self._transport.abort()
            return
        self._queue = WriteQueue(self._transport)
        self._timer = self._loop.call_at(self._deadline, self._check_login)
        self._send(WELCOME_ID, self._dispatcher.welcome(self._identity))
        self._queue.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._connection.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self._metrics.received += nbytes
        if self._rate is not None:
            self._rate.take(size=nbytes, now=self._loop.time())
        self._receive(nbytes)
        who = self.principal
        if nbytes >= BULK and who is not None and self._turns.note_bulk(who.user, id(self)):
            self._wait_for_turn()
        if self._waiting:
            self._start_requests()

    def pause_writing(self) -> None:
        if self._queue is not None:
            self._queue.pause()

    def resume_writing(self) -> None:
        if self._queue is not None:
            self._queue.resume()
            self._check_unsent()

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ssl.SSLError):
            self._observer.incident("no TLS")
        for timer in (self._timer, self._write_timer, self._rate_timer):
            if timer is not None:
                timer.cancel()
        self._waiting.clear()
        self._unread = False
        if self._queue is not None:
            self._queue.drop()
        self._writable.set()  # waiting writers see that the transport is closing, and end
        if self.principal is not None:
            self._dispatcher.close_session(self.principal)
        self._observer.closed(self)
        self.closed.set_result(None)

    # Called by the server.

    @property
    def connected(self) -> bool:
        """Tell whether the connection was ever made."""
        return self._transport is not None

    def abort(self) -> None:
        """Close the connection now, or as soon as it is made, without sending what is queued."""
        self._aborted = True
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Start no more requests, and close the connection once its queue is sent."""
        if self._transport is not None and self._queue is not None:
            self._queue.finish()
            self._transport.close()

    def set_limits(self, limits: ConnectionLimits, rate: UserRate | None) -> None:
        """Apply new limits; `rate` is that of the user, if one has logged in."""
        self._limits = limits
        if self.principal is None:
            return
        self._rate = rate
        if self._rate_timer is not None:
            self._rate_timer.cancel()
            self._end_wait()
        if self._timer is not None:
            self._watch_idle()

    async def drain(self, seconds: float) -> None:
        """Finish running requests, refuse new ones, and close. Idempotent."""
        self._draining = True
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        self.close()

    # Requests.

    def _receive(self, nbytes: int) -> None:
        """Take received bytes, and at most `MAX_DECODED` requests of them or of earlier bytes."""
        try:
            received = self._connection.buffer_updated(nbytes, MAX_DECODED)
        except RemoteProtocolError:
            self._unread = False
            self._disconnect("broke the protocol")
            return
        self._unread = len(received) == MAX_DECODED
        if received:
            self._last_request = self._loop.time()
            self._waiting.extend(received)

    def _wait_for_turn(self) -> None:
        """Read no more until the next turn of the user: a peer that sends much must not keep others
        waiting, also not over many connections."""
        if not self._waits_for_turn and self._transport is not None:
            self._waits_for_turn = True
            self._transport.pause_reading()
            user = self.address if self.principal is None else self.principal.user
            self._turns.wait(user, self._receive_more)

    def _receive_more(self) -> None:
        self._waits_for_turn = False
        if not self._waiting:
            if self._unread:
                self._receive(0)
            self._start_requests()

    def _start_requests(self) -> None:
        """Start waiting requests as far as the limits allow; read more only if none is left."""
        transport = self._transport
        if transport is None or transport.is_closing():
            self._waiting.clear()
            self._unread = False
            return
        while (
            self._waiting
            and self._has_room(weight := weight_of(self._waiting[0].message))
            and self._is_within_rate()
        ):
            incoming = self._waiting.popleft()
            self._running += 1
            self._weight += weight
            self._budget.used += weight
            task = self._loop.create_task(self._work(incoming, weight))
            self._tasks.add(task)
            task.add_done_callback(self._done)
        if self._unread and not self._waiting:
            self._wait_for_turn()
        if self._waiting or self._waits_for_turn:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _has_room(self, weight: int) -> bool:
        if not self._running:
            return True  # each connection always makes progress, and continues itself after it
        return (
            self._writable.is_set()
            and self._running < MAX_RUNNING
            and self._weight + weight <= MAX_CONNECTION_BYTES
            and self._budget.used + weight <= self._budget.limit
        )

    def _is_within_rate(self) -> bool:
        """Count a request that starts. If its user has had too many, return False, and start it
        later."""
        if self._rate is None or self._draining:
            return True
        now = self._loop.time()
        seconds = self._rate.wait(now)
        if seconds == 0:
            self._rate.take(requests=1, now=now)
            return True
        if self._rate_timer is None:
            self._rate_timer = self._loop.call_later(seconds, self._end_wait)
        return False

    def _end_wait(self) -> None:
        self._rate_timer = None
        self._start_requests()

    async def _work(self, incoming: ReceivedMessage, weight: int) -> None:
        try:
            await self._answer(incoming)
        finally:
            self._running -= 1
            self._weight -= weight
            self._budget.used -= weight

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            # A bug: only this connection is closed, and the daemon goes on.
            _log.error("a request of %s failed", self.address, exc_info=exc)
            self.abort()
        self._start_requests()

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
            # The protocol accepts requests only after a login.
            began = self._loop.time()
            reply = await self._dispatcher.handle(
                cast(Principal, self.principal), cast(Request, message)
            )
            self._metrics.count_request(type(message).__name__, self._loop.time() - began)
        while not self._writable.is_set():  # again, because another waiter may fill the queue
            await self._writable.wait()
        self._send(incoming.request_id, reply)

    async def _open(self, request_id: int, message: Login | Enroll) -> None:
        if self._draining:
            self._refuse(request_id, _SHUTTING_DOWN)
            return
        began = self._loop.time()
        self.user = message.user  # from now on, disabling the account closes this connection
        try:
            principal, reply = await self._dispatcher.open_session(
                message,
                welcome_sha256=self._connection.welcome_sha256,
                address=self.address,
                identity=self._identity,
            )
        except Refused as exc:
            self._refuse(request_id, Error(exc.code, exc.cause))
            return
        finally:
            self._metrics.count_request(type(message).__name__, self._loop.time() - began)
        if self._transport is None or self._transport.is_closing():
            self._dispatcher.close_session(principal)
            return
        try:
            self._rate = self._observer.logged_in(self, principal.user)
        except Refused as exc:
            self._dispatcher.close_session(principal)
            self._refuse(request_id, Error(exc.code, exc.cause))
            return
        self.principal = principal
        self._send(request_id, reply)
        if self._queue is not None:
            self._queue.flush()
        self._connection.established()
        self._watch_idle()

    def _refuse(self, request_id: int, error: Error) -> None:
        self._send(request_id, error)
        self.close()

    def _send(self, request_id: int, reply: Reply) -> None:
        transport, queue = self._transport, self._queue
        if transport is None or queue is None or transport.is_closing():
            return
        frame = self._connection.respond(request_id, reply)
        size = sum(map(len, frame))
        self._metrics.sent += size
        if self._rate is not None:
            self._rate.take(size=size, now=self._loop.time())
        queue.put(frame)
        self._check_unsent()

    @property
    def unsent(self) -> int:
        """Bytes of answers that the peer has not taken yet."""
        return 0 if self._queue is None else self._queue.size

    def _check_unsent(self) -> None:
        """Stop answering above `MAX_UNSENT` bytes; go on below a quarter of it."""
        if self._writable.is_set():
            if self.unsent > MAX_UNSENT:
                self._writable.clear()
                self._watch_writing()
        elif self.unsent <= MAX_UNSENT // 4:
            self._writable.set()
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

    # Timeouts.

    def _disconnect(self, why: str) -> None:
        self._observer.incident(why)
        self.abort()

    def _check_login(self) -> None:
        if self.principal is None:
            self._disconnect("no login in time")

    def _watch_idle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now = self._loop.time()
        if self._tasks or self._waiting:
            self._last_request = now
        left = self._last_request + self._limits.idle_seconds - now
        # The login itself is a running task, so this is never true right after it.
        if left <= 0:
            self.close()
        else:
            self._timer = self._loop.call_later(left, self._watch_idle)

    def _watch_writing(self, unsent: int | None = None) -> None:
        """Disconnect a peer that took less than `MIN_TAKEN` bytes since the last check."""
        transport = self._transport
        if transport is None or self._writable.is_set():
            return
        now_unsent = self.unsent
        if unsent is not None and now_unsent > unsent - MIN_TAKEN:
            self._disconnect("took no answers")
            return
        self._write_timer = self._loop.call_later(
            self._limits.write_seconds, self._watch_writing, now_unsent
        )
