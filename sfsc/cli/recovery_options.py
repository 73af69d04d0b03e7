"""The account and the recovery code of a command: typed row by row, or read from a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import click

from protocol.codec.values import Value, field
from sfsc.cli import terminal
from sfsc.errors import Mistyped, UsageError

_Command = Callable[..., Any]


def recovery_options(command: _Command) -> _Command:
    """Add --from FILE and --show-code."""
    sheet = click.option(
        "--from",
        "sheet",
        type=click.File("rb"),
        metavar="FILE",
        help="Read account and recovery code from FILE, what `key recovery` wrote; `-`: stdin.",
    )
    show = click.option("--show-code", is_flag=True, help="Show the recovery code as it is typed.")
    return sheet(show(command))


class RecoveryInput(Value):
    """Account and recovery code as the user gives them: of a file, or None to ask for them."""

    shown: bool
    account: str | None = None
    code: str | None = field(default=None, repr=False)

    @classmethod
    def open(cls, sheet: BinaryIO | None, *, show_code: bool) -> RecoveryInput:
        """Read the file of --from. Raises `UsageError`."""
        if sheet is None:
            return cls(show_code)
        from sfsc.keys.recovery_sheet import MAX_SHEET, read_recovery_sheet

        data = sheet.read(MAX_SHEET + 1)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as exc:
            hint = "scan a QR code with a phone, and save the text that it shows"
            raise UsageError("this file is no text", hint) from exc
        if len(data) > MAX_SHEET:
            raise UsageError("this file is too long", "use what `sfsc key recovery` wrote")
        return cls(show_code, *read_recovery_sheet(text))

    def ask_account(self) -> str:
        """Return the account of the file, else ask for it. Raises `UsageError`."""
        return self.account or _ask_rows("Account", is_code=False, shown=True)

    def ask_code(self, what: str = "Recovery code") -> str:
        """Return the code of the file, else ask for it. Raises `UsageError`."""
        return self.code or _ask_rows(what, is_code=True, shown=self.shown)


def _ask_rows(what: str, *, is_code: bool, shown: bool) -> str:
    """Ask for one row after the other; at a terminal, again for a row that is mistyped. An empty
    answer shows what is typed from then on, if it was not shown before."""
    from sfsc.keys.recovery_sheet import TypedRows

    rows, number = TypedRows(is_code=is_code), 1
    while rows.missing:
        row = ""
        if not shown:
            row = terminal.ask_secret(f"{what}, row {number} (not shown; Enter alone shows it): ")
            shown = not row.strip()
        if shown:
            row = terminal.ask(f"{what}, row {number}: ")
        if not row.strip():
            raise UsageError(f"the {what.lower()} is incomplete", "type all rows, as printed")
        try:
            rows.add(row)
        except Mistyped as exc:
            if not sys.stdin.isatty():
                raise
            terminal.report(exc)
            continue
        number += 1
    return rows.text
