"""One TLS connection to a server: sends requests and receives replies, in any order.

Calls run on the caller's thread and return when they are done; `Waiting` says how they wait. A wait
always covers both directions, so that two full pipes cannot deadlock. A window limits the requests
and the bytes in flight; a request that does not fit waits for replies.

This is the only module of `sfsc` with a socket. It decides nothing about trust: it returns the
Welcome, and the hash of the TLS key that the peer has proven to hold.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import ssl
import time
from collections import deque
from typing import Final, Self

from protocol.codec.encoding import Buffer
from protocol.codec.errors import RemoteProtocolError
from protocol.codec.terminal_text import counted, human_size
from protocol.records.invitation import format_address
from protocol.wire.connection import WELCOME_ID, Connection, Role
from protocol.wire.frames import TLS_RECORD, split_for_tls_records
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.downloads import Read
from protocol.wire.messages.session import Welcome
from sfsc.closing import Closing
from sfsc.errors import NetworkError, ProtocolFailure, StaleGeneration, TimedOut, Unreachable
from sfsc.interrupts import deferred
from sfsc.library_log import log_step, milliseconds
from sfsc.session.evidence import Answers, Asked
from sfsc.session.limits import MAX_REQUESTS, MAX_WINDOW, Throttle, Ticket, Timeouts
from sfsc.session.waiting import Blocking, SocketWait, Waiting

_CORKED: Final = 16
_CORKED_SIZE: Final = 8 * TLS_RECORD
"""Small requests, and bytes of them, that are collected before they are sent, so that the server
can process them together. Far fewer than a window holds, so that the server is never idle."""
CORK: Final[int | None] = getattr(socket, "TCP_CORK", None)
"""Linux's socket option that holds back a partial TCP segment until the option is cleared."""
_AGAIN: Final = "run the command again"
_BUSY: Final = "the server or the network may be overloaded; run the command again"


