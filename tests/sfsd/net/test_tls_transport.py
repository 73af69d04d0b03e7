"""TLS between real sockets and a protocol, with the standard library's TLS as the peer."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import ssl
import struct
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from protocol.wire.frames import TLS_RECORD
from sfsd import server_keys
from sfsd.net import tls_transport
from sfsd.net.tls_transport import RECEIVE, TLSTransport, receive_buffer
from tests.wire import any_server

SECONDS = 20.0
MIB = 1 << 20


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    folder: Path = tmp_path_factory.mktemp("keys") / "keys"
    return server_keys.create(folder, 1_800_000_000).tls_context()


class Recorder(asyncio.BufferedProtocol):
    """Protocol that greets, and records what it receives in pieces of at most `room` bytes."""

    def __init__(self, greeting: bytes = b"welcome", room: int = 64 * 1024) -> None:
        self.greeting = greeting
        self.received = bytearray()
        self.transport: TLSTransport | None = None
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.paused = 0
        self.resumed = 0
        self.on_data: Callable[[], object] = lambda: None
        self._buffer = bytearray(room)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(TLSTransport, transport)
        self.transport.write(self.greeting)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self._buffer[:nbytes]
        self.on_data()

    def pause_writing(self) -> None:
        self.paused += 1

    def resume_writing(self) -> None:
        self.resumed += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


class Pair:
    """A `TLSTransport` and the plain socket of its peer, which `connect` wraps in TLS."""

    def __init__(self, peer: socket.socket, protocol: Recorder, transport: TLSTransport) -> None:
        self.peer = peer
        self.protocol = protocol
        self.transport = transport

    @classmethod
    async def make(
        cls, tls: ssl.SSLContext, received: memoryview | None = None, room: int = 64 * 1024
    ) -> Pair:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            peer = socket.create_connection(listening.getsockname())
            accepted, _ = listening.accept()
        accepted.setblocking(False)
        peer.setblocking(False)
        protocol = Recorder(room=room)
        transport = TLSTransport(tls, protocol, receive_buffer() if received is None else received)
        await loop.connect_accepted_socket(lambda: transport, accepted)
        return cls(peer, protocol, transport)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        streams = await asyncio.open_connection(
            sock=self.peer, ssl=any_server(), server_hostname="", limit=16 * MIB
        )
        assert await streams[0].readexactly(7) == b"welcome"
        return streams

    def reset(self) -> None:
        """End the peer's side with a reset instead of an orderly end."""
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(SECONDS):
            await work()

    asyncio.run(limited())


