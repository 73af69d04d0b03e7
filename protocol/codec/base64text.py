"""Canonical base64 text (RFC 4648 section 4, padded), used in JSON, signed notes and proofs.

Several base64 texts can decode to the same bytes. Only the canonical one is accepted, so that a
text that was signed, hashed or compared has exactly one form.
"""

from __future__ import annotations

import binascii


def to_text(data: bytes) -> str:
    """Encode `data` as canonical base64."""
    return binascii.b2a_base64(data, newline=False).decode()


def from_text(text: str) -> bytes:
    """Decode canonical base64. Raises ValueError for other text, TypeError for other types."""
    data = binascii.a2b_base64(text, strict_mode=True)
    if to_text(data) != text:
        raise ValueError("base64 with stray bits")
    return data
