"""Floods of connections, before login and by a user, against a real daemon.

`make test` runs a sample, `make flood` all of it, by the same code; it prints what it measured.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol.records.invitation import parse_address
from protocol.wire.messages import Error
from protocol.wire.messages.session import Ping, Pong, Session
from protocol.wire.messages.uploads import Data, PutOpen, UploadState
from sfsd.state.uploads import WINDOW
from tests.e2e.flood import Account, BlockingWire, connect, local_address, memory
from tests.harness import CommandFailed, Daemon, command
from tests.waiting import until
from tests.wire import GONE

FULL = os.environ.get("SFS_FLOOD") == "full"
SILENT = 1_000 if FULL else 150
GREEDY, PIECES = (60, 20) if FULL else (12, 6)
IDLE, EACH = (4_800, 40) if FULL else (300, 60)  # a sample also pays for the logins' garbage
MIB = 1 << 20
LOGIN_SECONDS = 2.0
ACCOUNT_LIMITS = """[limits]
unauthenticated = 32
connections = 5000
connections_per_address = 5000
user_connections = 5000
"""

ENDLESS = """
import socket, sys
held = []
while True:
    one = socket.socket()
    one.settimeout(2)
    try:
        one.connect((sys.argv[1], int(sys.argv[2])))
    except OSError:
        one.close()
    else:
        held.append(one)
    if len(held) > 200:
        held.pop(0).close()
"""
"""Program that opens connections to HOST PORT until it is killed."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.0/8 and /proc")


@pytest.fixture(scope="module", autouse=True)
def many_descriptors() -> Iterator[None]:
    """Let this process hold the other ends of all connections."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")


@contextmanager
def served(folder: Path, limits: str = "", program: tuple[str, ...] = ()) -> Iterator[Daemon]:
    """Run a daemon; at the end, check that it printed no traceback and no lines of asyncio."""
    # A forked process would also have the memory of the one that it comes from.
    daemon = Daemon(folder / "root", program=program or tuple(command("sfsd")))
    daemon.init()
    with (daemon.root / "sfsd.toml").open("a") as file:
        file.write(limits)
    with daemon:
        yield daemon
    output = daemon.log_path.read_text()
    assert "Traceback" not in output, output
    assert "asyncio" not in output, output
    assert "socket.send" not in output, output


def account_of(daemon: Daemon, folder: Path, name: str) -> Account:
    return Account(daemon, daemon.client(name, folder / name, "--no-passphrase"))


def login_seconds(
    account: Account, source: str | None = None, within: float = LOGIN_SECONDS
) -> float:
    """Return the seconds that a login takes, with further tries if newer connections cut it."""
    began = time.monotonic()
    while True:
        try:
            wire, reply = BlockingWire.log_in(account, source)
        except (EOFError, *GONE):
            assert time.monotonic() - began < within
        else:
            assert isinstance(reply, Session), reply
            assert isinstance(wire.ask(Ping()), Pong)
            wire.close()
            return time.monotonic() - began


def works(daemon: Daemon, command: str) -> bool:
    """Tell whether the operator's command succeeds; it may be cut, and is run again then."""
    try:
        daemon.run(command)
    except CommandFailed:
        return False
    return True


@pytest.mark.parametrize("own_address", [False, True], ids=["1,000 addresses", "own address"])
def test_silent_connections(tmp_path: Path, own_address: bool) -> None:
    """Connections that send nothing, each from another address or all from the user's own."""
    with served(tmp_path) as daemon:
        account = account_of(daemon, tmp_path, "ada")
        idle = min(login_seconds(account) for _ in range(5))
        before = memory(daemon)
        held = []
        for number in range(SILENT):
            held.append(connect(daemon.address, None if own_address else local_address(number)))
            if number % 50 == 49:
                login_seconds(account)
        took = max(login_seconds(account) for _ in range(5))
        grown = memory(daemon, "VmHWM") - before
        tell(f"login {took:.3f} s, idle {idle:.3f} s; memory +{grown / MIB:.1f} MiB at most")
        assert took <= LOGIN_SECONDS
        assert grown <= 64 * MIB
        daemon.run("status")
        for one in held:
            one.close()


