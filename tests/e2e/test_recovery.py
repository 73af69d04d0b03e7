"""An account that a thief has taken over with its keys, and that its recovery code takes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sfsc
from protocol.wire.messages.accounts import Usage, UsageAnswer
from sfsc.crypto.primitives import PrivateKey
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
    """Files, an older version, trash; what is there is `FILES`."""
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


def by_code(machine: Client, code: tuple[str, str], *more: str, expect: int = 0) -> str:
    typed = f"{code[0]}\n{code[1]}\n".encode()
    return machine.run("init", "--recovery", OPEN, *more, stdin=typed, code=expect).stderr


def taken_back(
    where: str, alice: Client, code: tuple[str, str], expect: int = 0, lost: str = ""
) -> Client:
    """From an empty machine with the code alone, or from the owner's, which still knows the names
    of what is `lost`."""
    if where == "owner's machine":
        line = code[1].encode() + b"\n"
        shown = alice.run("rotate", "--recovery", stdin=line, code=2)
        assert "nothing was done" in shown.stderr
        assert shown.stderr.count("undone") >= 1
        told = alice.run("rotate", "--recovery", "--yes", stdin=line, code=expect).stderr
        for name in lost.split():
            assert f"sfsc: {name}: somebody with stolen keys has" in told
        return alice
    fresh = Client(alice.home.with_name("fresh"))
    stderr = by_code(fresh, code, expect=5)
    assert "somebody else" in stderr
    assert not (fresh.home / "keyring").exists()
    by_code(fresh, code, "--take-back", expect=expect)
    return fresh


def check(machine: Client, files: dict[str, bytes]) -> None:
    """What there is; proven, and nothing of older keys left."""
    with sfsc.connect(machine.home, auto_rotate=False) as store:
        assert {entry.name: read(store, entry.name) for entry in store.ls()} == files
        store.verify_rotation()
        store.audit_verify()


WHERE = ["empty machine", "owner's machine"]


@pytest.mark.parametrize("where", WHERE)
def test_a_thief_who_seals_for_himself_alone(
    daemon: Daemon, alice: Client, code: tuple[str, str], tmp_path: Path, where: str
) -> None:
    """He begins a generation, uploads, overwrites, deletes, renames, brings trash back."""
    copy = copied(alice, tmp_path / "copy")
    (tmp_path / "his").write_bytes(b"his")
    with thief(copy.home) as he:
        he.device()
        he.begin()
        he.store.put(tmp_path / "his", name="his")
        he.store.put(tmp_path / "his", name="his, deleted")
        he.store.rm("his, deleted")
        he.store.put(tmp_path / "his", name="over")
        he.store.put(tmp_path / "his", name="a")
        he.store.rm("a")
        he.store.rm("b")
        he.store.mv("c", "elsewhere")
        he.store.mv("d", "trash")
        # The owner's machine is out, and cannot say more than that.
        assert "recovery" in alice.run("ls", code=8).stderr
        with pytest.raises(sfsc.Denied):
            he.store.set_recovery(sfsc.new_recovery_code(), sfsc.new_recovery_code())
        machine = taken_back(where, alice, code)
        with pytest.raises(SfscError):
            he.store._session.transport.call(Usage())
        with pytest.raises(SfscError):
            he.store.put(tmp_path / "his", name="late")
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
    # Work goes on, and another rotation too; the code opens what there is now.
    machine.run("put", "-", "--name", "his", stdin=b"mine")
    machine.run("rotate")
    check(machine, {**FILES, "his": b"mine"})
    by_code(Client(tmp_path / "third"), code)
    daemon.stop()
    daemon.run("audit", "verify")
    daemon.run("fsck", "--read-data")


@pytest.mark.parametrize("where", WHERE[1:])
def test_what_he_has_destroyed_is_named_and_the_rest_comes_back(
    daemon: Daemon, alice: Client, code: tuple[str, str], tmp_path: Path, where: str
) -> None:
    copy = copied(alice, tmp_path / "copy")
    with thief(copy.home) as he:
        he.begin()
        he.rewrap("w", "over")
        he.store.rm("a")
        he.store.purge("a")
        he.store.prune("over", keep=1)
    machine = taken_back(where, alice, code, expect=5, lost="a over w")
    left = {name: FILES[name] for name in ("b", "c", "d", "kept")}
    check(machine, left)
    for name in ("a", "over", "w"):
        machine.run("put", "-", "--name", name, stdin=b"again")
    check(machine, {**left, **dict.fromkeys(("a", "over", "w"), b"again")})
    machine.run("rotate", "--compromised")
    daemon.stop()
    daemon.run("fsck")


@pytest.mark.parametrize("where", WHERE)
def test_a_thief_who_finishes(
    daemon: Daemon, alice: Client, code: tuple[str, str], tmp_path: Path, where: str
) -> None:
    """Everything is wrapped for him alone, so the contents are his; the account is the owner's."""
    copy = copied(alice, tmp_path / "copy")
    with thief(copy.home) as he:
        he.begin()
        he.finish()
    alice.run("ls", code=8)
    machine = taken_back(where, alice, code, expect=5, lost=" ".join(FILES))
    check(machine, {})
    machine.run("put", "-", "--name", "a", stdin=b"again")
    machine.run("rotate")
    check(machine, {"a": b"again"})
    assert copy.run("ls", code=4).code == 4
    # A second thief, with today's keys: undone as well, and the first stays so.
    copy = copied(machine, tmp_path / "again")
    with thief(copy.home) as he:
        he.begin()
        he.store.rm("a")
    line = code[1].encode() + b"\n"
    machine.run("rotate", "--recovery", "--yes", stdin=line)
    check(machine, {"a": b"again"})
    daemon.stop()
    daemon.run("audit", "verify")
    daemon.run("fsck")


