"""A new name key after a theft: each file under another id, and nothing of it under the old one."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path

import pytest

import sfsc
from sfsc.account.compromise import Theft
from sfsc.account.renaming import Renaming
from sfsc.errors import ConflictError, NotFound
from sfsc.keys.keyring import Keyring
from sfsc.trust.file_records import SETTINGS, OwnAccount
from sfsd.storage.json_files import parse_sidecar
from tests.e2e.test_rotation import keyring, read
from tests.e2e.test_rotation_sweep import MOST, Swept
from tests.harness import Client, Daemon

LARGE = [bytes([number]) * 600_000 for number in range(2)]
"""Past what goes up in one request."""
FILES = {
    "one": [b"one"],
    "three": [b"first", b"second", b"third"],
    "same": [b"again", b"again", b"again"],
    "large": LARGE,
    "folder/x": [b"x"],
    "shared": [b"before he read", b"shared"],
    "there": [b"moved"],
}
"""Contents of living files, oldest first."""
TRASH = {"trash": [b"kept", b"restorable"], "here": [b"older", b"moved"]}
STEPS = ("_put", "_bury", "_arrive", "_purge")
"""Of the moving of a file: what changes something on the server."""


class Cut(Exception):
    """Ends a rotation where it is."""


def fill(home: Path) -> None:
    with sfsc.connect(home) as store:
        list(store.share_tree("folder", "bob", trust_first_use=True))
        for name, contents in (FILES | {"here": TRASH["here"], "trash": TRASH["trash"]}).items():
            if name != "there":
                for content in contents:
                    store.put(io.BytesIO(content), name=name)
        store.mv("here", "there")
        for name in ("shared", "trash"):
            store.share(name, "bob", trust_first_use=True)
        store.rm("trash")
        store.put(io.BytesIO(b"purged"), name="purged")
        store.rm("purged")
        store.purge("purged")


@pytest.fixture
def filled(daemon: Daemon, alice: Client, bob: Client) -> Client:
    fill(alice.home)
    return alice


@pytest.fixture
def other(filled: Client, tmp_path: Path) -> Client:
    """Another machine of the account."""
    filled.run("key", "backup", tmp_path / "backup", "--no-passphrase")
    machine = Client(tmp_path / "other")
    machine.run("key", "restore", tmp_path / "backup", "--no-passphrase")
    return machine


def check(
    daemon: Daemon, client: Client, before: Keyring, files: dict[str, list[bytes]] = FILES
) -> None:
    """All is as it was through the API, the old name key tells nothing of it."""
    with sfsc.connect(client.home, auto_rotate=False) as store:
        assert [entry.name for entry in store.ls()] == sorted(files)
        for name, contents in (files | TRASH).items():
            assert kept(store, name) == contents, name
        assert [one.user for one in store.readers("shared")] == ["bob"]
        assert [one.user for one in store.readers("folder/x")] == ["bob"]
        count = sum(map(len, [*files.values(), *TRASH.values()])) + 1
        assert store.verify_rotation().files == count
        store.audit_verify()
        session = store._session
        assert len(session.account.name_keys) == 1
        assert session.account.name_keys[0] not in before.name_keys
        old = {guess(before, name) for name in (*files, *TRASH, "purged", SETTINGS)}
        for file_id in old:
            try:
                assert session.newest(file_id).deleted
            except NotFound:
                continue
    assert not left(daemon, old)


def check_server(daemon: Daemon) -> None:
    daemon.stop()
    daemon.run("fsck", "--read-data")
    daemon.run("audit", "verify")


def guess(stolen: Keyring, name: str) -> str:
    """The id that who has a stolen keyring makes of a name."""
    return OwnAccount.from_keyring(stolen).file_id(name)


def left(daemon: Daemon, ids: set[str]) -> list[str]:
    """What of these files still has a content or a wrap on the server's disk."""
    folder = daemon.root / "store" / "users" / "alice" / "files"
    there = [path for path in folder.rglob("*") if path.name[:32] in ids]
    return [
        path.name
        for path in there
        if path.suffix != ".json" or parse_sidecar(path.name, path.read_bytes()).wraps
    ]


