"""What holds for every command: where it writes, and which options it takes in which places.

The commands are those of the command line, and each is called as in its example. So a new command
is covered by itself.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import sfsc
from sfsc.cli import main, terminal
from sfsc.cli.commands import Context
from tests.lying_server import LyingServer
from tests.sfsc.cli.shell import Shell, all_commands, example_of

EXAMPLES = {
    words: shlex.split(example_of(one).partition(" > ")[0])
    for words, one in all_commands()
    if not isinstance(one, click.Group) or one.invoke_without_command
}
PRINTS_A_SCRIPT = {"completion"}
NEVER_ENDS = {"watch"}


def examples(*excluded: set[str]) -> list[Any]:
    left_out = set().union(*excluded)
    return [pytest.param(EXAMPLES[one], id=one) for one in EXAMPLES if one not in left_out]


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody can be asked, and stdin is empty."""
    monkeypatch.setattr(terminal, "_NAMES", ("/nowhere", "/nowhere"))
    monkeypatch.setattr(terminal, "_stdin_names", list)
    monkeypatch.delenv("SFSC_HOME", raising=False)
    with open(os.devnull) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield


def objects(text: str) -> list[dict[str, Any]]:
    """Return the objects in the lines of a text, each of which has one."""
    found = [json.loads(line) for line in text.splitlines() if line]
    assert all(isinstance(one, dict) for one in found)
    return found


def check_error(said: list[dict[str, Any]], code: int) -> dict[str, Any]:
    """Check that the last object is the error of a command with the exit code `code`."""
    error: dict[str, Any] = said[-1]["error"]
    assert said[-1].keys() == {"error"}
    assert error.keys() == {"code", "message", "hint"}
    assert error["code"] == code
    assert error["message"]
    return error


@pytest.mark.parametrize("words", examples(PRINTS_A_SCRIPT))
def test_options_of_every_command_work_in_every_place(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[Context] = []
    real: Any = click.Context.invoke

    def note(ctx: click.Context, *arguments: Any, **options: Any) -> object:
        seen.append(ctx.ensure_object(Context))
        return real(ctx, *arguments, **options)

    monkeypatch.setattr(click.Context, "invoke", note)
    for place in range(len(words) + 1):
        if place and words[place - 1].startswith("-"):
            continue  # an option and its value
        home = tmp_path / f"home {place}"
        options = ["--home", str(home), "--json", "--utc", "-q"]
        code = main([*words[:place], *options, *words[place:]])
        said = capsys.readouterr()
        assert (seen[-1].home, seen[-1].utc, terminal.console.quiet) == (home, True, True)
        assert objects(said.out) or code
        assert not code or check_error(objects(said.err), code)
    main(["--home", "one", *words, "--home", "two"])
    assert seen[-1].home == Path("two")


@pytest.mark.parametrize("words", [one.split() for one, _ in all_commands()], ids=" ".join)
def test_an_error_of_usage_is_an_object_with_json(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--json", *words, "--frobnicate"], [*words, "--frobnicate", "--json"]):
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert said.out == ""
        error = check_error(objects(said.err), 2)
        assert "--frobnicate" in error["message"]
        assert error["hint"] == f"run `sfsc {' '.join(words)} --help`"
        assert main([*words, "-q", "-v", "--json"]) == 2
        assert "exclude" in check_error(objects(capsys.readouterr().err), 2)["message"]


def test_a_missing_command_is_an_object_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["key"]):
        assert main([*words, "--json"]) == 2
        assert "command" in check_error(objects(capsys.readouterr().err), 2)["message"].lower()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingServer]:
    with LyingServer(tmp_path_factory.mktemp("commands") / "lying") as server:
        yield server


@pytest.fixture(scope="module")
def bob(server: LyingServer) -> Path:
    """The home of bob, who shares report.pdf with ada."""
    return server.enrol("bob", key_type="x25519")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the files that the examples name."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def home(server: LyingServer, bob: Path, folder: Path) -> Path:
    """The home of ada, with the files and users that the examples name."""
    home = server.enrol("ada", key_type="x25519")
    for name in ("report.pdf", "notes.txt", "draft.txt", "a.jpg"):
        (folder / name).write_text(name)
    server.enrol("mallory", key_type="x25519")
    with sfsc.connect(home, auto_rotate=False) as store:
        for name in ("report.pdf", "notes.txt", "draft.txt"):
            store.put(folder / name, name=name)
        store.put(folder / "a.jpg", name="photos/a.jpg")
        proof = store.proof_of(store.put(folder / "a.jpg", name="photos/a.jpg"))
        store.verify_person("bob", sfsc.whoami(bob).fingerprint)
        (folder / "report.receipt").write_bytes(proof)
        (folder / "alice.checkpoint").write_bytes(store.checkpoint())
    (folder / "changes.jsonl").write_text('{"op":"put","name":"new","source":"a.jpg"}\n')
    (folder / "photos").mkdir()
    (folder / "photos" / "b.jpg").write_text("b")
    with sfsc.connect(bob, auto_rotate=False) as store:
        store.put(folder / "report.pdf", name="report.pdf")
        store.share("report.pdf", "ada", trust_first_use=True)
    return home


@pytest.fixture
def files(shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Return a shell in the folder with the files that the examples name."""
    monkeypatch.chdir(folder)
    return shell


def local(words: list[str]) -> list[str]:
    """Return the words of an example without the name of a machine elsewhere."""
    return [one.replace("nas.example:7373,192.168.1.5:7373", "127.0.0.1:1") for one in words]


@pytest.mark.parametrize("words", examples(PRINTS_A_SCRIPT, NEVER_ENDS, {"cat"}))
def test_with_json_every_line_is_an_object(
    words: list[str], files: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["--home", str(files.home), *local(words), "--json", "--verbose"])
    said = capsys.readouterr()
    objects(said.out)
    told = objects(said.err)
    assert all(one.keys() & {"error", "warning", "step"} for one in told)
    assert not code or check_error(told, code)
    assert all("step" not in one or one["step"]["seconds"] >= 0 for one in told)


@pytest.mark.parametrize("words", examples(NEVER_ENDS))
def test_a_quiet_command_says_nothing_but_results_and_what_is_wrong(
    words: list[str], files: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["--home", str(files.home), *local(words), "--quiet"])
    said = capsys.readouterr()
    assert (
        said.err
        if code
        else all(
            line.startswith(("sfsc: warning: ", "hint: ", "warning: "))
            for line in said.err.splitlines()
        )
    )
