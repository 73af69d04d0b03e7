"""Key backups: every way to open an account on an empty machine, through the programs."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner

import sfsc
from protocol.records.records import WRAP_ALGORITHMS, Statement
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.files import Stat
from protocol.wire.messages.rotation import NewStatement
from protocol.wire.messages.sharing import Lookup
from sfsc.cli import terminal
from sfsc.cli.commands import Context, keys
from sfsc.errors import StaleGeneration, WrongPassphrase
from sfsc.keys.home import unlock_home
from sfsc.keys.keyring import Keyring, KeyringFile
from sfsc.session.transport import Transport
from tests.e2e.accounts import enrolled
from tests.e2e.test_main_job import objects
from tests.harness import Client, Daemon
from tests.terminal import converse

OPEN = "--no-passphrase"


@pytest.fixture
def alice(daemon: Daemon, tmp_path: Path) -> Client:
    user = enrolled(daemon, "alice", tmp_path / "alice", "x25519")
    user.run("put", "-", "--name", "kept/a", stdin=b"precious")
    return user


@pytest.fixture
def fresh(tmp_path: Path) -> Client:
    """A machine without a keyring."""
    return Client(tmp_path / "fresh")


def is_alice(client: Client) -> None:
    """Check that the client reads and writes the account's files and is one of its devices."""
    assert client.run("cat", "kept/a").stdout == b"precious"
    assert client.run("ls", "-R").lines == ["kept/a"]
    client.run("put", "-", "--name", "kept/b", stdin=b"more")
    client.run("rm", "kept/b")
    assert [one["here"] for one in objects(client.run("--json", "device", "list"))].count(True) == 1


def code_of(client: Client, old: str = "") -> tuple[str, str]:
    (made,) = objects(client.run("--json", "key", "recovery", stdin=old.encode() + b"\n"))
    return str(made["account"]), str(made["code"])


def recover(client: Client, account: str, code: str, expect: int = 0) -> None:
    client.run("init", "--recovery", OPEN, stdin=f"{account}\n{code}\n".encode(), code=expect)


def test_a_recovery_code_opens_the_account(daemon: Daemon, alice: Client, fresh: Client) -> None:
    account, code = code_of(alice)
    for path in alice.home.iterdir():
        path.unlink()
    recover(fresh, account, code)
    is_alice(fresh)
    assert [one["kind"] for one in objects(fresh.run("--json", "device", "list"))] == [
        *("machine", "machine", "recovery")
    ]
    recover(fresh, account, code, expect=1)  # the home already has an account
    daemon.stop()
    daemon.run("audit", "verify")


def test_wrong_recovery_codes(alice: Client, fresh: Client, tmp_path: Path) -> None:
    account, code = code_of(alice)
    mistyped = code[:-1] + ("A" if code[-1] != "A" else "B")
    recover(fresh, account, mistyped, expect=2)
    recover(fresh, "sfs://nonsense", code, expect=2)
    other = account.replace("alice", "nobody")
    recover(fresh, other, code, expect=4)
    assert not fresh.home.exists() or not (fresh.home / "keyring").exists()
    # As users type it: lower case, no hyphens, similar characters.
    recover(fresh, account, code.lower().replace("-", " ").replace("o", "0"))
    is_alice(fresh)


def test_replacing_the_recovery_code_needs_the_old_one(alice: Client, fresh: Client) -> None:
    account, first = code_of(alice)
    unanswered = alice.run("key", "recovery", stdin=b"\n", code=2)
    assert not unanswered.stdout  # a code that was shown may have been printed and must stay valid
    wrong = first[:-1] + ("A" if first[-1] != "A" else "B")
    mistyped = alice.run("key", "recovery", stdin=wrong.encode() + b"\n", code=2)
    assert "mistyped in group 14" in mistyped.stderr
    _, second = code_of(alice, first)
    assert not alice.run("key", "recovery", stdin=first.encode() + b"\n", code=4).stdout
    line = f"{account}\n{first}\n".encode()
    refused = fresh.run("init", "--recovery", OPEN, stdin=line, code=4)
    assert "is it the newest one" in refused.stderr
    recover(fresh, account, second)
    is_alice(fresh)


