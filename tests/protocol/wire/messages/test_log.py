"""Reading the log: bounds of every field."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.codec.errors import MessageError
from protocol.codec.merkle import MAX_PROOF
from protocol.codec.values import changed
from protocol.log.auditlog import MAX_LINE
from protocol.log.checkpoint import MAX_CHECKPOINT
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.log import (
    MAX_LEAVES,
    MAX_LINES,
    LogCheckpoint,
    LogHead,
    LogItem,
    LogLeaves,
    LogLeavesPage,
    LogLines,
    LogLinesPage,
    LogProof,
    LogProven,
)

PROOF = (bytes(32),) * MAX_PROOF
ITEM = LogItem(2**53, bytes(32))


def test_replies() -> None:
    assert (LogCheckpoint,) == LogHead.REPLIES
    assert (LogLinesPage,) == LogLines.REPLIES
    assert (LogProven,) == LogProof.REPLIES


@pytest.mark.parametrize(
    ("good", "changes"),
    [
        (ITEM, {"data": bytes(MAX_LINE + 1)}),
        (LogCheckpoint(b""), {"checkpoint": bytes(MAX_CHECKPOINT + 1)}),
        (LogLeaves(0, 1), {"first": -1}),
        (LogLeaves(0, 1), {"limit": 0}),
        (LogLeaves(0, 1), {"limit": MAX_LEAVES + 1}),
        (LogLeavesPage(b""), {"leaves": bytes(PIECE + 1)}),
        (LogLines(()), {"seqs": (0,) * (MAX_LINES + 1)}),
        (LogLines(()), {"seqs": (-1,)}),
        (LogLinesPage(()), {"lines": (ITEM,) * (MAX_LINES + 1)}),
        (LogProof("inclusion", 0, 1), {"kind": "absence"}),
        (LogProof("consistency", 0, 1), {"start": -1}),
        (LogProven(PROOF), {"proof": (*PROOF, bytes(32))}),
    ],
)
def test_refused(good: Any, changes: dict[str, Any]) -> None:  # noqa: ANN401 - any message
    with pytest.raises(MessageError):
        changed(good, **changes)
