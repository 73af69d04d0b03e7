"""The composition root: opens a root, makes the world of it, and serves it to the network.

Connections are counted from the moment they are accepted, before TLS: against floods, what counts
is what a stranger can make us hold, not what he says.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from protocol.auditlog import Draft
from protocol.invitation import format_address, parse_address
from protocol.names import SERVER
from sfsd import certificates
from sfsd.certificates import Keys
from sfsd.changes import Change
from sfsd.committer import Committer
from sfsd.config import Config, Limits
from sfsd.errors import JournalDamagedError, ListenError, RootBusyError
from sfsd.files import Files
from sfsd.journal import Journal
from sfsd.recovery import recover
from sfsd.service import Service
from sfsd.session import Session
from sfsd.store import DirectoryStore
from sfsd.world import Identity, World

BACKLOG: Final = 128
STOP_SECONDS: Final = 8.0
"""How long a stop waits for what is under way; the rest of ten seconds is for the disk."""
_TICK_SECONDS: Final = 5.0
_log = logging.getLogger(__name__)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the lock of `root`: one process owns a root. Raises `RootBusyError`."""
    folder = root / "run"
    Files().make_folder(folder)
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as exc:
        raise RootBusyError(
            f"another process uses {root}", "stop the daemon that serves it, or use another root"
        ) from exc
    try:
        yield
    finally:
        lock.release()


@contextmanager
def opened(
    root: Path,
    *,
    clock: Callable[[], float] = time.time,
    files: Files | None = None,
) -> Iterator[World]:
    """The world of `root`, recovered from the last crash; the caller holds the root's lock.

    Raises `ConfigError`, `JournalDamagedError`, `RecoveryError` where it must not be used.
    """
    files = files or Files()
    config = Config.load(root)
    known = certificates.load(root / "keys", int(clock()), files)
    journal = Journal(root / "logs", known.log_key, known.origin, files=files)
    try:
        store = DirectoryStore(root, files)
        recover(store, journal)
        committer = Committer(store, journal)
        try:
            identity = Identity.of(known.statement, known.signature, known.operator_public)
            world = World.assemble(root, config, identity, store, journal, committer, clock)
            _log_statement(world, known)
            yield world
        finally:
            committer.close()
    finally:
        journal.close()


def _log_statement(world: World, known: Keys) -> None:
    """Log the server's statement where the last one logged is another: clients can look it up."""
    last = None
    for line in world.journal.lines():
        if b'"op":"server-statement"' in line:
            last = line
    from protocol import auditlog

    if last is None or auditlog.parse(last).rec != known.statement:
        world.committer.submit(
            Change(
                Draft(
                    op="server-statement",
                    actor=SERVER,
                    rec=known.statement,
                    sigs={"server": known.signature},
                )
            )
        ).result()


@dataclass(slots=True)
class Gate:
    """How many connections there are, of each address and in all, before login and after."""

    limits: Limits
    connections: Counter[str] = field(default_factory=Counter)
    strangers: Counter[str] = field(default_factory=Counter)

    def admit(self, host: str) -> bool:
        """Count a new connection of `host`, unless that would be one too many."""
        limits = self.limits
        if (
            self.connections.total() >= limits.connections
            or self.connections[host] >= limits.connections_per_address
            or self.strangers.total() >= limits.unauthenticated
            or self.strangers[host] >= limits.unauthenticated_per_address
        ):
            return False
        self.connections[host] += 1
        self.strangers[host] += 1
        return True

    def recognise(self, host: str) -> None:
        """A connection of `host` has logged in."""
        _decrease(self.strangers, host)

    def leave(self, host: str, *, known: bool) -> None:
        """A connection of `host` is gone; `known`: it had logged in."""
        _decrease(self.connections, host)
        if not known:
            _decrease(self.strangers, host)


def _decrease(counter: Counter[str], host: str) -> None:
    counter[host] -= 1
    if counter[host] <= 0:
        del counter[host]  # addresses that are gone cost no memory


