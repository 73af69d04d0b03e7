"""How long a connection is waited for, and how much may be under way over it.

Apart from `transport`, which does it: sockets and TLS take as long to load as all of the
cryptography, and a program that opens no connection needs neither.
"""

from __future__ import annotations

from typing import Final, NewType

from protocol.codec.values import Value
from protocol.wire.messages.base import PIECE

Ticket = NewType("Ticket", int)
"""A request under way. `Transport.result` exchanges it for the reply, once."""

MAX_REQUESTS: Final = 128
"""Requests without an answer. A daemon makes about half of them durable together while it decides
the others; each such group costs it syncs and a signature, which we verify, whatever its size."""
MAX_WINDOW: Final = 16 * PIECE
"""Bytes without an answer, whatever the server's Welcome grants: this is our memory."""


class Timeouts(Value):
    """Seconds: for TCP and TLS to connect, for each step of opening a session, and for a peer that
    neither sends nor takes a single byte while something is under way."""

    connect: float = 10.0
    opening: float = 15.0
    idle: float = 120.0
