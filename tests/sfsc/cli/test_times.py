"""Times that commands take."""

from __future__ import annotations

import pytest

from sfsc.cli.times import before_age, parse_age, parse_moment
from sfsc.errors import UsageError

NOW = 1_800_000_000.7  # 2027-01-15 08:00:00Z
DAY = 86_400


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("12h", 1_800_000_000 - 12 * 3600),
        ("30d", 1_800_000_000 - 30 * DAY),
        ("2w", 1_800_000_000 - 14 * DAY),
        ("90 min", 1_800_000_000 - 5400),
        ("2027-01-15T08:00:00Z", 1_800_000_000),
        ("2027-01-15 08:00:00Z", 1_800_000_000),
        ("2027-01-15T08:00:00", 1_800_000_000),
        ("2027-01-15T09:00:00+01:00", 1_800_000_000),
        ("2027-01-14", 1_799_971_199),
        ("2027-01-15", 1_799_971_199 + DAY),
    ],
)
def test_moments(text: str, moment: int) -> None:
    assert parse_moment(text, NOW) == moment


@pytest.mark.parametrize(
    "text", ["", "never", "0d", "30", "-1d", "2027-01-16", "2027-01-15T08:00:02Z", "2027-13-01"]
)
def test_what_is_no_moment_of_the_past(text: str) -> None:
    with pytest.raises(UsageError):
        parse_moment(text, NOW)


def test_ages() -> None:
    assert parse_age("4w") == 28 * DAY
    assert parse_age("2027-01-15") is None
    assert before_age("1d", NOW) == 1_800_000_000 - DAY
    with pytest.raises(UsageError):
        before_age("yesterday", NOW)
