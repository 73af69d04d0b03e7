"""All primitives and key derivations of the client, one label per purpose.

The exceptions of `cryptography` are translated here. All derivations (HKDF is RFC 5869 with
SHA-256; outputs are 32 bytes unless stated)::

    segment key    = HKDF(dek, salt = header's, info = content_id)       Tink's streaming AEAD
    metadata key   = HKDF(dek, salt = SHA-256("sfs/v1/dek"), info = "sfs/v1/metadata")
    commitment     = HKDF(dek, salt = SHA-256("sfs/v1/dek"), info = "sfs/v1/commit")
    keyring keys   = HKDF(Argon2id(passphrase, salt), info = "sfs/v1/keyring/…")
    state key      = HKDF(this device's private key, info = "sfs/v1/state")
    recovery keys  = HKDF(recovery code, info = "sfs/v1/recovery/sign", …"/xwing" of 96 bytes)
    file_id        = HMAC-SHA256(name_key, name)[:16]
    wrap info      = "sfs/v1/wrap\\0" ‖ server_id ‖ owner's first statement ‖ content_id ‖ key_id
    bundle info    = "sfs/v1/bundle\\0" ‖ server_id ‖ user ‖ 0 ‖ u64be(n) ‖ key_id

A segment key's info is a content_id, 16 bytes; no label above is 16 bytes long, so the infos of two
purposes are never equal, even under one salt.

Wrap keys, as bytes:

    ========  ========================================  ==========================  ======
    alg       public key                                private key                 wrap
    ========  ========================================  ==========================  ======
    xwing     ML-KEM-768 1,184 ‖ X25519 32 = 1,216      ML-KEM seed 64 ‖ X25519 32   1,168
    x25519    32                                        32                              80
    rsa2048   SubjectPublicKeyInfo DER 294              PKCS#8 DER                     256
    rsa3072   SubjectPublicKeyInfo DER 422              PKCS#8 DER                     384
    rsa4096   SubjectPublicKeyInfo DER 550              PKCS#8 DER                     512
    ========  ========================================  ==========================  ======

xwing and x25519 are HPKE base mode (RFC 9180; X-Wing: draft-connolly-cfrg-xwing-kem) with
HKDF-SHA256 and AES-256-GCM, `enc ‖ ciphertext`; rsa* is OAEP (RFC 8017) with SHA-256 in both
places and the info as label. The wrap sizes are those of a 32-byte secret.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.codec.encoding import Buffer
from protocol.records.records import RSA_BITS, WRAP_ALGORITHMS, WRAP_SIZES, key_id
from sfsc.errors import LocalError, Tampered, UnsupportedKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.padding import OAEP
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

_KemPublic: TypeAlias = X25519PublicKey | hpke.MLKEM768X25519PublicKey
_KemPrivate: TypeAlias = X25519PrivateKey | hpke.MLKEM768X25519PrivateKey

KEY_SIZE: Final = 32
NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16
CONTENT_ID_SIZE: Final = 16
SEAL_OVERHEAD: Final = NONCE_SIZE + TAG_SIZE

XWING: Final = "xwing"

_DEK_SALT: Final = hashlib.sha256(b"sfs/v1/dek").digest()
_MLKEM_PUBLIC_SIZE: Final = 1184
_MLKEM_SEED_SIZE: Final = 64


# --- random ---------------------------------------------------------------------------------


def new_key() -> bytes:
    """Return 32 random secret bytes: a DEK, a name_key, or the key K of a bundle."""
    return os.urandom(KEY_SIZE)


def new_content_id() -> bytes:
    """Return 16 random bytes that identify one encryption of one content."""
    return os.urandom(CONTENT_ID_SIZE)


# --- derivation -----------------------------------------------------------------------------


def _hkdf(secret: bytes, salt: bytes | None, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_SIZE, salt, info).derive(secret)


def segment_key(dek: bytes, salt: bytes, associated_data: bytes) -> bytes:
    """Return the key of one blob's segments; `associated_data` is its content_id."""
    return _hkdf(dek, salt, associated_data)


def metadata_key(dek: bytes) -> bytes:
    """Return the key that seals a file's name, size, time and mode."""
    return _hkdf(dek, _DEK_SALT, b"sfs/v1/metadata")


