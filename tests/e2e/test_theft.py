"""After a theft: new keys for all files, and new contents for the named files."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import sfsc
from protocol.codec.values import changed
from protocol.records.records import ROTATE, Statement
from sfsc.account import devices
from sfsc.account.key_status import new_device
from sfsc.account.rotate import Rotation
from sfsc.errors import BadRecord, ConflictError, NotFound
from sfsc.files.listing import Files
from sfsc.keys.bundle import Bundle, private_keys, seal_bundle
from sfsc.keys.keyring import KeyringFile, PendingStatement
from sfsc.trust.file_records import OwnAccount
from tests.e2e.accounts import enrolled
from tests.e2e.test_main_job import objects
from tests.e2e.test_rotation import (
    NAMES,
    blobs,
    check_all,
    count_wraps_opened,
    deks,
    fill,
    keyring,
    read,
)
from tests.e2e.thief import copied
from tests.harness import Client, Daemon, environment


@pytest.fixture
def alice(daemon: Daemon, tmp_path: Path) -> Client:
    user = enrolled(daemon, "alice", tmp_path / "alice")
    fill(user)
    return user


def sidecars_of(daemon: Daemon, owner: Client, *names: str) -> set[str]:
    """Return the names of the sidecars of these files."""
    account = OwnAccount.from_keyring(keyring(owner))
    ids = {account.file_id(name) for name in names}
    folder = daemon.root / "store" / "users" / "alice" / "files"
    return {path.name for path in folder.rglob("*.json") if path.name[:32] in ids}


def rekeyed_sidecars(before: set[bytes], after: set[bytes]) -> set[str]:
    """Return the sidecars whose file key differs; items are names followed by 32 bytes of DEK."""
    return {one[:-32].decode() for one in before - after}


def test_compromised_rotation_reencrypts_only_named_files(daemon: Daemon, alice: Client) -> None:
    """Every version of the named files gets new contents, in trash and under names before a rename
    too; all others are only rewrapped."""
    before, old = deks(daemon, keyring(alice)), keyring(alice)
    kept = {path.name: path.read_bytes() for path in blobs(daemon)}
    named = (NAMES[3], NAMES[0], "renamed")
    (done,) = objects(alice.run("--json", "rotate", "--compromised", *named))
    assert (done["generation"], done["files"]) == (2, 16)
    expected = sidecars_of(daemon, alice, *named, NAMES[2])
    assert len(expected) == 7
    assert rekeyed_sidecars(before, deks(daemon, keyring(alice))) == expected
    for path in blobs(daemon):
        assert (path.read_bytes() != kept[path.name]) is (f"{path.stem}.json" in expected)
    assert count_wraps_opened(daemon, old, private_keys(old.generations)) == (16, 0)
    check_all(alice)
    alice.run("audit", "verify")
    alice.run("rotate", "--compromised", "never was", code=3)
    alice.run("rotate", NAMES[3], code=2)
    (done,) = objects(alice.run("--json", "rotate", "--plan"))
    assert (done["generation"], done["begun"]) == (2, False)


def test_copied_keyring_is_locked_out(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    """The copy has the device's keys, so they must neither log in nor open the new bundle."""
    thief = copied(alice, tmp_path / "thief")
    (device,) = objects(alice.run("--json", "device", "list"))
    alice.run("rotate", "--compromised", NAMES[3])
    for _ in range(2):
        assert "does not accept" in thief.run("ls", code=4).stderr
    check_all(alice)
    (left,) = objects(alice.run("--json", "device", "list"))
    assert left == device | {"last_login": left["last_login"]}


def test_open_store_continues_after_rotation_by_another_process(
    daemon: Daemon, alice: Client
) -> None:
    """The open store began with the previous device key, and shares the state with the other
    process."""
    with sfsc.connect(alice.home) as store:
        before = {entry.name for entry in store.ls()}
        alice.run("rotate", "--compromised", NAMES[3])
        store.put(io.BytesIO(b"new"), name="new")
        assert {entry.name for entry in store.ls()} == before | {"new"}
        alice.run("rotate", "--compromised", NAMES[3])
        store.put(io.BytesIO(b"newer"), name="newer")
    assert set(alice.run("ls", "-R").lines) == before | {"new", "newer"}


CUT = """
import os, signal, sys
import sfsc
from sfsc.keys.keyring import KeyringFile
from sfsc.trust.state import ClientState

def cut(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def save(file, contents, save=KeyringFile.save):
    if contents.device != file.contents.device:
        cut()
    save(file, contents)

if sys.argv[2] == "keyring":
    KeyringFile.save = save
else:
    ClientState.change_key = cut
sfsc.connect(sys.argv[1], auto_rotate=False).rotate(compromised=True)
"""


