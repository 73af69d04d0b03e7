"""Completion in real shells on a terminal, from the state of this machine without the server."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import sfsc
from sfsc.cli import COMMANDS, main
from sfsc.cli.completion import CommandLine
from tests.harness import Daemon, environment
from tests.sfsc.cli.shell import all_commands
from tests.terminal import OWN_TERMINAL

SECONDS = 30.0
EVIL = "evil$(touch pwned);`touch pwned`!touch pwned.txt"
HIDDEN = "hidden\u202egnp.exe"
FILES = (
    "photos/2026/a.jpg",
    "photos/2026/b c.jpg",
    "notes, old.txt",
    "a:b",
    EVIL,
    "über/ä.txt",
    HIDDEN,
)
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(sfsc completion bash)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -Uz compinit; compinit -u -D; eval "$(sfsc completion zsh)"',
    ),
    "fish": (["fish", "--no-config", "--private", "-i"], "sfsc completion fish | source"),
}
"""How each shell is started without anybody's settings, and how it loads the script."""


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the homes of ada, who has files, and of bob, who shares one; the server is stopped."""
    folder = tmp_path_factory.mktemp("completion")
    daemon = Daemon(folder / "root")
    daemon.init()
    found = {name: folder / name for name in ("ada", "bob")}
    with daemon:
        for name, home in found.items():
            sfsc.enrol(daemon.add_user(name), home=home, key_type="x25519", no_passphrase=True)
        source = folder / "source"
        source.write_text("x")
        with sfsc.connect(found["bob"], auto_rotate=False) as store:
            store.put(source, name="plans/our plan.txt")
            store.share("plans/our plan.txt", "ada", trust_first_use=True)
        with sfsc.connect(found["ada"], auto_rotate=False) as store:
            list(store.put_many([(source, name) for name in (*FILES, "bin/gone.txt")]))
            store.rm("bin/gone.txt")
            list(store.inbox())
            store.share("photos/2026/a.jpg", "bob", trust_first_use=True)
    return found


class ShellOnTerminal:
    """An interactive shell with its own terminal, which has loaded the completion script."""

    def __init__(self, name: str, home: Path, folder: Path) -> None:
        start, load = SHELLS[name]
        ours, theirs = pty.openpty()
        own = {"SFSC_HOME": str(home), "HOME": str(folder), "TERM": "dumb", "PS1": "$ "}
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        self._process = subprocess.Popen(
            ["sh", "-c", OWN_TERMINAL, os.ttyname(theirs), *start],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment({**own, "PATH": path, "LC_ALL": "C.UTF-8"}),
            cwd=folder,
            start_new_session=True,
        )
        os.close(theirs)
        self._terminal = ours
        self._run(load)

    def words(self, line: str, then: str = "") -> list[str]:
        """Type `line`, a tab and `then`; return the words of which the command line consists. The
        shell reads what is typed behind the tab when it has completed the word."""
        return self._run(f"{line}\t{then}\x01printf '<%s>\\n' \x05")

    def _run(self, typed: str) -> list[str]:
        """Type a command and Enter; return what it has written in ``<>``."""
        os.write(self._terminal, f"{typed} ; echo do''ne\r".encode())
        shown, until = "", time.monotonic() + SECONDS
        while not re.search(r"\ndone\r", shown):
            ready = select.select([self._terminal], [], [], max(0.0, until - time.monotonic()))[0]
            assert ready, shown
            shown += os.read(self._terminal, 65536).decode(errors="replace")
        return re.findall(r"^<(.*)>\r?$", shown, re.MULTILINE)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)


@pytest.mark.parametrize("name", SHELLS)
def test_names_are_completed_in_a_real_shell(
    homes: dict[str, Path], tmp_path: Path, name: str
) -> None:
    if name != "bash" and shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    shell = ShellOnTerminal(name, homes["ada"], tmp_path)
    with contextlib.closing(shell):
        for typed, then, *completed in (
            ("sfsc comp", "bash", "completion", "bash"),
            ("sfsc audit comp", "", "audit", "compare"),
            ("sfsc cat not", "", "cat", "notes, old.txt"),
            ("sfsc get evil", "x", "get", EVIL, "x"),
            ("sfsc get photos/2026/b", "", "get", "photos/2026/b c.jpg"),
            ('sfsc get "photos/2026/b', "x", "get", "photos/2026/b c.jpg", "x"),
            ("sfsc get pho", "2026/", "get", "photos/2026/"),
            ("sfsc stat bob:plans/o", "", "stat", "bob:plans/our plan.txt"),
            ("sfsc rm ada:a", "", "rm", "ada:a:b"),
            ("sfsc get ü", "ä.txt", "get", "über/ä.txt"),
        ):
            assert shell.words(typed, then) == ["sfsc", *completed], typed
        assert not (tmp_path / "pwned").exists()


Complete = Callable[[str], list[str]]


@pytest.fixture
def complete(
    homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Complete:
    """Return a function that completes a command line of ada's as for zsh: "TYPE VALUE" each."""
    monkeypatch.setenv("_SFSC_COMPLETE", "zsh_complete")
    monkeypatch.setenv("SFSC_HOME", str(homes["ada"]))

    def completions(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        with pytest.raises(SystemExit):
            main([])
        shown = capsys.readouterr()
        assert shown.err == ""
        return [" ".join(one.split("\t")[:2]) for one in shown.out.splitlines() if one]

    return completions


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sfsc ", [f"plain {name}" for name in COMMANDS]),
        ("sfsc ls --del", ["plain --deleted"]),
        ("sfsc audit com", ["plain compare"]),
        ("sfsc put --na", ["plain --name"]),
        ("sfsc put re", ["file re"]),
        ("sfsc put x --name pho", ["folder photos/"]),
        ("sfsc get -o re", ["file re"]),
        ("sfsc cat photos/2026/", ["plain photos/2026/a.jpg", "plain photos/2026/b c.jpg"]),
        ("sfsc get bob:", ["folder bob:plans/"]),
        ("sfsc rm bob:", []),
        ("sfsc rm bin/", []),
        ("sfsc restore bin/", ["plain bin/gone.txt"]),
        ("sfsc rm ada:", ["plain ada:a:b"]),
        ("sfsc inbox leave b", ["folder bob:plans/"]),
        ("sfsc unshare photos/2026/a.jpg b", ["plain bob"]),
        ("sfsc sync pho", ["file pho"]),
        ("sfsc sync DIR pho", ["folder photos/"]),
        ("sfsc sync --down pho", ["folder photos/"]),
        ("sfsc sync --down photos pho", ["file pho"]),
        ("sfsc --home /nonexistent get pho", []),
        ("sfsc get nothing", []),
        ("sfsc get hidden", []),
    ],
)
def test_what_is_completed(complete: Complete, line: str, expected: list[str]) -> None:
    assert complete(line) == expected


