from __future__ import annotations

import threading

import pytest

from protocol.records import record_signatures
from protocol.records.record_signatures import SignatureCache
from protocol.records.signatures import Label, SigningKey, verify_signature
from sfsc.trust import signature_cache
from sfsc.trust.signature_cache import SignatureCheck, signature_is_valid, verify_in_background

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


def signed(count: int) -> list[SignatureCheck]:
    bodies = [number.to_bytes(2) for number in range(count)]
    return [(Label.RECORDS, body, KEY.sign(Label.RECORDS, body), KEY.public) for body in bodies]


def test_batch_is_verified_from_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    by: dict[bytes, str] = {}
    helped = threading.Event()

    def watched(label: Label, body: bytes, signature: bytes, public: bytes) -> None:
        by[body] = threading.current_thread().name
        if body == many[-2][1]:
            helped.set()
        verify_signature(label, body, signature, public)

    monkeypatch.setattr(record_signatures, "verify_signature", watched)
    many = signed(64)
    with verify_in_background(many):
        assert signature_is_valid(*many[0])
        assert helped.wait(20)
        assert all(signature_is_valid(*one) for one in many)
    assert len(by) == 64
    assert by[many[0][1]] == threading.current_thread().name
    assert by[many[-1][1]] == by[many[-2][1]] == "sfsc-verify"
    assert "sfsc-verify" not in {thread.name for thread in threading.enumerate()}


def test_background_thread_accepts_no_wrong_signature() -> None:
    many = signed(64)
    label, body, signature, public = many[50]
    many[50] = wrong = (label, body + b"!", signature, public)
    with verify_in_background(many):
        assert [signature_is_valid(*one) for one in many] == [one is not wrong for one in many]
    with verify_in_background(many):
        assert [signature_is_valid(*one) for one in reversed(many)].count(False) == 1
    assert not signature_is_valid(*wrong)


def test_small_batches_start_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(threading, "Thread")
    with verify_in_background(signed(7)):
        pass
    with verify_in_background([]):
        pass