def test_whom_he_lets_in_and_whom_he_puts_out(
    daemon: Daemon, alice: Client, code: tuple[str, str], tmp_path: Path
) -> None:
    """Who may read is as before too; and who reads follows the chain through what was undone."""
    bob = enrolled(daemon, "bob", tmp_path / "bob", "x25519")
    first = ("--trust-first-use",)
    for name in ("b", "kept"):
        alice.run("share", name, "bob", *first)
    (me,) = objects(alice.run("--json", "whoami"))
    bob.run("key", "verify", "alice", str(me["fingerprint"]))
    assert bob.run("cat", "alice:kept").stdout == FILES["kept"]
    copy = copied(alice, tmp_path / "copy")
    (tmp_path / "his").write_bytes(b"his")
    with thief(copy.home) as he:
        he.begin()
        he.store.share("a", "bob", trust_first_use=True)
        he.store.unshare("b", "bob")
        he.store.put(tmp_path / "his", name="kept")
        assert bob.run("cat", "alice:a").stdout == FILES["a"]
    alice.run("rotate", "--recovery", "--yes", stdin=code[1].encode() + b"\n")
    check(alice, FILES)
    bob.run("cat", "alice:a", code=3)
    for name in ("b", "kept"):
        assert bob.run("cat", f"alice:{name}").stdout == FILES[name]


def test_a_code_that_is_not_the_account_s(
    alice: Client, code: tuple[str, str], tmp_path: Path
) -> None:
    other = sfsc.new_recovery_code()
    copy = copied(alice, tmp_path / "copy")
    with thief(copy.home) as he:
        he.begin()
    assert (
        "recovery code"
        in alice.run("rotate", "--recovery", "--yes", stdin=other.encode() + b"\n", code=4).stderr
    )
    by_code(Client(tmp_path / "fresh"), (code[0], other), "--take-back", expect=4)
    alice.run("rotate", "--recovery", "--yes", stdin=b"mistyped\n", code=2)
    alice.run("rotate", "--yes", code=2)
    alice.run("rotate", "--recovery", "--yes", stdin=code[1].encode() + b"\n")
    check(alice, FILES)


def test_a_person_says_from_where_on(alice: Client, code: tuple[str, str], tmp_path: Path) -> None:
    """A thief who used the ordinary client: his bundle opens, so only a person knows."""
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


def test_sessions_close_when_keys_were_stolen(alice: Client, tmp_path: Path) -> None:
    copy = copied(alice, tmp_path / "copy")
    with sfsc.connect(copy.home, auto_rotate=False) as his:
        assert his._session.call(Usage(), UsageAnswer).files == len(FILES)
        alice.run("rotate", "--compromised")
        with pytest.raises(sfsc.NetworkError):
            his._session.transport.call(Usage())


def test_bundles_of_before_open_nothing_of_now(daemon: Daemon, alice: Client) -> None:
    """With the private keys of before, and every bundle that the server keeps: no newer key."""
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
def test_killed_on_the_way(
    daemon: Daemon, alice: Client, code: tuple[str, str], tmp_path: Path
) -> None:
    """At each of many steps; a rerun, or whatever command comes next, finishes."""
    daemon.stop()
    with (daemon.root / "sfsd.toml").open("a") as file:
        file.write("\n[limits]\nrotations = 1000\n")  # more than anybody needs
    daemon.start()
    at, robbed = 1, 0
    while True:
        robbed += 1
        copy = copied(alice, tmp_path / f"copy {robbed}")
        with thief(copy.home) as he:
            he.begin()
            he.store.rm("a")
            he.store.mv("b", f"x {robbed}")
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
        again = run("sfsc", ("ls",), alice._environment)
        if again.code != 0:  # it was not accepted yet: the code is asked for once more
            assert again.code == 8, again.stderr
            line = code[1].encode() + b"\n"
            alice.run("rotate", "--recovery", "--yes", stdin=line)
        check(alice, FILES)
        at += 1 if FULL else 17
    assert robbed > 3
    check(alice, FILES)
    daemon.stop()
    daemon.run("fsck")
