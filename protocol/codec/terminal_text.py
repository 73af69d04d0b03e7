"""Text from elsewhere made safe for a terminal; times, sizes and durations as people read them.

File names, log entries and what the peer says pass through `printable` on their way to a terminal.
Nobody else's bytes move the cursor, change a title, or hide or reorder what was said.
"""

from __future__ import annotations

import contextlib
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_1, _YEAR_10000 = -62_135_596_800, 253_402_300_800
_SIZE_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_TIME_UNITS: Final = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))

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


def human_time(seconds: int, *, local: bool = False) -> str:
    """Format Unix seconds as ``2026-11-24 09:30:00Z``; with `local`, in this machine's time zone,
    such as ``2026-11-24 10:30:00+01:00``. `datetime.fromisoformat` reads both.

    Times come from records that other users signed, so any number can occur: outside the years 1 to
    9999 the result is ``N s``, and a time that has no local form is shown in UTC.
    """
    if not _YEAR_1 <= seconds < _YEAR_10000:
        return f"{seconds} s"
    # `fromtimestamp` refuses times before 1970 on Windows.
    moment = _EPOCH + timedelta(seconds=seconds)
    if local:
        with contextlib.suppress(OverflowError, OSError, ValueError):
            moment = moment.astimezone()
    return moment.isoformat(" ", "seconds").replace("+00:00", "Z")


def human_size(size: int) -> str:
    """Format `size` bytes in the largest unit that leaves at least one: ``1.5 MiB``."""
    power = min(max(size.bit_length() - 1, 0) // 10, len(_SIZE_UNITS) - 1)
    return f"{size / 1024**power:.1f} {_SIZE_UNITS[power]}" if power else f"{size} B"


def human_duration(seconds: float) -> str:
    """Format a duration in its two largest units, rounded down: ``45 s``, ``3 min 20 s``,
    ``2 h 5 min``, ``4 d 3 h``; ``0 s`` if it is negative."""
    left = max(int(seconds), 0)
    shown: list[str] = []
    for name, length in _TIME_UNITS:
        count, left = divmod(left, length)
        if count:
            shown.append(f"{count} {name}")
        if shown and (not count or len(shown) == 2):  # "1 d" and not "1 d 5 s"
            break
    return " ".join(shown) or "0 s"
