"""Downloads: bounds of every field, and a page of leaves beside a first piece fits a frame."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.codec.encoding import MAX_BODY
from protocol.codec.errors import MessageError
from protocol.codec.values import changed
from protocol.wire.messages import encode
from protocol.wire.messages.base import LEAVES_PER_PAGE, MAX_SMALL, PIECE
from protocol.wire.messages.downloads import (
    MAX_OPENED,
    Bytes,
    GetLeaves,
    LeavesPage,
    Open,
    Opened,
    OpenedVersion,
    OpenResult,
    OpenTarget,
    Read,
)
from tests.vectors.protocol_examples import VIEW

VERSION = OpenedVersion(bytes(16), VIEW, bytes(LEAVES_PER_PAGE * 32), bytes(MAX_SMALL))
OPENED = Opened((OpenResult(VERSION, None),))
TARGET = OpenTarget("0" * 32, 0)
READ = Read(bytes(16), 2**53, PIECE)


def test_replies() -> None:
    assert (Opened,) == Open.REPLIES
    assert (LeavesPage,) == GetLeaves.REPLIES
    assert (Bytes,) == Read.REPLIES


@pytest.mark.parametrize(
    "message",
    [OPENED, LeavesPage(VERSION.leaves), Bytes(bytes(PIECE))],
    ids=lambda m: type(m).__name__,
)
def test_the_largest_fits_a_frame(message: Any) -> None:  # noqa: ANN401 - any message
    assert sum(map(len, encode(2**32 - 1, message))) <= MAX_BODY


@pytest.mark.parametrize(
    ("good", "changes"),
    [
        (READ, {"length": 0}),
        (READ, {"length": PIECE + 1}),
        (READ, {"offset": -1}),
        (READ, {"handle": bytes(17)}),
        (READ, {"length": 1.0}),
        (TARGET, {"version": -1}),
        (TARGET, {"version": 2**31 + 1}),
        (TARGET, {"file_id": "0" * 31}),
        (Open("alice", (TARGET,)), {"owner": "server"}),
        (Open("alice", ()), {"targets": (TARGET,) * (MAX_OPENED + 1)}),
        (GetLeaves(bytes(16), 0), {"first": -1}),
        (VERSION, {"leaves": bytes(LEAVES_PER_PAGE * 32 + 1)}),
        (VERSION, {"data": bytes(MAX_SMALL + 1)}),
        (VERSION, {"view": None}),
        (OPENED, {"results": OPENED.results * (MAX_OPENED + 1)}),
        (Bytes(b""), {"data": bytes(PIECE + 1)}),
    ],
)
def test_refused(good: Any, changes: dict[str, Any]) -> None:  # noqa: ANN401 - any message
    with pytest.raises(MessageError):
        changed(good, **changes)
