"""Ed25519 signatures (RFC 8032) with a context string; all signing and verifying is here.

A signature is plain Ed25519 over ``label ‖ 0x00 ‖ body``. Labels hold no NUL, so a signature under
one label is never valid under another. A signed note (C2SP signed-note) is signed over its bare
text, as its specification requires. That text begins with ``sfs/<hex>\\n``, never with a label and
a NUL, so a note's signature is never valid for a labelled body or the other way round.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol.codec.errors import PublicKeyError, SignatureError
from protocol.records.public_keys import check_signing_key

SEED_SIZE = 32


class Label(Enum):
    """Purpose of a signature; the value is its context string."""

    LOGIN = b"sfs/v2/login"
    STATEMENT = b"sfs/v2/statement"
    RECOVERY_POSSESSION = b"sfs/v2/recovery-possession"
    RECORDS = b"sfs/v2/records"
    ENDORSEMENTS = b"sfs/v2/endorsements"
    ROTATION_FINISH = b"sfs/v2/rotation-finish"
    LEAVE = b"sfs/v2/leave"
    SERVER_STATEMENT = b"sfs/v2/server-statement"


class SigningKey:
    """An Ed25519 private key. `public` is 32 bytes, `seed` 32 secret bytes."""

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public: bytes = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SigningKey:
        """Return a new random key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """Return the key of a 32-byte seed (RFC 8032 section 5.1.5)."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes that `from_seed` takes."""
        return self._key.private_bytes_raw()

    def sign(self, label: Label, body: bytes) -> bytes:
        """Return the 64-byte signature over ``label ‖ 0x00 ‖ body``."""
        return self._key.sign(label.value + b"\0" + body)

    def sign_note(self, text: bytes) -> bytes:
        """Return the 64-byte signature over a signed note's text with its last newline."""
        return self._key.sign(text)

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()})"


def verify_signature(label: Label, body: bytes, signature: bytes, public: bytes) -> None:
    """Raise `SignatureError` unless `public` made `signature` over ``label ‖ 0x00 ‖ body``."""
    verify_note(label.value + b"\0" + body, signature, public)


def verify_note(text: bytes, signature: bytes, public: bytes) -> None:
    """Raise `SignatureError` unless `public` made `signature` over the note's text, and if `public`
    is not a valid key: some keys would accept a signature that nobody made."""
    try:
        _loaded(public).verify(signature, text)
    except PublicKeyError as exc:
        raise SignatureError(f"the signature does not count: {exc}") from exc
    except (InvalidSignature, ValueError) as exc:
        raise SignatureError("the signature does not verify") from exc


@lru_cache(256)
def _loaded(public: bytes) -> Ed25519PublicKey:
    """Load and check a public key; cached because a user's records are signed with few keys."""
    check_signing_key(public)
    return Ed25519PublicKey.from_public_bytes(public)
