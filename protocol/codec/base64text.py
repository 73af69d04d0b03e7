"""Bytes as base64 text (RFC 4648 section 4, padded): how JSON, notes and proofs spell them.

Base64 has spellings that decode alike. Only one of them is ours, so that a text which was signed,
hashed or compared is the only one that says what it says.
"""

from __future__ import annotations

import binascii


def to_text(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def from_text(text: str) -> bytes:
    """The inverse. Raises ValueError for any other text, TypeError for what is none."""
    data = binascii.a2b_base64(text, strict_mode=True)
    if to_text(data) != text:
        raise ValueError("base64 with stray bits")
    return data