def kept(store: sfsc.Store, name: str) -> list[bytes]:
    """The contents of a file that are kept, oldest first."""
    versions = {one.version for one in store.history(name) if one.version and one.kept}
    return [read(store, name, version) for version in sorted(versions)]


@contextmanager
def between(told: Callable[[], None]) -> Iterator[None]:
    """`told` behind each step."""
    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(Renaming, name, stepping(getattr(Renaming, name), told))
        yield


def stepping(method: Callable[..., object], told: Callable[[], None]) -> Callable[..., object]:
    def step(*arguments: object) -> object:
        done = method(*arguments)
        told()
        return done

    return step


def cut(home: Path, after: int) -> None:
    """Rotate, and stop after so many steps."""
    left = iter(range(after))

    def told() -> None:
        if next(left, None) is None:
            raise Cut

    with sfsc.connect(home, auto_rotate=False) as store, between(told), pytest.raises(Cut):
        store.rotate(compromised=True)


def test_everything_moves(daemon: Daemon, filled: Client, bob: Client) -> None:
    before = keyring(filled)
    with sfsc.connect(filled.home) as store:
        stated = {entry.name: entry for entry in store.ls()}
        with between(lambda: check_size(daemon)):
            store.rotate(compromised=True)
        for entry in store.ls():
            was = stated[entry.name]
            assert (entry.size, entry.mtime, entry.mode) == (was.size, was.mtime, was.mode)
    check(daemon, filled, before)
    with sfsc.connect(bob.home) as store:
        assert [one.entry.name for one in store.inbox()] == ["folder/x", "shared"]
        with store.open_shared("alice", "shared", trust_first_use=True) as file:
            assert file.read() == b"shared"
        with pytest.raises(sfsc.SfscError), store.open_shared("alice", "shared", version=1) as file:
            file.read()
    with sfsc.connect(filled.home) as store:
        store.put(io.BytesIO(b"y"), name="folder/y")
        assert [one.user for one in store.readers("folder/y")] == ["bob"]
        store.restore("trash")
        assert read(store, "trash") == TRASH["trash"][-1]
        assert [one.user for one in store.readers("trash")] == ["bob"]
    check_server(daemon)


def check_size(daemon: Daemon) -> None:
    """Never more than one version is there twice."""
    found = (daemon.root / "store" / "users" / "alice" / "files").rglob("*.ct")
    sizes = sum(path.stat().st_size for path in found)
    assert sizes < 3.2 * len(LARGE[0])


def test_with_names_the_name_key_stays(filled: Client) -> None:
    """And where that is cut, one for the whole account brings a new one."""
    before = keyring(filled)
    with sfsc.connect(filled.home) as store:
        store.rotate(compromised=True, names=["one"])
        assert keyring(filled).name_keys == before.name_keys
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Theft, "reencrypt", stepping(Theft.reencrypt, stop))
            with pytest.raises(Cut):
                store.rotate(compromised=True, names=["one"])
    with sfsc.connect(filled.home, auto_rotate=False) as store:
        store.rotate(compromised=True)
        assert kept(store, "three") == FILES["three"]
    (now,) = keyring(filled).name_keys
    assert now not in before.name_keys


def stop() -> None:
    raise Cut


def test_another_machine_goes_on(daemon: Daemon, filled: Client, other: Client) -> None:
    """By itself, with its next command, wherever it was cut; the first one follows."""
    for after in (1, 4, 20):
        before = keyring(filled)
        cut(filled.home, after)
        with sfsc.connect(other.home) as store:
            assert kept(store, "three") == FILES["three"]
        check(daemon, filled, before)
        assert keyring(filled).name_keys == keyring(other).name_keys


def test_a_device_is_dropped_before_it_is_finished(
    daemon: Daemon, filled: Client, other: Client
) -> None:
    before = keyring(filled)
    cut(filled.home, 12)
    begun = keyring(filled)
    assert len(begun.name_keys) == 2
    with sfsc.connect(filled.home, auto_rotate=False) as store:
        store.rotate(compromised=True, drop_device=keyring(other).device.device_id)
    check(daemon, filled, before)
    assert keyring(filled).name_keys[0] not in begun.name_keys
    assert not left(daemon, {guess(begun, name) for name in (*FILES, *TRASH)})


