"""Statements of a TOML document with their line numbers, and all of its syntax errors.

`tomllib` parses; it reports no lines for what it accepts. A statement ends at a line break, unless
a multi-line string or array is open. So each one is parsed on its own, and one that is malformed
does not hide those after it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Final

from protocol.codec.values import Value

_OPEN: Final = "(at end of document)"
"""End of tomllib's message if more text might complete the statement."""
_PLACE: Final = re.compile(r" \(at [^()]*\)$")
_MOST_LINES: Final = 200
"""Lines of one statement, so that an open bracket does not cost time without limit."""
_HEADER: Final = re.compile(r"\s*#\s*\[\s*([A-Za-z0-9_-]+)\s*\]\s*(?:#.*)?")


class Statement(Value):
    """A setting or a table header. `line` is the number of its first line, from 1.

    `path` is its full name; `value` is None for a header, which has two brackets if it `is_list`.
    `commented_table` is the name in the last line before it that is a table header behind a ``#``,
    if no real header comes between; else empty.
    """

    line: int
    path: tuple[str, ...]
    value: object = None
    is_header: bool = False
    is_list: bool = False
    commented_table: str = ""


class SyntaxProblem(Value):
    """A line that is not TOML, and why."""

    line: int
    cause: str


def read_statements(text: str) -> Iterator[Statement | SyntaxProblem]:
    """Yield the statements and the syntax errors of a document in order.

    Inline tables and dotted names are yielded setting by setting. Neither a repeated name nor a
    repeated table is noticed. Settings below a malformed header are left out.
    """
    lines = [f"{line}\n" for line in text.split("\n")]
    table: tuple[str, ...] | None = ()  # None below a header that is not TOML
    commented = ""
    at = 0
    while at < len(lines):
        first, line = at, lines[at].strip()
        if not line or line.startswith("#"):
            if (header := _HEADER.fullmatch(line)) is not None:
                commented = header[1]
            at += 1
            continue
        parsed, at = _parse_one(lines, at)
        if isinstance(parsed, str):
            yield SyntaxProblem(first + 1, parsed)
            if line.startswith("["):
                table = None
        elif line.startswith("["):
            table, is_list = _header(parsed)
            commented = ""
            yield Statement(first + 1, table, is_header=True, is_list=is_list)
        elif table is not None:
            for path, value in _flattened(parsed, table):
                yield Statement(first + 1, path, value, commented_table=commented)


def _parse_one(lines: list[str], at: int) -> tuple[dict[str, object] | str, int]:
    """Parse the statement that begins in line `at`. Return it, or its error, and the next line."""
    chunk = ""
    for end in range(at, min(at + _MOST_LINES, len(lines))):
        chunk += lines[end]
        try:
            return tomllib.loads(chunk), end + 1
        except tomllib.TOMLDecodeError as exc:
            error = str(exc)
            if not error.endswith(_OPEN):
                break
        except RecursionError:
            error = "brackets too deep"
            break
    else:
        error = "a string or an array that is not closed"
    return _PLACE.sub("", error), at + 1


def _header(parsed: dict[str, object]) -> tuple[tuple[str, ...], bool]:
    """Return the name in a parsed header, and whether it has two brackets."""
    path: list[str] = []
    inner: object = parsed
    while isinstance(inner, dict) and inner:
        ((name, inner),) = inner.items()
        path.append(name)
    return tuple(path), isinstance(inner, list)


def _flattened(
    parsed: dict[str, object], table: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], object]]:
    for name, value in parsed.items():
        if isinstance(value, dict) and value:
            yield from _flattened(value, (*table, name))
        else:
            yield (*table, name), value
