"""`sfsc` as a function: what it loads, and how errors become exit codes."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from sfsc.cli import COMMANDS, main
from tests.harness import command, environment


def test_every_command_is_there_with_a_help_of_its_own() -> None:
    for name in COMMANDS:
        module = importlib.import_module(f"sfsc.cli.commands.{name.replace('-', '_')}")
        assert isinstance(module.command, click.Command)
        assert module.command.help


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, line in COMMANDS.items():
        assert name in shown
        assert line.split()[0] in shown


def test_unknown_command_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["frobnicate"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "frobnicate" in captured.err


def test_no_keyring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--home", str(tmp_path / "none"), "ls"]) == 8
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sfsc: ")
    assert "hint: " in captured.err


@pytest.mark.skipif(os.name == "nt", reason="a shell's way of closing a stream")
def test_streams_that_were_closed(tmp_path: Path) -> None:
    home = environment({"SFSC_HOME": str(tmp_path / "none")})
    line = shlex.join(command("sfsc"))
    for closed, code in ((f"{line} --help >&-", 0), (f"{line} ls <&- >&- 2>&-", 8)):
        done = subprocess.run(
            ["/bin/sh", "-c", closed], stderr=subprocess.PIPE, env=home, check=False
        )
        assert (done.returncode, done.stderr) == (code, b"")


def test_help_loads_no_cryptography() -> None:
    """Help and mistakes are answered before anything heavy is imported."""
    code = (
        "import sys; from sfsc.cli import main; main(['--help']);"
        "print([name for name in sys.modules if name.split('.')[0] in"
        " ('cryptography', 'json', 'msgpack', 'rich', 'sqlite3')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_no_command_loads_what_is_loaded_beside_argon2id() -> None:
    code = (
        "import importlib, sys; from sfsc.cli import COMMANDS\n"
        "for name in COMMANDS:"
        " importlib.import_module('sfsc.cli.commands.' + name.replace('-', '_'))\n"
        "print([name for name in sys.modules if name.split('.')[0] in"
        " ('cryptography', 'sqlite3', 'ssl') or name in ('sfsc.api', 'sfsc.keys.home')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
