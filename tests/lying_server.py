"""A real daemon in this process that lies: the attacker who runs the server, for attack tests.

The root, log, store, committer, dispatcher and TLS are those of ``sfsd serve``, so that a lie
starts from a server that works. Clients are the product's own (`sfsc.enrol`, `sfsc.connect`, or the
command by `tests.harness.Client`), unchanged. A test says what the server does instead::

    def test_hidden_file(lying_server: LyingServer) -> None:
        home = lying_server.enrol("alice")
        with connect(home) as store:
            store.put(io.BytesIO(b"x"), name="a")
            lying_server.tamper = hide_a  # sees each reply, returns the one to send
            with pytest.raises(IntegrityError):
                list(store.ls())

- `tamper(who, request, reply)` is called after a request was processed, also after a login, and
  returns the reply to send. `intercept(who, request)` is called before; if it returns a reply, the
  request is never processed. `welcome(welcome)` changes the first frame of each connection. An
  `Error` in place of the reply to a login refuses it.
- A hook that raises `DropConnection` breaks the connection: before the request is processed
  (`intercept`), or after it was committed and before the client learns of it (`tamper`).
- Hooks run on a thread of their own, so they may call every method here, `ask` and `append`
  included. Any other exception of a hook breaks the connection and is raised when the server stops,
  so a failed ``assert`` in a hook fails the test.
- `honest()` ends all lies. The state of the client is what remains of them.
- `context` is the daemon's `ServerContext`, with its store and documents. `journal`, `keys` and
  `sign_note` are what signs: the attacker has the server's key, the log's key and the TLS key.
- `stop`, edit `root`, `start` is an attacker who edits the disk of an honest daemon. The address
  stays, so that clients find the server again.
- `copied(home, name)` is another machine with the same keys and nothing remembered.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import click
from click.testing import CliRunner

import sfsc
from protocol.log import checkpoint
from protocol.log.auditlog import EntryDraft
from protocol.records.invitation import TOKEN_SIZE, Invitation, parse_address
from protocol.wire.messages import Done, Error, Message, Reply, Request
from protocol.wire.messages.accounts import UserAdd
from protocol.wire.messages.session import (
    Enroll,
    Login,
    Session,
    Welcome,
)
from sfsd import server_keys
from sfsd.commands import init
from sfsd.datadir import lock_root, open_server_context
from sfsd.errors import Refused
from sfsd.log.journal import Journal
from sfsd.net.dispatch import Dispatcher
from sfsd.net.listener import Server
from sfsd.rules.context import Access, Principal, ServerContext, ServerIdentity
from sfsd.server_keys import ServerKeys
from sfsd.settings.kinds import DAY
from sfsd.storage.change import Change

SECONDS = 20.0
"""How long anything here waits for the daemon."""

Tamper = Callable[[Principal | None, Message, Message], Message]
Intercept = Callable[[Principal, Request], Reply | None]
_T = TypeVar("_T")


class DropConnection(Exception):
    """Raised by a hook: the connection breaks and the reply is never sent."""


class LyingServer:
    """Daemon over `root`, which is created if it does not exist; the module explains the hooks.

    As a context manager it serves from the start of the block to its end. `settings` is text that
    is appended to the new root's sfsd.toml.
    """

    def __init__(self, root: Path, settings: str = "") -> None:
        self.root = root
        self.address = "127.0.0.1:0"
        self.honest()
        if not root.exists():
            root.mkdir(parents=True)
            _run(init.command, root)
            with (root / "sfsd.toml").open("a") as file:
                file.write(settings)
        self._failure: BaseException | None = None
        self._stack = ExitStack()
        self._context: ServerContext | None = None

    # --- lies

    def honest(self) -> None:
        """End all lies."""
        self.tamper: Tamper = lambda _who, _request, reply: reply
        self.intercept: Intercept = lambda _who, _request: None
        self.welcome: Callable[[Welcome], Welcome] = lambda welcome: welcome

    # --- what the attacker has

    @property
    def context(self) -> ServerContext:
        """The running daemon's context. Raises RuntimeError while it is stopped."""
        if self._context is None:
            raise RuntimeError("the server is stopped")
        return self._context

    @property
    def journal(self) -> Journal:
        """The log."""
        return self.context.journal

    @property
    def keys(self) -> ServerKeys:
        """The server's keys, with which it signs statements and checkpoints."""
        return server_keys.load(self.root / "keys")

    def sign_note(self, size: int, root: bytes) -> bytes:
        """Sign a checkpoint of any `size` and `root` (32 bytes) with the log's key."""
        return checkpoint.sign(self.keys.log_key, self.keys.origin, size, root)

    def append(self, draft: EntryDraft) -> int:
        """Append an entry of any content to the real log and return its seq. Raises `SfsdError`."""
        return self.context.committer.submit(Change(draft)).result(SECONDS)

    def ask(self, who: Principal, message: Request) -> Reply:
        """Return the honest reply to `message` in the session `who`; hooks do not see it."""
        return self._submit(self._dispatcher.answer_honestly(who, message)).result(SECONDS)

    # --- users and their machines

    def invite(self, user: str, *, quota: int = 0) -> str:
        """Invite a user and return the invitation."""
        host, port = parse_address(self.address)
        token = secrets.token_bytes(TOKEN_SIZE)
        operator = Principal("operator", 1, Access.OPERATOR, -1, 0, "127.0.0.1")
        expires = int(time.time()) + DAY
        reply = self.ask(operator, UserAdd(user, hashlib.sha256(token).digest(), expires, quota))
        assert isinstance(reply, Done), reply
        return Invitation(host, port, user, self.keys.server_id, token).to_text()

    def enrol(self, user: str, home: Path | None = None, **options: Any) -> Path:
        """Enrol a new user and return the home, by default beside the root.

        The keyring has no passphrase, because stretching one takes longer than most tests.
        `options` are further arguments of `sfsc.enrol`.
        """
        where = home or self.root.with_name(f"home-{user}")
        options.setdefault("no_passphrase", "passphrase" not in options)
        sfsc.enrol(self.invite(user), home=where, **options)
        return where

    def copied(self, home: Path, name: str, *, state: bool = False) -> Path:
        """Copy a keyring to a new home beside `home` and return it: a machine with the same keys,
        which remembers nothing, or with `state` all that the first one does."""
        other = home.with_name(name)
        if state:
            shutil.copytree(home, other)
        else:
            other.mkdir(mode=0o700)
            shutil.copy2(home / "keyring", other / "keyring")
        return other

    # --- running

    def start(self) -> Self:
        """Open the root and serve it; return when connections are accepted. Raises `SfsdError`."""
        with ExitStack() as stack:
            stack.enter_context(lock_root(self.root))
            self._context = stack.enter_context(open_server_context(self.root))
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="lying-server")
            self._thread.start()
            stack.callback(self._end_loop)
            tls = server_keys.load(self.root / "keys").tls_context()
            self._dispatcher = LyingDispatcher(self._context, self)
            self._server = Server(self._context, tls, self._dispatcher)
            self.address = self._submit(self._server.start(self.address)).result(SECONDS)
            stack.callback(lambda: self._submit(self._server.stop()).result(SECONDS))
            self._stack = stack.pop_all()
        return self

    def stop(self) -> None:
        """Stop as after SIGTERM; then the disk may be edited. Raises what a hook has raised."""
        self._stack.close()
        self._context = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _submit(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()

    async def call_hook(self, hook: Callable[[], _T]) -> _T:
        """Return what a hook returns; break the connection if it raises."""
        try:
            return await asyncio.to_thread(hook)
        except DropConnection as exc:
            raise ConnectionAbortedError from exc
        except BaseException as exc:
            self._failure = self._failure or exc
            raise ConnectionAbortedError from exc


class LyingDispatcher(Dispatcher):
    """Dispatcher that passes each request and each reply to the hooks of a `LyingServer`."""

    def __init__(self, context: ServerContext, lies: LyingServer) -> None:
        super().__init__(context)
        self._lies = lies
        self._turns = defaultdict[int, asyncio.Lock](asyncio.Lock)

    def welcome(self, identity: ServerIdentity) -> Welcome:
        return self._lies.welcome(super().welcome(identity))

    async def open_session(
        self,
        message: Login | Enroll,
        *,
        welcome_sha256: bytes,
        address: str,
        identity: ServerIdentity,
    ) -> tuple[Principal, Session]:
        who, session = await super().open_session(
            message, welcome_sha256=welcome_sha256, address=address, identity=identity
        )
        return who, cast(Session, _opening(await self._tampered(who, message, session)))

    async def handle(self, who: Principal, message: Request) -> Reply:
        # A commit must not overtake its pieces while their hooks run.
        async with self._turns[id(who)]:
            reply = await self._intercepted(who, message)
        if reply is not None:
            return reply
        return await self._tampered(who, message, await super().handle(who, message))

    async def answer_honestly(self, who: Principal, message: Request) -> Reply:
        """Process a request without the hooks."""
        return await super().handle(who, message)

    async def _intercepted(self, who: Principal, message: Request) -> Reply | None:
        return await self._lies.call_hook(lambda: self._lies.intercept(who, message))

    async def _tampered(self, who: Principal | None, message: Message, reply: Message) -> Reply:
        sent = await self._lies.call_hook(lambda: self._lies.tamper(who, message, reply))
        return cast(Reply, sent)


def _opening(reply: Message) -> Message:
    """Return the reply to a login; an `Error` refuses the login."""
    if isinstance(reply, Error):
        raise Refused(reply.code, reply.text)
    return reply


def _run(command: click.Command, root: Path) -> None:
    arguments = ["--root", str(root)]
    CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
