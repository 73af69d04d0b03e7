"""For what another thread or process brings about, in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 60.0
"""Much more than it takes on the slowest machine: who waits in vain has found a mistake."""


def until(holds: Callable[[], object]) -> None:
    """Wait for it to be true. Raises AssertionError after `SECONDS`."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, "waited for in vain"
        time.sleep(0.005)
