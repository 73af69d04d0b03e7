"""Bytes of one version are damaged or gone on the server: it is named, and all else works."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from sfsc import connect
from sfsc.errors import Damaged, NotFound, SfscError
from tests.e2e.accounts import enrolled, new_root
from tests.harness import Client, Daemon


@pytest.fixture
def stopped(tmp_path: Path) -> Daemon:
    """Return a root with two files of alice, one of which has two versions and a reader."""
    daemon = new_root(tmp_path / "root")
    with daemon:
        alice = enrolled(daemon, "alice", tmp_path / "alice")
        enrolled(daemon, "bob", tmp_path / "bob")
        for name, content in (("dir/good", b"hello"), ("dir/bad", b"one"), ("dir/bad", b"two")):
            alice.run("put", "-", "--name", name, stdin=content)
        alice.run("share", "-r", "dir", "bob", "--trust-first-use")
    return daemon


@pytest.fixture
def alice(stopped: Daemon, tmp_path: Path) -> Client:
    return Client(tmp_path / "alice")


def place(daemon: Daemon, version: int, suffix: str = "json") -> Path:
    """Return the stored file of a version of the file that has two."""
    second = next((daemon.root / "store/users/alice/files").rglob("*.2.*"))
    file_id = second.name.partition(".")[0]
    return second.with_name(f"{file_id}.{version}.{suffix}")


def damage(path: Path, how: str) -> None:
    if how in ("lost", "unreadable"):
        path.unlink()
        if how == "unreadable":
            path.symlink_to(path.name)  # opening it fails: too many levels of symbolic links
        return
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def names(client: Client) -> tuple[list[str], list[tuple[str, type[SfscError]]]]:
    """Return the listed names, and what is reported beside them."""
    found: list[tuple[str, type[SfscError]]] = []
    with connect(client.home) as store:
        listed = [
            entry.name for entry in store.ls(skip=lambda what, exc: found.append((what, type(exc))))
        ]
    return listed, found


@pytest.mark.parametrize("how", ["flipped", "lost", "unreadable"])
def test_damaged_current_version_is_named_and_given_up(
    stopped: Daemon, alice: Client, tmp_path: Path, how: str
) -> None:
    damage(place(stopped, 2), how)
    file_id = place(stopped, 2).name.partition(".")[0]
    with stopped:
        assert names(alice) == (["dir/good"], [("dir/bad", Damaged)])
        told = alice.run("get", "-r", "dir", "-o", tmp_path / "out", code=5)
        assert "dir/bad: " in told.stderr
        assert (tmp_path / "out/dir/good").read_bytes() == b"hello"
        with connect(tmp_path / "bob") as bob:
            skipped: list[str] = []
            (shared,) = bob.inbox(skip=lambda what, _exc: skipped.append(what))
            assert (shared.entry.name, skipped) == ("dir/good", [f"alice:{file_id}"])
        with connect(alice.home) as store:
            with pytest.raises(Damaged) as caught:
                store.stat("dir/bad")
            assert (caught.value.file_id, caught.value.version) == (file_id, 2)
            with pytest.raises(Damaged):
                store.audit_verify()
            with pytest.raises(NotFound):
                store.give_up_damaged("dir/good")
        told = alice.run("history", "dir/bad", code=5)
        assert [line.split()[3] for line in told.lines] == ["put", "put", "access"]
        assert "dir/bad: version 2 of the file is damaged" in told.stderr
        hint = f"`sfsc rm --purge --damaged {file_id}`"
        for command in (["put", "-", "--name", "dir/bad"], ["mv", "dir/bad", "x"]):
            assert hint in alice.run(*command, code=5).stderr
        assert hint in told.stderr
        for step in ("rotate", "verify-rotation"):
            told = alice.run(step, code=5)
            assert told.stderr.count("is damaged on the server") == 1
            assert "dir/bad: version 2 of the file is damaged" in told.stderr
            assert "1 item failed" in told.stderr
        told = alice.run("rm", "--purge", "--damaged", file_id)
        assert names(alice) == (["dir/good"], [])
        with connect(alice.home) as store:
            history = store.history("dir/bad")
            assert [(one.version, one.kept) for one in history if one.version] == [
                (1, True),
                (2, False),
            ]
            if how == "lost":
                store.put(io.BytesIO(b"one"), name="dir/bad")
            else:
                assert store.restore("dir/bad", version=1).version == 3
            assert store.open("dir/bad").read() == b"one"
            store.audit_verify()
    lines = stopped.run("audit", "log", "--json").lines
    assert [one["version"] for one in map(json.loads, lines) if one["op"] == "lost"] == [2]
    stopped.run("fsck", "--read-data")


@pytest.mark.parametrize("how", ["flipped", "lost"])
def test_damaged_old_version_blocks_nothing(
    stopped: Daemon, alice: Client, tmp_path: Path, how: str
) -> None:
    damage(place(stopped, 1), how)
    with stopped, connect(alice.home) as store:
        assert [entry.name for entry in store.ls()] == ["dir/bad", "dir/good"]
        assert [one.op for one in store.history("dir/bad")] == ["put", "put", "access"]
        with pytest.raises(Damaged):
            store.open("dir/bad", version=1)
        store.put(io.BytesIO(b"three"), name="dir/bad")
        store.unshare("dir/bad", "bob")
        store.share("dir/bad", "bob", history=True)
        store.mv("dir/bad", "dir/moved")
        assert store.open("dir/moved").read() == b"three"
        assert store.give_up_damaged("dir/bad") == [1]
        store.rm("dir/moved")
        assert store.purge("dir/bad") == [2, 3]
        store.audit_verify()
    stopped.run("fsck", "--read-data")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("how", ["give up", "purge"])
def test_records_of_an_older_key_are_endorsed_again(
    stopped: Daemon, alice: Client, version: int, how: str
) -> None:
    with stopped, connect(alice.home) as store:
        store.rotate()
    damage(place(stopped, version), "flipped")
    with stopped, connect(alice.home) as store:
        if how == "give up" or version == 2:
            assert store.give_up_damaged("dir/bad") == [version]
        else:
            store.rm("dir/bad")
            assert store.purge("dir/bad") == [1, 2]
        store.put(io.BytesIO(b"three"), name="dir/bad")
        assert store.open("dir/bad").read() == b"three"
        store.rotate()
        store.verify_rotation()
        assert [entry.name for entry in store.ls()] == ["dir/bad", "dir/good"]


def test_lost_ciphertext_is_given_up(stopped: Daemon, alice: Client) -> None:
    damage(place(stopped, 2, "ct"), "lost")
    with stopped, connect(alice.home) as store:
        with pytest.raises(Damaged):
            store.open("dir/bad")
        assert store.give_up_damaged("dir/bad") == [2]
        assert [entry.name for entry in store.ls()] == ["dir/good"]
    stopped.run("fsck", "--read-data")


@pytest.mark.parametrize("fresh", [True, False])
def test_files_that_the_server_has_lost_are_not_missing_silently(
    stopped: Daemon, alice: Client, tmp_path: Path, *, fresh: bool
) -> None:
    """No trace of the newest version is left on the disk: the daemon knows of it from its log."""
    if fresh:
        with stopped:
            alice.run("key", "backup", "--no-passphrase", tmp_path / "backup")
            alice = Client(tmp_path / "fresh")
            alice.run("key", "restore", "--no-passphrase", tmp_path / "backup")
    damage(place(stopped, 2, "ct"), "lost")
    damage(place(stopped, 2), "lost")
    with stopped:
        listed, reported = names(alice)
        assert listed == ["dir/good"]
        assert [kind for _, kind in reported] == [Damaged]
        for command in (["get", "-r", "dir", "-o", tmp_path / "out"], ["rotate"]):
            told = alice.run(*command, code=5)
            assert reported[0][0] in told.stderr
        told = alice.run("verify-rotation", code=5)
        assert reported[0][0] in told.stderr
        assert "generation  2" in told.text
        alice.run("rm", "--purge", "--damaged", "dir/bad")
        assert names(alice) == (["dir/good"], [])


def test_a_damaged_file_does_not_keep_others_of_its_folder_shared(
    stopped: Daemon, alice: Client
) -> None:
    with stopped:
        assert names(alice) == (["dir/bad", "dir/good"], [])
        damage(place(stopped, 2), "flipped")  # the daemon has read it, and lists it as before
        told = alice.run("unshare", "-r", "dir", "bob", code=5)
        assert "dir/good" in told.stderr
        with connect(alice.home) as store:
            assert store.readers("dir/good") == []
            with pytest.raises(Damaged):
                store.readers("dir/bad")


def test_damaged_sidecar_of_a_purged_file_is_given_up(stopped: Daemon, alice: Client) -> None:
    with stopped:
        alice.run("rm", "--purge", "dir/bad")
    damage(next((stopped.root / "store/users/alice/files").rglob("*.2.json")), "flipped")
    with stopped, connect(alice.home) as store:
        with pytest.raises(Damaged):
            list(store.ls())
        assert store.give_up_damaged("dir/bad") == [2]
        assert [entry.name for entry in store.ls()] == ["dir/good"]
        store.put(io.BytesIO(b"three"), name="dir/bad")
        assert store.open("dir/bad").read() == b"three"
    stopped.run("fsck", "--read-data")


@pytest.mark.parametrize(
    ("suffix", "how"),
    [("json", "flipped"), ("ct", "flipped"), ("json", "unreadable"), ("ct", "unreadable")],
)
def test_the_operator_gives_a_damaged_version_up(
    stopped: Daemon, alice: Client, suffix: str, how: str
) -> None:
    file_id = place(stopped, 2).name.partition(".")[0]
    for wrong in ((file_id, "2"), (file_id, "3"), ("f" * 32, "1")):
        stopped.run("fsck", "--give-up", "alice", *wrong, code=3)
    damage(place(stopped, 2, suffix), how)
    stopped.run("fsck", "--read-data", code=5)
    stopped.run("fsck", "--give-up", "alice", file_id, "2")
    stopped.run("fsck", "--give-up", "alice", file_id, "2", code=3)
    stopped.run("fsck", "--read-data")
    lines = map(json.loads, stopped.run("audit", "log", "--json").lines)
    assert [(one["actor"], one["version"]) for one in lines if one["op"] == "lost"] == [
        ("server", 2)
    ]
    with stopped:
        assert names(alice) == (["dir/good"], [("dir/bad", Damaged)])
        alice.run("rm", "--purge", "--damaged", "dir/bad")
        assert names(alice) == (["dir/good"], [])
    stopped.run("fsck", "--read-data")


@pytest.mark.parametrize("name", ["account.json", "statements.json"])
def test_a_damaged_account_of_a_reader_stops_no_put_of_the_owner(
    stopped: Daemon, alice: Client, tmp_path: Path, name: str
) -> None:
    damage(stopped.root / "store/users/bob" / name, "flipped")
    with stopped:
        told = alice.run("put", "-", "--name", "dir/good", stdin=b"anew")
        if name == "statements.json":
            assert "bob is left out of what you store: the account of bob is damaged" in told.stderr
        alice.run("put", "-", "--name", "dir/new", stdin=b"new")
        alice.run("mv", "dir/new", "dir/moved")
        if name == "statements.json":
            assert "the account of bob" in alice.run("share", "dir/bad", "bob", code=5).stderr
    stopped.run("fsck", "--repair")
    with stopped, connect(alice.home) as store:
        store.put(io.BytesIO(b"again"), name="dir/good")
        bob = Client(tmp_path / "bob")
        assert bob.run("cat", "alice:dir/good", "--trust-first-use").stdout == b"again"


def test_content_that_could_not_be_encrypted_again_is_listed_afterwards(
    stopped: Daemon, alice: Client
) -> None:
    damage(place(stopped, 2, "ct"), "lost")
    with stopped:
        for command in (["rotate", "--compromised"], ["verify-rotation"], ["verify-rotation"]):
            told = alice.run(*command, code=5)
            assert told.stderr.count("version 2") == 1
            assert "1 item failed" in told.stderr
        alice.run("rm", "--purge", "dir/bad")
        alice.run("verify-rotation")
