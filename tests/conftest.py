"""Shared setup: temporary folders, hypothesis profiles, SIGINT, and a server that lies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import harness, temporary
from tests.forked import ForkServer
from tests.lying_server import LyingServer

temporary.use_memory()
if sys.platform == "linux":
    harness.forks = ForkServer()

# Two cores shared by workers make single examples slow at times, so a deadline would flake.
settings.register_profile("quick", deadline=None, max_examples=100)
settings.register_profile("ci", settings.get_profile("quick"), print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "quick")

# A shell starts background jobs with SIGINT ignored, and their children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """Return the workers of ``-n auto``: one more than cores, because most tests wait at times."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture
def disk_folder() -> Iterator[Path]:
    """Yield a folder on the disk; a module that needs one overrides `tmp_path` with it."""
    with temporary.disk_folder() as folder:
        yield folder


@pytest.fixture
def lying_server(tmp_path: Path) -> Iterator[LyingServer]:
    """Yield a real daemon in this process whose replies a test may change."""
    with LyingServer(tmp_path / "lying") as served:
        yield served
