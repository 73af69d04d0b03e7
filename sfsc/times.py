"""Times of the library: Unix seconds, and aware datetimes beside them."""

from __future__ import annotations

from datetime import UTC, datetime

from sfsc.errors import UsageError

Time = int | datetime
"""A time that a caller gives: Unix seconds, or a datetime that knows its time zone."""


def as_datetime(seconds: int | None) -> datetime | None:
    """Return Unix seconds as a datetime in UTC; None for None and for 0, which means no time."""
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def as_seconds(time: Time | None) -> int | None:
    """Return a time as Unix seconds, and None as it is. Raises `UsageError` for a datetime without
    a time zone: it would be another time on another machine."""
    if not isinstance(time, datetime):
        return time
    if time.tzinfo is None:
        raise UsageError(f"the time {time} has no time zone", "add one, such as datetime.UTC")
    return int(time.timestamp())
