"""Transport against a real TLS server in a thread that uses `Connection`."""

from __future__ import annotations

import datetime
import hashlib
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from protocol.wire.connection import Connection, Role
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.downloads import Bytes, Read
from protocol.wire.messages.session import Limits, Login, Ping, Pong, Session, Welcome
from protocol.wire.messages.uploads import Data, UploadState
from sfsc.errors import NetworkError, ProtocolFailure, TimedOut, Unreachable
from sfsc.session.limits import MAX_REQUESTS, Ticket, Timeouts
from sfsc.session.transport import CORK, Transport, spki_sha256
from sfsc.session.waiting import Blocking, SocketWait
from tests.harness import environment

WELCOME = Welcome(
    versions=(2,),
    statement=b"statement",
    signature=bytes(64),
    challenge=bytes(32),
    limits=Limits(window=4 * PIECE, max_age=1, grace=1, jitter=0),
)
SESSION = Session(checkpoint=b"", receipt=None, notice=None, time=1)
LOGIN = Login(
    version=2, user="ada", device_id=bytes(16), generation=1, known_size=0, signature=bytes(64)
)
PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
QUICK = Timeouts(connect=30.0, opening=30.0, idle=30.0)
_SPKI = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def certificate(key: PrivateKey, *, subject: str = "sfsd", days: int = 1) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=days))
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm)


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A file with key and certificate, and the hash of the key's SubjectPublicKeyInfo."""
    key = ed25519.Ed25519PrivateKey.generate()
    path = tmp_path_factory.mktemp("tls") / "tls.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + certificate(key).public_bytes(serialization.Encoding.PEM))
    return path, hashlib.sha256(key.public_key().public_bytes(*_SPKI)).digest()


Answer = Callable[["Peer", int, Request], None]


@dataclass
class Peer:
    """The server's end of one connection, in a thread: sends a Welcome, then calls `answer`."""

    tls: ssl.SSLSocket
    answer: Answer
    connection: Connection = field(default_factory=lambda: Connection(Role.SERVER))
    seen: list[Request] = field(default_factory=list)

    def say(self, request_id: int, message: Reply) -> None:
        self.tls.sendall(b"".join(self.connection.respond(request_id, message)))

    def serve(self) -> None:
        self.say(0, WELCOME)
        while True:
            buffer = self.connection.get_buffer(-1)
            count = self.tls.recv_into(buffer)
            if count == 0:
                return
            for incoming in self.connection.buffer_updated(count):
                assert isinstance(incoming.message, Request)
                self.seen.append(incoming.message)
                if isinstance(incoming.message, Login):
                    self.connection.established()
                    self.say(incoming.request_id, SESSION)
                else:
                    self.answer(self, incoming.request_id, incoming.message)


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Pass the first connection to `serve`, in a thread; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            try:
                connected, _ = listener.accept()
            except OSError:
                return
            with connected:
                try:
                    serve(connected)
                except OSError:
                    return  # the client has left

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
    thread.join(10)
    assert not thread.is_alive()


def tls_server(
    pem: tuple[Path, bytes], version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem[0])
    context.num_tickets = 0
    context.maximum_version = version
    return context


@contextmanager
def opened(pem: tuple[Path, bytes], answer: Answer, timeouts: Timeouts = QUICK) -> Iterator[Any]:
    """Yield (logged-in transport, list of the requests that the server received)."""
    seen: list[Request] = []

    def serve(connected: socket.socket) -> None:
        with tls_server(pem).wrap_socket(connected, server_side=True) as tls:
            Peer(tls, answer, seen=seen).serve()

    with listening(serve) as port, Transport.dial("127.0.0.1", port, timeouts) as transport:
        assert transport.welcome() == WELCOME
        assert transport.call(LOGIN) == SESSION
        yield transport, seen


def pong(peer: Peer, request_id: int, message: Request) -> None:
    assert isinstance(message, Ping)
    peer.say(request_id, Pong(time=7))


def test_a_login_and_a_request(pem: tuple[Path, bytes]) -> None:
    with opened(pem, pong) as (transport, seen):
        assert transport.peer_spki_sha256 == pem[1]
        assert transport.call(Ping()) == Pong(time=7)
        assert seen == [LOGIN, Ping()]
        assert len(transport.welcome_sha256) == 32


