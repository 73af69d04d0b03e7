"""Ed25519 with context strings: RFC 8032 vectors; no signature verifies in another context."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.errors import SignatureError
from protocol.records.signatures import SEED_SIZE, Label, SigningKey, verify_note, verify_signature

KEY = SigningKey.from_seed(bytes(range(32)))
OTHER = SigningKey.from_seed(bytes(32))

# RFC 8032 section 7.1, tests 1 to 3: seed, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_known_answers(seed: str, public: str, message: str, signature: str) -> None:
    key = SigningKey.from_seed(bytes.fromhex(seed))
    assert key.public.hex() == public
    assert key.seed.hex() == seed
    assert key.sign_note(bytes.fromhex(message)).hex() == signature
    verify_note(bytes.fromhex(message), bytes.fromhex(signature), key.public)


@pytest.mark.parametrize("label", Label)
def test_a_signature_is_over_label_nul_body(label: Label) -> None:
    signature = KEY.sign(label, b"body")
    assert signature == KEY.sign_note(label.value + b"\0body")
    verify_signature(label, b"body", signature, KEY.public)
    for other in set(Label) - {label}:
        with pytest.raises(SignatureError):
            verify_signature(other, b"body", signature, KEY.public)
    with pytest.raises(SignatureError):
        verify_note(b"body", signature, KEY.public)


def test_labels_cannot_be_confused() -> None:
    values = [label.value for label in Label]
    assert len(set(values)) == len(values)
    assert not any(b"\0" in value for value in values)
    # A note begins with "sfs/" and 64 hex digits, and no label is a prefix of one.
    assert all(value.startswith(b"sfs/v2/") for value in values)


@given(st.binary(max_size=100), st.sampled_from(Label), st.integers(0, 511))
def test_one_flipped_bit_is_refused(body: bytes, label: Label, bit: int) -> None:
    signature = bytearray(KEY.sign(label, body))
    assert len(signature) == 64
    verify_signature(label, body, bytes(signature), KEY.public)
    signature[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SignatureError):
        verify_signature(label, body, bytes(signature), KEY.public)


def test_a_signature_has_one_form() -> None:
    """Nobody can make a second signature of a first one (RFC 8032 section 8.4)."""
    order, p = 2**252 + 27742317777372353535851937790883648493, 2**255 - 19
    signature = KEY.sign(Label.RECORDS, b"body")
    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    for times in range(1, (2**256 - 1 - s) // order + 1):  # S is not reduced
        other = r + (s + times * order).to_bytes(32, "little")
        with pytest.raises(SignatureError):
            verify_signature(Label.RECORDS, b"body", other, KEY.public)
    negative = r + (order - s).to_bytes(32, "little")
    with pytest.raises(SignatureError):
        verify_signature(Label.RECORDS, b"body", negative, KEY.public)
    for y in range(p, 2**255):  # R is not canonical: those of small order, and others
        for sign in (0, 1):
            point = (y | sign << 255).to_bytes(32, "little")
            with pytest.raises(SignatureError):
                verify_signature(Label.RECORDS, b"body", point + signature[32:], KEY.public)


def test_r_of_a_signature_has_one_encoding() -> None:
    """With the key's secret, R = neutral element and S = k·a fit. The equation is compared in
    encoded form, so only the canonical encoding of R is accepted."""
    order = 2**252 + 27742317777372353535851937790883648493
    digest = hashlib.sha512(KEY.seed).digest()
    clamped = int.from_bytes(digest[:32], "little") & ~7 & (2**254 - 1) | 2**254
    for encoded, valid in (("01", True), ("01" + "00" * 30 + "80", False), ("ee", False)):
        r = bytes.fromhex(encoded).ljust(32, b"\0")
        if encoded == "ee":  # y = p + 1
            r = (2**255 - 18).to_bytes(32, "little")
        k = int.from_bytes(hashlib.sha512(r + KEY.public + b"text").digest(), "little")
        signature = r + (k * clamped % order).to_bytes(32, "little")
        if valid:
            verify_note(b"text", signature, KEY.public)
            continue
        with pytest.raises(SignatureError):
            verify_note(b"text", signature, KEY.public)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_other_bodies_and_keys_are_refused(body: bytes, other: bytes) -> None:
    signature = KEY.sign(Label.RECORDS, body)
    if body != other:
        with pytest.raises(SignatureError):
            verify_signature(Label.RECORDS, other, signature, KEY.public)
    with pytest.raises(SignatureError):
        verify_signature(Label.RECORDS, body, signature, OTHER.public)


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65)])
@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33), KEY.public])
def test_wrong_lengths(signature: bytes, public: bytes) -> None:
    with pytest.raises(SignatureError):
        verify_signature(Label.LOGIN, b"", signature, public)


def test_generated_keys_differ_and_repr_hides_the_seed() -> None:
    first, second = SigningKey.generate(), SigningKey.generate()
    assert first.seed != second.seed
    assert (len(first.seed), len(first.public)) == (SEED_SIZE, 32)
    assert first.seed.hex() not in repr(first)
    assert first.public.hex() in repr(first)
