"""`sfsd status` without a running daemon."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfsd.datadir import lock_root

Sfsd = Callable[..., Any]


def test_status_as_text(root: Path, sfsd: Sfsd) -> None:
    sfsd("user", "add", "ada")
    shown = dict(line.split(maxsplit=1) for line in sfsd("status").lines)
    assert shown["running"] == "no"
    assert shown["users"] == "1"
    assert shown["log"].endswith(" entries")


def test_status_as_json(root: Path, sfsd: Sfsd) -> None:
    shown = json.loads(sfsd("status", "--json").out)
    assert (shown["address"], shown["users"], shown["failed"]) == ("", 0, "")
    assert shown["disk_free"] > 0


def test_locked_root_without_an_address(root: Path, sfsd: Sfsd) -> None:
    with lock_root(root):
        answer = sfsd("status", code=7)
    assert "hint: " in answer.err


def test_address_of_a_killed_daemon(root: Path, sfsd: Sfsd) -> None:
    """After SIGKILL the address stays, and the next holder of the lock does not answer there."""
    (root / "run" / "address").write_text("127.0.0.1:1\n")
    with lock_root(root):
        answer = sfsd("status", code=7)
    assert "127.0.0.1:1" in answer.err
    assert sfsd("status").lines[0].split() == ["running", "no"]


def test_no_root(tmp_path: Path, sfsd: Sfsd) -> None:
    answer = sfsd("status", "--root", tmp_path / "nothing", code=1)
    assert "sfsd init" in answer.err
    assert not (tmp_path / "nothing").exists()