@pytest.mark.parametrize(("before", "rotated"), [("keyring", 0), ("keyring", 1), ("state", 0)])
def test_killed_before_new_device_key_is_used(
    daemon: Daemon, alice: Client, tmp_path: Path, before: str, rotated: bool
) -> None:
    """The account already names the new key, which this machine has saved, so that the rotation of
    another device does not lock it out. If only the state lacks the new key, its cached entries are
    listed again."""
    alice.run("key", "backup", tmp_path / "backup", "--no-passphrase")
    other, thief = Client(tmp_path / "other"), copied(alice, tmp_path / "thief")
    other.run("key", "restore", tmp_path / "backup", "--no-passphrase")
    process = subprocess.run(
        [sys.executable, "-c", CUT, str(alice.home), before],
        capture_output=True,
        env=environment({}),
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    if not rotated:
        alice.run("ls")
    other.run("rotate")
    thief.run("ls", code=4)
    alice.run("ls")
    assert len(objects(alice.run("--json", "device", "list"))) == 3
    alice.run("rotate", "--compromised", NAMES[3])
    thief.run("ls", code=4)
    check_all(other)
    check_all(alice)


def act_before_rotation_begins(
    monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]
) -> list[int]:
    """Call `action` once after a rotation made its statement. The returned list grows with each
    statement's number."""
    made, new_generation = list[int](), Rotation._new_generation

    def slow(self: Rotation, *given: Any) -> PendingStatement:
        pending = new_generation(self, *given)
        made.append(Statement.parse(pending.statement).n)
        if len(made) == 1:
            action()
        return pending

    monkeypatch.setattr(Rotation, "_new_generation", slow)
    return made


