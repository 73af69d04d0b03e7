"""The audit log for users: portable receipts, complete histories, and detected split views."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import sfsc
from protocol.log.auditlog import LogEntry
from sfsc.log.account_log import AccountLog
from tests.e2e.accounts import enrolled
from tests.e2e.test_main_job import objects, through
from tests.harness import Client, Daemon, Result

OPEN = "--no-passphrase"


def put(client: Client, name: str, content: bytes = b"content", code: int = 0) -> Result:
    return client.run("put", "-", "--name", name, stdin=content, code=code)


# --- receipts


def test_a_receipt_verifies_offline_without_keys(
    daemon: Daemon, alice: Client, tmp_path: Path
) -> None:
    proof = tmp_path / "proof"
    alice.run("put", "-", "--name", "a", "--receipt", proof, stdin=b"content")
    assert proof.read_bytes().startswith(b"c2sp.org/tlog-proof@v1\n")
    (status,) = objects(alice.run("--json", "status"))
    daemon.stop()
    # Offline and without keys: there is no keyring.
    (alice.home / "keyring").rename(tmp_path / "keyring")
    (told,) = objects(alice.run("--json", "audit", "check", proof))
    assert (told["op"], told["actor"], told["version"]) == ("upload", "alice", 1)
    stranger = Client(tmp_path / "stranger")
    (same,) = objects(
        stranger.run("--json", "audit", "check", proof, "--vkey", str(status["log_vkey"]))
    )
    assert same == told
    refused = stranger.run("audit", "check", proof, code=1).stderr
    assert refused.startswith("sfsc: no account in ")
    assert "--vkey" in refused
    stranger.run("audit", "check", proof, "--vkey", "nonsense", code=2)


def test_a_tampered_receipt_is_refused(alice: Client, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    alice.run("put", "-", "--name", "a", "--receipt", proof, stdin=b"content")
    alice.run("put", "-", "--name", "b", "--receipt", proof, stdin=b"x", code=1)  # the file exists
    alice.run("stat", "b", code=3)  # so nothing was stored
    text = proof.read_bytes()
    lines = text.split(b"\n")
    wrong = [
        text[:-10],
        text.replace(b"index ", b"index 1", 1),
        b"\n".join([*lines[:1], *lines[2:]]),
        b"\n".join([*lines[:3], *lines[4:]]),
        text + b"x",
        b"",
        b"\xff" * 1000,
    ]
    for at in range(30, len(text), 211):
        changed = bytearray(text)
        changed[at] ^= 1
        wrong.append(bytes(changed))
    for number, data in enumerate(wrong):
        proof.write_bytes(data)
        assert alice.run("audit", "check", proof, code=5).stdout == b"", number


# --- history of an account


def test_a_valid_history(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put(alice, name)
        put(alice, name, b"again")
    alice.run("rm", "a")
    alice.run("restore", "a")
    alice.run("mv", "b", "d")
    alice.run("prune", "c", "--keep", "1")
    alice.run("cat", "c")
    alice.run("key", "backup", tmp_path / "backup", OPEN)
    bob = enrolled(daemon, "bob", tmp_path / "bob")
    put(bob, "a")
    daemon.run("user", "quota", "alice", "1GiB")
    (told,) = objects(alice.run("--json", "audit", "verify"))
    assert (told["records"], told["statements"], told["files"]) == (6 + 2 + 2 + 1, 2, 4)
    (his,) = objects(bob.run("--json", "audit", "verify"))
    assert (his["records"], his["files"]) == (1, 1)
    # On another machine without remembered state.
    other = Client(tmp_path / "other")
    other.run("key", "restore", tmp_path / "backup", OPEN)
    (same,) = objects(other.run("--json", "audit", "verify"))
    assert (same["records"], same["statements"]) == (told["records"], 3)


def test_the_history_of_a_file(daemon: Daemon, alice: Client) -> None:
    put(alice, "docs/a")
    put(alice, "docs/a", b"again")
    put(alice, "b")
    alice.run("cat", "docs/a")
    alice.run("rm", "docs/a")
    told = objects(alice.run("--json", "audit", "log", "docs/a"))
    assert [(one["op"], one["version"], one["actor"]) for one in told] == [
        ("upload", 1, "alice"),
        ("upload", 2, "alice"),
        ("download", 2, "alice"),
        ("delete", None, "alice"),
    ]
    everything = alice.run("audit", "log")
    assert "docs/a" not in everything.text  # deleted: a listing knows only its id
    assert "\tb\t1\t" in everything.text
    assert "login" in everything.text
    alice.run("audit", "log", "none", code=3)
    alice.run("mv", "b", "c")
    for name in ("b", "c"):
        assert "move" in alice.run("audit", "log", name).text


def test_the_log_and_the_store_must_agree(daemon: Daemon, alice: Client) -> None:
    """A store without its newest logged change is reported to the user who reads the history."""
    put(alice, "a")
    daemon.stop()
    files = daemon.root / "store" / "users" / "alice" / "files"
    kept = daemon.root.with_name("kept")
    shutil.copytree(files, kept)
    daemon.start()
    put(alice, "a", b"again")
    put(alice, "b")
    daemon.stop()
    shutil.rmtree(files)
    shutil.copytree(kept, files)
    daemon.start()
    (alice.home / "state.sqlite3").unlink()  # like a machine that has not seen the change
    assert "store" in alice.run("audit", "verify", code=5).stderr
    daemon.stop()
    assert len(daemon.run("fsck", code=5).lines) == 4


# --- split views


def test_a_restored_older_root_is_reported(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    put(alice, "a")
    daemon.stop()
    shutil.copytree(daemon.root, tmp_path / "yesterday")
    daemon.start()
    put(alice, "b")
    put(alice, "a", b"newer")
    daemon.stop()
    shutil.rmtree(daemon.root)
    shutil.copytree(tmp_path / "yesterday", daemon.root)
    daemon.start()
    failed = alice.run("ls", code=5)
    (evidence,) = (alice.home / "evidence").iterdir()
    assert str(evidence) in failed.stderr
    text = evidence.read_text()
    # The two that contradict each other, and the one to which this machine has followed the log.
    assert text.count("\n— sfs/") == 3
    assert (evidence.stat().st_mode & 0o777) == 0o600
    # Every command reports it, and no second evidence file is written.
    for arguments in (("cat", "a"), ("status",), ("audit", "verify")):
        alice.run(*arguments, code=5)
    put(alice, "c", code=5)
    assert list((alice.home / "evidence").iterdir()) == [evidence]
    # The operator explains the restore, and the user accepts it.
    alice.run("audit", "accept", stdin=b"no\n", code=2)
    alice.run("ls", code=5)
    alice.run("audit", "accept", stdin=b"yes\n")
    assert alice.run("cat", "a").stdout == b"content"
    put(alice, "b")
    alice.run("audit", "verify")
    assert evidence.exists()


def test_a_server_that_returns_to_its_first_log(
    daemon: Daemon, alice: Client, tmp_path: Path
) -> None:
    """Reading works, because the log is the known one, but nothing is signed for that server."""
    put(alice, "a")
    daemon.stop()
    shutil.copytree(daemon.root, tmp_path / "other")
    daemon.start()
    put(alice, "b")
    daemon.stop()
    first = daemon.root.rename(tmp_path / "first")
    (tmp_path / "other").rename(daemon.root)
    daemon.start()
    alice.run("ls", code=5)
    daemon.stop()
    daemon.root.rename(tmp_path / "other")
    first.rename(daemon.root)
    daemon.start()
    assert alice.run("cat", "b").stdout == b"content"
    for arguments in (("rm", "a"), ("mv", "a", "c"), ("key", "backup", tmp_path / "k", OPEN)):
        refused = alice.run(*arguments, code=5)
        assert "audit accept" in refused.stderr
    put(alice, "c", code=5)
    alice.run("audit", "accept", "--yes")
    put(alice, "c")


@pytest.fixture
def forked(daemon: Daemon, alice: Client, tmp_path: Path) -> tuple[Daemon, Client, Client]:
    """Return a daemon, a copy that shows bob another log since some time, and alice and bob."""
    bob = enrolled(daemon, "bob", tmp_path / "bob")
    put(alice, "a")
    daemon.stop()
    twin = Daemon(tmp_path / "twin")
    shutil.copytree(daemon.root, twin.root)
    daemon.start()
    twin.start()
    put(alice, "b")
    apart = through(twin.address, bob, tmp_path / "apart")
    for name in ("x", "y", "z"):
        put(apart, name)
    return twin, alice, apart


def test_a_checkpoint_signed_by_an_earlier_log_key(
    daemon: Daemon, alice: Client, tmp_path: Path
) -> None:
    """Otherwise an operator who changes the log key as documented would look like an attacker."""
    note = tmp_path / "note"
    note.write_bytes(alice.run("audit", "checkpoint").stdout)
    daemon.stop()
    daemon.run("rotate-keys", "log")
    daemon.start()
    put(alice, "more")
    assert "same log" in alice.run("audit", "compare", note).text
    note.write_bytes(b"nonsense")
    refused = alice.run("audit", "compare", note, code=5).stderr
    assert "not a checkpoint of this server's log" in refused
    assert not (alice.home / "evidence").exists()
    put(alice, "still trusted")


def test_two_users_compare_checkpoints(
    forked: tuple[Daemon, Client, Client], daemon: Daemon, tmp_path: Path
) -> None:
    twin, alice, bob = forked
    with twin:
        note = tmp_path / "note"
        note.write_bytes(alice.run("audit", "checkpoint").stdout)
        same = alice.run("audit", "compare", note)
        assert "same log" in same.text
        put(alice, "more")
        alice.run("audit", "compare", note)
        for client, other in ((bob, alice), (alice, bob)):
            note.write_bytes(other.run("audit", "checkpoint").stdout)
            failed = client.run("audit", "compare", note, code=5)
            (evidence,) = (client.home / "evidence").iterdir()
            assert str(evidence) in failed.stderr
            put(client, "c", code=5)
        note.write_bytes(b"nonsense")
        alice.run("audit", "compare", note, code=5)
        operator = daemon.run("audit", "checkpoint")
        note.write_bytes(operator.stdout)
        alice.run("audit", "compare", note)


@pytest.mark.parametrize("first", [True, False])
def test_a_rotation_during_verification_is_not_tampering(
    alice: Client, monkeypatch: pytest.MonkeyPatch, *, first: bool
) -> None:
    """A rotation before or after the log is read is not tampering."""
    entries = AccountLog.entries

    def rotated(own: AccountLog) -> list[LogEntry]:
        found = [] if first else entries(own)
        alice.run("rotate")
        put(alice, "b")
        return entries(own) if first else found

    with sfsc.connect(alice.home) as store:
        put(alice, "a")
        with monkeypatch.context() as patch:
            patch.setattr(AccountLog, "entries", rotated)
            assert store.audit_verify().statements == 3
        assert store.audit_verify().files == 2
