"""After a theft: new keys for all, and new contents for the files that are named."""

from __future__ import annotations

import dataclasses
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
from protocol.records.records import COMPROMISED, ROTATE, FileRecord, Statement
from protocol.wire.messages import FileView
from protocol.wire.messages.base import SignedRecord
from sfsc.account import devices
from sfsc.account.compromise import CompromiseResponse
from sfsc.account.rotate import Rotation
from sfsc.errors import BadRecord, ConflictError, NotFound
from sfsc.files.listing import Files
from sfsc.keys.bundle import Bundle, private_keys, seal_bundle
from sfsc.keys.keyring import PendingStatement
from sfsc.log.account_log import AccountLog
from sfsc.trust.file_records import OwnAccount
from tests.e2e.accounts import enrolled
from tests.e2e.test_main_job import objects
from tests.e2e.test_rotation import NAMES, blobs, check_all, deks, fill, keyring, read, tried
from tests.e2e.thief import copied
from tests.harness import Client, Daemon, environment


@pytest.fixture
def alice(daemon: Daemon, tmp_path: Path) -> Client:
    user = enrolled(daemon, "alice", tmp_path / "alice")
    fill(user)
    return user


def of(daemon: Daemon, owner: Client, *names: str) -> set[str]:
    """The names of the sidecars of these files."""
    account = OwnAccount.from_keyring(keyring(owner))
    ids = {account.file_id(name) for name in names}
    folder = daemon.root / "store" / "users" / "alice" / "files"
    return {path.name for path in folder.rglob("*.json") if path.name[:32] in ids}


def changed(before: set[bytes], after: set[bytes]) -> set[str]:
    """The sidecars (names, then 32 bytes of DEK) whose file key is another."""
    return {one[:-32].decode() for one in before - after}


def test_only_the_named_files_get_new_contents(daemon: Daemon, alice: Client) -> None:
    """Every version, in trash too, and what a rename has left; all others are wrapped anew."""
    before, old = deks(daemon, keyring(alice)), keyring(alice)
    kept = {path.name: path.read_bytes() for path in blobs(daemon)}
    named = (NAMES[3], NAMES[0], "renamed")
    (done,) = objects(alice.run("--json", "rotate", "--compromised", *named))
    assert (done["generation"], done["files"]) == (2, 16)
    expected = of(daemon, alice, *named, NAMES[2])
    assert len(expected) == 7
    assert changed(before, deks(daemon, keyring(alice))) == expected
    for path in blobs(daemon):
        assert (path.read_bytes() != kept[path.name]) is (f"{path.stem}.json" in expected)
    assert tried(daemon, old, private_keys(old.generations)) == (16, 0)
    check_all(alice)
    alice.run("audit", "verify")
    alice.run("rotate", "--compromised", "never was", code=3)
    alice.run("rotate", NAMES[3], code=2)
    (done,) = objects(alice.run("--json", "rotate", "--plan"))
    assert (done["generation"], done["begun"]) == (2, False)


def test_a_copy_of_the_keyring_opens_nothing_afterwards(
    daemon: Daemon, alice: Client, tmp_path: Path
) -> None:
    """The machine's own key is in it, and the new bundle would be sealed to that."""
    thief = copied(alice, tmp_path / "thief")
    (device,) = objects(alice.run("--json", "device", "list"))
    alice.run("rotate", "--compromised", NAMES[3])
    for _ in range(2):
        assert "not sealed for this machine" in thief.run("ls", code=8).stderr
    check_all(alice)
    assert objects(alice.run("--json", "device", "list")) == [device]


def test_another_process_of_the_machine_goes_on_meanwhile(daemon: Daemon, alice: Client) -> None:
    """It has begun with the machine's key of before: what it remembers is for all of them."""
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


@pytest.mark.parametrize("before", ["keyring", "state"])
def test_it_is_killed_before_the_machine_has_its_new_key(
    daemon: Daemon, alice: Client, tmp_path: Path, before: str
) -> None:
    """The account names the new one already. It joins with the old one again, so that another
    machine's rotation does not lock it out, and the next try replaces that. Where its state alone
    does not have it yet, what is cached there is listed anew."""
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
    alice.run("ls")
    other.run("rotate")
    alice.run("ls")
    assert len(objects(alice.run("--json", "device", "list"))) == 3
    alice.run("rotate", "--compromised", NAMES[3])
    thief.run("ls", code=8)
    check_all(other)
    check_all(alice)


