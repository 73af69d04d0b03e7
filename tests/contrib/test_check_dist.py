"""The check of built distributions finds a missing module, and one that should not be there."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from contrib.check_dist import DRIVERS, PAGES, DistError, check, modules


def wheel(folder: Path, paths: Iterable[str], pages: Iterable[str] = PAGES) -> Path:
    made = folder / "one.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for path in (*paths, "one.dist-info/METADATA"):
            archive.writestr(path, b"")
        for name in pages:
            archive.writestr(f"one.data/data/share/man/man1/{name}", b"")
    return made


def sdist(folder: Path, paths: Iterable[str]) -> Path:
    made = folder / "one.tar.gz"
    with tarfile.open(made, "w:gz") as archive:
        for path in paths:
            archive.addfile(tarfile.TarInfo(f"one-1.0/{path}"), io.BytesIO())
    return made


def test_modules_and_markers_of_all_packages_are_wanted() -> None:
    wanted = modules()
    assert {"protocol/py.typed", "sfsd/py.typed", "sfsc/py.typed"} <= wanted
    assert {"protocol/codec/merkle.py", "sfsd/cli.py", "sfsc/cli/commands/transfer.py"} <= wanted
    assert not [path for path in wanted if "__pycache__" in path]


def test_a_complete_wheel_and_sdist_pass(tmp_path: Path) -> None:
    check(wheel(tmp_path, modules()), sdist(tmp_path, modules() | set(DRIVERS)))


@pytest.mark.parametrize("change", [{"sfsc/py.typed"}, {"tests/harness.py"}])
def test_a_wheel_that_differs_is_refused(tmp_path: Path, change: set[str]) -> None:
    with pytest.raises(DistError):
        check(wheel(tmp_path, modules() ^ change), sdist(tmp_path, modules() | set(DRIVERS)))


def test_an_sdist_that_lacks_a_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DistError):
        check(wheel(tmp_path, modules()), sdist(tmp_path, modules() - {"sfsd/cli.py"}))


def test_a_wheel_without_manual_pages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DistError):
        check(wheel(tmp_path, modules(), PAGES[1:]), sdist(tmp_path, modules() | set(DRIVERS)))
