"""fsspec's own tests of a file system, against a real daemon.

All of them run with SFS_FSSPEC=full, else every fourth of those that differ only in a pattern.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import Any

import pytest
from fsspec.tests import abstract

from sfsc.filesystem import SfsFileSystem

Join = Callable[..., str]


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc]  # fsspec has no types
    """What the suite asks for. Trees that its tests only read are stored once for all of them."""

    @pytest.fixture
    def fs(self, files: SfsFileSystem) -> SfsFileSystem:
        return files

    @pytest.fixture
    def fs_path(self) -> str:
        return "suite"

    @pytest.fixture
    def fs_join(self) -> Join:
        return posixpath.join

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self, fs: Any, fs_join: Join) -> str:
        return self._stored_once(fs, "suite/bulk", self._bulk_operations_scenario_0, fs_join)

    @pytest.fixture
    def fs_glob_edge_cases_files(self, fs: Any, fs_join: Join) -> str:
        return self._stored_once(fs, "suite/glob", self._glob_edge_cases_files, fs_join)

    def _stored_once(
        self, fs: SfsFileSystem, path: str, made: Callable[..., str], join: Join
    ) -> str:
        source = join(path, "source")
        return source if fs.isdir(source) else made(fs, join, path)


class TestCopy(Fixtures, abstract.AbstractCopyTests):  # type: ignore[misc]
    pass


class TestGet(Fixtures, abstract.AbstractGetTests):  # type: ignore[misc]
    pass


class TestPut(Fixtures, abstract.AbstractPutTests):  # type: ignore[misc]
    pass


class TestOpen(Fixtures, abstract.AbstractOpenTests):  # type: ignore[misc]
    pass


class TestPipe(Fixtures, abstract.AbstractPipeTests):  # type: ignore[misc]
    pass
