"""Key rotation through the commands, also by two devices at once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import sfsc
from protocol.codec.values import changed
from protocol.records.records import ROTATE, WRAP_ITEM_SIZE
from protocol.wire.messages import Reply, Request
from protocol.wire.messages.rotation import NewStatement
from sfsc.account import rewrap
from sfsc.crypto.envelope import open_wraps
from sfsc.crypto.wrap import PrivateKey
from sfsc.errors import Tampered
from sfsc.keys.bundle import private_keys
from sfsc.keys.home import unlock_home
from sfsc.keys.keyring import Keyring
from sfsc.session.session import Session
from sfsd.storage.json_files import parse_sidecar
from tests.e2e.accounts import enrolled
from tests.e2e.test_main_job import objects
from tests.harness import Client, Daemon, command, environment

OPEN = "--no-passphrase"
NAMES = [f"{number:02}" for number in range(12)]


@pytest.fixture
def alice(daemon: Daemon, tmp_path: Path) -> Client:
    user = enrolled(daemon, "alice", tmp_path / "alice", "x25519")
    fill(user)
    return user


def fill(client: Client) -> None:
    """Store files, versions, trash, a purged version and a renamed file: 15 with content."""
    with sfsc.connect(client.home) as store:
        folder = client.home.with_name("files")
        folder.mkdir(exist_ok=True)
        for name in NAMES:
            (folder / name).write_bytes(name.encode() * 50)
        list(store.put_many([(folder / name, name) for name in NAMES]))
        for name in NAMES[:4]:
            store.put(folder / name, name=name)
        store.rm(NAMES[0])
        store.prune(NAMES[1], keep=1)
        store.mv(NAMES[2], "renamed")


def check_all(client: Client) -> None:
    """Read every file, old versions and trash included, and verify that no older key is left."""
    with sfsc.connect(client.home, auto_rotate=False) as store:
        verified = store.verify_rotation()
        assert verified.files == 16
        for name in NAMES[3:]:
            assert read(store, name) == name.encode() * 50
        assert read(store, "renamed") == NAMES[2].encode() * 50
        assert read(store, NAMES[3], 1) == NAMES[3].encode() * 50
        assert read(store, NAMES[0], 2) == NAMES[0].encode() * 50


def read(store: sfsc.Store, name: str, version: int | None = None) -> bytes:
    with store.open(name, version=version) as file:
        return file.read()


def keyring(client: Client) -> Keyring:
    return unlock_home(client.home, None).contents


def test_rotation_of_all_files(daemon: Daemon, alice: Client) -> None:
    before = keyring(alice)
    (plan,) = objects(alice.run("--json", "rotate", "--plan"))
    assert (plan["versions"], plan["begun"]) == (16, False)
    assert objects(alice.run("--json", "rotate", "--if-due")) == [{"due": False}]
    (done,) = objects(alice.run("--json", "rotate"))
    assert (done["generation"], done["files"], done["key_type"]) == (2, 16, "x25519")
    check_all(alice)
    after = keyring(alice)
    assert [one.generation for one in after.generations] == [2]
    assert before.generations[0] not in after.generations
    # The old private keys open no wrap on the server's disk.
    old = private_keys(before.generations)
    assert count_wraps_opened(daemon, before, old) == (16, 0)
    assert count_wraps_opened(daemon, after, private_keys(after.generations)) == (16, 16)
    alice.run("rm", "-r", "/", "--yes")
    daemon.stop()
    daemon.run("audit", "verify")
    daemon.run("fsck", "--read-data")
    steps = daemon.run("audit", "rotation", "alice").lines
    assert "rotate-finish" in steps[-1]


def count_wraps_opened(
    daemon: Daemon, owner: Keyring, keys: dict[bytes, PrivateKey]
) -> tuple[int, int]:
    """Return (wraps on the disk, wraps that one of the keys opens), ignoring their key ids."""
    wraps = opened = 0
    for path in (daemon.root / "store" / "users" / owner.user / "files").rglob("*.json"):
        sidecar = parse_sidecar(path.name, path.read_bytes())
        record = sidecar.content_record
        for wrap in sidecar.wraps:
            wraps += 1
            for key_id, key in keys.items():
                named = changed(wrap, key_id=key_id)
                try:
                    open_wraps(record, owner.first, (named,), {key_id: key})
                except Tampered:
                    continue
                opened += 1
    return wraps, opened


def test_purged_versions_are_not_counted(alice: Client, tmp_path: Path) -> None:
    (tmp_path / "gone").write_bytes(b"soon")
    alice.run("put", "gone", cwd=tmp_path)
    alice.run("rm", "--purge", "gone")
    (done,) = objects(alice.run("--json", "rotate"))
    assert (done["wrapped"], done["files"]) == (16, 16)


def test_rotation_in_several_batches(
    daemon: Daemon, alice: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = enrolled(daemon, "bob", tmp_path / "bob", "x25519")
    with sfsc.connect(bob.home) as store:
        store.put(tmp_path / "files" / NAMES[0], name="lent")
        store.share("lent", "alice", trust_first_use=True)
    monkeypatch.setattr(rewrap, "_CHUNK", 3)
    monkeypatch.setattr(rewrap, "MAX_BATCH", 5)
    with sfsc.connect(alice.home) as store:
        assert store.rotate().files == 17
        assert store.verify_rotation().files == 17
        store.get_shared("bob", "lent", tmp_path / "lent", trust_first_use=True)
        assert (tmp_path / "lent").read_bytes() == NAMES[0].encode() * 50
        assert read(store, NAMES[3], 1) == NAMES[3].encode() * 50


def test_from_rsa_to_x25519_to_xwing(daemon: Daemon, tmp_path: Path) -> None:
    user = enrolled(daemon, "carol", tmp_path / "carol", "rsa2048")
    for generation, key_type in enumerate(("rsa2048", "x25519", "xwing"), 1):
        if generation > 1:
            (done,) = objects(user.run("--json", "rotate", "--key-type", key_type))
            assert (done["generation"], done["key_type"]) == (generation, key_type)
        user.run("put", "-", "--name", key_type, stdin=key_type.encode())
    for name in ("rsa2048", "x25519", "xwing"):
        assert user.run("cat", name).stdout == name.encode()
    user.run("verify-rotation")
    user.run("audit", "verify")


def test_other_devices_adopt_rotated_keys(alice: Client, tmp_path: Path) -> None:
    alice.run("key", "backup", tmp_path / "backup", OPEN)
    other = Client(tmp_path / "other")
    other.run("key", "restore", tmp_path / "backup", OPEN)
    (recovery,) = objects(alice.run("--json", "key", "recovery"))
    alice.run("rotate")
    other.run("put", "-", "--name", "from other", stdin=b"x")
    assert [one.generation for one in keyring(other).generations] == [2]
    assert other.run("cat", NAMES[5]).stdout == NAMES[5].encode() * 50
    other.run("rotate")
    assert alice.run("cat", "from other").stdout == b"x"
    # A backup and a code made before two rotations still open the account.
    third, fourth = Client(tmp_path / "third"), Client(tmp_path / "fourth")
    third.run("key", "restore", tmp_path / "backup", OPEN)
    typed = f"{recovery['account']}\n{recovery['code']}\n".encode()
    fourth.run("init", "--recovery", OPEN, stdin=typed)
    for machine in (third, fourth):
        assert machine.run("cat", "from other").stdout == b"x"
        machine.run("verify-rotation")


def test_forced_rotation(daemon: Daemon, alice: Client) -> None:
    daemon.run("rotate", "alice", "--reason", "a laptop was stolen")
    careful = {"SFSC_AUTO_ROTATE": "0"}
    refused = run_with_environment(alice, careful, "put", "-", "--name", "x")
    assert refused.returncode == 4
    assert b"a laptop was stolen" in refused.stderr
    assert run_with_environment(alice, careful, "cat", NAMES[5]).stdout == NAMES[5].encode() * 50
    alice.run("put", "-", "--name", "x", stdin=b"x")  # rotates, and then it may
    assert keyring(alice).generations[-1].generation == 2
    alice.run("verify-rotation")
    daemon.run("rotate", "--all")
    daemon.run("rotate", "nobody", code=3)
    daemon.run("rotate", code=2)
    # A server's notice counts at most once a day; the command rotates at once.
    assert alice.run("cat", "x").stdout == b"x"
    assert keyring(alice).generations[-1].generation == 2
    alice.run("rotate")
    assert keyring(alice).generations[-1].generation == 3


def run_with_environment(
    client: Client, own: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*command("sfsc"), *arguments],
        input=b"content",
        capture_output=True,
        env=environment({"SFSC_HOME": str(client.home), **own}),
        check=False,
    )


def test_two_devices_rotate_and_upload_at_once(
    daemon: Daemon, alice: Client, tmp_path: Path
) -> None:
    alice.run("key", "backup", tmp_path / "backup", OPEN)
    others = [Client(tmp_path / f"machine {number}") for number in range(2)]
    for other in others:
        other.run("key", "restore", tmp_path / "backup", OPEN)
    before = keyring(alice)
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}").write_bytes(b"%d" % number)
    (folder / "big").write_bytes(os.urandom(9 << 20))
    rotating = [machine.start("rotate") for machine in (alice, others[0])]
    uploading = [
        machine.start("put", "-r", str(folder), "--name", f"at once {number}")
        for number, machine in enumerate(others)
    ]
    for process in (*rotating, *uploading):
        _, stderr = process.communicate(timeout=100)
        assert b"Traceback" not in stderr
        assert process.returncode == 0, stderr.decode()
    for machine in (alice, *others):
        machine.run("ls")  # finishes its own rotation, which may be another one
    for machine in (*others, alice):
        machine.run("verify-rotation")
    after = keyring(alice)
    assert len(after.generations) == 1
    assert after.generations[0].generation > 1
    assert count_wraps_opened(daemon, before, private_keys(before.generations)) == (140, 0)
    assert count_wraps_opened(daemon, before, private_keys(after.generations)) == (140, 140)
    for number in range(2):
        alice.run("get", "-r", f"at once {number}", "-o", tmp_path / "out")
        got = tmp_path / "out" / f"at once {number}"
        same = subprocess.run(["diff", "-r", folder, got], check=False, capture_output=True)
        assert same.returncode == 0, same.stdout


def test_compromised_rotation_replaces_all_keys(
    daemon: Daemon, alice: Client, tmp_path: Path
) -> None:
    """The old private keys, all old file keys and the server's disk open nothing."""
    (tmp_path / "big").write_bytes(os.urandom(3 << 20))
    alice.run("put", "big", cwd=tmp_path)
    before = keyring(alice)
    old_deks = deks(daemon, before)
    assert len(old_deks) == 17
    old_batches = wrap_batches(daemon)
    kept = {path.read_bytes() for path in blobs(daemon)}
    (done,) = objects(alice.run("--json", "rotate", "--compromised"))
    assert (done["generation"], done["files"]) == (2, 17)
    assert count_wraps_opened(daemon, before, private_keys(before.generations)) == (17, 0)
    assert all(path.read_bytes() not in kept for path in blobs(daemon))
    after, new_deks = keyring(alice), deks(daemon, keyring(alice))
    assert after.name_keys == before.name_keys
    assert after.device != before.device
    # The same versions and ids, each with another file key.
    assert {one[:-32] for one in new_deks} == {one[:-32] for one in old_deks}
    assert {one[-32:] for one in new_deks}.isdisjoint(one[-32:] for one in old_deks)
    # What a thief knows of the old keys opens no batch, and no two versions share a new one.
    batches = wrap_batches(daemon)
    assert len(batches) == 17
    assert batches.isdisjoint(old_batches)
    alice.run("get", "big", "-o", "back", cwd=tmp_path)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "big").read_bytes()
    alice.run("rm", "big")
    with sfsc.connect(alice.home) as store:
        store.purge("big")
    check_all(alice)
    alice.run("audit", "verify")
    # A second rotation without a theft moves no content.
    (again,) = objects(alice.run("--json", "rotate"))
    assert again["generation"] == 3
    assert len(wrap_batches(daemon)) == 1
    check_all(alice)
    daemon.stop()
    daemon.run("fsck", "--read-data")