def commitment(dek: bytes) -> bytes:
    """Return `dek_commit`: public, binds a signed record to one DEK, reveals nothing about it."""
    return _hkdf(dek, _DEK_SALT, b"sfs/v1/commit")


def keyring_keys(secret: bytes) -> tuple[bytes, bytes]:
    """Return (key, check) of a keyring: `key` seals it, `check` detects a wrong passphrase."""
    return _hkdf(secret, None, b"sfs/v1/keyring/seal"), _hkdf(secret, None, b"sfs/v1/keyring/check")


def recovery_keys(code: bytes) -> tuple[bytes, bytes]:
    """Return (Ed25519 seed, X-Wing private key of 96 bytes) for a recovery code of 32 bytes."""
    sign = _hkdf(code, None, b"sfs/v1/recovery/sign")
    return sign, HKDF(hashes.SHA256(), 96, None, b"sfs/v1/recovery/xwing").derive(code)


def state_key(device_private: bytes) -> bytes:
    """Return the key that seals cached names, derived from this device's private key."""
    return _hkdf(device_private, None, b"sfs/v1/state")


def verification_mac_key(state: bytes) -> bytes:
    """Return the MAC key that marks verified signatures, derived from the state key."""
    return _hkdf(state, None, b"sfs/v1/state/known")


def argon2id(passphrase: bytes, salt: bytes, *, passes: int, lanes: int, kib: int) -> bytes:
    """Return 32 bytes of Argon2id (RFC 9106). The caller limits the cost first: `kib` KiB of
    memory."""
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    try:
        kdf = Argon2id(salt=salt, length=KEY_SIZE, iterations=passes, lanes=lanes, memory_cost=kib)
        return kdf.derive(passphrase)
    except MemoryError as exc:
        raise LocalError(f"Argon2id needs {kib // 1024} MiB of memory") from exc


def file_id(name_key: bytes, name: str) -> str:
    """Return the 32 hex characters by which the server knows the file `name` (already checked)."""
    return hmac.digest(name_key, name.encode(), "sha256")[:16].hex()


def wrap_info(server_id: bytes, owner_first: bytes, content_id: bytes, recipient: bytes) -> bytes:
    """Return the HPKE info of a wrapped DEK. `recipient` is a key_id; each part has a
    fixed size."""
    return b"sfs/v1/wrap\0" + server_id + owner_first + content_id + recipient


def bundle_info(server_id: bytes, user: str, n: int, recipient: bytes) -> bytes:
    """Return the HPKE info of a bundle's key K: statement `n` of `user`, and one recipient."""
    return b"sfs/v1/bundle\0" + server_id + user.encode() + b"\0" + n.to_bytes(8) + recipient


# --- AES-256-GCM ----------------------------------------------------------------------------


