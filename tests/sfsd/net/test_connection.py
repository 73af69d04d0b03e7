"""One connection over a transport in memory: real service, real protocol, every bound of ours."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import pytest

from protocol.codec.encoding import pack
from protocol.wire.connection import Connection, Role
from protocol.wire.messages import Error, Message, Reply, Request
from protocol.wire.messages.accounts import Status, StatusAnswer
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.downloads import Bytes, GetOpen, Read
from protocol.wire.messages.files import Stat
from protocol.wire.messages.session import Ping, Pong, Welcome
from protocol.wire.messages.session import Session as Opened
from protocol.wire.messages.uploads import Data, PutSmall
from sfsd.config import ConnectionLimits
from sfsd.net.connection import MAX_BURST, MAX_UNDER_WAY, MAX_UNSENT, ClientConnection
from sfsd.net.dispatch import Dispatcher, Principal
from sfsd.net.memory_budget import MAX_CONNECTION_BYTES, MemoryBudget
from sfsd.net.write_queue import CHUNK
from tests.sfsd.builders import ADDRESS, OPERATOR_KEY, Daemon, login

LIMITS = ConnectionLimits()
HANDLE = bytes(16)
SECONDS = 20


class Line(asyncio.Transport):
    """What a session has instead of a socket. What it writes is `unsent` until the peer takes it;
    like a real one it closes only once all was taken, and then tells the session, once."""

    def __init__(self) -> None:
        super().__init__()
        self.session: asyncio.BufferedProtocol | None = None
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
            self._session.pause_writing()
        self.changed.set()

    def take(self, count: int | None = None) -> bytes:
        """The peer receives up to `count` bytes."""
        taken = bytes(self.unsent[:count])
        del self.unsent[:count]
        if self._paused and len(self.unsent) <= self.high // 4 and not self._lost:
            self._paused = False
            self._session.resume_writing()
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
    def _session(self) -> asyncio.BufferedProtocol:
        assert self.session is not None
        return self.session

    def _end_if_done(self) -> None:
        if self._closing and not self.unsent and not self._lost:
            self._lost = True
            asyncio.get_running_loop().call_soon(self._session.connection_lost, None)
            self.changed.set()


class Keeper:
    """Notes what a session tells its server."""

    def __init__(self) -> None:
        self.incidents: list[str] = []
        self.told: Counter[str] = Counter()

    def opened(self, session: ClientConnection) -> None:
        self.told["opened"] += 1

    def ended(self, session: ClientConnection) -> None:
        self.told["ended"] += 1

    def incident(self, kind: str) -> None:
        self.incidents.append(kind)


class Peer:
    """The client's end: a real client connection on the line of one session."""

    def __init__(
        self,
        service: Dispatcher,
        limits: ConnectionLimits = LIMITS,
        *,
        budget: MemoryBudget | None = None,
        login_within: float = SECONDS,
    ) -> None:
        self.keeper = Keeper()
        self.line = Line()
        self.session = ClientConnection(
            service,
            limits,
            ADDRESS,
            deadline=asyncio.get_running_loop().time() + login_within,
            budget=budget or MemoryBudget(),
            keeper=self.keeper,
        )
        self.line.session = self.session
        self.session.connection_made(self.line)
        self.connection = Connection(Role.CLIENT)
        self.replies: dict[int, Message] = {}
        self._unread = b""

    def push(self, data: bytes, *, step: int | None = None) -> None:
        """Bytes arrive as far as the session reads, `step` at a time; the rest is kept back."""
        self._unread += data
        while self._unread and self.line.reading and not self.line.is_closing():
            buffer = self.session.get_buffer(-1)
            count = min(len(buffer), len(self._unread), step or len(self._unread))
            assert count > 0
            buffer[:count] = self._unread[:count]
            self._unread = self._unread[count:]
            self.session.buffer_updated(count)

    def ask(self, message: Request) -> int:
        request_id, pieces = self.connection.request(message)
        self.push(b"".join(pieces))
        return request_id

    def take(self, count: int | None = None) -> None:
        """Receive what was answered, and let the rest of what was asked arrive."""
        data = self.line.take(count)
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
                self.line.changed.clear()
                # Some conditions are ours alone, and change without a word on the line.
                await asyncio.wait([asyncio.create_task(self.line.changed.wait())], timeout=0.01)

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
            await self.session.closed
        assert self.keeper.told["ended"] == 1


