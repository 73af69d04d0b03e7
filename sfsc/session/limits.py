"""Timeouts of a connection, and limits on what may be in flight over it.

A module of its own, so that a program that opens no connection need not import sockets and TLS,
which take as long to load as all of the cryptography.
"""

from __future__ import annotations

from typing import Final, NewType

from protocol.codec.values import Value
from protocol.wire.messages.base import PIECE

Ticket = NewType("Ticket", int)
"""Identifies a request in flight. `Transport.result` exchanges it for the reply, once."""

MAX_REQUESTS: Final = 128
"""Requests in flight. The daemon makes about half of them durable in one commit while it checks the
others; each commit costs it syncs and a signature, which we verify, whatever its size."""
MAX_WINDOW: Final = 16 * PIECE
"""Bytes in flight, whatever the server's Welcome grants: this limits our memory."""


class Timeouts(Value):
    """Seconds: to connect over TCP and TLS (`connect`), for each step of opening a session
    (`opening`), and for a peer that neither sends nor receives a byte while requests are in flight
    (`idle`)."""

    connect: float = 10.0
    opening: float = 15.0
    idle: float = 120.0