class Transport(Closing):
    """Build with `dial`. Methods raise `NetworkError`; after the first failure all do, and only
    `close` works. `peer_spki_sha256` is the SHA-256 of the peer's SubjectPublicKeyInfo, whose
    private key the peer has proven to hold. `timeouts` are those given to `dial`."""

    def __init__(
        self, tls: ssl.SSLSocket, waits: SocketWait, timeouts: Timeouts, answers: Answers
    ) -> None:
        """`tls` does not block, and has finished its handshake; `waits` waits for it."""
        self.timeouts = timeouts
        self._answers = answers
        self._unattributed = 0  # bytes received since the last message
        self.peer_spki_sha256: bytes = spki_sha256(tls.getpeercert(binary_form=True) or b"")
        self._tls = tls
        self._waits = waits
        self._connection = Connection(Role.CLIENT)
        self._outgoing: deque[memoryview] = deque()
        self._corked: list[bytes] = []
        self._corked_size = 0
        self._weights: dict[Ticket, int] = {}
        self._asked: dict[Ticket, Asked] = {}
        self._replies: dict[Ticket, tuple[Reply, int]] = {}
        self._abandoned: set[Ticket] = set()
        self._in_flight = 0
        self._window = PIECE
        self._tls_writes = False
        self.allowed: tuple[type[Request], ...] | None = None
        """The requests that the session may send; None for all."""
        self.throttle: Throttle | None = None
        """Limits the rate, if it is set."""
        self._failure: NetworkError | None = None
        self._began = time.monotonic()
        self._requests = self._sent = self._received = 0

    @classmethod
    def dial(
        cls,
        host: str,
        port: int,
        timeouts: Timeouts | None = None,
        answers: Answers | None = None,
        waiting: Waiting | None = None,
    ) -> Self:
        """Connect over TCP and TLS. Callers send nothing before they have verified `welcome`. What
        the server answers is added to `answers`."""
        limits, how = timeouts or Timeouts(), waiting or Blocking()
        address = format_address(host, port)
        connected = _connect(host, port, address, limits.connect, how)
        with contextlib.ExitStack() as undone:
            tls = undone.enter_context(_wrap(connected, address))
            waits = how.for_socket(tls)
            undone.callback(waits.close)
            _handshake(tls, waits, address, limits.connect)
            transport = cls(tls, waits, limits, Answers() if answers is None else answers)
            undone.pop_all()
            return transport

    def welcome(self) -> Welcome:
        """Return the server's first message, and apply the window that it grants. Call it once,
        first."""
        reply = self.result(Ticket(WELCOME_ID), self.timeouts.opening)
        if not isinstance(reply, Welcome):  # unreachable: `Connection` rejects anything else
            raise ProtocolFailure("the server's first message is not a Welcome")
        self._window = min(MAX_WINDOW, max(PIECE, reply.limits.window))
        return reply

    @property
    def welcome_sha256(self) -> bytes:
        """SHA-256 (32 bytes) of the exact Welcome received, which a Login signs."""
        return self._connection.welcome_sha256

    @property
    def usable(self) -> bool:
        """Whether nothing has failed yet."""
        return self._failure is None

    def submit(self, message: Request) -> Ticket:
        """Send a request without waiting for its reply; wait only while the window is full. Raises
        `StaleGeneration` for one that is not in `allowed`."""
        if self.allowed is not None and not isinstance(message, self.allowed):
            raise StaleGeneration(
                "the server takes this machine's keys for old ones",
                "run the command again; if this stays, ask the server's operator",
            )
        weight = _weight(message)
        while len(self._weights) >= MAX_REQUESTS or (
            self._weights and self._in_flight + weight > self._window
        ):
            self._advance(self.timeouts.idle)
        with deferred:
            self._check()
            number, pieces = self._connection.request(message)
            ticket = Ticket(number)
            self._requests += 1
            self._weights[ticket] = weight
            # Contents are not kept: they are large, and not what the server says.
            self._asked[ticket] = message if message.BULK is None else type(message)
            self._in_flight += weight
            self._enqueue(pieces, at_once=isinstance(message, Read))
        return ticket

    def push(self) -> None:
        """Send the collected requests now, for a caller that does other work before it waits for a
        reply. Failures are raised by the method that waits."""
        if self.usable and (self._corked or self._outgoing):
            self._move()

    def result(self, ticket: Ticket, seconds: float | None = None) -> Reply:
        """Return the reply to a request; `seconds`, if given, limits the whole wait. If the wait is
        interrupted, the reply is discarded when it arrives."""
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            while ticket not in self._replies:
                left = self.timeouts.idle
                if deadline is not None:
                    left = min(left, deadline - time.monotonic())
                self._advance(left)
        except BaseException:
            self.abandon(ticket)
            raise
        reply, size = self._replies.pop(ticket)
        self._answers.add(self._asked.pop(ticket, None), reply, size)
        return reply

    def has_reply(self, ticket: Ticket) -> bool:
        """Whether `result` would return without waiting."""
        return ticket in self._replies

    def call(self, message: Request, seconds: float | None = None) -> Reply:
        """Send a request and wait for its reply."""
        return self.result(self.submit(message), seconds)

    def abandon(self, ticket: Ticket) -> None:
        """Discard the reply to this request, now or when it arrives."""
        self._asked.pop(ticket, None)
        if self._replies.pop(ticket, None) is None and ticket in self._weights:
            self._abandoned.add(ticket)

    def close(self) -> None:
        """Close the connection, with a TLS close_notify if it can be sent without waiting.
        Idempotent."""
        if self._failure is None:
            self._failure = Unreachable("the connection was closed")
            log_step(
                f"closed the connection after {milliseconds(time.monotonic() - self._began)}: "
                f"{counted(self._requests, 'request')}, {human_size(self._sent)} sent, "
                f"{human_size(self._received)} received"
            )
            with contextlib.suppress(OSError, ValueError):
                self._tls.unwrap()
        self._waits.close()
        self._tls.close()

    # --- sending and receiving ----------------------------------------------------------------

    def _enqueue(self, pieces: list[Buffer], *, at_once: bool) -> None:
        """Queue a frame. Small frames are collected until there are a few, or until a caller waits
        for a reply: a TLS record and a system call for each would cost more than most requests."""
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
        """Queue the collected frames to be sent next; return their size in bytes."""
        size, self._corked_size = self._corked_size, 0
        if self._corked:
            self._outgoing.append(memoryview(b"".join(self._corked)))
            self._corked.clear()
        return size

    def _advance(self, seconds: float) -> None:
        """Send and receive what is possible now; if that is nothing, wait for the peer."""
        self._check()
        if self._move():
            return
        writing = bool(self._outgoing) or self._tls_writes
        if not self._waits.wait(writing=writing, seconds=seconds):
            self._fail(TimedOut("the server did not answer in time", _BUSY))

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, failure: NetworkError, cause: BaseException | None = None) -> None:
        failure.__cause__ = cause
        self._failure = failure
        self._outgoing.clear()
        self._corked.clear()

    def _move(self) -> bool:
        """Receive and send until the socket would block; return whether anything happened.

        A failure is stored for `_check`, so that replies that came before it are not lost.
        """
        try:
            with deferred:
                small = self._uncork() > TLS_RECORD
                received = self._receive()
                sent = self._send(small=small)
            moved = received + sent
            self._received += received
            self._sent += sent
            if self.throttle is not None and moved:
                self.throttle.spend(moved)
            return moved > 0
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError) as exc:
            self._fail(Unreachable("the connection was lost", _AGAIN), exc)
        except ssl.SSLError as exc:
            self._fail(ProtocolFailure(f"TLS failed: {exc.reason}"), exc)
        except OSError as exc:
            self._fail(Unreachable(f"the connection was lost: {exc.strerror}", _AGAIN), exc)
        except RemoteProtocolError as exc:
            self._fail(ProtocolFailure(f"the server broke the protocol: {exc}"), exc)
        return True

    def _send(self, *, small: bool) -> int:
        """Send the queue and return the number of bytes. `small` frames, of several TLS records,
        leave as one TCP segment: TLS writes one record at a time, and each would wake a server on
        the same machine, which would then process three requests at once instead of sixteen."""
        if CORK is None or not small:
            return self._write()
        self._tls.setsockopt(socket.IPPROTO_TCP, CORK, 1)
        try:
            return self._write()
        finally:
            self._tls.setsockopt(socket.IPPROTO_TCP, CORK, 0)

    def _write(self) -> int:
        moved = 0
        with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
            while self._outgoing and not (self.throttle is not None and moved):
                view = self._outgoing[0]
                # After a "want" error OpenSSL requires the same bytes again; the queue keeps them.
                count = self._tls.send(view)
                moved += count
                if count == len(view):
                    self._outgoing.popleft()
                else:
                    self._outgoing[0] = view[count:]
        return moved

    def _receive(self) -> int:
        """Receive until the kernel and TLS have nothing left, or until a piece of data has come,
        which the caller can process meanwhile; return the number of bytes. Waiting on the socket is
        safe only after 0. A throttled connection moves one TLS record at a time."""
        received, most = 0, PIECE if self.throttle is None else TLS_RECORD
        while received < most and (filled := self._fill(self._connection.get_buffer(-1)[:most])):
            received += filled
            self._unattributed += filled
            for incoming in self._connection.buffer_updated(filled):
                self._deliver(Ticket(incoming.request_id), incoming.message)
        return received

    def _fill(self, buffer: memoryview) -> int:
        """Receive into `buffer`; return the number of bytes, 0 if none are available now."""
        filled = 0
        self._tls_writes = False
        try:
            while filled < len(buffer):
                count = self._tls.recv_into(buffer[filled:])
                if count == 0:
                    if filled:  # return these first; the next call sees the end again
                        break
                    raise ConnectionResetError("the server closed the connection")
                filled += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:  # TLS itself must write, for example after a KeyUpdate
            self._tls_writes = True
        return filled

    def _deliver(self, ticket: Ticket, message: object) -> None:
        if isinstance(message, Error) and message.code == "shutting-down":
            # The server has done nothing of the request and closes the connection soon. The caller
            # repeats it on a new connection, which reaches the server that starts next.
            self._fail(Unreachable("the server is stopping", _AGAIN))
            return
        size, self._unattributed = self._unattributed, 0
        self._in_flight -= self._weights.pop(ticket, 0)
        if ticket in self._abandoned:
            self._abandoned.remove(ticket)
        elif isinstance(message, Reply):
            self._replies[ticket] = message, size


