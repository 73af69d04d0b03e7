"""Times as people read them, whoever has signed them."""

from __future__ import annotations

import pytest

from sfsc.timefmt import human_time


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (1_764_000_000, "2025-11-24 16:00:00Z"),
        (-1, "1969-12-31 23:59:59Z"),
        (253_402_300_799, "9999-12-31 23:59:59Z"),
        (253_402_300_800, "253402300800 s"),
        (2**53, "9007199254740992 s"),
        (-(2**53), "-9007199254740992 s"),
    ],
)
def test_time(seconds: int, shown: str) -> None:
    assert human_time(seconds) == shown
