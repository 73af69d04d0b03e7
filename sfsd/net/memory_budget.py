"""What requests under way may make us hold: their bytes, of one connection and of all together."""

from __future__ import annotations

from typing import Final

from protocol.codec.values import Mutable
from protocol.wire.messages import Message
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.downloads import GetLeaves, GetOpen, Read
from protocol.wire.messages.files import History, List, Record
from protocol.wire.messages.log import LogEntries
from protocol.wire.messages.rotation import (
    GetWraps,
    NewStatement,
    Rewrap,
    RotateBegin,
    RotateFinish,
)
from protocol.wire.messages.sharing import Inbox, Lookup, SetReaders
from protocol.wire.messages.uploads import Data, PutCommit, PutSmall

MAX_BYTES_UNDER_WAY: Final = 24 * PIECE
"""Their weight; a client may have the Welcome's window of Data, and Reads beside it."""
MAX_BYTES_IN_ALL: Final = 256 * PIECE
"""The weight of all connections' requests. Past it each connection goes on one at a time."""
_OTHER_WEIGHT: Final = 16 * 1024
_WRAP_WEIGHT: Final = 1280
"""Of a wrap, its key's name and the user's."""
_ITEM_WEIGHT: Final = 1536
"""Of a wrap that is made anew, and two endorsements."""
_HEAVY: Final[tuple[type[Message], ...]] = (
    *(GetOpen, GetLeaves, List, History, Lookup, Inbox, LogEntries, GetWraps),
    *(Record, NewStatement, RotateBegin, RotateFinish),
)
"""Requests that are, or whose answers are, up to about 1 MiB long; and some that are rare."""


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
        return _weight_of_put(message) + len(message.ciphertext)
    if isinstance(message, PutCommit):
        return _weight_of_put(message)
    if isinstance(message, Rewrap):
        return _OTHER_WEIGHT + _ITEM_WEIGHT * len(message.items)
    if isinstance(message, SetReaders):
        return _OTHER_WEIGHT + len(message.record) + _WRAP_WEIGHT * len(message.wraps)
    return PIECE if isinstance(message, _HEAVY) else _OTHER_WEIGHT


def _weight_of_put(message: PutSmall | PutCommit) -> int:
    """But for its ciphertext."""
    brought = len(message.record) + len(message.metadata) + _WRAP_WEIGHT * len(message.wraps)
    return _OTHER_WEIGHT + brought
