"""One connection on a transport in memory, with the real dispatcher, protocol and limits."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import Counter
from collections.abc import Callable
from typing import cast

import pytest

from protocol.codec.encoding import pack
from protocol.wire.connection import Connection, Role
from protocol.wire.messages import Error, Message, Reply, Request, encode
from protocol.wire.messages.accounts import Status, StatusAnswer
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.changes import Commit
from protocol.wire.messages.downloads import Bytes, Read
from protocol.wire.messages.files import Stat
from protocol.wire.messages.session import Ping, Pong, Welcome
from protocol.wire.messages.session import Session as OpenedVersion
from protocol.wire.messages.uploads import Data
from sfsd.errors import Refused
from sfsd.net.connection import MAX_DECODED, MAX_RUNNING, MAX_UNSENT, ClientConnection
from sfsd.net.dispatch import Dispatcher
from sfsd.net.memory_budget import MAX_CONNECTION_BYTES, MemoryBudget
from sfsd.net.read_turns import BULK, ReadTurns
from sfsd.net.user_rates import UserRate
from sfsd.net.write_queue import CHUNK
from sfsd.rules.context import Principal
from sfsd.settings.config import ConnectionLimits
from tests.opens import open_one
from tests.sfsd.builders import ADDRESS, OPERATOR_KEY, Daemon, login

LIMITS = ConnectionLimits()
HANDLE = bytes(16)
SECONDS = 20


class MemoryTransport(asyncio.Transport):
    """Transport in memory, in place of a socket.

    Written bytes are `unsent` until the peer takes them. As a real transport does, it closes only
    once all were taken, and then calls `connection_lost` once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.BufferedProtocol | None = None
        self.unsent = bytearray()
        self.reading = True
        self.aborted = False
        self.high = 64 * 1024
        self.most_unsent = 0
        self.changed = asyncio.Event()
        self._closing = False
        self._lost = False
        self._paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._closing
        self.unsent += data
        self.most_unsent = max(self.most_unsent, len(self.unsent))
        if len(self.unsent) > self.high and not self._paused:
            self._paused = True
            self._protocol.pause_writing()
        self.changed.set()

    def take(self, count: int | None = None) -> bytes:
        """Return up to `count` unsent bytes, as received by the peer."""
        taken = bytes(self.unsent[:count])
        del self.unsent[:count]
        if self._paused and len(self.unsent) <= self.high // 4 and not self._lost:
            self._paused = False
            self._protocol.resume_writing()
        self._end_if_done()
        return taken

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        self.high = high

    def get_write_buffer_size(self) -> int:
        return len(self.unsent)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        self.changed.set()

    def is_reading(self) -> bool:
        return self.reading

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True
        self._end_if_done()

    def abort(self) -> None:
        self.aborted = True
        self.unsent.clear()
        self.close()

    @property
    def _protocol(self) -> asyncio.BufferedProtocol:
        assert self.protocol is not None
        return self.protocol

    def _end_if_done(self) -> None:
        if self._closing and not self.unsent and not self._lost:
            self._lost = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)
            self.changed.set()


class Observer:
    """Records the callbacks of a connection."""

    def __init__(self, rate: UserRate | None = None) -> None:
        self.incidents: list[str] = []
        self.calls: Counter[str] = Counter()
        self.rate = rate
        self.refusal: Refused | None = None

    def logged_in(self, connection: ClientConnection, user: str) -> UserRate | None:
        self.calls["logged_in"] += 1
        if self.refusal is not None:
            raise self.refusal
        return self.rate

    def closed(self, connection: ClientConnection) -> None:
        self.calls["closed"] += 1

    def incident(self, kind: str) -> None:
        self.incidents.append(kind)


