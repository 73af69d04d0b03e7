"""A server that was restored from a backup which is older than an account's keys."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import sfsc
from sfsc.keys.home import unlock_home
from tests.e2e.accounts import enrolled
from tests.harness import Client, Daemon

OPEN = "--no-passphrase"


@pytest.fixture
def ada(daemon: Daemon, tmp_path: Path) -> Client:
    client = enrolled(daemon, "ada", tmp_path / "ada", "x25519")
    client.run("put", "-", "--name", "kept", stdin=b"kept")
    return client


def back_up(daemon: Daemon) -> Path:
    daemon.stop()
    kept = daemon.root.with_name("backup")
    shutil.copytree(daemon.root, kept)
    daemon.start()
    return kept


def restore(daemon: Daemon, kept: Path) -> None:
    daemon.stop()
    shutil.rmtree(daemon.root)
    shutil.copytree(kept, daemon.root)
    daemon.start()


def devices(client: Client) -> list[str]:
    with sfsc.connect(client.home, auto_rotate=False) as store:
        return [one.device_id.hex() for one in store.devices()]


def join(client: Client, home: Path) -> Client:
    file = home.with_name(home.name + ".keys")
    client.run("key", "backup", file, OPEN)
    joined = Client(home)
    joined.run("key", "restore", file, OPEN)
    return joined


def test_keys_rotated_since_the_backup(daemon: Daemon, ada: Client, tmp_path: Path) -> None:
    first = join(ada, tmp_path / "first")
    dropped = join(ada, tmp_path / "dropped")
    kept = back_up(daemon)
    ada.run("device", "drop", unlock_home(dropped.home, None).contents.device.device_id.hex())
    ada.run("rotate")
    first.run("cat", "kept")
    ada.run("key", "backup", tmp_path / "later.keys", OPEN)
    ada.run("put", "-", "--name", "forgotten", stdin=b"x")
    present = devices(ada)
    restore(daemon, kept)
    for command in (("cat", "kept"), ("cat", "kept"), ("put", "-", "--name", "x")):
        shown = ada.run(*command, code=5).stderr  # the second time the evidence is there already
        assert "fewer" in shown
        assert "a backup of the server was put back, run `sfsc audit accept`" in shown
    accepted = ada.run("audit", "accept", "--yes")
    assert "statements of your account" in accepted.stderr
    assert ada.run("cat", "kept").stdout == b"kept"
    ada.run("put", "-", "--name", "new", stdin=b"new")
    ada.run("verify-rotation")
    ada.run("audit", "verify")
    assert devices(ada) == present  # one was dropped, and one was added since the backup
    dropped.run("cat", "kept", code=4)
    dropped.run("audit", "accept", "--yes", code=4)
    first.run("audit", "accept", "--yes")
    assert first.run("cat", "new").stdout == b"new"
    later = Client(tmp_path / "later")
    later.run("key", "restore", tmp_path / "later.keys", OPEN)
    assert later.run("cat", "new").stdout == b"new"


def test_statements_without_a_rotation_since_the_backup(
    daemon: Daemon, ada: Client, tmp_path: Path
) -> None:
    kept = back_up(daemon)
    ada.run("key", "backup", tmp_path / "later.keys", OPEN)
    present = devices(ada)
    restore(daemon, kept)
    ada.run("cat", "kept", code=5)
    ada.run("audit", "accept", "--yes")
    assert ada.run("cat", "kept").stdout == b"kept"
    assert devices(ada) == present
    ada.run("audit", "accept", "--yes")  # nothing was forgotten
    ada.run("verify-rotation")


def test_interrupted_republication_is_continued(
    daemon: Daemon, ada: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = back_up(daemon)
    ada.run("rotate")
    restore(daemon, kept)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sfsc.account.rotate.Rotation.rotate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sfsc.accept(ada.home)
    assert unlock_home(ada.home, None).contents.pending is not None
    assert ada.run("cat", "kept").stdout == b"kept"
    assert unlock_home(ada.home, None).contents.pending is None
    ada.run("verify-rotation")


def test_a_machine_that_the_backup_does_not_know_is_told_what_to_do(
    daemon: Daemon, ada: Client, tmp_path: Path
) -> None:
    kept = back_up(daemon)
    ada.run("rotate", "--compromised")  # gives the machine a new device key
    restore(daemon, kept)
    refused = ada.run("audit", "accept", "--yes", code=4)
    assert "sfsc init --recovery" in refused.stderr
