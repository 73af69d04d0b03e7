"""Lists are tables on a terminal and plain columns in a pipe; errors can be JSON."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.tables import (
    Table,
    asks_for_json,
    bold,
    error_json,
    has_colours,
    width_of,
)
from protocol.codec.terminal_text import printable

CELLS = st.lists(st.tuples(st.text(), st.integers(), st.text()), max_size=5)


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")


def shown(stream: io.StringIO, rows: list[tuple[str, int, str]]) -> list[str]:
    with Table("name", "size", "about", stream=stream, right=["size"]) as table:
        for row in rows:
            table.add(*row)
    return stream.getvalue().splitlines()


ROWS = [("naïve", 7, "long text"), ("日本語", 1000, ""), ("a\tb\x1b[2J", -1, "x")]


def test_a_table_on_a_terminal_is_aligned_below_its_headers() -> None:
    assert shown(Terminal(), ROWS) == [
        "NAME         SIZE  ABOUT",
        "naïve           7  long text",
        "日本語       1000",
        "a\\tb\\x1b[2J    -1  x",
    ]
    assert shown(Terminal(), []) == []
    plain = Terminal()
    with Table("", stream=plain) as table:
        table.add("only names")
    assert plain.getvalue() == "only names\n"


def test_a_table_in_a_pipe_is_columns_separated_by_tabs() -> None:
    assert shown(io.StringIO(), ROWS) == [
        "naïve\t7\tlong text",
        "日本語\t1000\t",
        "a\\tb\\x1b[2J\t-1\tx",
    ]


@given(CELLS)
def test_no_text_adds_a_column_or_a_line(rows: list[tuple[str, int, str]]) -> None:
    piped = shown(io.StringIO(), rows)
    cells = [[printable(name), str(size), printable(about)] for name, size, about in rows]
    assert [line.split("\t") for line in piped] == cells
    aligned = shown(Terminal(), rows)
    assert len(aligned) == len(rows) + bool(rows)
    ends = {
        width_of(line.removesuffix(printable(about).rstrip()).rstrip())
        for line, (_, _, about) in zip(aligned[1:], rows, strict=True)
    }
    assert len(ends) <= 1  # the numbers end in one column, whatever the names are


def test_a_long_table_is_shown_before_its_end_and_after_an_error() -> None:
    stream = Terminal()
    table = Table("n", "name", stream=stream)
    for number in range(1000):
        table.add(number, "x" * (number // 500))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1001
    assert lines[0] == "N    NAME"
    assert lines[1:3] + lines[-1:] == ["0", "1", "999  x"]
    failing = Terminal()
    table = Table("n", stream=failing)
    with contextlib.suppress(KeyError), table:
        table.add("one")
        raise KeyError
    assert failing.getvalue() == "N\none\n"


def test_a_row_has_a_cell_for_each_header() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table("a", "b", stream=io.StringIO()).add("only one")


@pytest.mark.parametrize(
    ("terminal", "environment", "coloured"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": ""}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(
    terminal: bool,
    environment: dict[str, str],
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Terminal() if terminal else io.StringIO()
    assert has_colours(stream) == coloured
    assert bold("x", stream) == ("\x1b[1mx\x1b[0m" if coloured else "x")
    with Table("name", stream=stream) as table:
        table.add("x")
    header = "\x1b[1mNAME\x1b[0m\n" if coloured else "NAME\n"
    assert stream.getvalue() == (header if terminal else "") + "x\n"


@given(st.integers(), st.text(), st.text())
def test_an_error_is_one_json_object_on_one_line(code: int, message: str, hint: str) -> None:
    text = error_json(code, message, hint)
    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text) == {"error": {"code": code, "message": message, "hint": hint}}


def test_json_is_asked_for_before_the_end_of_the_options() -> None:
    asked = [["ls", "--json"], ["--json", "x", "--", "y"]]
    assert all(map(asks_for_json, asked))
    not_asked = [[], ["ls", "--jsonl"], ["put", "--", "--json"]]
    assert not any(map(asks_for_json, not_asked))
