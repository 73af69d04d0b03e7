"""The server: accepts connections for one root until a signal stops it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import ipaddress
import itertools
import logging
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from protocol import VERSION
from protocol.codec.names import SERVER
from protocol.codec.terminal_text import counted
from protocol.codec.values import Value, changed
from protocol.log.auditlog import EntryDraft
from protocol.records.invitation import format_address, parse_address
from sfsd import server_keys
from sfsd.datadir import lock_root, open_server_context
from sfsd.errors import (
    ConfigError,
    DamagedError,
    JournalDamagedError,
    JournalError,
    SfsdError,
    StoreFailedError,
    StoreRefusedError,
)
from sfsd.fs.descriptors import descriptor_limit, descriptor_quarter, raise_descriptor_limit
from sfsd.fs.files import FULL_DISK, Files
from sfsd.fs.spare_files import SpareFiles
from sfsd.jobs.account_survey import AccountSurvey
from sfsd.jobs.disk_watch import DiskWatch
from sfsd.jobs.scheduler import JobScheduler
from sfsd.jobs.scrub import Scrubber
from sfsd.net.connection import ClientConnection
from sfsd.net.connection_limits import (
    ConnectionLimiter,
    IncidentCounter,
    normalized_address,
    source_network,
)
from sfsd.net.dispatch import Dispatcher
from sfsd.net.memory_budget import MemoryBudget
from sfsd.net.read_turns import ReadTurns
from sfsd.net.reload import Reloaded, read_again
from sfsd.net.tls_transport import TLSTransport, receive_buffer
from sfsd.net.user_rates import UserRate, UserRates
from sfsd.rules.context import Principal, ServerContext
from sfsd.service.log_output import event
from sfsd.service.notify import Notifier
from sfsd.settings.config import Config, ConnectionLimits
from sfsd.storage.change import Change

if TYPE_CHECKING:
    from sfsd.net.metrics_server import MetricsServer

BACKLOG: Final = 128
STOP_SECONDS: Final = 7.0
"""Time for running requests when stopping; the rest of ten seconds is for the disk."""
_TICK_SECONDS: Final = 5.0
_REPORT_TICKS: Final = 12
_REOPEN_SECONDS: Final = 30.0
"""Least seconds from one opening of the root to the next. Each ends all connections."""
_GC_THRESHOLD: Final = 20_000
"""New objects before a cycle collection of the youngest generation; Python's default is 700."""
_log = logging.getLogger(__name__)


