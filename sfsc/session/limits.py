"""Timeouts of a connection, and limits on what may be in flight over it.

A module of its own, so that a program that opens no connection need not import sockets and TLS,
which take as long to load as all of the cryptography.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, NewType

from protocol.codec.errors import QuantityError
from protocol.codec.quantities import parse_duration
from protocol.codec.values import Value
from protocol.wire.messages.base import PIECE
from sfsc.errors import UsageError

Ticket = NewType("Ticket", int)
"""Identifies a request in flight. `Transport.result` exchanges it for the reply, once."""

MAX_REQUESTS: Final = 128
"""Requests in flight. The daemon makes about half of them durable in one commit while it checks the
others; each commit costs it syncs and a signature, which we verify, whatever its size."""
MAX_WINDOW: Final = 16 * PIECE
"""Bytes in flight, whatever the server's Welcome grants: this limits our memory."""


RETRY_FOR: Final = "SFSC_RETRY_FOR"
DEFAULT_RETRY: Final = 16.0
"""Default of `Timeouts.retry`: a daemon restarts within these seconds."""
MIN_RATE: Final = 16 * 1024
"""Bytes a second. A server disconnects a client that takes minutes for a piece."""


class Throttle:
    """Limits the bytes that are sent and received together, over all connections of a session."""

    def __init__(self, rate: int, sleep: Callable[[float], None] = time.sleep) -> None:
        """`rate` is in bytes a second. Raises `UsageError` below `MIN_RATE`."""
        if rate < MIN_RATE:
            raise UsageError(f"a rate of {rate} bytes a second", f"use at least {MIN_RATE}")
        self._rate = rate
        self._sleep = sleep
        self._free = 0.0

    def spend(self, size: int) -> None:
        """Wait until `size` bytes may have been moved since the last call."""
        now = time.monotonic()
        self._free = max(self._free, now) + size / self._rate
        self._sleep(self._free - now)


class Timeouts(Value):
    """Seconds: to connect over TCP and TLS (`connect`), for each step of opening a session
    (`opening`), for a peer that neither sends nor receives a byte while requests are in flight
    (`idle`), and of pauses between attempts to connect again after a loss (`retry`, 0: one
    attempt)."""

    connect: float = 10.0
    opening: float = 15.0
    idle: float = 120.0
    retry: float = DEFAULT_RETRY


def resolve_retry(stated: float | None) -> float:
    """Return the seconds of `Timeouts.retry`: `stated`, else SFSC_RETRY_FOR (``90s``, ``5m``), else
    16. Raises `UsageError` for a malformed duration."""
    text = os.environ.get(RETRY_FOR)
    if stated is not None or not text:
        return DEFAULT_RETRY if stated is None else stated
    try:
        return float(parse_duration(text))
    except QuantityError as exc:
        raise UsageError(f"{RETRY_FOR}: {exc.cause}", exc.hint) from exc
