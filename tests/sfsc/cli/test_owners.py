"""``OWNER:NAME`` works in every command that reads, and is refused by every one that writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import sfsc
from tests.lying_server import LyingServer
from tests.sfsc.cli.shell import Shell, all_commands

FILE, FOLDER, REPORT = "bob:plans/report", "bob:plans/", "a report"
READING: dict[str, tuple[tuple[str, ...], str]] = {
    "ls": (("ls", FOLDER), "bob:plans/report"),
    "stat": (("stat", FILE), "bob"),
    "get": (("get", FILE, "-o", "-"), REPORT),
    "cat": (("cat", FILE), REPORT),
    "history": (("history", FILE), "put"),
    "du": (("du", FOLDER, "--json"), '"live":8'),
    "audit log": (("audit", "log", FILE), "bob:plans/report"),
    "key export-dek": (("key", "export-dek", FILE), "store/users/bob/files/"),
    "inbox leave": (("inbox", "leave", "bob:other"), ""),
}
"""Command -> its arguments, and what it shows of the file."""
WRITING: dict[str, tuple[str, ...]] = {
    "put": ("put", "local", "--name", FILE),
    "sync": ("sync", "folder", FOLDER),
    "watch": ("watch", "folder", FOLDER),
    "rm": ("rm", FILE),
    "mv": ("mv", FILE, "mine"),
    "batch": ("batch", "changes"),
    "share": ("share", FILE, "carl"),
    "unshare": ("unshare", FILE, "carl"),
    "restore": ("restore", FILE),
    "prune": ("prune", FILE, "--keep", "1"),
    "rotate": ("rotate", "--compromised", FILE),
}
MORE_WRITING = (
    ("put", "--command", "echo x", "--name", FILE),
    ("sync", "--down", FOLDER, "folder"),
    ("rm", "-r", FOLDER),
    ("rm", "--purge", FILE),
    ("mv", "mine", FILE),
    ("share", "-r", FOLDER, "carl"),
    ("unshare", "-r", FOLDER, "carl"),
    ("restore", "-r", FOLDER),
    ("prune", "-r", FOLDER, "--keep", "1"),
    ("rotate", "--plan", "--compromised", FILE),
    ("ls", "--deleted", FOLDER),
)
WITHOUT = {"audit check", "audit compare", "key backup", "key restore"}
"""Commands whose FILE is a file of this machine."""
NAMES = {"name", "names", "prefix", "file", "files", "source", "target"}


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with LyingServer(tmp_path_factory.mktemp("owners") / "lying") as server:
        found = {user: server.enrol(user, key_type="x25519") for user in ("ada", "bob")}
        source = found["bob"].with_name("source")
        source.write_text(REPORT)
        with sfsc.connect(found["bob"], auto_rotate=False) as store:
            for name in ("plans/report", "other"):
                store.put(source, name=name)
                store.share(name, "ada", trust_first_use=True)
        with sfsc.connect(found["ada"], auto_rotate=False) as store:
            store.put(source, name="bob:plans/report")
            store.put(source, name="mine")
            store.verify_person("bob", store.person("bob").fingerprint)
        yield found


@pytest.fixture
def shell(
    homes: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFSC_AUTO_ROTATE", "0")
    return Shell(homes["ada"], tmp_path, capsys)


def test_every_command_with_a_name_reads_or_writes() -> None:
    named = {
        words
        for words, command in all_commands()
        for one in command.params
        if isinstance(one, click.Argument) and one.name in NAMES
    }
    assert named - WITHOUT == READING.keys() | WRITING.keys()


@pytest.mark.parametrize("words", READING)
def test_reading_commands_take_files_of_others(shell: Shell, words: str) -> None:
    arguments, shown = READING[words]
    assert shown in shell.run(*arguments)[0]


@pytest.mark.parametrize("arguments", [*WRITING.values(), *MORE_WRITING], ids=" ".join)
def test_writing_commands_refuse_files_of_others(
    shell: Shell, homes: dict[str, Path], arguments: tuple[str, ...]
) -> None:
    (shell.folder / "folder").mkdir()
    (shell.folder / "folder" / "new").write_text("x")
    (shell.folder / "local").write_text("x")
    (shell.folder / "changes").write_text(f'{{"op":"rm","name":"{FILE}"}}\n')
    _, err = shell.run(*arguments, code=2)
    assert " of bob" in err
    with sfsc.connect(homes["ada"], auto_rotate=False) as store:
        assert [entry.name for entry in store.ls()] == ["bob:plans/report", "mine"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("stat",), ("cat",), ("history",), ("audit", "log"), ("key", "export-dek"), ("du",),
        ("share",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_file_of_our_own_whose_name_has_a_colon(shell: Shell, arguments: tuple[str, ...]) -> None:
    more = ("bob", "--trust-first-use") if arguments == ("share",) else ()
    ended = shell.run(*arguments, "ada:bob:plans/report", *more)
    assert ended != ("", "")
