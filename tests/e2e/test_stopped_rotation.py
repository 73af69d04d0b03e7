"""A rotation that something stops: a warning, while everything else goes on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import sfsc
from tests.e2e.accounts import enrolled
from tests.harness import Client, Daemon


@pytest.fixture
def ada(daemon: Daemon, tmp_path: Path) -> Client:
    client = enrolled(daemon, "ada", tmp_path / "ada", "x25519")
    for name in ("good", "bad", "other"):
        client.run("put", "-", "--name", name, stdin=name.encode())
    return client


def damage_sidecar(daemon: Daemon, client: Client, name: str) -> None:
    with sfsc.connect(client.home) as store:
        file_id = store.stat(name).file_id
    (path,) = (daemon.root / "store/users/ada/files").glob(f"*/{file_id}.1.json")
    path.write_bytes(path.read_bytes().replace(b"metadata", b"metadatA"))


def check_usable(client: Client) -> str:
    """Check that other commands work. Return what a read prints on stderr."""
    client.run("ls", "good")
    client.run("status")
    client.run("put", "-", "--name", "new", stdin=b"new")
    client.run("rm", "--purge", "new")
    read = client.run("cat", "good")
    assert read.stdout == b"good"
    return read.stderr


def test_rotation_leaves_a_damaged_version_out(daemon: Daemon, ada: Client) -> None:
    damage_sidecar(daemon, ada, "bad")
    done = ada.run("rotate", code=5)
    assert "bad: version 1 of the file is damaged" in done.stderr
    assert "generation  2" in done.stderr
    assert check_usable(ada) == ""
    assert "bad: version 1 of the file is damaged" in ada.run("verify-rotation", code=5).stderr


def test_automatic_rotation_keeps_the_old_keys_of_a_damaged_version(
    daemon: Daemon, ada: Client, caplog: pytest.LogCaptureFixture
) -> None:
    damage_sidecar(daemon, ada, "bad")
    daemon.run("rotate", "ada")
    assert "warning" in check_usable(ada)
    with caplog.at_level(logging.WARNING, "sfsc"), sfsc.connect(ada.home) as store:
        assert store.open("good").read() == b"good"
        assert store.rotation_plan().damaged == 1
    assert "rotation is unfinished" in caplog.text
    ada.run("verify-rotation", code=4)
    assert "bad: version 1 of the file is damaged" in ada.run("rotate", code=5).stderr
    assert check_usable(ada) == ""


def test_rotation_limit_stops_rotations_only(daemon: Daemon, ada: Client) -> None:
    settings = daemon.root / "sfsd.toml"
    settings.write_text(settings.read_text() + "\n[limits]\nrotations = 1\n")
    daemon.stop()
    daemon.start()
    ada.run("rotate")
    assert "1 rotations within 30 days" in ada.run("rotate", code=4).stderr
    assert check_usable(ada) == ""
    daemon.run("rotate", "ada")
    assert "1 rotations within 30 days" in ada.run("cat", "good").stderr
    ada.run("put", "-", "--name", "new", stdin=b"new", code=4)  # the operator's policy
    ada.run("rm", "--purge", "other")
    assert ada.run("cat", "good").stdout == b"good"
