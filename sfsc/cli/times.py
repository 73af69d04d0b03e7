"""Times on the command line: ages such as ``30d``, and moments."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from protocol.codec.errors import QuantityError
from protocol.codec.quantities import parse_duration
from sfsc.errors import UsageError

_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")


def parse_age(text: str) -> int | None:
    """Return the seconds of a duration that is not 0, such as ``12h``, ``30d``, ``4w`` or
    ``90 min``; None for any other text."""
    try:
        return parse_duration(text) or None
    except QuantityError:
        return None


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
