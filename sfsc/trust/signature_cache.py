"""Cache of signatures found valid in this process, so that none is verified twice: a folder that is
fetched was usually listed just before, and records that were signed together share one signature.
Nothing stored on disk counts as verified here.
"""

from __future__ import annotations

from typing import Final

from protocol.records.record_signatures import SignatureCache
from protocol.records.signatures import Label

MAX_CACHED: Final = 64 * 1024
"""Cached signatures, about 100 bytes each."""
_verified = SignatureCache(MAX_CACHED)


def signature_is_valid(label: Label, body: bytes, signature: bytes, public: bytes | None) -> bool:
    """Return whether `public` (32 bytes) made `signature` (64 bytes) over `body`; False if it is
    None."""
    return public is not None and _verified.is_valid(label, body, signature, public)
