"""Opening messages: bounds of every field, and they fit the frames allowed before a login."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.codec.errors import MessageError
from protocol.codec.values import changed
from protocol.wire.frames import MAX_OPENING_BODY
from protocol.wire.messages import encode
from protocol.wire.messages.base import MAX_BUNDLE
from protocol.wire.messages.session import (
    OPENING,
    Enroll,
    Limits,
    Login,
    Notice,
    Ping,
    Pong,
    Session,
    Welcome,
)
from tests.vectors import protocol_examples as examples

LOGIN = Login(1, "alice", bytes(16), 1, 7, bytes(64))
ENROLL = Enroll(1, "alice", b"statement", b"bundle", bytes(64), bytes(32), bytes(32))
NOTICE = Notice(0, "due", "")


def test_replies() -> None:
    assert (Login, Enroll) == OPENING
    assert Login.REPLIES == Enroll.REPLIES == (Session,)
    assert (Pong,) == Ping.REPLIES


def test_typical_opening_messages_fit_an_opening_frame() -> None:
    for request_id, message in examples.MESSAGES:
        if isinstance(message, (Welcome, *OPENING)):
            assert sum(map(len, encode(request_id, message))) < MAX_OPENING_BODY // 2


@pytest.mark.parametrize(
    ("good", "changes"),
    [
        (examples.WELCOME, {"versions": (0,)}),
        (examples.WELCOME, {"versions": (256,)}),
        (examples.WELCOME, {"versions": (1,) * 17}),
        (examples.WELCOME, {"challenge": bytes(31)}),
        (examples.WELCOME, {"signature": b""}),
        (examples.WELCOME, {"limits": None}),
        (LOGIN, {"version": 0}),
        (LOGIN, {"user": "Alice"}),
        (LOGIN, {"user": ""}),
        (LOGIN, {"device_id": bytes(15)}),
        (LOGIN, {"device_id": b""}),
        (LOGIN, {"generation": -1}),
        (LOGIN, {"generation": 2**31 + 1}),
        (LOGIN, {"known_size": -1}),
        (LOGIN, {"signature": bytes(65)}),
        (ENROLL, {"user": "operator"}),
        (ENROLL, {"user": "con"}),
        (ENROLL, {"proof": bytes(31)}),
        (ENROLL, {"possession": bytes(63)}),
        (ENROLL, {"bundle": bytes(MAX_BUNDLE + 1)}),
        (NOTICE, {"state": "soon"}),
        (NOTICE, {"reason": "x" * 513}),
        (Limits(0, 0, 0, 0), {"jitter": 101}),
        (Limits(0, 0, 0, 0), {"window": True}),
    ],
)
def test_refused(good: Any, changes: dict[str, Any]) -> None:  # noqa: ANN401 - any message
    with pytest.raises(MessageError):
        changed(good, **changes)


def test_the_operator_and_the_recovery_key_may_log_in() -> None:
    assert changed(LOGIN, user="operator", device_id=None).user == "operator"
    assert changed(LOGIN, generation=0).generation == 0
