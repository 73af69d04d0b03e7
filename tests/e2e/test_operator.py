"""Operator tasks on a real daemon: serve, stop, invite, disable, inspect, change keys."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

import sfsc
from protocol.records.invitation import parse_invitation
from sfsc.errors import SfscError
from sfsd import server_keys
from sfsd.datadir import lock_root
from tests.e2e.accounts import new_root
from tests.harness import Client, CommandFailed, Daemon, Result
from tests.waiting import until


def blames(result: Result, *words: str) -> None:
    """Check for cause and hint on stderr, nothing on stdout, and no traceback."""
    assert result.stdout == b""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("sfsd: "), result.stderr
    assert "hint: " in result.stderr, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def ops(daemon: Daemon) -> list[str]:
    return [json.loads(line)["op"] for line in daemon.run("audit", "log", "--json").lines]


def test_the_address_is_published_while_serving(daemon: Daemon) -> None:
    run = daemon.root / "run"
    assert (run / "address").read_text().strip() == daemon.address
    told = json.loads(daemon.run("status", "--json").text)
    assert (told["address"], told["failed"]) == (daemon.address, "")
    assert daemon.stop() == 0
    assert (run / "address").read_text().strip() == ""
    assert daemon.run("status").lines[0].split() == ["running", "no"]
    assert ops(daemon)[-1] == "stop"
    daemon.start()
    assert ops(daemon).count("start") == 2


def test_a_second_daemon_is_refused(daemon: Daemon) -> None:
    assert daemon.process is not None
    named = f"another daemon (pid {daemon.process.pid}) serves {daemon.root}"
    blames(daemon.run("serve", "--listen", "127.0.0.1:0", code=1), named)
    blames(daemon.run("fsck", code=1), named)
    daemon.run("status")


def test_a_port_in_use(daemon: Daemon, tmp_path: Path) -> None:
    other = new_root(tmp_path / "other")
    ready = tmp_path / "ready"
    refused = other.run("serve", "--listen", daemon.address, "--ready-file", ready, code=1)
    blames(refused, daemon.address, "--listen")
    assert not ready.exists()


def test_another_server_at_the_address_is_not_used(daemon: Daemon, tmp_path: Path) -> None:
    """The daemon is gone, its lock is held, and another server uses its port."""
    other = new_root(tmp_path / "other")
    logged = len(ops(daemon))
    with lock_root(other.root):
        (other.root / "run" / "address").write_text(daemon.address)
        blames(other.run("status", code=7), "another server")
    assert len(ops(daemon)) == logged, "it was sent a login"


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signal for a process")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_repeated_signals_stop_the_daemon(daemon: Daemon, number: signal.Signals) -> None:
    assert daemon.process is not None
    daemon.process.send_signal(number)
    daemon.process.send_signal(number)
    assert daemon.wait() == 0
    assert ops(daemon)[-1] == "stop"
    assert "Traceback" not in daemon.log_path.read_text()


def test_start_after_sigkill(daemon: Daemon) -> None:
    invitation = daemon.add_user("dora")
    daemon.kill()
    assert (daemon.root / "run" / "address").exists(), "nobody was there to remove it"
    assert daemon.run("status").lines[0].split() == ["running", "no"]
    assert json.loads(daemon.run("user", "show", "dora", "--json").text)["state"] == "invited"
    daemon.start()
    daemon.run("audit", "verify")
    assert parse_invitation(invitation).address == daemon.address


def test_commands_work_with_and_without_a_daemon(daemon: Daemon) -> None:
    daemon.add_user("dora")
    daemon.run("user", "disable", "dora")
    seen = [daemon.run("user", *words).text for words in (("list", "--json"), ("show", "dora"))]
    daemon.stop()
    again = [daemon.run("user", *words).text for words in (("list", "--json"), ("show", "dora"))]
    assert seen == again
    daemon.run("user", "enable", "dora")
    blames(daemon.run("user", "show", "nobody", code=3))
    daemon.start()
    assert json.loads(daemon.run("user", "list", "--json").text)["state"] == "invited"
    blames(daemon.run("user", "show", "nobody", code=3))
    assert ops(daemon).count("login") >= 4


def test_an_invitation_names_the_public_address(daemon: Daemon) -> None:
    assert parse_invitation(daemon.add_user("dora")).address == daemon.address
    (daemon.root / "sfsd.toml").write_text('public = "files.example.lan:7373"\n')
    assert parse_invitation(daemon.add_user("dora")).address == "files.example.lan:7373"


def test_an_enrolled_user_cannot_be_invited_again(daemon: Daemon, alice: Client) -> None:
    blames(daemon.run("user", "add", "alice", code=6))
    alice.run("ls")


def test_a_disabled_user_is_disconnected_and_can_be_enabled(
    daemon: Daemon, alice: Client, tmp_path: Path
) -> None:
    (tmp_path / "f").write_text("kept")
    alice.run("put", "f", cwd=tmp_path)
    with sfsc.connect(alice.home) as store:
        assert store.stat("f").size == 4
        daemon.run("user", "disable", "alice", "--reason", "lost laptop")
        with pytest.raises(SfscError):
            store.stat("f")
    assert "Traceback" not in alice.run("ls", code=4).stderr
    assert json.loads(daemon.run("user", "show", "alice", "--json").text)["state"] == "disabled"
    daemon.run("user", "enable", "alice")
    assert alice.run("ls").lines == ["f"]


def test_usage_is_what_the_files_take_on_the_disk(
    daemon: Daemon, alice: Client, bob: Client, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(bytes(100_000))
    alice.run("put", "f", cwd=tmp_path)
    alice.run("share", "f", "bob", "--trust-first-use")
    alice.run("put", "f", cwd=tmp_path)
    bob.run("rotate")
    files = daemon.root / "store" / "users" / "alice" / "files"
    stored = sum(path.stat().st_size for path in files.glob("*/*"))
    for _ in range(2):
        shown = json.loads(daemon.run("user", "show", "alice", "--json").text)
        assert (shown["state"], shown["files"], shown["generation"]) == ("enrolled", 1, 1)
        assert shown["used"] == stored > 200_000
        assert len(shown["fingerprint"]) == 64
        daemon.kill()
        daemon.start()


@pytest.mark.slow
def test_a_stop_under_load_is_quick_and_loses_nothing(
    daemon: Daemon, alice: Client, bob: Client, tmp_path: Path
) -> None:
    """The daemon stops while small files and a large one are stored and one upload is stuck.

    Clients that wait for the next start then continue. Other uploads leave nothing visible.
    """
    source = tmp_path / "source"
    source.mkdir()
    names = [f"small-{number:04}" for number in range(1200)]
    for name in names:
        (source / name).write_bytes(os.urandom(2000))
    with (source / "large").open("wb") as file:
        file.truncate(3 * 1024**3)
    patient = alice.start("--json", "put", *names, cwd=source)
    others = [bob.start("put", "large", cwd=source), bob.start("put", "-", "--name", "stuck")]
    assert others[1].stdin is not None
    others[1].stdin.write(bytes(3 * 1024 * 1024))
    others[1].stdin.flush()
    until(lambda: '"op":"upload"' in (daemon.root / "logs" / "audit.jsonl").read_text())
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 10
    assert ops(daemon)[-1] == "stop"
    for process in others:
        process.kill()
        process.communicate()
    stored = ops(daemon).count("upload")
    assert stored < len(names), "it stopped when all was done"
    daemon.start()
    stdout, stderr = patient.communicate(timeout=100)
    assert (patient.returncode, stderr) == (0, b"")
    assert {json.loads(line)["name"] for line in stdout.splitlines()} == set(names)
    assert set(alice.run("ls").lines) == set(names)
    assert ops(daemon).count("upload") == len(names), "none was stored twice"
    daemon.run("audit", "verify")
    for name in names[:: len(names) // 3]:
        alice.run("get", name, "-o", tmp_path / name)
        assert (tmp_path / name).read_bytes() == (source / name).read_bytes()
    assert bob.run("ls").lines == []
    assert "Traceback" not in daemon.log_path.read_text()


def test_clients_accept_a_stated_new_tls_key(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    before = server_keys.load(daemon.root / "keys")
    server_keys.create(tmp_path / "new", int(time.time()))
    for name in ("tls.key", "tls.crt"):
        (daemon.root / "keys" / name).write_bytes((tmp_path / "new" / name).read_bytes())
    alice.run("ls")
    blames(daemon.run("status", code=1), "restart")
    daemon.stop()
    daemon.start()
    assert server_keys.load(daemon.root / "keys").spki_sha256 != before.spki_sha256
    alice.run("ls")
    daemon.run("status")
    daemon.run("audit", "verify")
    assert ops(daemon).count("server-statement") == 2


def test_a_changed_log_stops_changes_and_downloads(
    daemon: Daemon, alice: Client, tmp_path: Path
) -> None:
    """The start trusts the marked log; the background check finds the change, and reads go on."""
    (tmp_path / "f").write_text("kept")
    alice.run("put", "f", cwd=tmp_path)
    daemon.stop()
    log = daemon.root / "logs" / "audit.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"time":"2', b'"time":"1')
    log.write_bytes(b"".join(lines))
    blames(daemon.run("audit", "verify", code=5), "entry 3:")
    daemon.start()
    until(lambda: "damaged" in daemon.log_path.read_text())
    listed = alice.run("ls")
    assert listed.lines == ["f"]
    assert "can write nothing to its log" in listed.stderr
    for words in (("put", "f"), ("get", "f", "-o", "out")):
        refused = alice.run(*words, cwd=tmp_path, code=7)
        assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out").exists()
    told = json.loads(daemon.run("status", "--json").text)
    assert "entry 3" in told["failed"]
    assert daemon.stop() == 0


def test_a_torn_log_end_is_cut_and_a_short_log_is_refused(daemon: Daemon) -> None:
    daemon.add_user("dora")
    daemon.stop()
    log = daemon.root / "logs" / "audit.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"seq":')
    daemon.start()
    daemon.run("audit", "verify")
    daemon.stop()
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(CommandFailed) as caught:
        daemon.start()
    assert "(exit 5)" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_concurrent_operator_commands(daemon: Daemon) -> None:
    """Every command has its own connection; all are served, and all invitations differ."""
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(daemon.add_user(f"user{n}")))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({parse_invitation(text).token for text in found}) == 6
    assert len(daemon.run("user", "list").lines) == 6


def test_the_port_is_closed_after_stop(daemon: Daemon) -> None:
    host, _, port = daemon.address.rpartition(":")
    daemon.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs root")
def test_commands_of_root_beside_a_service_account(daemon: Daemon) -> None:
    """They leave no file behind that the account of the daemon cannot open."""
    assert daemon.stop() == 0
    (daemon.root / "run" / "lock").unlink(missing_ok=True)
    settings = daemon.root / "sfsd.toml"
    settings.write_text(settings.read_text() + f'public = "{daemon.address}"\n')
    account = 65_534
    for path in [daemon.root, *daemon.root.rglob("*")]:
        os.chown(path, account, account)
    daemon.run("user", "add", "bob")
    daemon.run("rotate", "--all")
    daemon.run("rotate-keys", "tls")
    daemon.run("rotate-keys", "log")
    daemon.run("fsck", "--repair")
    daemon.run("status")
    with daemon:
        daemon.run("user", "add", "carol")
        files = [daemon.root, *daemon.root.rglob("*")]
        assert [str(path) for path in files if path.stat().st_uid != account] == []
