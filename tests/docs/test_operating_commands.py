"""Every `sfsd` command of docs/operating.md does what the page says, on a real daemon.

The commands of the page are run from the first to the last, as an operator would. Folders outside
the root are replaced by folders of the test, and systemctl by the daemon of the test.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from sfsc.account.enrol import enrol_account, read_invitation
from sfsd.cli import COMMANDS, group, main
from tests.e2e.accounts import enrolled, new_root
from tests.harness import Daemon

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "operating.md").read_text("utf-8")
COMMAND = re.compile(r" *# (?:/opt/sfs/bin/)?sfsd (.*)")
SYSTEMCTL = re.compile(r" *# systemctl (stop|start|restart) sfsd")
STAY_IN_ROOT = frozenset(
    {"audit", "backup", "check-config", "fsck", "report", "restore", "rotate", "rotate-keys"}
    | {"scrub", "status", "user"}
)
"""Commands that write only to the root, and to folders that they are given."""
NOT_RUN = {"--version": "has no root"}
"""Commands that are not run, and why."""
FAILS = {"check-config /tmp/new.toml": 1}
"""Exit codes that the page states or implies, other than 0."""


def steps() -> Iterator[str]:
    """Yield the commands in fenced blocks, in order, and ``systemctl stop`` and the like."""
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL):
        for line in block.splitlines():
            if found := SYSTEMCTL.match(line):
                yield f"systemctl {found[1]}"
            elif found := COMMAND.match(line):
                words = shlex.split(found[1], comments=True)
                yield shlex.join(words[: words.index(">")] if ">" in words else words)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    with new_root(tmp_path / "root") as daemon:
        settings = daemon.root / "sfsd.toml"
        # A machine that runs tests may have little room.
        health = '[health]\nfree_space = "1 MiB"\nfree_files = 1\n'
        settings.write_text(f'public = "{daemon.address}"\n{health}')
        enrolled(daemon, "bob", tmp_path / "bob")
        daemon.stop()
        daemon.start()
        yield daemon


def test_commands_of_the_page(
    served: Daemon,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SFSD_ROOT", str(served.root))
    backups = tmp_path / "backup"
    backups.mkdir()
    (tmp_path / "new.toml").write_text("\n\n[limits]\nconections = 4\n")
    done: list[str] = []
    for step in steps():
        if step.startswith("systemctl "):
            if step != "systemctl start":
                served.stop()
            if step != "systemctl stop":
                served.start()
            continue
        if step in NOT_RUN:
            continue
        words = step
        if step == "install-unit":
            words = shlex.join([step, "--to", str(tmp_path)])
        else:
            assert step.split()[0] in STAY_IN_ROOT, "say here what it must not write to"
        for backup in sorted(backups.glob("2*"), reverse=True)[:1]:
            words = re.sub(r"/backup/sfsd/2[0-9TZ.:-]+", str(backup), words)
        for name, path in (("/backup/sfsd", backups), ("/srv/sfsd", tmp_path / "new")):
            words = words.replace(name, str(path))
        words = words.replace("/tmp/new.toml", str(tmp_path / "new.toml"))
        capsys.readouterr()
        needs_stopped = words.startswith("restore")
        if needs_stopped:
            served.stop()
        code = main(shlex.split(words))
        if needs_stopped:
            served.start()
        printed = capsys.readouterr()
        assert code == FAILS.get(step, 0), (step, printed)
        if step.startswith("user add alice"):
            enrol_account(read_invitation(printed.out.strip()), tmp_path / "alice", "xwing", None)
        done.append(step)
    assert len(done) > 25


def words_of(span: str) -> list[str]:
    return [word for word in span.split() if re.fullmatch(r"-?-?[a-z][a-z-]*", word)]


@pytest.mark.parametrize("span", sorted(set(re.findall(r"`sfsd ([^`…]+)`", PAGE))))
def test_command_within_text_exists(span: str) -> None:
    """Names of commands and options in the text are those of the program."""
    name, *rest = words_of(span)
    assert name in COMMANDS
    one = group.get_command(click.Context(group), name)
    assert one is not None
    if isinstance(one, click.Group) and rest:
        one = one.commands[rest.pop(0)]
    known = {option for parameter in one.params for option in parameter.opts} | {"--help"}
    assert {word for word in rest if word.startswith("--")} <= known
