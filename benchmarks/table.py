"""Medians of runs, as JSON lines for programs and as a table for people."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One kind of work, done alternately by the product and by something to compare it with.

    One run moves `amount` of `unit`; `product` and `beside` are seconds of each run. `goal` is the
    least `ratio` wanted, `limit` the most seconds a run of the product may take.
    """

    work: str
    amount: float
    unit: str
    product: tuple[float, ...]
    beside: tuple[float, ...]
    name: str = "pipe"
    goal: float | None = None
    limit: float | None = None

    @property
    def product_rate(self) -> float:
        """Median `unit` a second."""
        return self.amount / statistics.median(self.product)

    @property
    def beside_rate(self) -> float:
        """Median `unit` a second."""
        return self.amount / statistics.median(self.beside)

    @property
    def ratio(self) -> float:
        """The product's rate in parts of the other's: at 1 it costs nothing."""
        return self.product_rate / self.beside_rate

    @property
    def reached(self) -> bool | None:
        """Whether this run was as fast as is wanted, None where nothing is."""
        if self.limit is not None:
            return statistics.median(self.product) <= self.limit
        return None if self.goal is None else self.ratio >= self.goal

    def to_json(self) -> str:
        """One line: the medians, and every run's seconds for whoever doubts them."""
        return json.dumps(
            {
                "work": self.work,
                "amount": self.amount,
                "unit": self.unit,
                "sfs": round(self.product_rate, 2),
                "beside": self.name,
                "beside_rate": round(self.beside_rate, 2),
                "ratio": round(self.ratio, 3),
                "goal": self.goal,
                "limit_seconds": self.limit,
                "reached": self.reached,
                "sfs_seconds": [round(seconds, 3) for seconds in self.product],
                "beside_seconds": [round(seconds, 3) for seconds in self.beside],
            }
        )


def table(rows: Sequence[Row]) -> str:
    """The rows in aligned columns, with the slowest and fastest run beside each median."""
    head = ("work", "sfs", "(range)", "beside", "rate", "(range)", "ratio", "goal", "")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = (
        "  ".join(
            cell.ljust(width) if column in (0, 3) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    goal = "" if row.goal is None else f"{row.goal:g}"
    return (
        row.work,
        f"{_short(row.product_rate)} {row.unit}/s",
        _range(row.amount, row.product),
        row.name,
        f"{_short(row.beside_rate)}",
        _range(row.amount, row.beside),
        f"{row.ratio:.2f}",
        goal if row.limit is None else f"{row.limit:g} s",
        {True: "reached", False: "not reached", None: ""}[row.reached],
    )


def _range(amount: float, seconds: Sequence[float]) -> str:
    return f"{_short(amount / max(seconds))}-{_short(amount / min(seconds))}"


def _short(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 20 else f"{rate:.1f}"
