"""A real daemon, and an account whose file system is tested."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfsc.filesystem import SfsFileSystem
from tests.lying_server import LyingServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out most of the patterns of fsspec's suite, unless SFS_FSSPEC is ``full``."""
    if os.environ.get("SFS_FSSPEC") != "full":
        patterns = [item for item in items if "_glob_edge_cases[" in item.name]
        left_out = set(patterns) - set(patterns[::4])
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingServer]:
    with LyingServer(tmp_path_factory.mktemp("server") / "root") as served:
        yield served


@pytest.fixture(scope="module")
def home(server: LyingServer) -> Path:
    return server.enrol("ada")


@pytest.fixture(scope="module")
def files(home: Path) -> Iterator[SfsFileSystem]:
    """The file system of the account, by its path of SFSC_HOME."""
    system = SfsFileSystem(home=str(home), skip_instance_cache=True)
    yield system
    system.close()