class Held(Dispatcher):
    """Holds every request until `release` is set, and counts those under way."""

    def __init__(self, service: Dispatcher) -> None:
        super().__init__(service.world)
        self.release = asyncio.Event()
        self.under_way = self.most = self.started = 0
        self.bursts: list[int] = []

    async def handle(self, who: Principal, message: Request) -> Reply:
        self.under_way += 1
        self.started += 1
        self.most = max(self.most, self.under_way)
        await self.release.wait()
        self.under_way -= 1
        return await super().handle(who, message)

    async def handle_all(
        self, who: Principal, messages: Sequence[Request]
    ) -> AsyncIterator[tuple[int, Reply]]:
        self.under_way += len(messages)
        self.started += len(messages)
        self.most = max(self.most, self.under_way)
        self.bursts.append(len(messages))
        await self.release.wait()
        self.under_way -= len(messages)
        async for answer in super().handle_all(who, messages):
            yield answer


class Bulky(Dispatcher):
    """Answers every Read with as many bytes as were asked for."""

    async def handle(self, who: Principal, message: Request) -> Reply:
        return Bytes(bytes(cast(Read, message).length))


class Broken(Dispatcher):
    async def handle(self, who: Principal, message: Request) -> Reply:
        raise ZeroDivisionError

    async def handle_all(
        self, who: Principal, messages: Sequence[Request]
    ) -> AsyncIterator[tuple[int, Reply]]:
        for place in range(len(messages)):
            yield place, Pong(1)
            raise ZeroDivisionError


