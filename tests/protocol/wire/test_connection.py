"""Both roles connected: legal order, request ids, limits, and arbitrary bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import encoding
from protocol.codec.encoding import MAX_BODY, Buffer
from protocol.codec.errors import (
    EncodingError,
    FrameError,
    LocalProtocolError,
    MessageError,
    RemoteProtocolError,
    SequenceError,
    UnknownMessage,
)
from protocol.wire.connection import (
    MAX_OUTSTANDING,
    WELCOME_ID,
    Connection,
    ConnectionState,
    ReceivedMessage,
    Role,
    UnknownRequest,
)
from protocol.wire.frames import MAX_OPENING_BODY
from protocol.wire.messages import Error, Message, Receipt, Reply, Request, encode, registered
from protocol.wire.messages.accounts import Usage, UsageAnswer
from protocol.wire.messages.downloads import Bytes, Read
from protocol.wire.messages.session import (
    OPENING,
    Enroll,
    Limits,
    Login,
    Ping,
    Pong,
    Session,
    Welcome,
)
from protocol.wire.messages.uploads import Data, UploadState
from tests.protocol.strategies import structs
from tests.vectors import protocol_examples

WELCOME = Welcome((2,), b"statement", bytes(64), bytes(32), Limits(2**24, 90, 30, 10))
LOGIN = Login(1, "alice", bytes(16), 1, 0, bytes(64))
ENROLL = Enroll(1, "alice", b"statement", b"bundle", bytes(64), bytes(32), bytes(32))
SESSION = Session(b"checkpoint", None, None, 1_700_000_000)
DATA = Data(bytes(16), 0, b"x" * 1024 * 1024)
REFUSED = Error("refused", "no")


def feed(
    to: Connection, pieces: Iterable[Buffer], chunks: Sequence[int] = ()
) -> list[ReceivedMessage]:
    """Return the messages in the pieces, received in `chunks` of given sizes and then at once."""
    data = memoryview(b"".join(pieces))
    sizes = iter(chunks)
    received: list[ReceivedMessage] = []
    at = 0
    while at < len(data):
        buffer = to.get_buffer(-1)
        assert len(buffer) > 0
        n = min(next(sizes, len(data)), len(buffer), len(data) - at)
        buffer[:n] = data[at : at + n]
        at += n
        received += to.buffer_updated(n)
    return received


def raw(request_id: int, message: Message) -> list[Buffer]:
    """Return an unchecked frame."""
    body = b"".join(encode(request_id, message))
    return [len(body).to_bytes(4, "big"), body]


def opening() -> tuple[Connection, Connection]:
    """Return (client, server) after the Welcome."""
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)
    feed(client, server.respond(WELCOME_ID, WELCOME))
    return client, server


def opened() -> tuple[Connection, Connection]:
    """Return (client, server) after a login."""
    client, server = opening()
    request_id, pieces = client.request(LOGIN)
    feed(server, pieces)
    server.established()
    feed(client, server.respond(request_id, SESSION))
    return client, server


def ask(client: Connection, server: Connection, message: Request) -> int:
    request_id, pieces = client.request(message)
    assert feed(server, pieces) == [ReceivedMessage(request_id, message)]
    return request_id


def assert_closed(connection: Connection) -> None:
    """Check that nothing can be sent, and that received bytes are taken and ignored."""
    assert connection.state is ConnectionState.CLOSED
    assert feed(connection, [bytes(100_000)]) == []
    with pytest.raises(LocalProtocolError):
        connection.request(Ping())
    with pytest.raises(LocalProtocolError):
        connection.respond(1, REFUSED)


def test_a_session() -> None:
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)
    states = [(client.state, server.state)]
    pieces = server.respond(WELCOME_ID, WELCOME)
    assert feed(client, pieces) == [ReceivedMessage(WELCOME_ID, WELCOME)]
    states.append((client.state, server.state))
    digest = hashlib.sha256(b"".join(pieces)[4:]).digest()
    assert client.welcome_sha256 == server.welcome_sha256 == digest

    first = ask(client, server, LOGIN)
    assert first == 1
    server.established()
    assert feed(client, server.respond(first, SESSION)) == [ReceivedMessage(first, SESSION)]
    states.append((client.state, server.state))
    assert states == [
        (state, state)
        for state in (ConnectionState.WELCOME, ConnectionState.OPENING, ConnectionState.OPEN)
    ]

    ids = [ask(client, server, message) for message in (Ping(), Usage(), DATA)]
    assert ids == [2, 3, 4]
    assert len(client._outstanding) == len(server._outstanding) == 3
    answers = [UploadState(bytes(16), 0), Pong(5), UsageAnswer(1, 2, 3)]
    for request_id, answer in zip((4, 2, 3), answers, strict=True):
        assert feed(client, server.respond(request_id, answer)) == [
            ReceivedMessage(request_id, answer)
        ]
    assert len(client._outstanding) == len(server._outstanding) == 0


def test_the_session_may_be_sent_before_it_is_established() -> None:
    client, server = opening()
    request_id = ask(client, server, LOGIN)
    feed(client, server.respond(request_id, SESSION))
    server.established()
    ask(client, server, Ping())


@pytest.mark.parametrize("attempt", [LOGIN, ENROLL])
def test_a_refused_login_can_be_retried(attempt: Request) -> None:
    client, server = opening()
    for expected in (1, 2):
        request_id = ask(client, server, attempt)
        assert request_id == expected
        assert feed(client, server.respond(request_id, REFUSED)) == [
            ReceivedMessage(expected, REFUSED)
        ]
    assert client.state is server.state is ConnectionState.OPENING


# What the peer may send in each state, with one example of each kind of message.
KINDS: dict[str, Message] = {
    "welcome": WELCOME,
    "login": LOGIN,
    "enroll": ENROLL,
    "session": SESSION,
    "error": REFUSED,
    "request": Ping(),
    "reply": Pong(1),
    "unknown": UnknownRequest(999),
}
LEGAL: dict[tuple[Role, ConnectionState], set[str]] = {
    (Role.CLIENT, ConnectionState.WELCOME): {"welcome"},
    (Role.SERVER, ConnectionState.WELCOME): set(),
    (Role.CLIENT, ConnectionState.OPENING): {"session", "error"},
    (Role.SERVER, ConnectionState.OPENING): {"login", "enroll"},
    (Role.CLIENT, ConnectionState.OPEN): {"error", "reply"},
    (Role.SERVER, ConnectionState.OPEN): {"request", "unknown"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "state", [ConnectionState.WELCOME, ConnectionState.OPENING, ConnectionState.OPEN]
)
@pytest.mark.parametrize("role", Role)
def test_the_table_of_legal_order(role: Role, state: ConnectionState, kind: str) -> None:
    connection = _in_state(role, state)
    request_id = WELCOME_ID if kind == "welcome" else 9
    if role is Role.CLIENT and state is not ConnectionState.WELCOME:
        request_id, _ = connection.request(LOGIN if state is ConnectionState.OPENING else Ping())
    message = KINDS[kind]
    if kind == "unknown":
        body = encoding.pack([999, request_id, "whatever"])
        pieces: list[Buffer] = [len(body).to_bytes(4, "big"), body]
    else:
        pieces = raw(request_id, message)
    if kind in LEGAL[role, state]:
        assert feed(connection, pieces) == [ReceivedMessage(request_id, message)]
    else:
        wrong = UnknownMessage if (kind, role) == ("unknown", Role.CLIENT) else SequenceError
        with pytest.raises(wrong):
            feed(connection, pieces)
        assert_closed(connection)


def _in_state(role: Role, state: ConnectionState) -> Connection:
    if state is ConnectionState.WELCOME:
        return Connection(role)
    client, server = opening() if state is ConnectionState.OPENING else opened()
    assert client.state is server.state is state
    return client if role is Role.CLIENT else server


@pytest.mark.parametrize(
    ("state", "messages"),
    [
        (ConnectionState.WELCOME, [LOGIN, ENROLL, Ping(), Usage()]),
        (ConnectionState.OPENING, [Ping(), Usage(), DATA, UnknownRequest(7)]),
        (ConnectionState.OPEN, [LOGIN, ENROLL]),
    ],
)
def test_a_client_sends_nothing_out_of_order(
    state: ConnectionState, messages: list[Request]
) -> None:
    client = _in_state(Role.CLIENT, state)
    for message in messages:
        with pytest.raises(LocalProtocolError):
            client.request(message)
    assert client.state is state
    assert len(client._outstanding) == 0


def test_a_server_sends_nothing_out_of_order() -> None:
    server = Connection(Role.SERVER)
    for request_id, message in ((0, SESSION), (0, REFUSED), (1, WELCOME), (0, Pong(1))):
        with pytest.raises(LocalProtocolError):
            server.respond(request_id, message)
    assert server.welcome_sha256 == b""
    with pytest.raises(LocalProtocolError):
        server.established()
    client, server = opening()
    with pytest.raises(LocalProtocolError):
        server.respond(WELCOME_ID, WELCOME)
    request_id = ask(client, server, LOGIN)
    with pytest.raises(LocalProtocolError):
        server.respond(request_id, Pong(1))
    server.established()
    with pytest.raises(LocalProtocolError):
        server.established()


def test_roles_are_not_mixed_up() -> None:
    client, server = opened()
    with pytest.raises(LocalProtocolError):
        client.respond(1, Pong(1))
    with pytest.raises(LocalProtocolError):
        server.request(Ping())
    with pytest.raises(LocalProtocolError):
        client.established()


EXAMPLES = {type(message): message for _, message in protocol_examples.MESSAGES}
REQUESTS = [message for message in EXAMPLES.values() if isinstance(message, Request)]
REPLIES = [message for message in EXAMPLES.values() if isinstance(message, Reply)]


@pytest.mark.parametrize("asked", REQUESTS, ids=lambda message: type(message).__name__)
def test_a_request_accepts_only_its_replies(asked: Request) -> None:
    for answer in REPLIES:
        client, server = opening() if type(asked) in OPENING else opened()
        request_id = ask(client, server, asked)
        if type(answer) in (*asked.REPLIES, Error):
            pieces = server.respond(request_id, answer)
            assert feed(client, pieces) == [ReceivedMessage(request_id, answer)]
            assert len(client._outstanding) == len(server._outstanding) == 0
        else:
            with pytest.raises(LocalProtocolError):
                server.respond(request_id, answer)
            with pytest.raises(SequenceError):
                feed(client, raw(request_id, answer))
            assert_closed(client)


def test_every_request_has_replies() -> None:
    assert EXAMPLES.keys() == set(registered().values())
    for asked in REQUESTS:
        assert asked.REPLIES
        assert Error not in asked.REPLIES
    answering = {reply for asked in REQUESTS for reply in asked.REPLIES}
    assert answering == {type(reply) for reply in REPLIES} - {Error, Welcome}


@pytest.mark.parametrize("request_id", [0, 1, 3, 2**32 - 1])
def test_a_reply_to_nothing(request_id: int) -> None:
    client, server = opened()
    assert ask(client, server, Ping()) == 2
    with pytest.raises(LocalProtocolError):
        server.respond(request_id, Pong(1))
    with pytest.raises(SequenceError):
        feed(client, raw(request_id, Pong(1)))


def test_a_second_reply() -> None:
    client, server = opened()
    request_id = ask(client, server, Ping())
    feed(client, server.respond(request_id, Pong(1)))
    with pytest.raises(LocalProtocolError):
        server.respond(request_id, Pong(1))
    with pytest.raises(SequenceError):
        feed(client, raw(request_id, Pong(1)))


@pytest.mark.parametrize("request_id", [0, 2])
def test_a_server_refuses_a_request_id_in_use(request_id: int) -> None:
    client, server = opened()
    assert ask(client, server, Ping()) == 2
    with pytest.raises(SequenceError):
        feed(server, raw(request_id, Ping()))
    assert_closed(server)


def test_a_request_id_is_free_again_after_its_reply() -> None:
    _, server = opened()
    for _ in range(2):
        assert feed(server, raw(7, Ping())) == [ReceivedMessage(7, Ping())]
        server.respond(7, Pong(1))


def test_a_welcome_has_the_request_id_zero() -> None:
    client = Connection(Role.CLIENT)
    with pytest.raises(SequenceError):
        feed(client, raw(1, WELCOME))
    assert client.welcome_sha256 == b""


def test_only_one_login_at_a_time() -> None:
    client, server = opening()
    ask(client, server, LOGIN)
    with pytest.raises(LocalProtocolError):
        client.request(LOGIN)
    with pytest.raises(SequenceError):
        feed(server, raw(2, LOGIN))


def test_outstanding_requests_are_limited() -> None:
    client, server = opened()
    for _ in range(MAX_OUTSTANDING):
        ask(client, server, Ping())
    with pytest.raises(LocalProtocolError):
        client.request(Ping())
    assert len(client._outstanding) == MAX_OUTSTANDING
    feed(client, server.respond(2, Pong(1)))
    ask(client, server, Ping())
    with pytest.raises(SequenceError):
        feed(server, raw(2, Ping()))


def test_request_ids_wrap_and_skip_ids_in_use() -> None:
    client, server = opened()
    for _ in range(2):
        ask(client, server, Ping())
    client._last_id = 2**32 - 2  # as after four thousand million requests
    assert [ask(client, server, Ping()) for _ in range(3)] == [2**32 - 1, 1, 4]


def test_an_unsendable_message_uses_no_request_id() -> None:
    client, server = opening()
    too_long = Enroll(1, "alice", bytes(16_000), bytes(400), bytes(64), bytes(32), bytes(32))
    with pytest.raises(LocalProtocolError):
        client.request(too_long)
    assert ask(client, server, LOGIN) == 1
    server.established()
    feed(client, server.respond(1, SESSION))
    assert ask(client, server, Ping()) == 2


@pytest.mark.parametrize(
    ("role", "state", "limit"),
    [
        (Role.CLIENT, ConnectionState.WELCOME, MAX_OPENING_BODY),
        (Role.SERVER, ConnectionState.WELCOME, MAX_OPENING_BODY),
        (Role.CLIENT, ConnectionState.OPENING, MAX_BODY),
        (Role.SERVER, ConnectionState.OPENING, MAX_OPENING_BODY),
        (Role.CLIENT, ConnectionState.OPEN, MAX_BODY),
        (Role.SERVER, ConnectionState.OPEN, MAX_BODY),
    ],
)
def test_a_length_past_the_limit_of_the_state(
    role: Role, state: ConnectionState, limit: int
) -> None:
    allowed = _in_state(role, state)
    assert feed(allowed, [limit.to_bytes(4, "big")]) == []
    refusing = _in_state(role, state)
    with pytest.raises(FrameError):
        feed(refusing, [(limit + 1).to_bytes(4, "big")])
    assert_closed(refusing)


def test_the_session_reply_may_be_longer_than_a_login() -> None:
    client, server = opening()
    receipt = Receipt(bytes(60_000), b"checkpoint", 0, b"")
    session = Session(b"checkpoint", receipt, None, 1)
    request_id = ask(client, server, ENROLL)
    assert feed(client, server.respond(request_id, session)) == [
        ReceivedMessage(request_id, session)
    ]


def test_unknown_requests_are_answered_and_the_session_continues() -> None:
    client, server = opened()
    body = encoding.pack([4000, 77, "field", [1], bytes(10)])
    assert feed(server, [len(body).to_bytes(4, "big"), body]) == [
        ReceivedMessage(77, UnknownRequest(4000))
    ]
    with pytest.raises(LocalProtocolError):
        server.respond(77, Pong(1))
    assert server.respond(77, Error("unknown-request", "4000"))
    ask(client, server, Ping())


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("92cc", EncodingError),
        ("c1", MessageError),
        ("80", MessageError),
        ("9115", MessageError),
        ("92c301", MessageError),
        ("9215c3", MessageError),
        ("9215ff", MessageError),
        ("9215cf0000000100000000", MessageError),
    ],
)
def test_invalid_bodies_close_the_connection(body: str, error: type[RemoteProtocolError]) -> None:
    client, server = opened()
    client.request(Ping())
    data = bytes.fromhex(body)
    for connection in (client, server):
        with pytest.raises(error):
            feed(connection, [len(data).to_bytes(4, "big"), data])
        assert_closed(connection)


def test_large_data_is_a_view_that_outlives_later_messages() -> None:
    client, server = opened()
    first = Data(bytes(16), 0, b"a" * 1024 * 1024)
    second = Data(bytes(16), 1024 * 1024, b"b" * 1024 * 1024)
    [kept] = feed(server, client.request(first)[1])
    feed(server, client.request(second)[1])
    assert isinstance(kept.message, Data)
    assert isinstance(kept.message.data, memoryview)
    assert kept.message.data.readonly
    assert kept.message == first


@given(
    st.lists(
        st.sampled_from([Ping(), Usage(), Read(bytes(16), 0, 1), DATA])
        | structs(Data)
        | structs(Read),
        max_size=8,
    ),
    st.lists(st.integers(1, 100) | st.integers(1, 200_000), max_size=40),
)
def test_any_chunks_give_the_same_messages(messages: list[Request], chunks: list[int]) -> None:
    client, server = opened()
    sent = [client.request(message) for message in messages]
    pieces = [piece for _, frame in sent for piece in frame]
    expected = [ReceivedMessage(sent[i][0], message) for i, message in enumerate(messages)]
    assert feed(server, pieces, chunks) == expected


def test_byte_by_byte() -> None:
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)
    ones = [1] * 100_000
    assert feed(client, server.respond(WELCOME_ID, WELCOME), ones)
    request_id, pieces = client.request(LOGIN)
    assert feed(server, pieces, ones) == [ReceivedMessage(request_id, LOGIN)]
    server.established()
    assert feed(client, server.respond(request_id, SESSION), ones)
    for message, reply in (
        (Data(bytes(16), 0, bytes(40_000)), UploadState(bytes(16), 40_000)),
        (Read(bytes(16), 0, 5), Bytes(bytes(50_000))),
    ):
        request_id, pieces = client.request(message)
        assert feed(server, pieces, ones) == [ReceivedMessage(request_id, message)]
        answer_pieces = server.respond(request_id, reply)
        assert feed(client, answer_pieces, ones) == [ReceivedMessage(request_id, reply)]


@given(st.binary(max_size=400), st.sampled_from(Role), st.integers(0, 2))
def test_any_bytes_give_messages_or_raise_remote_errors(data: bytes, role: Role, at: int) -> None:
    state = (ConnectionState.WELCOME, ConnectionState.OPENING, ConnectionState.OPEN)[at]
    framed = len(data).to_bytes(4, "big") + data
    for stream in (data, framed):
        connection = _in_state(role, state)
        try:
            feed(connection, [stream])
        except RemoteProtocolError:
            assert_closed(connection)
