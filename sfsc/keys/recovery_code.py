"""The recovery code: 32 random bytes that a user keeps on paper, and the keys derived from it.

Written as 14 groups of five letters and digits (`sfsc.keys.checked_groups`), so that a copying
error is found, and mostly its place, before the server is asked.
"""

from __future__ import annotations

import os
from typing import Final, Self

from protocol.codec.values import Value, field
from protocol.records.records import RecoveryKey
from protocol.records.signatures import SigningKey
from sfsc.crypto.primitives import recovery_keys
from sfsc.crypto.wrap import XWING, PrivateKey
from sfsc.errors import Mistyped
from sfsc.keys.checked_groups import from_groups, split_groups, to_groups

CODE_SIZE: Final = 32
GROUPS: Final = 14
_WHAT: Final = "the recovery code"


class RecoveryCode(Value):
    """A recovery code; `secret` is its 32 bytes. No part of it is ever stored."""

    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """Return a fresh random code."""
        return cls(os.urandom(CODE_SIZE))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a typed code, ignoring case, blanks and hyphens. Raises `Mistyped`, which never
        repeats the text."""
        groups = split_groups(text)
        if len(groups) != GROUPS:
            cause = f"a recovery code has {GROUPS} groups of five letters and digits"
            raise Mistyped(cause, "type the whole code, as printed")
        return cls(from_groups(groups, _WHAT))

    @property
    def text(self) -> str:
        """The code in groups, for printing."""
        return "-".join(to_groups(self.secret))

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
