"""Which interpreters are found, and which versions are looked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from contrib.other_pythons import REPOSITORY, SELECTION, find_interpreter, named_versions

THIS = "{}.{}".format(*sys.version_info)


def test_versions_are_those_of_the_classifiers() -> None:
    named = named_versions(REPOSITORY / "setup.cfg")
    assert named[0] == "3.11"
    assert THIS in named


def test_selected_tests_exist() -> None:
    for test in SELECTION:
        file, _, function = test.partition("::")
        assert f"def {function}" in (REPOSITORY / file).read_text()


@pytest.fixture
def shims(tmp_path: Path) -> Path:
    """Return a folder with a shim of pyenv, which fails for a version that is not selected."""
    shim = tmp_path / "shims" / f"python{THIS}"
    shim.parent.mkdir()
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    return shim.parent


def add_version(home: Path, name: str) -> Path:
    """Make this interpreter a version of pyenv in `home`; return its path there."""
    real = home / ".pyenv" / "versions" / f"{THIS}.0" / "bin" / name
    real.parent.mkdir(parents=True)
    real.symlink_to(Path(sys.base_prefix) / "bin" / f"python{THIS}")
    return real


@pytest.mark.skipif(os.name != "posix", reason="makes a shell script")
def test_interpreter_that_does_not_run_is_skipped(tmp_path: Path, shims: Path) -> None:
    home = tmp_path / "home"
    assert find_interpreter(THIS, str(shims), home) is None
    real = add_version(home, "python")
    assert find_interpreter(THIS, str(shims), home) == real
    assert find_interpreter("3.0", str(shims), home) is None


@pytest.mark.skipif(shutil.which("make") is None, reason="runs make")
def test_make_finds_an_interpreter_whose_shim_does_not_run(tmp_path: Path, shims: Path) -> None:
    def recipe() -> str:
        words = ["make", "--dry-run", "--always-make", "venv", f"PYTHON=python{THIS}"]
        path = f"{shims}{os.pathsep}{os.environ['PATH']}"
        settings = {"HOME": str(tmp_path), "PATH": path}
        done = subprocess.run(
            words, env=settings, cwd=REPOSITORY, check=True, capture_output=True, text=True
        )
        return done.stdout

    assert f"python{THIS} -m venv --clear .venv" in recipe().splitlines()
    real = add_version(tmp_path, f"python{THIS}")
    assert f"{real} -m venv --clear .venv" in recipe().splitlines()
