from __future__ import annotations

import pytest

from protocol.records import record_signatures
from protocol.records.record_signatures import SignatureCache
from protocol.records.signatures import Label, SigningKey
from sfsc.trust import signature_cache
from sfsc.trust.signature_cache import signature_is_valid

KEY = SigningKey.from_seed(b"k" * 32)
OTHER = SigningKey.from_seed(b"o" * 32)
BODY = b"a record"


@pytest.fixture(autouse=True)
def nothing_known() -> None:
    signature_cache._verified = SignatureCache(signature_cache.MAX_CACHED)


def test_cached_signature_covers_only_itself() -> None:
    signature = KEY.sign(Label.RECORDS, BODY)
    for _ in range(2):
        assert signature_is_valid(Label.RECORDS, BODY, signature, KEY.public)
        assert not signature_is_valid(Label.ENDORSEMENTS, BODY, signature, KEY.public)
        assert not signature_is_valid(Label.RECORDS, BODY, signature, OTHER.public)
        assert not signature_is_valid(Label.RECORDS, BODY + b"!", signature, KEY.public)
        assert not signature_is_valid(Label.RECORDS, BODY[:-1], signature, KEY.public)
        for at in range(64):
            changed = bytearray(signature)
            changed[at] ^= 1
            assert not signature_is_valid(Label.RECORDS, BODY, bytes(changed), KEY.public)
        assert not signature_is_valid(Label.RECORDS, BODY, signature, None)
    assert len(signature_cache._verified._valid) == 1


def test_signature_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    signature = KEY.sign(Label.RECORDS, BODY)
    assert signature_is_valid(Label.RECORDS, BODY, signature, KEY.public)
    monkeypatch.delattr(record_signatures, "verify_signature")
    assert signature_is_valid(Label.RECORDS, BODY, signature, KEY.public)
