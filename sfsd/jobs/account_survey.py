"""Looks at all accounts again and again, for metrics: what each takes, and whose keys are due.

A scrape must not read the disk for every user. So it is shown what the last look found, and the
looks take at most `SHARE` of one processor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from protocol.codec.values import Value
from sfsd.errors import JournalError, StoreError
from sfsd.rules.context import ServerContext
from sfsd.rules.users import rotation_notice

PAUSE: Final = 15.0
"""Least seconds from the begin of one look at all accounts to that of the next."""
SHARE: Final = 0.01
_TURN_SECONDS: Final = 0.005
"""How long one turn looks before it lets others run."""
_KEPT_SECONDS: Final = 3600.0
"""How long the use of a user who is not in memory is taken from the last look."""


class AccountUse(Value):
    """Use of an account when it was looked at: bytes and files; its quota in bytes, 0 for none.
    `keys` is "due", "overdue" or "forced" if a rotation is, else "". `looked` is a time."""

    used: int
    files: int
    quota: int
    keys: str
    looked: float


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
        names = iter(await asyncio.to_thread(self._context.journal.latest.users))
        while True:
            spent = await asyncio.to_thread(self._look_at, names, found)
            if spent is None:
                break
            await asyncio.sleep(spent * (1 / SHARE - 1))
        self.accounts, self.finished = found, self._context.now

    def _look_at(self, names: Iterator[str], found: dict[str, AccountUse]) -> float | None:
        """Look at some accounts; return the processor's seconds that it took, None at the end."""
        began = time.thread_time()
        for name in names:
            try:
                one = self._account_use(name)
            except (StoreError, JournalError):
                continue
            if one is not None:
                found[name] = one
            if (spent := time.thread_time() - began) > _TURN_SECONDS:
                return spent
        return None

    def _account_use(self, name: str) -> AccountUse | None:
        context, now = self._context, time.monotonic()
        account = context.users.account(name)
        if account is None:
            return None
        keys = ""
        user = context.users.find(name)
        if user is not None and not account.value.disabled:
            notice = rotation_notice(user, context.now)
            keys = "" if notice is None else notice.state
        last, files = self.accounts.get(name), context.index.cached(name)
        loaded = files is not None and files.ledger.is_loaded
        if last is not None and not loaded and now - last.looked < _KEPT_SECONDS:
            return AccountUse(last.used, last.files, account.value.quota, keys, last.looked)
        ledger = context.index.for_user(name).loaded_ledger()
        return AccountUse(ledger.used, ledger.files, account.value.quota, keys, now)
