"""Medians of runs, as JSON lines for programs and as a table for people."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One kind of work, done alternately by the product and by the bare pipe.

    `size` is in bytes, `product` and `pipe` are seconds of each run, whole processes.
    """

    work: str
    size: int
    product: tuple[float, ...]
    pipe: tuple[float, ...]

    @property
    def product_rate(self) -> float:
        """Median megabytes (10^6 bytes) a second."""
        return self.size / 1e6 / statistics.median(self.product)

    @property
    def pipe_rate(self) -> float:
        """Median megabytes (10^6 bytes) a second."""
        return self.size / 1e6 / statistics.median(self.pipe)

    @property
    def ratio(self) -> float:
        """The product's rate in parts of the pipe's: at 1 the product costs nothing."""
        return self.product_rate / self.pipe_rate

    def to_json(self) -> str:
        """One line: the medians, and every run's seconds for whoever doubts them."""
        return json.dumps(
            {
                "work": self.work,
                "bytes": self.size,
                "product_mb_s": round(self.product_rate, 1),
                "pipe_mb_s": round(self.pipe_rate, 1),
                "ratio": round(self.ratio, 3),
                "product_seconds": [round(seconds, 3) for seconds in self.product],
                "pipe_seconds": [round(seconds, 3) for seconds in self.pipe],
            }
        )


def table(rows: Sequence[Row]) -> str:
    """The rows in aligned columns, with the slowest and fastest run beside each median."""
    head = ("work", "sfs MB/s", "(range)", "pipe MB/s", "(range)", "ratio")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.work,
        f"{row.product_rate:.0f}",
        _range(row.size, row.product),
        f"{row.pipe_rate:.0f}",
        _range(row.size, row.pipe),
        f"{row.ratio:.2f}",
    )


def _range(size: int, seconds: Sequence[float]) -> str:
    return f"{size / 1e6 / max(seconds):.0f}-{size / 1e6 / min(seconds):.0f}"
