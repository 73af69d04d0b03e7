"""A home whose agent has its socket in a folder of the test, and which ends with the test."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfsc.agent import client

if sys.platform == "win32":  # no Unix sockets
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private runtime folder with a short path, as sockets need."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        for name in ("SFSC_AGENT", "SFSC_AGENT_TIMEOUT"):
            monkeypatch.delenv(name, raising=False)
        yield Path(folder)


@pytest.fixture
def home(runtime: Path, tmp_path: Path) -> Iterator[Path]:
    assert runtime.is_dir()
    yield tmp_path
    client.stop(tmp_path)
