"""What a report adds up: bounded memory, and accounts as the log leaves them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.log.auditlog import EntryDraft, LogEntry
from sfsd.log.descriptions import OPENED, STORED
from sfsd.report import chart, summary
from sfsd.report.summary import OTHERS, Histogram, LogSummary
from tests.sfsd.log_entries import entry

NOON = int(datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp())
HOUR, DAY = 3600, 86_400


def added(*drafts: EntryDraft, rows: int = 10) -> LogSummary:
    found = LogSummary(rows, 0)
    for seq, draft in enumerate(drafts):
        found.add(entry(draft, seq))
    return found


@given(st.lists(st.integers(-62_135_596_800, 253_402_300_799), min_size=1, max_size=60))
def test_a_chart_of_any_times_is_small_and_counts_each_entry(moments: list[int]) -> None:
    histogram = Histogram(3600)
    for moment in moments:
        histogram.add(moment, STORED)
    assert sum(counts.total() for counts in histogram.bars.values()) == len(moments)
    drawn = chart.draw(histogram, 3600)
    assert drawn.width <= 111 * chart.STEP
    assert sum(bar.total for bar in drawn.bars) == len(moments)
    top = int(drawn.grid[0].replace(",", ""))
    assert top >= max(bar.total for bar in drawn.bars)
    for bar in drawn.bars:
        assert sum(part.height for part in bar.parts) == pytest.approx(
            chart.HEIGHT * bar.total / top, abs=0.05
        )
        assert all(0 <= part.y <= chart.HEIGHT for part in bar.parts)


def test_bars_become_wider_with_the_time_that_they_span() -> None:
    histogram = Histogram(0)
    for days, width in ((0, HOUR), (1, HOUR), (6, 6 * HOUR), (60, DAY), (200, 7 * DAY)):
        histogram.add(NOON + days * DAY, STORED)
        assert histogram.width == width
    assert sum(counts[STORED] for counts in histogram.bars.values()) == 5


def test_days_begin_at_midnight_of_the_zone() -> None:
    histogram = Histogram(5 * HOUR)
    for days in range(60):
        histogram.add(NOON + days * DAY, STORED)
    drawn = chart.draw(histogram, 5 * HOUR)
    assert drawn.unit == "day"
    assert drawn.times == ("2026-11-24", "2026-12-23", "2027-01-22")
    assert histogram.begins(min(histogram.bars)) == NOON - 17 * HOUR


def test_parts_of_a_bar_stand_on_each_other() -> None:
    histogram = Histogram(0)
    for kind in (STORED, STORED, OPENED):
        histogram.add(NOON, kind)
    drawn = chart.draw(histogram, 0)
    (bar,) = drawn.bars
    assert (bar.total, bar.counts) == (3, (2, 1, 0, 0, 0, 0))
    assert drawn.grid == ("4", "3", "2", "1", "0")
    assert bar.parts == (
        chart.Part("stored", 100.0, 100.0),
        chart.Part("opened", 50.0, 50.0),
    )
    assert chart.draw(Histogram(0), 0).bars == ()


def test_names_beyond_the_bound_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "_NAMES", 3)
    monkeypatch.setattr(summary, "_ADDRESSES", 3)
    monkeypatch.setattr(summary, "_OPERATIONS", 3)
    monkeypatch.setattr(summary, "_SMALL", 2)
    drafts = [
        EntryDraft(
            "refused",
            f"user{number}" + "x" * 1000,
            detail={
                "address": f"192.0.2.{number}",
                "count": 5,
                "codes": {f"code{number % 4}": 5, "y" * 1000: 1},
            },
        )
        for number in range(10)
    ]
    found = added(*drafts, *(EntryDraft(f"op{number}", "alice") for number in range(10)))
    assert list(found.users)[3:] == [OTHERS]
    assert found.users[OTHERS].kinds.total() == 17
    assert max(map(len, found.users)) == 200
    assert found.addresses[OTHERS].count == 35
    assert set(found.addresses[OTHERS].codes) == {"code3", "y" * 200, OTHERS}
    assert found.refused == 50
    assert found.operations[OTHERS].kinds.total() == 8
    assert [one.seq for one in found.rows] == list(range(10, 20))
    assert (found.entries, found.shown) == (20, 20)


def test_accounts_are_as_the_log_leaves_them() -> None:
    found = added(
        EntryDraft("user-add", "operator", owner="bob", detail={"quota": 5, "expires": 1}),
        EntryDraft("enrol", "bob", owner="bob", rec=b"no statement"),
        EntryDraft("user-quota", "operator", owner="bob", detail={"quota": 7, "before": 5}),
        EntryDraft("user-access", "operator", owner="bob", detail={"disabled": True}),
        EntryDraft("rotate-force", "operator", owner="bob", detail={"reason": "stolen"}),
        EntryDraft("rotate-begin", "bob", owner="bob"),
        EntryDraft("rotate-finish", "bob", owner="bob"),
        EntryDraft("rotate-begin", "bob", owner="bob"),
        EntryDraft("user-add", "operator", owner="<script>", detail={"quota": "x"}),
        EntryDraft("user-quota", "operator", owner="eve", detail={"quota": "x"}),
    )
    assert set(found.accounts) == {"bob", "eve"}
    bob = found.accounts["bob"]
    assert (bob.quota, bob.disabled, bob.forced) == (7, True, "stolen")
    assert (bob.begun, bob.rotations, found.finished) == (True, 1, 1)
    assert found.accounts["eve"].quota == 0


def test_a_period_limits_what_is_counted_but_not_the_accounts() -> None:
    def is_shown(one: LogEntry) -> bool:
        return one.seq > 0

    found = LogSummary(10, 0, is_shown)
    found.add(entry(EntryDraft("user-quota", "operator", owner="bob", detail={"quota": 7}), 0))
    found.add(entry(EntryDraft("upload", "bob", owner="bob", file="0" * 32, version=1), 1))
    assert (found.entries, found.shown, list(found.users)) == (2, 1, ["bob"])
    assert found.accounts["bob"].quota == 7