def test_replies_arrive_in_any_order(pem: tuple[Path, bytes]) -> None:
    waiting: list[int] = []

    def backwards(peer: Peer, request_id: int, message: Request) -> None:
        waiting.append(request_id)
        if len(waiting) == 3:
            for number in reversed(waiting):
                peer.say(number, Pong(time=number))

    with opened(pem, backwards) as (transport, _):
        tickets = [transport.submit(Ping()) for _ in range(3)]
        assert [transport.result(ticket).time for ticket in tickets] == list(tickets)


def test_two_full_pipes_do_not_deadlock(pem: tuple[Path, bytes]) -> None:
    """The server answers each 1 MiB with 1 MiB before it reads on."""
    piece = os.urandom(PIECE)

    def echo(peer: Peer, request_id: int, message: Request) -> None:
        if isinstance(message, Data):
            peer.say(request_id, UploadState(upload=bytes(16), offset=message.offset))
        else:
            peer.say(request_id, Bytes(data=piece))

    with opened(pem, echo) as (transport, _):
        tickets = []
        for index in range(24):
            data = Data(upload=bytes(16), offset=index * PIECE, data=piece)
            tickets.append(transport.submit(data))
            tickets.append(transport.submit(Read(handle=bytes(16), offset=0, length=PIECE)))
        replies = [transport.result(ticket) for ticket in tickets]
    assert all(reply.data == piece for reply in replies[1::2])
    assert [reply.offset for reply in replies[::2]] == [i * PIECE for i in range(24)]


@given(size=st.integers(0, 3 * 16 * 1024))
def test_requests_of_any_size_arrive_intact(pem: tuple[Path, bytes], size: int) -> None:
    got: list[bytes] = []

    def keep(peer: Peer, request_id: int, message: Request) -> None:
        assert isinstance(message, Data)
        got.append(bytes(message.data))
        peer.say(request_id, UploadState(upload=bytes(16), offset=0))

    sent = os.urandom(size)
    with opened(pem, keep) as (transport, _):
        transport.call(Data(upload=bytes(16), offset=0, data=memoryview(sent)))
    assert got == [sent]


def stored(peer: Peer, request_id: int, message: Request) -> None:
    assert isinstance(message, Data)
    peer.say(request_id, UploadState(message.upload, message.offset + len(message.data)))


