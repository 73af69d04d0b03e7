"""The recovery code: parsing of typed text, and detection of typing errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.records.signatures import Label, verify_signature
from sfsc.crypto.wrap import PublicKey
from sfsc.errors import Mistyped
from sfsc.keys.recovery_code import RecoveryCode

CODE = RecoveryCode(bytes(range(32)))
EXPECTED = "084b2ae54ccd2260cd02240dd9368665d18b2f5b2a294adac4736e7c2bff65b8"


@given(st.binary(min_size=32, max_size=32))
def test_round_trip(secret: bytes) -> None:
    text = RecoveryCode(secret).text
    assert RecoveryCode.parse(text).secret == secret
    assert [len(group) for group in text.split("-")] == [5] * 14
    typed = text.lower().replace("-", " ").replace("o", "0").replace("i", "1").replace("b", "8")
    assert RecoveryCode.parse(f"  {typed}\n").secret == secret


@pytest.mark.parametrize("typed", ["", "ABCDE", f"{CODE.text}-AAAAA", CODE.text[:-1]])
def test_another_number_of_groups_is_mistyped(typed: str) -> None:
    with pytest.raises(Mistyped) as caught:
        RecoveryCode.parse(typed)
    assert CODE.text[:11] not in f"{caught.value} {caught.value.hint}"


@given(st.text(max_size=80))
def test_any_text_raises_only_usage_errors(text: str) -> None:
    with pytest.raises(Mistyped):
        RecoveryCode.parse(text)


def test_fresh_codes_differ_and_repr_hides_them() -> None:
    first, second = RecoveryCode.generate(), RecoveryCode.generate()
    assert first != second
    assert first.text not in repr(first)
    assert repr(first.secret) not in repr(first)


def test_keys_are_derived_from_the_code_alone() -> None:
    again = RecoveryCode(bytes(range(32)))
    assert again.public_keys == CODE.public_keys
    verify_signature(
        Label.LOGIN,
        b"body",
        again.signing_key.sign(Label.LOGIN, b"body"),
        CODE.public_keys.sign_pub,
    )
    wrapped = PublicKey("xwing", CODE.public_keys.xwing_pub).wrap(bytes(32), b"info")
    assert again.wrap_key.unwrap(wrapped, b"info") == bytes(32)
    # Computed from the documented labels: changing one would lock users out.
    assert CODE.public_keys.sign_pub.hex() == EXPECTED