async def until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110 - nothing tells when it changes
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("room", [100, TLS_RECORD + 1, MIB])
def test_bytes_arrive_in_order_both_ways(tls: ssl.SSLContext, room: int) -> None:
    upward = b"".join(struct.pack(">I", number) for number in range(MIB // 4))
    downward = upward[::-1]

    async def work() -> None:
        pair = await Pair.make(tls, room=room)
        reader, writer = await pair.connect()
        writer.write(upward)
        pair.transport.write(downward[:10])
        pair.transport.write(memoryview(downward)[10:])
        assert await reader.readexactly(len(downward)) == downward
        await until(lambda: len(pair.protocol.received) >= len(upward))
        assert pair.protocol.received == upward
        pair.transport.close()
        assert await reader.read() == b""
        writer.close()
        assert await pair.protocol.lost is None

    run(work)


def test_connections_share_one_buffer_and_never_see_each_other(tls: ssl.SSLContext) -> None:
    async def work() -> None:
        shared = receive_buffer()
        pairs = [await Pair.make(tls, shared, room=1000) for _ in range(4)]
        streams = [await pair.connect() for pair in pairs]
        for pair in pairs[::2]:
            pair.transport.pause_reading()
        for number, (_, writer) in enumerate(streams):
            writer.write(bytes([number]) * 400_000)
        await asyncio.sleep(0.05)
        for pair in pairs[::2]:  # these hold most of what has arrived
            pair.protocol.on_data = pair.transport.pause_reading
            pair.transport.resume_reading()
        await until(lambda: all(pair.transport._backlog for pair in pairs[::2]))
        for pair, (_, writer) in zip(pairs[1::2], streams[1::2], strict=True):
            await until(lambda pair=pair: len(pair.protocol.received) == 400_000)  # type: ignore[misc]
            pair.protocol.received.clear()
            writer.write(bytes([pairs.index(pair)]) * 400_000)
            await until(lambda pair=pair: len(pair.protocol.received) == 400_000)  # type: ignore[misc]
        for pair in pairs[::2]:
            pair.protocol.on_data = lambda: None
            pair.transport.resume_reading()
        for number, pair in enumerate(pairs):
            await until(lambda pair=pair: len(pair.protocol.received) == 400_000)  # type: ignore[misc]
            assert set(pair.protocol.received) == {number}
            pair.transport.abort()
            await pair.protocol.lost
        for _, writer in streams:
            writer.transport.abort()

    run(work)


def test_nothing_is_delivered_and_little_is_held_while_reading_is_paused(
    tls: ssl.SSLContext,
) -> None:
    async def work() -> None:
        pair = await Pair.make(tls)
        _, writer = await pair.connect()
        pair.protocol.on_data = pair.transport.pause_reading
        writer.write(bytes(8 * MIB))
        await until(lambda: pair.protocol.received)
        held = len(pair.protocol.received)
        await asyncio.sleep(0.2)
        assert len(pair.protocol.received) == held <= 64 * 1024
        assert len(pair.transport._backlog) <= RECEIVE
        pair.protocol.on_data = lambda: None
        pair.transport.resume_reading()
        await until(lambda: len(pair.protocol.received) == 8 * MIB)
        pair.transport.abort()
        writer.transport.abort()
        await pair.protocol.lost

    run(work)


def test_writing_pauses_while_the_peer_takes_nothing(tls: ssl.SSLContext) -> None:
    async def work() -> None:
        pair = await Pair.make(tls)
        reader, writer = await pair.connect()
        pair.transport.set_write_buffer_limits(high=MIB)
        cast(asyncio.Transport, writer.transport).pause_reading()
        written = 0
        while True:
            pair.transport.write(bytes(MIB))
            written += MIB
            if pair.protocol.paused:
                break
            await asyncio.sleep(0)
        assert pair.transport.get_write_buffer_size() > MIB
        cast(asyncio.Transport, writer.transport).resume_reading()
        await reader.readexactly(written)
        await until(lambda: pair.protocol.resumed)
        writer.close()
        await pair.protocol.lost

    run(work)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00" + bytes(512)])
def test_failed_handshake_is_reported(tls: ssl.SSLContext, data: bytes) -> None:
    async def work() -> None:
        pair = await Pair.make(tls)
        pair.peer.send(data)
        assert isinstance(await pair.protocol.lost, ssl.SSLError)
        assert not pair.protocol.received
        pair.peer.close()

    run(work)


def test_peer_that_ends_in_the_handshake_is_reported(tls: ssl.SSLContext) -> None:
    async def work() -> None:
        pair = await Pair.make(tls)
        pair.peer.close()
        assert isinstance(await pair.protocol.lost, ssl.SSLError)

    run(work)


def test_own_abort_in_the_handshake_is_no_failure(tls: ssl.SSLContext) -> None:
    async def work() -> None:
        for end in (TLSTransport.abort, TLSTransport.close):
            pair = await Pair.make(tls)
            end(pair.transport)
            assert await pair.protocol.lost is None
            pair.peer.close()

    run(work)


def test_record_that_was_changed_ends_the_connection(tls: ssl.SSLContext) -> None:
    async def work() -> None:
        pair = await Pair.make(tls)
        reader, writer = await pair.connect()
        raw: socket.socket = writer.get_extra_info("socket")
        os.write(raw.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))  # nobody encrypted that record
        failure = await pair.protocol.lost
        assert isinstance(failure, ssl.SSLError)
        assert failure.__traceback__ is None, "its frames would keep the connection in memory"
        assert not pair.protocol.received
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await reader.readexactly(1)
        writer.transport.abort()

    run(work)


def test_close_sends_all_first_and_waits_for_the_peer(tls: ssl.SSLContext) -> None:
    async def work() -> None:
        pair = await Pair.make(tls)
        reader, writer = await pair.connect()
        pair.transport.write(bytes(4 * MIB))
        pair.transport.close()
        assert pair.transport.is_closing()
        writer.write(b"requests that nobody reads" * 1000)
        assert len(await reader.read()) <= 4 * MIB
        assert await reader.read() == b""
        await pair.protocol.lost
        assert not pair.protocol.received
        writer.transport.abort()

    run(work)


def test_close_while_reading_is_paused_sees_the_end_of_the_peer(tls: ssl.SSLContext) -> None:
    async def work() -> None:
        pair = await Pair.make(tls)
        reader, writer = await pair.connect()
        pair.transport.pause_reading()
        writer.write(b"request")
        pair.transport.close()
        assert await reader.read() == b""
        writer.close()
        await asyncio.wait_for(pair.protocol.lost, tls_transport.SHUTDOWN_SECONDS - 2)

    run(work)


@pytest.mark.parametrize("half_closed", [False, True])
def test_peer_that_takes_nothing_cannot_delay_the_end(
    tls: ssl.SSLContext, half_closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a limit, a peer that ends its own side only would keep the socket open for ever."""
    monkeypatch.setattr(tls_transport, "SHUTDOWN_SECONDS", 0.3)

    async def work() -> None:
        pair = await Pair.make(tls)
        _, writer = await pair.connect()
        cast(asyncio.Transport, writer.transport).pause_reading()
        pair.transport.write(bytes(16 * MIB))
        if half_closed:
            raw: socket.socket = writer.get_extra_info("socket")
            raw.shutdown(socket.SHUT_WR)
        else:
            pair.transport.close()
        await asyncio.wait_for(pair.protocol.lost, 5)
        writer.transport.abort()

    run(work)


def test_writes_after_a_reset_are_not_logged(
    tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio logs a warning for each write to a lost connection, from the fifth one on."""

    async def work() -> None:
        pair = await Pair.make(tls)
        _, writer = await pair.connect()
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.transport.pause_reading()  # so that a write meets the reset
        writer.transport.abort()
        await until(lambda: raw.fileno() == -1)
        for _ in range(50):
            pair.transport.write(bytes(TLS_RECORD))
        await pair.protocol.lost
        for _ in range(50):
            pair.transport.write(bytes(TLS_RECORD))
        pair.transport.close()

    with caplog.at_level(logging.INFO):
        run(work)
    assert caplog.records == []


def test_lost_connection_needs_no_cycle_collection(tls: ssl.SSLContext) -> None:
    async def work() -> None:
        pair = await Pair.make(tls)
        _, writer = await pair.connect()
        gone: list[weakref.ref[object]] = [weakref.ref(pair.transport), weakref.ref(pair.protocol)]
        writer.transport.abort()
        await pair.protocol.lost
        del pair
        await asyncio.sleep(0)
        assert [one() for one in gone] == [None, None]

    gc.collect()
    gc.disable()
    try:
        run(work)
    finally:
        gc.enable()


def test_new_traffic_keys_without_end(tls: ssl.SSLContext) -> None:
    """A peer that makes TLS answer again and again, and takes no answers, is disconnected."""

    async def work() -> None:
        pair = await Pair.make(tls)
        _, writer = await pair.connect()
        pair.transport._outgoing.write(bytes(tls_transport.MAX_UNTAKEN * 8))
        pair.transport._answer()
        assert pair.transport.is_closing()
        await pair.protocol.lost
        writer.transport.abort()

    run(work)
