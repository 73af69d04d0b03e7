"""Times on the command line: ages such as ``30d``, and moments."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from sfsc.errors import UsageError

_SECONDS: Final = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
_AGE: Final = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")


def parse_age(text: str) -> int | None:
    """Return the seconds of ``12h``, ``30d`` or ``4w``; None for any other text."""
    matched = _AGE.fullmatch(text)
    return None if matched is None else int(matched[1]) * _SECONDS[matched[2]]


def before_age(text: str, now: float) -> int:
    """Return the Unix time of an age before `now`. Raises `UsageError`."""
    age = parse_age(text)
    if age is None:
        raise UsageError(f"not an age: {text}", "use 12h, 30d or 4w")
    return int(now) - age


def parse_moment(text: str, now: float) -> int:
    """Return the Unix time of an age before `now`, of ``2027-01-31 12:00:00Z`` (ISO 8601; without
    a time zone it is UTC), or of the end of a day. Raises `UsageError`, also for the future."""
    if (age := parse_age(text)) is not None:
        return int(now) - age
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        begun = moment.timestamp() <= now
        if _DAY.fullmatch(text):
            moment += timedelta(days=1, seconds=-1)
        found = int(moment.timestamp())
    except (ValueError, OverflowError) as exc:
        hint = "use 12h, 30d, 4w, 2027-01-31 (its end) or 2027-01-31T12:00:00Z"
        raise UsageError(f"not a time: {text}", hint) from exc
    if not begun:
        raise UsageError(f"{text} is in the future", "use an earlier time")
    return found
