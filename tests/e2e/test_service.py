"""The daemon as a service: its log output, as the system's tools see it."""

from __future__ import annotations

import concurrent.futures
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import sfsc
from protocol import VERSION
from protocol.records.invitation import parse_invitation
from sfsc.errors import SfscError
from sfsd import server_keys
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


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
    assert failed["fields"]["hint"]


class Manager:
    """The service manager's side of a notify socket, in the abstract namespace."""

    def __init__(self, name: str) -> None:
        self.address = f"@sfsd-{name}-{os.getpid()}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{self.address[1:]}")
        self.socket.settimeout(20)
        self.states: list[str] = []

    def until(self, state: str) -> str:
        """Receive states until one that begins with `state`; return it."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            self.states.append(self.socket.recv(4096).decode())
            if self.states[-1].startswith(state):
                return self.states[-1]
        raise TimeoutError(state)


@pytest.fixture(scope="module")
def manager() -> Iterator[Manager]:
    made = Manager("test")
    with made.socket:
        yield made


@pytest.fixture(scope="module")
def run_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    daemon = Daemon(tmp_path_factory.mktemp("reload") / "root")
    daemon.init()
    return daemon.root


@pytest.fixture(scope="module")
def daemon(run_root: Path, manager: Manager) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a daemon with a service manager; its messages are in a file beside the root."""
    with (
        open(run_root.with_name("output"), "wb") as output,
        serving(
            run_root,
            "--log-format",
            "json",
            stderr=output.fileno(),
            NOTIFY_SOCKET=manager.address,
            WATCHDOG_USEC="400000",
        ) as process,
    ):
        manager.until("READY=1")
        yield process


@pytest.fixture(scope="module")
def alice(run_root: Path, daemon: subprocess.Popen[bytes]) -> Path:
    """Return the home of a user without a passphrase."""
    home = run_root.with_name("alice")
    invitation = Daemon(run_root).add_user("alice").encode()
    Client(home).run("init", "-", "--no-passphrase", stdin=invitation)
    return home