def test_connections_that_come_again_and_again(tmp_path: Path) -> None:
    """Each connection that is closed is replaced at once, from 200 addresses."""
    with served(tmp_path) as daemon:
        account = account_of(daemon, tmp_path, "ada")
        held: list[socket.socket] = []
        slowest = 0.0
        for number in range(SILENT * 2):
            held.append(connect(daemon.address, local_address(number % 200)))
            if len(held) > 100:
                held.pop(0).close()
            if number % 50 == 49:
                slowest = max(slowest, login_seconds(account))
        tell(f"slowest login {slowest:.3f} s")
        assert slowest <= LOGIN_SECONDS
        for one in held:
            one.close()


def test_connections_as_fast_as_two_processes_can(tmp_path: Path) -> None:
    """Without an end, from the operator's own address: users and the operator still get in."""
    with served(tmp_path) as daemon:
        account = account_of(daemon, tmp_path, "ada")
        host, port = parse_address(daemon.address)
        flooding = [
            subprocess.Popen([sys.executable, "-c", ENDLESS, host, str(port)]) for _ in range(2)
        ]
        try:
            time.sleep(0.5)
            slowest = max(login_seconds(account, within=30.0) for _ in range(5))
            until(lambda: works(daemon, "status"))
        finally:
            for one in flooding:
                one.kill()
                one.wait()
        tell(f"slowest login {slowest:.3f} s")


def test_few_descriptors(tmp_path: Path) -> None:
    """Connections before login cannot take the descriptors that log and store need."""
    few = ("sh", "-c", 'ulimit -n 600; exec "$@"', "sh", *command("sfsd"))
    with served(tmp_path, program=few) as daemon:
        ada = daemon.client("ada", tmp_path / "ada", "--no-passphrase")
        held = [connect(daemon.address, local_address(number)) for number in range(640)]
        assert daemon.process is not None
        handles = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
        tell(f"{handles} of 600 descriptors")
        assert handles < 300
        ada.run("put", "-", "--name", "file", stdin=b"content")
        assert ada.run("get", "file", "-o", "-").stdout == b"content"
        daemon.run("status")
        for one in held:
            one.close()


def test_pieces_do_not_stay_in_memory(tmp_path: Path) -> None:
    """Many connections send pieces of 1 MiB and read nothing meanwhile: to an upload that does not
    exist, then each to an upload of its own."""
    with served(tmp_path, ACCOUNT_LIMITS) as daemon:
        account = account_of(daemon, tmp_path, "eve")
        before = memory(daemon)
        for stored in (False, True):
            wires = [BlockingWire.log_in(account)[0] for _ in range(GREEDY)]
            uploads = [b"u" * 16] * GREEDY
            if stored:
                for place, wire in enumerate(wires):
                    opened = wire.ask(PutOpen(account.user, f"{place:032x}", 0))
                    assert isinstance(opened, UploadState), opened
                    uploads[place] = opened.upload
            for number in range(PIECES):
                for wire, upload in zip(wires, uploads, strict=True):
                    wire.send(Data(upload, number * MIB % WINDOW, bytes(MIB)))
            took = login_seconds(account)
            for wire in wires:
                for _ in range(PIECES):
                    reply = wire.receive()
                    # A piece that is sent again is refused while it is being written.
                    assert isinstance(reply, (UploadState, Error) if stored else Error), reply
            peak = memory(daemon, "VmHWM")
            for wire in wires:
                wire.close()
            began = time.monotonic()
            until(lambda: memory(daemon) <= before + 48 * MIB)  # 16 MiB stay in a pool for others
            later = time.monotonic() - began
            tell(
                f"{GREEDY} × {PIECES} pieces, {'stored' if stored else 'refused'}: "
                f"before {before / MIB:.0f} MiB, at most {peak / MIB:.0f}, "
                f"{later:.1f} s later {memory(daemon) / MIB:.0f}; login {took:.3f} s"
            )
            assert took <= LOGIN_SECONDS
            assert peak <= 250 * MIB
            assert later <= 30


def test_idle_sessions_cost_little(tmp_path: Path) -> None:
    with served(tmp_path, ACCOUNT_LIMITS) as daemon:
        account = account_of(daemon, tmp_path, "ada")
        # The first ones also pay for what the daemon allocates once.
        wires = [BlockingWire.log_in(account)[0] for _ in range(100)]
        before = memory(daemon)
        for _ in range(IDLE):
            wire, reply = BlockingWire.log_in(account)
            assert isinstance(reply, Session)
            wires.append(wire)
        each = (memory(daemon) - before) / IDLE / 1024
        took = login_seconds(account)
        tell(f"{len(wires):,} sessions, {each:.1f} KiB each; login {took:.3f} s")
        assert each <= EACH
        assert took <= LOGIN_SECONDS
        for wire in wires:
            wire.close()
