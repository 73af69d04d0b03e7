"""Challenges to the X-Wing keys of devices: HPKE (RFC 9180), as `sfsc.crypto.wrap` opens them."""

from __future__ import annotations

from functools import cache
from typing import Final

from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

_MLKEM_SIZE: Final = 1184
_SUITE: Final = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def seal_to_device(public: bytes | None, secret: bytes, info: bytes) -> bytes:
    """Return `secret` (32 bytes) sealed to an X-Wing key of 1,216 bytes; 1,168 bytes.

    None, and a key that cannot be used, stand for a key that nobody has.
    """
    nobody = _unusable_key()
    try:
        mlkem = MLKEM768PublicKey.from_public_bytes((public or nobody)[:_MLKEM_SIZE])
        x25519 = X25519PublicKey.from_public_bytes((public or nobody)[_MLKEM_SIZE:])
        return _SUITE.encrypt(secret, hpke.MLKEM768X25519PublicKey(mlkem, x25519), info=info)
    except ValueError:
        if public is None:
            raise
        return seal_to_device(None, secret, info)


@cache
def _unusable_key() -> bytes:
    """Return a public key whose private key is forgotten at once."""
    mlkem = MLKEM768PrivateKey.generate().public_key().public_bytes_raw()
    return mlkem + X25519PrivateKey.generate().public_key().public_bytes_raw()
