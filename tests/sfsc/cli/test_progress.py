"""The lines that show progress: what they say, that they fit, and that they are removed."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.tables import width_of
from protocol.codec.terminal_text import printable
from sfsc.cli.progress import ProgressLines, cut, cut_middle

MIB = 1 << 20


class Screen(io.StringIO):
    """A terminal that understands what the lines use of its control sequences."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """What is on the screen now."""
        rows, at = [""], 0
        for part in re.findall(r"\r\x1b\[K|\x1b\[A\x1b\[K|\n|[^\r\n\x1b]+", self.getvalue()):
            if part == "\r\x1b[K":
                rows[at] = ""
            elif part == "\x1b[A\x1b[K":
                at -= 1
                rows[at] = ""
            elif part == "\n":
                at += 1
                rows[at:] = [""]
            else:
                rows[at] += part
        return [row for row in rows if row]


Advance = Callable[[float], None]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Advance:
    """Return a function that advances the clock by some seconds."""
    now = [1024.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "80")

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_the_whole_and_a_large_file_have_a_line_each(later: Advance) -> None:
    screen, started = Screen(), list[bool]()
    shown = ProgressLines(screen, lambda: started.append(True))
    shown.expect(100 * MIB)
    shown.expect_items(20_000)
    shown.begin_file("big", 40 * MIB)
    for _ in range(10):
        later(0.0625)
        shown.advance(MIB)
    assert (screen.getvalue(), started) == ("", [])  # a short step needs none
    later(1.375)
    shown.advance(10 * MIB)
    shown.advance_items(5)
    assert screen.lines == [
        " 50%  20.0 MiB of 40.0 MiB  big",
        " 20%  0 of 20,000  20.0 MiB of 100.0 MiB  10.0 MiB/s  8 s left",
    ]
    assert started == [True]
    shown.above("a line")
    assert screen.lines[0] == "a line"
    assert len(screen.lines) == 3
    later(1)
    shown.advance(80 * MIB)
    assert screen.lines[1] == "100%  5 of 20,000  100.0 MiB of 100.0 MiB  80.0 MiB/s"
    shown.close()
    shown.advance(1)
    later(9)
    shown.advance(1)
    assert screen.lines == ["a line"]


def test_items_without_bytes_and_totals_that_are_not_known(later: Advance) -> None:
    screen = Screen()
    shown = ProgressLines(screen)
    shown.expect_items(1000)
    later(2)
    shown.advance(81)  # a setting that is stored on the way
    shown.advance_items(500)
    later(1)
    shown.advance_items(250)
    assert screen.lines == [" 75%  750 of 1,000  750/s  1 s left"]
    later(1)
    shown.expect_items(500, more=True)
    shown.advance_items(250)
    assert screen.lines == ["1,000  500/s"]
    streaming = ProgressLines(screen := Screen())
    later(2)
    streaming.advance(5 * MIB)
    assert screen.lines == ["5.0 MiB  2.5 MiB/s"]


def test_a_lost_connection_is_shown_at_once(
    later: Advance, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen()
    shown = ProgressLines(screen)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "localtime", time.gmtime)
    shown.reconnecting("gone \x1b[2J", 8.0)
    assert screen.lines == ["reconnecting …  next attempt at 00:00:08  gone \\x1b[2J"]
    shown.reconnecting("cause " * 99, 8.0)
    assert [width_of(line) for line in screen.lines] == [79]
    shown.reconnected()
    assert screen.lines == []


@given(st.text(), st.integers(min_value=20, max_value=200))
def test_no_name_makes_a_line_longer_than_the_terminal(name: str, columns: int) -> None:
    text = printable(name)
    assert width_of(cut(text, columns)) <= columns
    assert width_of(cut_middle(text, columns)) <= columns
    if width_of(text) <= columns:
        assert cut(text, columns) == cut_middle(text, columns) == text


def test_hostile_and_wide_names_fit(later: Advance) -> None:
    screen = Screen()
    shown = ProgressLines(screen)
    shown.expect(100 * MIB)
    for name in ("日本語" * 40, "x" * 300, "a\x1b[2J\r\u202eb" * 20):
        shown.begin_file(name, 50 * MIB)
        later(2)
        shown.advance(MIB)
        assert all(width_of(line) < 80 for line in screen.lines), screen.lines
        assert len(screen.lines) == 2
    assert "\u202e" not in screen.getvalue()


def test_looking_costs_little() -> None:
    """Twenty thousand files take more than two seconds: this is less than 2 % of it."""
    screen = Screen()
    shown = ProgressLines(screen)
    shown.expect_items(20_000)
    began = time.process_time()
    for _ in range(20_000):
        shown.advance(100)
        shown.advance_items()
    assert time.process_time() - began < 0.2  # 10 ms on a fast machine


def test_a_terminal_that_has_gone_ends_the_lines(later: Advance) -> None:
    class Gone(Screen):
        def write(self, text: str, /) -> int:
            raise OSError(5, os.strerror(5))

    shown = ProgressLines(Gone())
    later(2)
    shown.advance(1)
    shown.above("a line")
    shown.close()