def _weight(message: Request) -> int:
    """Return the bytes of file data that a request sends or asks for, which the window counts."""
    if isinstance(message, Read):
        return message.length
    return len(getattr(message, message.BULK)) if message.BULK else 0


# --- connecting -------------------------------------------------------------------------------


def _connect(host: str, port: int, address: str, seconds: float, how: Waiting) -> socket.socket:
    """Return a connected socket that does not block. `seconds` limit each of the addresses that
    `host` has."""
    try:
        failure: OSError = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        for family, kind, protocol, _, where in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            try:
                return _connect_to(socket.socket(family, kind, protocol), where, seconds, how)
            except OSError as exc:
                if failure.errno in _NO_ROUTE:  # such as of IPv6, where only IPv4 is configured
                    failure = exc
        raise failure
    except TimeoutError as exc:
        cause = f"no connection to {address} within {seconds:g} s"
        raise TimedOut(cause, _SILENT.format(host=host)) from exc
    except (OSError, UnicodeError) as exc:
        raise _unreachable(exc, host, address) from exc


_NO_ROUTE: Final = frozenset(
    {errno.EADDRNOTAVAIL, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH}
)
_NO_ANSWER: Final = frozenset({socket.EAI_AGAIN, socket.EAI_FAIL})
_SILENT: Final = (
    "{host} may be switched off, or a firewall drops what is sent to it: check the address and port"
)


