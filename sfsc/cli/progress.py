"""Progress of long steps, as a bar on the terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from sfsc.closing import Closing

if TYPE_CHECKING:
    import rich.progress

SHOWN_AFTER: Final = 1.0
"""Seconds after which a step is long enough for a bar."""


class ProgressBar(Closing):
    """Progress of a long step, shown on stderr if that is a terminal, after the first second.

    A context manager; `sfsc.connect` takes it as `progress`.
    """

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._begin = time.monotonic()
        self._expected = 0
        self._done = 0
        self._bar: rich.progress.Progress | None = None

    def expect(self, size: int) -> None:
        """Announce that `size` more bytes will be transferred."""
        self._expected += size

    def advance(self, size: int) -> None:
        """Report that `size` more bytes were transferred."""
        self._done += size
        if self._bar is None and self._shown and time.monotonic() - self._begin > SHOWN_AFTER:
            self._bar = _rich_progress()
            self._bar.start()
            self._bar.add_task("", total=None)
        if self._bar is not None:
            # Ciphertext is slightly longer than the plaintext that was announced.
            self._bar.update(self._bar.task_ids[0], completed=self._done)
            if self._expected:
                total = max(self._expected, self._done)
                self._bar.update(self._bar.task_ids[0], total=total)

    def close(self) -> None:
        """Remove the bar. Idempotent."""
        if self._bar is not None:
            self._bar.stop()


def _rich_progress() -> rich.progress.Progress:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # On a terminal, results are written above the bar; in a pipe they are not changed.
        redirect_stdout=sys.stdout.isatty(),
    )
