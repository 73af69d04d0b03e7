"""Retry policy: how work goes on after a lost connection, and after a rotation of the keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from sfsc.errors import SfscError, StaleGeneration, TimedOut, Unreachable
from sfsc.library_log import log_step

LOST: Final = (Unreachable, TimedOut)
"""Raised for a lost connection, and for a server that cannot answer now."""
MAX_LOSSES: Final = 5
"""Consecutive connections that may be lost during one step of work."""
PAUSES: Final = (0.0, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each attempt to connect again; a daemon restarts within their sum."""

_Done = TypeVar("_Done")


def retry(
    action: Callable[[], _Done],
    *,
    usable: Callable[[], bool],
    reconnect: Callable[[], None],
    renew: Callable[[], None] | None,
) -> _Done:
    """Return the result of `action`, repeated on a new connection if one is lost, and with newer
    keys if the account has them (`renew`). Raises the error of the last attempt."""
    lost = 0
    while True:
        try:
            return action()
        except StaleGeneration:
            # The keys were rotated since this connection was opened.
            if renew is None or lost == MAX_LOSSES:
                raise
            lost += 1
            renew()
        except LOST:
            # A reply like "busy" raises the same class, but the connection is usable.
            if usable() or lost == MAX_LOSSES:
                raise
            lost += 1
            reconnect()


def connect_again(connect: Callable[[], None], pause: Callable[[float], object]) -> None:
    """Connect, retrying for as long as a daemon takes to restart. Raises the last error."""
    failure: SfscError | None = None
    for attempt, seconds in enumerate(PAUSES, 1):
        log_step(f"the connection was lost: attempt {attempt} of {len(PAUSES)} in {seconds:g} s")
        pause(seconds)
        try:
            return connect()
        except LOST as exc:
            failure = exc
    raise failure or Unreachable("the connection was lost")