class Peer:
    """Client's end: a real client protocol on the transport of one connection."""

    def __init__(
        self,
        service: Dispatcher,
        limits: ConnectionLimits = LIMITS,
        *,
        budget: MemoryBudget | None = None,
        turns: ReadTurns | None = None,
        login_within: float = SECONDS,
        rate: UserRate | None = None,
    ) -> None:
        self.observer = Observer(rate)
        self.transport = MemoryTransport()
        self.server = ClientConnection(
            service,
            limits,
            ADDRESS,
            deadline=asyncio.get_running_loop().time() + login_within,
            budget=budget or MemoryBudget(),
            turns=turns or ReadTurns(),
            observer=self.observer,
        )
        self.transport.protocol = self.server
        self.server.connection_made(self.transport)
        self.connection = Connection(Role.CLIENT)
        self.replies: dict[int, Message] = {}
        self._unread = b""

    def push(self, data: bytes, *, step: int | None = None) -> None:
        """Deliver bytes, `step` at a time, as far as the server reads; keep the rest."""
        self._unread += data
        while self._unread and self.transport.reading and not self.transport.is_closing():
            buffer = self.server.get_buffer(-1)
            count = min(len(buffer), len(self._unread), step or len(self._unread))
            assert count > 0
            buffer[:count] = self._unread[:count]
            self._unread = self._unread[count:]
            self.server.buffer_updated(count)

    def ask(self, message: Request) -> int:
        request_id, pieces = self.connection.request(message)
        self.push(b"".join(pieces))
        return request_id

    def take(self, count: int | None = None) -> None:
        """Receive replies, then deliver the rest of the requests."""
        data = self.transport.take(count)
        while data:
            buffer = self.connection.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            data = data[size:]
            for incoming in self.connection.buffer_updated(size):
                self.replies[incoming.request_id] = incoming.message
        self.push(b"")

    async def until(self, holds: Callable[[], object], *, taking: bool = True) -> None:
        async with asyncio.timeout(SECONDS):
            while True:
                if taking:
                    self.take()
                if holds():
                    return
                self.transport.changed.clear()
                # Some conditions change without any event of the transport.
                await asyncio.wait(
                    [asyncio.create_task(self.transport.changed.wait())], timeout=0.01
                )

    async def answer(self, request_id: int) -> Message:
        await self.until(lambda: request_id in self.replies)
        return self.replies[request_id]

    async def log_in(self) -> Message:
        self.take()
        return await self.answer(self.ask(self.login()))

    def login(self) -> Request:
        return login("operator", OPERATOR_KEY, welcome=self.connection.welcome_sha256)

    async def gone(self) -> None:
        async with asyncio.timeout(SECONDS):
            await self.server.closed
        assert self.observer.calls["closed"] == 1


class HoldingDispatcher(Dispatcher):
    """Dispatcher that holds every request until `release` is set, and counts running ones."""

    def __init__(self, service: Dispatcher) -> None:
        super().__init__(service.context)
        self.release = asyncio.Event()
        self.running = self.most = self.started = 0

    async def handle(self, who: Principal, message: Request) -> Reply:
        self.running += 1
        self.started += 1
        self.most = max(self.most, self.running)
        await self.release.wait()
        self.running -= 1
        return await super().handle(who, message)


class BulkDispatcher(Dispatcher):
    """Dispatcher that answers every Read with as many bytes as requested."""

    async def handle(self, who: Principal, message: Request) -> Reply:
        return Bytes(bytes(cast(Read, message).length))


class FailingDispatcher(Dispatcher):
    async def handle(self, who: Principal, message: Request) -> Reply:
        raise ZeroDivisionError


def test_server_sends_a_welcome_and_answers_after_login(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(served.dispatcher)
        peer.take()
        assert isinstance(peer.replies[0], Welcome)
        assert isinstance(await peer.log_in(), OpenedVersion)
        assert peer.server.user == "operator"
        assert isinstance(await peer.answer(peer.ask(Status())), StatusAnswer)
        assert peer.observer.calls == Counter(logged_in=1)
        peer.transport.close()
        await peer.gone()
        assert peer.observer.incidents == []

    served.run(run())


def test_bytes_may_arrive_one_at_a_time(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(served.dispatcher)
        peer.take()
        request_id, pieces = peer.connection.request(peer.login())
        peer.push(b"".join(pieces), step=1)
        assert isinstance(await peer.answer(request_id), OpenedVersion)
        request_id, pieces = peer.connection.request(Ping())
        peer.push(b"".join(pieces), step=1)
        assert isinstance(await peer.answer(request_id), Pong)
        peer.transport.close()
        await peer.gone()

    served.run(run())


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: files.example\r\n\r\n",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        struct.pack(">I", 16 * 1024 + 1),
        framed(b"\xc1"),
        framed(pack([17, 1])),
        framed(pack({"type": 17})),
        framed(pack([21, 1])),
        framed(pack([16, 0, [1], b"", bytes(64), bytes(32), [1, 1, 1, 1]])),
        framed(pack([999, 1])),
        framed(pack([17, 0, 1, "operator", 1, 0, bytes(64)])),
    ],
)
def test_protocol_violation_disconnects_without_an_answer(served: Daemon, data: bytes) -> None:
    async def run() -> None:
        peer = Peer(served.dispatcher)
        peer.take()
        peer.push(data)
        await peer.gone()
        assert peer.transport.aborted
        assert peer.observer.incidents == ["broke the protocol"]
        assert peer.transport.take() == b""
        assert list(peer.replies) == [0]

    served.run(run())


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\x01\0half a frame"])
def test_login_timeout(served: Daemon, data: bytes) -> None:
    async def run() -> None:
        peer = Peer(served.dispatcher, login_within=0.05)
        peer.push(data)
        await peer.gone()
        assert peer.observer.incidents == ["no login in time"]

    served.run(run())


