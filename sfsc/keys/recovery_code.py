"""The recovery code: 32 random bytes that a user keeps on paper, and the keys derived from it.

Written as 14 groups of four letters and digits: base32 (RFC 4648, A-Z and 2-7) of the 32 bytes and
the first three of their SHA-256, so that a copying error is found before the server is asked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from typing import Final, Self

from protocol.codec.values import Value, field
from protocol.records.records import RecoveryKey
from protocol.records.signatures import SigningKey
from sfsc.crypto.primitives import recovery_keys
from sfsc.crypto.wrap import XWING, PrivateKey
from sfsc.errors import UsageError

CODE_SIZE: Final = 32
_CHECK_SIZE: Final = 3
_GROUP: Final = 4
_LETTERS: Final = -(-(CODE_SIZE + _CHECK_SIZE) * 8 // 5)
# Digits outside the alphabet are read as the letters they resemble.
_MISREAD: Final = str.maketrans({"0": "O", "1": "I", "8": "B", "-": None})


class RecoveryCode(Value):
    """A recovery code; `secret` is its 32 bytes. No part of it is ever stored."""

    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """Return a fresh random code."""
        return cls(os.urandom(CODE_SIZE))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a typed code, ignoring case, blanks and hyphens. Raises `UsageError`, which never
        repeats the text."""
        letters = "".join(text.split()).upper().translate(_MISREAD)
        try:
            if len(letters) != _LETTERS:
                raise binascii.Error
            whole = base64.b32decode(letters)
        except (binascii.Error, ValueError) as exc:
            cause = f"a recovery code has {_LETTERS} letters and digits"
            raise UsageError(cause, "type the whole code, as printed") from exc
        secret, check = whole[:CODE_SIZE], whole[CODE_SIZE:]
        if not hmac.compare_digest(check, _check(secret)):
            raise UsageError("the recovery code is mistyped", "compare it with the printed code")
        return cls(secret)

    @property
    def text(self) -> str:
        """The code in groups, for printing."""
        letters = base64.b32encode(self.secret + _check(self.secret)).decode()
        return "-".join(letters[at : at + _GROUP] for at in range(0, _LETTERS, _GROUP))

    @property
    def signing_key(self) -> SigningKey:
        """The Ed25519 key that signs recovery statements."""
        return SigningKey.from_seed(recovery_keys(self.secret)[0])

    @property
    def wrap_key(self) -> PrivateKey:
        """The X-Wing key that bundles are sealed to."""
        return PrivateKey(XWING, recovery_keys(self.secret)[1])

    @property
    def public_keys(self) -> RecoveryKey:
        """The public keys that a statement commits to."""
        return RecoveryKey(self.signing_key.public, self.wrap_key.public.encoded)


def _check(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()[:_CHECK_SIZE]
