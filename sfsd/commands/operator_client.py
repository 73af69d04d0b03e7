"""Sends the operator's requests: the same operations with or without a running daemon.

If a daemon holds the root's lock, the requests go to its port. Otherwise the command takes the lock
and runs the operations in its own process. Nothing else changes a root.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias, TypeVar, cast

from protocol.codec.errors import MessageError, RemoteProtocolError
from protocol.codec.names import OPERATOR
from protocol.records.invitation import parse_address
from protocol.records.records import login_body
from protocol.records.signatures import Label
from protocol.wire.connection import Connection, Role
from protocol.wire.messages import Error, Message, Reply, Request
from protocol.wire.messages.accounts import (
    Account,
    AccountsPage,
    StartScrub,
    Status,
    StatusAnswer,
    UserList,
)
from protocol.wire.messages.session import PROTOCOL_VERSION, Login, Session, Welcome
from sfsd import server_keys
from sfsd.datadir import lock_root, open_server_context
from sfsd.errors import CommandError, RootBusyError, UnreachableError
from sfsd.net.dispatch import Dispatcher
from sfsd.rules.context import Access, Principal
from sfsd.server_keys import ServerKeys
from sfsd.settings.config import Config

SECONDS: Final = 30.0
STATUS_SECONDS: Final = 10.0
"""For the status, whose check takes up to five: monitoring does not wait for long."""
GENERATION: Final = 1
MONITOR_GENERATION: Final = 0
"""In a login of the operator: for a session that is not logged and may only ask for the status."""
_HINT: Final = "nothing was changed; see what the daemon printed"
_REFUSALS: Final = {
    "not-found": (3, "`sfsd user list` shows all users"),
    "not-allowed": (4, _HINT),
    "refused": (4, "keys/operator.key is not the one that the daemon knows; restart it"),
    "denied": (4, _HINT),
    "damaged": (5, _HINT),
    "conflict": (6, "`sfsd user list` shows all users and their state"),
    "unavailable": (7, "`sfsd status` says why"),
    "busy": (7, "try again"),
    "shutting-down": (7, "start the daemon again"),
}
"""Exit code and hint for each error code; other codes get 1 and `_HINT`."""


_Result = TypeVar("_Result")
Talk: TypeAlias = Generator[Request, Reply, _Result]


def send_requests(root: Path, messages: Sequence[Request]) -> list[Reply]:
    """Send requests of the operator and return their replies, in order.

    Raises `CommandError` for the first refused request, `UnreachableError` if a daemon holds the
    lock but does not answer or violates the protocol, and the errors of opening a root.
    """
    return converse(root, _each(messages)) if messages else []


def converse(root: Path, talk: Talk[_Result]) -> _Result:
    """Send each request that `talk` yields, in one session, and give it the reply. Return what it
    returns. Raises as `send_requests`."""
    try:
        with lock_root(root):
            return _in_process(root, talk)
    except RootBusyError as exc:
        return _over_the_wire(root, talk, busy=exc)


def _each(messages: Iterable[Request]) -> Talk[list[Reply]]:
    replies = list[Reply]()
    for message in messages:
        replies.append((yield message))
    return replies


def ask_status(root: Path, message: Status) -> StatusAnswer:
    """Return the status; the daemon does not log who asked. Raises as `send_requests`."""
    try:
        with lock_root(root):
            [found] = _in_process(root, _each([message]))
    except RootBusyError as exc:
        return ask_running(root, message, busy=exc)
    return cast(StatusAnswer, found)


def ask_running(
    root: Path,
    message: Status | StartScrub,
    generation: int = MONITOR_GENERATION,
    *,
    busy: RootBusyError | None = None,
) -> StatusAnswer:
    """Return the status of the running daemon, as `ask_status`. Takes no lock: a daemon may start
    at the same time. `busy` says that the lock was refused, and who has it. Raises `CommandError`,
    `ConfigError`, and `UnreachableError` if none runs."""
    Config.load(root)
    try:
        written = (root / "run" / "address").read_bytes().strip()
    except FileNotFoundError:
        written = b""
    if not written and busy is None:
        raise UnreachableError(f"no daemon serves {root.absolute()}", "start it with `sfsd serve`")
    [found] = _over_the_wire(root, _each([message]), generation, busy=busy)
    if not isinstance(found, StatusAnswer):
        raise UnreachableError("the daemon sent another reply than its status")
    return found


def start_scrub(root: Path) -> StatusAnswer:
    """Have the running daemon begin or continue a pass of the scrub; return the status. Raises as
    `ask_running`."""
    return ask_running(root, StartScrub(), GENERATION)


def all_accounts(root: Path) -> Iterator[Account]:
    """Yield all accounts, including invited users, by name. Raises as `send_requests`, and after
    the last one `CommandError` if accounts are damaged."""
    after, damaged = "", list[str]()
    while True:
        page = cast(AccountsPage, send_requests(root, [UserList(after)])[0])
        yield from page.accounts
        damaged += page.damaged
        if not page.next:
            break
        after = page.next
    if damaged:
        raise CommandError(
            f"damaged accounts, not listed: {', '.join(damaged)}",
            "stop the daemon, then run `sfsd fsck --repair`",
            exit_code=CommandError.DAMAGED,
        )


def running_address(root: Path) -> str | None:
    """Return the address of the running daemon of `root`, or None if none runs."""
    try:
        with lock_root(root):
            return None
    except RootBusyError as exc:
        return _address(root, exc)


def _address(root: Path, busy: RootBusyError | None) -> str:
    try:
        address = (root / "run" / "address").read_text().strip()
        parse_address(address)  # after a power loss, the file may be empty or zeros
    except (OSError, UnicodeDecodeError, MessageError) as exc:
        why = f"a process uses {root.absolute()}" if busy is None else busy.cause
        raise UnreachableError(
            f"{why}, but accepts no connections yet",
            "wait until the daemon is ready, or the command has ended",
        ) from exc
    return address


def _in_process(root: Path, talk: Talk[_Result]) -> _Result:
    who = Principal(OPERATOR, GENERATION, Access.OPERATOR, -1, 0, "local")

    async def run() -> _Result:
        dispatcher = Dispatcher(context)
        try:
            message = next(talk)
            while True:
                reply = accepted_reply(await dispatcher.handle(who, message))
                try:
                    message = talk.send(reply)
                except StopIteration as end:
                    result: _Result = end.value
                    return result
        finally:
            await dispatcher.close()

    with open_server_context(root) as context:
        return asyncio.run(run())


def accepted_reply(reply: Message) -> Reply:
    """Return `reply`. Raises `CommandError` for an `Error`, `UnreachableError` for a request."""
    if isinstance(reply, Error):
        exit_code, hint = _REFUSALS.get(reply.code, (1, _HINT))
        raise CommandError(reply.text, hint, exit_code=exit_code)
    if not isinstance(reply, Reply):
        raise UnreachableError("the daemon sent a message that is not a reply")
    return reply


def _over_the_wire(
    root: Path,
    talk: Talk[_Result],
    generation: int = GENERATION,
    *,
    busy: RootBusyError | None = None,
) -> _Result:
    address = _address(root, busy)
    seconds = STATUS_SECONDS if generation == MONITOR_GENERATION else SECONDS
    try:
        host, port = parse_address(address)
        # A daemon that listens on every address is reached by the loopback address.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        with socket.create_connection((host, port), timeout=seconds) as plain:
            return _send_over_tls(root, plain, talk, generation)
    except TimeoutError as exc:
        raise UnreachableError(
            f"the daemon at {address} does not answer within {seconds:g} seconds",
            "the machine or its disk may be overloaded; see what the daemon printed",
        ) from exc
    except (OSError, RemoteProtocolError) as exc:
        hint = (
            "see what the daemon printed" if busy is None else f"{busy.cause}: see what it printed"
        )
        raise UnreachableError(f"the daemon at {address} does not answer: {exc}", hint) from exc


def _send_over_tls(
    root: Path, plain: socket.socket, talk: Talk[_Result], generation: int
) -> _Result:
    keys = server_keys.load(root / "keys")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # No certificate authority is involved: the peer must have the key of this root's statement.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(plain) as tls:
        if _peer_spki(tls) != keys.spki_sha256:
            raise UnreachableError(
                f"another server than that of {root.absolute()} answers at its address",
                "restart the daemon if its keys were replaced",
            )
        return _converse(tls, root, keys, talk, generation)


def _peer_spki(tls: ssl.SSLSocket) -> bytes | None:
    try:
        return server_keys.spki_sha256(tls.getpeercert(binary_form=True) or b"")
    except ValueError:
        return None


def _converse(
    tls: ssl.SSLSocket,
    root: Path,
    keys: ServerKeys,
    talk: Talk[_Result],
    generation: int,
) -> _Result:
    """Log in, then send one request at a time: commands need no pipeline."""
    connection = Connection(Role.CLIENT)

    def receive() -> Message:
        while True:
            count = tls.recv_into(connection.get_buffer(-1))
            if count == 0:
                raise ConnectionResetError("the daemon closed the connection")
            if received := connection.buffer_updated(count):
                return received[0].message

    def call(message: Request) -> Reply:
        tls.sendall(b"".join(connection.request(message)[1]))
        return accepted_reply(receive())

    welcome = receive()
    if not isinstance(welcome, Welcome) or welcome.statement != keys.statement:
        raise UnreachableError(
            "the daemon has a different statement than this root", "restart the daemon"
        )
    body = login_body(
        server=keys.server_id,
        spki=keys.spki_sha256,
        welcome=connection.welcome_sha256,
        version=PROTOCOL_VERSION,
        user=OPERATOR,
        device_id=None,
        generation=generation,
    )
    signature = server_keys.operator_key(root / "keys").sign(Label.LOGIN, body)
    login = Login(PROTOCOL_VERSION, OPERATOR, None, generation, 0, signature)
    if not isinstance(call(login), Session):
        raise UnreachableError("the daemon does not open a session")
    message = next(talk)
    while True:
        reply = call(message)
        try:
            message = talk.send(reply)
        except StopIteration as end:
            result: _Result = end.value
            return result