def test_thief_joins_again_during_rotation(
    daemon: Daemon, alice: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thief gives the device that was copied other keys; the rotation retries and replaces
    them."""
    thief = copied(alice, tmp_path / "thief")

    def join() -> None:
        file = KeyringFile.unlock(thief.home / "keyring", None)
        kept = new_device(file.contents.device.device_id)
        file.save(changed(file.contents, device=kept))
        with sfsc.connect(thief.home) as store:
            assert [one.device_id for one in store.devices()] == [kept.device_id]

    made = act_before_rotation_begins(monkeypatch, join)
    with sfsc.connect(alice.home) as store:
        store.rotate(compromised=True, names=[NAMES[3]])
    assert made == [3, 5]  # between them, each of the two has joined again
    thief.run("ls", code=4)
    check_all(alice)


def test_put_by_another_process_between_device_key_and_rotation(
    daemon: Daemon, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device has its new key, but its rotation has not begun: nothing is stale yet."""
    with sfsc.connect(alice.home, auto_rotate=False) as store:
        names = {entry.name for entry in store.ls()}
        shown = list[set[str]]()

        def put_and_look() -> None:
            store.put(io.BytesIO(b"new"), name="new")
            shown.append({entry.name for entry in store.ls()})
            assert store.inbox() == []

        act_before_rotation_begins(monkeypatch, put_and_look)
        with sfsc.connect(alice.home) as rotating:
            rotating.rotate(compromised=True, names=[NAMES[3]])
        assert shown == [names | {"new"}]
        assert set(alice.run("ls").lines) == {*names, "new"}
        store.put(io.BytesIO(b"newer"), name="newer")
    assert set(alice.run("ls").lines) == {*names, "new", "newer"}
    alice.run("audit", "verify")


def test_rotation_during_a_listing(
    daemon: Daemon, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_views, rotations = Files._remember_views, [NAMES[3]]

    def slow(self: Files, *given: Any) -> None:
        if rotations:
            alice.run("rotate", "--compromised", rotations.pop())
        remember_views(self, *given)

    with sfsc.connect(alice.home, auto_rotate=False) as store:
        names = {entry.name for entry in store.ls()}
        alice.run("put", "-", "--name", "new", stdin=b"new")
        monkeypatch.setattr(Files, "_remember_views", slow)
        store.put(io.BytesIO(b"newer"), name="newer")
        assert {entry.name for entry in store.ls()} == names | {"new", "newer"}
    assert not rotations
    assert set(alice.run("ls").lines) == names | {"new", "newer"}


@pytest.mark.parametrize("compromised", [True, False])
def test_another_device_rotates_first(
    daemon: Daemon,
    alice: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    compromised: bool,
) -> None:
    """The other rotation removes nobody, so the request failed and says so."""
    alice.run("key", "backup", tmp_path / "backup", "--no-passphrase")
    other = Client(tmp_path / "other")
    other.run("key", "restore", tmp_path / "backup", "--no-passphrase")
    devices = objects(alice.run("--json", "device", "list"))
    dropped = next(bytes.fromhex(str(one["device"])) for one in devices if not one["here"])

    def begin() -> None:
        with sfsc.connect(other.home, auto_rotate=False) as store:
            store._rotation._begin("xwing", None, ROTATE)

    act_before_rotation_begins(monkeypatch, begin)
    drop = None if compromised else dropped
    with sfsc.connect(alice.home, auto_rotate=False) as store:
        with pytest.raises(ConflictError):
            store.rotate(compromised=compromised, drop_device=drop)
        store.rotate(compromised=compromised, drop_device=drop)
        assert (dropped in [one.device_id for one in store.devices()]) is compromised


KILLED = """
import os, signal, sys
import sfsc
from sfsc.transfer.reencrypt import Reencryption

count, version = 0, Reencryption.version

def versions(self, file_id, number):
    global count
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    version(self, file_id, number)

Reencryption.version = versions
sfsc.connect(sys.argv[1], auto_rotate=False).rotate(compromised=True, names=sys.argv[2:])
"""


@pytest.mark.parametrize("rerun", ["the same", "any other", "one more"])
def test_killed_rotation_resumes(daemon: Daemon, alice: Client, rerun: str) -> None:
    """The rerun, or any other command, continues with the named files."""
    before, named = deks(daemon, keyring(alice)), [NAMES[3], "renamed"]
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(alice.home), *named],
        capture_output=True,
        env=environment({}),
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    if rerun == "any other":
        alice.run("ls")
    else:
        named += [NAMES[5]] if rerun == "one more" else []
        alice.run("rotate", "--compromised", *named)
    found = rekeyed_sidecars(before, deks(daemon, keyring(alice)))
    assert found == sidecars_of(daemon, alice, *named, NAMES[2])
    check_all(alice)


def restore_on_another_device(alice: Client, folder: Path) -> Client:
    """Restore the account on another device."""
    alice.run("key", "backup", folder / "other.backup", "--no-passphrase")
    machine = Client(folder / "another")
    machine.run("key", "restore", folder / "other.backup", "--no-passphrase")
    return machine


def test_store_opened_before_rotation(alice: Client, tmp_path: Path) -> None:
    """It finds every file after the rotation, and stores files that others find."""
    other = restore_on_another_device(alice, tmp_path)
    with sfsc.connect(other.home) as second:
        assert read(second, NAMES[5]) == NAMES[5].encode() * 50
        with sfsc.connect(alice.home) as store:
            store.rotate(compromised=True)
        assert read(second, NAMES[3]) == NAMES[3].encode() * 50
        second.put(io.BytesIO(b"two"), name=NAMES[5])
        second.put(io.BytesIO(b"new"), name="another")
        second.rm(NAMES[6])
        with pytest.raises(NotFound):
            read(second, "never was")
    with sfsc.connect(alice.home) as store:
        assert read(store, NAMES[5], 1) == NAMES[5].encode() * 50
        assert (read(store, NAMES[5]), read(store, "another")) == (b"two", b"new")
        assert NAMES[6] not in [entry.name for entry in store.ls()]
        store.verify_rotation()
        store.audit_verify()


def test_another_device_finishes_rotation(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    """Its next command continues with the remaining contents."""
    other, before = restore_on_another_device(alice, tmp_path), deks(daemon, keyring(alice))
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(alice.home)],
        capture_output=True,
        env=environment({}),
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    other.run("ls")
    assert {one[:-32].decode() for one in before} == rekeyed_sidecars(
        before, deks(daemon, keyring(other))
    )
    check_all(other)
    check_all(alice)
    assert keyring(alice).name_keys == keyring(other).name_keys


def test_two_devices_finish_rotation_at_once(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    """One of them may find that a content was just encrypted again."""
    other, before = restore_on_another_device(alice, tmp_path), deks(daemon, keyring(alice))
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(alice.home)],
        capture_output=True,
        env=environment({}),
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()

    def finish(machine: Client) -> None:
        with suppress(ConflictError), sfsc.connect(machine.home):
            pass

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(finish, machine) for machine in (alice, other)]:
            done.result(60)
    other.run("ls")
    assert {one[:-32].decode() for one in before} == rekeyed_sidecars(
        before, deks(daemon, keyring(other))
    )
    check_all(alice)
    check_all(other)


def test_bundle_with_another_name_key_is_rejected(
    alice: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device keeps its own name key and refuses the bundle: it would not find any file."""
    other, before = restore_on_another_device(alice, tmp_path), keyring(alice)

    def sealed(bundle: Bundle, **given: Any) -> bytes:
        return seal_bundle(changed(bundle, name_keys=(b"n" * 32,)), **given)

    with sfsc.connect(other.home, auto_rotate=False) as store, monkeypatch.context() as patch:
        patch.setattr(devices, "seal_bundle", sealed)
        with pytest.raises(BadRecord):
            store.rotate()
    assert "another name key" in alice.run("ls", code=5).stderr
    assert keyring(alice) == before
