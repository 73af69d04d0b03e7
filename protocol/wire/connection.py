"""Protocol state of one connection, for both roles, without I/O: bytes to messages and back.

Two tables define the legal order. `_LEGAL` lists what each side may send in each state; a side
checks its own row before it sends and the peer's row when it receives. `_REPLIES` lists the replies
that may answer a request. Access rights are not checked here: the server's service answers a
request beyond a session's rights with an `Error`.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from typing import ClassVar

from protocol.codec.encoding import MAX_BODY, Buffer
from protocol.codec.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    SequenceError,
    UnknownMessage,
)
from protocol.codec.values import Value
from protocol.wire.frames import MAX_OPENING_BODY, FrameReader, encode_frame
from protocol.wire.messages import Error, Message, Reply, Request, decode, encode, registered
from protocol.wire.messages.session import OPENING, Session, Welcome

MAX_OUTSTANDING = 1024
"""Most requests that may wait for their reply on one connection."""
WELCOME_ID = 0
"""The request id of the Welcome, which answers no request; a client's ids are 1 to 2^32 - 1."""


class Role(Enum):
    """End of a connection."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def peer(self) -> Role:
        """The role of the other end."""
        return Role.SERVER if self is Role.CLIENT else Role.CLIENT


class ConnectionState(Enum):
    """State of a connection. Both ends pass through the states in this order."""

    WELCOME = "before the Welcome"
    OPENING = "before the login"
    OPEN = "in a session"
    CLOSED = "after a protocol error"


class UnknownRequest(Request):
    """A request of a type that this version does not know; it is answered with an `Error`."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = ()

    number: int


class ReceivedMessage(Value):
    """A received message, and the request id that it has or answers."""

    request_id: int
    message: Message


_Types = frozenset[type[Message]]
_REQUESTS: _Types = frozenset(
    cls for cls in registered().values() if issubclass(cls, Request) and cls not in OPENING
)
_ANSWERS: _Types = frozenset(
    cls for cls in registered().values() if issubclass(cls, Reply) and cls is not Welcome
)
_ALL: _Types = frozenset({*registered().values(), UnknownRequest})
_NOTHING: _Types = frozenset()

_LEGAL: dict[tuple[Role, ConnectionState], tuple[_Types, int]] = {
    (Role.SERVER, ConnectionState.WELCOME): (frozenset({Welcome}), MAX_OPENING_BODY),
    (Role.CLIENT, ConnectionState.WELCOME): (_NOTHING, MAX_OPENING_BODY),
    # The server's limit rises first: a client answers a Welcome only after it has authenticated the
    # server, and the receipt of an Enroll is longer than the Enroll.
    (Role.SERVER, ConnectionState.OPENING): (frozenset({Session, Error}), MAX_BODY),
    (Role.CLIENT, ConnectionState.OPENING): (frozenset(OPENING), MAX_OPENING_BODY),
    (Role.SERVER, ConnectionState.OPEN): (_ANSWERS, MAX_BODY),
    (Role.CLIENT, ConnectionState.OPEN): (_REQUESTS | {UnknownRequest}, MAX_BODY),
    (Role.SERVER, ConnectionState.CLOSED): (_NOTHING, 0),
    (Role.CLIENT, ConnectionState.CLOSED): (_NOTHING, 0),
}
"""The messages that each side may send in each state, and the longest frame body in bytes."""

_REPLIES: dict[type[Message], _Types] = {
    cls: frozenset({*cls.REPLIES, Error}) for cls in _ALL if issubclass(cls, Request)
}


