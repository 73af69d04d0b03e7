"""Identity chains of other users: bounds of every field, and a full page fits a frame."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.codec.encoding import MAX_BODY
from protocol.codec.errors import MessageError
from protocol.codec.values import changed
from protocol.log.auditlog import MAX_LINE
from protocol.records.records import MAX_RECORD
from protocol.wire.messages import encode
from protocol.wire.messages.sharing import Identity, Lookup, SignedStatement

STATEMENT = SignedStatement(bytes(MAX_RECORD), (bytes(64),) * 2, 2**53, bytes(MAX_LINE))
IDENTITY = Identity((STATEMENT,) * 8, 9)


def test_replies() -> None:
    assert (Identity,) == Lookup.REPLIES


def test_the_largest_page_fits_a_frame() -> None:
    assert sum(map(len, encode(2**32 - 1, IDENTITY))) <= MAX_BODY


@pytest.mark.parametrize(
    ("good", "changes"),
    [
        (Lookup("alice", 1), {"user": "operator"}),
        (Lookup("alice", 1), {"first": -1}),
        (STATEMENT, {"signatures": (bytes(64),) * 3}),
        (STATEMENT, {"statement": bytes(MAX_RECORD + 1)}),
        (STATEMENT, {"line": bytes(MAX_LINE + 1)}),
        (IDENTITY, {"statements": (STATEMENT,) * 9}),
    ],
)
def test_refused(good: Any, changes: dict[str, Any]) -> None:  # noqa: ANN401 - any message
    with pytest.raises(MessageError):
        changed(good, **changes)
