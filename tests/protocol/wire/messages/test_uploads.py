"""Uploads: bounds of every field, and the largest of each fits a frame."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.codec.encoding import MAX_BODY
from protocol.codec.errors import MessageError
from protocol.codec.values import changed
from protocol.records.records import MAX_RECORD, MAX_WRAPPED_KEY
from protocol.wire.messages import Done, encode
from protocol.wire.messages.base import MAX_METADATA, MAX_SMALL, MAX_WRAPS, PIECE, Wrap
from protocol.wire.messages.uploads import (
    Aborted,
    Data,
    PutAbort,
    PutCommit,
    PutOpen,
    PutResume,
    PutSmall,
    UploadState,
)

WRAP = Wrap("u" * 32, bytes(32), "rsa4096", bytes(MAX_WRAPPED_KEY))
RECORD = bytes(MAX_RECORD)
METADATA = bytes(MAX_METADATA)
SMALL = PutSmall(RECORD, bytes(64), METADATA, (WRAP,) * MAX_WRAPS, bytes(MAX_SMALL))
COMMIT = PutCommit(bytes(16), RECORD, bytes(64), METADATA, (WRAP,) * MAX_WRAPS)
DATA = Data(bytes(16), 2**53, bytes(PIECE))
OPEN = PutOpen("alice", "0" * 32, 0)


def test_replies() -> None:
    assert PutSmall.REPLIES == PutCommit.REPLIES == (Done,)
    assert PutOpen.REPLIES == Data.REPLIES == PutResume.REPLIES == (UploadState,)
    assert (Aborted,) == PutAbort.REPLIES


@pytest.mark.parametrize("message", [SMALL, COMMIT, DATA], ids=lambda m: type(m).__name__)
def test_the_largest_fits_a_frame(message: Any) -> None:  # noqa: ANN401 - any message
    assert sum(map(len, encode(2**32 - 1, message))) <= MAX_BODY


@pytest.mark.parametrize(
    ("good", "changes"),
    [
        (SMALL, {"record": bytes(MAX_RECORD + 1)}),
        (SMALL, {"signature": bytes(325)}),
        (SMALL, {"metadata": bytes(MAX_METADATA + 1)}),
        (SMALL, {"wraps": (WRAP,) * (MAX_WRAPS + 1)}),
        (SMALL, {"ciphertext": bytes(MAX_SMALL + 1)}),
        (SMALL, {"ciphertext": "text"}),
        (COMMIT, {"upload": bytes(15)}),
        (COMMIT, {"wraps": (None,)}),
        (DATA, {"upload": b""}),
        (DATA, {"offset": -1}),
        (DATA, {"offset": 2**53 + 1}),
        (DATA, {"data": bytes(PIECE + 1)}),
        (OPEN, {"owner": "operator"}),
        (OPEN, {"file_id": "0" * 31}),
        (OPEN, {"size": -1}),
        (WRAP, {"algorithm": "rsa1024"}),
        (WRAP, {"wrapped": bytes(MAX_WRAPPED_KEY + 1)}),
        (WRAP, {"key_id": bytes(16)}),
        (WRAP, {"user": "Bob"}),
    ],
)
def test_refused(good: Any, changes: dict[str, Any]) -> None:  # noqa: ANN401 - any message
    with pytest.raises(MessageError):
        changed(good, **changes)
