"""Derivations compared with their formulas, and what must not open."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from sfsc.crypto import primitives
from sfsc.errors import Tampered

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
INFO = primitives.wrap_batch_info(b"s" * 32, b"o" * 32, b"b" * 16, b"k" * 32)


def _hkdf(secret: bytes, salt: bytes, info: bytes, size: int = 32) -> bytes:
    """RFC 5869, implemented from its text."""
    prk = hmac.digest(salt or bytes(32), secret, "sha256")
    made = last = b""
    for count in range(1, 1 + size // 32):
        last = hmac.digest(prk, last + info + bytes([count]), "sha256")
        made += last
    return made


@pytest.mark.parametrize(
    ("derived", "formula"),
    [
        (
            primitives.metadata_key(KEY),
            _hkdf(KEY, hashlib.sha256(b"sfs/v2/dek").digest(), b"sfs/v2/metadata"),
        ),
        (
            primitives.commitment(KEY),
            _hkdf(KEY, hashlib.sha256(b"sfs/v2/dek").digest(), b"sfs/v2/commit"),
        ),
        (primitives.segment_key(KEY, b"s" * 32, b"c" * 16), _hkdf(KEY, b"s" * 32, b"c" * 16)),
        (primitives.keyring_keys(KEY)[0], _hkdf(KEY, b"", b"sfs/v2/keyring/seal")),
        (primitives.keyring_keys(KEY)[1], _hkdf(KEY, b"", b"sfs/v2/keyring/check")),
        (primitives.recovery_keys(KEY)[0], _hkdf(KEY, b"", b"sfs/v2/recovery/sign")),
        (primitives.recovery_keys(KEY)[1], _hkdf(KEY, b"", b"sfs/v2/recovery/xwing")),
        (primitives.state_key(b"d" * 32), _hkdf(b"d" * 32, b"", b"sfs/v2/state")),
        (primitives.verification_mac_key(KEY), _hkdf(KEY, b"", b"sfs/v2/state/known")),
    ],
)
def test_derivations(derived: bytes, formula: bytes) -> None:
    assert derived == formula


def test_file_id() -> None:
    expected = hmac.digest(KEY, "docs/é.txt".encode(), "sha256")[:16].hex()
    assert primitives.file_id(KEY, "docs/é.txt") == expected
    assert primitives.file_id(OTHER, "docs/é.txt") != expected


def test_infos() -> None:
    parts = b"s" * 32 + b"o" * 32 + b"b" * 16 + b"k" * 32
    assert b"sfs/v2/wrap-batch\0" + parts == INFO
    item = primitives.wrap_item_info(b"s" * 32, b"o" * 32, b"b" * 16, b"k" * 32, b"c" * 16, KEY)
    assert item == b"sfs/v2/wrap-item\0" + parts + b"c" * 16 + KEY
    bundle = primitives.bundle_info(b"s" * 32, "ann", 258, b"k" * 32)
    assert bundle == b"sfs/v2/bundle\0" + b"s" * 32 + b"ann\0" + b"\0" * 6 + b"\1\2" + b"k" * 32


def test_argon2id() -> None:
    """A test case of the reference implementation; the one in RFC 9106 uses a secret input."""
    tag = primitives.argon2id(b"password", b"somesalt", passes=2, lanes=1, kib=65536)
    assert tag.hex() == "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"


def test_seal_is_bound_to_key_and_associated_data() -> None:
    sealed = primitives.seal(KEY, b"secret", b"context")
    assert len(sealed) == len(b"secret") + primitives.SEAL_OVERHEAD
    assert primitives.open_sealed(KEY, sealed, b"context") == b"secret"
    assert primitives.seal(KEY, b"secret", b"context") != sealed
    with pytest.raises(Tampered):
        primitives.open_sealed(OTHER, sealed, b"context")
    with pytest.raises(Tampered):
        primitives.open_sealed(KEY, sealed, b"contexts")


@pytest.mark.parametrize("position", range(34))
def test_seal_detects_every_changed_byte(position: int) -> None:
    sealed = bytearray(primitives.seal(KEY, b"secret", b""))
    sealed[position] ^= 1
    with pytest.raises(Tampered):
        primitives.open_sealed(KEY, bytes(sealed), b"")
    with pytest.raises(Tampered):
        primitives.open_sealed(KEY, bytes(sealed[:position]), b"")


def test_aead_between_buffers() -> None:
    aead = primitives.Aead(KEY)
    sealed, opened = bytearray(16 + 5), bytearray(5)
    aead.seal_into(bytes(12), b"hello", sealed)
    aead.open_into(bytes(12), memoryview(sealed), opened)
    assert opened == b"hello"
    sealed[0] ^= 1
    with pytest.raises(Tampered):
        aead.open_into(bytes(12), sealed, opened)
