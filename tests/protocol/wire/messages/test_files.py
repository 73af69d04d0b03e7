"""Listing and changing files: bounds of every field."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.codec.errors import MessageError
from protocol.codec.values import changed
from protocol.wire.messages.base import GenerationSignature
from protocol.wire.messages.files import (
    MAX_PAGE,
    History,
    HistoryPage,
    List,
    Listing,
    Stat,
    Stated,
)
from tests.vectors.protocol_examples import ENDORSED, VIEW

LIST = List("", 1, 0)


def test_replies() -> None:
    assert (Stated,) == Stat.REPLIES
    assert (Listing,) == List.REPLIES
    assert (HistoryPage,) == History.REPLIES


@pytest.mark.parametrize(
    ("good", "changes"),
    [
        (LIST, {"limit": 0}),
        (LIST, {"limit": MAX_PAGE + 1}),
        (LIST, {"after": "0" * 33}),
        (LIST, {"since_seq": -1}),
        (Stat("alice", "0" * 32, 0), {"file_id": "0" * 33}),
        (Stat("alice", "0" * 32, 0), {"version": -1}),
        (History("alice", "0" * 32, 1), {"first": -1}),
        (Listing((), ""), {"views": (VIEW,) * (MAX_PAGE + 1)}),
        (HistoryPage((), 0), {"records": (ENDORSED,) * (MAX_PAGE + 1)}),
        (HistoryPage((), 0), {"records": (b"bytes",)}),
        (VIEW, {"head": ENDORSED.record}),
        (VIEW, {"seq": -1}),
        (ENDORSED, {"signatures": ENDORSED.signatures * 33}),
        (GenerationSignature(1, bytes(64)), {"generation": 0}),
    ],
)
def test_refused(good: Any, changes: dict[str, Any]) -> None:  # noqa: ANN401 - any message
    with pytest.raises(MessageError):
        changed(good, **changes)
