"""Turns of users in reading from their connections, so that many connections of one user take no
more of a turn of the event loop than one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from sfsd.fair_queue import FairQueue

BULK: Final = 64 * 1024
"""Bytes received at once that count as a turn, if several connections of a user receive as many."""


class ReadTurns:
    """Calls one waiting connection of each user in a turn of the loop. Call it on its thread."""

    def __init__(self) -> None:
        self._waiting = FairQueue[str, Callable[[], None]]()
        self._last: dict[str, int] = {}  # the number of the connection that received bulk last
        self._scheduled = False

    def note_bulk(self, user: str, connection: int) -> bool:
        """Note that a connection of `user` has received bulk. Return whether it must wait for a
        turn: another one received bulk before. A connection alone never waits, which would cost an
        upload a seventh of its time."""
        last = self._last.get(user, connection)
        self._last[user] = connection
        return last != connection

    def wait(self, user: str, read: Callable[[], None]) -> None:
        """Call `read` in a later turn of the loop, as the turn of `user`."""
        self._waiting.put(user, read)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pass)

    def _pass(self) -> None:
        self._scheduled = False
        for _ in range(self._waiting.ready):
            self._waiting.take()()
        if self._waiting:
            self._schedule()
