"""The daemon as a service: its log output, as the system's tools see it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol import VERSION
from protocol.records.invitation import parse_invitation
from tests.harness import Client, Daemon, command, environment


@contextmanager
def serving(
    root: Path,
    *options: str,
    stderr: int = subprocess.PIPE,
    cwd: Path | None = None,
    **variables: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``sfsd serve`` with its stderr in a pipe; at the end it must stop at SIGTERM."""
    process = subprocess.Popen(
        [*command("sfsd"), "serve", "--root", root, "--listen", "127.0.0.1:0", *options],
        stdin=subprocess.DEVNULL,
        stderr=stderr,
        env=environment(variables),
        cwd=cwd,
    )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    daemon = Daemon(tmp_path_factory.mktemp("service") / "root")
    daemon.init()
    (daemon.root / "sfsd.toml").write_text('public = "files.example:7373"\n')
    return daemon.root


def test_json_lines_say_what_runs_where_and_no_secret(root: Path) -> None:
    with serving(root, "--log-format", "json", SFSD_LOG_LEVEL="debug") as process:
        assert process.stderr is not None
        first = b""
        while b'"event":"start"' not in first:
            first += process.stderr.readline()
        daemon = Daemon(root)
        invitation = daemon.add_user("alice")
        address = (root / "run" / "address").read_text().strip()
        reached = invitation.replace("files.example:7373", address)
        client = Client(root.with_name("alice"))
        client.run("init", "-", "--no-passphrase", stdin=reached.encode())
        process.send_signal(signal.SIGTERM)
        output = first + process.stderr.read()
    shown = [json.loads(line) for line in output.splitlines()]
    assert [one["event"] for one in shown if one["event"]] == ["start", "stop"]
    assert any("logged in as alice" in one["message"] for one in shown)
    start = next(one for one in shown if one["event"] == "start")
    assert start["level"] == "info"
    assert re.fullmatch(r"127\.0\.0\.1:\d+", start["fields"].pop("address"))
    assert start["fields"] == {
        "version": VERSION,
        "root": str(root),
        "pid": process.pid,
        "public": "files.example:7373",
        "recovered": True,
        "recovered_entries": 0,
        "recovered_files": 0,
        "lost_files": 0,
    }
    token = parse_invitation(invitation).token
    secrets = [token, token.hex().encode(), invitation.rpartition("=")[2].encode()]
    for key in (root / "keys").glob("*.key"):
        secrets += key.read_bytes().split()
    assert not [one for one in secrets if one in output]


def test_lines_to_the_journal_and_an_error_at_the_start(root: Path) -> None:
    reading, writing = os.pipe()
    status = os.fstat(writing)
    stream = f"{status.st_dev}:{status.st_ino}"
    with open(reading, "rb") as output:
        named = Path(root.name)
        with serving(
            named, stderr=writing, cwd=root.parent, JOURNAL_STREAM=stream, SFSD_LOG_FORMAT="text"
        ):
            os.close(writing)
            line = output.readline().decode()
            assert line.startswith(f"<6>INFO sfsd {VERSION} serves {root} on 127.0.0.1:")
            assert "pid " in line
            assert "public address files.example:7373, recovery done" in line
            second = Daemon(root).run("serve", "--log-format", "json", code=1)
        assert output.read().decode() == "<6>INFO stopping\n"
    (failed,) = map(json.loads, second.stderr.splitlines())
    assert (failed["level"], failed["event"]) == ("critical", "failed")
    assert str(root) in failed["message"]
    assert failed["fields"]["exit_code"] == 1
    assert "stop the daemon" in failed["fields"]["hint"]
