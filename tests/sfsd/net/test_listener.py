"""The server on a real socket, in this process: who gets in, who is turned away, and the stop."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.wire.messages.accounts import Status, StatusAnswer, UserAccess
from protocol.wire.messages.session import Ping, Pong, Session
from sfsd import server_keys
from sfsd.config import Config, ConnectionLimits
from sfsd.errors import ConfigError
from sfsd.net import listener as server_module
from sfsd.net.connection import ClientConnection as ServerSession
from sfsd.net.listener import Server
from tests.sfsd.builders import OPERATOR_KEY, SERVER_ID, SPKI, Daemon, daemon, login
from tests.wire import Wire, any_server

FEW = ConnectionLimits(
    unauthenticated=5,
    unauthenticated_per_address=3,
    connections=6,
    connections_per_address=4,
)
HASTY = replace(FEW, login_seconds=2)
HERE = "127.0.0.1:0"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    folder = tmp_path_factory.mktemp("keys") / "keys"
    return server_keys.create(folder, 1_800_000_000).tls_context()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path, config=Config(limits=FEW)) as made:
        yield made


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path, config=Config(limits=HASTY)) as made:
        yield made


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - nothing tells when the server's count changes
            await asyncio.sleep(0.01)


async def operator(address: str) -> Wire:
    wire = await Wire.welcomed(address)
    reply = await wire.ask(wire.login(OPERATOR_KEY, SERVER_ID, SPKI))
    assert isinstance(reply, Session), reply
    return wire


def test_it_serves_and_stops_and_the_log_says_so(served: Daemon, tls: ssl.SSLContext) -> None:
    async def run() -> None:
        server = Server(served.world, tls)
        address = await server.start(HERE)
        wire = await operator(address)
        status = await wire.ask(Status())
        assert isinstance(status, StatusAnswer)
        assert (status.address, status.connections, status.sessions) == (address, 1, 1)
        await asyncio.gather(server.stop(), server.stop())
        assert await wire.ended() == b""
        await server.stop()
        with pytest.raises(OSError):
            await Wire.connect(address, None)
        await wire.close()

    served.run(run())
    assert [entry.op for entry in served.entries()] == ["start", "login", "stop"]
    (started,) = served.entries("start")
    assert started.detail["address"].startswith("127.0.0.1:")


def test_an_address_that_is_taken(served: Daemon, tls: ssl.SSLContext) -> None:
    async def run(address: str) -> None:
        server = Server(served.world, tls)
        with pytest.raises(ConfigError) as caught:
            await server.start(address)
        assert caught.value.hint
        await server.stop()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        served.run(run(f"127.0.0.1:{taken.getsockname()[1]}"))
    assert served.entries() == []


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_ours(served: Daemon, tls: ssl.SSLContext, host: str) -> None:
    async def run() -> None:
        server = Server(served.world, tls)
        with pytest.raises(ConfigError):
            await server.start(f"{host}:7373")
        await server.stop()

    served.run(run())


def test_an_answer_waits_for_no_acknowledgement(
    served: Daemon, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[socket.socket] = []
    at_once: list[int] = []
    connection_made = ServerSession.connection_made

    def seen(session: ServerSession, transport: asyncio.BaseTransport) -> None:
        made.append(transport.get_extra_info("socket"))
        connection_made(session, transport)

    monkeypatch.setattr(ServerSession, "connection_made", seen)

    async def run() -> None:
        server = Server(served.world, tls)
        wire = await operator(await server.start(HERE))
        (ours,) = made
        at_once.append(ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await wire.close()
        await server.stop()

    served.run(run())
    assert all(at_once), "Nagle's algorithm is on"
    assert len(at_once) == 1


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="one family only")
def test_everywhere_is_both_families(served: Daemon, tls: ssl.SSLContext) -> None:
    async def run() -> None:
        server = Server(served.world, tls)
        port = (await server.start("[::]:0")).rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            wire = await operator(f"{host}:{port}")
            await wire.close()
        await server.stop()

    served.run(run())
    assert [entry.detail["address"] for entry in served.entries("login")] == ["127.0.0.1", "::1"]


def test_too_many_of_one_address_are_turned_away(served: Daemon, tls: ssl.SSLContext) -> None:
    async def run() -> None:
        server = Server(served.world, tls)
        address = await server.start(HERE)
        strangers = [await Wire.welcomed(address) for _ in range(3)]
        one_more = await Wire.connect(address, None)
        assert await one_more.ended(5) == b""
        known = strangers.pop()
        await known.ask(known.login(OPERATOR_KEY, SERVER_ID, SPKI))
        strangers.append(await Wire.welcomed(address))
        one_more_yet = await Wire.connect(address, None)
        assert await one_more_yet.ended(5) == b"", "the fourth connection was the last"
        for wire in (*strangers, one_more, one_more_yet):
            await wire.close()
        await until(lambda: served.world.metrics.connections == 1)
        assert isinstance(await known.ask(Ping()), Pong)
        await known.close()
        await until(lambda: served.world.metrics.connections == 0)
        await server.stop()

    served.run(run())


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", bytes(70_000)])
def test_without_tls_a_stranger_is_gone_in_time(
    hasty: Daemon, tls: ssl.SSLContext, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        server = Server(hasty.world, tls)
        address = await server.start(HERE)
        wire = await Wire.connect(address, None)
        if data:
            await wire.send(data)
        rest = await wire.ended(10)
        assert len(rest) < 100, "an alert of TLS at most"
        await wire.close()
        await until(lambda: hasty.world.metrics.connections == 0)
        async with await operator(address) as chief:
            assert isinstance(await chief.ask(Ping()), Pong)
        await server.stop()

    with caplog.at_level(logging.WARNING):
        hasty.run(run())
    assert caplog.records == []


def test_without_a_login_a_stranger_is_gone_in_time(hasty: Daemon, tls: ssl.SSLContext) -> None:
    async def run() -> None:
        server = Server(hasty.world, tls)
        address = await server.start(HERE)
        wire = await Wire.welcomed(address)
        assert await wire.ended(10) == b""
        await until(lambda: hasty.world.metrics.connections == 0)
        await wire.close()
        await server.stop()

    hasty.run(run())


def test_older_tls_is_refused(
    served: Daemon, tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        server = Server(served.world, tls)
        address = await server.start(HERE)
        context = any_server()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await Wire.connect(address, context)
        await until(lambda: served.world.metrics.connections == 0)
        await server.stop()

    with caplog.at_level(logging.INFO, "sfsd"):
        served.run(run())
    assert "no TLS: 1" in caplog.records[-1].getMessage()


def test_who_is_disabled_is_disconnected(served: Daemon, tls: ssl.SSLContext) -> None:
    ada = served.person("ada")

    async def run() -> None:
        server = Server(served.world, tls)
        address = await server.start(HERE)
        chief, theirs = await operator(address), await Wire.welcomed(address)
        reply = await theirs.ask(login("ada", ada.key, welcome=theirs.connection.welcome_sha256))
        assert isinstance(reply, Session)
        await chief.ask(UserAccess("ada", True, "left"))
        assert await theirs.ended(5) == b""
        assert isinstance(await chief.ask(Ping()), Pong)
        for wire in (chief, theirs):
            await wire.close()
        await server.stop()

    served.run(run())


def test_a_stop_does_not_wait_for_strangers(served: Daemon, tls: ssl.SSLContext) -> None:
    async def run() -> None:
        server = Server(served.world, tls)
        address = await server.start(HERE)
        silent = await Wire.connect(address, None)
        half = await Wire.welcomed(address)
        await half.send(b"\0\0\x01\0half a frame")
        began = asyncio.get_running_loop().time()
        await server.stop()
        assert asyncio.get_running_loop().time() - began < 4
        for wire in (silent, half):
            await wire.ended(5)
            await wire.close()

    served.run(run())
    assert [entry.op for entry in served.entries()] == ["start", "stop"]


def test_what_was_turned_away_is_told_in_one_line(
    served: Daemon, tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        server = Server(served.world, tls)
        address = await server.start(HERE)
        for _ in range(20):
            wire = await Wire.connect(address, None)
            await wire.send(b"nonsense, and no TLS")
            await wire.ended(5)
            await wire.close()
        await until(lambda: served.world.metrics.connections == 0)
        await server.stop()

    with caplog.at_level(logging.INFO, "sfsd"):
        served.run(run())
    (record,) = caplog.records
    assert "no TLS: 20" in record.getMessage()


def test_what_the_disk_did_not_take_is_told(
    served: Daemon,
    tls: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever operates it looks here first; the failure that lasts is told once."""
    monkeypatch.setattr(server_module, "_TICK_SECONDS", 0.001)
    monkeypatch.setattr(type(served.world), "failed", property(lambda _world: "a sync failed"))

    async def run() -> None:
        server = Server(served.world, tls)
        await server.start(HERE)
        server.service.unwritten.count("the disk is full")
        server.service.unwritten.count("the disk is full")
        await until(lambda: len(caplog.records) >= 2)
        await server.stop()

    with caplog.at_level(logging.WARNING, "sfsd"):
        served.run(run())
    told = sorted((record.levelno, record.getMessage()) for record in caplog.records)
    assert [level for level, _ in told] == [logging.WARNING, logging.CRITICAL]
    assert told[0][1].endswith("the disk is full: 2")
    assert told[1][1].endswith("a sync failed")
