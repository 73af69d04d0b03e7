"""Output to a terminal, and the sources of a passphrase."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sfsc
from sfsc.cli import terminal
from sfsc.errors import (
    KeyringError,
    LocalError,
    NotFound,
    NotRegularFile,
    SfscError,
    Tampered,
)
from tests.lying_server import LyingServer
from tests.terminal import converse


@given(st.dictionaries(st.text(), st.text()))
def test_json_is_one_ascii_line(value: dict[str, str]) -> None:
    stream = io.StringIO()
    before, sys.stdout = sys.stdout, stream
    try:
        terminal.answer_json(value)
    finally:
        sys.stdout = before
    written = stream.getvalue()
    assert written.isascii()
    assert written.count("\n") == 1
    assert json.loads(written) == value


@pytest.mark.skipif(os.name == "nt", reason="no such limit")
def test_a_partly_written_private_file_is_removed(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "key"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(LocalError):
            terminal.write_private(path, bytes(200))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not path.exists()
    terminal.write_private(path, bytes(200))
    assert path.read_bytes() == bytes(200)


def test_an_error_is_reported_as_cause_then_hint(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.report(NotFound("there is no file \x1b[2J", "look \r again"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "sfsc: there is no file \\x1b[2J\nhint: look \\r again\n"


@pytest.mark.parametrize(
    ("errors", "worst"),
    [
        ([NotFound("a"), Tampered("b"), LocalError("c")], Tampered),
        ([Tampered("a"), NotFound("b")], Tampered),
        ([NotFound("a"), LocalError("b")], NotFound),
        ([NotRegularFile("a"), LocalError("b")], LocalError),
    ],
)
def test_tampering_decides_the_exit_code_otherwise_the_first_error(
    errors: list[SfscError], worst: type[SfscError]
) -> None:
    failures = terminal.Failures()
    failures.check()
    for at, error in enumerate(errors):
        failures(f"file {at}", error)
    with pytest.raises(worst):
        failures.check()


@pytest.mark.parametrize("name", ["SFSC_PASSPHRASE", "SFSC_PASSPHRASE_FILE"])
def test_no_prompt_if_the_environment_names_the_passphrase(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "x")
    assert terminal.passphrase_source() is None
    assert terminal.new_passphrase() is None


def test_no_prompt_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SFSC_PASSPHRASE", "SFSC_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO("typed\n"))
    monkeypatch.setattr(terminal, "_NAMES", ("/nowhere", "/nowhere"))
    source = terminal.passphrase_source()
    assert source is not None
    with pytest.raises(KeyringError):
        source()
    with pytest.raises(SfscError):
        terminal.new_passphrase()
    assert not terminal.is_interactive()
    assert not terminal.confirmed("Really?")
    assert (terminal.ask("Code: "), terminal.ask("Code: ")) == ("typed", "")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a user whose keyring has the passphrase ``pass é``."""
    folder = tmp_path_factory.mktemp("locked")
    with LyingServer(folder / "lying") as server:
        home = folder / "home"
        sfsc.enrol(server.invite("ada"), home=home, key_type="x25519", passphrase="pass é")
        yield home


def test_questions_go_to_the_terminal_whatever_stdin_and_stderr_are(locked: Path) -> None:
    asked = [("Passphrase: ", "pass é")]
    done = converse(locked, "put", "-", "--name", "f", answers=asked, stdin=b"content")
    assert done.screen == "Passphrase: \r\n"  # what was typed is not shown
    assert done.stderr == "f  version 1, 7 B\n"
    with sfsc.connect(locked, passphrase="pass é") as store:
        assert store.open("f").read() == b"content"


def test_a_terminal_that_is_only_stdin_is_asked(locked: Path) -> None:
    """As after `su -c`, which starts a session without a terminal."""
    done = converse(locked, "whoami", answers=[("Passphrase: ", "pass é")], own_terminal=False)
    assert done.stdout.startswith("user         ada\n")


def test_the_prompt_names_the_purpose_of_a_new_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SFSC_PASSPHRASE", "SFSC_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)
    asked: list[str] = []

    def prompt(text: str) -> str:
        asked.append(text)
        return "secret"

    monkeypatch.setattr(terminal, "_prompt", prompt)
    assert terminal.new_passphrase(" for the backup") == "secret"
    assert asked == ["New passphrase for the backup: ", "Repeat the passphrase: "]
