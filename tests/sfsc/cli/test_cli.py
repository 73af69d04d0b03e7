"""`sfsc.cli.main`: which modules it imports, its help texts, and its exit codes."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from sfsc.cli import COMMANDS, main
from tests.harness import command, environment
from tests.sfsc.cli.shell import all_commands


def test_every_command_has_a_help_text_and_a_valid_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options and arguments of each example are parsed; the files that it names exist."""
    monkeypatch.chdir(tmp_path)
    for words, one in all_commands():
        assert one.help
        text, *examples = inspect.cleandoc(one.help).split("\n\nExample: ")
        assert text
        assert examples, words
        for example in examples:
            called = f"sfsc {words}"
            assert example.startswith(called)
            arguments = shlex.split(
                re.split(r" (?:>|\||\|\||&&) ", example.removeprefix(called))[0]
            )
            for name in arguments:
                Path(name.rstrip("/")).touch()
            if not isinstance(one, click.Group):
                one.make_context(words, arguments).close()


def test_every_option_has_a_help_text() -> None:
    for words, one in all_commands():
        for option in one.params:
            if isinstance(option, click.Option):
                assert option.help, (words, option.name)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, (_, line) in COMMANDS.items():
        assert name in shown
        assert line.split()[0] in shown


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["frobnicate"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "frobnicate" in captured.err


def test_a_missing_keyring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--home", str(tmp_path / "none"), "ls"]) == 8
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sfsc: ")
    assert "hint: " in captured.err


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_closed_standard_streams(tmp_path: Path) -> None:
    home = environment({"SFSC_HOME": str(tmp_path / "none")})
    line = shlex.join(command("sfsc"))
    for closed, code in ((f"{line} --help >&-", 0), (f"{line} ls <&- >&- 2>&-", 8)):
        done = subprocess.run(
            ["/bin/sh", "-c", closed], stderr=subprocess.PIPE, env=home, check=False
        )
        assert (done.returncode, done.stderr) == (code, b"")


def test_help_imports_no_cryptography() -> None:
    """Help and usage errors are answered before anything slow is imported."""
    code = (
        "import sys; from sfsc.cli import main; main(['--help']);"
        "print([name for name in sys.modules if name.split('.')[0] in"
        " ('cryptography', 'json', 'msgpack', 'rich', 'sqlite3')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_no_command_imports_what_is_imported_while_argon2id_runs() -> None:
    code = (
        "import importlib, sys; from sfsc.cli import COMMANDS\n"
        "for module, _ in COMMANDS.values():"
        " importlib.import_module('sfsc.cli.commands.' + module)\n"
        "print([name for name in sys.modules if name.split('.')[0] in"
        " ('cryptography', 'sqlite3', 'ssl') or name in ('sfsc.api', 'sfsc.keys.home')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
