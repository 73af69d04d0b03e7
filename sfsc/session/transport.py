"""One TLS connection to a server: requests go out, replies come in, in any order.

Blocking for the caller, one thread, and never stuck: whenever it waits, it waits for both
directions at once, so that two full pipes cannot deadlock. How much is under way is bounded by a
window of requests and of bytes; a request that does not fit waits until replies have made room.

The only module of `sfsc` with a socket. It decides nothing about trust: it hands on the Welcome,
and the hash of the TLS key that the peer has proven to hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import selectors
import socket
import ssl
import time
from collections import deque
from typing import Final, Self

from protocol.codec.encoding import Buffer
from protocol.codec.errors import RemoteProtocolError
from protocol.records.invitation import format_address
from protocol.wire.connection import WELCOME_ID, Connection, Role
from protocol.wire.frames import TLS_RECORD, split_for_tls_records
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.downloads import Read
from protocol.wire.messages.session import Welcome
from sfsc.closing import Closing
from sfsc.errors import NetworkError, ProtocolFailure, TimedOut, Unreachable
from sfsc.session.limits import MAX_REQUESTS, MAX_WINDOW, Ticket, Timeouts

_CORKED: Final = 16
_CORKED_SIZE: Final = 8 * TLS_RECORD
"""Small requests, and bytes of them, that wait for one another before they are sent, so that the
server can take them up together; far fewer than a window has, so that it always has something to
do."""
CORK: Final[int | None] = getattr(socket, "TCP_CORK", None)
"""The option of Linux by which TCP holds back a part of a segment until it is taken away."""
_AGAIN: Final = "run the command again"
_BUSY: Final = "the server or the network may be overloaded; run the command again"


class Transport(Closing):
    """Build with `dial`. Methods raise `NetworkError`; once one has, all do, and only `close` is
    left. `peer_spki_sha256` is SHA-256 of the SubjectPublicKeyInfo whose private key the peer
    holds, `timeouts` what it was dialled with.
    """

    def __init__(self, tls: ssl.SSLSocket, timeouts: Timeouts) -> None:
        tls.setblocking(False)
        self.timeouts = timeouts
        self.peer_spki_sha256 = spki_sha256(tls.getpeercert(binary_form=True) or b"")
        self._tls = tls
        self._connection = Connection(Role.CLIENT)
        self._selector = selectors.DefaultSelector()
        self._selector.register(tls, selectors.EVENT_READ)
        self._outgoing: deque[memoryview] = deque()
        self._corked: list[bytes] = []
        self._corked_size = 0
        self._weights: dict[Ticket, int] = {}
        self._replies: dict[Ticket, Reply] = {}
        self._abandoned: set[Ticket] = set()
        self._in_flight = 0
        self._window = PIECE
        self._tls_writes = False
        self._failure: NetworkError | None = None

    @classmethod
    def dial(cls, host: str, port: int, timeouts: Timeouts | None = None) -> Self:
        """Connect over TCP and TLS. Nothing is said to the server before `welcome` was judged."""
        limits = timeouts or Timeouts()
        address = format_address(host, port)
        tls = _handshake(_connect(host, port, address, limits.connect), address)
        try:
            return cls(tls, limits)
        except BaseException:
            tls.close()
            raise

    def welcome(self) -> Welcome:
        """The server's first message; sets the window that it grants. Call it once, first."""
        reply = self.result(Ticket(WELCOME_ID), self.timeouts.opening)
        if not isinstance(reply, Welcome):  # the connection lets nothing else through
            raise ProtocolFailure("the server does not begin with a Welcome")
        self._window = min(MAX_WINDOW, max(PIECE, reply.limits.window))
        return reply

    @property
    def welcome_sha256(self) -> bytes:
        """SHA-256 of the exact Welcome received, 32 bytes: what a Login signs."""
        return self._connection.welcome_sha256

    @property
    def usable(self) -> bool:
        """Whether nothing has failed yet."""
        return self._failure is None

    def submit(self, message: Request) -> Ticket:
        """Send a request without waiting for its reply; waits only while the window is full."""
        weight = _weight(message)
        while len(self._weights) >= MAX_REQUESTS or (
            self._weights and self._in_flight + weight > self._window
        ):
            self._advance(self.timeouts.idle)
        self._check()
        number, pieces = self._connection.request(message)
        ticket = Ticket(number)
        self._weights[ticket] = weight
        self._in_flight += weight
        self._enqueue(pieces, at_once=isinstance(message, Read))
        return ticket

    def push(self) -> None:
        """Send what waits for others to go with it, for who does something else until he needs the
        answer. What fails is raised where an answer is waited for."""
        if self.usable and (self._corked or self._outgoing):
            self._move()

    def result(self, ticket: Ticket, seconds: float | None = None) -> Reply:
        """The reply to a request; `seconds` bounds the whole wait where it is given."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while ticket not in self._replies:
            left = self.timeouts.idle
            if deadline is not None:
                left = min(left, deadline - time.monotonic())
            self._advance(left)
        return self._replies.pop(ticket)

    def answered(self, ticket: Ticket) -> bool:
        """Whether `result` would not have to wait."""
        return ticket in self._replies

    def call(self, message: Request, seconds: float | None = None) -> Reply:
        """Send a request and wait for its reply."""
        return self.result(self.submit(message), seconds)

    def abandon(self, ticket: Ticket) -> None:
        """Nobody will ask for this reply any more."""
        if self._replies.pop(ticket, None) is None and ticket in self._weights:
            self._abandoned.add(ticket)

    def close(self) -> None:
        """Say goodbye where that is possible at once, and let go. Twice does no harm."""
        if self._failure is None:
            self._failure = Unreachable("the connection was closed")
            with contextlib.suppress(OSError, ValueError):
                self._tls.unwrap()
        self._selector.close()
        self._tls.close()

    # --- moving bytes -------------------------------------------------------------------------

    def _enqueue(self, pieces: list[Buffer], *, at_once: bool) -> None:
        """Small frames wait for a few others, or until somebody waits for an answer: a record and
        a call of the system for each would cost more than what most of them ask for."""
        size = sum(map(len, pieces))
        if size > TLS_RECORD:
            self._uncork()
            self._outgoing.extend(split_for_tls_records(pieces))
        else:
            self._corked.append(b"".join(pieces))
            self._corked_size += size
            if (
                not at_once
                and self._corked_size < _CORKED_SIZE
                and len(self._corked) < _CORKED
                and len(self._weights) > 1
            ):
                return
        self._move()

    def _uncork(self) -> int:
        """How many bytes waited, and now go out next."""
        size, self._corked_size = self._corked_size, 0
        if self._corked:
            self._outgoing.append(memoryview(b"".join(self._corked)))
            self._corked.clear()
        return size

    def _advance(self, seconds: float) -> None:
        """Move what can be moved; where that is nothing, wait for the peer."""
        self._check()
        if self._move():
            return
        writing = self._outgoing or self._tls_writes
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
        self._selector.modify(self._tls, events)
        if not self._selector.select(max(0.0, seconds)):
            self._fail(TimedOut("the server does not answer", _BUSY))

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, failure: NetworkError, cause: BaseException | None = None) -> None:
        failure.__cause__ = cause
        self._failure = failure
        self._outgoing.clear()
        self._corked.clear()

    def _move(self) -> bool:
        """Receive and send as far as the socket goes without waiting; whether anything happened.

        A failure is kept for `_check`, so that replies which came before it are not lost.
        """
        small = self._uncork() > TLS_RECORD
        try:
            received = self._receive()
            return self._send(small=small) or received
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError) as exc:
            self._fail(Unreachable("the connection was lost", _AGAIN), exc)
        except ssl.SSLError as exc:
            self._fail(ProtocolFailure(f"TLS failed: {exc.reason}"), exc)
        except OSError as exc:
            self._fail(Unreachable(f"the connection was lost: {exc.strerror}", _AGAIN), exc)
        except RemoteProtocolError as exc:
            self._fail(ProtocolFailure(f"the server broke the protocol: {exc}"), exc)
        return True

    def _send(self, *, small: bool) -> bool:
        """`small` frames, of several records, are handed over together: TLS writes a record at a
        time, and each would wake a server on the same machine, which then has three requests to
        take up and not sixteen."""
        if CORK is None or not small:
            return self._write()
        self._tls.setsockopt(socket.IPPROTO_TCP, CORK, 1)
        try:
            return self._write()
        finally:
            self._tls.setsockopt(socket.IPPROTO_TCP, CORK, 0)

    def _write(self) -> bool:
        moved = False
        with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
            while self._outgoing:
                view = self._outgoing[0]
                # A repeated send after "want" must offer the same bytes again: it does.
                count = self._tls.send(view)
                moved = True
                if count == len(view):
                    self._outgoing.popleft()
                else:
                    self._outgoing[0] = view[count:]
        return moved

    def _receive(self) -> bool:
        """Until nothing is left, in the kernel and in TLS, or a piece has come: whoever waits for
        it has something to do meanwhile. Only where this is False is waiting on the socket safe."""
        received = 0
        while received < PIECE and (filled := self._fill(self._connection.get_buffer(-1))):
            received += filled
            for incoming in self._connection.buffer_updated(filled):
                self._answered(Ticket(incoming.request_id), incoming.message)
        return received > 0

    def _fill(self, buffer: memoryview) -> int:
        """Bytes received into `buffer`; 0 where there are none now."""
        filled = 0
        self._tls_writes = False
        try:
            while filled < len(buffer):
                count = self._tls.recv_into(buffer[filled:])
                if count == 0:
                    if filled:  # what came before the end is still good; the end comes again
                        break
                    raise ConnectionResetError("the server closed the connection")
                filled += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:  # TLS itself has something to say, as to a KeyUpdate
            self._tls_writes = True
        return filled

    def _answered(self, ticket: Ticket, message: object) -> None:
        if isinstance(message, Error) and message.code == "shutting-down":
            # Of what was asked nothing was done. The connection is lost in a moment: whoever would
            # ask again on another does so, and finds the server that starts next.
            self._fail(Unreachable("the server is stopping", _AGAIN))
            return
        self._in_flight -= self._weights.pop(ticket, 0)
        if ticket in self._abandoned:
            self._abandoned.remove(ticket)
        elif isinstance(message, Reply):
            self._replies[ticket] = message


def _weight(message: Request) -> int:
    """Bytes of file data that a request sends or asks for: what the window counts."""
    if isinstance(message, Read):
        return message.length
    return len(getattr(message, message.BULK)) if message.BULK else 0


# --- connecting -------------------------------------------------------------------------------


def _connect(host: str, port: int, address: str, seconds: float) -> socket.socket:
    try:
        connected = socket.create_connection((host, port), timeout=seconds)
        # Requests are small and waited for; bulk fills packets by itself.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except TimeoutError as exc:
        raise TimedOut(f"no connection to {address} within {seconds:g} s", _BUSY) from exc
    except (OSError, UnicodeError) as exc:
        cause = getattr(exc, "strerror", None) or "not a host name"
        raise Unreachable(f"cannot connect to {address}: {cause}", "is sfsd running?") from exc
    return connected


def _context() -> ssl.SSLContext:
    """TLS 1.3 and nothing older, without certificate authorities.

    Safe because the peer's key is checked elsewhere and more strictly: the Welcome carries a
    statement signed by the server's pinned key that names the SHA-256 of the one TLS key in force,
    `trust` compares it with the key the peer has just proven to hold, and nothing is sent before
    that. So certificates may be self-signed or from any authority, and may change. No name is sent
    (SNI): the pin says who is meant, and an eavesdropper need not know.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _handshake(connected: socket.socket, address: str) -> ssl.SSLSocket:
    try:
        return _context().wrap_socket(connected)  # takes the socket over, and closes it on failure
    except TimeoutError as exc:
        raise TimedOut(f"{address} accepts connections but does not speak", _BUSY) from exc
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError) as exc:
        raise Unreachable(f"{address} closed the connection at once", _BUSY) from exc
    except ssl.SSLError as exc:
        raise ProtocolFailure(f"{address} does not speak TLS 1.3: {exc.reason}") from exc
    except OSError as exc:
        raise Unreachable(f"no connection to {address}: {exc.strerror}", _AGAIN) from exc


