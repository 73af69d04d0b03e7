"""Limits on the memory that running requests may take: of one connection, and of all together."""

from __future__ import annotations

from typing import Final, cast

import sfsd.operations  # noqa: F401 - fills the table
from protocol.codec.values import Mutable
from protocol.wire.messages import Message, Request
from protocol.wire.messages.base import PIECE
from sfsd.rules.context import OPERATIONS, REQUEST_WEIGHT

MAX_CONNECTION_BYTES: Final = 24 * PIECE
"""Weight of one connection's running requests: the Welcome's window of Data, and some Reads."""
MAX_TOTAL_BYTES: Final = 96 * PIECE
"""Weight of all running requests. Above it, each connection runs one request at a time."""


class MemoryBudget(Mutable):
    """Bytes that the running requests of all connections weigh, and the limit on them."""

    used: int = 0
    limit: int = MAX_TOTAL_BYTES


def weight_of(message: Message) -> int:
    """Return about how many bytes a request makes the daemon hold: its own or its answer's."""
    found = OPERATIONS.get(cast(type[Request], type(message)))
    weight = REQUEST_WEIGHT if found is None else found.weight
    return weight if isinstance(weight, int) else weight(message)
