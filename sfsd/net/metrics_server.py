"""A small HTTP server for ``/metrics`` and ``/healthz``: GET and HEAD, one request a connection.

Who may connect is not checked, so it listens on the loopback address unless the operator names
another one. What a peer can cost is bounded: connections, bytes and time of a request, and how
often an answer is made.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final, NamedTuple

from protocol.codec.terminal_text import printable
from sfsd.jobs.account_survey import AccountSurvey
from sfsd.net.metrics import CONTENT_TYPE, MetricsRegistry
from sfsd.operations.health import find_problems
from sfsd.rules.context import ServerContext

MAX_CONNECTIONS: Final = 8
MAX_HEAD: Final = 8 * 1024
"""Bytes of a request line and its headers."""
SECONDS: Final = 10.0
"""Time for a request, its answer and its delivery; a proof that the daemon writes may take five."""
FRESH_SECONDS: Final = 0.5
"""How long an answer is given again, so that a flood of requests costs little."""
_REQUEST: Final = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,1000}) HTTP/1\.[01]\r\n")
_log = logging.getLogger(__name__)
_TEXT: Final = "text/plain; charset=utf-8"


class _Response(NamedTuple):
    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT


class _Fresh:
    """Makes an answer, one at a time, and gives it again while it is fresh."""

    def __init__(self, make: Callable[[], _Response]) -> None:
        self._make = make
        self._lock = asyncio.Lock()
        self._made: tuple[float, _Response] | None = None

    async def get(self) -> _Response:
        loop = asyncio.get_running_loop()
        async with self._lock:
            if self._made is None or loop.time() - self._made[0] > FRESH_SECONDS:
                response = await asyncio.to_thread(self._make)
                self._made = loop.time(), response
            return self._made[1]


class MetricsServer:
    """The server; all methods on one loop."""

    def __init__(self, context: ServerContext, survey: AccountSurvey) -> None:
        registry = MetricsRegistry(context, survey)
        metrics = _Fresh(lambda: _Response(HTTPStatus.OK, registry.render(), CONTENT_TYPE))
        health = _Fresh(lambda: _health(context))
        self._pages: dict[bytes, Callable[[], Awaitable[_Response]]] = {
            b"/metrics": metrics.get,
            b"/healthz": health.get,
        }
        self._servers: list[asyncio.Server] = []
        self._open: dict[asyncio.Task[None], None] = {}  # oldest first

    async def start(self, listening: list[socket.socket]) -> None:
        """Accept connections on these sockets, which it closes at the end."""
        for one in listening:
            self._servers.append(await asyncio.start_server(self._accept, sock=one, limit=MAX_HEAD))

    async def close(self) -> None:
        """Stop accepting and end all connections."""
        for one in self._servers:
            one.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._open[task] = None
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._open.pop(task, None)
        if not task.cancelled() and (exc := task.exception()) is not None:
            _log.error("a request for metrics failed", exc_info=exc)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                writer.write(await self._answer(reader))
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError):
            pass  # the peer went away, or is too slow
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        """Read a request and return the bytes of its response. Raises EOFError."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _encoded(_refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        request = _REQUEST.match(head)
        if request is None:
            return _encoded(_refusal(HTTPStatus.BAD_REQUEST))
        method, target = request.groups()
        if method not in (b"GET", b"HEAD"):
            return _encoded(_refusal(HTTPStatus.METHOD_NOT_ALLOWED), "Allow: GET, HEAD\r\n")
        page = self._pages.get(target.partition(b"?")[0])
        response = _refusal(HTTPStatus.NOT_FOUND) if page is None else await page()
        return _encoded(response, with_body=method == b"GET")


def _health(context: ServerContext) -> _Response:
    """Return 200, or 503 with why the daemon is not well, one reason a line."""
    problems = find_problems(context)
    status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
    text = "".join(f"{printable(line)}\n" for line in problems or ["ok"])
    return _Response(status, text.encode())


def _refusal(status: HTTPStatus) -> _Response:
    return _Response(status, f"{status.phrase}\n".encode())


def _encoded(response: _Response, headers: str = "", *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {response.status.value} {response.status.phrase}\r\n"
        f"Content-Type: {response.content_type}\r\n"
        f"Content-Length: {len(response.body)}\r\n"
        f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{headers}"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (response.body if with_body else b"")