class Server:
    """Server of one root, and `ConnectionObserver` of its connections. All on one loop.

    `dispatcher` handles the requests, by default a new `Dispatcher` of `context`. `notifier` tells
    the system's service manager what the server does. `on_reload` gets the settings that a reload
    has read.
    """

    def __init__(
        self,
        context: ServerContext,
        tls: ssl.SSLContext,
        dispatcher: Dispatcher | None = None,
        notifier: Notifier | None = None,
        on_reload: Callable[[Config], None] | None = None,
    ) -> None:
        self.context = context
        self._on_reload = on_reload
        self._notifier = notifier or Notifier({})
        self.dispatcher = dispatcher or Dispatcher(context)
        self._tls = tls
        limits = _within_descriptors(context.config.limits)
        self._limiter = ConnectionLimiter[ClientConnection](limits)
        self._rates = UserRates(limits)
        self._budget = MemoryBudget()
        self._turns = ReadTurns()
        self._incidents = IncidentCounter()
        self._connections: set[ClientConnection] = set()
        self._sockets: list[socket.socket] = []
        self._received = receive_buffer()
        self._tasks: set[asyncio.Task[None]] = set()
        self._metrics: MetricsServer | None = None
        self._stopping = False
        self._failed: str | None = None
        self._disks = DiskWatch(context)
        self._started = 0.0
        self.reload_wanted = asyncio.Event()
        """Set when the settings are to be read again."""
        self.ended = asyncio.Event()
        """Set when the daemon is to stop serving."""
        self.reopens = False
        """Whether the root is to be opened and served again then: there is room again."""

    async def start(self, listen: str, inherited: Sequence[socket.socket] = ()) -> str:
        """Accept connections on ``HOST:PORT``, or on sockets that listen already; return the bound
        address. Raises `ConfigError`."""
        self.dispatcher.on_revoke = self._revoke
        host, port = parse_address(listen)
        try:
            self._sockets = [_prepared(one.dup()) for one in inherited]
            self._sockets = self._sockets or await _listeners(host, port)
        except OSError as exc:
            raise ConfigError(
                f"cannot listen on {listen}: {exc.strerror or exc}",
                "is another daemon running there? choose another address with --listen",
            ) from exc
        name = self._sockets[0].getsockname()
        bound = format_address(name[0] if inherited else host, name[1])
        self.context.metrics.address = bound
        self.context.metrics.started = self.context.now
        self._started = asyncio.get_running_loop().time()
        if self.context.config.metrics.listen:
            await self._serve_metrics(self.context.config.metrics.listen)
        await self._log_event("start", {"address": bound})
        for listening in self._sockets:
            self._run(self._accept(listening))
        self._run(self._tick())
        self._run(self._run_jobs())
        self._run(self._notify())
        self._run(self._reload_when_wanted())
        return bound

    async def _notify(self) -> None:
        """Show the state to the service manager. It hears nothing if the loop hangs or the
        committer has ended, and then restarts the daemon."""
        watchdog = self._notifier.watchdog_seconds
        while True:
            if self.context.committer.is_alive:
                self._notifier.alive()
            self._notifier.status(self._describe())
            await asyncio.sleep(min(_TICK_SECONDS, watchdog / 2 if watchdog else _TICK_SECONDS))

    def _describe(self) -> str:
        if self.context.failed is not None:
            return f"storage failure, serving read-only metadata: {self.context.failed}"
        sessions = counted(self._limiter.sessions, "session")
        return f"serving {self.context.metrics.address}, {sessions}"

    async def _reload_when_wanted(self) -> None:
        while True:
            await self.reload_wanted.wait()
            self.reload_wanted.clear()
            await self.reload()

    async def reload(self) -> None:
        """Read the settings and the TLS certificate again, and apply what does not need a restart.

        Without an error, connections stay open. After one nothing is changed, and the log says why.
        """
        self._notifier.reloading()
        try:
            found = await asyncio.to_thread(read_again, self.context)
        except (SfsdError, OSError) as exc:
            hint = getattr(exc, "hint", None) or "correct it, and reload again"
            _log.error(
                *("not reloaded, nothing was changed: %s (%s)", exc, hint),
                extra=event("reload-refused", cause=str(exc), hint=hint),
            )
        else:
            self._apply(found)
            said = ", ".join(found.changes) or "no setting has changed"
            later = f"; after a restart only: {', '.join(found.postponed)}"
            _log.log(
                logging.WARNING if found.postponed else logging.INFO,
                "reloaded: %s%s%s",
                said,
                "; a new TLS key" if found.has_new_key else "",
                later if found.postponed else "",
                extra=event(
                    "reload",
                    changes=list(found.changes),
                    postponed=list(found.postponed),
                    new_tls_key=found.has_new_key,
                ),
            )
        finally:
            self._notifier.ready()

    def _apply(self, found: Reloaded) -> None:
        if self._on_reload is not None:
            self._on_reload(found.config)
        self.context.config, self.context.identity = found.config, found.identity
        self._tls = found.tls
        now = asyncio.get_running_loop().time()
        limits = _within_descriptors(found.config.limits)
        self._limiter.set_limits(limits)
        self._rates.set_limits(limits, now)
        self.dispatcher.lines.set_per_day(limits.user_log_lines_per_day)
        self.context.wishes.shared_files = limits.user_shared_files
        for connection in list(self._connections):
            who = connection.principal
            connection.set_limits(limits, None if who is None else self._rates.of(who.user, now))

    async def _serve_metrics(self, listen: str) -> None:
        """Serve the metrics on ``HOST:PORT``. Raises `ConfigError`."""
        try:
            from sfsd.net.metrics_server import MetricsServer  # takes 50 ms, and needs an extra
        except ModuleNotFoundError as exc:
            raise ConfigError(
                f"metrics.listen needs a library: {exc}",
                "run `pip install 'sealed-file-store[metrics]'`, or remove the setting",
            ) from exc
        host, port = parse_address(listen)
        try:
            sockets = await _listeners(host, port)
        except OSError as exc:
            raise ConfigError(
                f"cannot listen on {listen}, the address of the metrics: {exc.strerror or exc}",
                "choose another address in metrics.listen",
            ) from exc
        bound = format_address(host, sockets[0].getsockname()[1])
        survey = AccountSurvey(self.context)
        self._metrics = MetricsServer(self.context, survey)
        await self._metrics.start(sockets)
        self.context.metrics.metrics_address = bound
        if all(ipaddress.ip_address(one.getsockname()[0]).is_loopback for one in sockets):
            _log.info("metrics on http://%s/metrics", bound)
        else:
            _log.warning(
                "metrics on http://%s/metrics: everybody who reaches that address can read the "
                "users' names and how much they store",
                bound,
            )
        self._run(survey.run())

    async def stop(self) -> None:
        """Stop accepting, finish running requests, refuse new ones. Idempotent."""
        if self._stopping:
            return
        self._stopping = True
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listening in self._sockets:
            listening.close()
        if self._metrics is not None:
            await self._metrics.close()
        connections = [connection for connection in self._connections if connection.connected]
        if connections:
            await asyncio.gather(*(connection.drain(STOP_SECONDS) for connection in connections))
            await asyncio.wait([connection.closed for connection in connections], timeout=1.0)
            for connection in connections:
                connection.abort()
        await self.dispatcher.close()
        self._report()
        if self.context.metrics.started:
            await self._log_event("stop", {})

    # Callbacks of connections.

    def logged_in(self, connection: ClientConnection, user: str) -> UserRate | None:
        self._limiter.log_in(connection, user)
        _log.debug("%s: logged in as %s", connection.address, user)
        self._update_metrics()
        return self._rates.of(user, asyncio.get_running_loop().time())

    def closed(self, connection: ClientConnection) -> None:
        self._connections.discard(connection)
        _log.debug("%s: connection closed", connection.address)
        self._limiter.release(connection)
        self._update_metrics()

    def incident(self, kind: str) -> None:
        self._incidents.count(kind)
        self.context.metrics.disconnected[kind] += 1

    async def _log_event(self, op: str, detail: dict[str, str]) -> None:
        made = self.context.committer.submit(Change(EntryDraft(op=op, actor=SERVER, detail=detail)))
        try:
            await asyncio.wrap_future(made)
        except SfsdError as exc:
            # A daemon whose log takes no more entries still serves metadata.
            _log.error("cannot log the %s of the daemon: %s", op, exc)

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            _log.error("a background task failed", exc_info=exc)
            self.context.metrics.failed_jobs["background task"] = type(exc).__name__

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(listening)
            except OSError as exc:
                # Out of descriptors, or the peer is gone already: try again soon.
                self.incident(f"not accepted, {errno.errorcode.get(exc.errno or 0, 'unknown')}")
                await asyncio.sleep(0.1)
                continue
            self._run(self._open_connection(accepted, normalized_address(str(peer[0]))))

    async def _open_connection(self, accepted: socket.socket, host: str) -> None:
        """Give an accepted socket to a connection, which reports its end."""
        loop = asyncio.get_running_loop()
        limits, tls = self.context.config.limits, self._tls
        connection = ClientConnection(
            self.dispatcher,
            limits,
            host,
            deadline=loop.time() + limits.login_seconds,
            budget=self._budget,
            turns=self._turns,
            observer=self,
        )
        self._connections.add(connection)
        self._disconnect(self._limiter.admit(connection, source_network(host)))
        self._update_metrics()
        try:
            await loop.connect_accepted_socket(
                lambda: TLSTransport(
                    tls,
                    connection,
                    self._received,
                    lambda: self._disconnect(self._limiter.handshaken(connection)),
                ),
                accepted,
            )
        except OSError as exc:
            self.incident(f"not accepted, {errno.errorcode.get(exc.errno or 0, 'unknown')}")
        finally:
            if not connection.connected:
                self.closed(connection)

    def _disconnect(self, victim: ClientConnection | None) -> None:
        if victim is not None:
            self.incident("one connection too many")
            victim.abort()

    def _update_metrics(self) -> None:
        metrics = self.context.metrics
        metrics.connections, metrics.sessions = self._limiter.connections, self._limiter.sessions

    def _revoke(self, user: str, which: Callable[[Principal], bool] | None) -> None:
        for connection in list(self._connections):
            principal = connection.principal
            if connection.user == user and (
                which is None or (principal is not None and which(principal))
            ):
                connection.close()

    async def _tick(self) -> None:
        for turn in itertools.count(1):
            await asyncio.sleep(_TICK_SECONDS)
            try:
                await self.dispatcher.tick()
            except (SfsdError, OSError) as exc:
                _log.warning("housekeeping: %s", exc)
                self.context.metrics.failed_jobs["housekeeping"] = str(exc)
            else:
                self.context.metrics.failed_jobs.pop("housekeeping", None)
            try:
                await asyncio.to_thread(self._disks.check)
            except OSError as exc:
                _log.warning("the disks cannot be examined: %s", exc)
            self._rates.forget_idle(self._limiter.users(), asyncio.get_running_loop().time())
            self._report_failure()
            self._reopen_if_room()
            if turn % _REPORT_TICKS == 0:
                self._report()

    async def _run_jobs(self) -> None:
        committer = self.context.committer
        schedule = JobScheduler(
            self.context, lambda one: asyncio.wrap_future(committer.submit(one))
        )
        while True:
            await asyncio.sleep(schedule.pause())
            try:
                await schedule.run()
            except (SfsdError, OSError) as exc:
                _log.warning("retention: %s", exc)

    def _report_failure(self) -> None:
        """Print a lasting failure once, since the operator may look at this output first."""
        if self._failed is None and (failed := self.context.failed) is not None:
            self._failed = failed
            until = "there is room" if self.context.awaits_room else "restart"
            _log.critical(
                "storage failure: serving read-only metadata until %s: %s",
                *(until, failed),
                extra=event("storage-failed", until=until),
            )

    def _reopen_if_room(self) -> None:
        """End this server if a logged change waits for room and there is room. Opening the root
        again puts the change in place, as a restart does, and sessions begin again."""
        since = asyncio.get_running_loop().time() - self._started
        if self.context.awaits_room and since >= _REOPEN_SECONDS and self.context.store.has_room():
            _log.info("there is room again: opening the root again", extra=event("reopen"))
            self.reopens = True
            self.ended.set()

    def _report(self) -> None:
        if report := self.dispatcher.disk_failures.report():
            _log.warning("failed reads and writes since the last report: %s", report)
        if report := self._incidents.report():
            _log.info("rejected or disconnected since the last report: %s", report)