class Server:
    """Serves one world. `start`, then `stop`; both on one loop."""

    def __init__(self, world: World, tls: ssl.SSLContext) -> None:
        self.world = world
        self.service = Service(world)
        self._tls = tls
        self._gate = Gate(world.config.limits)
        self._sessions: set[Session] = set()
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def start(self, listen: str) -> str:
        """Accept connections on ``HOST:PORT``; returns the address bound. Raises `ListenError`."""
        self.service.on_revoke = self._revoke
        host, port = parse_address(listen)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, _, _, _, where in dict.fromkeys(found):
                self._sockets.append(_listener(family, where))
                if port == 0:
                    break  # a second family would get a port of its own
        except OSError as exc:
            self._close_sockets()
            raise ListenError(
                f"cannot listen on {listen}: {exc.strerror}",
                "is another daemon running there? choose another with --listen",
            ) from exc
        bound = format_address(host, self._sockets[0].getsockname()[1])
        self.world.vitals.address = bound
        self.world.vitals.started = self.world.now
        await self._note("start", {"address": bound})
        for listening in self._sockets:
            self._run(self._accept(listening))
        self._run(self._tick())
        return bound

    async def stop(self) -> None:
        """Stop accepting, finish what is under way, refuse the rest. Twice does no harm."""
        if self._stopping:
            return
        self._stopping = True
        self._close_sockets()
        for task in set(self._tasks):
            task.cancel()
        sessions = set(self._sessions)
        if sessions:
            await asyncio.gather(*(session.drain(STOP_SECONDS) for session in sessions))
            await asyncio.wait({session.closed for session in sessions}, timeout=1.0)
            for session in set(self._sessions):
                session.abort()
        await self.service.close()
        await self._note("stop", {})

    async def _note(self, op: str, detail: dict[str, str]) -> None:
        made = self.world.committer.submit(Change(Draft(op=op, actor=SERVER, detail=detail)))
        await asyncio.wrap_future(made)

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            _log.error("a background task failed", exc_info=exc)

    def _close_sockets(self) -> None:
        for listening in self._sockets:
            listening.close()
        self._sockets.clear()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(listening)
            except OSError as exc:
                # Out of descriptors, or a peer that left already: wait for better times.
                _log.warning("accept: %s", exc.strerror)
                await asyncio.sleep(0.1)
                continue
            host = str(peer[0])
            if not self._gate.admit(host):
                accepted.close()
                continue
            self._run(self._welcome(accepted, host))

    async def _welcome(self, accepted: socket.socket, host: str) -> None:
        """TLS within the time for a login; from then on the session counts for itself."""
        loop = asyncio.get_running_loop()
        seconds = self.world.config.limits.login_seconds
        deadline = loop.time() + seconds
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session = Session(
            self.service,
            self.world.config.limits,
            host,
            deadline=deadline,
            on_open=lambda _: self._recognised(host),
            on_close=lambda session: self._left(session, host),
        )
        try:
            await loop.connect_accepted_socket(
                lambda: session, accepted, ssl=self._tls, ssl_handshake_timeout=seconds
            )
        except (OSError, ssl.SSLError, TimeoutError) as exc:
            _log.info("%s: no TLS: %s", host, type(exc).__name__)
            if not session.connected:
                self._gate.leave(host, known=False)
            return
        except asyncio.CancelledError:
            accepted.close()
            raise
        self._sessions.add(session)
        self._count()

    def _recognised(self, host: str) -> None:
        self._gate.recognise(host)
        self._count()

    def _left(self, session: Session, host: str) -> None:
        self._sessions.discard(session)
        self._gate.leave(host, known=session.principal is not None)
        self._count()

    def _count(self) -> None:
        vitals = self.world.vitals
        vitals.connections = self._gate.connections.total()
        vitals.sessions = vitals.connections - self._gate.strangers.total()

    def _revoke(self, user: str) -> None:
        for session in set(self._sessions):
            if session.principal is not None and session.principal.user == user:
                session.revoke()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            await self.service.tick()


def _listener(family: int, where: tuple[object, ...]) -> socket.socket:
    listening = socket.create_server(
        (str(where[0]), int(str(where[1]))), family=family, backlog=BACKLOG
    )
    listening.setblocking(False)
    return listening


def serve(root: Path, listen: str | None, ready_file: Path | None) -> None:
    """Serve `root` until SIGTERM or SIGINT. Raises `SfsdError`.

    `ready_file` gets the bound address once connections are accepted, and so does run/address.
    """
    with locked(root), opened(root) as world:
        tls = certificates.load(root / "keys", world.now).tls_context()
        stop = threading.Event()
        verifier = threading.Thread(target=_verify, args=(world, stop), name="verify-log")
        verifier.start()
        try:
            asyncio.run(_serve(world, tls, listen or world.config.listen, ready_file))
        finally:
            stop.set()
            verifier.join()


async def _serve(world: World, tls: ssl.SSLContext, listen: str, ready_file: Path | None) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    server = Server(world, tls)
    restore = _on_signals(loop, stopped.set)
    files = Files()
    run = world.root / "run"
    try:
        bound = await server.start(listen)
        files.replace_soon(run / "address", bound.encode() + b"\n")
        if ready_file is not None:
            files.replace_soon(ready_file, bound.encode() + b"\n")
        _log.info("serving %s", bound)
        await stopped.wait()
        _log.info("stopping")
    finally:
        await server.stop()
        files.remove(run / "address")
        restore()


def _on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Callable[[], None]:
    """Call `stop` on the loop at SIGTERM or SIGINT; returns what undoes that."""
    import signal

    wanted = (signal.SIGTERM, signal.SIGINT)
    try:
        for number in wanted:
            loop.add_signal_handler(number, stop)
    except NotImplementedError:
        # Windows: its loop has no signal handlers, but Python's own run between two of its steps.
        before = {
            number: signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
            for number in wanted
        }

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        return restore

    def remove() -> None:
        for number in wanted:
            loop.remove_signal_handler(number)

    return remove


def _verify(world: World, stop: threading.Event) -> None:
    """Check in the background what the start took on trust; a difference stops all changes."""
    try:
        world.journal.verify_before_mark(stop=stop)
    except JournalDamagedError as exc:
        _log.critical("the log is damaged, nothing changes any more: %s", exc)
