"""A client below the library: raw TCP, TLS as one likes, frames one by one."""

from __future__ import annotations

import asyncio
import ssl
from typing import Self

from protocol.codec.names import OPERATOR
from protocol.records.invitation import parse_address
from protocol.records.records import login_body
from protocol.records.signatures import Label, SigningKey
from protocol.wire.connection import Connection, Role
from protocol.wire.messages import Message, Request
from protocol.wire.messages.session import PROTOCOL_VERSION, Login

SECONDS = 20.0
GONE = (ConnectionError, ssl.SSLError, BrokenPipeError)


def any_server() -> ssl.SSLContext:
    """TLS that trusts whoever answers: strangers do not care."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Wire:
    """One connection: ``async with await Wire.connect(…) as wire``, or `close` it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.connection = Connection(Role.CLIENT)
        self._received: list[Message] = []

    @classmethod
    async def connect(
        cls, address: str, tls: ssl.SSLContext | None, source: str | None = None
    ) -> Self:
        """To ``HOST:PORT``, in the clear where `tls` is None. Raises what asyncio raises.

        `source` is the address to come from, another than the system's choice.
        """
        host, port = parse_address(address)
        local = None if source is None else (source, 0)
        async with asyncio.timeout(SECONDS):
            return cls(*await asyncio.open_connection(host, port, ssl=tls, local_addr=local))

    @classmethod
    async def welcomed(cls, address: str, source: str | None = None) -> Self:
        """Through TLS, and past the server's Welcome."""
        wire = await cls.connect(address, any_server(), source)
        await wire.message()
        return wire

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def message(self) -> Message:
        """The next message. Raises EOFError where the server has closed the connection."""
        async with asyncio.timeout(SECONDS):
            while not self._received:
                data = await self.reader.read(64 * 1024)
                if not data:
                    raise EOFError
                while data:
                    buffer = self.connection.get_buffer(-1)
                    count = min(len(buffer), len(data))
                    buffer[:count] = data[:count]
                    data = data[count:]
                    for incoming in self.connection.buffer_updated(count):
                        self._received.append(incoming.message)
        return self._received.pop(0)

    async def ask(self, message: Request) -> Message:
        """Send a request and take the next message, which answers it where none else waits."""
        _, pieces = self.connection.request(message)
        await self.send(b"".join(pieces))
        return await self.message()

    def login(self, key: SigningKey, server: bytes, spki: bytes, *, user: str = OPERATOR) -> Login:
        """A Login on this connection by the key of generation 1."""
        body = login_body(
            server=server,
            spki=spki,
            welcome=self.connection.welcome_sha256,
            version=PROTOCOL_VERSION,
            user=user,
            generation=1,
        )
        return Login(PROTOCOL_VERSION, user, 1, 0, key.sign(Label.LOGIN, body))

    async def ended(self, within: float = SECONDS) -> bytes:
        """What still comes until the server closes the connection. Raises TimeoutError."""
        async with asyncio.timeout(within):
            rest = b""
            try:
                while data := await self.reader.read(64 * 1024):
                    rest += data
            except GONE:
                pass
            return rest

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def close(self) -> None:
        self.writer.transport.abort()
        try:
            await self.writer.wait_closed()
        except GONE:
            pass