class Connection:
    """One end of a connection. Not thread-safe; uses no socket and no clock.

    `welcome_sha256` is SHA-256 of the exact Welcome body that was sent or received, which a Login
    signature covers: 32 bytes, empty before the Welcome.
    """

    def __init__(self, role: Role) -> None:
        self.role = role
        self.welcome_sha256 = b""
        self._outstanding: dict[int, type[Message]] = {}
        self._last_id = WELCOME_ID
        self._reader = FrameReader(MAX_OPENING_BODY)
        self._enter(ConnectionState.WELCOME)

    def get_buffer(self, hint: int) -> memoryview:  # noqa: ARG002 - the signature is asyncio's
        """Return the buffer for the next received bytes, never empty. `hint` is ignored."""
        return self._reader.get_buffer()

    def buffer_updated(self, n: int, most: int | None = None) -> list[ReceivedMessage]:
        """Take `n` bytes received into the buffer; return the messages that are now complete.

        They are at most `most`, if given. After that many, call it again with 0 bytes until it
        returns fewer, before the next `get_buffer`. Raises `RemoteProtocolError` if the peer broke
        the rules. The connection is then closed, and the messages of this call before the fault are
        dropped.
        """
        if self.state is ConnectionState.CLOSED:
            return []
        self._reader.buffer_updated(n)
        messages: list[ReceivedMessage] = []
        try:
            while len(messages) != most and (body := self._reader.next_body()) is not None:
                messages.append(self._receive(body))
        except RemoteProtocolError:
            self._reader = FrameReader(0)  # takes bytes that still arrive; they are never read
            self._enter(ConnectionState.CLOSED)
            raise
        return messages

    def request(self, message: Request) -> tuple[int, list[Buffer]]:
        """Return, for a client, the request's id and the pieces of its frame in order.

        Raises `LocalProtocolError` if it is not legal now, or `MAX_OUTSTANDING` requests wait.
        """
        limit = self._check_sending(Role.CLIENT, message)
        most = 1 if self.state is ConnectionState.OPENING else MAX_OUTSTANDING
        if len(self._outstanding) >= most:
            raise LocalProtocolError(f"{most} requests already wait for a reply")
        request_id = self._next_id()
        pieces = encode_frame(encode(request_id, message), limit)
        self._outstanding[request_id] = type(message)
        self._last_id = request_id
        return request_id, pieces

    def respond(self, request_id: int, message: Reply) -> list[Buffer]:
        """Return, for a server, the pieces of a reply's frame. A Welcome answers `WELCOME_ID`.

        Raises `LocalProtocolError` if that request does not wait or has other reply types.
        """
        limit = self._check_sending(Role.SERVER, message)
        if isinstance(message, Welcome):
            if request_id != WELCOME_ID:
                raise LocalProtocolError("a Welcome answers no request")
            body = encode(request_id, message)
            pieces = encode_frame(body, limit)
            self._welcomed(b"".join(body))
            return pieces
        if not self._is_reply(request_id, message):
            raise LocalProtocolError(f"{type(message).__name__} answers no request {request_id}")
        pieces = encode_frame(encode(request_id, message), limit)
        del self._outstanding[request_id]
        return pieces

    def established(self) -> None:
        """Open the session, for a server, just before or after the Session reply is sent."""
        if self.role is not Role.SERVER or self.state is not ConnectionState.OPENING:
            raise LocalProtocolError(f"login accepted {self.state.value}")
        self._enter(ConnectionState.OPEN)

    def _receive(self, body: memoryview) -> ReceivedMessage:
        message: Message
        try:
            request_id, message = decode(body)
        except UnknownMessage as exc:
            if self.role is Role.CLIENT:
                raise  # no known request has such a reply
            request_id, message = exc.request_id, UnknownRequest(exc.number)
        if type(message) not in self._received:
            raise SequenceError(f"{type(message).__name__} {self.state.value}")
        if self.role is Role.SERVER:
            self._asked(request_id, message)
        elif self.state is ConnectionState.WELCOME:
            if request_id != WELCOME_ID:
                raise SequenceError("the Welcome answers a request")
            self._welcomed(body)
        else:
            self._answered(request_id, message)
        return ReceivedMessage(request_id, message)

    def _asked(self, request_id: int, message: Message) -> None:
        if request_id == WELCOME_ID or request_id in self._outstanding:
            raise SequenceError(f"the request id {request_id} is in use")
        most = 1 if self.state is ConnectionState.OPENING else MAX_OUTSTANDING
        if len(self._outstanding) >= most:
            raise SequenceError(f"more than {most} requests wait for a reply")
        self._outstanding[request_id] = type(message)

    def _answered(self, request_id: int, message: Message) -> None:
        if not self._is_reply(request_id, message):
            raise SequenceError(f"{type(message).__name__} answers no request {request_id}")
        del self._outstanding[request_id]
        if isinstance(message, Session):
            self._enter(ConnectionState.OPEN)

    def _is_reply(self, request_id: int, message: Message) -> bool:
        """Return whether the request waits and `message` may answer it."""
        asked = self._outstanding.get(request_id)
        return asked is not None and type(message) in _REPLIES[asked]

    def _welcomed(self, body: Buffer) -> None:
        self.welcome_sha256 = hashlib.sha256(body).digest()
        self._enter(ConnectionState.OPENING)

    def _enter(self, state: ConnectionState) -> None:
        self.state = state
        self._sent, self._limit = _LEGAL[self.role, state]
        self._received, self._reader.limit = _LEGAL[self.role.peer, state]

    def _check_sending(self, role: Role, message: Message) -> int:
        """Return the longest body that may be sent now. Raises `LocalProtocolError`."""
        if self.role is not role or type(message) not in self._sent:
            raise LocalProtocolError(f"{type(message).__name__} {self.state.value}")
        return self._limit

    def _next_id(self) -> int:
        """Return the next id, skipping ids in use; 1 follows 2^32 - 1."""
        request_id = self._last_id
        while True:
            request_id = request_id % (2**32 - 1) + 1
            if request_id not in self._outstanding:
                return request_id
