"""`sfsd status` with and without a running daemon."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sfsd.commands import operator_client
from sfsd.datadir import lock_root
from tests.harness import Daemon

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
    assert f"another command (pid {os.getpid()}) uses {root}" in answer.err
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


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Yield one daemon for all tests, which has a bound that a test machine keeps."""
    served = Daemon(tmp_path_factory.mktemp("status") / "root")
    served.init()
    with (served.root / "sfsd.toml").open("a") as settings:
        settings.write('[health]\nfree_space = "1 MiB"\nfree_files = 1\n')
    with served:
        yield served


def test_check_of_a_daemon_that_is_well_prints_and_logs_nothing(
    running: Daemon, sfsd: Sfsd
) -> None:
    log = running.root / "logs" / "audit.jsonl"
    before = log.read_bytes()
    assert sfsd("status", "--root", running.root, "--check").out == ""
    shown = json.loads(sfsd("status", "--root", running.root, "--check", "--json").out)
    assert (shown["healthy"], shown["reasons"]) == (True, [])
    assert shown["address"] == running.address
    assert sfsd("status", "--root", running.root).lines[0].startswith("running      127.0.0.1:")
    assert log.read_bytes() == before


def test_check_prints_each_reason_on_a_line(running: Daemon, sfsd: Sfsd) -> None:
    """A folder in the place of the proof: its name is free again after it."""
    proof = running.root / "logs" / ".write-proof"
    proof.mkdir()
    answer = sfsd("status", "--root", running.root, "--check", code=1)
    assert answer.lines == ["cannot write: writing to logs/: Is a directory"]
    shown = json.loads(sfsd("status", "--root", running.root, "--check", "--json", code=1).out)
    assert (shown["healthy"], shown["reasons"]) == (False, answer.lines)
    proof.rmdir()
    sfsd("status", "--root", running.root, "--check")


def test_check_without_a_daemon(root: Path, sfsd: Sfsd) -> None:
    """It holds no lock, also not for a moment: a daemon that starts meanwhile is not refused."""
    answer = sfsd("status", "--check", code=1)
    assert answer.lines == [f"no daemon serves {root}"]
    assert not (root / "run" / "lock").exists()
    shown = json.loads(sfsd("status", "--check", "--json", code=1).out)
    assert shown == {"healthy": False, "reasons": answer.lines}


def test_check_after_a_kill(root: Path, sfsd: Sfsd) -> None:
    (root / "run").mkdir(exist_ok=True)
    (root / "run" / "address").write_text("127.0.0.1:1\n")
    (line,) = sfsd("status", "--check", code=1).lines
    assert line.startswith("the daemon at 127.0.0.1:1 does not answer")


def test_check_of_a_daemon_that_hangs(
    root: Path, sfsd: Sfsd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts connections, because the system does, and answers nothing."""
    monkeypatch.setattr(operator_client, "STATUS_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        (root / "run").mkdir(exist_ok=True)
        (root / "run" / "address").write_text(f"{address}\n")
        answer = sfsd("status", "--check", code=1)
    assert answer.lines == [f"the daemon at {address} does not answer within 0.1 seconds"]
