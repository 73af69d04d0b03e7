"""What the daemon does by itself, and when: once a day it logs whose keys fell due, and removes
what retention lets go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Final

from sfsd.config import DAY, RetentionPolicy
from sfsd.errors import DamagedError, Stale
from sfsd.jobs.expired_keys import rotation_due_change
from sfsd.jobs.retention import retention_changes
from sfsd.rules.context import ServerContext
from sfsd.storage.change import Change

AFTER_START: Final = 60.0
"""Seconds until the first run: whoever waits for the daemon comes first."""
LOOK: Final = 600.0
"""Seconds between looks at the clock, which may have been set."""
Make = Callable[[Change], Awaitable[int]]


class Schedule:
    """Asked for a `pause` and then to `run`, over and over. `make` has a change committed."""

    def __init__(self, world: ServerContext, make: Make) -> None:
        self._world = world
        self._make = make
        self._last: float | None = None
        self._started = False

    def pause(self) -> float:
        """Seconds until `run` is to be called."""
        seconds = LOOK if self._started else AFTER_START
        self._started = True
        return seconds

    async def run(self) -> int:
        """Do what is due; how many changes were made."""
        policy, now = self._world.config.retention, self._world.clock()
        # A clock that was set back must not put it off for ever.
        if self._last is not None and 0 <= now - self._last < DAY:
            return 0
        self._last = now
        if self._world.failed is not None:
            return 0
        made = 0
        for owner in await asyncio.to_thread(self._world.store.children, ""):
            changes = self._changes(owner, policy)
            while (change := await asyncio.to_thread(next, changes, None)) is not None:
                try:
                    await self._make(change)
                except Stale:
                    continue  # someone works with that file just now; tomorrow is another day
                made += 1
        return made

    def _changes(self, owner: str, policy: RetentionPolicy) -> Iterator[Change]:
        with suppress(DamagedError):  # whoever asks for the account hears of it; so does `fsck`
            if (change := rotation_due_change(self._world, owner)) is not None:
                yield change
            yield from retention_changes(self._world, owner, policy)
