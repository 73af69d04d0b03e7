"""The owner takes back, with the recovery code, an account whose keys were stolen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sfsc
from protocol.wire.messages.accounts import Usage, UsageAnswer
from sfsc.crypto.wrap import PrivateKey
from sfsc.errors import KeyringError, SfscError
from sfsc.keys.bundle import open_bundle
from sfsc.keys.home import unlock_home
from sfsd.storage.json_files import parse_statements
from tests.e2e.accounts import enrolled
from tests.e2e.test_main_job import objects
from tests.e2e.test_rotation import read
from tests.e2e.thief import copied, thief
from tests.harness import Client, Daemon, environment, run

OPEN = "--no-passphrase"
FULL = os.environ.get("SFS_ROTATION") == "full"
FILES = {name: name.encode() * 50 for name in ("a", "b", "c", "d", "kept", "over", "w")}


@pytest.fixture
def alice(daemon: Daemon, tmp_path: Path) -> Client:
    """Alice has the files `FILES`, an older version, and trash."""
    user = enrolled(daemon, "alice", tmp_path / "alice", "x25519")
    with sfsc.connect(user.home) as store:
        folder = tmp_path / "files"
        folder.mkdir()
        for name, content in {**FILES, "trash": b"trash"}.items():
            (folder / name).write_bytes(content)
        (folder / "older").write_bytes(b"older")
        store.put(folder / "older", name="over")
        list(store.put_many([(folder / name, name) for name in (*FILES, "trash")]))
        store.rm("trash")
    return user


@pytest.fixture
def code(alice: Client) -> tuple[str, str]:
    made = sfsc.new_recovery_code()
    with sfsc.connect(alice.home) as store:
        store.set_recovery(made)
        return store.link, made


def init_by_code(machine: Client, code: tuple[str, str], *more: str, expect: int = 0) -> str:
    typed = f"{code[0]}\n{code[1]}\n".encode()
    return machine.run("init", "--recovery", OPEN, *more, stdin=typed, code=expect).stderr


def take_back(
    where: str, alice: Client, code: tuple[str, str], expect: int = 0, lost: str = ""
) -> Client:
    """Take the account back on an empty device with the code alone, or on the owner's device, which
    still knows the names of `lost` files."""
    if where == "owner's machine":
        line = code[1].encode() + b"\n"
        shown = alice.run("rotate", "--recovery", stdin=line, code=2)
        assert "nothing was done" in shown.stderr
        assert shown.stderr.count("undone") >= 1
        stderr = alice.run("rotate", "--recovery", "--yes", stdin=line, code=expect).stderr
        for name in lost.split():
            assert f"sfsc: {name}: somebody with stolen keys has" in stderr, stderr
        return alice
    fresh = Client(alice.home.with_name("fresh"))
    stderr = init_by_code(fresh, code, expect=5)
    assert "somebody else" in stderr
    assert not (fresh.home / "keyring").exists()
    init_by_code(fresh, code, "--take-back", expect=expect)
    return fresh


def check(machine: Client, files: dict[str, bytes]) -> None:
    """Verify the files, and that nothing of older keys is left."""
    with sfsc.connect(machine.home, auto_rotate=False) as store:
        assert {entry.name: read(store, entry.name) for entry in store.ls()} == files
        store.verify_rotation()
        store.audit_verify()


WHERE = ["empty machine", "owner's machine"]


@pytest.mark.parametrize("where", WHERE)
def test_undo_an_unfinished_takeover(
    daemon: Daemon, alice: Client, code: tuple[str, str], tmp_path: Path, where: str
) -> None:
    """The attacker joins, begins a generation, uploads, overwrites, deletes, renames, restores."""
    copy = copied(alice, tmp_path / "copy")
    (tmp_path / "forged").write_bytes(b"forged")
    with thief(copy.home) as attacker:
        attacker.begin()
        attacker.store.put(tmp_path / "forged", name="forged")
        attacker.store.put(tmp_path / "forged", name="forged, deleted")
        attacker.store.rm("forged, deleted")
        attacker.store.put(tmp_path / "forged", name="over")
        attacker.store.put(tmp_path / "forged", name="a")
        attacker.store.rm("a")
        attacker.store.rm("b")
        attacker.store.mv("c", "elsewhere")
        attacker.store.mv("d", "trash")
        # The owner's device is locked out, and learns no more than that.
        assert "rotate --recovery" in alice.run("ls", code=4).stderr
        with pytest.raises(sfsc.Denied):
            attacker.store.set_recovery(sfsc.new_recovery_code(), sfsc.new_recovery_code())
        machine = take_back(where, alice, code)
        with pytest.raises(SfscError):
            attacker.store._session.transport.call(Usage())
        with pytest.raises(SfscError):
            attacker.store.put(tmp_path / "forged", name="late")
    assert copy.run("ls", code=4).code == 4
    check(machine, FILES)
    machine.run("get", "a", "--version", "2", "-o", tmp_path / "no", code=5)
    history = objects(machine.run("--json", "history", "a"))
    assert [(one["op"], one["voided"]) for one in history] == [
        ("put", False),
        ("put", True),
        ("delete", True),
        ("restore", False),
    ]
    assert "by a stolen key" in machine.run("history", "elsewhere").text
    # Work and another rotation continue; the code opens the present account.
    machine.run("put", "-", "--name", "forged", stdin=b"mine")
    machine.run("rotate")
    check(machine, {**FILES, "forged": b"mine"})
    init_by_code(Client(tmp_path / "third"), code)
    daemon.stop()
    daemon.run("audit", "verify")
    daemon.run("fsck", "--read-data")


@pytest.mark.parametrize("where", WHERE[1:])
def test_destroyed_versions_are_named_and_the_rest_is_restored(
    daemon: Daemon, alice: Client, code: tuple[str, str], tmp_path: Path, where: str
) -> None:
    copy = copied(alice, tmp_path / "copy")
    with thief(copy.home) as attacker:
        attacker.begin()
        attacker.rewrap("w", "over")
        attacker.store.rm("a")
        attacker.store.purge("a")
        attacker.store.prune("over", keep=1)
    machine = take_back(where, alice, code, expect=5, lost="a over w")
    left = {name: FILES[name] for name in ("b", "c", "d", "kept")}
    check(machine, left)
    for name in ("a", "over", "w"):
        machine.run("put", "-", "--name", name, stdin=b"again")
    check(machine, {**left, **dict.fromkeys(("a", "over", "w"), b"again")})
    machine.run("rotate", "--compromised")
    daemon.stop()
    daemon.run("fsck")


@pytest.mark.parametrize("where", WHERE)
def test_undo_a_finished_takeover(
    daemon: Daemon, alice: Client, code: tuple[str, str], tmp_path: Path, where: str
) -> None:
    """All files are wrapped for the attacker alone, so contents are lost but the account is not."""
    copy = copied(alice, tmp_path / "copy")
    with thief(copy.home) as attacker:
        attacker.begin()
        attacker.finish()
    alice.run("ls", code=4)
    machine = take_back(where, alice, code, expect=5, lost=" ".join(FILES))
    check(machine, {})
    machine.run("put", "-", "--name", "a", stdin=b"again")
    machine.run("rotate")
    check(machine, {"a": b"again"})
    assert copy.run("ls", code=4).code == 4
    # A second attacker with the new keys is undone too; the first stays undone.
    copy = copied(machine, tmp_path / "again")
    with thief(copy.home) as attacker:
        attacker.begin()
        attacker.store.rm("a")
    line = code[1].encode() + b"\n"
    machine.run("rotate", "--recovery", "--yes", stdin=line)
    check(machine, {"a": b"again"})
    daemon.stop()
    daemon.run("audit", "verify")
    daemon.run("fsck")


def test_undo_changes_of_readers(
    daemon: Daemon, alice: Client, code: tuple[str, str], tmp_path: Path
) -> None:
    """Readers are as before too, and a reader follows the chain past the void statements."""
    bob = enrolled(daemon, "bob", tmp_path / "bob", "x25519")
    first = ("--trust-first-use",)
    for name in ("b", "kept"):
        alice.run("share", name, "bob", *first)
    (me,) = objects(alice.run("--json", "whoami"))
    bob.run("key", "verify", "alice", str(me["fingerprint"]))
    assert bob.run("cat", "alice:kept").stdout == FILES["kept"]
    copy = copied(alice, tmp_path / "copy")
    (tmp_path / "forged").write_bytes(b"forged")
    with thief(copy.home) as attacker:
        attacker.begin()
        attacker.store.share("a", "bob", trust_first_use=True)
        attacker.store.unshare("b", "bob")
        attacker.store.put(tmp_path / "forged", name="kept")
        assert bob.run("cat", "alice:a").stdout == FILES["a"]
    alice.run("rotate", "--recovery", "--yes", stdin=code[1].encode() + b"\n")
    check(alice, FILES)
    bob.run("cat", "alice:a", code=3)
    for name in ("b", "kept"):
        assert bob.run("cat", f"alice:{name}").stdout == FILES[name]


def test_another_accounts_code_is_rejected(
    alice: Client, code: tuple[str, str], tmp_path: Path
) -> None:
    other = sfsc.new_recovery_code()
    copy = copied(alice, tmp_path / "copy")
    with thief(copy.home) as attacker:
        attacker.begin()
    assert (
        "recovery code"
        in alice.run("rotate", "--recovery", "--yes", stdin=other.encode() + b"\n", code=4).stderr
    )
    init_by_code(Client(tmp_path / "fresh"), (code[0], other), "--take-back", expect=4)
    alice.run("rotate", "--recovery", "--yes", stdin=b"mistyped\n", code=2)
    alice.run("rotate", "--yes", code=2)
    alice.run("rotate", "--recovery", "--yes", stdin=code[1].encode() + b"\n")
    check(alice, FILES)


def test_undo_from_a_chosen_statement(alice: Client, code: tuple[str, str], tmp_path: Path) -> None:
    """An attacker used the ordinary client. The code opens that bundle too, so only a person can
    tell."""
    copy = copied(alice, tmp_path / "copy")
    with sfsc.connect(copy.home, auto_rotate=False) as store:
        store._rotation._begin("x25519", None, "rotate")
        store.rm("a")
    line = code[1].encode() + b"\n"
    plan = objects(alice.run("--json", "rotate", "--recovery", "--plan", stdin=line))
    assert [(one["n"], one["reason"], one["undone"]) for one in plan] == [
        (1, "enrol", False),
        (2, "recovery-key", False),
        (3, "rotate", False),
    ]
    for wrong in ("1", "5"):
        alice.run("rotate", "--recovery", "--yes", "--undo-from", wrong, stdin=line, code=2)
    alice.run("rotate", "--recovery", "--yes", "--undo-from", "3", stdin=line)
    check(alice, FILES)
    assert len(unlock_home(alice.home, None).contents.generations) == 1


def test_compromised_rotation_closes_other_sessions(alice: Client, tmp_path: Path) -> None:
    copy = copied(alice, tmp_path / "copy")
    with sfsc.connect(copy.home, auto_rotate=False) as stolen:
        assert stolen._session.call(Usage(), UsageAnswer).files == len(FILES)
        alice.run("rotate", "--compromised")
        with pytest.raises(sfsc.NetworkError):
            stolen._session.transport.call(Usage())


def test_old_keys_open_no_newer_bundle(daemon: Daemon, alice: Client) -> None:
    """The earlier private keys open none of the stored bundles that hold a newer key."""
    old = unlock_home(alice.home, None).contents
    for _ in range(2):
        alice.run("rotate")
    user = daemon.root / "store" / "users" / "alice"
    links = parse_statements("statements.json", (user / "statements.json").read_bytes())
    keys = [PrivateKey(one.wrap_alg, one.wrap_private) for one in old.generations]
    newest = PrivateKey("xwing", old.device.xwing_private)
    opened: list[int] = []
    for link in links:
        path = user / (f"bundle.{link.statement.n}" if link is not links[-1] else "bundle")
        bundle = open_bundle(path.read_bytes(), link.statement, [newest])
        assert bundle.generations[-1].generation == link.statement.generation
        try:
            bundle = open_bundle(path.read_bytes(), link.statement, keys)
        except KeyringError:
            continue
        opened += [one.generation for one in bundle.generations]
    assert set(opened) == {1}


KILLED = """
import os, signal, sys
from sfsc.session.transport import Transport
from sfsc.keys.keyring import KeyringFile
import sfsc

