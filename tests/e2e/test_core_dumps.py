"""A crash of client or daemon writes no memory, which holds keys, to the disk."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.accounts import new_root
from tests.harness import Daemon, command, environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads limits from /proc")
_ALLOWED = ("sh", "-c", 'ulimit -S -c 4 && exec "$@"', "sh")
"""Starts a program that may write core dumps of 4 blocks."""


def core_limit(pid: int) -> str:
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (line,) = [line for line in limits if line.startswith("Max core file size")]
    return line.removeprefix("Max core file size").split()[0]


def test_the_daemon_writes_no_core_dump(tmp_path: Path) -> None:
    root = new_root(tmp_path / "root").root
    with Daemon(root, program=(*_ALLOWED, *command("sfsd"))) as daemon:
        assert daemon.process is not None
        assert core_limit(daemon.process.pid) == "0"


def test_the_client_writes_no_core_dump(tmp_path: Path) -> None:
    client = subprocess.Popen(
        [*_ALLOWED, *command("sfsc"), "init", "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment({"SFSC_HOME": str(tmp_path / "home")}),
    )
    with client:  # waits for an invitation until the end of the block
        deadline = time.monotonic() + 20
        while core_limit(client.pid) != "0" and time.monotonic() < deadline:
            time.sleep(0.02)
        assert core_limit(client.pid) == "0"
