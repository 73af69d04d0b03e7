"""The server of the metrics: what it answers, and what a peer can make it do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sfsd.jobs.account_survey import AccountSurvey
from sfsd.net import metrics_server
from sfsd.net.listener import _listeners
from sfsd.net.metrics_server import MAX_CONNECTIONS, MAX_HEAD, MetricsServer
from sfsd.settings.config import Config, HealthBounds
from tests.harness import environment
from tests.sfsd.builders import Daemon, daemon

Ask = Callable[[bytes], Awaitable[bytes]]
GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    bounds = HealthBounds(free_space=0, free_files=0)
    with daemon(tmp_path, config=Config(health=bounds)) as running:
        yield running


@asynccontextmanager
async def serving(served: Daemon) -> AsyncIterator[int]:
    """Serve the metrics on the yielded port."""
    server = MetricsServer(served.context, AccountSurvey(served.context))
    sockets = await _listeners("127.0.0.1", 0)
    await server.start(sockets)
    try:
        yield sockets[0].getsockname()[1]
    finally:
        await server.close()


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (GET % b"/metrics", b"200 OK"),
        (GET % b"/metrics?name=all", b"200 OK"),
        (GET % b"/healthz", b"200 OK"),
        (b"GET /healthz HTTP/1.0\r\n\r\n", b"200 OK"),
        (GET % b"/", b"404 Not Found"),
        (GET % b"/../keys/log.key", b"404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"DELETE / HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"GET http://elsewhere/metrics HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"GET /metrics\r\n\r\n", b"400 Bad Request"),
        (b"GET /\x1b[2J HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nX: " + bytes(2 * MAX_HEAD), b"431 Request Header Fields Too Large"),
    ],
)
def test_status(served: Daemon, request_bytes: bytes, status: bytes) -> None:
    async def run() -> bytes:
        async with serving(served) as port:
            return await ask(port, request_bytes)

    answer = served.run(run())
    assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head
    assert b"\x1b" not in body


def test_head_is_get_without_the_body(served: Daemon) -> None:
    async def run() -> tuple[bytes, bytes]:
        async with serving(served) as port:
            got = await ask(port, GET % b"/healthz")
            return got, await ask(port, b"HEAD /healthz HTTP/1.1\r\n\r\n")

    got, head = served.run(run())
    assert got.endswith(b"\r\n\r\nok\n")
    assert head == got.removesuffix(b"ok\n")


def test_health_says_why(served: Daemon) -> None:
    served.context.metrics.failed_jobs["retention"] = "the disk\nfailed\x1b[2J"

    async def run() -> bytes:
        async with serving(served) as port:
            return await ask(port, GET % b"/healthz")

    answer = served.run(run())
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert answer.endswith(b"\r\n\r\nretention: the disk\\nfailed\\x1b[2J\n")


def test_silent_connections_keep_nobody_out(served: Daemon) -> None:
    """Beyond the limit, the oldest one is ended, and each ends when its time is over."""

    async def run() -> None:
        async with serving(served) as port:
            silent = [
                await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS)
            ]
            assert (await ask(port, GET % b"/healthz")).startswith(b"HTTP/1.1 200")
            with pytest.raises((ConnectionError, EOFError)):
                await silent[0][0].readexactly(1)
            for _, writer in silent:
                writer.close()

    served.run(run())


def test_a_slow_request_is_ended(served: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "SECONDS", 0.05)

    async def run() -> bytes:
        async with serving(served) as port:
            return await ask(port, b"GET /metrics HTTP/1.1\r\n")

    assert served.run(run()) == b""


def test_a_flood_does_not_make_each_answer_anew(
    served: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each proof that the daemon can write takes syncs."""
    proofs = 0
    prove = served.context.committer.prove_writing

    def counted() -> object:
        nonlocal proofs
        proofs += 1
        return prove()

    monkeypatch.setattr(served.context.committer, "prove_writing", counted)
    monkeypatch.setattr(metrics_server, "FRESH_SECONDS", 60.0)

    async def run() -> list[bytes]:
        async with serving(served) as port:
            return await asyncio.gather(*(ask(port, GET % b"/healthz") for _ in range(5)))

    assert all(answer.endswith(b"ok\n") for answer in served.run(run()))
    assert proofs == 1


def test_nothing_is_imported_without_the_setting() -> None:
    code = "import sys, sfsd.net.listener; sys.exit('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment({}), check=False)
    assert done.returncode == 0
