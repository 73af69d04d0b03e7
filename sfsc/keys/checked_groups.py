"""Bytes as groups of five letters and digits for paper, each of which shows whether it is mistyped.

A group is four characters of base32 (RFC 4648: A-Z, 2-7), which hold 20 bits, and a check
character. With the characters as elements of GF(2^5) (modulo x^5 + x^2 + 1, generator a = x), it is

    c = a*x1 + a^2*x2 + a^3*x3 + a^4*x4

The five factors (that of c is 1) differ and none is zero. So a wrong character, and two characters
that have changed places, are always noticed in their own group; any other mistake in a group is
noticed in 31 of 32 cases. The bytes end with the first 3 of their SHA-256, which notices groups
that have changed places and nearly all of the rest.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

from sfsc.errors import Mistyped

CHECK_SIZE: Final = 3
_GROUP: Final = 5
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_VALUES: Final = {letter: value for value, letter in enumerate(_ALPHABET)}
_FACTORS: Final = (2, 4, 8, 16)
"""a, a^2, a^3 and a^4."""
# Digits outside the alphabet are read as the letters they resemble.
_MISREAD: Final = str.maketrans({"0": "O", "1": "I", "8": "B"})


def to_groups(data: bytes) -> list[str]:
    """Return the groups of `data`, whose length is 2 more than a multiple of 5 bytes."""
    letters = base64.b32encode(data + _digest(data)).decode()
    quads = [letters[at : at + _GROUP - 1] for at in range(0, len(letters), _GROUP - 1)]
    return [quad + _check(quad) for quad in quads]


def from_groups(groups: Sequence[str], what: str) -> bytes:
    """Return the bytes of groups as `split_groups` returns them. `what` is the name of the text in
    messages. Raises `Mistyped`."""
    check_groups(groups, what)
    try:
        whole = base64.b32decode("".join(group[:-1] for group in groups))
    except ValueError as exc:
        raise Mistyped(f"{what} is incomplete", "type all of its groups") from exc
    data, digest = whole[:-CHECK_SIZE], whole[-CHECK_SIZE:]
    if not hmac.compare_digest(digest, _digest(data)):
        hint = "compare it with the printed one: are two groups in each other's place?"
        raise Mistyped(f"{what} is mistyped, but no single group is", hint)
    return data


def split_groups(text: str) -> list[str]:
    """Return the groups of a typed text in upper case. Without blanks and hyphens, every five
    characters are one."""
    typed = [part for part in re.split(r"[\s-]+", text.upper().translate(_MISREAD)) if part]
    if len(typed) == 1:
        whole = typed[0]
        return [whole[at : at + _GROUP] for at in range(0, len(whole), _GROUP)]
    return typed


def check_groups(groups: Sequence[str], what: str, before: int = 0) -> None:
    """Raise `Mistyped` if groups are mistyped, with their numbers; `before` groups precede them.
    The message repeats nothing of them."""
    wrong = [at for at, group in enumerate(groups, before + 1) if not _is_right(group)]
    if wrong:
        named = ", ".join(map(str, wrong[:5])) + (" and more" if len(wrong) > 5 else "")
        cause = f"{what} is mistyped in group{'s' * (len(wrong) > 1)} {named}"
        raise Mistyped(cause, "compare them with the printed ones", groups=tuple(wrong))


def to_rows(groups: Sequence[str], most: int) -> list[str]:
    """Return lines of at most `most` groups, with hyphens between these."""
    return ["-".join(groups[at : at + most]) for at in range(0, len(groups), most)]


def _is_right(group: str) -> bool:
    return (
        len(group) == _GROUP
        and all(letter in _VALUES for letter in group)
        and _check(group[:-1]) == group[-1]
    )


def _check(quad: str) -> str:
    found = 0
    for letter, factor in zip(quad, _FACTORS, strict=True):
        found ^= _product(_VALUES[letter], factor)
    return _ALPHABET[found]


def _product(left: int, right: int) -> int:
    """Multiply two elements of GF(2^5)."""
    found = 0
    for bit in range(5):
        if right >> bit & 1:
            found ^= left << bit
    for bit in range(9, 4, -1):
        if found >> bit & 1:
            found ^= 0b100101 << (bit - 5)
    return found


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:CHECK_SIZE]
