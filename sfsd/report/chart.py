"""Geometry of the chart: bars that stand on each other, on a grid of round numbers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from protocol.codec.values import Value
from sfsd.log.descriptions import (
    ADMINISTRATION,
    KEYS,
    LOGINS,
    OPENED,
    OTHER,
    REFUSED,
    REMOVED,
    SHARED,
    STORED,
)
from sfsd.report.summary import Histogram

SERIES: Final = {
    "stored": ("Stored or changed", (STORED,)),
    "opened": ("Opened", (OPENED,)),
    "removed": ("Removed", (REMOVED,)),
    "shared": ("Sharing and keys", (SHARED, KEYS)),
    "logins": ("Logins and administration", (LOGINS, ADMINISTRATION, OTHER)),
    "refused": ("Refused", (REFUSED,)),
}
"""Series of one colour each, from the bottom up: heading, and the kinds of operations."""
HEIGHT: Final = 200
"""Height of the plot in its own units; a bar has the width 10, with its gap."""
STEP: Final = 10
_LINES: Final = 4
"""Lines of the grid above zero."""
_ROUND: Final = (1, 2, 3, 4, 5, 6, 8, 10)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAMES: Final = {3600: "hour", 6 * 3600: "6 hours", 86_400: "day"}


class Part(NamedTuple):
    """A coloured part of a bar: its series, top and height."""

    series: str
    y: float
    height: float


class Bar(Value):
    """The bar of one time: its left edge, its parts, what it says, and its numbers by series."""

    x: int
    label: str
    total: int
    parts: tuple[Part, ...]
    counts: tuple[int, ...]


class Chart(Value):
    """A chart: its `width`, its bars, labels of the grid from the top down, those of the time axis,
    and how long the time of one bar is, in words."""

    width: int
    bars: tuple[Bar, ...]
    grid: tuple[str, ...]
    times: tuple[str, ...]
    unit: str


def draw(histogram: Histogram, offset: int) -> Chart:
    """Return the chart of a histogram, whose times are shown `offset` seconds ahead of UTC."""
    if not histogram.bars:
        return Chart(STEP, (), (), (), "")
    first, last = min(histogram.bars), max(histogram.bars)
    totals = {number: counts.total() for number, counts in histogram.bars.items()}
    step = _step(max(totals.values()))
    bars: list[Bar] = []
    for number, counts in sorted(histogram.bars.items()):
        found = {name: sum(counts[kind] for kind in kinds) for name, (_, kinds) in SERIES.items()}
        parts, y = list[Part](), float(HEIGHT)
        for name, count in found.items():
            if count:
                height = HEIGHT * count / (step * _LINES)
                y -= height
                parts.append(Part(name, round(y, 2), round(height, 2)))
        label = _label(histogram.begins(number), offset, histogram.width)
        bars.append(
            Bar(
                (number - first) * STEP,
                label,
                totals[number],
                tuple(parts),
                tuple(found.values()),
            )
        )
    middle = (
        [first, (first + last) // 2, last]
        if last - first > 1
        else [first, last][: last - first + 1]
    )
    times = [_label(histogram.begins(number), offset, histogram.width) for number in middle]
    grid = [f"{step * line:,}" for line in range(_LINES, -1, -1)]
    days = histogram.width // 86_400
    unit = _NAMES.get(histogram.width, f"{days} days")
    return Chart((last - first + 1) * STEP, tuple(bars), tuple(grid), tuple(times), unit)


def _step(most: int) -> int:
    """Return a round number of which `_LINES` are at least `most`."""
    power = 1
    while True:
        for factor in _ROUND:
            if factor * power * _LINES >= most:
                return factor * power
        power *= 10


def _label(moment: int, offset: int, width: int) -> str:
    try:
        shown = _EPOCH + timedelta(seconds=moment + offset)
    except OverflowError:
        return "?"
    return shown.strftime("%Y-%m-%d %H:%M" if width < 86_400 else "%Y-%m-%d")