at, home, code = int(sys.argv[1]), sys.argv[2], sys.stdin.readline().strip()
count = 0

def step():
    global count
    count += 1
    if count == at:
        os.kill(os.getpid(), signal.SIGKILL)

submit, save = Transport.submit, KeyringFile.save

def submitting(transport, message):
    step()
    ticket = submit(transport, message)
    step()
    return ticket

def saving(file, contents):
    step()
    save(file, contents)
    step()

Transport.submit, KeyringFile.save = submitting, saving
sfsc.take_back(code, home=home)
print("done", count, flush=True)
"""


@pytest.mark.slow
def test_killed_take_back_resumes(
    daemon: Daemon, alice: Client, code: tuple[str, str], tmp_path: Path
) -> None:
    """Killed at each of many steps; a rerun or any other command finishes."""
    daemon.stop()
    with (daemon.root / "sfsd.toml").open("a") as file:
        file.write("\n[limits]\nrotations = 1000\n")  # more than this test needs
    daemon.start()
    at, thefts = 1, 0
    while True:
        thefts += 1
        copy = copied(alice, tmp_path / f"copy {thefts}")
        with thief(copy.home) as attacker:
            attacker.begin()
            attacker.store.rm("a")
            attacker.store.mv("b", f"x {thefts}")
        process = subprocess.run(
            [sys.executable, "-c", KILLED, str(at), str(alice.home)],
            input=code[1].encode() + b"\n",
            capture_output=True,
            env=environment({}),
            check=False,
        )
        if process.returncode == 0:
            assert process.stdout.startswith(b"done"), process.stderr
            break
        assert process.returncode == -signal.SIGKILL, process.stderr.decode()
        again = run("sfsc", ("ls",), alice.variables)
        if again.code != 0:  # not accepted yet: the code is needed again
            assert again.code == 4, again.stderr
            line = code[1].encode() + b"\n"
            alice.run("rotate", "--recovery", "--yes", stdin=line)
        check(alice, FILES)
        at += 1 if FULL else 17
    assert thefts > 3
    check(alice, FILES)
    daemon.stop()
    daemon.run("fsck")