def reloaded(run_root: Path, manager: Manager, daemon: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Send SIGHUP; return the message about the reload once it is done."""
    daemon.send_signal(signal.SIGHUP)
    manager.until("RELOADING=1\nMONOTONIC_USEC=")
    manager.until("READY=1")
    lines = run_root.with_name("output").read_text().splitlines()
    shown: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [one for one in shown if one["event"].startswith("reload")][-1]


def test_the_manager_is_told_of_the_start_and_that_the_daemon_lives(
    run_root: Path, manager: Manager, daemon: subprocess.Popen[bytes]
) -> None:
    assert manager.states[0] == f"STATUS=opening {run_root}"
    address = (run_root / "run" / "address").read_text().strip()
    assert manager.until("STATUS=serving").startswith(f"STATUS=serving {address}, 0 sessions")
    begun = time.monotonic()
    for _ in range(3):
        manager.until("WATCHDOG=1")
    assert 0.2 < time.monotonic() - begun < 5


def test_a_limit_changes_under_load_and_clients_go_on(
    run_root: Path, manager: Manager, daemon: subprocess.Popen[bytes], alice: Path
) -> None:
    settings, stop, stored = run_root / "sfsd.toml", threading.Event(), list[str]()

    def work(number: int) -> None:
        with sfsc.connect(alice) as store:
            while not stop.is_set():
                name = f"{number}/{len(stored)}"
                store.put(io.BytesIO(name.encode() * 1000), name=name)
                stored.append(name)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        workers = [pool.submit(work, number) for number in range(3)]
        try:
            until(lambda: len(stored) > 5)
            settings.write_text("[limits]\nuser_connections = 3\n[rotation]\nmax_age = '60d'\n")
            said = reloaded(run_root, manager, daemon)
            assert said["fields"]["changes"] == ["limits.user_connections", "rotation.max_age"]
            with pytest.raises(SfscError, match="as many connections"):
                sfsc.connect(alice)
            before = len(stored)
            until(lambda: len(stored) > before + 5)  # those that were open go on
            # A bad file changes nothing, and says why.
            settings.write_text("[limits]\nuser_connections = 300\nidle_secs = 5\n")
            said = reloaded(run_root, manager, daemon)
            assert (said["event"], said["level"]) == ("reload-refused", "error")
            assert f"{settings}, line 3: limits.idle_secs: unknown setting" in said["message"]
            with pytest.raises(SfscError, match="as many connections"):
                sfsc.connect(alice)
            settings.write_text("[limits]\nuser_connections = 4\nuser_requests_per_second = 100\n")
            reloaded(run_root, manager, daemon)
            with sfsc.connect(alice) as store:
                assert len(list(store.ls())) >= len(stored) - 3
            before = len(stored)
            until(lambda: len(stored) > before + 5)
        finally:
            stop.set()
        for one in workers:
            one.result()


def test_what_needs_a_restart_is_said(
    run_root: Path, manager: Manager, daemon: subprocess.Popen[bytes]
) -> None:
    (run_root / "sfsd.toml").write_text(
        'listen = "127.0.0.1:1"\n[log]\nformat = "text"\nlevel = "debug"\n'
    )
    for changes in (["log.level"], []):
        said = reloaded(run_root, manager, daemon)
        assert [one for one in said["fields"]["changes"] if one == "log.level"] == changes
        assert said["fields"]["postponed"] == ["listen"]
        assert "after a restart only: listen" in said["message"]
        assert said["level"] == "warning"
    output = run_root.with_name("output")
    Daemon(run_root).run("user", "list")
    until(lambda: "logged in as operator" in output.read_text())


def test_a_new_tls_key_is_used_without_a_restart(
    run_root: Path, manager: Manager, daemon: subprocess.Popen[bytes], alice: Path
) -> None:
    keys = run_root / "keys"
    before = server_keys.load(keys)
    other = server_keys.create(run_root.with_name("other keys"), int(time.time()))
    with sfsc.connect(alice) as store:
        shutil.copy(other.folder / "tls.crt", keys / "tls.crt")
        said = reloaded(run_root, manager, daemon)
        assert (said["event"], said["level"]) == ("reload-refused", "error")  # not its key
        assert server_keys.read_server_statement(keys)[0] == before.statement
        shutil.copy(other.folder / "tls.key", keys / "tls.key")
        said = reloaded(run_root, manager, daemon)
        assert said["fields"]["new_tls_key"] is True
        store.put(io.BytesIO(b"over the old connection"), name="kept")
    with sfsc.connect(alice) as store, store.open("kept") as file:
        assert file.read() == b"over the old connection"
    after = server_keys.load(keys)
    assert (after.n, after.spki_sha256) == (before.n + 1, other.spki_sha256)
    logged = Daemon(run_root).run("audit", "log", "--op", "server-statement", "--json").lines
    assert len(logged) == 2


def test_the_manager_is_told_of_the_end(root: Path) -> None:
    manager = Manager("end")
    with manager.socket:
        with serving(root, NOTIFY_SOCKET=manager.address) as process:
            manager.until(f"STATUS=opening {root}")
            process.send_signal(signal.SIGHUP)  # nothing to reload yet, and it must not end it
            manager.until("READY=1")
        assert manager.until("STOPPING=1")


LAUNCHER = """
import os, socket, sys
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
unrelated = os.open(os.devnull, os.O_RDONLY)
passed = {"socket": listening.fileno(), "file": unrelated}[sys.argv[1]]
os.dup2(passed, 3)
os.set_inheritable(3, True)
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[2]))
os.environ["LISTEN_FDS"] = "1"
os.execvp(sys.argv[3], sys.argv[3:])
"""


def launched(root: Path, kind: str, *options: str, pid: int = 0) -> subprocess.Popen[str]:
    """Run ``sfsd serve`` with descriptor 3 passed as systemd does, for `pid` processes further."""
    program = [sys.executable, "-c", LAUNCHER, kind, str(pid), *command("sfsd"), "serve"]
    return subprocess.Popen(
        [*program, "--root", root, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment({}),
        text=True,
    )


def test_a_passed_socket_is_served(root: Path) -> None:
    settings = root / "sfsd.toml"
    settings.write_text('listen = "192.0.2.1:7373"\n')  # cannot be bound, and is not used
    with launched(root, "socket") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        port = process.stdout.readline().strip()
        assert f" on 127.0.0.1:{port}: " in process.stderr.readline()
        assert json.loads(Daemon(root).run("status", "--json").text)["address"].endswith(port)
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("kind", "options", "pid", "cause"),
    [
        ("file", (), 0, "descriptor 3 that was passed is not a socket"),
        ("socket", ("--listen", "127.0.0.1:0"), 0, "--listen and sockets"),
        ("socket", (), 1, "cannot listen on 192.0.2.1:7373"),  # for another process: not used
    ],
)
def test_other_descriptors_are_not_served(
    root: Path, kind: str, options: tuple[str, ...], pid: int, cause: str
) -> None:
    (root / "sfsd.toml").write_text('listen = "192.0.2.1:7373"\n')
    with launched(root, kind, *options, pid=pid) as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert cause in errors
