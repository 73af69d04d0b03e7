"""Waiting for the effects of other threads and processes."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 60.0
"""Far longer than needed on the slowest machine, so a timeout means a bug."""


def until(holds: Callable[[], object]) -> None:
    """Wait until `holds()` is true. Raises AssertionError after `SECONDS`."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.005)
