"""Rate-limited log entries for refused requests, grouped by source address and minute.

A flood must not fill the disk. Each minute adds at most `SOURCES` + 1 log entries of bounded
length, and memory holds no more than that.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from protocol.codec.names import SERVER
from protocol.codec.values import Mutable, field
from protocol.log.auditlog import EntryDraft

SOURCES: Final = 16
"""Source addresses counted separately in one minute; the others are counted together."""
NAMES: Final = 8
"""User names counted separately for one source."""
MINUTE: Final = 60
_OTHERS = "others"


class _Group(Mutable):
    codes: Counter[str] = field(default_factory=Counter)
    users: Counter[str] = field(default_factory=Counter)


class RefusalLog:
    """Counts refusals and turns each finished minute into draft log entries. Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._minute = 0
        self._groups: dict[str, _Group] = {}
        self._finished: list[EntryDraft] = []

    def note(self, address: str, user: str, code: str) -> None:
        """Count a refusal with `code` of `user` (a valid name) at `address` (an IP address)."""
        with self._lock:
            self._turn()
            if address not in self._groups and len(self._groups) >= SOURCES:
                address = _OTHERS
            group = self._groups.setdefault(address, _Group())
            group.codes[code] += 1
            if user not in group.users and len(group.users) >= NAMES:
                user = _OTHERS
            group.users[user] += 1

    def due(self, *, all_of_them: bool = False) -> list[EntryDraft]:
        """Remove and return the drafts of finished minutes; with `all_of_them`, of this one too."""
        with self._lock:
            self._turn(force=all_of_them)
            finished, self._finished = self._finished, []
            return finished

    def _turn(self, *, force: bool = False) -> None:
        """Make drafts of the counts if their minute is over, or in any case with `force`."""
        minute = int(self._clock()) // MINUTE
        if minute == self._minute and not force:
            return
        began = datetime.fromtimestamp(self._minute * MINUTE, UTC).strftime("%Y-%m-%dT%H:%MZ")
        for address, group in self._groups.items():
            detail = {
                "address": address,
                "minute": began,
                "count": group.codes.total(),
                "codes": dict(group.codes),
                "users": dict(group.users),
            }
            # Bounded even if nothing calls `due`: a full list means that nothing could be logged.
            if len(self._finished) <= SOURCES:
                self._finished.append(EntryDraft(op="refused", actor=SERVER, detail=detail))
        self._minute = minute
        self._groups = {}
