"""Results as people and scripts read them: a table on a terminal, plain columns in a pipe.

Both `sfsc` and `sfsd` show their lists this way, and their errors with --json.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Final, Self, TextIO

from protocol.codec.terminal_text import printable

_MEASURED: Final = 500
"""Rows that are read before the first is shown: they decide the width of the columns, and a list of
any length needs only the memory of these."""
_GAP: Final = "  "


def has_colours(stream: TextIO) -> bool:
    """Return whether colours may be written to `stream`: it is a terminal that has them, and the
    user has not set NO_COLOR (https://no-color.org)."""
    return (
        stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") != "dumb"
    )


def bold(text: str, stream: TextIO) -> str:
    """Return `text` in bold type if `stream` has colours, else unchanged."""
    return f"\x1b[1m{text}\x1b[0m" if has_colours(stream) else text


def width_of(text: str) -> int:
    """Return the columns that printable `text` takes on a terminal: two for a wide character."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # takes 5 ms

    return cell_len(text)


class Table:
    """Writes rows of cells, each as soon as it can.

    On a terminal: columns that are aligned, below a line with their headers; no such line if there
    are no rows, or if all headers are empty. Nothing is cut off: a line that is too long for the
    terminal goes on in the next, so the longest column belongs at the end. In a pipe: cells
    separated by tabs, one row a line, no header. Cells are made `printable`, so none has a tab or a
    line break.

    A context manager: the end writes the rows that were not written yet, also after an error.
    """

    def __init__(
        self,
        *headers: str,
        stream: TextIO,
        right: Collection[str] = (),
        write: Callable[[str], object] | None = None,
    ) -> None:
        """`right` has the headers of the columns that are aligned to the right, such as numbers.
        `write` writes lines to `stream`; by default its own method does."""
        self._headers = headers
        self._right = [header in right for header in headers]
        self._widths = list(map(len, headers))
        self._stream = stream
        self._write = write or stream.write
        self._aligned = stream.isatty()
        self._waiting: list[tuple[str, ...]] = []
        self._measured = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, *cells: object) -> None:
        """Write one row, or keep it until the widths are known. There are as many cells as headers;
        None is an empty cell. Raises ValueError for another number, and what `write` raises."""
        if len(cells) != len(self._headers):
            raise ValueError(f"{len(cells)} cells for {len(self._headers)} columns")
        row = tuple("" if cell is None else printable(str(cell)) for cell in cells)
        if not self._aligned:
            self._write("\t".join(row) + "\n")
        elif self._measured:
            self._write(self._line(row))
        else:
            self._waiting.append(row)
            if len(self._waiting) == _MEASURED:
                self.close()

    def close(self) -> None:
        """Write the rows that were kept. Idempotent; more rows may follow."""
        if not self._waiting:
            return
        rows, self._waiting = self._waiting, []
        if not self._measured:
            self._measured = True
            for row in rows:
                self._widths = list(map(max, self._widths, map(width_of, row)))
            if any(self._headers):
                header = self._line(tuple(header.upper() for header in self._headers))
                self._write(bold(header.removesuffix("\n"), self._stream) + "\n")
        for row in rows:
            self._write(self._line(row))

    def _line(self, row: tuple[str, ...]) -> str:
        shown: list[str] = []
        for cell, width, right in zip(row, self._widths, self._right, strict=True):
            padding = " " * (width - width_of(cell))
            shown.append(padding + cell if right else cell + padding)
        return _GAP.join(shown).rstrip() + "\n"


def error_json(code: int, message: str, hint: str) -> str:
    """Return an error as --json shows it on stderr: one JSON object, in ASCII, without a line
    break. `code` is the exit code; `hint` may be empty."""
    import json  # takes a millisecond, and hardly any command needs it

    error = {"code": code, "message": message, "hint": hint}
    return json.dumps({"error": error}, separators=(",", ":"))


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Return whether --json is among the arguments of a command, before a ``--`` that ends the
    options. Their parser may have failed before it got there."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options