def test_small_requests_are_sent_in_one_segment(
    pem: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete data is never held back."""
    told: list[int] = []
    plain = ssl.SSLSocket.setsockopt

    def noted(tls: ssl.SSLSocket, level: int, option: int, value: int) -> None:
        if option == CORK:
            told.append(value)
        plain(tls, level, option, value)

    monkeypatch.setattr(ssl.SSLSocket, "setsockopt", noted)
    with opened(pem, stored) as (transport, _):
        for size in (1000, PIECE):  # one record; bulk fills segments by itself
            transport.call(Data(bytes(16), 0, bytes(size)))
        assert told == []
        tickets = [transport.submit(Data(bytes(16), 0, bytes(10_000))) for _ in range(5)]
        for ticket in tickets:
            transport.result(ticket)
    assert told == ([] if CORK is None else [1, 0])


def test_platforms_without_tcp_cork(
    pem: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfsc.session.transport.CORK", None)
    with opened(pem, stored) as (transport, _):
        tickets = [transport.submit(Data(bytes(16), n, bytes(10_000))) for n in range(5)]
        replies = [transport.result(ticket) for ticket in tickets]
    assert replies == [UploadState(bytes(16), n + 10_000) for n in range(5)]


def test_the_window_bounds_bytes_and_requests(pem: tuple[Path, bytes]) -> None:
    """The server replies only after a moment without new requests: it then holds one window."""
    held: list[int] = []
    most = 0

    def hold(peer: Peer, request_id: int, message: Request) -> None:
        nonlocal most
        held.append(request_id)
        most = max(most, len(held))
        full = 4 if isinstance(message, Read) else MAX_REQUESTS
        if len(held) == full:
            while held:
                reply = Bytes(data=b"") if full == 4 else Pong(time=1)
                peer.say(held.pop(), reply)

    with opened(pem, hold) as (transport, _):
        reads = [
            transport.submit(Read(handle=bytes(16), offset=i, length=PIECE)) for i in range(12)
        ]
        for ticket in reads:
            transport.result(ticket)
        assert most == 4  # the 4 MiB that the Welcome grants
        pings = [transport.submit(Ping()) for _ in range(2 * MAX_REQUESTS)]
        for ticket in pings:
            transport.result(ticket)
        assert most == MAX_REQUESTS


def test_a_received_piece_does_not_wait_for_the_next(
    pem: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller processes the first piece while the others arrive."""

    asked = threading.Event()

    def fill(peer: Peer, request_id: int, message: Request) -> None:
        assert isinstance(message, Read)
        asked.wait(10)
        peer.say(request_id, Bytes(data=bytes(message.length)))

    with opened(pem, fill) as (transport, _):
        receive = transport._fill

        def patient(buffer: memoryview) -> int:
            """Let everything in flight arrive before reading."""
            while not (count := receive(buffer)):
                if not select.select([transport._tls], [], [], 0.3)[0]:
                    break
            return int(count)

        first, *others = [
            transport.submit(Read(handle=bytes(16), offset=i, length=PIECE)) for i in range(4)
        ]
        monkeypatch.setattr(transport, "_fill", patient)
        asked.set()
        transport.result(first)
        assert not transport.has_reply(others[-1])
        for ticket in others:
            assert transport.result(ticket) == Bytes(data=bytes(PIECE))


def test_an_abandoned_reply_is_dropped(pem: tuple[Path, bytes]) -> None:
    with opened(pem, pong) as (transport, _):
        first = transport.submit(Ping())
        transport.abandon(first)
        second = transport.submit(Ping())
        transport.result(second)
        transport.abandon(second)
        assert (transport._replies, transport._abandoned) == ({}, set())


def test_a_reply_before_a_disconnect_is_not_lost(pem: tuple[Path, bytes]) -> None:
    def refuse(peer: Peer, request_id: int, message: Request) -> None:
        peer.say(request_id, Error(code="unavailable", text="", head=None))
        peer.tls.unwrap()

    with opened(pem, refuse) as (transport, _):
        ticket = transport.submit(Ping())
        reply = transport.result(ticket)
        assert isinstance(reply, Error)
        with pytest.raises(Unreachable):
            transport.call(Ping())
        assert not transport.usable


def test_a_shutdown_notice_counts_as_a_lost_connection(pem: tuple[Path, bytes]) -> None:
    """Earlier replies are delivered first."""

    def stop(peer: Peer, request_id: int, message: Request) -> None:
        if request_id > 2:  # 1 was the login
            peer.say(request_id, Error(code="shutting-down", text="", head=None))
        else:
            pong(peer, request_id, message)

    with opened(pem, stop) as (transport, _):
        first, second, third = (transport.submit(Ping()) for _ in range(3))
        with pytest.raises(Unreachable) as caught:
            transport.result(third)
        assert caught.value.hint
        assert not transport.usable
        assert isinstance(transport.result(first), Pong)
        with pytest.raises(Unreachable):
            transport.result(second)


def test_a_lost_connection(pem: tuple[Path, bytes]) -> None:
    def leave(peer: Peer, request_id: int, message: Request) -> None:
        peer.tls.close()
        raise OSError

    with opened(pem, leave) as (transport, _):
        with pytest.raises(Unreachable):
            transport.call(Ping())
        with pytest.raises(Unreachable):
            transport.submit(Ping())


def test_a_silent_server_times_out(pem: tuple[Path, bytes]) -> None:
    def say_nothing(peer: Peer, request_id: int, message: Request) -> None:
        return

    with opened(pem, say_nothing, Timeouts(30.0, 30.0, 0.1)) as (transport, _):
        started = time.monotonic()
        with pytest.raises(TimedOut):
            transport.call(Ping())
        assert time.monotonic() - started < 20, "it is not one of the other times"
        with pytest.raises(TimedOut):
            transport.call(Ping())


def test_each_step_of_the_opening_has_a_timeout(pem: tuple[Path, bytes]) -> None:
    """A server that sends a byte now and then cannot keep a client waiting for a Welcome."""

    def drip(connected: socket.socket) -> None:
        with tls_server(pem).wrap_socket(connected, server_side=True) as tls:
            tls.sendall((1000).to_bytes(4))
            while True:
                tls.sendall(b"x")
                time.sleep(0.02)

    with (
        listening(drip) as port,
        Transport.dial("127.0.0.1", port, Timeouts(30.0, 0.2, 30.0)) as transport,
        pytest.raises(TimedOut),
    ):
        transport.welcome()


@pytest.mark.parametrize(
    "garbage",
    [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0\0\3\x92\x14\x00"],
    ids=["empty frame", "huge frame", "no msgpack", "not a Welcome"],
)
def test_garbage_is_a_protocol_failure(pem: tuple[Path, bytes], garbage: bytes) -> None:
    def serve(connected: socket.socket) -> None:
        with tls_server(pem).wrap_socket(connected, server_side=True) as tls:
            tls.sendall(garbage)
            tls.recv(1)

    with (
        listening(serve) as port,
        Transport.dial("127.0.0.1", port, QUICK) as transport,
        pytest.raises(ProtocolFailure),
    ):
        transport.welcome()


def dial_error(serve: Callable[[socket.socket], None], seconds: float = 30.0) -> NetworkError:
    with listening(serve) as port, pytest.raises(NetworkError) as caught:
        Transport.dial("127.0.0.1", port, Timeouts(connect=seconds))
    return caught.value


def test_servers_without_tls_1_3(pem: tuple[Path, bytes]) -> None:
    def http(connected: socket.socket) -> None:
        connected.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connected.recv(4096)

    def old_tls(connected: socket.socket) -> None:
        context = tls_server(pem, ssl.TLSVersion.TLSv1_2)
        with context.wrap_socket(connected, server_side=True) as tls:
            tls.recv(1)

    for other in (http, old_tls):
        error = dial_error(other)
        assert isinstance(error, ProtocolFailure)
        assert "does not speak TLS 1.3" in error.cause
        assert error.hint == "another program may listen there: check the port"


def test_servers_that_send_nothing() -> None:
    def silent(connected: socket.socket) -> None:
        while connected.recv(4096):
            pass

    def rude(connected: socket.socket) -> None:
        connected.shutdown(socket.SHUT_RDWR)

    assert isinstance(dial_error(silent, 0.3), TimedOut)
    assert isinstance(dial_error(rude), Unreachable)


@pytest.mark.parametrize(
    ("host", "cause", "hint"),
    [
        ("127.0.0.1", "nothing listens at 127.0.0.1:PORT: ", "`sfsd serve` starts it"),
        ("a" * 70, "not a host name: aaa", "`sfsc server set`"),
        ("a..b", "not a host name: a..b", "`sfsc server set`"),
        # A limited broadcast address is never the target of a connection.
        ("255.255.255.255", "no route to 255.255.255.255:PORT: ", "this machine's network"),
    ],
)
def test_why_no_connection_was_made(host: str, cause: str, hint: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unreachable) as caught:
        Transport.dial(host, port, QUICK)
    assert caught.value.cause.startswith(cause.replace("PORT", str(port)))
    assert hint in caught.value.hint


def test_a_name_without_an_address() -> None:
    """A machine without a name server cannot tell whether there is such a name."""
    with pytest.raises(socket.gaierror) as resolver:
        socket.getaddrinfo("files.invalid", 7373)
    with pytest.raises(Unreachable) as caught:
        Transport.dial("files.invalid", 7373, QUICK)
    silent = resolver.value.errno == socket.EAI_AGAIN
    cause = "cannot look up files.invalid: " if silent else "there is no host files.invalid"
    assert caught.value.cause.startswith(cause)
    assert "name server" in caught.value.hint


_WITHOUT_NETWORK = """
from sfsc.errors import Unreachable
from sfsc.session.transport import Transport
for host in ("192.0.2.1", "files.example"):
    try:
        Transport.dial(host, 7373)
    except Unreachable as exc:
        print(exc.cause)
"""


def test_a_machine_without_a_network() -> None:
    command = ["unshare", "--map-root-user", "--net"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no network namespace can be made here")
    done = subprocess.run(
        [*command, sys.executable, "-c", _WITHOUT_NETWORK],
        check=True,
        capture_output=True,
        text=True,
        env=environment({}),
    )
    no_route, no_name = done.stdout.splitlines()
    assert no_route.startswith("no route to 192.0.2.1:7373: ")
    assert no_name.startswith("cannot look up files.example: ")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses")
def test_a_host_that_drops_what_is_sent_to_it() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as waiting:
        for _ in range(2):  # fill the backlog: the kernel then answers no more
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        host, port = listener.getsockname()
        with pytest.raises(TimedOut) as caught:
            Transport.dial(host, port, Timeouts(connect=0.2))
    assert caught.value.cause.endswith(" within 0.2 s")
    assert "a firewall" in caught.value.hint


# --- the peer's key


@pytest.mark.parametrize(
    "make",
    [
        ed25519.Ed25519PrivateKey.generate,
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: rsa.generate_private_key(65537, 2048),
        lambda: rsa.generate_private_key(65537, 4096),
    ],
    ids=["ed25519", "p256", "rsa2048", "rsa4096"],
)
def test_spki_sha256_agrees_with_an_x509_parser(make: Callable[[], PrivateKey]) -> None:
    key = make()
    for subject in ("", "s", "s" * 60):
        der = certificate(key, subject=subject or "-").public_bytes(serialization.Encoding.DER)
        assert spki_sha256(der) == hashlib.sha256(key.public_key().public_bytes(*_SPKI)).digest()


def test_a_malformed_certificate_is_rejected() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    der = certificate(key).public_bytes(serialization.Encoding.DER)
    assert der[:2] == b"\x30\x82" or der[:2] == b"\x30\x81"
    long_form = der[1] - 0x80
    length = der[2 : 2 + long_form]
    body = der[2 + long_form :]
    malformed = [
        b"",
        b"\x30",
        der[:-1],
        der + b"\0",
        b"\x31" + der[1:],
        b"\x30\x80" + body + b"\0\0",
        b"\x30" + bytes([0x80 + long_form + 1]) + b"\0" + length + body,
        b"\x30\x81\x05" + bytes(5),
    ]
    for data in malformed:
        with pytest.raises(ProtocolFailure):
            spki_sha256(data)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_certificate_or_rejected(data: bytes) -> None:
    try:
        assert len(spki_sha256(b"\x30" + bytes([len(data)]) + data)) == 32
    except ProtocolFailure:
        return


def test_a_reply_that_nobody_waits_for_any_more_is_discarded(pem: tuple[Path, bytes]) -> None:
    class Interrupted(BaseException):
        pass

    class Waits(Blocking):
        interrupts = False

        def for_socket(self, connected: socket.socket) -> SocketWait:
            waits, how = super().for_socket(connected), self

            class Once:
                def wait(self, *, writing: bool, seconds: float) -> bool:
                    if how.interrupts:
                        raise Interrupted
                    return waits.wait(writing=writing, seconds=seconds)

                def close(self) -> None:
                    waits.close()

            return Once()

    answered = threading.Event()

    def answer(peer: Peer, number: int, _message: Request) -> None:
        answered.wait(30)
        peer.say(number, Pong(time=number))

    def serve(connected: socket.socket) -> None:
        with tls_server(pem).wrap_socket(connected, server_side=True) as tls:
            Peer(tls, answer).serve()

    how = Waits()
    with (
        listening(serve) as port,
        Transport.dial("127.0.0.1", port, QUICK, waiting=how) as transport,
    ):
        transport.welcome()
        transport.call(LOGIN)
        how.interrupts = True
        with pytest.raises(Interrupted):
            transport.call(Ping())
        how.interrupts = False
        answered.set()
        later = transport.submit(Ping())
        assert transport.result(later) == Pong(time=later)
        assert not transport.has_reply(Ticket(later - 1))
        assert not transport._asked
        assert not transport._abandoned
