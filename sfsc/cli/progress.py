"""Progress of long steps on the terminal: a line for the whole, one for a large file, and one while
the connection is lost."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TextIO

from protocol.codec.tables import width_of
from protocol.codec.terminal_text import human_duration, human_size, printable
from sfsc.session.progress import Progress

SHOWN_AFTER: Final = 1.0
"""Seconds after which a step is long enough to be shown."""
_REDRAWN: Final = 0.1
"""Seconds between two looks at the figures."""
_MEASURED: Final = 5.0
"""Seconds over which the rate is measured."""
_GAP: Final = "  "
_CLEAR: Final = "\r\x1b[K"
_CLEAR_ABOVE: Final = "\x1b[A\x1b[K"


class ProgressLines(Progress):
    """Draws the progress of a command below what the command writes, from its second second on.

    `above` writes lines above it, and `clear` removes it until the next look at the figures. The
    lines never exceed the width of the terminal, so that they can be removed.
    """

    def __init__(self, stream: TextIO, started: Callable[[], object] = lambda: None) -> None:
        """`stream` is a terminal that can move its cursor. `started` is called before the first
        line is drawn."""
        self._stream = stream
        self._started = started
        self._began = time.monotonic()
        self._next = self._began + SHOWN_AFTER
        self._expected = self._done = 0
        self._expected_items = self._done_items = 0
        self._total_known = True
        self._file = ""
        self._file_size: int | None = None
        self._file_done = 0
        self._lost = ""
        self._samples = deque[tuple[float, int, int]]()
        self._drawn: list[str] = []
        self._closed = False

    def expect(self, size: int) -> None:
        self._expected += size

    def advance(self, size: int) -> None:
        self._done += size
        self._file_done += size
        self._look()

    def expect_items(self, count: int, *, more: bool = False) -> None:
        self._expected_items += count
        self._total_known = not more

    def advance_items(self, count: int = 1) -> None:
        self._done_items += count
        self._look()

    def begin_file(self, name: str, size: int | None) -> None:
        self._file, self._file_size, self._file_done = name, size, 0

    def reconnecting(self, cause: str, seconds: float) -> None:
        when = time.strftime("%H:%M:%S", time.localtime(time.time() + seconds))
        self._lost = f"reconnecting …{_GAP}next attempt at {when}{_GAP}{printable(cause)}"
        self._draw(time.monotonic())

    def reconnected(self) -> None:
        self._lost = ""
        self._draw(time.monotonic())

    def above(self, text: str) -> None:
        """Write `text` and a line break above the lines."""
        self._write(f"{self._removal()}{text}\n{self._shown()}")

    def clear(self) -> None:
        """Remove the lines, so that something else can be written or asked."""
        self._write(self._removal())
        self._drawn = []

    def close(self) -> None:
        """Remove the lines, and draw no more. Idempotent."""
        self._closed = True
        self.clear()

    def _look(self) -> None:
        if (now := time.monotonic()) >= self._next:
            self._draw(now)

    def _draw(self, now: float) -> None:
        self._next = now + _REDRAWN
        if self._closed:
            return
        lines = [self._lost] if self._lost else []
        if now - self._began >= SHOWN_AFTER:
            lines = [*self._file_line(), *self._whole_line(now), *lines]
        if lines:
            self._started()
            self._started = lambda: None
        width = shutil.get_terminal_size().columns - 1
        removal = self._removal()
        self._drawn = [cut(line, width) for line in lines]
        self._write(removal + self._shown())

    def _file_line(self) -> list[str]:
        size = self._file_size
        if size is None or self._file_done >= size or self._expected <= size:
            return []  # it is all there is, so the line for the whole says enough
        about = f"{_percent(self._file_done, size)}{_GAP}{_of(self._file_done, size)}{_GAP}"
        width = shutil.get_terminal_size().columns - 1 - len(about)
        return [about + cut_middle(printable(self._file), width)]

    def _whole_line(self, now: float) -> list[str]:
        if not (self._done or self._done_items):
            return []
        self._samples.append((now, self._done, self._done_items))
        while now - self._samples[0][0] > _MEASURED and len(self._samples) > 2:
            self._samples.popleft()
        then, done, items = self._samples[0]
        if len(self._samples) == 1:
            then, done, items = self._began, 0, 0
        seconds = max(now - then, 0.001)
        parts: list[str] = []
        if self._expected_items > 1:
            total = max(self._expected_items, self._done_items)
            known = f" of {total:,}" if self._total_known else ""
            parts.append(f"{self._done_items:,}{known}")
        if self._expected > 0 or not self._expected_items:
            parts.append(_of(self._done, self._expected if self._total_known else 0))
            rate = (self._done - done) / seconds
            parts.append(f"{human_size(int(rate))}/s")
            left, total = self._expected - self._done, self._expected
        else:
            rate = (self._done_items - items) / seconds
            parts.append(f"{rate:,.0f}/s")
            left, total = self._expected_items - self._done_items, self._expected_items
        if total > 0 and self._total_known:
            parts.insert(0, _percent(total - left, total))
            if rate > 0 and left > 0:
                parts.append(f"{human_duration(math.ceil(left / rate))} left")
        return [_GAP.join(parts)]

    def _removal(self) -> str:
        return _CLEAR + _CLEAR_ABOVE * (len(self._drawn) - 1) if self._drawn else ""

    def _shown(self) -> str:
        return "\n".join(self._drawn)

    def _write(self, text: str) -> None:
        if not text:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._closed = True  # the terminal has gone, and with it the lines
            self._drawn = []


def _percent(done: int, total: int) -> str:
    return f"{min(100 * done // total, 100):3}%"


def _of(done: int, total: int) -> str:
    """Return ``1.2 GiB of 3.0 GiB``; without a total, or beyond it, what was done."""
    if total <= 0:
        return human_size(done)
    return f"{human_size(min(done, total))} of {human_size(total)}"


def cut(text: str, width: int) -> str:
    """Return the beginning of printable `text` that takes at most `width` columns."""
    if width_of(text) <= width:
        return text
    while text and width_of(text) > width - 1:
        text = text[:-1]
    return f"{text}…"[: max(width, 0)]


def cut_middle(text: str, width: int) -> str:
    """Return printable `text` in at most `width` columns. Of a longer one the middle is left out:
    the end of a path tells most."""
    if width_of(text) <= width:
        return text
    half = max((width - 1) // 2, 0)
    start, end = text[: len(text) // 2], text[len(text) // 2 :]
    while start and width_of(start) > half:
        start = start[:-1]
    while end and width_of(end) > width - 1 - width_of(start):
        end = end[1:]
    return f"{start}…{end}"[: max(width, 0)]


def progress_lines(started: Callable[[], object]) -> ProgressLines | None:
    """Return what draws the progress on stderr; None if that is no terminal, or one that cannot
    move its cursor. `started` as in `ProgressLines`."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "") == "dumb":
        return None
    if sys.platform == "win32":
        os.system("")  # noqa: S605, S607 - lets the console of Windows understand escapes
    return ProgressLines(sys.stderr, started)