def test_printing_a_recovery_code(alice: Client, fresh: Client) -> None:
    shown = alice.run("key", "recovery")
    assert shown.text.startswith("sfs account\n")
    assert any(block in shown.text for block in "▀▄█")
    # What it shows can be read back as a whole.
    fresh.run("init", "--recovery", "--from", "-", OPEN, stdin=shown.stdout)
    is_alice(fresh)


def test_the_passphrase_of_a_backup_is_asked_first(
    alice: Client, fresh: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice.run("key", "backup", tmp_path / "backup")
    prompts: list[str] = []

    def prompt(text: str) -> str:
        prompts.append(text)
        return "wrong"

    monkeypatch.setattr(terminal, "_is_in_environment", lambda: False)
    monkeypatch.setattr(terminal, "_prompt", prompt)
    done = CliRunner().invoke(keys.key_restore, [str(tmp_path / "backup")], obj=Context(fresh.home))
    assert isinstance(done.exception, WrongPassphrase)
    assert str(tmp_path / "backup") in done.exception.cause
    assert prompts == ["Passphrase of the backup: "]


def test_messages_of_rotations(alice: Client) -> None:
    assert "here" not in alice.run("verify-rotation").text
    assert "stays unchanged" in alice.run("rotate", "--plan").text
    plan = alice.run("rotate", "--compromised", "--plan").text
    assert "unchanged" not in plan
    assert "encrypted and stored again" in plan
    refused = alice.run("device", "drop", "zzz", code=3)
    assert "no device has the label or id zzz" in refused.stderr


@pytest.mark.parametrize("locked", [True, False])
def test_restoring_a_backup_adds_a_device(
    daemon: Daemon, alice: Client, fresh: Client, tmp_path: Path, *, locked: bool
) -> None:
    file = tmp_path / "safe" / "backup"
    alice.run("key", "backup", file, *([] if locked else [OPEN]))
    alice.run("key", "backup", file, code=1)
    assert (file.stat().st_mode & 0o777) == 0o600
    assert len(objects(alice.run("--json", "device", "list"))) == 2
    if locked:
        refused = Client(fresh.home, "another").run("key", "restore", file, code=8)
        assert str(file) in refused.stderr
    fresh.run("key", "restore", file)
    is_alice(fresh)
    is_alice(alice)
    # The same backup on a third machine; every machine has its own key.
    third = Client(tmp_path / "third")
    third.run("key", "restore", file, OPEN)
    is_alice(third)
    devices = objects(alice.run("--json", "device", "list"))
    assert len({one["device"] for one in devices}) == 4
    # The user identifies a lost device by its date.
    (enrolled_at,) = [cast("int", one["since"]) for one in devices if one["here"]]
    assert all(enrolled_at <= cast("int", one["since"]) <= time.time() for one in devices)
    assert all(line.split("\t")[2].startswith("20") for line in alice.run("device", "list").lines)
    fresh.run("key", "restore", file, code=1)


@pytest.mark.parametrize("key_type", WRAP_ALGORITHMS)
def test_pem_export_and_import(
    daemon: Daemon, fresh: Client, tmp_path: Path, key_type: str
) -> None:
    carol = enrolled(daemon, "carol", tmp_path / "carol", key_type)
    carol.run("put", "-", "--name", "kept/a", stdin=b"precious")
    file = tmp_path / "keys.pem"
    if key_type == "xwing":
        carol.run("key", "export", "--pem", file, code=8)
        return
    carol.run("key", "export", "--pem", file)
    assert b"ENCRYPTED" in file.read_bytes()
    assert (file.stat().st_mode & 0o777) == 0o600
    carol.run("key", "export", "--pem", file, code=1)
    Client(fresh.home, "wrong").run("init", "--import-key", file, code=8)
    fresh.run("init", "--import-key", file, OPEN)
    is_alice(fresh)
    bare = tmp_path / "bare.pem"
    carol.run("key", "export", "--pem", bare, OPEN)
    for block in bare.read_bytes().split(b"-----END PRIVATE KEY-----\n")[:2]:
        # Another program reads it.
        read = subprocess.run(
            ["openssl", "pkey", "-noout", "-text"],
            input=block + b"-----END PRIVATE KEY-----\n",
            capture_output=True,
            check=True,
        )
        assert b"key" in read.stdout.lower()
    third = Client(tmp_path / "third")
    third.run("init", "--import-key", bare, OPEN)
    is_alice(third)


def test_an_account_with_an_imported_rsa_key(daemon: Daemon, fresh: Client, tmp_path: Path) -> None:
    """An RSA key created by another program serves as the account's wrapping key."""
    made = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"],
        capture_output=True,
        check=True,
    )
    (tmp_path / "own.pem").write_bytes(made.stdout)
    fresh.run(
        "init",
        "-",
        "--import-key",
        tmp_path / "own.pem",
        OPEN,
        stdin=daemon.add_user("dave").encode() + b"\n",
    )
    (me,) = objects(fresh.run("--json", "whoami"))
    assert me["key_type"] == "rsa3072"
    fresh.run("put", "-", "--name", "a", stdin=b"precious")
    assert fresh.run("cat", "a").stdout == b"precious"
    fresh.run("key", "export", "--pem", tmp_path / "out.pem", OPEN)
    theirs = subprocess.run(
        ["openssl", "pkey", "-in", tmp_path / "own.pem", "-pubout"], capture_output=True, check=True
    )
    blocks = (tmp_path / "out.pem").read_bytes().split(b"-----BEGIN")
    ours = subprocess.run(
        ["openssl", "pkey", "-pubout"],
        input=b"-----BEGIN" + blocks[2],
        capture_output=True,
        check=True,
    )
    assert ours.stdout == theirs.stdout


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", 8),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 8),
        (b"x" * 70_000, 8),
    ],
)
def test_files_without_keys_are_refused(
    fresh: Client, tmp_path: Path, content: bytes, code: int
) -> None:
    (tmp_path / "f").write_bytes(content)
    fresh.run("init", "--import-key", tmp_path / "f", OPEN, code=code)
    fresh.run("key", "restore", tmp_path / "f", OPEN, code=8)


