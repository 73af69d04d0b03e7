"""A client whose disk is full or read-only goes on reading, and its keyring stays whole."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.accounts import enrolled
from tests.harness import Client, Daemon

WARNING = "rollback protection is reduced; make room on the disk of "


def mount(*arguments: str | Path) -> bool:
    try:
        return (
            subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0
        )
    except OSError:
        return False


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder that is a file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or not mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", folder):
        pytest.skip("only root can mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_reading_goes_on_without_saving(daemon: Daemon, disk: Path, how: str) -> None:
    home = disk / "home"
    client: Client = enrolled(daemon, "eve", home)
    client.run("put", "-", "--name", "file", stdin=b"content")
    keyring = (home / "keyring").read_bytes()
    ballast = disk / "ballast"
    if how == "full":
        fill(ballast)
    else:
        assert mount("-o", "remount,ro", disk)
    for arguments in (("ls",), ("cat", "file"), ("status",)):
        got = client.run(*arguments)
        assert got.stderr.count("\n") == 1
        assert WARNING + str(home) in got.stderr
    assert client.run("cat", "file").stdout == b"content"
    if how == "full":
        failed = client.run("rotate", code=1)
        assert f"cannot write the keyring at {home}" in failed.stderr
        ballast.unlink()
    else:
        failed = client.run("audit", "accept", "--yes", code=1)
        assert f"make room on the disk of {home}" in failed.stderr
        assert mount("-o", "remount,rw", disk)
    assert (home / "keyring").read_bytes() == keyring
    assert client.run("cat", "file").stderr == ""
    client.run("rotate")
    client.run("audit", "verify")
