"""The daily jobs: log which users' keys are due for rotation, and remove expired data."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Final

from protocol.codec.names import SERVER
from protocol.codec.values import changed
from protocol.log.auditlog import EntryDraft
from sfsd.errors import DamagedError, SfsdError, Stale
from sfsd.jobs.retention import retention_changes
from sfsd.rules.context import ServerContext
from sfsd.rules.removal import erasure_changes, is_removal_due
from sfsd.settings.config import RetentionPolicy
from sfsd.settings.kinds import DAY
from sfsd.storage.change import Change, Write
from sfsd.storage.paths import account_path

FIRST_PAUSE: Final = 60.0
"""Seconds until the first run, so that clients that wait for the daemon come first."""
RETENTION_JOB: Final = "retention"
PAUSE: Final = 600.0
"""Seconds between checks of the clock, which may be set at any time."""
CommitChange = Callable[[Change], Awaitable[int]]


class JobScheduler:
    """Runs the jobs once a day. The server sleeps for `pause`, calls `run`, and repeats."""

    def __init__(self, context: ServerContext, commit: CommitChange) -> None:
        self._context = context
        self._commit = commit
        self._last: float | None = None
        self._started = False

    def pause(self) -> float:
        """Return the seconds until `run` is to be called."""
        seconds = PAUSE if self._started else FIRST_PAUSE
        self._started = True
        return seconds

    async def run(self) -> int:
        """Run the jobs if a day has passed; return the number of changes made. Why a run failed is
        in `ServerMetrics.failed_jobs` until the next one has succeeded."""
        policy, now = self._context.config.retention, self._context.clock()
        # A clock that was set back must not postpone the jobs for years.
        if self._last is not None and 0 <= now - self._last < DAY:
            return 0
        self._last = now
        if self._context.failed is not None:
            return 0
        failed = self._context.metrics.failed_jobs
        try:
            made = await self._run_all(policy)
        except (SfsdError, OSError) as exc:
            failed[RETENTION_JOB] = str(exc)
            raise
        failed.pop(RETENTION_JOB, None)
        return made

    async def _run_all(self, policy: RetentionPolicy) -> int:
        made = 0
        for owner in await asyncio.to_thread(self._context.journal.latest.users):
            changes = self._changes(owner, policy)
            while (change := await asyncio.to_thread(next, changes, None)) is not None:
                try:
                    await self._commit(change)
                except Stale:
                    continue  # a user is changing that file; the next run retries
                made += 1
        return made

    def _changes(self, owner: str, policy: RetentionPolicy) -> Iterator[Change]:
        with suppress(DamagedError):  # requests for the account and `fsck` report it
            account = self._context.users.account(owner)
            if account is not None and account.value.removal:
                if is_removal_due(self._context, owner):
                    yield from (change for _, change in erasure_changes(self._context, owner))
                return
        with suppress(DamagedError):  # requests for the account and `fsck` report it
            if (change := rotation_due_change(self._context, owner)) is not None:
                yield change
            yield from retention_changes(self._context, owner, policy)


def rotation_due_change(context: ServerContext, name: str) -> Change | None:
    """Return a log entry that says that a user's keys are due; once for each generation.

    It blocks nothing. What a user may do after `due` is decided at each request (`rules.users`), so
    neither a daemon that was down nor a full log delays a block. Raises `DamagedError`.
    """
    user = context.users.find(name)
    if user is None or user.account.value.disabled:
        return None
    head, account = user.chain.head, user.account.value
    if context.now < head.due or account.fell_due >= head.generation:
        return None
    draft = EntryDraft(
        op="rotation-due",
        actor=SERVER,
        owner=name,
        detail={"generation": head.generation, "due": head.due, "expires": head.expires},
        accounts=(name,),
    )
    logged = changed(account, fell_due=head.generation)
    return Change(draft, user.expect, (Write(account_path(name), logged.encode),))
