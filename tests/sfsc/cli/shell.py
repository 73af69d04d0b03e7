"""Runs `sfsc` in this process, as a user in a folder with the keys of one home."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import sfsc
from sfsc.cli import COMMANDS, group, main
from sfsc.session.pipeline import Skip


class Shell:
    """Commands in `folder`, which is the current one, with the keys of `home`."""

    def __init__(self, home: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self.folder = folder
        self._capsys = capsys

    def run(self, *arguments: str | Path, code: int = 0) -> tuple[str, str]:
        """Run a command and return its stdout and stderr; its exit code must be `code`."""
        ended = main(["--home", str(self.home), *map(str, arguments)])
        shown = self._capsys.readouterr()
        assert ended == code, shown.err
        return shown.out, shown.err

    def json(self, *arguments: str | Path, code: int = 0) -> list[dict[str, Any]]:
        """Run a command with --json and return its objects."""
        out, _ = self.run(*arguments, "--json", code=code)
        return [json.loads(line) for line in out.splitlines()]

    def statuses(self, *arguments: str | Path, code: int = 0) -> dict[str, tuple[str, int]]:
        """Run a command with --json; return {name: (status, version)} of its objects."""
        return {
            one["name"]: (one["status"], one["version"]) for one in self.json(*arguments, code=code)
        }

    def put(self, **contents: str) -> None:
        """Store texts; a double underscore in a name stands for a slash."""
        with sfsc.connect(self.home, auto_rotate=False) as store:
            sources = []
            for name, text in contents.items():
                path = self.folder / name
                path.write_text(text)
                sources.append((path, name.replace("__", "/")))
            list(store.put_many(sources))

    def text(self, name: str) -> str:
        """Return the content of a file."""
        with sfsc.connect(self.home, auto_rotate=False) as store, store.open(name) as file:
            return file.read().decode()

    def names(self, skip: Skip | None = None) -> list[str]:
        """Return the names of all files. One that cannot be listed is passed to `skip`; without it,
        its error is raised."""
        with sfsc.connect(self.home, auto_rotate=False) as store:
            return [entry.name for entry in store.ls(skip=skip)]


def example_of(one: click.Command) -> str:
    """Return the words after ``sfsc`` of the last example in a command's help text."""
    return inspect.cleandoc(one.help or "").rpartition("\n\nExample: sfsc ")[2]


def all_commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command, group and subcommand with the words that call it."""
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            for inner, subcommand in command.commands.items():
                yield f"{name} {inner}", subcommand
