from __future__ import annotations

import pytest

from protocol.signatures import Label, SigningKey
from sfsc import verified
from sfsc.verified import verifies

KEY = SigningKey.from_seed(b"k" * 32)
OTHER = SigningKey.from_seed(b"o" * 32)
BODY = b"a record"


@pytest.fixture(autouse=True)
def nothing_known() -> None:
    verified._verified.clear()


def test_what_was_found_good_vouches_for_itself_only() -> None:
    signature = KEY.sign(Label.RECORD, BODY)
    for _ in range(2):
        assert verifies(Label.RECORD, BODY, signature, KEY.public)
        assert not verifies(Label.ENDORSE, BODY, signature, KEY.public)
        assert not verifies(Label.RECORD, BODY, signature, OTHER.public)
        assert not verifies(Label.RECORD, BODY + b"!", signature, KEY.public)
        assert not verifies(Label.RECORD, BODY[:-1], signature, KEY.public)
        for at in range(64):
            changed = bytearray(signature)
            changed[at] ^= 1
            assert not verifies(Label.RECORD, BODY, bytes(changed), KEY.public)
        assert not verifies(Label.RECORD, BODY, None, KEY.public)
        assert not verifies(Label.RECORD, BODY, signature, None)
    assert len(verified._verified) == 1


def test_it_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    signature = KEY.sign(Label.RECORD, BODY)
    assert verifies(Label.RECORD, BODY, signature, KEY.public)
    monkeypatch.delattr(verified, "verify")
    assert verifies(Label.RECORD, BODY, signature, KEY.public)


def test_no_more_are_remembered_than_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "MOST", 3)
    for number in range(10):
        body = bytes([number])
        assert verifies(Label.RECORD, body, KEY.sign(Label.RECORD, body), KEY.public)
        assert 0 < len(verified._verified) <= 3
