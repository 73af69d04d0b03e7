"""The shell in which the commands are tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sfsc.cli.shell import Shell


@pytest.fixture
def shell(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    """Return a shell in an empty folder, with the keys of the module's `home`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFSC_AUTO_ROTATE", "0")
    return Shell(home, tmp_path, capsys)
