"""Keeps keys and passphrases in memory out of core dumps, which are files on the disk."""

from __future__ import annotations

import contextlib
import sys


def disable_core_dumps() -> None:
    """Set the soft limit of this process's core dumps to 0 bytes. Windows writes none."""
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        with contextlib.suppress(OSError, ValueError):  # a sandbox may refuse it
            resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
