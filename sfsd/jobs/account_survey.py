"""Looks at all accounts again and again, for metrics: what each takes, and whose keys are due.

A scrape must not read the disk for every user. So it is shown what the last look found, and the
looks take at most `SHARE` of one processor.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Final

from protocol.codec.values import Value, changed
from sfsd.errors import JournalError, StoreError
from sfsd.rules.context import ServerContext
from sfsd.rules.users import rotation_notice

PAUSE: Final = 15.0
"""Least seconds from the begin of one look at all accounts to that of the next."""
SHARE: Final = 0.01
_TURN_SECONDS: Final = 0.005
"""How long one turn looks before it lets others run."""
_KEPT_SECONDS: Final = 0.2
"""How long the use of a user who is not in memory is taken from the last look, for each version
that a new look would have to read."""


class AccountUse(Value):
    """Use of an account when it was looked at: bytes and files; its quota in bytes, 0 for none.
    `keys` is "due", "overdue" or "forced" if a rotation is, else "". `looked` is a monotonic time,
    `entries` how many log entries the account had then, `versions` how many versions were read."""

    used: int
    files: int
    quota: int
    keys: str
    looked: float
    entries: int
    versions: int


class AccountSurvey:
    """The results by user. `run` on the loop; reading on any thread."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self.accounts: dict[str, AccountUse] = {}
        """Replaced as a whole when all accounts were looked at."""
        self.finished = 0
        """When that was, in Unix seconds; 0 before."""

    async def run(self) -> None:
        """Look at all accounts, and repeat that, until cancelled."""
        while True:
            until = time.monotonic() + PAUSE
            await self.look()
            await asyncio.sleep(max(until - time.monotonic(), 0))

    async def look(self) -> None:
        """Look at all accounts once. One that is damaged is left out: requests report it."""
        found: dict[str, AccountUse] = {}
        names = await asyncio.to_thread(self._context.journal.latest.users)
        steps = self._steps(names, found)
        while True:
            spent = await asyncio.to_thread(_take_steps, steps)
            if spent is None:
                break
            await asyncio.sleep(spent * (1 / SHARE - 1))
        self.accounts, self.finished = found, self._context.now

    def _steps(self, names: Iterable[str], found: dict[str, AccountUse]) -> Iterator[None]:
        """Look at all accounts, in small steps."""
        for name in names:
            with contextlib.suppress(StoreError, JournalError):
                yield from self._look_at(name, found)
            yield

    def _look_at(self, name: str, found: dict[str, AccountUse]) -> Iterator[None]:
        context, now, versions = self._context, time.monotonic(), 0
        account = context.users.account(name)
        if account is None:
            return
        quota, keys, entries = account.value.quota, "", context.journal.count(name)
        user = context.users.find(name)
        if user is not None and not account.value.disabled:
            notice = rotation_notice(user, context.now)
            keys = "" if notice is None else notice.state
        last, files = self.accounts.get(name), context.index.cached(name)
        ledger = None if files is None or not files.ledger.is_loaded else files.ledger
        if (
            ledger is None
            and last is not None
            and (last.entries == entries or now - last.looked < last.versions * _KEPT_SECONDS)
        ):
            found[name] = changed(last, quota=quota, keys=keys)
            return
        steps = context.index.for_user(name).weigh_in_steps()
        while ledger is None:
            ledger = next(steps)  # the last step has it
            versions += 1
            yield
        found[name] = AccountUse(ledger.used, ledger.files, quota, keys, now, entries, versions)


def _take_steps(steps: Iterator[None]) -> float | None:
    """Take some steps; return the processor's seconds that they took, None at the end."""
    began = time.thread_time()
    for _ in steps:
        if (spent := time.thread_time() - began) > _TURN_SECONDS:
            return spent
    return None
