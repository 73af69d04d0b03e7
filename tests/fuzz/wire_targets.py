"""Targets for what arrives on a socket: frames in each state of a connection, and each message."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, Phase, given, seed, settings

from protocol.codec.encoding import VIEW_FROM
from protocol.codec.errors import RemoteProtocolError
from protocol.codec.fields import Struct
from protocol.wire.connection import WELCOME_ID, Connection, Role
from protocol.wire.frames import encode_frame
from protocol.wire.messages import Error, Message, Request, decode, encode, registered
from protocol.wire.messages.session import OPENING, Login, Session, Welcome
from tests.fuzz.target import Parser, Stream, Target
from tests.fuzz.world import World
from tests.protocol.strategies import structs

_SAMPLES = 12
_LONGEST = 40_000
"""Longest sample in bytes of a message: longer ones only cost time."""


def samples_of(cls: type[Struct]) -> list[Struct]:
    """Return values of a struct, always the same ones."""
    found: list[Struct] = []

    @seed(1)
    @settings(
        max_examples=_SAMPLES,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(structs(cls))
    def collect(value: Struct) -> None:
        found.append(value)

    collect()
    return found


def message_targets(world: World) -> list[Target]:
    """Return a target for each registered message."""
    targets: list[Target] = []
    for cls in registered().values():
        bodies = bodies_of(world, cls)
        targets.append(Parser(cls.__name__, bodies, (RemoteProtocolError,), _decode_again))
    return targets


def bodies_of(world: World, cls: type[Message]) -> list[bytes]:
    """Return messages of a type that were exchanged, and made ones. Long ones are left out."""
    values = [*world.messages.get(cls, []), *samples_of(cls)]
    bodies = [_body(1, value) for value in values if isinstance(value, Message)]
    return [body for body in bodies if len(body) <= _LONGEST] or bodies


def _decode_again(body: bytes) -> None:
    """Decode a body as it is received, and check that what it says survives another encoding."""
    received = memoryview(bytearray(body)) if len(body) >= VIEW_FROM else memoryview(body)
    request_id, message = decode(received)
    again = decode(memoryview(_body(request_id, message)))
    if again != (request_id, message):
        raise AssertionError("encoding what was decoded gives another message")


def frame_targets(world: World) -> list[Target]:
    """Return a target for each side and state of a connection."""
    return [
        _stream("server before the login", _opening(world), lambda: _server(world)),
        _stream("server in a session", _requests(world), lambda: _server_in_session(world)),
        _stream("client before the Welcome", _replies(world), lambda: Connection(Role.CLIENT)),
        _stream("client before the login", _replies(world), lambda: _client(world)),
        _stream("client in a session", _replies(world), lambda: _client_in_session(world)),
    ]


def _stream(name: str, bodies: list[bytes], connected: Callable[[], Connection]) -> Stream:
    shorter = [body for body in bodies if len(body) <= _LONGEST]
    return Stream(
        name, shorter, (RemoteProtocolError,), lambda: _feeding(connected()), _framed_if_any
    )


def _framed_if_any(body: bytes) -> bytes:
    """Return the frame of a body; of an empty one, which cannot be sent, the header."""
    return b"".join(encode_frame([body])) if body else bytes(4)


def _feeding(connection: Connection) -> Callable[[bytes], object]:
    def feed(piece: bytes) -> None:
        while piece:
            buffer = connection.get_buffer(-1)
            size = min(len(buffer), len(piece))
            buffer[:size] = piece[:size]
            connection.buffer_updated(size)
            piece = piece[size:]

    return feed


def _first(world: World, cls: type[Message]) -> Message:
    return world.messages[cls][0]


def _session_requests(world: World) -> list[Request]:
    """Return one request of each type that was sent in a session, in a fixed order."""
    firsts = [_first(world, cls) for cls in world.messages if cls not in OPENING]
    return [one for one in firsts if isinstance(one, Request)]


def _opening(world: World) -> list[bytes]:
    return [_body(1, one) for cls in OPENING for one in world.messages[cls]]


def _requests(world: World) -> list[bytes]:
    """Return requests with different ids."""
    return [_body(at, one) for at, one in enumerate(_session_requests(world), 1)]


def _replies(world: World) -> list[bytes]:
    """Return the Welcome, the reply to the login with the id 1, and replies to
    `_session_requests`, which have the ids from 2 on."""
    found = [_body(WELCOME_ID, _first(world, Welcome)), _body(1, _first(world, Session))]
    for at, request in enumerate(_session_requests(world), 2):
        answers: list[type[Message]] = [*type(request).REPLIES, Error]
        for cls in answers:
            found += [_body(at, one) for one in world.messages[cls]]
    return found


def _body(request_id: int, message: Message) -> bytes:
    return b"".join(encode(request_id, message))


def _server(world: World) -> Connection:
    connection = Connection(Role.SERVER)
    welcome = _first(world, Welcome)
    assert isinstance(welcome, Welcome)
    connection.respond(WELCOME_ID, welcome)
    return connection


def _server_in_session(world: World) -> Connection:
    connection = _server(world)
    connection.established()
    return connection


def _client(world: World) -> Connection:
    connection = Connection(Role.CLIENT)
    _feeding(connection)(_framed_if_any(_body(WELCOME_ID, _first(world, Welcome))))
    login = _first(world, Login)
    assert isinstance(login, Login)
    connection.request(login)
    return connection


def _client_in_session(world: World) -> Connection:
    """Return a client that waits for the replies to `_session_requests`."""
    connection = _client(world)
    _feeding(connection)(_framed_if_any(_body(1, _first(world, Session))))
    for request in _session_requests(world):
        connection.request(request)
    return connection
