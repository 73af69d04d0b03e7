"""Fixtures: a served root and two enrolled users, all real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.accounts import enrolled, new_root
from tests.harness import Client, Daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Yield an `sfsd` with a new root that accepts connections."""
    with new_root(tmp_path / "root") as served:
        yield served


@pytest.fixture
def alice(daemon: Daemon, tmp_path: Path) -> Client:
    return enrolled(daemon, "alice", tmp_path / "alice")


@pytest.fixture
def bob(daemon: Daemon, tmp_path: Path) -> Client:
    return enrolled(daemon, "bob", tmp_path / "bob")