# --- the peer's key ---------------------------------------------------------------------------

_INTEGER, _SEQUENCE, _VERSION = 0x02, 0x30, 0xA0


def spki_sha256(certificate: bytes) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo of a DER certificate (RFC 5280 section 4.1), 32 bytes.

    Importing an X.509 parser costs 64 ms at every start of a command, hence this walk. It is safe:
    OpenSSL has parsed these very bytes and has seen the peer use the private key, and the walk goes
    through the same fixed schema with definite lengths in their shortest form only, so that there
    is no second reading in which another key stands in this place. Raises `ProtocolFailure`.
    """
    whole, rest = _content(memoryview(certificate), _SEQUENCE)
    tbs, _signature = _content(whole, _SEQUENCE)
    if tbs[:1] == bytes([_VERSION]):
        _, tbs = _content(tbs, _VERSION)
    # serialNumber, signature, issuer, validity, subject
    for tag in (_INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE):
        _, tbs = _content(tbs, tag)
    _, behind = _content(tbs, _SEQUENCE)
    if rest:
        raise ProtocolFailure("the server's certificate is malformed")
    return hashlib.sha256(tbs[: len(tbs) - len(behind)]).digest()


def _content(data: memoryview, tag: int) -> tuple[memoryview, memoryview]:
    """(content of the first element, all that follows it); the element must have this tag."""
    if len(data) < 2 or data[0] != tag:
        raise ProtocolFailure("the server's certificate is malformed")
    start, length = 2, data[1]
    shortest = True
    if length >= 0x80:
        start += length - 0x80
        length = int.from_bytes(data[2:start], "big")
        shortest = length >= 0x80 and start - 2 == (length.bit_length() + 7) // 8
    if not shortest or len(data) < start + length:
        raise ProtocolFailure("the server's certificate is malformed")
    return data[start : start + length], data[start + length :]
