"""Counts and reports what became of each file of a command on folders."""

from __future__ import annotations

from collections import Counter

from sfsc.cli import terminal
from sfsc.errors import SfscError
from sfsc.transfer.status import SKIPPED


class Outcomes(terminal.Failures):
    """Failures of a command on folders, and the number of files of each status. A file that is
    skipped is reported on stderr, and with --json as an object on stdout too."""

    def __init__(self) -> None:
        super().__init__()
        self._counts = Counter[str]()

    def add(self, status: str) -> None:
        """Count a file."""
        self._counts[status] += 1

    def __call__(self, what: str, error: SfscError) -> None:
        super().__call__(what, error)
        self.add(SKIPPED)
        if terminal.console.json:
            terminal.answer_json(
                {"name": what, "version": None, "status": SKIPPED, "cause": error.cause}
            )

    def show_totals(self, *statuses: str) -> None:
        """Write a remark with the number of files of each of these."""
        terminal.note(", ".join(f"{self._counts[status]} {status}" for status in statuses))