def test_refused_login_is_answered_and_closed(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(served.dispatcher)
        peer.take()
        reply = await peer.answer(peer.ask(login("operator", OPERATOR_KEY, welcome=bytes(32))))
        assert isinstance(reply, Error)
        assert reply.code == "refused"
        await peer.gone()
        assert peer.observer.calls["logged_in"] == 0
        assert peer.server.principal is None

    served.run(run())


def test_unknown_request_is_answered_and_the_session_goes_on(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(served.dispatcher)
        await peer.log_in()
        # A client connection cannot send this, so the test looks at the raw reply.
        peer.push(framed(pack([999, 77])))
        await peer.until(lambda: peer.transport.unsent, taking=False)
        assert b"unknown-request" in peer.transport.take()
        assert isinstance(await peer.answer(peer.ask(Ping())), Pong)
        peer.transport.close()
        await peer.gone()

    served.run(run())


def test_number_of_running_requests_is_limited(served: Daemon) -> None:
    async def run() -> None:
        service = HoldingDispatcher(served.dispatcher)
        peer = Peer(service)
        await peer.log_in()
        asked = [peer.ask(Ping()) for _ in range(500)]
        await peer.until(lambda: service.running == MAX_RUNNING)
        assert not peer.transport.is_reading()
        service.release.set()
        await peer.until(lambda: len(peer.replies) == 2 + len(asked))
        assert {type(peer.replies[request_id]) for request_id in asked} == {Pong}
        assert service.most == MAX_RUNNING
        assert peer.transport.is_reading()
        peer.transport.close()
        await peer.gone()
        await service.close()

    served.run(run())


def test_requests_that_arrive_together_start_over_several_turns_of_the_loop(served: Daemon) -> None:
    """Else the requests of others would wait until all of them are decoded."""

    async def run() -> None:
        service = HoldingDispatcher(served.dispatcher)
        peer = Peer(service)
        await peer.log_in()
        frames = [peer.connection.request(Ping())[1] for _ in range(200)]
        peer.push(b"".join(piece for frame in frames for piece in frame))
        for turn in range(1, 5):
            await asyncio.sleep(0)
            assert service.started <= turn * MAX_DECODED
            assert not peer.transport.is_reading()
        await peer.until(lambda: service.started == 200)
        assert peer.transport.is_reading()
        service.release.set()
        await peer.until(lambda: len(peer.replies) == 2 + 200)
        peer.transport.close()
        await peer.gone()
        await service.close()

    served.run(run())


def test_connections_of_one_user_take_turns_to_receive_bulk(served: Daemon) -> None:
    """Else many connections of one user take as many times the turn of the loop."""

    async def run() -> None:
        turns = ReadTurns()
        one, two = (Peer(served.dispatcher, turns=turns) for _ in range(2))
        part = bytes(BULK)
        for peer in (one, two):
            await peer.log_in()
            _, pieces = peer.connection.request(Data(bytes(16), 0, bytes(PIECE)))
            peer.push(b"".join(pieces)[:BULK])  # the rest is pushed below
        await two.until(two.transport.is_reading)
        for _ in range(2):  # a connection alone never waits
            two.push(part)
            assert two.transport.is_reading()
        one.push(part)
        two.push(part)
        assert not one.transport.is_reading()
        assert not two.transport.is_reading()
        await asyncio.sleep(0)
        assert [peer.transport.is_reading() for peer in (one, two)] == [True, False]
        await asyncio.sleep(0)
        assert two.transport.is_reading()
        for peer in (one, two):
            peer.transport.close()
            await peer.gone()

    served.run(run())


def test_a_violation_behind_many_requests_disconnects(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(served.dispatcher)
        await peer.log_in()
        frames = [peer.connection.request(Ping())[1] for _ in range(3 * MAX_DECODED)]
        valid = b"".join(piece for frame in frames for piece in frame)
        peer.push(valid + framed(b"\xc1") + valid)
        await peer.gone()
        assert peer.observer.incidents == ["broke the protocol"]

    served.run(run())


@pytest.mark.parametrize(
    ("message", "weight"),
    [
        (Read(HANDLE, 0, PIECE), PIECE),
        (Data(HANDLE, 0, bytes(PIECE)), PIECE),
        (open_one("ada", "0" * 32, 0), PIECE),
        (Commit((), (), bytes(64), (), (), False, bytes(240 * 1024)), 256 * 1024),
    ],
)
def test_weight_of_running_requests_is_limited(
    served: Daemon, message: Request, weight: int
) -> None:
    most = min(MAX_RUNNING, MAX_CONNECTION_BYTES // weight)

    async def run() -> None:
        service = HoldingDispatcher(served.dispatcher)
        budget = MemoryBudget()
        peer = Peer(service, budget=budget)
        await peer.log_in()
        asked = [peer.ask(message) for _ in range(most + 5)]
        await peer.until(lambda: service.running == most)
        assert budget.used == most * weight
        service.release.set()
        await peer.until(lambda: len(peer.replies) == 2 + len(asked))
        assert service.most == most
        await peer.until(lambda: budget.used == 0)
        peer.transport.close()
        await peer.gone()
        await service.close()

    served.run(run())


def test_exhausted_budget_slows_connections_and_stops_none(served: Daemon) -> None:
    async def run() -> None:
        greedy, service = HoldingDispatcher(served.dispatcher), HoldingDispatcher(served.dispatcher)
        budget = MemoryBudget(limit=8 * PIECE)
        one, two = Peer(greedy, budget=budget), Peer(service, budget=budget)
        await one.log_in()
        await two.log_in()
        for _ in range(20):
            one.ask(Read(HANDLE, 0, PIECE))
        await one.until(lambda: greedy.running == 8)
        service.release.set()
        asked = [two.ask(Read(HANDLE, 0, PIECE)) for _ in range(10)]
        await two.until(lambda: len(two.replies) == 2 + len(asked))
        assert service.most == 1
        greedy.release.set()
        await one.until(lambda: budget.used == 0 and len(one.replies) == 22)
        for peer in (one, two):
            peer.transport.close()
            await peer.gone()
        await greedy.close()
        await service.close()

    served.run(run())


def test_each_request_that_arrives_with_others_is_answered(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(served.dispatcher)
        await peer.log_in()
        asked: dict[int, type[Reply]] = {}
        data = b""
        for count, message, kind in (
            (MAX_DECODED + 3, Ping(), Pong),
            (1, Status(), StatusAnswer),
            (1, Read(HANDLE, 0, 1), Error),  # not for an operator
            (1, Stat("ada", "0" * 32, 0), Error),
        ):
            for _ in range(count):
                request_id, pieces = peer.connection.request(message)
                asked[request_id] = kind
                data += b"".join(pieces)
        peer.push(data)
        await peer.until(lambda: len(peer.replies) == 2 + len(asked))
        assert {one: type(peer.replies[one]) for one in asked} == asked
        peer.transport.close()
        await peer.gone()

    served.run(run())


def test_bug_in_a_batch_closes_the_connection(served: Daemon) -> None:
    async def run() -> None:
        service = FailingDispatcher(served.dispatcher.context)
        peer = Peer(service)
        await peer.log_in()
        pings = [b"".join(peer.connection.request(Ping())[1]) for _ in range(2)]
        peer.push(b"".join(pings))
        await peer.gone()
        await service.close()
        assert peer.transport.aborted

    served.run(run())


SLOW = ConnectionLimits(write_seconds=1)


def test_peer_that_reads_nothing_is_disconnected(served: Daemon) -> None:
    async def run() -> None:
        service = BulkDispatcher(served.dispatcher.context)
        budget = MemoryBudget()
        peer = Peer(service, SLOW, budget=budget)
        await peer.log_in()
        for _ in range(40):
            peer.ask(Read(HANDLE, 0, PIECE))
        await peer.until(lambda: peer.server.unsent > MAX_UNSENT, taking=False)
        assert peer.server.unsent <= MAX_UNSENT + PIECE + 64 * 1024
        assert not peer.transport.is_reading()
        await peer.gone()
        assert peer.observer.incidents == ["took no answers"]
        assert peer.transport.most_unsent <= 2 * CHUNK
        await peer.until(lambda: budget.used == 0, taking=False)
        await service.close()

    served.run(run())


def test_peer_that_reads_too_little_is_disconnected(served: Daemon) -> None:
    async def run() -> None:
        service = BulkDispatcher(served.dispatcher.context)
        peer = Peer(service, SLOW)
        await peer.log_in()
        for _ in range(10):
            peer.ask(Read(HANDLE, 0, PIECE))
        while not peer.transport.is_closing():
            peer.transport.take(10)
            await asyncio.sleep(0.05)
        await peer.gone()
        assert peer.observer.incidents == ["took no answers"]
        await service.close()

    served.run(run())


def test_slow_peer_is_served(served: Daemon) -> None:
    async def run() -> None:
        service = BulkDispatcher(served.dispatcher.context)
        peer = Peer(service, SLOW)
        await peer.log_in()
        asked = [peer.ask(Read(HANDLE, 0, PIECE)) for _ in range(12)]
        most = 0
        while len(peer.replies) < 2 + len(asked):
            peer.take(300 * 1024)
            most = max(most, peer.server.unsent)
            await asyncio.sleep(0.05)
        assert MAX_UNSENT < most <= MAX_UNSENT + PIECE + 64 * 1024
        assert peer.observer.incidents == []
        assert peer.transport.most_unsent <= 2 * CHUNK
        peer.transport.close()
        await peer.gone()
        await service.close()

    served.run(run())


def test_bug_is_logged_and_closes_one_connection(
    served: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        service = FailingDispatcher(served.dispatcher.context)
        peer, other = Peer(service), Peer(served.dispatcher)
        await peer.log_in()
        await other.log_in()
        peer.ask(Ping())
        await peer.gone()
        assert peer.transport.aborted
        assert isinstance(await other.answer(other.ask(Ping())), Pong)
        other.transport.close()
        await other.gone()
        await service.close()

    with caplog.at_level(logging.ERROR):
        served.run(run())
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [
        ZeroDivisionError
    ]


def test_idle_session_is_closed_and_a_busy_one_is_not(served: Daemon) -> None:
    async def run() -> None:
        service = HoldingDispatcher(served.dispatcher)
        idle, working = (Peer(service, ConnectionLimits(idle_seconds=1)) for _ in range(2))
        await idle.log_in()
        await working.log_in()
        asked = working.ask(Ping())
        await idle.gone()
        await asyncio.sleep(0.3)
        assert not working.transport.is_closing()
        service.release.set()
        assert isinstance(await working.answer(asked), Pong)
        await working.gone()
        assert idle.observer.incidents == working.observer.incidents == []
        await service.close()

    served.run(run())


def test_drain_finishes_running_requests_and_refuses_new_ones(served: Daemon) -> None:
    async def run() -> None:
        service = HoldingDispatcher(served.dispatcher)
        peer = Peer(service)
        await peer.log_in()
        before = peer.ask(Ping())
        await peer.until(lambda: service.running == 1)
        draining = [asyncio.create_task(peer.server.drain(SECONDS)) for _ in range(2)]
        await asyncio.sleep(0)
        after = await peer.answer(peer.ask(Ping()))
        assert isinstance(after, Error)
        assert after.code == "shutting-down"
        service.release.set()
        assert isinstance(await peer.answer(before), Pong)
        await asyncio.gather(*draining)
        await peer.gone()
        assert not peer.transport.aborted
        await peer.server.drain(SECONDS)
        await service.close()

    served.run(run())


def test_drain_times_out(served: Daemon) -> None:
    async def run() -> None:
        service = HoldingDispatcher(served.dispatcher)
        peer = Peer(service)
        await peer.log_in()
        peer.ask(Ping())
        await peer.until(lambda: service.running == 1)
        await peer.server.drain(0.05)
        await peer.gone()
        service.release.set()
        await peer.until(lambda: service.running == 0)
        await service.close()

    served.run(run())


def test_drain_refuses_logins(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(served.dispatcher)
        draining = asyncio.create_task(peer.server.drain(SECONDS))
        peer.take()
        peer.transport.reading = True
        login_id = peer.ask(peer.login())
        await draining
        peer.take()
        reply = peer.replies.get(login_id)
        assert reply is None or (isinstance(reply, Error) and reply.code == "shutting-down")
        await peer.gone()
        assert peer.server.principal is None

    served.run(run())


def test_requests_over_the_rate_wait_and_nothing_more_is_read(served: Daemon) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        rate = UserRate(ConnectionLimits(user_requests_per_second=20), loop.time())
        peers = [Peer(served.dispatcher, rate=rate) for _ in range(2)]
        for peer in peers:
            await peer.log_in()
        began = loop.time()
        asked = [[peer.ask(Ping()) for _ in range(20)] for peer in peers]
        await peers[0].until(lambda: not peers[1].transport.is_reading())
        for peer, ids in zip(peers, asked, strict=True):
            for request_id in ids:
                assert isinstance(await peer.answer(request_id), Pong)
        assert loop.time() - began >= 0.9, "40 requests of one user, of which 20 were saved"
        await peers[0].until(lambda: all(peer.transport.is_reading() for peer in peers))
        for peer in peers:
            peer.transport.close()
            await peer.gone()

    served.run(run())


class CountedRate(UserRate):
    """Rate that also sums the bytes that it was told of."""

    size = 0

    def take(self, *, requests: int = 0, size: int = 0, now: float) -> None:
        super().take(requests=requests, size=size, now=now)
        self.size += size


def test_received_and_sent_bytes_count_for_the_rate(served: Daemon) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        rate = CountedRate(ConnectionLimits(user_bytes_per_second=2 * PIECE), loop.time())
        peer = Peer(served.dispatcher, rate=rate)
        await peer.log_in()
        began, opened = loop.time(), rate.size
        sent = received = 0
        for message in (*(Data(bytes(16), 0, bytes(PIECE)) for _ in range(4)), Status()):
            request_id, pieces = peer.connection.request(message)
            peer.push(b"".join(pieces))
            sent += sum(map(len, pieces))
            reply = await peer.answer(request_id)
            received += len(b"".join(encode(request_id, reply))) + 4
        assert rate.size - opened == sent + received
        assert loop.time() - began >= 0.9, "4 MiB at 2 MiB/s, of which 2 MiB were saved"
        peer.transport.close()
        await peer.gone()

    served.run(run())


def test_a_connection_that_waits_for_its_rate_is_not_idle(served: Daemon) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        rate = UserRate(ConnectionLimits(user_requests_per_second=1), loop.time())
        rate.take(requests=2, now=loop.time())
        peer = Peer(served.dispatcher, ConnectionLimits(idle_seconds=1), rate=rate)
        await peer.log_in()
        rate.take(requests=1, now=loop.time())
        assert isinstance(await peer.answer(peer.ask(Ping())), Pong)
        peer.transport.close()
        await peer.gone()

    served.run(run())


def test_verified_login_may_still_be_refused(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(served.dispatcher)
        peer.observer.refusal = Refused("busy", "too many connections")
        reply = await peer.log_in()
        assert isinstance(reply, Error)
        assert (reply.code, reply.text) == ("busy", "too many connections")
        await peer.gone()
        assert peer.server.principal is None

    served.run(run())


def test_connection_aborted_before_it_is_made(served: Daemon) -> None:
    async def run() -> None:
        observer, transport = Observer(), MemoryTransport()
        deadline = asyncio.get_running_loop().time() + SECONDS
        server = ClientConnection(
            served.dispatcher,
            LIMITS,
            ADDRESS,
            deadline=deadline,
            budget=MemoryBudget(),
            turns=ReadTurns(),
            observer=observer,
        )
        server.abort()
        assert not observer.calls
        transport.protocol = server
        server.connection_made(transport)
        assert transport.aborted
        assert not transport.unsent
        await server.closed
        assert observer.calls == Counter(closed=1)

    served.run(run())


def test_close_starts_no_more_requests(served: Daemon) -> None:
    async def run() -> None:
        service = HoldingDispatcher(served.dispatcher)
        peer = Peer(service)
        await peer.log_in()
        for _ in range(500):
            peer.ask(Ping())
        await peer.until(lambda: service.running == MAX_RUNNING)
        peer.server.close()
        service.release.set()
        await peer.gone()
        await peer.until(lambda: service.running == 0)
        assert service.started == MAX_RUNNING
        await service.close()

    served.run(run())


def test_connection_lost_during_login(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(served.dispatcher)
        peer.take()
        peer.ask(peer.login())
        assert peer.server.user == "", "the task has not begun"
        await asyncio.sleep(0)
        assert peer.server.user == "operator", (
            "disabling the account closes this connection from now on"
        )
        peer.transport.abort()
        await peer.gone()
        await peer.until(lambda: served.entries("login"), taking=False)
        await asyncio.sleep(0.05)
        assert peer.server.principal is None
        assert peer.observer.calls == Counter(closed=1)

    served.run(run())
