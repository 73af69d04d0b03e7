"""Wrap algorithms: secrets encrypted to a public key. Keys and encrypted secrets as bytes:

    ========  ========================================  ==========================  ======
    alg       public key                                private key                 secret
    ========  ========================================  ==========================  ======
    xwing     ML-KEM-768 1,184 ‖ X25519 32 = 1,216      seed 32                      1,168
    x25519    32                                        32                              80
    rsa2048   SubjectPublicKeyInfo DER 294              PKCS#8 DER                     256
    rsa3072   SubjectPublicKeyInfo DER 422              PKCS#8 DER                     384
    rsa4096   SubjectPublicKeyInfo DER 550              PKCS#8 DER                     512
    ========  ========================================  ==========================  ======

An xwing private key is stored as its seed and expanded only in memory (`expand_xwing`). xwing and
x25519 are HPKE base mode (RFC 9180; X-Wing: draft-connolly-cfrg-xwing-kem) with HKDF-SHA256 and
AES-256-GCM, `enc ‖ ciphertext`; rsa* is OAEP (RFC 8017) with SHA-256 in both places and the info as
label. The last column is the size of an encrypted
32-byte secret.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from cryptography.exceptions import InternalError, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from protocol.codec.errors import PublicKeyError
from protocol.records.public_keys import check_wrap_key
from protocol.records.records import RSA_BITS, WRAP_ALGORITHMS, key_id
from sfsc.crypto import primitives
from sfsc.crypto.primitives import KEY_SIZE
from sfsc.errors import Tampered, UnsupportedKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.padding import OAEP
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

_KemPublic: TypeAlias = X25519PublicKey | hpke.MLKEM768X25519PublicKey
_KemPrivate: TypeAlias = X25519PrivateKey | hpke.MLKEM768X25519PrivateKey

XWING: Final = "xwing"
KEKS_CACHED: Final = 1024
"""Opened KEKs kept by each private key; about 250 bytes each."""
_MLKEM_PUBLIC_SIZE: Final = 1184

_SUITES: Final = {
    "xwing": hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM),
    "x25519": hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM),
}


class PublicKey:
    """Key that secrets are wrapped to. The constructor validates it and raises `UnsupportedKey`."""

    __slots__ = ("_key", "alg", "encoded", "key_id")

    def __init__(self, alg: str, encoded: bytes) -> None:
        try:
            check_wrap_key(alg, encoded)
            self._key = _load_rsa_public(encoded) if alg in RSA_BITS else _load_kem(alg, encoded)
        except (PublicKeyError, ValueError) as exc:
            raise UnsupportedKey(f"a {alg} key that cannot be used: {exc}") from exc
        self.alg: str = alg
        self.encoded: bytes = encoded
        self.key_id: bytes = key_id(alg, encoded)

    def wrap(self, secret: bytes, info: bytes) -> bytes:
        """Encrypt `secret` (32 bytes) to this key, bound to `info`. Returns as many bytes as
        `WRAP_SIZES` says."""
        if self.alg in RSA_BITS:
            return cast("RSAPublicKey", self._key).encrypt(secret, _oaep(info))
        return _SUITES[self.alg].encrypt(secret, cast("_KemPublic", self._key), info=info)

    def __repr__(self) -> str:
        return f"PublicKey({self.alg}, key_id={self.key_id.hex()})"


class PrivateKey:
    """Key that opens what was wrapped to `public`. `encoded` is secret. Opened KEKs of wrap batches
    are cached in the object, so they do not outlive it."""

    __slots__ = ("_key", "_lock", "_opened", "alg", "encoded", "public")

    def __init__(self, alg: str, encoded: bytes) -> None:
        """Load the private encoding of this module's table. Raises `UnsupportedKey`. RSA numbers
        are not checked (that costs 0.3 s at each start), so `encoded` must come from an
        authenticated keyring or bundle."""
        try:
            self._key, public = _PRIVATE_LOADERS[alg](encoded)
        except (KeyError, ValueError, TypeError, UnsupportedAlgorithm, InternalError) as exc:
            raise UnsupportedKey("not a private key of a known kind") from exc
        self.public: PublicKey = PublicKey(alg, public)
        self.alg: str = alg
        self.encoded: bytes = encoded
        self._opened: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def generate(cls, alg: str) -> PrivateKey:
        """Return a fresh key. rsa4096 takes about a second."""
        if alg in ("xwing", "x25519"):
            return cls(alg, os.urandom(KEY_SIZE))
        if alg in RSA_BITS:
            from cryptography.hazmat.primitives.asymmetric import rsa

            return cls(alg, _pkcs8(rsa.generate_private_key(_RSA_EXPONENT, RSA_BITS[alg])))
        raise UnsupportedKey(f"unknown key type {alg!r}", f"use {', '.join(WRAP_ALGORITHMS)}")

    def decrypt(self, wrapped: bytes, info: bytes) -> bytes:
        """Return the plaintext of `wrapped`, of any length. Raises `Tampered`."""
        try:
            if self.alg in RSA_BITS:
                return cast("RSAPrivateKey", self._key).decrypt(wrapped, _oaep(info))
            return _SUITES[self.alg].decrypt(wrapped, cast("_KemPrivate", self._key), info=info)
        except (InvalidTag, ValueError) as exc:
            raise Tampered("the wrapped key does not open with this key") from exc

    def unwrap(self, wrapped: bytes, info: bytes) -> bytes:
        """Decrypt the output of `PublicKey.wrap`. Raises `Tampered` for another key, other info or
        changed bytes."""
        secret = self.decrypt(wrapped, info)
        if len(secret) != KEY_SIZE:
            raise Tampered(f"the wrapped key has {len(secret)} bytes")
        return secret

    def unwrap_kek(self, wrapped: bytes, info: bytes) -> bytes:
        """Unwrap the KEK of a wrap batch. The `KEKS_CACHED` used last are cached by
        SHA-256(key_id ‖ info ‖ wrapped); failures are not. Raises `Tampered`."""
        digest = hashlib.sha256(self.public.key_id + info + wrapped).digest()
        with self._lock:
            if (kek := self._opened.get(digest)) is not None:
                self._opened.move_to_end(digest)
                return kek
        kek = self.unwrap(wrapped, info)
        with self._lock:
            self._opened[digest] = kek
            if len(self._opened) > KEKS_CACHED:
                self._opened.popitem(last=False)
        return kek

    def __repr__(self) -> str:
        return f"PrivateKey({self.alg}, key_id={self.public.key_id.hex()})"


def _load_kem(alg: str, encoded: bytes) -> _KemPublic:
    x25519 = X25519PublicKey.from_public_bytes(encoded[-KEY_SIZE:])
    if alg == "x25519":
        return x25519
    mlkem = MLKEM768PublicKey.from_public_bytes(encoded[:_MLKEM_PUBLIC_SIZE])
    return hpke.MLKEM768X25519PublicKey(mlkem, x25519)


def _load_x25519(encoded: bytes) -> tuple[X25519PrivateKey, bytes]:
    key = X25519PrivateKey.from_private_bytes(encoded)
    return key, key.public_key().public_bytes_raw()


def _load_xwing(encoded: bytes) -> tuple[hpke.MLKEM768X25519PrivateKey, bytes]:
    if len(encoded) != KEY_SIZE:
        raise ValueError(f"an X-Wing seed has {KEY_SIZE} bytes")
    mlkem_seed, x25519_private = primitives.expand_xwing(encoded)
    mlkem = MLKEM768PrivateKey.from_seed_bytes(mlkem_seed)
    x25519, x25519_public = _load_x25519(x25519_private)
    key = hpke.MLKEM768X25519PrivateKey(mlkem, x25519)
    return key, mlkem.public_key().public_bytes_raw() + x25519_public


# --- RSA: serialization is slow to import, so it is imported only for such a key -----------

_RSA_EXPONENT: Final = 65537


def _load_rsa_public(encoded: bytes) -> RSAPublicKey:
    from cryptography.hazmat.primitives import serialization

    return cast("RSAPublicKey", serialization.load_der_public_key(encoded))


def _load_rsa_private(bits: int, encoded: bytes) -> tuple[RSAPrivateKey, bytes]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    key = serialization.load_der_private_key(encoded, None, unsafe_skip_rsa_key_validation=True)
    if not isinstance(key, RSAPrivateKey) or key.key_size != bits:
        raise ValueError(f"not an RSA key of {bits} bits")
    return key, _spki(key.public_key())


def _spki(key: RSAPublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _pkcs8(key: RSAPrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def _oaep(label: bytes) -> OAEP:
    from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP

    return OAEP(MGF1(hashes.SHA256()), hashes.SHA256(), label)


_PRIVATE_LOADERS: Final[dict[str, Callable[[bytes], tuple[_KemPrivate | RSAPrivateKey, bytes]]]] = {
    "xwing": _load_xwing,
    "x25519": _load_x25519,
    **{alg: partial(_load_rsa_private, bits) for alg, bits in RSA_BITS.items()},
}