def test_every_argument_that_is_a_name_or_a_path_is_completed() -> None:
    wanted = {"name", "names", "prefix", "file", "files", "source", "target", "user", "owner"}
    for words, command in all_commands():
        for one in command.params:
            if isinstance(one, click.Argument) and one.name in wanted:
                by_type = isinstance(one.type, click.Path | click.File)
                assert by_type or one._custom_shell_complete is not None, (words, one)


def test_a_locked_keyring_completes_no_names(
    homes: dict[str, Path], complete: Complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = shutil.copytree(homes["ada"], tmp_path / "locked")
    monkeypatch.setenv("SFSC_HOME", str(locked))
    assert complete("sfsc get pho") == ["folder photos/"]
    sfsc.change_passphrase(home=locked, new="a passphrase")
    monkeypatch.setenv("SFSC_PASSPHRASE", "a passphrase")
    assert complete("sfsc get pho") == []
    assert complete("sfsc stat --js") == ["plain --json"]


@pytest.mark.skipif(sys.platform == "win32", reason="no Unix sockets")
def test_a_locked_keyring_whose_key_the_agent_holds(
    homes: dict[str, Path], complete: Complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tempfile.mkdtemp()  # the path of a socket must be short
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    locked = shutil.copytree(homes["ada"], tmp_path / "locked")
    monkeypatch.setenv("SFSC_HOME", str(locked))
    sfsc.change_passphrase(home=locked, new="a passphrase")
    sfsc.start_agent(home=locked, passphrase="a passphrase")
    try:
        assert complete("sfsc get pho") == ["folder photos/"]
        sfsc.lock_agent(home=locked)
        assert complete("sfsc get pho") == []
    finally:
        sfsc.stop_agent(home=locked)
        shutil.rmtree(runtime)


def test_completion_writes_nothing(
    homes: dict[str, Path], complete: Complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are nowhere in the clear, and a state that another process writes is read at once."""
    home = shutil.copytree(homes["ada"], tmp_path / "home")
    monkeypatch.setenv("SFSC_HOME", str(home))
    before = (home / "state.sqlite3").read_bytes()
    with contextlib.closing(sqlite3.connect(home / "state.sqlite3")) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert complete("sfsc get pho") == ["folder photos/"]
        stored = {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
    assert stored["state.sqlite3"] == before
    assert not any(b"photos" in data for data in stored.values())


def test_a_damaged_state_completes_nothing(
    homes: dict[str, Path], complete: Complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = shutil.copytree(homes["ada"], tmp_path / "home")
    monkeypatch.setenv("SFSC_HOME", str(home))
    for spoil in (lambda path: path.write_bytes(b"x" * 8192), Path.unlink):
        spoil(home / "state.sqlite3")
        assert complete("sfsc get pho") == []


@pytest.mark.parametrize(
    ("line", "value", "inserted"),
    [
        ("sfsc get ", "a b$(c)", r"a\ b\$\(c\)"),
        ("sfsc get a\\ b", "a b'c", r"a\ b\'c"),
        ("sfsc get 'a b", "a b'c!", r"a b'\''c!"),
        ('sfsc get "a', 'a"$b`c\\!d', r"""a\"\$b\`c\\"\!"d"""),
        ("sfsc get bob:a", "bob:a@b:c", "a@b:c"),
        ("sfsc get bob\\:a", "bob:a", "bob:a"),
        ('sfsc get "bob:a', "bob:ab", "bob:ab"),
        ('sfsc get "x y/"', "x y/z w", r"z\ w"),
        ("sfsc get ~", "~a", r"\~a"),
        ("sfsc get ä", "äé ö", r"äé\ ö"),
    ],
)
def test_what_bash_inserts_is_quoted(line: str, value: str, inserted: str) -> None:
    parsed = CommandLine(line, " \t\n\"'@><=;|&(:")
    assert parsed.rest_of(value) == inserted
    assert value.startswith(parsed.last)
    assert parsed.words == ["sfsc", "get"]
