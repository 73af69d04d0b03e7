"""From a message to its answer: one table, one pool, one committer.

The loop's thread comes in, a pool thread decides, the committer's thread makes the change, a pool
thread builds the receipt (`deciding`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Final

import sfsd.operations  # noqa: F401 - fills the table
from protocol.codec.fields import shortened
from protocol.records.chain import COMPROMISED, RECOVERY
from protocol.records.records import Statement
from protocol.wire.messages import Done, Error, Reply, Request
from protocol.wire.messages.accounts import UserAccess
from protocol.wire.messages.rotation import RotateBegin
from protocol.wire.messages.session import PROTOCOL_VERSION, Enroll, Limits, Login, Session, Welcome
from protocol.wire.messages.uploads import Data
from sfsd.errors import JournalRefusedError, Refused, StoreRefusedError
from sfsd.net.batches import BatchRunner, OperationError
from sfsd.net.connection_limits import IncidentCounter
from sfsd.operations.login import enrol, log_in
from sfsd.rules.context import OPERATIONS, Access, Commit, Principal, ServerContext
from sfsd.state.uploads import WINDOW
from sfsd.storage.change import Change

__all__ = ["Access", "Dispatcher", "Principal"]

_ROTATED: Final = "the account's keys were rotated"
_NOTED: Final = frozenset({"refused", "token", "denied", "not-allowed"})
"""Codes that mean someone tried what he may not; the log has them by source and minute."""
Revoke = Callable[[str, Callable[[Principal], bool] | None], None]


class Dispatcher:
    """What a session talks to. All methods are for the loop's thread.

    `on_revoke(user, which)` is set by the server: it closes those of a user's sessions, all where
    `which` is None. `unwritten` counts by cause what the disk did not take.
    """

    def __init__(self, world: ServerContext) -> None:
        self.world = world
        self.unwritten = IncidentCounter()
        self.on_revoke: Revoke = lambda _user, _which: None
        self._deciding = BatchRunner(world.committer)
        self._data: dict[Principal, set[asyncio.Future[None]]] = {}

    def welcome(self) -> Welcome:
        """A fresh first frame: who this server is, and what it asks of a login."""
        identity, policy = self.world.identity, self.world.config.rotation
        return Welcome(
            versions=(PROTOCOL_VERSION,),
            statement=identity.body,
            signature=identity.signature,
            challenge=secrets.token_bytes(32),
            limits=Limits(WINDOW, policy.max_age, policy.grace, policy.jitter),
        )

    async def open(
        self, message: Login | Enroll, *, welcome_sha256: bytes, address: str
    ) -> tuple[Principal, Session]:
        """Open a session on a connection from `address` whose Welcome had this hash.

        Raises `Refused`, whose code and text are the answer; attempts that were refused are logged.
        """

        def decide() -> tuple[Principal, Session] | Commit[tuple[Principal, Session]]:
            if isinstance(message, Login):
                return log_in(self.world, message, welcome_sha256, address)
            return enrol(self.world, message, welcome_sha256, address)

        outcome = await self._deciding.outcome(decide)
        if isinstance(outcome, OperationError):
            error = _error_of(outcome)
            if error.code in _NOTED:
                self.world.refusals.note(address, message.user, error.code)
            raise Refused(error.code, error.text) from outcome
        who, session = outcome
        self.world.read_handles.open_session(who.session)
        return who, session

    async def handle(self, who: Principal, message: Request) -> Reply:
        """The answer to a request; one that is not done, for whatever reason, gets an `Error`."""
        # Data is written by pool threads side by side; what ends an upload comes after all of it.
        pieces = self._data.setdefault(who, set())
        operation = OPERATIONS.get(type(message))
        if operation is not None and operation.after_data and pieces:
            await asyncio.wait(list(pieces))
        written = asyncio.get_running_loop().create_future()
        if isinstance(message, Data):
            pieces.add(written)
        try:
            decide = partial(self._decide, who, message)
            outcome = await self._deciding.outcome(
                decide, slow=operation is not None and operation.slow
            )
        finally:
            pieces.discard(written)
            written.cancel()
        return self._reply(who, message, outcome)

    async def handle_all(
        self, who: Principal, messages: Sequence[Request]
    ) -> AsyncIterator[tuple[int, Reply]]:
        """As `handle`, of `swift` requests that came together: (place, answer) of each, in any
        order. They are decided one after the other, and what they change is made together."""
        decides = [partial(self._decide, who, message) for message in messages]
        async for place, outcome in self._deciding.outcomes(decides):
            yield place, self._reply(who, messages[place], outcome)

    @staticmethod
    def is_swift(message: Request) -> bool:
        """Whether it waits neither for the disk, but for one small file, nor for other requests."""
        operation = OPERATIONS.get(type(message))
        return operation is not None and not (operation.after_data or operation.slow)

    def _decide(self, who: Principal, message: Request) -> Reply | Commit[Reply]:
        operation = OPERATIONS.get(type(message))
        if operation is None:
            raise Refused("unknown-request", "this server does not know that request")
        if who.access not in operation.access:
            if Access.FULL in operation.access and self._is_superseded(who):
                raise Refused("stale-generation", _ROTATED)
            raise Refused("not-allowed", "this session may not ask for that")
        # A session whose key has a successor by now may do no more than one opened with it now.
        if Access.RESTRICTED not in operation.access and self._is_superseded(who):
            raise Refused("stale-generation", _ROTATED)
        return operation.function(self.world, who, message)

    def _reply(self, who: Principal, message: Request, outcome: Reply | OperationError) -> Reply:
        if isinstance(outcome, OperationError):
            error = _error_of(outcome)
            if error.code in _NOTED or (error.code == "not-found" and _is_foreign(who, message)):
                self.world.refusals.note(who.address, who.user, error.code)
            if isinstance(outcome, (JournalRefusedError, StoreRefusedError)):
                self.unwritten.count(outcome.cause)
            return error
        if isinstance(outcome, Done):
            self._revoke(who, message)
        return outcome

    def _revoke(self, who: Principal, message: Request) -> None:
        """Close the sessions that must not go on after what was done just now."""
        if isinstance(message, UserAccess) and message.disabled:
            self.on_revoke(message.user, None)
        elif isinstance(message, RotateBegin):
            statement = Statement.parse(message.statement)
            if statement.reason in (COMPROMISED, RECOVERY):
                # The asker's own goes on, as that of an older key: it waits for this answer.
                self.on_revoke(
                    who.user,
                    lambda one: one is not who and 0 < one.generation < statement.generation,
                )

    def _is_superseded(self, who: Principal) -> bool:
        """Whether the session was opened with a user's key that is no longer his newest."""
        if who.access not in (Access.FULL, Access.RESTRICTED):
            return False
        chain = self.world.users.chain(who.user)
        return chain is not None and chain[0].head.generation != who.generation

    def closed(self, who: Principal) -> None:
        """The session has ended: its handles are closed. Uploads stay, they are the user's."""
        self._data.pop(who, None)
        self.world.read_handles.close_session(who.session)

    async def tick(self) -> None:
        """For the server, every few seconds: log refusals that are due, drop idle uploads."""
        await self._deciding.pool.run(self.world.uploads.drop_idle, slow=True)
        self._log_refusals(last=False)

    async def close(self) -> None:
        """After the last session has ended and before the committer closes."""
        self._log_refusals(last=True)
        await asyncio.to_thread(self._deciding.pool.shutdown)

    def _log_refusals(self, *, last: bool) -> None:
        for draft in self.world.refusals.due(all_of_them=last):
            # Nobody waits for it: where the log takes no more, this is not logged either.
            self.world.committer.submit(Change(draft))


def _error_of(exc: OperationError) -> Error:
    """What the asker is told. An error that has no code is a mistake of ours and is raised."""
    if isinstance(exc, Refused):
        return Error(exc.code, shortened(exc.cause), exc.head)
    if isinstance(exc, OSError):
        return Error("unavailable", "the server's disk failed; it may have been done")
    if exc.code is None:
        raise exc
    return Error(exc.code, exc.client_text)


def _is_foreign(who: Principal, message: Request) -> bool:
    return getattr(message, "owner", who.user) != who.user