def test_another_machine_works_meanwhile(daemon: Daemon, filled: Client, other: Client) -> None:
    """It sees what it stored last, and no file twice, nor any that was deleted."""
    before = keyring(filled)
    files = {name: list(contents) for name, contents in FILES.items()}
    names = sorted(files)
    count = 0

    def told() -> None:
        nonlocal count
        count += 1
        assert [entry.name for entry in second.ls()] == names
        for name in ("three", "one"):
            assert read(second, name) == files[name][-1]
            if count % 6 == (0 if name == "one" else 3):
                files[name].append(b"%d" % count)
                second.put(io.BytesIO(files[name][-1]), name=name)
                assert read(second, name) == files[name][-1]

    with (
        sfsc.connect(filled.home, auto_rotate=False) as store,
        sfsc.connect(other.home, auto_rotate=False) as second,
    ):
        with between(told):
            store.rotate(compromised=True)
        assert len(files["one"]) > 3
        assert len(second._session.account.name_keys) == 2
        second.put(io.BytesIO(b"later"), name="three")
        files["three"].append(b"later")
        second.put(io.BytesIO(b"new"), name="another")
        files["another"] = [b"new"]
    check(daemon, filled, before, files)
    with sfsc.connect(other.home) as second:
        assert kept(second, "three") == files["three"]
    assert keyring(filled).name_keys == keyring(other).name_keys


def test_a_long_session_that_has_not_heard_of_it(filled: Client, other: Client) -> None:
    """Opened before, and used again when all is over: it finds each file, and stores none under
    an old id."""
    with sfsc.connect(other.home) as second:
        assert read(second, "one") == b"one"
        with sfsc.connect(filled.home) as store:
            store.rotate(compromised=True)
        assert read(second, "three") == FILES["three"][-1]
        second.put(io.BytesIO(b"two"), name="one")
        second.put(io.BytesIO(b"new"), name="another")
        second.rm("large")
    with sfsc.connect(filled.home) as store:
        assert kept(store, "one") == [b"one", b"two"]
        assert kept(store, "another") == [b"new"]
        assert "large" not in [entry.name for entry in store.ls()]
        store.audit_verify()


def test_two_machines_move_at_once(daemon: Daemon, filled: Client, other: Client) -> None:
    """Nothing is lost and all is in order; a version may be there twice, one behind the other. One
    of the two may find that what it reads was encrypted anew just now."""
    before = keyring(filled)
    cut(filled.home, 2)

    def finish(machine: Client) -> None:
        with suppress(ConflictError), sfsc.connect(machine.home):
            pass

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(finish, machine) for machine in (filled, other)]:
            done.result(60)
    with sfsc.connect(filled.home) as store:
        assert [entry.name for entry in store.ls()] == sorted(FILES)
        for name, contents in (FILES | TRASH).items():
            found = kept(store, name)
            assert len(found) >= len(contents)
            assert [one for one, _ in groupby(found)] == [one for one, _ in groupby(contents)]
        store.verify_rotation()
        store.audit_verify()
    assert not left(daemon, {guess(before, name) for name in (*FILES, *TRASH, SETTINGS)})
    check_server(daemon)


@pytest.mark.slow
@pytest.mark.timeout(300 * MOST)
def test_killed_while_it_moves(tmp_path: Path) -> None:
    """SIGKILL between what is sent and what is answered; nothing is lost, and nothing doubled. Also
    `test_rotation_sweep`, whose points are of every kind."""
    swept = Swept(tmp_path)
    with swept.daemon:
        total = swept.count(compromised=True)["sent"]
        points = 3 * MOST
        for turn in range(points):
            number = total // 5 + turn * (total - total // 5) // points
            swept.kill("sent", number, compromised=True, both=False)
            swept.finish(compromised=True, asked=turn % 2 == 0)
        swept.alice.run("audit", "verify")
