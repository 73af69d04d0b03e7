"""Times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_1, _YEAR_10000 = -62_135_596_800, 253_402_300_800


def human_time(seconds: int) -> str:
    """Unix seconds as ``2026-11-24 09:30:00Z``. Others say what time it is in what they sign: where
    a calendar has no such day, the number itself."""
    if not _YEAR_1 <= seconds < _YEAR_10000:
        return f"{seconds} s"
    # Not `fromtimestamp`, which on Windows takes none before 1970.
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%SZ")
