"""Commands, help, error messages and exit codes; --help imports no command."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from sfsd import cli
from sfsd.cli import COMMANDS, main
from sfsd.errors import CommandError, ConfigError, JournalDamagedError, UnreachableError


def test_every_command_exists_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name, line in COMMANDS.items():
        assert name in listed
        assert line in listed
        assert main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "Usage: sfsd " + name in shown


def test_every_command_has_a_valid_example() -> None:
    """The options and arguments of each example are parsed."""
    ctx = click.Context(cli.group)
    for name in COMMANDS:
        command = cli.group.get_command(ctx, name)
        assert command is not None
        inner = command.commands if isinstance(command, click.Group) else {}
        for words, one in [(name, command), *((f"{name} {key}", inner[key]) for key in inner)]:
            text, *examples = inspect.cleandoc(one.help or "").split("\n\nExample: ")
            assert text
            assert examples, words
            for example in examples:
                called = f"sfsd {words}"
                assert example.startswith(called)
                arguments = shlex.split(
                    re.split(r" (?:>|\||\|\||&&) ", example.removeprefix(called))[0]
                )
                if one is not command or not inner:
                    one.make_context(words, arguments).close()


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["serve", "--nonsense"], ["user"], ["user", "add"], ["user", "add", "Big"],
     ["user", "add", "operator"], ["audit", "nonsense"]],
)  # fmt: skip
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Usage:" in said.err


@pytest.fixture
def run_failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command that raises an error; return the exit code."""

    def run(error: BaseException, *options: str) -> int:
        @click.command()
        @click.option("--json", is_flag=True, expose_value=False)
        def command() -> None:
            raise error

        monkeypatch.setattr(cli.DaemonCommands, "get_command", lambda *_: command)
        return main(["status", *options])

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("cause", "do this"), 1),
        (UnreachableError("cause", "do this"), 7),
        (CommandError("cause", "do this", exit_code=6), 6),
    ],
)
def test_error_message_is_cause_and_hint(
    run_failing: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    assert run_failing(error) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "sfsd: cause\nhint: do this\n"


@pytest.mark.parametrize(
    ("error", "code", "message", "hint"),
    [
        (CommandError("cause \x1b[2J", "do this", exit_code=6), 6, "cause \x1b[2J", "do this"),
        (OSError(5, "Input/output error", "/srv"), 1, "Input/output error: /srv", "check the disk"),
        (KeyboardInterrupt(), 130, "interrupted", ""),
        (click.UsageError("no such thing"), 2, "no such thing", "run `sfsd status --help`"),
    ],
)
def test_with_json_an_error_is_an_object_on_stderr(
    run_failing: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
    hint: str,
) -> None:
    assert run_failing(error, "--json") == code
    said = capsys.readouterr()
    assert json.loads(said.err) == {"error": {"code": code, "message": message, "hint": hint}}
    assert (said.out, said.err.strip().count("\n"), "\x1b" in said.err) == ("", 0, False)


def test_with_json_the_errors_of_the_parser_are_objects(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, start, where in [
        (["status", "--nonsense", "--json"], "No such option", "sfsd status"),
        (["user", "show", "--json"], "Missing argument", "sfsd user show"),
        (["--json"], "No such option", "sfsd"),
    ]:
        assert main(arguments) == 2
        error = json.loads(capsys.readouterr().err)["error"]
        assert error["message"].startswith(start)
        assert (error["code"], error["hint"]) == (2, f"run `{where} --help`")


def test_damaged_log(run_failing: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_failing(JournalDamagedError("not what was written", seq=17)) == 5
    assert "entry 17" in capsys.readouterr().err


def test_full_disk(run_failing: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_failing(OSError(28, "No space left on device", "/no/such/root")) == 1
    said = capsys.readouterr().err
    assert said.startswith("sfsd: No space left on device: /no/such/root\nhint: `df -h`")
    assert run_failing(OSError(28, "No space left on device", "/proc/self/none")) == 1
    assert "hint: 0 B are free on the disk of /proc/self;" in capsys.readouterr().err


def test_error_messages_are_printable(
    run_failing: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(UnreachableError("says \x1b]0;title\x07\r\u202eevil", "\x9b2J")) == 7
    said = capsys.readouterr().err
    assert said == "sfsd: says \\x1b]0;title\\x07\\r\\u202eevil\nhint: \\x9b2J\n"


def test_interrupt(run_failing: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_bug_ends_in_a_traceback(run_failing: Callable[..., int]) -> None:
    with pytest.raises(ZeroDivisionError):
        run_failing(ZeroDivisionError())


def test_help_imports_neither_cryptography_nor_a_command() -> None:
    script = (
        "import sys; from sfsd.cli import main; main(['--help']);"
        "print(sorted(n for n in sys.modules if n.startswith(('cryptography', 'sfsd.commands.',"
        " 'rich', 'msgpack'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.splitlines()[-1] == "[]"
