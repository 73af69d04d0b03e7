"""Signatures that were found good in this process, so that none is verified twice: a folder that is
fetched was listed just before. Nothing that lies on a disk is believed so."""

from __future__ import annotations

import hashlib
from typing import Final

from protocol.errors import SignatureError
from protocol.signatures import Label, verify

MOST: Final = 64 * 1024
"""Signatures that are remembered, about 100 bytes each; past it all are forgotten."""
_verified: set[bytes] = set()


def verifies(label: Label, body: bytes, signature: bytes | None, public: bytes | None) -> bool:
    """Whether `signature` (64 bytes) is `public`'s (32 bytes) over `body`; None is nobody's."""
    if signature is None or public is None:
        return False
    # Of fixed lengths but the last, and no label holds a zero: so no two of these read alike.
    whole = hashlib.sha256(signature + public + label.value + b"\0" + body).digest()
    if whole in _verified:
        return True
    try:
        verify(label, body, signature, public)
    except SignatureError:
        return False
    if len(_verified) >= MOST:
        _verified.clear()
    _verified.add(whole)
    return True
