"""Options of every command, and how a command shows its results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sfsc
from protocol.codec.tables import Table
from protocol.codec.terminal_text import human_time
from protocol.codec.values import Mutable, Value
from sfsc.cli import terminal
from sfsc.closing import Closing

if TYPE_CHECKING:
    from sfsc.store import Store


class Rows(Closing):
    """A list: a table on a terminal, columns in a pipe, or objects with --json. A context
    manager."""

    def __init__(self, headers: Sequence[str], right: Collection[str]) -> None:
        self._table = Table(*headers, stream=sys.stdout, right=right, write=terminal.write)

    def add(self, value: Value | Mutable | Mapping[str, object], *cells: object) -> None:
        """Write one row, `cells`, or `value` with --json."""
        if terminal.console.json:
            terminal.answer_json(value)
        else:
            self._table.add(*cells)

    def close(self) -> None:
        """Write what was kept to measure the columns. Idempotent."""
        self._table.close()


class Context(Mutable):
    """Options of every command: the folder of the keyring (None: the usual one), and whether times
    are shown in UTC instead of local time. How results are written is in `terminal.console`."""

    home: Path | None = None
    utc: bool = False

    @property
    def json(self) -> bool:
        """Whether to answer in JSON."""
        return terminal.console.json

    def time(self, seconds: int) -> str:
        """Format Unix seconds as `human_time` does, as the user wants to see them."""
        return human_time(seconds, local=not self.utc)

    def until(self, expires: int) -> str:
        """Return `` until 2027-01-31 23:59:59Z`` for an access that ends, "" if it does not (0)."""
        return f" until {self.time(expires)}" if expires else ""

    def table(self, *headers: str, right: Collection[str] = ()) -> Rows:
        """Return a list of rows with these columns; `right` are those aligned to the right."""
        return Rows(headers, right)

    def connect(
        self,
        *,
        auto_rotate: bool | None = None,
        passphrase: Callable[[], str] | None = None,
        limit_rate: int | None = None,
        to_stdout: bool = False,
    ) -> Store:
        """Log in and return the open store, which shows its progress on a terminal. Asks for the
        passphrase if the keyring needs one, by `passphrase` if that is given. With `to_stdout`,
        contents are written there: if that is a terminal, no progress is."""
        hidden = to_stdout and sys.stdout.isatty()
        return sfsc.connect(
            self.home,
            passphrase=passphrase or terminal.passphrase_source(),
            progress=None if hidden else terminal.show_progress(),
            auto_rotate=auto_rotate,
            limit_rate=limit_rate,
        )

    def answer(self, value: Value | Mutable | Mapping[str, object], *lines: str) -> None:
        """Write the result to stdout: `value` with --json, else `lines`."""
        if self.json:
            terminal.answer_json(value)
        else:
            terminal.answer("\n".join(lines))

    def confirm(self, value: Value | Mutable | Mapping[str, object], *lines: str) -> None:
        """Report a change: `value` to stdout with --json, else `lines` to stderr, unless --quiet
        is given."""
        if self.json:
            terminal.answer_json(value)
        else:
            terminal.note("\n".join(lines))


def name_table(context: Context, time: str, *, long: bool) -> Rows:
    """Return a list of names, and with `long` before them version, size and `time`."""
    if not long:
        return context.table("")
    return context.table("version", "size", time, "name", right=("version", "size"))
