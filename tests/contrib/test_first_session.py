"""The recording of the first session: which commands it runs, and what it keeps of a screen."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from contrib.first_session import RECORDING, RecordingError, commands_of, run, shown
from tests.harness import REPOSITORY

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")


def test_the_recording_has_the_commands_of_the_readme() -> None:
    commands = commands_of((REPOSITORY / "README.md").read_text("utf-8"))
    assert commands[0][0] == "operator"
    assert ("alice", "sfsc init -") in commands
    lines = RECORDING.read_text("utf-8").splitlines()
    recorded = [line.partition("] ")[2] for line in lines if line.startswith("[")]
    assert recorded == [*(f"{machine}$ {text}" for machine, text in commands), "done"]


def test_a_screen_is_kept_as_it_is_in_the_end() -> None:
    screen = "\x1b[1m10 %\r90 %\x1b[0m\r\nfile \r\n\r\n"
    assert shown(screen) == ["90 %", "file"]


def test_answers_are_typed_to_their_questions(tmp_path: Path) -> None:
    text = "read -p 'Name: ' name; read -sp 'Name again: ' again; echo; echo $name-$again-$COLUMNS"
    variables = {"PATH": os.environ["PATH"]}
    screen = run(
        f"shopt -s checkwinsize; (:); {text}", tmp_path, variables, [("Name", "a"), ("again", "b")]
    )
    assert shown(screen)[-1] == "a-b-80"
    with pytest.raises(RecordingError, match="exit 3"):
        run("exit 3", tmp_path, variables, [])