async def _listeners(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket for each address of `host`. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listeners: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            listeners.append(_listener(family, address))
            if port == 0:
                break  # a second family would get a port of its own
    except OSError:
        for listening in listeners:
            listening.close()
        raise
    return listeners


def _listener(family: int, address: tuple[object, ...]) -> socket.socket:
    host, port = str(address[0]), int(str(address[1]))
    # All addresses include IPv4, which only Linux adds to "::" by default.
    both = host == "::" and socket.has_dualstack_ipv6()
    return _prepared(
        socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    )


def _prepared(listening: socket.socket) -> socket.socket:
    # Accepted sockets inherit this; asyncio sets it only if a socket names its protocol. Without
    # it, an answer waits for the acknowledgement of the one before, which peers delay by 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setblocking(False)
    return listening


class ServeOptions(Value):
    """How a root is served. `listen` is ``HOST:PORT``, None for the one in the settings; it is not
    used if there are `sockets` that listen already. The bound address is written to `ready_file`
    too. `on_reload` gets the settings after each reload."""

    listen: str | None
    ready_file: Path | None
    sockets: tuple[socket.socket, ...]
    notifier: Notifier
    on_reload: Callable[[Config], None]


def serve_root(root: Path, options: ServeOptions) -> None:
    """Serve `root` until SIGTERM or SIGINT; SIGHUP reloads. Raises `SfsdError`.

    The bound address is written to run/address once connections are accepted.
    """
    raise_descriptor_limit()
    with lock_root(root, to_serve=True), _hangup_ignored():
        options.notifier.status(f"opening {root.absolute()}")
        while (address := _serve_opened(root, options)) is not None:
            options = changed(options, listen=address)
            gc.unfreeze()
            gc.collect()


@contextlib.contextmanager
def _hangup_ignored() -> Iterator[None]:
    """Ignore SIGHUP while nothing is served that could be reloaded: it ends a process that does not
    handle it."""
    import signal

    with contextlib.ExitStack() as stack:
        if sys.platform != "win32":
            before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
            stack.callback(signal.signal, signal.SIGHUP, before)
        yield


def _serve_opened(root: Path, options: ServeOptions) -> str | None:
    """Open the root and serve it. Return the bound address if it is to be opened and served again,
    None at the end. Raises `SfsdError`."""
    with open_server_context(root) as context:
        tls = server_keys.load(root / "keys").tls_context()
        if exposed := server_keys.readable_by_others(root / "keys"):
            keys = (root / "keys").absolute()
            _log.warning("others on this machine may read in %s: %s", keys, ", ".join(exposed))
        # What is loaded now stays loaded, and requests leave hardly any cycles.
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        stop = threading.Event()
        verifier = threading.Thread(target=_verify, args=(context, stop), name="verify-log")
        verifier.start()
        scrubber = Scrubber(context)
        scrubbing = threading.Thread(target=scrubber.run, name="scrub")
        scrubbing.start()
        try:
            address = asyncio.run(_serve(context, tls, options))
        finally:
            stop.set()
            scrubber.stop()
            verifier.join()
            scrubbing.join()
    if address is not None and not context.awaits_room:
        raise StoreFailedError(context.failed or "")  # a sync failed meanwhile
    return address


def _within_descriptors(limits: ConnectionLimits) -> ConnectionLimits:
    """Limit connections to their quarter of this process's descriptors.

    The log and the store must never run out of descriptors: they would take no more changes.
    """
    most = max(2, descriptor_quarter())
    if limits.connections + limits.unauthenticated <= most:
        return limits
    before_login = min(limits.unauthenticated, most // 2)
    _log.warning(
        "at most %d connections, %d of them before login: this process may have no more than %d "
        "descriptors",
        *(most, before_login, descriptor_limit()),
    )
    sessions = min(limits.connections, most - before_login)
    return changed(limits, connections=sessions, unauthenticated=before_login)


async def _serve(context: ServerContext, tls: ssl.SSLContext, options: ServeOptions) -> str | None:
    """Serve until a signal or until there is room again; see `_serve_opened`."""
    loop = asyncio.get_running_loop()
    server = Server(context, tls, notifier=options.notifier, on_reload=options.on_reload)
    restore = _on_signals(loop, server.ended.set, server.reload_wanted.set)
    files = Files.below(context.root)
    address = context.root / "run" / "address"
    try:
        bound = await server.start(options.listen or context.config.listen, options.sockets)
        for path in filter(None, (address, options.ready_file)):
            _publish_address(files, context.store.pack_spares, path, bound)
        _say_started(context, bound)
        options.notifier.ready()
        await server.ended.wait()
        if not server.reopens:
            options.notifier.stopping()
        _log.info("stopping", extra=event("stop", address=bound))
        return bound if server.reopens else None
    finally:
        try:
            await server.stop()
        finally:
            _clear_address(files, address)
            restore()


def _say_started(context: ServerContext, bound: str) -> None:
    """Log what runs here, and what the start had to repair."""
    recovered, public = context.recovered, context.config.public
    repaired = f"done, {counted(recovered.entries, 'entry', 'entries')} put in place"
    if context.failed is not None:
        repaired = "not done"
    elif not recovered.entries:
        repaired = "done, nothing to repair"
    elif recovered.lost:
        repaired += f", {counted(len(recovered.lost), 'lost file')} set aside"
    _log.info(
        "sfsd %s serves %s on %s: pid %d, public address %s, recovery %s",
        *(VERSION, context.root.absolute(), bound, os.getpid(), public or "not set", repaired),
        extra=event(
            "start",
            version=VERSION,
            root=str(context.root.absolute()),
            address=bound,
            pid=os.getpid(),
            public=public,
            recovered=context.failed is None,
            recovered_entries=recovered.entries,
            recovered_files=recovered.installed,
            lost_files=len(recovered.lost),
        ),
    )


def _publish_address(files: Files, spares: SpareFiles, path: Path, bound: str) -> None:
    """Write the bound address to `path`. A full disk does not keep the daemon from serving: a file
    that exists is overwritten in place. A new one takes a spare file, and is left out if there is
    none. Raises other OSError."""
    text = bound.encode() + b"\n"
    try:
        files.replace_soon(path, text)
        return
    except OSError as exc:
        if exc.errno not in FULL_DISK:
            raise
    try:
        with files.closing(files.open_update(path)) as handle:
            files.write_all_at(handle, text, 0)
            files.truncate(handle, len(text))
        return
    except FileNotFoundError:
        pass
    except OSError as exc:
        if exc.errno not in FULL_DISK:
            raise
    if not spares.write(path, text):
        _log.error(
            "the disk is full: the daemon could not write its address to %s", path.absolute()
        )


def _clear_address(files: Files, path: Path) -> None:
    """Replace the address by newlines in place, so that the next start needs no new file. On a full
    disk it stays: it is looked at only while a daemon holds the lock. Raises other OSError."""
    try:
        with files.closing(files.open_update(path)) as handle:
            files.write_all_at(handle, b"\n" * files.size(handle), 0)
    except FileNotFoundError:
        pass
    except OSError as exc:
        if exc.errno not in FULL_DISK:
            raise


def _on_signals(
    loop: asyncio.AbstractEventLoop, stop: Callable[[], None], reload: Callable[[], None]
) -> Callable[[], object]:
    """Call `stop` on the loop at SIGTERM or SIGINT, and `reload` at SIGHUP; return a function that
    undoes that."""
    import signal

    numbers = [signal.SIGTERM, signal.SIGINT]
    try:
        for number in numbers:
            loop.add_signal_handler(number, stop)
        if sys.platform != "win32":
            loop.add_signal_handler(signal.SIGHUP, reload)
            numbers.append(signal.SIGHUP)
    except NotImplementedError:
        # Windows: its loop has no signal handlers, but Python's own run between its steps.
        before = [
            (number, signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop)))
            for number in numbers
        ]
        return lambda: [signal.signal(*one) for one in before]
    return lambda: [loop.remove_signal_handler(number) for number in numbers]


def _verify(context: ServerContext, stop: threading.Event) -> None:
    """Verify in the background what the start did not: the accounts, whose damage is reported, and
    the log, where a difference stops all changes."""
    try:
        _check_accounts(context, stop)
        context.journal.verify_before_mark(stop=stop)
    except JournalDamagedError as exc:
        _log.critical("the log is damaged: serving read-only metadata until restart: %s", exc)
    except JournalError as exc:
        _log.error("the log could not be verified: %s", exc)
        context.metrics.failed_jobs["verification of the log"] = str(exc)


def _check_accounts(context: ServerContext, stop: threading.Event) -> None:
    """Read every account, so that the operator is told of damaged ones. Raises `JournalError`."""
    for user in context.journal.latest.users():
        if stop.is_set():
            return
        with contextlib.suppress(DamagedError, StoreRefusedError):
            context.users.find(user)
