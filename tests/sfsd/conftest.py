"""Fixtures of most daemon tests; some modules override them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sfsd.builders import Daemon, Person, daemon


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path) as running:
        yield running


@pytest.fixture
def ada(served: Daemon) -> Person:
    return served.person("ada")
