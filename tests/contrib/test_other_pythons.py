"""Which interpreters are found, and which versions are looked for."""

from __future__ import annotations

import os
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


@pytest.mark.skipif(os.name != "posix", reason="makes a shell script")
def test_interpreter_that_does_not_run_is_skipped(tmp_path: Path) -> None:
    """A shim of pyenv fails for a version that is not selected."""
    shims, home = tmp_path / "shims", tmp_path / "home"
    shims.mkdir()
    shim = shims / f"python{THIS}"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    assert find_interpreter(THIS, str(shims), home) is None
    real = home / ".pyenv" / "versions" / f"{THIS}.0" / "bin" / "python"
    real.parent.mkdir(parents=True)
    real.symlink_to(Path(sys.base_prefix) / "bin" / f"python{THIS}")
    assert find_interpreter(THIS, str(shims), home) == real
    assert find_interpreter("3.0", str(shims), home) is None
