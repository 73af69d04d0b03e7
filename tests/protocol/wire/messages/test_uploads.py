"""Uploads: bounds of every field, and the largest of each fits a frame."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.codec.encoding import MAX_BODY
from protocol.codec.errors import MessageError
from protocol.codec.values import changed
from protocol.records.records import MAX_WRAPPED_KEY
from protocol.wire.messages import encode
from protocol.wire.messages.base import PIECE, Wrap
from protocol.wire.messages.uploads import (
    Aborted,
    Data,
    PutAbort,
    PutOpen,
    PutResume,
    UploadState,
)

WRAP = Wrap("u" * 32, bytes(32), "rsa4096", bytes(MAX_WRAPPED_KEY))
DATA = Data(bytes(16), 2**53, bytes(PIECE))
OPEN = PutOpen("alice", "0" * 32, 0)


def test_replies() -> None:
    assert PutOpen.REPLIES == Data.REPLIES == PutResume.REPLIES == (UploadState,)
    assert (Aborted,) == PutAbort.REPLIES


def test_the_largest_piece_fits_a_frame() -> None:
    assert sum(map(len, encode(2**32 - 1, DATA))) <= MAX_BODY


@pytest.mark.parametrize(
    ("good", "changes"),
    [
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