class Aead:
    """AES-256-GCM between buffers, with explicit 12-byte nonces, under one 32-byte key. The caller
    never uses a nonce twice. Calls release the interpreter lock."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal_into(self, nonce: bytes, plaintext: Buffer, out: Buffer) -> None:
        """Encrypt into `out`, which is exactly 16 bytes longer than `plaintext` and does not
        overlap it."""
        self._cipher.encrypt_into(nonce, plaintext, None, out)

    def open_into(self, nonce: bytes, ciphertext: Buffer, out: Buffer) -> None:
        """Decrypt into `out`, which is exactly 16 bytes shorter than `ciphertext`. Raises
        `Tampered`; `out` then holds unauthenticated bytes."""
        try:
            self._cipher.decrypt_into(nonce, ciphertext, None, out)
        except InvalidTag as exc:
            raise Tampered("the data does not decrypt") from exc


class Sealer:
    """AES-256-GCM with random nonces under one 32-byte key, for fewer than 2^32 messages."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, plaintext: bytes, associated_data: bytes) -> bytes:
        """Return `nonce[12] ‖ ciphertext ‖ tag[16]`."""
        nonce = os.urandom(NONCE_SIZE)
        return nonce + self._cipher.encrypt(nonce, plaintext, associated_data)

    def open(self, sealed: bytes, associated_data: bytes) -> bytes:
        """Decrypt the output of `seal`. Raises `Tampered`."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], associated_data)
        except (InvalidTag, ValueError) as exc:  # ValueError: too short to hold a nonce
            raise Tampered("the sealed data does not open") from exc


def seal(key: bytes, plaintext: bytes, associated_data: bytes) -> bytes:
    """Encrypt one message as `Sealer.seal` does."""
    return Sealer(key).seal(plaintext, associated_data)


def open_sealed(key: bytes, sealed: bytes, associated_data: bytes) -> bytes:
    """Decrypt one message as `Sealer.open` does. Raises `Tampered`."""
    return Sealer(key).open(sealed, associated_data)


# --- wrap keys ------------------------------------------------------------------------------

_SUITES: Final = {
    "xwing": hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM),
    "x25519": hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM),
}


class PublicKey:
    """Key that secrets are wrapped to. The constructor validates it and raises `UnsupportedKey`."""

    __slots__ = ("_key", "alg", "encoded", "key_id")

    def __init__(self, alg: str, encoded: bytes) -> None:
        if alg not in WRAP_SIZES or len(encoded) != WRAP_SIZES[alg].public:
            raise UnsupportedKey(f"not a {alg} public key: {len(encoded)} bytes")
        try:
            self._key = _load_rsa_public(encoded) if alg in RSA_BITS else _load_kem(alg, encoded)
        except ValueError as exc:
            raise UnsupportedKey(f"not a {alg} public key") from exc
        self.alg = alg
        self.encoded = encoded
        self.key_id = key_id(alg, encoded)

    def wrap(self, secret: bytes, info: bytes) -> bytes:
        """Encrypt `secret` (32 bytes) to this key, bound to `info`. Returns `WRAP_SIZES` bytes."""
        if self.alg in RSA_BITS:
            return cast("RSAPublicKey", self._key).encrypt(secret, _oaep(info))
        try:
            return _SUITES[self.alg].encrypt(secret, cast("_KemPublic", self._key), info=info)
        except ValueError as exc:  # an X25519 key of low order: the shared secret would be zero
            raise UnsupportedKey(f"this {self.alg} key cannot be used") from exc

    def __repr__(self) -> str:
        return f"PublicKey({self.alg}, key_id={self.key_id.hex()})"


class PrivateKey:
    """Key that opens what was wrapped to `public`. `encoded` is secret."""

    __slots__ = ("_key", "alg", "encoded", "public")

    def __init__(self, alg: str, encoded: bytes) -> None:
        """Load the private encoding of this module's table. Raises `UnsupportedKey`. RSA numbers
        are not checked (that costs 0.3 s at each start), so `encoded` must come from an
        authenticated keyring or bundle."""
        try:
            self._key, public = _PRIVATE_LOADERS[alg](encoded)
        except (KeyError, ValueError, TypeError) as exc:
            raise UnsupportedKey("not a private key of a known kind") from exc
        self.public = PublicKey(alg, public)
        self.alg = alg
        self.encoded = encoded

    @classmethod
    def generate(cls, alg: str) -> PrivateKey:
        """Return a fresh key. rsa4096 takes about a second."""
        if alg == "xwing":
            return cls(alg, os.urandom(_MLKEM_SEED_SIZE + KEY_SIZE))
        if alg == "x25519":
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
    mlkem = MLKEM768PrivateKey.from_seed_bytes(encoded[:_MLKEM_SEED_SIZE])
    x25519, x25519_public = _load_x25519(encoded[_MLKEM_SEED_SIZE:])
    key = hpke.MLKEM768X25519PrivateKey(mlkem, x25519)
    return key, mlkem.public_key().public_bytes_raw() + x25519_public


# --- RSA: serialization is slow to import, so it is imported only for such a key -----------

_RSA_EXPONENT: Final = 65537


def _load_rsa_public(encoded: bytes) -> RSAPublicKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    key = serialization.load_der_public_key(encoded)
    # One key has one encoding, hence one key_id; WRAP_SIZES fixes the modulus size.
    if not isinstance(key, RSAPublicKey) or _spki(key) != encoded:
        raise ValueError("not the DER of an RSA public key")
    return key


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
