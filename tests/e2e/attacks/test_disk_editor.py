"""Somebody who can write the server's disk, but has no key, puts files of yesterday back."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.accounts import enrolled, new_root
from tests.harness import Client, Daemon

REMADE = "logs/tree/paths is made again from the log"


def put(client: Client, name: str, content: bytes, code: int = 0) -> None:
    client.run("put", "-", "--name", name, stdin=content, code=code)


def output(daemon: Daemon) -> str:
    return daemon.log_path.read_text()


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return new_root(tmp_path / "root")


def table(daemon: Daemon) -> Path:
    return daemon.root / "logs/tree/paths"


def rows_back(daemon: Daemon, yesterday: Path) -> None:
    """Put back the rows of alice's files of yesterday, with the mark of today."""
    with closing(sqlite3.connect(yesterday)) as old, closing(sqlite3.connect(table(daemon))) as now:
        rows = old.execute("SELECT * FROM paths WHERE path LIKE 'alice/files/%'").fetchall()
        with now:
            now.execute("DELETE FROM paths WHERE path LIKE 'alice/files/%'")
            now.executemany("INSERT INTO paths VALUES (?, ?, ?, ?)", rows)


@pytest.mark.parametrize("also", ["files", "rows"])
def test_files_of_yesterday_are_damaged_and_everything_else_serves(
    daemon: Daemon, tmp_path: Path, also: str
) -> None:
    users, kept = daemon.root / "store/users", tmp_path / "kept"
    with daemon:
        alice = enrolled(daemon, "alice", tmp_path / "alice")
        bob = enrolled(daemon, "bob", tmp_path / "bob")
        put(bob, "his", b"bob's")
        put(alice, "contract", b"salary 1000")
        put(alice, "gone", b"old secret")
        put(alice, "same", b"unchanged")
    shutil.copytree(users / "alice/files", kept / "files")
    shutil.copy(table(daemon), kept / "paths")
    with daemon:
        put(alice, "contract", b"salary 2000")
        put(alice, "will", b"important")
        alice.run("rm", "gone")
        alice.run("key", "backup", tmp_path / "backup", "--no-passphrase")
    shutil.rmtree(users / "alice/files")
    shutil.copytree(kept / "files", users / "alice/files")
    if also == "rows":
        rows_back(daemon, kept / "paths")
    before = output(daemon)
    with daemon:
        new = Client(tmp_path / "new")
        new.run("key", "restore", tmp_path / "backup")
        assert new.run("cat", "same").stdout == b"unchanged"
        for name in ("contract", "will"):
            assert new.run("cat", name, code=5).stdout == b""
        assert b"old secret" not in new.run("cat", "gone", code=5).stdout
        listed = new.run("ls", code=5)
        assert listed.lines == ["same"]
        assert listed.stderr.count("damaged on the server") == 3
        put(new, "fresh", b"stored")
        assert new.run("cat", "fresh").stdout == b"stored"
        assert bob.run("cat", "his").stdout == b"bob's"
    assert (REMADE in output(daemon)[len(before) :]) == (also == "rows")
    found = daemon.run("fsck", code=5).text
    assert found.count("changed: store/users/alice/files/") == 1
    assert found.count("missing: store/users/alice/files/") == 4


def test_ended_keys_do_not_log_in_with_a_chain_of_yesterday(daemon: Daemon, tmp_path: Path) -> None:
    account, kept = daemon.root / "store/users/alice", tmp_path / "kept"
    with daemon:
        alice = enrolled(daemon, "alice", tmp_path / "alice")
        bob = enrolled(daemon, "bob", tmp_path / "bob")
        put(alice, "secret", b"1")
        shutil.copytree(account, kept)
        shutil.copytree(alice.home, tmp_path / "stolen")
        alice.run("rotate", "--compromised")
        put(alice, "secret", b"2")
    for name in ("statements.json", "bundle", "account.json"):
        shutil.copy(kept / name, account / name)
    thief = Client(tmp_path / "stolen")
    with daemon:
        for client in (thief, alice):
            refused = client.run("cat", "secret", code=5)
            assert (refused.stdout, "not what the log says" in refused.stderr) == (b"", True)
        put(bob, "his", b"bob's")
        told = daemon.run("status")
        assert [line for line in told.lines if line.startswith("DAMAGED")] == [
            "DAMAGED      the account of alice: `sfsd fsck` shows more"
        ]
    assert "damaged account, which cannot be used: alice/statements.json: " in output(daemon)
    # The chain follows from the log; the bundle is on this machine, and its next one replaces it.
    daemon.run("fsck", "--repair", code=5)
    with daemon:
        assert alice.run("cat", "secret").stdout == b"2"
        assert thief.run("cat", "secret", code=4).stdout == b""
        assert "DAMAGED" not in daemon.run("status").text


def test_a_disabled_user_is_not_enabled_by_an_account_of_yesterday(
    daemon: Daemon, tmp_path: Path
) -> None:
    path = daemon.root / "store/users/alice/account.json"
    with daemon:
        alice = enrolled(daemon, "alice", tmp_path / "alice")
        put(alice, "mine", b"1")
        before = path.read_bytes()
        daemon.run("user", "disable", "alice")
    path.write_bytes(before)
    with daemon:
        alice.run("cat", "mine", code=5)
        assert "DAMAGED      the account of alice" in daemon.run("status").text
        daemon.run("user", "add", "alice", code=5)
        assert "alice" in daemon.run("user", "list", code=5).stderr
    daemon.run("fsck", "--repair")
    with daemon:
        alice.run("cat", "mine", code=4)
        daemon.run("user", "enable", "alice")
        assert alice.run("cat", "mine").stdout == b"1"


def test_a_bundle_of_yesterday_is_damaged(daemon: Daemon, tmp_path: Path) -> None:
    bundle = daemon.root / "store/users/alice/bundle"
    with daemon:
        alice = enrolled(daemon, "alice", tmp_path / "alice")
        before = bundle.read_bytes()
        shutil.copytree(alice.home, tmp_path / "other")
        alice.run("rotate")
        put(alice, "mine", b"1")
    bundle.write_bytes(before)
    with daemon:
        other = Client(tmp_path / "other")  # it needs the bundle for the new keys
        other.run("cat", "mine", code=5)
        assert alice.run("cat", "mine").stdout == b"1"


def test_what_a_killed_daemon_acknowledged_is_read_after_its_start(
    daemon: Daemon, tmp_path: Path
) -> None:
    with daemon:
        alice = enrolled(daemon, "alice", tmp_path / "alice")
        put(alice, "mine", b"1")
    with daemon:
        put(alice, "mine", b"2")
        put(alice, "other", b"3")
        daemon.kill()
    before = output(daemon)
    with daemon:
        assert alice.run("cat", "mine").stdout == b"2"
        assert alice.run("ls").lines == ["mine", "other"]
    assert REMADE not in output(daemon)[len(before) :]
    assert "no damage left" in daemon.run("fsck").text
