"""Accounts and operator requests: bounds of every field, and no field for a token."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.codec.encoding import MAX_BODY
from protocol.codec.errors import MessageError
from protocol.codec.values import changed
from protocol.wire.messages import Done, encode
from protocol.wire.messages.accounts import (
    AccountsPage,
    DamagedFile,
    Status,
    StatusAnswer,
    Usage,
    UsageAnswer,
    UserAccess,
    UserAdd,
    UserList,
    UserShow,
)
from tests.vectors.protocol_examples import ACCOUNT, SCRUB

ADD = UserAdd("bob", bytes(32), 0, 0)
STATUS = StatusAnswer("0.1.0", "", 0, 0, 0, 0, 0, 0, "", SCRUB)


def test_replies() -> None:
    assert (UsageAnswer,) == Usage.REPLIES
    assert UserList.REPLIES == UserShow.REPLIES == (AccountsPage,)
    assert UserAdd.REPLIES == UserAccess.REPLIES == (Done,)
    assert (StatusAnswer,) == Status.REPLIES


def test_a_full_page_fits_a_frame() -> None:
    page = AccountsPage((changed(ACCOUNT, user="u" * 32),) * 256, "u" * 32)
    assert sum(map(len, encode(2**32 - 1, page))) <= MAX_BODY


def test_a_full_status_fits_a_frame() -> None:
    files = (DamagedFile("p" * 255, 2**53, "t" * 512),) * 256
    full = changed(
        STATUS,
        scrub=changed(SCRUB, damaged=files),
        damaged=("u" * 32,) * 256,
        reasons=("r" * 512,) * 64,
    )
    assert sum(map(len, encode(2**32 - 1, full))) <= MAX_BODY


@pytest.mark.parametrize(
    ("good", "changes"),
    [
        (ADD, {"user": "operator"}),
        (ADD, {"user": "a" * 33}),
        (ADD, {"token_sha256": bytes(31)}),
        (ADD, {"expires": -1}),
        (ADD, {"quota": 2**53 + 1}),
        (UserAccess("bob", True, ""), {"disabled": 1}),
        (UserAccess("bob", True, ""), {"reason": "x" * 513}),
        (UserList(""), {"after": "a" * 33}),
        (ACCOUNT, {"fingerprint": bytes(33)}),
        (ACCOUNT, {"disabled": 0}),
        (ACCOUNT, {"wrap_alg": "x" * 17}),
        (AccountsPage((), ""), {"accounts": (ACCOUNT,) * 257}),
        (STATUS, {"version": "1" * 65}),
        (STATUS, {"log_size": -1}),
        (UsageAnswer(0, 0, 0), {"used": True}),
    ],
)
def test_refused(good: Any, changes: dict[str, Any]) -> None:  # noqa: ANN401 - any message
    with pytest.raises(MessageError):
        changed(good, **changes)
