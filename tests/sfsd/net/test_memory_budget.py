"""What requests weigh: as much, about, as they or their answers make the daemon hold."""

from __future__ import annotations

import pytest

from protocol.records.records import MAX_WRAPPED_KEY
from protocol.wire.messages import Message
from protocol.wire.messages.base import PIECE, Wrap
from protocol.wire.messages.changes import BatchedWrap, Change, Commit, WrapBatch
from protocol.wire.messages.downloads import GetLeaves, Read
from protocol.wire.messages.files import History, List
from protocol.wire.messages.log import LogLines
from protocol.wire.messages.rotation import (
    MAX_BATCH,
    GetWraps,
    NewStatement,
    Rewrap,
    RewrapItem,
    RotateBegin,
    RotateFinish,
)
from protocol.wire.messages.session import Ping
from protocol.wire.messages.sharing import Inbox, Lookup
from protocol.wire.messages.uploads import Data
from sfsd.net.memory_budget import weight_of
from tests.opens import open_one
from tests.protocol.wire_form import plain
from tests.sfsd.builders import file_id

F, U, S = file_id(1), bytes(16), bytes(64)
WRAP = Wrap("ada", bytes(32), "xwing", bytes(MAX_WRAPPED_KEY))
CHANGE = Change(bytes(32 * 1024), 0, bytes(4096))
MOVE = Change(bytes(100), 0, b"", tombstone=bytes(32 * 1024))
BATCH = WrapBatch(bytes(16), "ada", bytes(32), "xwing", bytes(MAX_WRAPPED_KEY - 76))
BATCHED = BatchedWrap(0, 1, 0, bytes(60))
ITEM = RewrapItem("ada", F, 1, WRAP, (bytes(32),) * 2)


def small_change(size: int) -> Change:
    return Change(bytes(600), 0, bytes(200), size)


@pytest.mark.parametrize(
    "message",
    [
        open_one("ada", F, 0),
        GetLeaves(U, 0),
        List("", 1, 0),
        History("ada", F, 1),
        Lookup("ada", 1),
        LogLines((0,)),
        GetWraps("", 1, all_of_them=False),
        Inbox("", 1, 0),
    ],
)
def test_who_is_answered_with_a_page_weighs_one(message: Message) -> None:
    assert weight_of(message) >= 960 * 1024


@pytest.mark.parametrize(
    "message",
    [
        Commit(
            (CHANGE,) * 20, (bytes(32),) * 256, S, (BATCH,) * 256, (BATCHED,) * 1024, False, b""
        ),
        Commit(
            (small_change(4096),) * 256, (bytes(32),) * 256, S, (BATCH,), (), False, bytes(PIECE)
        ),
        Commit((MOVE,) * 12, (), S, (BATCH,) * 2, (), False, b""),
        Data(U, 0, bytes(PIECE)),
        Read(U, 0, PIECE),
        Rewrap((ITEM,) * MAX_BATCH, S),
        NewStatement(bytes(32 * 1024), (S, S), bytes(64 * 1024)),
        RotateBegin(bytes(32 * 1024), (S, S), bytes(64 * 1024)),
        RotateFinish(bytes(32 * 1024), (S, S), bytes(64 * 1024), bytes(32 * 1024), S),
    ],
)
def test_who_brings_much_weighs_as_much(message: Message) -> None:
    brought = sum(map(len, map(repr, plain(message)))) // 4  # a byte is written as four signs
    assert weight_of(message) >= brought * 9 // 10


def test_what_is_small_weighs_little() -> None:
    small = Commit((small_change(1024),), (bytes(32),), S, (BATCH,), (BATCHED,), False, bytes(1024))
    for message in (Ping(), small, Rewrap((ITEM,), S)):
        assert weight_of(message) <= 24 * 1024
