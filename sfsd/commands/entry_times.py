"""Times that commands take, as `--since` and `--until`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from protocol.codec.errors import QuantityError
from protocol.codec.quantities import parse_duration


def period(since: str | None, until: str | None, *, utc: bool) -> tuple[str | None, str | None]:
    """Return the options `--since` and `--until` in the form of times in entries. Each is a date or
    a time (ISO 8601), or an age such as ``7d``. What has no time zone is in this machine's, or in
    UTC with `utc`. Raises `click.BadParameter`."""
    first, last = _entry_time(since, "--since", utc=utc), _entry_time(until, "--until", utc=utc)
    if first is not None and last is not None and first >= last:
        raise click.BadParameter("is not after --since", param_hint="'--until'")
    return first, last


def _entry_time(text: str | None, option: str, *, utc: bool) -> str | None:
    if text is None:
        return None
    try:
        moment = _moment(text, utc=utc).astimezone(UTC)
    except (ValueError, OverflowError, OSError) as exc:
        forms = "not like 2026-11-24, 2026-11-24T09:30:00Z or 7d (7 days ago)"
        raise click.BadParameter(forms, param_hint=f"'{option}'") from exc
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _moment(text: str, *, utc: bool) -> datetime:
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    except QuantityError:
        moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC) if utc else moment.astimezone()
    return moment


since_option = click.option(
    "--since", metavar="TIME", help="Only from this time on: ISO 8601, or an age such as 7d."
)
until_option = click.option("--until", metavar="TIME", help="Only before this time.")
