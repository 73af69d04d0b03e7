"""Runs `sfsc` in this process, and reads what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sfsc
from sfsc.cli import main


class Shell:
    """Runs `sfsc` in a folder, with the keys of `home`."""

    def __init__(self, home: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self.folder = folder
        self._capsys = capsys

    def run(self, *arguments: str | Path, code: int = 0) -> tuple[str, str]:
        """Run a command, which must end with this exit code. Return (stdout, stderr)."""
        found = main(["--home", str(self.home), *map(str, arguments)])
        shown = self._capsys.readouterr()
        assert found == code, shown.err
        return shown.out, shown.err

    def json(self, *arguments: str | Path, code: int = 0) -> list[dict[str, Any]]:
        """Return the objects that a command shows with --json."""
        shown = self.run("--json", *arguments, code=code)[0]
        return [json.loads(line) for line in shown.splitlines()]

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

    def names(self) -> list[str]:
        with sfsc.connect(self.home, auto_rotate=False) as store:
            return [entry.name for entry in store.ls(skip=lambda _name, _error: None)]
