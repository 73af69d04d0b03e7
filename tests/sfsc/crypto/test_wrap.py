"""Wraps of every kind, and what must not open."""

from __future__ import annotations

import subprocess
import sys

import pytest

from protocol.records.records import WRAP_ALGORITHMS, WRAP_SIZES, key_id
from sfsc.crypto import primitives
from sfsc.crypto.wrap import KEKS_CACHED, PrivateKey, PublicKey
from sfsc.errors import Tampered, UnsupportedKey

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
INFO = primitives.wrap_batch_info(b"s" * 32, b"o" * 32, b"b" * 16, b"k" * 32)


@pytest.fixture(scope="module", params=WRAP_ALGORITHMS)
def private(request: pytest.FixtureRequest) -> PrivateKey:
    return PrivateKey.generate(request.param)


def test_wrap_round_trip_and_sizes(private: PrivateKey) -> None:
    wrapped = private.public.wrap(KEY, INFO)
    assert private.unwrap(wrapped, INFO) == KEY
    sizes = WRAP_SIZES[private.alg]
    assert (len(private.public.encoded), len(wrapped)) == (sizes.public, sizes.encrypted)
    assert private.public.key_id == key_id(private.alg, private.public.encoded)
    assert private.public.wrap(KEY, INFO) != wrapped


def test_keys_load_from_their_encoding(private: PrivateKey) -> None:
    again = PrivateKey(private.alg, private.encoded)
    assert again.public.encoded == private.public.encoded
    wrapped = PublicKey(private.alg, private.public.encoded).wrap(KEY, INFO)
    assert again.unwrap(wrapped, INFO) == KEY


def test_wrap_is_bound_to_info_key_and_bytes(private: PrivateKey) -> None:
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
    ours, theirs = PrivateKey.generate(alg), PrivateKey.generate(alg)
    with pytest.raises(Tampered):
        theirs.unwrap(ours.public.wrap(KEY, INFO), INFO)


def test_the_keks_used_last_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    key, decrypted = PrivateKey.generate("x25519"), list[bytes]()
    decrypt = PrivateKey.decrypt

    def counting(self: PrivateKey, wrapped: bytes, info: bytes) -> bytes:
        decrypted.append(wrapped)
        return decrypt(self, wrapped, info)

    monkeypatch.setattr(PrivateKey, "decrypt", counting)
    wrapped = [key.public.wrap(KEY, INFO) for _ in range(KEKS_CACHED + 1)]
    for one in (*wrapped[:-1], wrapped[0], wrapped[-1]):
        assert key.unwrap_kek(one, INFO) == KEY
    assert len(decrypted) == KEKS_CACHED + 1
    key.unwrap_kek(wrapped[0], INFO)  # it was used again, so the second is the oldest
    assert len(decrypted) == KEKS_CACHED + 1
    key.unwrap_kek(wrapped[1], INFO)
    assert len(decrypted) == KEKS_CACHED + 2


def test_a_cached_kek_is_found_by_info_and_every_byte() -> None:
    key = PrivateKey.generate("x25519")
    wrapped = key.public.wrap(KEY, INFO)
    assert key.unwrap_kek(wrapped, INFO) == KEY
    flipped = wrapped[:-1] + bytes([wrapped[-1] ^ 1])
    for _ in range(2):  # a failure is not cached either
        for other, info in ((flipped, INFO), (wrapped, INFO[:-1] + b"?"), (wrapped[1:], INFO)):
            with pytest.raises(Tampered):
                key.unwrap_kek(other, info)


def test_unwrap_refuses_other_lengths(private: PrivateKey) -> None:
    with pytest.raises(Tampered):
        private.unwrap(private.public.wrap(KEY[:31], INFO), INFO)


ED25519_OF_31_BYTES = bytes.fromhex("302d020100300506032b65700421041f") + bytes(31)
"""PKCS#8 of an Ed25519 key without its last byte, for which the library has no error of its own."""
UNKNOWN_ALGORITHM = bytes.fromhex("302e020100300506032b650004220420") + bytes(32)
"""PKCS#8 of a key with an object identifier that names no algorithm."""


@pytest.mark.parametrize("alg", WRAP_ALGORITHMS)
def test_malformed_public_keys(alg: str) -> None:
    size = WRAP_SIZES[alg].public
    for encoded in (b"", b"\x30" * (size - 1), b"\x30" * (size + 1)):
        with pytest.raises(UnsupportedKey):
            PublicKey(alg, encoded)
    if alg != "x25519":
        with pytest.raises(UnsupportedKey):
            PublicKey(alg, b"\xff" * size)


@pytest.mark.parametrize(
    ("alg", "encoded"),
    [
        ("xwing", bytes(31)),
        ("xwing", bytes(96)),
        ("x25519", bytes(31)),
        ("rsa2048", bytes(1217)),
        ("rsa1024", bytes(600)),
        ("", b""),
        ("rsa2048", ED25519_OF_31_BYTES),
        ("rsa2048", UNKNOWN_ALGORITHM),
    ],
)
def test_malformed_private_keys(alg: str, encoded: bytes) -> None:
    with pytest.raises(UnsupportedKey):
        PrivateKey(alg, encoded)


def test_rsa_key_size_must_match_its_name() -> None:
    small = PrivateKey.generate("rsa2048")
    with pytest.raises(UnsupportedKey):
        PrivateKey("rsa3072", small.encoded)
    with pytest.raises(UnsupportedKey):
        PublicKey("rsa3072", small.public.encoded)


@pytest.mark.parametrize("alg", ["x25519", "xwing"])
def test_low_order_key_is_refused(alg: str) -> None:
    encoded = PrivateKey.generate(alg).public.encoded[:-32] + bytes(32)
    with pytest.raises(UnsupportedKey):
        PublicKey(alg, encoded).wrap(KEY, INFO)


def test_generate_refuses_unknown_key_types() -> None:
    with pytest.raises(UnsupportedKey):
        PrivateKey.generate("rsa1024")


def test_repr_hides_private_keys(private: PrivateKey) -> None:
    assert private.encoded.hex() not in repr(private)
    assert private.public.key_id.hex() in repr(private)


def test_import_loads_neither_x509_nor_rsa() -> None:
    """They take longer to import than everything else."""
    program = (
        "import sys, sfsc.crypto.wrap\n"
        "print([m for m in sys.modules if m.startswith('cryptography.x509')"
        " or m.endswith(('.rsa', '.serialization', '.argon2', '.padding'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
