"""Sizes, durations, counts and percentages as people write them: one parser for each.

Settings, options of commands and environment variables accept the same forms, which include those
that messages show. Every function raises `QuantityError` for other text.
"""

from __future__ import annotations

import re
from typing import Final

from protocol.codec.errors import QuantityError

_NUMBER: Final = r"([0-9][0-9_]{0,17}|[0-9]{1,3}(?:,[0-9]{3}){1,5})"
_DECIMAL: Final = r"([0-9][0-9_]{0,17}(?:\.[0-9]{1,9})?)"
SIZE_PATTERN: Final = _DECIMAL + r" ?(?:([KMGTPkmgtp])(?:[Ii]?[Bb])?|[Bb]|bytes?)?"
RATE_PATTERN: Final = f"{SIZE_PATTERN}(?:/s)?"
DURATION_PATTERN: Final = (
    r"(?:0|(?:[0-9]{1,9} ?(?:weeks?|w) ?)?(?:[0-9]{1,9} ?(?:days?|d) ?)?"
    r"(?:[0-9]{1,9} ?(?:hours?|h) ?)?(?:[0-9]{1,9} ?(?:minutes?|min|m) ?)?"
    r"(?:[0-9]{1,9} ?(?:seconds?|sec|s))?)"
)
COUNT_PATTERN: Final = _NUMBER + r" ?([kMG])?"
PERCENT_PATTERN: Final = r"([0-9]{1,9}) ?%"
"""Patterns of the accepted texts, without blanks at both ends, for Python and JSON schemas."""

MAX_SIZE: Final = 2**53
"""Largest size in bytes. It is exact in a JSON number."""
MAX_COUNT: Final = 2**53
MAX_DURATION: Final = 100 * 366 * 86_400
"""Longest duration in seconds: about 100 years."""

_SIZE: Final = re.compile(SIZE_PATTERN)
_DURATION: Final = re.compile(DURATION_PATTERN)
_PART: Final = re.compile(r"([0-9]+) ?([a-z])")
_COUNT: Final = re.compile(COUNT_PATTERN)
_PERCENT: Final = re.compile(PERCENT_PATTERN)
_SIZES: Final[dict[str, int]] = {unit: 1 << 10 * power for power, unit in enumerate("kmgtp", 1)}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_COUNTS: Final = {"k": 10**3, "M": 10**6, "G": 10**9}


def parse_size(text: str) -> int:
    """Return the bytes of ``1048576``, ``50G``, ``50 GiB``, ``50GB`` or ``1.5 MiB``, rounded down.

    Units are powers of 1024. At most 2**53 bytes. Raises `QuantityError`.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is not None:
        whole, _, part = found[1].replace("_", "").partition(".")
        unit = _SIZES.get((found[2] or "").lower(), 1)
        size = int(whole) * unit + int(part or 0) * unit // int("1" + "0" * len(part))
        if size <= MAX_SIZE:
            return size
    raise QuantityError(_no("size", text), "write it like 500M, 50 GiB or 1048576 (bytes)")


def parse_rate(text: str) -> int:
    """Return the bytes a second of a `parse_size` text; ``/s`` may follow. Raises
    `QuantityError`."""
    return parse_size(text.strip().removesuffix("/s"))


def parse_duration(text: str) -> int:
    """Return the seconds of ``90s``, ``90 min``, ``12h``, ``7d``, ``2w``, ``1d 12h`` or ``0``.

    Parts go from the longest unit to the shortest, each once: w, d, h, m or min, s. Words such as
    ``7 days`` are units too. At most 100 years. Raises `QuantityError`.
    """
    text = text.strip()
    if text and _DURATION.fullmatch(text) is not None:
        seconds = sum(int(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
        if seconds <= MAX_DURATION:
            return seconds
    raise QuantityError(_no("duration", text), "write it like 90s, 15m, 12h, 7d or 2w")


def parse_count(text: str) -> int:
    """Return the number of ``10000``, ``10_000``, ``10,000``, ``10k`` or ``2M``, at most 2**53.

    Units are powers of 1000. Raises `QuantityError`.
    """
    found = _COUNT.fullmatch(text.strip())
    if found is not None:
        count = int(found[1].replace("_", "").replace(",", "")) * _COUNTS.get(found[2], 1)
        if count <= MAX_COUNT:
            return count
    raise QuantityError(_no("whole number", text), "write it like 10000, 10_000 or 10k")


def parse_percent(text: str) -> int:
    """Return the number of ``10%`` or ``10``. Raises `QuantityError`."""
    found = _PERCENT.fullmatch(f"{text.strip().removesuffix('%')}%")
    if found is None:
        raise QuantityError(_no("percentage", text), "write it like 10%")
    return int(found[1])


def _no(kind: str, text: str) -> str:
    return f"not a {kind}: {text[:40]!r}"
