"""Dispatches requests to operations and turns their outcomes into replies.

A request arrives on the loop's thread, a pool thread decides it, the committer's thread makes the
change, and a pool thread builds the receipt (`sfsd.net.batches`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import sfsd.operations  # noqa: F401 - fills the table
from protocol.codec.fields import shortened
from protocol.codec.names import SERVER
from protocol.log.auditlog import IDENTITY_OPS
from protocol.records.records import COMPROMISED, RECOVERY, Statement
from protocol.wire.messages import Done, Error, Reply, Request
from protocol.wire.messages.accounts import UserAccess, UserRemove, UserRevoke
from protocol.wire.messages.base import MAX_REFUSING, DamagedVersion
from protocol.wire.messages.changes import Commit
from protocol.wire.messages.log import LogLeaves, LogLines
from protocol.wire.messages.rotation import NewStatement, RotateBegin
from protocol.wire.messages.session import (
    PROTOCOL_VERSION,
    Enroll,
    Limits,
    Login,
    Session,
    Welcome,
)
from protocol.wire.messages.uploads import Data
from sfsd.errors import (
    DamagedError,
    JournalError,
    JournalRefusedError,
    OperationError,
    Refused,
    StoreBusyError,
    StoreError,
    StoreRefusedError,
    UnreadableError,
)
from sfsd.fs.files import NO_DESCRIPTORS
from sfsd.net.batches import BatchRunner, Decide, Outcome
from sfsd.net.connection_limits import IncidentCounter, source_network
from sfsd.net.line_limits import LineLimits
from sfsd.operations.changesets import SignedChangeset
from sfsd.operations.login import enrol, log_in
from sfsd.rules.context import (
    OPERATIONS,
    Access,
    Answer,
    Changeset,
    Operation,
    PartlyRefused,
    Principal,
    ServerContext,
    ServerIdentity,
    Transaction,
)
from sfsd.state.uploads import WINDOW
from sfsd.storage.change import Change
from sfsd.storage.paths import parse_version_path

_SUPERSEDED: Final = "the account's keys were rotated"
_LOGGED_CODES: Final = frozenset({"refused", "token", "denied", "not-allowed"})
"""Codes of attempts without permission; the log has their number by source and minute."""
_Decided = TypeVar("_Decided")
Revoke = Callable[[str, Callable[[Principal], bool] | None], None]


class Dispatcher:
    """Handles the requests of all sessions. Call its methods on the loop's thread.

    The server sets `on_revoke(user, which)`, which closes the user's sessions that `which` selects,
    or all if it is None. `disk_failures` counts failed reads and writes by cause. `lines`
    limits what users add to the log.
    """

    def __init__(self, context: ServerContext) -> None:
        self.context = context
        self.disk_failures = IncidentCounter()
        self.on_revoke: Revoke = lambda _user, _which: None
        self._batches = BatchRunner(context.committer)
        self._data: dict[Principal, set[asyncio.Future[None]]] = {}
        self.lines = LineLimits(context.config.limits.user_log_lines_per_day, time.monotonic)

    def welcome(self, identity: ServerIdentity) -> Welcome:
        """Return a new first frame: the server's statement, a login challenge, and limits."""
        policy = self.context.config.rotation
        return Welcome(
            versions=(PROTOCOL_VERSION,),
            statement=identity.body,
            signature=identity.signature,
            challenge=secrets.token_bytes(32),
            limits=Limits(WINDOW, policy.max_age, policy.grace, policy.jitter),
        )

    async def open_session(
        self,
        message: Login | Enroll,
        *,
        welcome_sha256: bytes,
        address: str,
        identity: ServerIdentity,
    ) -> tuple[Principal, Session]:
        """Open a session on a connection from `address` whose Welcome had this hash and identity.

        Raises `Refused`, whose code and text are the reply; refused attempts are logged.
        """

        def decide() -> tuple[Principal, Session] | Transaction[tuple[Principal, Session]]:
            if isinstance(message, Enroll):
                return enrol(self.context, message, welcome_sha256, address)
            found = log_in(self.context, message, welcome_sha256, address, identity)
            return self._line_counted(message.user, found, login=True)

        # Anybody can name any user, so the turns are those of the address.
        outcome = await self._batches.run(f"login from {source_network(address)}", decide)
        if isinstance(outcome, OperationError):
            error = _error_of(outcome)
            self.context.metrics.refusals[error.code] += 1
            if error.code in _LOGGED_CODES:
                self.context.refusals.note(address, message.user, error.code)
            raise Refused(error.code, error.text) from outcome
        who, session = outcome
        self.context.read_handles.open_session(who.session)
        return who, session

    async def handle(self, who: Principal, message: Request) -> Reply:
        """Return the reply to a request: an `Error` if it failed for any reason."""
        # Pool threads write Data in parallel; requests that end an upload wait for all of it.
        pieces = self._data.setdefault(who, set())
        operation = OPERATIONS.get(type(message))
        if operation is not None and operation.after_data and pieces:
            await asyncio.wait(list(pieces))
        if isinstance(message, Commit):
            return await self._commit(who, message)
        decide: Decide[Answer] = partial(self._decide, who, message)
        slow = operation is not None and operation.slow
        bulk = operation is not None and operation.bulk
        written: asyncio.Future[None] | None = None
        if isinstance(message, Data):
            written = asyncio.get_running_loop().create_future()
            pieces.add(written)
        try:
            outcome: Outcome[Answer] = await self._batches.run(
                who.user, decide, slow=slow, bulk=bulk
            )
        finally:
            if written is not None:
                pieces.discard(written)
                written.cancel()
        return self._reply(who, message, outcome)

    async def _commit(self, who: Principal, message: Commit) -> Reply:
        """Decide the changes of a request together, and answer them together."""
        changeset = SignedChangeset(self.context, who, message)
        found = await self._batches.run_many(
            who.user,
            changeset.count,
            partial(self._decide_changes, who, message, changeset),
            is_atomic=changeset.is_atomic,
        )
        first = found[0]
        if isinstance(first, OperationError) and not changeset.is_valid:
            return self._refusal(who, message, first)
        outcomes = [
            self._refusal(who, message, one) if isinstance(one, OperationError) else one
            for one in found
        ]
        reply = partial(changeset.answer, outcomes)
        answer = await self._batches.run(who.user, reply)
        return _error_of(answer) if isinstance(answer, OperationError) else answer

    def _decide_changes(
        self, who: Principal, message: Commit, changeset: Changeset, places: Sequence[int]
    ) -> list[int | Transaction[int] | OperationError]:
        self._check_allowed(who, message)
        return changeset.decide(places, partial(self.lines.take, who.user))

    def _decide(self, who: Principal, message: Request) -> Answer | Transaction[Answer]:
        operation = self._check_allowed(who, message)
        decided = operation.function(self.context, who, message)
        if isinstance(decided, Changeset):
            raise TypeError("a changeset is decided change by change")
        return self._line_counted(who.user, decided)

    def _check_allowed(self, who: Principal, message: Request) -> Operation:
        """Return the operation of a request. Raises `Refused` if the session may not ask for it."""
        operation = OPERATIONS.get(type(message))
        if operation is None:
            raise Refused("unknown-request", "this server does not know that request")
        if who.ended and operation.logged is None:
            raise Refused("shutting-down", "the connection is closed")  # nobody gets the answer
        if who.access not in operation.access:
            if Access.FULL in operation.access and self._is_superseded(who):
                raise Refused("stale-generation", _SUPERSEDED)
            raise Refused("not-allowed", "this session may not ask for that")
        # A session whose key was replaced may do no more than a new session with that key. But the
        # one that replaced it must find its statement in the log.
        follows = who.published and isinstance(message, LogLeaves | LogLines)
        if Access.RESTRICTED not in operation.access and not follows and self._is_superseded(who):
            raise Refused("stale-generation", _SUPERSEDED)
        return operation

    def _line_counted(self, user: str, decided: _Decided, *, login: bool = False) -> _Decided:
        """Return what was decided. Raises `Refused` if it adds a line of the user that is one too
        many. Statements have a limit of their own: a flood by a thief must not stop the owner from
        ending the thief's keys."""
        if isinstance(decided, Transaction) and decided.change.draft.op not in IDENTITY_OPS:
            try:
                self.lines.take(user, login=login)
            except Refused:
                if decided.undo is not None:
                    decided.undo()
                raise
        return decided

    def _reply(self, who: Principal, message: Request, outcome: Answer | OperationError) -> Reply:
        if isinstance(outcome, OperationError):
            return self._refusal(who, message, outcome)
        if isinstance(outcome, PartlyRefused):
            return outcome.reply(self._refusal(who, message, one) for one in outcome.refused)
        if isinstance(outcome, Done):
            self._revoke(who, message)
        return outcome

    def _refusal(self, who: Principal, message: Request, outcome: OperationError) -> Error:
        """Count a refused request, or change of one, and return its error."""
        error = _error_of(outcome)
        self.context.metrics.refusals[error.code] += 1
        if error.code in _LOGGED_CODES or (error.code == "not-found" and _is_foreign(who, message)):
            self.context.refusals.note(who.address, who.user, error.code)
        if isinstance(outcome, (JournalRefusedError, StoreRefusedError)):
            self.disk_failures.count(outcome.cause)
        elif isinstance(outcome, UnreadableError):
            self.disk_failures.count(outcome.problem)  # without its path: there may be many
        return error

    def _revoke(self, who: Principal, message: Request) -> None:
        """Close the sessions that the request just handled has revoked."""
        if isinstance(message, UserRevoke | UserRemove) or (
            isinstance(message, UserAccess) and message.disabled
        ):
            self.on_revoke(message.user, None)
        elif isinstance(message, (NewStatement, RotateBegin)):
            who.published = True
            statement = Statement.parse(message.statement)
            try:
                found = self.context.users.chain(who.user)
            except (StoreError, JournalError):
                # It is unknown which sessions may go on, so all others are closed.
                self.on_revoke(who.user, lambda one: one is not who)
                return
            closes_older = statement.reason in (COMPROMISED, RECOVERY)

            def has_ended(one: Principal) -> bool:
                # The session that sent this waits for the reply, so it stays open, with the rights
                # of older keys.
                if one is who or found is None:
                    return False
                older = 0 < one.generation < statement.generation
                return (closes_older and older) or not found[0].may_log_in(one.signer)

            self.on_revoke(who.user, has_ended)

    def _is_superseded(self, who: Principal) -> bool:
        """Tell whether the session was opened with keys that its user has replaced, or by a device
        that was dropped since."""
        if who.access in (Access.RECOVERY, Access.OPERATOR, Access.MONITOR):
            return False
        found = self.context.users.chain(who.user)
        if found is None:
            return False
        chain = found[0]
        return chain.head.generation != who.generation or not chain.may_log_in(who.signer)

    def close_session(self, who: Principal) -> None:
        """Close the read handles of a session that has ended. Its uploads stay: the client may go
        on with them in another session, until their room is needed."""
        who.ended = True
        self._data.pop(who, None)
        self.context.read_handles.close_session(who.session)

    async def tick(self) -> None:
        """Log refusals that are due and drop idle uploads; called every few seconds."""
        await self._batches.pool.run(SERVER, self.context.uploads.drop_idle, slow=True)
        self.lines.forget_idle()
        self._log_refusals(last=False)

    async def close(self) -> None:
        """Log the last refusals and end the pool; after all sessions, before the committer."""
        self._log_refusals(last=True)
        await asyncio.to_thread(self._batches.pool.shutdown)

    def _log_refusals(self, *, last: bool) -> None:
        for draft in self.context.refusals.due(all_of_them=last):
            # Nothing waits for this entry: if the log takes no more entries, it is lost.
            self.context.committer.submit(Change(draft))


def _error_of(exc: OperationError) -> Error:
    """Return the reply for an error. An error without a code is a bug and is raised."""
    if isinstance(exc, Refused):
        readers = exc.readers[:MAX_REFUSING]
        return Error(exc.code, shortened(exc.cause), exc.head, None, readers)
    if isinstance(exc, OSError):
        if exc.errno in NO_DESCRIPTORS:
            return Error("busy", StoreBusyError.client_text)
        return Error("unavailable", "the server's disk failed; it may have been done")
    if exc.code is None:
        raise exc
    place = parse_version_path(exc.path) if isinstance(exc, DamagedError) else None
    damaged = None if place is None else DamagedVersion(*place)
    return Error(exc.code, exc.client_text, None, damaged)


def _is_foreign(who: Principal, message: Request) -> bool:
    return getattr(message, "owner", who.user) != who.user