def _unreachable(exc: OSError | UnicodeError, host: str, address: str) -> Unreachable:
    """Return the error of a connection that was never made: no address, no route and nobody who
    listens are told apart, because each has another remedy."""
    if isinstance(exc, UnicodeError):
        cause, hint = f"not a host name: {host}", "check the address: `sfsc server set` changes it"
    elif isinstance(exc, socket.gaierror) and exc.errno in _NO_ANSWER:
        cause = f"cannot look up {host}: the name server does not answer"
        hint = "check this machine's network and its name server"
    elif isinstance(exc, socket.gaierror):
        cause = f"there is no host {host}"
        hint = "check the name and this machine's name server; `sfsc server set` changes the name"
    elif exc.errno in _NO_ROUTE:
        cause = f"no route to {address}: {exc.strerror}"
        hint = "check this machine's network: cable, wireless, VPN"
    elif isinstance(exc, ConnectionRefusedError):
        cause = f"nothing listens at {address}: {exc.strerror}"
        hint = (
            "the server is stopped (`sfsd serve` starts it), or has another address: `sfsc server"
            " set`"
        )
    elif isinstance(exc, PermissionError):
        cause = f"this machine may not connect to {address}: {exc.strerror}"
        hint = "check its firewall"
    else:
        cause, hint = f"cannot connect to {address}: {exc.strerror}", _AGAIN
    return Unreachable(cause, hint)


def _connect_to(
    connecting: socket.socket, where: tuple[object, ...], seconds: float, how: Waiting
) -> socket.socket:
    with contextlib.ExitStack() as undone:
        undone.enter_context(connecting)
        connecting.setblocking(False)
        # Callers wait for small requests; bulk data fills packets without Nagle's algorithm.
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error = connecting.connect_ex(where)
        if error in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            waits = how.for_socket(connecting)
            try:
                if not waits.wait(writing=True, seconds=seconds):
                    raise TimeoutError
            finally:
                waits.close()
            error = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        undone.pop_all()
        return connecting


def _context() -> ssl.SSLContext:
    """Return a context for TLS 1.3 only, without certificate authorities.

    This is safe because the peer's key is verified elsewhere and more strictly: the Welcome carries
    a statement, signed by the server's pinned key, that names the SHA-256 of the one valid TLS key.
    `sfsc.trust` compares it with the key that the peer has just proven to hold, and nothing is sent
    before that. So certificates may be self-signed or from any authority, and may change. No server
    name (SNI) is sent: the pin identifies the server, and an eavesdropper need not learn the name.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _wrap(connected: socket.socket, address: str) -> ssl.SSLSocket:
    """Return the socket with TLS, before its handshake."""
    try:
        # Owns the socket, and closes it on failure.
        return _context().wrap_socket(connected, do_handshake_on_connect=False)
    except OSError as exc:
        raise Unreachable(f"no connection to {address}: {exc.strerror}", _AGAIN) from exc


def _handshake(tls: ssl.SSLSocket, waits: SocketWait, address: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    try:
        while (writing := _shake(tls)) is not None:
            if not waits.wait(writing=writing, seconds=deadline - time.monotonic()):
                raise TimedOut(f"{address} accepts connections but sends nothing", _BUSY)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError) as exc:
        raise Unreachable(f"{address} closed the connection at once", _BUSY) from exc
    except ssl.SSLError as exc:
        hint = "another program may listen there: check the port"
        raise ProtocolFailure(f"{address} does not speak TLS 1.3: {exc.reason}", hint) from exc
    except OSError as exc:
        raise Unreachable(f"no connection to {address}: {exc.strerror}", _AGAIN) from exc


def _shake(tls: ssl.SSLSocket) -> bool | None:
    """Continue a handshake; return None once it is done, else whether it must write next."""
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return False
    except ssl.SSLWantWriteError:
        return True
    return None


# --- the peer's key ---------------------------------------------------------------------------

_INTEGER, _SEQUENCE, _VERSION = 0x02, 0x30, 0xA0


def spki_sha256(certificate: bytes) -> bytes:
    """Return the SHA-256 (32 bytes) of the SubjectPublicKeyInfo of a DER certificate (RFC 5280
    section 4.1).

    An X.509 parser would cost 64 ms at every start of a command, hence this walk. It is safe:
    OpenSSL has parsed these very bytes and has verified that the peer has the private key. The walk
    follows the same fixed schema and accepts only definite lengths in their shortest form, so that
    no second reading has another key in this place. Raises `ProtocolFailure`.
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
    """Return (content of the first element, everything after it); the element must have `tag`."""
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
