"""What requests under way may make us hold: their bytes, of one connection and of all together."""

from __future__ import annotations

from typing import Final

from protocol.messages import Message
from protocol.messages.base import PIECE
from protocol.messages.downloads import GetLeaves, GetOpen, Read
from protocol.messages.files import History, List, Record
from protocol.messages.sharing import Lookup
from protocol.messages.uploads import Data, PutSmall
from protocol.values import Mutable

MAX_BYTES_UNDER_WAY: Final = 24 * PIECE
"""Their weight; a client may have the Welcome's window of Data, and Reads beside it."""
MAX_BYTES_IN_ALL: Final = 256 * PIECE
"""The weight of all connections' requests. Past it each connection goes on one at a time."""
_OTHER_WEIGHT: Final = 16 * 1024
_HEAVY: Final[tuple[type[Message], ...]] = (GetOpen, GetLeaves, List, History, Lookup, Record)
"""Requests that are, or whose answers are, up to about 1 MiB long."""


class Budget(Mutable):
    """Bytes that the requests under way of all connections of a server weigh."""

    used: int = 0
    most: int = MAX_BYTES_IN_ALL


def weight_of(message: Message) -> int:
    """Bytes, about, that a request makes us hold: what it brings or what answers it."""
    if isinstance(message, Read):
        return message.length
    if isinstance(message, Data):
        return len(message.data)
    if isinstance(message, PutSmall):
        return _OTHER_WEIGHT + len(message.ciphertext)
    return PIECE if isinstance(message, _HEAVY) else _OTHER_WEIGHT