def test_fingerprint_as_words(alice: Client) -> None:
    (me,) = objects(alice.run("--json", "key", "show"))
    (same,) = objects(alice.run("--json", "whoami"))
    assert me["fingerprint"] == same["fingerprint"]
    assert len(str(me["words"]).split()) == 32
    shown = " ".join(alice.run("key", "show").text.split())
    assert str(me["words"])[:40] in shown
    assert json.dumps(me["fingerprint"])[1:-1] in shown


def test_devices_join_concurrently(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    """Six machines restore one backup at the same time, and all join one after the other."""
    alice.run("key", "backup", tmp_path / "backup", OPEN)
    machines = [Client(tmp_path / f"machine {number}") for number in range(6)]
    running = [one.start("key", "restore", tmp_path / "backup", OPEN) for one in machines]
    for process in running:
        _, stderr = process.communicate(timeout=100)
        assert process.returncode == 0, stderr
    for one in machines:
        assert one.run("cat", "kept/a").stdout == b"precious"
    assert len(objects(alice.run("--json", "device", "list"))) == 8


def test_at_most_sixteen_devices(alice: Client, tmp_path: Path) -> None:
    for number in range(15):
        alice.run("key", "backup", tmp_path / f"{number}", OPEN)
    alice.run("key", "backup", tmp_path / "16", OPEN, code=2)
    assert not (tmp_path / "16").exists()
    alice.run("cat", "kept/a")


def test_kill_while_a_device_joins(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    """After a kill at any moment of `key restore`, the next command completes it."""
    alice.run("key", "backup", tmp_path / "backup", OPEN)
    finished = 0
    for number in range(8):
        machine = Client(tmp_path / f"machine {number}")
        process = machine.start("key", "restore", tmp_path / "backup", OPEN)
        try:
            process.wait(0.25 + 0.06 * number)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        if not (machine.home / "keyring").exists():
            machine.run("key", "restore", tmp_path / "backup", OPEN)
        finished += 1
        assert machine.run("cat", "kept/a").stdout == b"precious"
    assert len(objects(alice.run("--json", "device", "list"))) == 2 + finished


@pytest.mark.skipif(os.name == "nt", reason="needs a terminal of the kind that Unix has")
def test_init_prompts_for_the_invitation(daemon: Daemon, fresh: Client) -> None:
    asked = [("Invitation: ", daemon.add_user("alice"))]
    said = converse(fresh.home, "init", "-", OPEN, answers=asked).stderr
    assert said.endswith("\nmake a recovery code now: sfsc key recovery\n")
    (me,) = objects(fresh.run("whoami", "--json"))
    assert me["user"] == "alice"
    (here,) = objects(fresh.run("device", "list", "--json"))
    (again,) = objects(fresh.run("--json", "device", "list"))
    assert here == again | {"last_login": here["last_login"]}


def test_a_server_that_accepts_a_statement_but_reports_a_conflict(
    daemon: Daemon, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client follows the chain to the statement and still verifies its receipt."""
    call, sent = Transport.call, list[Request]()

    def lying(self: Transport, message: Request, seconds: float | None = None) -> Reply:
        reply = call(self, message, seconds)
        if isinstance(message, NewStatement):
            sent.append(message)
            if len(sent) == 1:
                return Error("stale-generation", "")
        return reply

    monkeypatch.setattr(Transport, "call", lying)
    with sfsc.connect(alice.home) as store:
        store.set_recovery(sfsc.new_recovery_code())
        assert store.has_recovery()
    assert len(sent) == 2
    assert sent[0] == sent[1]
    statements = unlock_home(alice.home, None).contents.statements
    assert [Statement.parse(body).n for body in statements] == [1, 2]


def test_a_keyring_never_returns_to_an_older_state(
    daemon: Daemon, alice: Client, fresh: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another machine rotates while a statement is sent, the statement is built again on top."""
    alice.run("key", "backup", tmp_path / "backup", OPEN)
    fresh.run("key", "restore", tmp_path / "backup", OPEN)
    call, save, saved, sent = Transport.call, KeyringFile.save, list[int](), list[Request]()

    def late(self: Transport, message: Request, seconds: float | None = None) -> Reply:
        if isinstance(message, NewStatement):
            sent.append(message)
            if len(sent) == 1:
                fresh.run("rotate")
        return call(self, message, seconds)

    def noting(self: KeyringFile, contents: Keyring) -> None:
        save(self, contents)
        saved.append(contents.generations[-1].generation)

    monkeypatch.setattr(Transport, "call", late)
    monkeypatch.setattr(KeyringFile, "save", noting)
    with sfsc.connect(alice.home) as store:
        store.set_recovery(sfsc.new_recovery_code())
        assert store.has_recovery()
    assert saved == sorted(saved)
    assert (saved[0], saved[-1]) == (1, 2)
    assert len(sent) > 1


def test_a_server_that_always_reports_conflicts(
    daemon: Daemon, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, asked = Transport.call, list[Request]()

    def lying(self: Transport, message: Request, seconds: float | None = None) -> Reply:
        asked.append(message)
        if isinstance(message, Lookup | Stat):
            return Error("stale-generation", "")
        return call(self, message, seconds)

    with sfsc.connect(alice.home) as store:
        monkeypatch.setattr(Transport, "call", lying)
        with pytest.raises(StaleGeneration):
            store.stat("kept/a")
    assert len(asked) < 20