def before_it_begins(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> list[int]:
    """Do `action` once, when a rotation has made its statement; grows with each that is made."""
    made, new_generation = list[int](), Rotation._new_generation

    def slow(self: Rotation, *given: Any) -> PendingStatement:
        pending = new_generation(self, *given)
        made.append(Statement.parse(pending.statement).n)
        if len(made) == 1:
            action()
        return pending

    monkeypatch.setattr(Rotation, "_new_generation", slow)
    return made


def test_the_copy_is_used_meanwhile(
    daemon: Daemon, alice: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It joins again, as any machine does whose key the account does not name."""
    thief = copied(alice, tmp_path / "thief")

    def join() -> None:
        with sfsc.connect(thief.home) as store:
            store._devices.finish_pending()

    made = before_it_begins(monkeypatch, join)
    with sfsc.connect(alice.home) as store:
        store.rotate(compromised=True, names=[NAMES[3]])
    assert made == [3, 4]
    thief.run("ls", code=8)
    check_all(alice)


def test_another_process_puts_while_the_key_is_changed(
    daemon: Daemon, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the machine has its new key, and before its rotation begins: nothing is stale yet."""
    with sfsc.connect(alice.home, auto_rotate=False) as store:
        names = {entry.name for entry in store.ls()}
        shown = list[set[str]]()

        def put_and_look() -> None:
            store.put(io.BytesIO(b"new"), name="new")
            shown.append({entry.name for entry in store.ls()})
            assert store.inbox() == []

        before_it_begins(monkeypatch, put_and_look)
        with sfsc.connect(alice.home) as rotating:
            rotating.rotate(compromised=True, names=[NAMES[3]])
        assert shown == [names | {"new"}]
        assert set(alice.run("ls").lines) == {*names, "new"}
        store.put(io.BytesIO(b"newer"), name="newer")
    assert set(alice.run("ls").lines) == {*names, "new", "newer"}
    alice.run("audit", "verify")


def test_the_key_is_changed_while_another_process_lists(
    daemon: Daemon, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    news, rotations = Files._uncached_views, [NAMES[3]]

    def slow(self: Files, *given: Any) -> list[FileView]:
        if rotations:
            alice.run("rotate", "--compromised", rotations.pop())
        return news(self, *given)

    with sfsc.connect(alice.home, auto_rotate=False) as store:
        names = {entry.name for entry in store.ls()}
        alice.run("put", "-", "--name", "new", stdin=b"new")
        monkeypatch.setattr(Files, "_uncached_views", slow)
        store.put(io.BytesIO(b"newer"), name="newer")
        assert {entry.name for entry in store.ls()} == names | {"new", "newer"}
    assert not rotations
    assert set(alice.run("ls").lines) == names | {"new", "newer"}


@pytest.mark.parametrize("compromised", [True, False])
def test_another_machine_rotates_meanwhile(
    daemon: Daemon,
    alice: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    compromised: bool,
) -> None:
    """What was asked for was not done, and is not said to be: its rotation drops nobody."""
    alice.run("key", "backup", tmp_path / "backup", "--no-passphrase")
    other = Client(tmp_path / "other")
    other.run("key", "restore", tmp_path / "backup", "--no-passphrase")
    devices = objects(alice.run("--json", "device", "list"))
    dropped = next(bytes.fromhex(str(one["device"])) for one in devices if not one["here"])

    def begin() -> None:
        with sfsc.connect(other.home, auto_rotate=False) as store:
            store._rotation._begin("xwing", None, ROTATE)

    before_it_begins(monkeypatch, begin)
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
def test_it_is_killed(daemon: Daemon, alice: Client, rerun: str) -> None:
    """Run again, or by any other command, it goes on with the files that were named."""
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
    found = changed(before, deks(daemon, keyring(alice)))
    assert found == of(daemon, alice, *named, NAMES[2])
    check_all(alice)


def test_a_record_that_came_later(alice: Client) -> None:
    """Of two in the log, the one from before the rotation is taken over, the other is not."""
    with sfsc.connect(alice.home) as store:
        session = store._session

        def head(name: str) -> SignedRecord:
            return SignedRecord(session.fetch_newest(session.account.file_id(name)).head_body, ())

        early = head(NAMES[7])
        store.rotate(compromised=True, names=[NAMES[3]])
        theft = CompromiseResponse(session, keyring(alice).statements)
        store.put(io.BytesIO(b"later"), name="later")
        for known in (theft, CompromiseResponse(session, keyring(alice).statements)):
            known.check(early)
            with pytest.raises(BadRecord):
                known.check(signed_with_the_old_key(head("later")))
            with pytest.raises(BadRecord):
                known.check(SignedRecord(b"\x80", ()))


def test_a_record_between_the_ends_of_two_keys(alice: Client) -> None:
    """What a first rotation had ended, a second upon it does not bring back."""
    with sfsc.connect(alice.home, auto_rotate=False) as store:
        session, rotation = store._session, store._rotation
        entries = AccountLog(session).entries

        def theft_with(body: bytes) -> CompromiseResponse:
            """With the first record that the log has of the first generation's successor for it."""
            theirs = entries()
            at = next(
                at
                for at, one in enumerate(theirs)
                if one.op == "upload" and FileRecord.parse(one.rec or b"").generation == 2
            )
            theirs[at] = dataclasses.replace(theirs[at], rec=body)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(AccountLog, "entries", lambda _: theirs)
                return CompromiseResponse(session, keyring(alice).statements)

        store._devices.catch_up()
        rotation._begin("xwing", None, COMPROMISED)
        store.put(io.BytesIO(b"new"), name="between")
        body = session.fetch_newest(session.account.file_id("between")).head_body
        rotation._begin("xwing", None, COMPROMISED)
        own = SignedRecord(body, ())
        theft_with(body).check(own)
        his = signed_with_the_old_key(own)
        theft = theft_with(his.record)
        with pytest.raises(BadRecord):
            theft.check(his)


def signed_with_the_old_key(signed: SignedRecord) -> SignedRecord:
    record = FileRecord.parse(signed.record)
    return SignedRecord(dataclasses.replace(record, generation=1).encode(), ())


def another_machine(alice: Client, folder: Path) -> Client:
    """Another machine of the account."""
    alice.run("key", "backup", folder / "other.backup", "--no-passphrase")
    machine = Client(folder / "another")
    machine.run("key", "restore", folder / "other.backup", "--no-passphrase")
    return machine


def test_a_store_that_was_opened_before(alice: Client, tmp_path: Path) -> None:
    """It finds every file after the rotation, and what it stores then is there."""
    other = another_machine(alice, tmp_path)
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


def test_another_machine_finishes_it(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    """Its next command goes on by itself, with the contents that are left."""
    other, before = another_machine(alice, tmp_path), deks(daemon, keyring(alice))
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(alice.home)],
        capture_output=True,
        env=environment({}),
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    other.run("ls")
    assert {one[:-32].decode() for one in before} == changed(before, deks(daemon, keyring(other)))
    check_all(other)
    check_all(alice)
    assert keyring(alice).name_keys == keyring(other).name_keys


def test_two_machines_finish_it_at_once(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    """One of the two may find that what it reads was encrypted again just now."""
    other, before = another_machine(alice, tmp_path), deks(daemon, keyring(alice))
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
    assert {one[:-32].decode() for one in before} == changed(before, deks(daemon, keyring(other)))
    check_all(alice)
    check_all(other)


def test_a_bundle_with_another_name_key(
    alice: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine keeps its own, and refuses the bundle: it would no longer find any file."""
    other, before = another_machine(alice, tmp_path), keyring(alice)

    def sealed(bundle: Bundle, **given: Any) -> bytes:
        return seal_bundle(dataclasses.replace(bundle, name_keys=(b"n" * 32,)), **given)

    with sfsc.connect(other.home, auto_rotate=False) as store, monkeypatch.context() as patch:
        patch.setattr(devices, "seal_bundle", sealed)
        with pytest.raises(BadRecord):
            store.rotate()
    assert "another name key" in alice.run("ls", code=5).stderr
    assert keyring(alice) == before
