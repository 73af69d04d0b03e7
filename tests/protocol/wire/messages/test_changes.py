"""Changesets: bounds of every field, and what fits a frame."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.codec.encoding import MAX_BODY
from protocol.codec.errors import MessageError
from protocol.codec.values import changed
from protocol.log.auditlog import MAX_LINE
from protocol.records.records import MAX_RECORD, MAX_WRAPPED_KEY
from protocol.wire.messages import Error, encode
from protocol.wire.messages.base import MAX_METADATA, MAX_RECEIPT_LEAVES, MAX_SMALL, PIECE
from protocol.wire.messages.changes import (
    MAX_BATCHES,
    MAX_CHANGE_WRAPS,
    MAX_CHANGES,
    BatchedWrap,
    Change,
    Commit,
    Committed,
    Outcome,
    WrapBatch,
)

BATCH = WrapBatch(bytes(16), "u" * 32, bytes(32), "rsa4096", bytes(MAX_WRAPPED_KEY - 76))
WRAP = BatchedWrap(0, 1, 0, bytes(60))
CHANGE = Change(bytes(600), 0, bytes(300), MAX_SMALL)
COMMIT = Commit((CHANGE,), (bytes(32),), bytes(64), (BATCH,), (WRAP,), True, bytes(MAX_SMALL))
OUTCOME = Outcome(7, b"line", None)
COMMITTED = Committed((OUTCOME,), b"note", 7, b"")


def test_replies() -> None:
    assert (Committed,) == Commit.REPLIES


@pytest.mark.parametrize(
    "message",
    [
        changed(
            COMMIT,
            changes=(Change(bytes(MAX_RECORD), 0, bytes(MAX_METADATA), MAX_SMALL),),
            batches=(BATCH,) * MAX_BATCHES,
            wraps=(WRAP,) * MAX_BATCHES,
        ),
        changed(
            COMMIT,
            changes=(changed(CHANGE, inline_size=1500),) * MAX_CHANGES,
            leaves=(bytes(32),) * 256,
            wraps=(WRAP,) * MAX_CHANGE_WRAPS,
            contents=bytes(1500 * MAX_CHANGES),
        ),
        changed(
            COMMITTED,
            outcomes=(changed(OUTCOME, line=bytes(1700)),) * MAX_CHANGES,
            leaves=bytes(MAX_RECEIPT_LEAVES),
        ),
    ],
    ids=["one file with 256 readers", "256 files", "256 outcomes"],
)
def test_large_ones_fit_a_frame(message: Any) -> None:  # noqa: ANN401 - any message
    assert sum(map(len, encode(2**32 - 1, message))) <= MAX_BODY


@pytest.mark.parametrize(
    ("good", "wrong"),
    [
        (CHANGE, {"record": bytes(MAX_RECORD + 1)}),
        (CHANGE, {"leaf": -1}),
        (CHANGE, {"leaf": 256}),
        (CHANGE, {"metadata": bytes(MAX_METADATA + 1)}),
        (CHANGE, {"inline_size": MAX_SMALL + 1}),
        (CHANGE, {"inline_size": -1}),
        (CHANGE, {"upload": bytes(15)}),
        (CHANGE, {"tombstone": bytes(MAX_RECORD + 1)}),
        (CHANGE, {"tombstone_leaf": 256}),
        (BATCH, {"batch_id": bytes(15)}),
        (BATCH, {"user": "Bob"}),
        (BATCH, {"key_id": bytes(16)}),
        (BATCH, {"algorithm": "rsa1024"}),
        (BATCH, {"enc": bytes(MAX_WRAPPED_KEY - 75)}),
        (WRAP, {"change": MAX_CHANGES}),
        (WRAP, {"version": 0}),
        (WRAP, {"batch": MAX_BATCHES}),
        (WRAP, {"item": bytes(59)}),
        (WRAP, {"item": bytes(61)}),
        (COMMIT, {"changes": (CHANGE,) * (MAX_CHANGES + 1)}),
        (COMMIT, {"changes": (None,)}),
        (COMMIT, {"leaves": (bytes(32),) * 257}),
        (COMMIT, {"leaves": (bytes(31),)}),
        (COMMIT, {"signature": bytes(63)}),
        (COMMIT, {"batches": (BATCH,) * (MAX_BATCHES + 1)}),
        (COMMIT, {"wraps": (WRAP,) * (MAX_CHANGE_WRAPS + 1)}),
        (COMMIT, {"contents": bytes(PIECE + 1)}),
        (COMMIT, {"contents": "text"}),
        (OUTCOME, {"seq": -1}),
        (OUTCOME, {"line": bytes(MAX_LINE + 1)}),
        (OUTCOME, {"error": "quota"}),
        (COMMITTED, {"outcomes": (OUTCOME,) * (MAX_CHANGES + 1)}),
        (COMMITTED, {"leaves": bytes(MAX_RECEIPT_LEAVES + 1)}),
    ],
)
def test_refused(good: Any, wrong: dict[str, Any]) -> None:  # noqa: ANN401 - any message
    with pytest.raises(MessageError):
        changed(good, **wrong)


def test_an_error_is_a_part_of_an_outcome() -> None:
    refused = Outcome(0, b"", Error("quota", "full"))
    assert changed(COMMITTED, outcomes=(OUTCOME, refused)).outcomes[1].error == refused.error
