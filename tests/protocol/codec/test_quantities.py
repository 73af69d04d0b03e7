"""Sizes, durations, counts and percentages: what is accepted, and what is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.errors import QuantityError
from protocol.codec.quantities import (
    MAX_SIZE,
    parse_count,
    parse_duration,
    parse_percent,
    parse_rate,
    parse_size,
)
from protocol.codec.terminal_text import human_duration, human_size

DAY = 86_400


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_size, "0", 0),
        (parse_size, "1024", 1024),
        (parse_size, "1_048_576", 1 << 20),
        (parse_size, "1K", 1024),
        (parse_size, "10G", 10 << 30),
        (parse_size, " 10 GiB ", 10 << 30),
        (parse_size, "3gb", 3 << 30),
        (parse_size, "1.5 MiB", 3 << 19),
        (parse_size, "1.1k", 1126),
        (parse_size, "7 B", 7),
        (parse_size, "12 bytes", 12),
        (parse_size, "8P", MAX_SIZE),
        (parse_rate, "5MiB/s", 5 << 20),
        (parse_rate, "800k", 800 << 10),
        (parse_duration, "0", 0),
        (parse_duration, "90s", 90),
        (parse_duration, "90m", 5400),
        (parse_duration, "90 min", 5400),
        (parse_duration, "12h", DAY // 2),
        (parse_duration, "1h30m", 5400),
        (parse_duration, "7d", 7 * DAY),
        (parse_duration, "2 weeks 1 day", 15 * DAY),
        (parse_count, "10000", 10_000),
        (parse_count, "10_000", 10_000),
        (parse_count, "10,000", 10_000),
        (parse_count, "10k", 10_000),
        (parse_count, "2 M", 2_000_000),
        (parse_percent, "10", 10),
        (parse_percent, "10 %", 10),
    ],
)
def test_accepted_forms(parse: Callable[[str], int], text: str, value: int) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (parse_size, ["", "-1", "1X", "G", "1 0", "٣", "1e9", "1.G", "8193T", "9" * 30, "5M/s"]),
        (parse_rate, ["/s", "1/m", "1 /s/s"]),
        (parse_duration, ["", "7", "d", "-1d", "1y", "99999w", "1m1m", "30m1h", "٣d", "1.5h"]),
        (parse_count, ["", "-1", "1.5", "1,0", "10m", "k", "٣", "9" * 18]),
        (parse_percent, ["", "%", "-1%", "1.5%", "10%%"]),
    ],
)
def test_other_text_is_refused_with_an_example(
    parse: Callable[[str], int], texts: list[str]
) -> None:
    for text in texts:
        with pytest.raises(QuantityError) as caught:
            parse(text)
        assert caught.value.cause.startswith("not a ")
        assert "write it like" in caught.value.hint


def test_a_long_text_is_not_repeated_in_full() -> None:
    with pytest.raises(QuantityError) as caught:
        parse_size("x" * 10_000)
    assert len(str(caught.value)) < 200


@given(st.integers(0, 2**40), st.integers(0, 10**8))
def test_what_messages_show_is_accepted(size: int, seconds: int) -> None:
    assert abs(parse_size(human_size(size)) - size) <= max(size * 0.06, 0)
    assert 0 <= seconds - parse_duration(human_duration(seconds)) < DAY
