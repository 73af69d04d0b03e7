"""A forked program does what a new process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import harness
from tests.forked import MAX_REQUEST, ForkServer
from tests.harness import command, environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only forked on Linux")
SECONDS = 60.0


@pytest.fixture
def forks() -> ForkServer:
    """The one that the other tests of this process use."""
    assert harness.forks is not None
    return harness.forks


@pytest.mark.parametrize(
    ("program", "arguments", "stdin"),
    [
        ("sfsc", ["--version"], b""),
        ("sfsc", ["get", "--help"], b""),
        ("sfsc", ["ls", "naïve \udcff"], b""),
        ("sfsc", ["init", "-"], b"sfs://nonsense \xff\n"),
        ("sfsc", ["rotate", "--nonsense"], b""),
        ("sfsd", ["status"], b""),
        ("sfsd", ["fsck", "--root", "relative"], b"x" * 200_000),
    ],
)
def test_the_answer_is_that_of_a_new_process(
    forks: ForkServer, tmp_path: Path, program: str, arguments: list[str], stdin: bytes
) -> None:
    own = {"SFSC_HOME": "home", "SFSD_ROOT": "root", "COLUMNS": "50", "TZ": "Asia/Tokyo"}
    variables = environment(own)
    found = forks.run(program, arguments, variables, stdin, tmp_path, SECONDS)
    new = subprocess.run(
        [*command(program), *arguments],
        input=stdin,
        capture_output=True,
        env=variables,
        cwd=tmp_path,
        check=False,
    )
    assert found == (new.returncode, new.stdout, new.stderr)


def test_a_process_waits_for_its_input_and_can_be_killed(forks: ForkServer) -> None:
    (fed, feeding), (out, output) = os.pipe(), os.pipe()
    process = forks.start("sfsc", ["init", "-"], environment({}), (fed, output, output))
    os.close(fed)
    os.close(output)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    assert process.poll() is None
    process.kill()
    assert process.wait(SECONDS) == process.poll() == -signal.SIGKILL
    assert os.read(out, 1) == b"", "nothing else has its output"
    os.close(feeding)
    os.close(out)


def test_a_program_that_takes_too_long_is_killed(forks: ForkServer, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless")
    arguments = ["init", "--import-key", str(tmp_path / "endless"), "-"]
    with pytest.raises(subprocess.TimeoutExpired):
        forks.run("sfsc", arguments, environment({}), b"sfs://nonsense", None, 0.2)


def test_what_an_interpreter_reads_at_its_start_and_long_requests_need_a_new_process(
    forks: ForkServer,
) -> None:
    assert forks.serves(["ls"], environment({}))
    assert not forks.serves(["ls"], environment({"LC_ALL": "tr_TR"}))
    assert not forks.serves(["ls"], environment({"PYTHONUTF8": "0"}))
    assert not forks.serves(["x" * MAX_REQUEST], environment({}))
