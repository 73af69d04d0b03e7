"""Primitives and key derivations of the client, one label per purpose.

The exceptions of `cryptography` are translated here. All derivations (HKDF is RFC 5869 with
SHA-256; outputs are 32 bytes unless stated)::

    segment key    = HKDF(dek, salt = header's, info = content_id)       Tink's streaming AEAD
    metadata key   = HKDF(dek, salt = SHA-256("sfs/v2/dek"), info = "sfs/v2/metadata")
    commitment     = HKDF(dek, salt = SHA-256("sfs/v2/dek"), info = "sfs/v2/commit")
    keyring keys   = HKDF(Argon2id(passphrase, salt), info = "sfs/v2/keyring/…")
    state key      = HKDF(this device's private key, info = "sfs/v2/state")
    journal key    = HKDF(state key, info = "sfs/v2/state/uploads")
    PEM key        = HKDF(Ed25519 seed, info = "sfs/v2/pem")
    recovery keys  = HKDF(recovery code, info = "sfs/v2/recovery/sign", …"/xwing")
    X-Wing keys    = SHAKE256(seed, 96) = ML-KEM seed d ‖ z, 64 ‖ X25519 key, 32
    file_id        = HMAC-SHA256(name_key, name)[:16]
    batch info     = "sfs/v2/wrap-batch\\0" ‖ server_id ‖ owner_first ‖ batch_id ‖ key_id
    item info      = "sfs/v2/wrap-item\\0" ‖ the same four ‖ content_id ‖ commitment
    item key       = HKDF-Expand(KEK of the batch, info = item info)
    bundle info    = "sfs/v2/bundle\\0" ‖ server_id ‖ user ‖ 0 ‖ u64be(n) ‖ key_id

A segment key's info is a content_id, 16 bytes; no label above is 16 bytes long, so the infos of two
purposes are never equal, even under one salt.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.codec.encoding import Buffer
from protocol.records.records import BATCH_ID_SIZE
from sfsc.errors import LocalError, Tampered

if TYPE_CHECKING:
    pass

KEY_SIZE: Final = 32
NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16
CONTENT_ID_SIZE: Final = 16
SEAL_OVERHEAD: Final = NONCE_SIZE + TAG_SIZE
_MLKEM_SEED_SIZE: Final = 64

_DEK_SALT: Final = hashlib.sha256(b"sfs/v2/dek").digest()


# --- random ---------------------------------------------------------------------------------


def new_key() -> bytes:
    """Return 32 random secret bytes: a DEK, a KEK, a name_key, or the key K of a bundle."""
    return os.urandom(KEY_SIZE)


def new_batch_id() -> bytes:
    """Return 16 random bytes that identify one wrap batch."""
    return os.urandom(BATCH_ID_SIZE)


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
    return _hkdf(dek, _DEK_SALT, b"sfs/v2/metadata")


def commitment(dek: bytes) -> bytes:
    """Return `dek_commit`: public, binds a signed record to one DEK, reveals nothing about it."""
    return _hkdf(dek, _DEK_SALT, b"sfs/v2/commit")


def keyring_keys(secret: bytes) -> tuple[bytes, bytes]:
    """Return (key, check) of a keyring: `key` seals it, `check` detects a wrong passphrase."""
    return _hkdf(secret, None, b"sfs/v2/keyring/seal"), _hkdf(secret, None, b"sfs/v2/keyring/check")


def recovery_keys(code: bytes) -> tuple[bytes, bytes]:
    """Return (Ed25519 seed, X-Wing seed), 32 bytes each, for a recovery code of 32 bytes."""
    sign = _hkdf(code, None, b"sfs/v2/recovery/sign")
    return sign, _hkdf(code, None, b"sfs/v2/recovery/xwing")


def expand_xwing(seed: bytes) -> tuple[bytes, bytes]:
    """Return (ML-KEM-768 seed d ‖ z of 64 bytes, X25519 private key of 32 bytes) of an X-Wing
    private key, which is a seed of 32 bytes (draft-connolly-cfrg-xwing-kem, section 5.2)."""
    expanded = hashlib.shake_256(seed).digest(_MLKEM_SEED_SIZE + KEY_SIZE)
    return expanded[:_MLKEM_SEED_SIZE], expanded[_MLKEM_SEED_SIZE:]


def pem_key(sign_seed: bytes) -> bytes:
    """Return the key that authenticates the text of a PEM file, derived from its signing key."""
    return _hkdf(sign_seed, None, b"sfs/v2/pem")


def state_key(device_private: bytes) -> bytes:
    """Return the key that seals cached names, derived from this device's private key."""
    return _hkdf(device_private, None, b"sfs/v2/state")


def verification_mac_key(state: bytes) -> bytes:
    """Return the MAC key that marks verified signatures, derived from the state key."""
    return _hkdf(state, None, b"sfs/v2/state/known")


def vouched_rows_key(state: bytes) -> bytes:
    """Return the MAC key of the state's rows that decide, derived from the state key."""
    return _hkdf(state, None, b"sfs/v2/state/vouched")


def upload_journal_key(state: bytes) -> bytes:
    """Return the key that seals what resumes an upload, derived from the state key."""
    return _hkdf(state, None, b"sfs/v2/state/uploads")


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


def wrap_batch_info(
    server_id: bytes, owner_first: bytes, batch_id: bytes, recipient: bytes
) -> bytes:
    """Return the HPKE info, or OAEP label, of a batch's encrypted KEK. `recipient` is a key_id;
    each part has a fixed size (32, 32, 16 and 32 bytes)."""
    return b"sfs/v2/wrap-batch\0" + server_id + owner_first + batch_id + recipient


def wrap_item_info(
    server_id: bytes,
    owner_first: bytes,
    batch_id: bytes,
    recipient: bytes,
    content_id: bytes,
    dek_commit: bytes,
) -> bytes:
    """Return the info of an item's key, which is also the item's associated data: the parts of
    `wrap_batch_info`, then 16 and 32 bytes."""
    batch = server_id + owner_first + batch_id + recipient
    return b"sfs/v2/wrap-item\0" + batch + content_id + dek_commit


def wrap_item_key(kek: bytes, item_info: bytes) -> bytes:
    """Return the key of one item of a batch. Its 32 bytes are the first block of HKDF-Expand
    (RFC 5869, section 2.3); the KEK is uniformly random, so nothing is extracted first."""
    return hmac.digest(kek, item_info + b"\x01", "sha256")


def bundle_info(server_id: bytes, user: str, n: int, recipient: bytes) -> bytes:
    """Return the HPKE info of a bundle's key K: statement `n` of `user`, and one recipient."""
    return b"sfs/v2/bundle\0" + server_id + user.encode() + b"\0" + n.to_bytes(8) + recipient


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

    def open(self, nonce: bytes, ciphertext: Buffer) -> bytes:
        """Return the plaintext. Raises `Tampered`."""
        try:
            return self._cipher.decrypt(nonce, ciphertext, None)
        except InvalidTag as exc:
            raise Tampered("the data does not decrypt") from exc

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
    nonce = os.urandom(NONCE_SIZE)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, associated_data)


def open_sealed(key: bytes, sealed: bytes, associated_data: bytes) -> bytes:
    """Decrypt one message as `Sealer.open` does. Raises `Tampered`."""
    return Sealer(key).open(sealed, associated_data)
