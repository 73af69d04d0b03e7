"""Low-level client: TCP, optional TLS, and single frames."""

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
    """Return a TLS context that accepts any server certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Wire:
    """One connection; use it with ``async with await Wire.connect(…)``, or `close` it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.connection = Connection(Role.CLIENT)
        self._received: list[Message] = []

    @classmethod
    async def connect(
        cls, address: str, tls: ssl.SSLContext | None, source: str | None = None
    ) -> Self:
        """Connect to ``HOST:PORT``, without TLS if `tls` is None. Raises the errors of asyncio.

        `source` is the local address to bind, instead of the system's choice.
        """
        host, port = parse_address(address)
        local = None if source is None else (source, 0)
        async with asyncio.timeout(SECONDS):
            return cls(*await asyncio.open_connection(host, port, ssl=tls, local_addr=local))

    @classmethod
    async def welcomed(cls, address: str, source: str | None = None) -> Self:
        """Connect with TLS and receive the server's Welcome."""
        wire = await cls.connect(address, any_server(), source)
        await wire.message()
        return wire

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def message(self) -> Message:
        """Return the next message. Raises EOFError if the server has closed the connection."""
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
        """Send a request and return the next message: its reply, if no other request waits."""
        _, pieces = self.connection.request(message)
        await self.send(b"".join(pieces))
        return await self.message()

    def login(
        self,
        key: SigningKey,
        server: bytes,
        spki: bytes,
        *,
        user: str = OPERATOR,
        device_id: bytes | None = None,
    ) -> Login:
        """Return a Login for this connection, signed by the operator or by a device that has the
        keys of generation 1."""
        body = login_body(
            server=server,
            spki=spki,
            welcome=self.connection.welcome_sha256,
            version=PROTOCOL_VERSION,
            user=user,
            device_id=device_id,
            generation=1,
        )
        return Login(PROTOCOL_VERSION, user, device_id, 1, 0, key.sign(Label.LOGIN, body))

    async def ended(self, within: float = SECONDS) -> bytes:
        """Return the bytes received until the server closes the connection. Raises TimeoutError."""
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
