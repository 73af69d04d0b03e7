"""A served root and two enrolled users, each a real process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Client, Daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """An `sfsd` over a fresh root, accepting connections."""
    served = Daemon(tmp_path / "root")
    served.init()
    with served:
        yield served


@pytest.fixture
def alice(daemon: Daemon, tmp_path: Path) -> Client:
    return daemon.client("alice", tmp_path / "alice")


@pytest.fixture
def bob(daemon: Daemon, tmp_path: Path) -> Client:
    return daemon.client("bob", tmp_path / "bob")
