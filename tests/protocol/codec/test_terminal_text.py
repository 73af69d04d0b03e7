"""Text from elsewhere is harmless on a terminal, and any signed time can be shown."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Iterator
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.terminal_text import (
    counted,
    human_duration,
    human_size,
    human_time,
    printable,
    printable_lines,
    reorders,
)

HOSTILE = [
    ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
    ("a\rb", "a\\rb"),
    ("tab\tnewline\n", "tab\\tnewline\\n"),
    ("\u202egpj.exe", "\\u202egpj.exe"),
    ("\u2066x\u2069", "\\u2066x\\u2069"),
    ("\u009b31m", "\\x9b31m"),
    ("\ufeffbom", "\\ufeffbom"),
    ("\ue000private", "\\ue000private"),
    ("\u2028line", "\\u2028line"),
    ("no\u00a0break", "no\\xa0break"),
    ("\ud800", "\\ud800"),
    ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
]


@pytest.mark.parametrize(("text", "shown"), HOSTILE)
def test_hostile_text_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語", "עברית", "emoji 🎉", "a b"])
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert printable(text) == text


@given(st.text())
def test_printable_text_moves_no_cursor(text: str) -> None:
    shown = printable(text)
    assert all(unicodedata.category(char)[0] != "C" for char in shown)
    assert not any(unicodedata.category(char) in ("Zl", "Zp") for char in shown)


@given(st.text())
def test_text_without_control_and_bidi_characters_is_shown_in_its_order(text: str) -> None:
    unsafe = {"\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F))}
    unsafe |= set(map(chr, range(0x2066, 0x206A)))
    assert reorders(text) == any(
        unicodedata.category(char) == "Cc" or char in unsafe for char in text
    )
    assert not any(map(reorders, ("plain", "עברית", "日本　語", "👩‍💻", "نمی‌خواهم")))


def test_lines_stay_lines() -> None:
    assert printable_lines("a\n\u2014 b\x1b[2J\r\n") == "a\n\u2014 b\\x1b[2J\\r\n"


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
def test_human_time(seconds: int, shown: str) -> None:
    assert human_time(seconds) == shown


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """The time zone of the test's parameter, as that of the machine."""
    if sys.platform == "win32":
        pytest.skip("Windows takes its zone from the system only")
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("zone", "seconds", "shown"),
    [
        ("CET-1CEST,M3.5.0,M10.5.0/3", 1_764_000_000, "2025-11-24 17:00:00+01:00"),
        ("CET-1CEST,M3.5.0,M10.5.0/3", 1_752_000_000, "2025-07-08 20:40:00+02:00"),
        ("NPT-5:45", 1_764_000_000, "2025-11-24 21:45:00+05:45"),
        ("UTC0", 1_764_000_000, "2025-11-24 16:00:00Z"),
        ("NPT-5:45", 253_402_300_799, "9999-12-31 23:59:59Z"),
        ("EST5", -62_135_596_800, "0001-01-01 00:00:00Z"),
        ("EST5", 2**53, "9007199254740992 s"),
    ],
    indirect=["zone"],
)
@pytest.mark.usefixtures("zone")
def test_local_time_has_its_zone_and_can_be_read_again(seconds: int, shown: str) -> None:
    assert human_time(seconds, local=True) == shown
    if not shown.endswith("s"):
        assert datetime.fromisoformat(shown).timestamp() == seconds


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1 << 20, "1.0 MiB"),
        (5 << 40, "5.0 TiB"),
        (1 << 60, "1024.0 PiB"),
    ],
)
def test_human_size(size: int, shown: str) -> None:
    assert human_size(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600 + 59, "1 h"),
        (7500, "2 h 5 min"),
        (86_400 + 5, "1 d"),
        (4 * 86_400 + 3 * 3600 + 61, "4 d 3 h"),
    ],
)
def test_human_duration(seconds: float, shown: str) -> None:
    assert human_duration(seconds) == shown


def test_counted() -> None:
    assert [counted(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert [counted(n, "entry", "entries") for n in (1, 2)] == ["1 entry", "2 entries"]
