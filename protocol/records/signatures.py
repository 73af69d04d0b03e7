"""Ed25519 (RFC 8032) with a context string: the only place that signs or verifies.

A signature is plain Ed25519 over ``label ‖ 0x00 ‖ body``. Labels hold no NUL, so no body under
one label can be read as a body under another. Signed notes (C2SP signed-note) are signed over
their bare text, as that specification asks; a note's text begins with ``sfs/<hex>\\n`` and never
with a label followed by NUL, so the two domains cannot meet.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol.codec.errors import SignatureError

SEED_SIZE = 32


class Label(Enum):
    """What a signature is for; the value is the context string."""

    LOGIN = b"sfs/v1/login"
    STATEMENT = b"sfs/v1/statement"
    RECORD = b"sfs/v1/record"
    ENDORSE = b"sfs/v1/endorse"
    ROTATION_FINISH = b"sfs/v1/rotation-finish"
    SERVER_STATEMENT = b"sfs/v1/server-statement"


class SigningKey:
    """An Ed25519 private key. `public` is 32 bytes, `seed` 32 secret bytes."""

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public: bytes = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """The key of a 32-byte seed (RFC 8032 section 5.1.5)."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def seed(self) -> bytes:
        return self._key.private_bytes_raw()

    def sign(self, label: Label, body: bytes) -> bytes:
        """64 bytes over ``label ‖ 0x00 ‖ body``."""
        return self._key.sign(label.value + b"\0" + body)

    def sign_note(self, text: bytes) -> bytes:
        """64 bytes over a signed note's text, newline at its end included."""
        return self._key.sign(text)

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()})"


def verify_signature(label: Label, body: bytes, signature: bytes, public: bytes) -> None:
    """Raise `SignatureError` unless `signature` is `public`'s over ``label ‖ 0x00 ‖ body``."""
    _verify(label.value + b"\0" + body, signature, public)


def verify_note(text: bytes, signature: bytes, public: bytes) -> None:
    """Raise `SignatureError` unless `signature` is `public`'s over the note's text."""
    _verify(text, signature, public)


def _verify(signed: bytes, signature: bytes, public: bytes) -> None:
    try:
        _loaded(public).verify(signature, signed)
    except (InvalidSignature, ValueError) as exc:
        raise SignatureError("the signature does not verify") from exc


@lru_cache(64)
def _loaded(public: bytes) -> Ed25519PublicKey:
    """A user's records are signed with the same few keys."""
    return Ed25519PublicKey.from_public_bytes(public)
