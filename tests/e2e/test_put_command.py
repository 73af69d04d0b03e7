"""`sfsc put --command`: the output of a command is stored only if it succeeds."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sfsc
from sfsc.errors import CommandFailed
from tests.harness import Client, Daemon, command, environment
from tests.waiting import until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="commands of a POSIX shell")
MIB = 1 << 20


def python(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


def staged(daemon: Daemon) -> list[Path]:
    return list((daemon.root / "staging").glob("*.ct"))


def test_the_output_of_a_command_is_stored_if_it_succeeds(
    daemon: Daemon, alice: Client, tmp_path: Path
) -> None:
    done = alice.run("put", "--command", "printf '%s' \"a $((1+1))\"; echo seen >&2", "--name", "a")
    assert (done.lines, done.stderr) == ([], "seen\na  version 1, 3 B\n")
    assert alice.run("cat", "a").stdout == b"a 2"
    large = python("import sys; [sys.stdout.buffer.write(bytes([n]) * 2**20) for n in range(4)]")
    alice.run("put", "--command", large, "--name", "a", "--receipt", tmp_path / "proof")
    assert alice.run("cat", "a").stdout == b"".join(bytes([n]) * MIB for n in range(4))
    assert (tmp_path / "proof").read_bytes().startswith(b"c2sp.org/tlog-proof@v1")
    alice.run("put", "--command", "echo no", "--name", "a", "--no-overwrite", code=6)
    stdin = alice.run("put", "--command", "cat", "--name", "b", stdin=b"through")
    assert stdin.stderr == "b  version 1, 7 B\n"
    assert alice.run("ls").lines == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("echo half; exit 3", "failed with exit code 3"),
        ("exec >&-; exit 4", "failed with exit code 4"),
        ("no-such-command-anywhere", "failed with exit code 127"),
        ("echo half; kill -9 $$", "ended by signal 9 (exit code 137)"),
        (python("print('x' * 3_000_000, flush=True); exit(7)"), "failed with exit code 7"),
        (python("import os; os.write(1, b'x' * 2**22); os.close(1); exit(1)"), "exit code 1"),
    ],
)
def test_nothing_is_stored_if_it_fails(daemon: Daemon, alice: Client, line: str, told: str) -> None:
    alice.run("put", "-", "--name", "a", stdin=b"before")
    failed = alice.run("put", "--command", line, "--name", "a", code=1)
    assert told in failed.stderr
    assert "hint: nothing was stored" in failed.stderr
    assert alice.run("cat", "a").stdout == b"before"
    assert staged(daemon) == []
    assert len(alice.run("history", "a").lines) == 1


def test_an_interrupt_stops_the_command(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    line = f"echo $$ > {pid}; exec " + python(
        "import os, time; os.write(1, b'x' * 2**22); time.sleep(600)"
    )
    with subprocess.Popen(
        [*command("sfsc"), "put", "--command", line, "--name", "a"],
        env=environment(alice.variables),
        stderr=subprocess.PIPE,
    ) as process:
        until(lambda: staged(daemon) and staged(daemon)[0].stat().st_size >= 2 * MIB)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert staged(daemon) == []
    assert alice.run("ls").lines == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--command", "true"),
        ("--command", "true", "--name", "a", "file"),
        ("--command", "true", "--name", "a", "-r", "."),
        ("--command", "true", "--name", "a", "--dry-run"),
        ("--command", "true", "--name", "a/"),
    ],
)
def test_usage(alice: Client, arguments: tuple[str, ...]) -> None:
    alice.run("put", *arguments, code=2)


def test_in_the_library(alice: Client) -> None:
    with sfsc.connect(alice.home) as store:
        done = store.put_command([sys.executable, "-c", "print('words')"], "a")
        assert (done.name, done.version, done.size) == ("a", 1, 6)
        with pytest.raises(CommandFailed) as failed:
            store.put_command("exit 9", "a")
        assert failed.value.code == 9
        with pytest.raises(sfsc.LocalError, match="cannot be started"):
            store.put_command(["/no/such/program"], "a")
        with pytest.raises(sfsc.ConflictError):
            store.put_command("echo x", "a", expected=7)
        assert store.stat("a").version == 1