def test_the_server_speaks_first_and_then_waits(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(served.service)
        peer.take()
        assert isinstance(peer.replies[0], Welcome)
        assert isinstance(await peer.log_in(), Opened)
        assert peer.session.user == "operator"
        assert isinstance(await peer.answer(peer.ask(Status())), StatusAnswer)
        assert peer.keeper.told == Counter(opened=1)
        peer.line.close()
        await peer.gone()
        assert peer.keeper.incidents == []

    served.run(run())


def test_bytes_may_come_one_at_a_time(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(served.service)
        peer.take()
        request_id, pieces = peer.connection.request(peer.login())
        peer.push(b"".join(pieces), step=1)
        assert isinstance(await peer.answer(request_id), Opened)
        request_id, pieces = peer.connection.request(Ping())
        peer.push(b"".join(pieces), step=1)
        assert isinstance(await peer.answer(request_id), Pong)
        peer.line.close()
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
def test_who_breaks_the_protocol_is_dropped_without_an_answer(served: Daemon, data: bytes) -> None:
    async def run() -> None:
        peer = Peer(served.service)
        peer.take()
        peer.push(data)
        await peer.gone()
        assert peer.line.aborted
        assert peer.keeper.incidents == ["broke the protocol"]
        assert peer.line.take() == b""
        assert list(peer.replies) == [0]

    served.run(run())


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\x01\0half a frame"])
def test_no_login_in_time(served: Daemon, data: bytes) -> None:
    async def run() -> None:
        peer = Peer(served.service, login_within=0.05)
        peer.push(data)
        await peer.gone()
        assert peer.keeper.incidents == ["no login in time"]

    served.run(run())


def test_a_refused_login_is_told_and_closed(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(served.service)
        peer.take()
        reply = await peer.answer(peer.ask(login("operator", OPERATOR_KEY, welcome=bytes(32))))
        assert isinstance(reply, Error)
        assert reply.code == "refused"
        await peer.gone()
        assert peer.keeper.told["opened"] == 0
        assert peer.session.principal is None

    served.run(run())


def test_an_unknown_request_is_answered_and_the_session_goes_on(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(served.service)
        await peer.log_in()
        # The client's connection cannot send such a thing, so its answer is looked for by hand.
        peer.push(framed(pack([999, 77])))
        await peer.until(lambda: peer.line.unsent, taking=False)
        assert b"unknown-request" in peer.line.take()
        assert isinstance(await peer.answer(peer.ask(Ping())), Pong)
        peer.line.close()
        await peer.gone()

    served.run(run())


def test_requests_wait_their_turn_and_reading_stops(served: Daemon) -> None:
    async def run() -> None:
        service = Held(served.service)
        peer = Peer(service)
        await peer.log_in()
        asked = [peer.ask(Ping()) for _ in range(500)]
        await peer.until(lambda: service.under_way == MAX_UNDER_WAY)
        assert not peer.line.is_reading()
        service.release.set()
        await peer.until(lambda: len(peer.replies) == 2 + len(asked))
        assert {type(peer.replies[request_id]) for request_id in asked} == {Pong}
        assert service.most == MAX_UNDER_WAY
        assert peer.line.is_reading()
        peer.line.close()
        await peer.gone()
        await service.close()

    served.run(run())


@pytest.mark.parametrize(
    ("message", "weight"),
    [
        (Read(HANDLE, 0, PIECE), PIECE),
        (Data(HANDLE, 0, bytes(PIECE)), PIECE),
        (GetOpen("ada", "0" * 32, 0), PIECE),
        (PutSmall(b"", bytes(64), b"", (), bytes(240 * 1024)), 256 * 1024),
    ],
)
def test_what_requests_weigh_is_bounded(served: Daemon, message: Request, weight: int) -> None:
    most = min(MAX_UNDER_WAY, MAX_CONNECTION_BYTES // weight)

    async def run() -> None:
        service = Held(served.service)
        budget = MemoryBudget()
        peer = Peer(service, budget=budget)
        await peer.log_in()
        asked = [peer.ask(message) for _ in range(most + 5)]
        await peer.until(lambda: service.under_way == most)
        assert budget.used == most * weight
        service.release.set()
        await peer.until(lambda: len(peer.replies) == 2 + len(asked))
        assert service.most == most
        await peer.until(lambda: budget.used == 0)
        peer.line.close()
        await peer.gone()
        await service.close()

    served.run(run())


def test_a_spent_budget_slows_others_and_stops_nobody(served: Daemon) -> None:
    async def run() -> None:
        greedy, service = Held(served.service), Held(served.service)
        budget = MemoryBudget(limit=8 * PIECE)
        one, two = Peer(greedy, budget=budget), Peer(service, budget=budget)
        await one.log_in()
        await two.log_in()
        for _ in range(20):
            one.ask(Read(HANDLE, 0, PIECE))
        await one.until(lambda: greedy.under_way == 8)
        service.release.set()
        asked = [two.ask(Read(HANDLE, 0, PIECE)) for _ in range(10)]
        await two.until(lambda: len(two.replies) == 2 + len(asked))
        assert service.most == 1
        greedy.release.set()
        await one.until(lambda: budget.used == 0 and len(one.replies) == 22)
        for peer in (one, two):
            peer.line.close()
            await peer.gone()
        await greedy.close()
        await service.close()

    served.run(run())


def test_swift_requests_that_come_together_are_worked_on_as_one(served: Daemon) -> None:
    async def run() -> None:
        service = Held(served.service)
        service.release.set()
        peer = Peer(service)
        await peer.log_in()
        asked: dict[int, type[Reply]] = {}
        data = b""
        for count, message, kind in (
            (MAX_BURST + 3, Ping(), Pong),
            (1, Status(), StatusAnswer),
            (1, Read(HANDLE, 0, 1), Error),  # not for an operator, and not swift
            (1, Stat("ada", "0" * 32, 0), Error),
        ):
            for _ in range(count):
                request_id, pieces = peer.connection.request(message)
                asked[request_id] = kind
                data += b"".join(pieces)
        peer.push(data)
        await peer.until(lambda: len(peer.replies) == 2 + len(asked))
        assert {one: type(peer.replies[one]) for one in asked} == asked
        assert service.bursts == [MAX_BURST, 5]
        peer.line.close()
        await peer.gone()
        await service.close()

    served.run(run())


def test_a_burst_that_fails_by_a_mistake_of_ours_costs_the_connection(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(Broken(served.service.world))
        await peer.log_in()
        pings = [b"".join(peer.connection.request(Ping())[1]) for _ in range(2)]
        peer.push(b"".join(pings))
        await peer.gone()
        assert peer.line.aborted

    served.run(run())


SLOW = ConnectionLimits(write_seconds=1)


def test_who_takes_no_answers_is_cut_off_and_holds_little_before(served: Daemon) -> None:
    async def run() -> None:
        service = Bulky(served.service.world)
        budget = MemoryBudget()
        peer = Peer(service, SLOW, budget=budget)
        await peer.log_in()
        for _ in range(40):
            peer.ask(Read(HANDLE, 0, PIECE))
        await peer.until(lambda: peer.session.unsent > MAX_UNSENT, taking=False)
        assert peer.session.unsent <= MAX_UNSENT + PIECE + 64 * 1024
        assert not peer.line.is_reading()
        await peer.gone()
        assert peer.keeper.incidents == ["took no answers"]
        assert peer.line.most_unsent <= 2 * CHUNK
        await peer.until(lambda: budget.used == 0, taking=False)
        await service.close()

    served.run(run())


def test_taking_a_little_at_a_time_is_not_enough(served: Daemon) -> None:
    async def run() -> None:
        service = Bulky(served.service.world)
        peer = Peer(service, SLOW)
        await peer.log_in()
        for _ in range(10):
            peer.ask(Read(HANDLE, 0, PIECE))
        while not peer.line.is_closing():
            peer.line.take(10)
            await asyncio.sleep(0.05)
        await peer.gone()
        assert peer.keeper.incidents == ["took no answers"]
        await service.close()

    served.run(run())


def test_a_slow_line_that_moves_is_served(served: Daemon) -> None:
    async def run() -> None:
        service = Bulky(served.service.world)
        peer = Peer(service, SLOW)
        await peer.log_in()
        asked = [peer.ask(Read(HANDLE, 0, PIECE)) for _ in range(12)]
        most = 0
        while len(peer.replies) < 2 + len(asked):
            peer.take(300 * 1024)
            most = max(most, peer.session.unsent)
            await asyncio.sleep(0.05)
        assert MAX_UNSENT < most <= MAX_UNSENT + PIECE + 64 * 1024
        assert peer.keeper.incidents == []
        assert peer.line.most_unsent <= 2 * CHUNK
        peer.line.close()
        await peer.gone()
        await service.close()

    served.run(run())


def test_a_mistake_of_ours_is_logged_and_costs_one_connection(
    served: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        service = Broken(served.service.world)
        peer, other = Peer(service), Peer(served.service)
        await peer.log_in()
        await other.log_in()
        peer.ask(Ping())
        await peer.gone()
        assert peer.line.aborted
        assert isinstance(await other.answer(other.ask(Ping())), Pong)
        other.line.close()
        await other.gone()
        await service.close()

    with caplog.at_level(logging.ERROR):
        served.run(run())
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [
        ZeroDivisionError
    ]


def test_an_idle_session_is_closed_and_a_working_one_is_not(served: Daemon) -> None:
    async def run() -> None:
        service = Held(served.service)
        idle, working = (Peer(service, ConnectionLimits(idle_seconds=1)) for _ in range(2))
        await idle.log_in()
        await working.log_in()
        asked = working.ask(Ping())
        await idle.gone()
        await asyncio.sleep(0.3)
        assert not working.line.is_closing()
        service.release.set()
        assert isinstance(await working.answer(asked), Pong)
        await working.gone()
        assert idle.keeper.incidents == working.keeper.incidents == []
        await service.close()

    served.run(run())


def test_draining_finishes_what_is_under_way_and_refuses_the_rest(served: Daemon) -> None:
    async def run() -> None:
        service = Held(served.service)
        peer = Peer(service)
        await peer.log_in()
        before = peer.ask(Ping())
        await peer.until(lambda: service.under_way == 1)
        draining = [asyncio.create_task(peer.session.drain(SECONDS)) for _ in range(2)]
        await asyncio.sleep(0)
        after = await peer.answer(peer.ask(Ping()))
        assert isinstance(after, Error)
        assert after.code == "shutting-down"
        service.release.set()
        assert isinstance(await peer.answer(before), Pong)
        await asyncio.gather(*draining)
        await peer.gone()
        assert not peer.line.aborted
        await peer.session.drain(SECONDS)
        await service.close()

    served.run(run())


def test_draining_waits_only_so_long(served: Daemon) -> None:
    async def run() -> None:
        service = Held(served.service)
        peer = Peer(service)
        await peer.log_in()
        peer.ask(Ping())
        await peer.until(lambda: service.under_way == 1)
        await peer.session.drain(0.05)
        await peer.gone()
        service.release.set()
        await peer.until(lambda: service.under_way == 0)
        await service.close()

    served.run(run())


def test_draining_turns_strangers_away(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(served.service)
        draining = asyncio.create_task(peer.session.drain(SECONDS))
        peer.take()
        peer.line.reading = True
        login_id = peer.ask(peer.login())
        await draining
        peer.take()
        reply = peer.replies.get(login_id)
        assert reply is None or (isinstance(reply, Error) and reply.code == "shutting-down")
        await peer.gone()
        assert peer.session.principal is None

    served.run(run())


def test_after_closing_nothing_more_is_started(served: Daemon) -> None:
    async def run() -> None:
        service = Held(served.service)
        peer = Peer(service)
        await peer.log_in()
        for _ in range(500):
            peer.ask(Ping())
        await peer.until(lambda: service.under_way == MAX_UNDER_WAY)
        peer.session.close()
        service.release.set()
        await peer.gone()
        await peer.until(lambda: service.under_way == 0)
        assert service.started == MAX_UNDER_WAY
        await service.close()

    served.run(run())


def test_a_connection_lost_during_its_login(served: Daemon) -> None:
    async def run() -> None:
        peer = Peer(served.service)
        peer.take()
        peer.ask(peer.login())
        assert peer.session.user == "", "the task has not begun"
        await asyncio.sleep(0)
        assert peer.session.user == "operator", "who is disabled now is found and closed"
        peer.line.abort()
        await peer.gone()
        await peer.until(lambda: served.entries("login"), taking=False)
        await asyncio.sleep(0.05)
        assert peer.session.principal is None
        assert peer.keeper.told == Counter(ended=1)

    served.run(run())
