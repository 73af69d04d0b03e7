"""A root, and `sfsd` commands run on it in this process without a daemon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sfsd.cli import main


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Sfsd = Callable[..., Answer]


@pytest.fixture
def root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    """Make a root with a public address by `init`, and name it in SFSD_ROOT."""
    path = tmp_path / "root"
    monkeypatch.setenv("SFSD_ROOT", str(path))
    assert main(["init", "--public", "files.example:7373"]) == 0
    capsys.readouterr()
    return path


@pytest.fixture
def sfsd(capsys: pytest.CaptureFixture[str]) -> Sfsd:
    def run(*arguments: str | Path, code: int = 0) -> Answer:
        exit_code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        answer = Answer(exit_code, printed.out, printed.err)
        assert exit_code == code, answer
        return answer

    return run
