"""Retry policy: how work goes on after a lost connection, and after a rotation of the keys."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from sfsc.errors import SfscError, StaleGeneration, TimedOut, Unreachable
from sfsc.library_log import log_step
from sfsc.session.progress import Progress

LOST: Final = (Unreachable, TimedOut)
"""Raised for a lost connection, and for a server that cannot answer now."""
MAX_LOSSES: Final = 5
"""Consecutive connections that may be lost during one step of work."""
PAUSES: Final = (0.0, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds before each of the first attempts to connect again."""
_LONGEST_PAUSE: Final = 30.0
"""Seconds before each later attempt."""

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


def pauses(retry_for: float) -> Iterator[float]:
    """Yield the seconds before each attempt to connect again, of which the first is made at once:
    `retry_for` in all, or less. Without that limit they go on for ever (`math.inf`)."""
    left = retry_for
    for seconds in itertools.chain(PAUSES, itertools.repeat(_LONGEST_PAUSE)):
        if seconds > left:
            return
        left -= seconds
        yield seconds


def connect_again(
    connect: Callable[[], None],
    pause: Callable[[float], object],
    retry_for: float,
    progress: Progress,
) -> None:
    """Connect, with pauses of at most `retry_for` seconds between the attempts. Raises the last
    error."""
    failure: SfscError = Unreachable("the connection was lost")
    try:
        for seconds in pauses(max(retry_for, 0.0)):
            log_step(f"{failure.cause}; connecting again in {seconds:g} s")
            if seconds:  # an attempt that is made at once is not worth a word
                progress.reconnecting(failure.cause, seconds)
            pause(seconds)
            try:
                return connect()
            except LOST as exc:
                failure = exc
    finally:
        progress.reconnected()
    raise failure
