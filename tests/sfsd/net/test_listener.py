"""The server on a real socket, in this process: limits, TLS, revocation and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.codec.values import changed
from protocol.records.invitation import parse_address
from protocol.wire.messages import Error, Message
from protocol.wire.messages.accounts import Status, StatusAnswer, UserAccess
from protocol.wire.messages.session import Ping, Pong, Session
from sfsd import server_keys
from sfsd.errors import ConfigError
from sfsd.net import listener as server_module
from sfsd.net.connection import ClientConnection
from sfsd.net.connection_limits import KEPT_FOR_OPERATOR
from sfsd.net.listener import Server
from sfsd.service.notify import Notifier
from sfsd.settings.config import Config, ConnectionLimits
from tests.sfsd.builders import OPERATOR_KEY, SERVER_ID, SPKI, Daemon, Person, daemon
from tests.wire import Wire, any_server

FEW = ConnectionLimits(
    unauthenticated=10,
    unauthenticated_per_address=6,
    connections=6,
    connections_per_address=4,
    user_connections=1,
)
HASTY = changed(FEW, login_seconds=2)
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


def test_start_login_and_stop_are_logged(served: Daemon, tls: ssl.SSLContext) -> None:
    async def run() -> None:
        server = Server(served.context, tls)
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


def test_address_in_use(served: Daemon, tls: ssl.SSLContext) -> None:
    async def run(address: str) -> None:
        server = Server(served.context, tls)
        with pytest.raises(ConfigError) as caught:
            await server.start(address)
        assert caught.value.hint
        await server.stop()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        served.run(run(f"127.0.0.1:{taken.getsockname()[1]}"))
    assert served.entries() == []


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_address_of_another_host(served: Daemon, tls: ssl.SSLContext, host: str) -> None:
    async def run() -> None:
        server = Server(served.context, tls)
        with pytest.raises(ConfigError):
            await server.start(f"{host}:7373")
        await server.stop()

    served.run(run())


def test_nagle_is_off_for_accepted_sockets(
    served: Daemon, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets: list[socket.socket] = []
    no_delay: list[int] = []
    connection_made = ClientConnection.connection_made

    def record(connection: ClientConnection, transport: asyncio.BaseTransport) -> None:
        sockets.append(transport.get_extra_info("socket"))
        connection_made(connection, transport)

    monkeypatch.setattr(ClientConnection, "connection_made", record)

    async def run() -> None:
        server = Server(served.context, tls)
        wire = await operator(await server.start(HERE))
        (accepted,) = sockets
        no_delay.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await wire.close()
        await server.stop()

    served.run(run())
    assert all(no_delay), "Nagle's algorithm is on"
    assert len(no_delay) == 1


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="one family only")
def test_any_address_includes_ipv4_and_ipv6(served: Daemon, tls: ssl.SSLContext) -> None:
    async def run() -> None:
        server = Server(served.context, tls)
        port = (await server.start("[::]:0")).rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            wire = await operator(f"{host}:{port}")
            await wire.close()
        await server.stop()

    served.run(run())
    assert [entry.detail["address"] for entry in served.entries("login")] == ["127.0.0.1", "::1"]


def test_limits_of_one_address(served: Daemon, tls: ssl.SSLContext) -> None:
    async def run() -> None:
        server = Server(served.context, tls)
        address = await server.start(HERE)
        clients = [await Wire.welcomed(address) for _ in range(3)]
        fourth = await Wire.welcomed(address)
        oldest = clients.pop(0)
        assert await oldest.ended(5) == b""
        known = clients.pop()
        assert isinstance(await known.ask(known.login(OPERATOR_KEY, SERVER_ID, SPKI)), Session)
        fifth = await Wire.welcomed(address)
        assert served.context.metrics.connections == 4
        for wire in (*clients, oldest, fourth, fifth):
            await wire.close()
        await until(lambda: served.context.metrics.connections == 1)
        assert isinstance(await known.ask(Ping()), Pong)
        await known.close()
        await until(lambda: served.context.metrics.connections == 0)
        await server.stop()

    served.run(run())


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of Unix")
def test_without_descriptors_a_connection_is_accepted_later(
    served: Daemon, tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def run() -> None:
        server = Server(served.context, tls)
        host, port = parse_address(await server.start(HERE))
        client = socket.socket()
        client.setblocking(False)
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
        fillers = fill_descriptors()
        try:
            await asyncio.get_running_loop().sock_connect(client, (host, port))
            await asyncio.sleep(0.3)
            assert served.context.metrics.connections == 0
        finally:
            for handle in fillers:
                os.close(handle)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: served.context.metrics.connections == 1)
        client.close()
        await server.stop()

    with caplog.at_level(logging.INFO, "sfsd"):
        served.run(run())
    assert "not accepted, EMFILE" in caplog.records[-1].getMessage()


def fill_descriptors() -> list[int]:
    """Open descriptors until this process may open no more."""
    handles: list[int] = []
    while True:
        try:
            handles.append(os.dup(0))
        except OSError:
            return handles


def test_limits_of_one_user(served: Daemon, tls: ssl.SSLContext) -> None:
    ada, bob = served.person("ada"), served.person("bob")

    async def enter(address: str, person: Person) -> tuple[Wire, Message]:
        wire = await Wire.welcomed(address)
        return wire, await wire.ask(person.login(welcome=wire.connection.welcome_sha256))

    async def run() -> None:
        server = Server(served.context, tls)
        address = await server.start(HERE)
        first, reply = await enter(address, ada)
        assert isinstance(reply, Session)
        second, reply = await enter(address, ada)
        assert isinstance(reply, Error)
        assert reply.code == "busy"
        assert await second.ended(5) == b""
        third, reply = await enter(address, bob)
        assert isinstance(reply, Session)
        assert served.context.metrics.sessions == 2
        await first.close()
        await until(lambda: served.context.metrics.sessions == 1)
        fourth, reply = await enter(address, ada)
        assert isinstance(reply, Session)
        for wire in (second, third, fourth):
            await wire.close()
        await server.stop()

    served.run(run())


def test_users_cannot_take_the_places_of_the_operator(served: Daemon, tls: ssl.SSLContext) -> None:
    people = [served.person(name) for name in ("ada", "bob", "eve")]

    async def run() -> None:
        server = Server(served.context, tls)
        address = await server.start(HERE)
        wires = [await Wire.welcomed(address) for _ in people]
        replies = [
            await wire.ask(person.login(welcome=wire.connection.welcome_sha256))
            for wire, person in zip(wires, people, strict=True)
        ]
        assert [type(reply) for reply in replies] == [Session, Session, Error], "six less four"
        wires += [await operator(address) for _ in range(KEPT_FOR_OPERATOR)]
        for wire in wires:
            await wire.close()
        await server.stop()

    served.run(run())


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", bytes(70_000)])
def test_tls_handshake_timeout(
    hasty: Daemon, tls: ssl.SSLContext, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        server = Server(hasty.context, tls)
        address = await server.start(HERE)
        wire = await Wire.connect(address, None)
        if data:
            await wire.send(data)
        rest = await wire.ended(10)
        assert len(rest) < 100, "an alert of TLS at most"
        await wire.close()
        await until(lambda: hasty.context.metrics.connections == 0)
        async with await operator(address) as admin:
            assert isinstance(await admin.ask(Ping()), Pong)
        await server.stop()

    with caplog.at_level(logging.WARNING):
        hasty.run(run())
    assert caplog.records == []


def test_login_timeout(hasty: Daemon, tls: ssl.SSLContext) -> None:
    async def run() -> None:
        server = Server(hasty.context, tls)
        address = await server.start(HERE)
        wire = await Wire.welcomed(address)
        assert await wire.ended(10) == b""
        await until(lambda: hasty.context.metrics.connections == 0)
        await wire.close()
        await server.stop()

    hasty.run(run())


def test_older_tls_is_refused(
    served: Daemon, tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        server = Server(served.context, tls)
        address = await server.start(HERE)
        context = any_server()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await Wire.connect(address, context)
        await until(lambda: served.context.metrics.connections == 0)
        await server.stop()

    with caplog.at_level(logging.INFO, "sfsd"):
        served.run(run())
    assert "no TLS: 1" in caplog.records[-1].getMessage()


def test_users_share_their_rate_among_connections(served: Daemon, tls: ssl.SSLContext) -> None:
    limits = changed(FEW, connections=10, user_connections=2, user_requests_per_second=5)
    served.context.config = changed(served.context.config, limits=limits)
    ada, bob = served.person("ada"), served.person("bob")

    async def run() -> None:
        server = Server(served.context, tls)
        address = await server.start(HERE)
        wires: list[Wire] = []
        for person in (ada, ada, bob):
            wires.append(await Wire.welcomed(address))
            login = person.login(welcome=wires[-1].connection.welcome_sha256)
            assert isinstance(await wires[-1].ask(login), Session)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(5):
            await asyncio.gather(*(wire.ask(Ping()) for wire in wires[:2]))
        slowed = loop.time() - began
        assert slowed >= 0.7, "ten requests at five a second, of which five were saved"
        for _ in range(5):
            assert isinstance(await wires[2].ask(Ping()), Pong)
        for wire in wires:
            await wire.close()
        await server.stop()

    served.run(run())


def test_disabled_user_is_disconnected(served: Daemon, tls: ssl.SSLContext) -> None:
    ada = served.person("ada")

    async def run() -> None:
        server = Server(served.context, tls)
        address = await server.start(HERE)
        admin, client = await operator(address), await Wire.welcomed(address)
        reply = await client.ask(ada.login(welcome=client.connection.welcome_sha256))
        assert isinstance(reply, Session)
        await admin.ask(UserAccess("ada", True, "left"))
        assert await client.ended(5) == b""
        assert isinstance(await admin.ask(Ping()), Pong)
        for wire in (admin, client):
            await wire.close()
        await server.stop()

    served.run(run())


def test_stop_does_not_wait_for_unauthenticated_clients(
    served: Daemon, tls: ssl.SSLContext
) -> None:
    async def run() -> None:
        server = Server(served.context, tls)
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


def test_rejected_connections_are_reported_in_one_line(
    served: Daemon, tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        server = Server(served.context, tls)
        address = await server.start(HERE)
        for _ in range(20):
            wire = await Wire.connect(address, None)
            await wire.send(b"nonsense, and no TLS")
            await wire.ended(5)
            await wire.close()
        await until(lambda: served.context.metrics.connections == 0)
        await server.stop()

    with caplog.at_level(logging.INFO, "sfsd"):
        served.run(run())
    (record,) = caplog.records
    assert "no TLS: 20" in record.getMessage()


def test_failed_writes_are_reported(
    served: Daemon,
    tls: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The daemon prints failed writes regularly, and a lasting failure once."""
    monkeypatch.setattr(server_module, "_TICK_SECONDS", 0.001)
    monkeypatch.setattr(type(served.context), "failed", property(lambda _context: "a sync failed"))

    async def run() -> None:
        server = Server(served.context, tls)
        await server.start(HERE)
        server.dispatcher.disk_failures.count("the disk is full")
        server.dispatcher.disk_failures.count("the disk is full")
        await until(lambda: len(caplog.records) >= 2)
        await server.stop()

    with caplog.at_level(logging.WARNING, "sfsd"):
        served.run(run())
    told = sorted((record.levelno, record.getMessage()) for record in caplog.records)
    assert [level for level, _ in told] == [logging.WARNING, logging.CRITICAL]
    assert told[0][1].endswith("the disk is full: 2")
    assert told[1][1].endswith("a sync failed")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
def test_a_dead_committer_ends_the_signs_of_life(tmp_path: Path, tls: ssl.SSLContext) -> None:
    path = tmp_path / "notify"
    with (
        daemon(tmp_path / "root") as served,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        contextlib.closing(
            Notifier({"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "20000"})
        ) as notifier,
    ):
        manager.bind(str(path))
        manager.setblocking(False)

        async def states() -> list[bytes]:
            await asyncio.sleep(0.05)
            found = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    found.append(manager.recv(4096))
            return found

        async def run() -> None:
            server = Server(served.context, tls, notifier=notifier)
            await server.start(HERE)
            assert b"WATCHDOG=1" in await states()
            await asyncio.to_thread(served.context.committer.close)
            await states()
            assert b"WATCHDOG=1" not in await states()
            await server.stop()

        served.run(run())
