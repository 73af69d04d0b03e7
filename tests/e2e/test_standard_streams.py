"""Both programs with standard streams that are closed, full, or a pipe that nobody reads."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.accounts import new_root
from tests.harness import Client, command, environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/full")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_root(tmp_path_factory.mktemp("streams") / "root").root


def run_in_shell(root: Path, words: str, redirections: str, own: dict[str, str]) -> tuple[int, str]:
    """Run a command line in a shell; return its exit code and what stderr received."""
    program, *arguments = words.split()
    line = f"{shlex.join([*command(program), *arguments])} {redirections}"
    done = subprocess.run(
        ["bash", "-c", line + "; exit ${PIPESTATUS[0]}"],
        capture_output=True,
        env=environment({"SFSD_ROOT": str(root), "SFSC_HOME": str(root), **own}),
        check=False,
        timeout=60,
    )
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("own", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", ["sfsd status", "sfsd --help", "sfsc --version"])
def test_full_stdout(root: Path, words: str, own: dict[str, str]) -> None:
    code, stderr = run_in_shell(root, words, ">/dev/full", own)
    assert code == 1
    first, hint = stderr.splitlines()
    assert first.endswith(": cannot write to stdout: No space left on device")
    assert hint.startswith("hint: ")


@pytest.mark.parametrize(
    ("words", "code"),
    [("sfsd status", 0), ("sfsd nonsense", 2), ("sfsc --help", 0), ("sfsc whoami", 8)],
)
@pytest.mark.parametrize("redirections", ["2>/dev/full", ">&- 2>&- <&-"])
def test_exit_code_without_streams(root: Path, words: str, redirections: str, code: int) -> None:
    assert run_in_shell(root, words, redirections, {}) == (code, "")


@pytest.mark.parametrize("words", ["sfsd status", "sfsc --help"])
def test_stdout_that_nobody_reads(root: Path, words: str) -> None:
    code, stderr = run_in_shell(root, words, "| true", {})
    assert code in {0, 1}  # 0 if it wrote everything before the reader ended
    assert stderr == ""


def test_exposed_keyring_is_one_line_on_stderr(root: Path, alice: Client) -> None:
    (alice.home / "keyring").chmod(0o644)
    result = alice.run("whoami")
    assert len(result.stderr.splitlines()) == 1
    assert "keyring" in result.stderr
    assert b"alice" in result.stdout
