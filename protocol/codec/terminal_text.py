"""Text from elsewhere made safe for a terminal, and times as people read them.

File names, log entries and what the peer says pass through `printable` on their way to a terminal.
Nobody else's bytes move the cursor, change a title, or hide or reorder what was said.
"""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_1, _YEAR_10000 = -62_135_596_800, 253_402_300_800


_BIDI: Final = frozenset(
    map(chr, (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
)
"""Characters that reorder text (Unicode property Bidi_Control)."""


def reorders(text: str) -> bool:
    """Return whether `text` has a control or bidi character: what a terminal or a file manager
    shows of it then differs from what it is."""
    return any(char in _BIDI or unicodedata.category(char) == "Cc" for char in text)


def printable(text: str) -> str:
    """Return `text` with every unsafe character escaped as in a Python string.

    Unsafe are control, format, surrogate, private and unassigned characters and all separators but
    the ASCII space (`str.isprintable`). Format characters include the bidirectional overrides,
    which make one name look like another.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def printable_lines(text: str) -> str:
    """Return `text` with each line made `printable`, and a newline after each."""
    return "".join(f"{printable(line)}\n" for line in text.removesuffix("\n").split("\n"))


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return ``1 file`` or ``3 files``; `plural` is `noun` with an s unless given."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def human_time(seconds: int) -> str:
    """Format Unix seconds as ``2026-11-24 09:30:00Z``, or as ``N s`` outside the years 1 to 9999.

    Times come from records that other users signed, so any number can occur.
    """
    if not _YEAR_1 <= seconds < _YEAR_10000:
        return f"{seconds} s"
    # `fromtimestamp` refuses times before 1970 on Windows.
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%SZ")
