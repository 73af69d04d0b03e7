"""Derivations compared with their formulas, wraps of every kind, and what must not open."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import sys

import pytest

from protocol.records.records import WRAP_ALGORITHMS, WRAP_SIZES, key_id
from sfsc.crypto import primitives
from sfsc.errors import Tampered, UnsupportedKey

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
INFO = primitives.wrap_info(b"s" * 32, b"o" * 32, b"c" * 16, b"k" * 32)


def _hkdf(secret: bytes, salt: bytes, info: bytes, size: int = 32) -> bytes:
    """RFC 5869, implemented from its text."""
    prk = hmac.digest(salt or bytes(32), secret, "sha256")
    made = last = b""
    for count in range(1, 1 + size // 32):
        last = hmac.digest(prk, last + info + bytes([count]), "sha256")
        made += last
    return made


@pytest.fixture(scope="module", params=WRAP_ALGORITHMS)
def private(request: pytest.FixtureRequest) -> primitives.PrivateKey:
    return primitives.PrivateKey.generate(request.param)


@pytest.mark.parametrize(
    ("derived", "formula"),
    [
        (
            primitives.metadata_key(KEY),
            _hkdf(KEY, hashlib.sha256(b"sfs/v1/dek").digest(), b"sfs/v1/metadata"),
        ),
        (
            primitives.commitment(KEY),
            _hkdf(KEY, hashlib.sha256(b"sfs/v1/dek").digest(), b"sfs/v1/commit"),
        ),
        (primitives.segment_key(KEY, b"s" * 32, b"c" * 16), _hkdf(KEY, b"s" * 32, b"c" * 16)),
        (primitives.keyring_keys(KEY)[0], _hkdf(KEY, b"", b"sfs/v1/keyring/seal")),
        (primitives.keyring_keys(KEY)[1], _hkdf(KEY, b"", b"sfs/v1/keyring/check")),
        (primitives.recovery_keys(KEY)[0], _hkdf(KEY, b"", b"sfs/v1/recovery/sign")),
        (primitives.recovery_keys(KEY)[1], _hkdf(KEY, b"", b"sfs/v1/recovery/xwing", 96)),
        (primitives.state_key(b"d" * 96), _hkdf(b"d" * 96, b"", b"sfs/v1/state")),
        (primitives.verification_mac_key(KEY), _hkdf(KEY, b"", b"sfs/v1/state/known")),
    ],
)
def test_derivations(derived: bytes, formula: bytes) -> None:
    assert derived == formula


def test_file_id() -> None:
    expected = hmac.digest(KEY, "docs/é.txt".encode(), "sha256")[:16].hex()
    assert primitives.file_id(KEY, "docs/é.txt") == expected
    assert primitives.file_id(OTHER, "docs/é.txt") != expected


def test_infos() -> None:
    assert INFO == b"sfs/v1/wrap\0" + b"s" * 32 + b"o" * 32 + b"c" * 16 + b"k" * 32
    bundle = primitives.bundle_info(b"s" * 32, "ann", 258, b"k" * 32)
    assert bundle == b"sfs/v1/bundle\0" + b"s" * 32 + b"ann\0" + b"\0" * 6 + b"\1\2" + b"k" * 32


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


def test_wrap_round_trip_and_sizes(private: primitives.PrivateKey) -> None:
    wrapped = private.public.wrap(KEY, INFO)
    assert private.unwrap(wrapped, INFO) == KEY
    sizes = WRAP_SIZES[private.alg]
    assert (len(private.public.encoded), len(wrapped)) == (sizes.public, sizes.wrapped)
    assert private.public.key_id == key_id(private.alg, private.public.encoded)
    assert private.public.wrap(KEY, INFO) != wrapped


def test_keys_load_from_their_encoding(private: primitives.PrivateKey) -> None:
    again = primitives.PrivateKey(private.alg, private.encoded)
    assert again.public.encoded == private.public.encoded
    wrapped = primitives.PublicKey(private.alg, private.public.encoded).wrap(KEY, INFO)
    assert again.unwrap(wrapped, INFO) == KEY


def test_wrap_is_bound_to_info_key_and_bytes(private: primitives.PrivateKey) -> None:
    wrapped = private.public.wrap(KEY, INFO)
    with pytest.raises(Tampered):
        private.unwrap(wrapped, INFO + b"\0")
    for changed in (wrapped[:-1], wrapped + b"\0", b"", bytes(len(wrapped))):
        with pytest.raises(Tampered):
            private.unwrap(changed, INFO)
    for position in (0, 31, 32, len(wrapped) // 2, len(wrapped) - 1):
        flipped = bytearray(wrapped)
        flipped[position] ^= 0x40
        with pytest.raises(Tampered):
            private.unwrap(bytes(flipped), INFO)


@pytest.mark.parametrize("alg", ["xwing", "x25519", "rsa2048"])
def test_wrap_does_not_open_with_another_key(alg: str) -> None:
    ours, theirs = primitives.PrivateKey.generate(alg), primitives.PrivateKey.generate(alg)
    with pytest.raises(Tampered):
        theirs.unwrap(ours.public.wrap(KEY, INFO), INFO)


def test_unwrap_refuses_other_lengths(private: primitives.PrivateKey) -> None:
    with pytest.raises(Tampered):
        private.unwrap(private.public.wrap(KEY[:31], INFO), INFO)


@pytest.mark.parametrize("alg", WRAP_ALGORITHMS)
def test_malformed_public_keys(alg: str) -> None:
    size = WRAP_SIZES[alg].public
    for encoded in (b"", b"\x30" * (size - 1), b"\x30" * (size + 1)):
        with pytest.raises(UnsupportedKey):
            primitives.PublicKey(alg, encoded)
    if alg != "x25519":
        with pytest.raises(UnsupportedKey):
            primitives.PublicKey(alg, b"\xff" * size)


@pytest.mark.parametrize(
    ("alg", "encoded"),
    [
        ("xwing", bytes(95)),
        ("xwing", bytes(97)),
        ("x25519", bytes(31)),
        ("rsa2048", bytes(1217)),
        ("rsa1024", bytes(600)),
        ("", b""),
    ],
)
def test_malformed_private_keys(alg: str, encoded: bytes) -> None:
    with pytest.raises(UnsupportedKey):
        primitives.PrivateKey(alg, encoded)


def test_rsa_key_size_must_match_its_name() -> None:
    small = primitives.PrivateKey.generate("rsa2048")
    with pytest.raises(UnsupportedKey):
        primitives.PrivateKey("rsa3072", small.encoded)
    with pytest.raises(UnsupportedKey):
        primitives.PublicKey("rsa3072", small.public.encoded)


@pytest.mark.parametrize("alg", ["x25519", "xwing"])
def test_low_order_key_is_refused(alg: str) -> None:
    encoded = primitives.PrivateKey.generate(alg).public.encoded[:-32] + bytes(32)
    with pytest.raises(UnsupportedKey):
        primitives.PublicKey(alg, encoded).wrap(KEY, INFO)


def test_generate_refuses_unknown_key_types() -> None:
    with pytest.raises(UnsupportedKey):
        primitives.PrivateKey.generate("rsa1024")


def test_repr_hides_private_keys(private: primitives.PrivateKey) -> None:
    assert private.encoded.hex() not in repr(private)
    assert private.public.key_id.hex() in repr(private)


def test_import_loads_neither_x509_nor_rsa() -> None:
    """They take longer to import than everything else."""
    program = (
        "import sys, sfsc.crypto.primitives\n"
        "print([m for m in sys.modules if m.startswith('cryptography.x509')"
        " or m.endswith(('.rsa', '.serialization', '.argon2', '.padding'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