def blobs(daemon: Daemon) -> list[Path]:
    return sorted((daemon.root / "store" / "users" / "alice" / "files").rglob("*.ct"))


def wrap_batches(daemon: Daemon) -> set[bytes]:
    """Return the batches of all wraps on the server: their ids and encrypted keys."""
    return {
        wrap.wrapped[:-WRAP_ITEM_SIZE]
        for path in (daemon.root / "store" / "users" / "alice" / "files").rglob("*.json")
        for wrap in parse_sidecar(path.name, path.read_bytes()).wraps
    }


def deks(daemon: Daemon, owner: Keyring) -> set[bytes]:
    """Return all file keys on the server by version, opened with the owner's key."""
    found = set()
    keys = private_keys(owner.generations)
    for path in (daemon.root / "store" / "users" / "alice" / "files").rglob("*.json"):
        sidecar = parse_sidecar(path.name, path.read_bytes())
        for wrap in sidecar.wraps:
            key = open_wraps(sidecar.content_record, owner.first, (wrap,), keys)
            found.add(path.name.encode() + key.dek)
    return found


class Interrupted(BaseException):
    """The process ends here."""


def test_new_device_keys_that_were_not_sent_count_from_the_next_command_on(
    daemon: Daemon, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Session.ask

    def interrupted(session: Session, message: Request) -> Reply:
        if isinstance(message, NewStatement):
            raise Interrupted
        return ask(session, message)

    before = unlock_home(alice.home, None).contents.device
    with sfsc.connect(alice.home) as store, monkeypatch.context() as patched:
        patched.setattr(Session, "ask", interrupted)
        with pytest.raises(Interrupted):
            store.rotate(compromised=True)
    saved = unlock_home(alice.home, None).contents.next_device
    assert saved is not None
    with sfsc.connect(alice.home) as store:
        assert [entry.name for entry in store.ls()] == [*NAMES[1:2], *NAMES[3:], "renamed"]
        assert unlock_home(alice.home, None).contents.device == saved != before
        [here] = store.devices()
        assert here.here
    lines = daemon.run("audit", "log", "--user", "alice", "--op", "statement").lines
    assert len(lines) == 1  # and the old keys were not published again
    check_all(alice)


def test_dropped_device_is_locked_out(alice: Client, tmp_path: Path) -> None:
    for name in ("stolen", "kept"):
        alice.run("key", "backup", tmp_path / f"{name}.backup", OPEN)
        Client(tmp_path / name).run("key", "restore", tmp_path / f"{name}.backup", OPEN)
    stolen, kept = Client(tmp_path / "stolen"), Client(tmp_path / "kept")
    devices = objects(stolen.run("--json", "device", "list"))
    (its,) = [str(one["device"]) for one in devices if one["here"]]
    alice.run("device", "drop", "ff" * 16, code=3)
    stolen.run("device", "drop", its, code=2)
    alice.run("device", "drop", its[:12])
    left = [str(one["device"]) for one in objects(alice.run("--json", "device", "list"))]
    assert its not in left
    assert len(left) == 4
    for arguments in (("cat", NAMES[5]), ("ls",), ("put", "-", "--name", "x"), ("rotate",)):
        refused = stolen.run(*arguments, code=4)
        assert "if this device was dropped" in refused.stderr
    assert kept.run("cat", NAMES[5]).stdout == NAMES[5].encode() * 50
    check_all(alice)
    alice.run("audit", "verify")


def test_rotation_of_server_keys(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    alice.run("key", "backup", tmp_path / "backup", OPEN)
    alice.run("put", "-", "--name", "p", "--receipt", tmp_path / "proof", stdin=b"x")
    for which in ("tls", "log", "operator", "tls", "log"):
        daemon.run("rotate-keys", which, code=1)  # the daemon runs
        daemon.stop()
        daemon.run("rotate-keys", which)
        daemon.run("audit", "verify")
        daemon.start()
        assert alice.run("cat", NAMES[5]).stdout == NAMES[5].encode() * 50
        daemon.run("user", "list")
    alice.run("audit", "verify")
    # An old receipt is verified with the old log key; an old backup still works.
    alice.run("audit", "check", tmp_path / "proof")
    other = Client(tmp_path / "other")
    other.run("key", "restore", tmp_path / "backup", OPEN)
    assert other.run("cat", NAMES[5]).stdout == NAMES[5].encode() * 50


def test_recovery_code_readmits_an_owner_dropped_by_a_thief(alice: Client, tmp_path: Path) -> None:
    """A thief with a copy of the keyring adds a device and removes the owner's. The recovery code,
    which the thief cannot replace, still opens the account, and the owner removes the thief's
    device."""
    (code,) = objects(alice.run("--json", "key", "recovery"))
    copy, thief = Client(tmp_path / "copy"), Client(tmp_path / "thief")
    copy.home.mkdir()
    (copy.home / "keyring").write_bytes((alice.home / "keyring").read_bytes())
    copy.run("key", "backup", tmp_path / "loot", OPEN)
    thief.run("key", "restore", tmp_path / "loot", OPEN)
    for device in objects(thief.run("--json", "device", "list")):
        if device["kind"] == "machine" and not device["here"]:
            thief.run("device", "drop", str(device["device"]))
    alice.run("cat", NAMES[5], code=4)
    thief.run("key", "recovery", stdin=b"\n", code=2)  # the thief does not have the code
    owner = Client(tmp_path / "owner")
    typed = f"{code['account']}\n{code['code']}\n".encode()
    owner.run("init", "--recovery", OPEN, stdin=typed)
    for device in objects(owner.run("--json", "device", "list")):
        if device["kind"] == "machine" and not device["here"]:
            owner.run("device", "drop", str(device["device"]))
    thief.run("cat", NAMES[5], code=4)
    thief.run("rotate", code=4)
    check_all(owner)
    owner.run("audit", "verify")


@pytest.mark.parametrize("cut", ["kept", "begun"])
def test_requested_key_type_replaces_an_interrupted_rotation(alice: Client, cut: str) -> None:
    """The requested key type is used, not that of the interrupted rotation."""
    with sfsc.connect(alice.home, auto_rotate=False) as store:
        rotation = store._rotation
        if cut == "begun":
            rotation._begin("x25519", None, ROTATE)
        else:
            pending = rotation._new_generation("x25519", None, ROTATE)
            rotation._file.save(changed(rotation._keyring, pending=pending))
    (done,) = objects(alice.run("--json", "rotate", "--key-type", "rsa2048"))
    assert (done["key_type"], done["generation"]) == ("rsa2048", 2 + (cut == "begun"))
    check_all(alice)
    # Without a requested type the interrupted rotation is finished.
    with sfsc.connect(alice.home, auto_rotate=False) as store:
        store._rotation._begin("x25519", None, ROTATE)
    (done,) = objects(alice.run("--json", "rotate"))
    assert (done["key_type"], done["generation"]) == ("x25519", 3 + (cut == "begun"))
