"""`sfsd backup` beside a serving daemon, and what each client sees after `sfsd restore`."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sfsc
from tests.e2e.accounts import enrolled, new_root
from tests.harness import Client, Daemon, environment
from tests.waiting import until

UPLOADS = 50
KILLED_BEFORE_ITS_NAME = """
import os, signal, sys
from sfsd import cli
from sfsd.storage import backup
backup.left_over = lambda check: os.kill(os.getpid(), signal.SIGKILL)
cli.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Client]]:
    """Yield a serving daemon and its user ada, who has a large file and a small one."""
    folder = tmp_path_factory.mktemp("used")
    with new_root(folder / "root") as daemon:
        ada = enrolled(daemon, "ada", folder / "ada", "x25519")
        with sfsc.connect(ada.home) as store:
            store.put(io.BytesIO(os.urandom(2 << 20)), name="large")
            store.put(io.BytesIO(b"small"), name="small")
        yield daemon, ada


def back_up(daemon: Daemon, folder: Path, *options: str, code: int = 0) -> dict[str, Any]:
    """Make a backup; return its JSON."""
    found: dict[str, Any] = json.loads(
        daemon.run("backup", folder, "--json", *options, code=code).stdout
    )
    return found


def inodes(backup: Path) -> dict[str, int]:
    """Return the inode of each file below store/users of a backup."""
    users = backup / "store" / "users"
    return {
        path.relative_to(users).as_posix(): path.stat().st_ino
        for path in users.rglob("*")
        if path.is_file()
    }


def large_ciphertext(daemon: Daemon) -> Path:
    files = (daemon.root / "store/users/ada/files").rglob("*.ct")
    return max(files, key=lambda path: path.stat().st_size)


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))


def test_backup_during_uploads_restored_elsewhere(tmp_path: Path) -> None:
    """Everything acknowledged before the backup began opens, and each client goes on as documented:
    the one that saw more is told so, the one that did not notices nothing."""
    folder = tmp_path / "backups"
    acknowledged = list[str]()
    with new_root(tmp_path / "root") as daemon:
        ada = enrolled(daemon, "ada", tmp_path / "ada", "x25519")
        bea = enrolled(daemon, "bea", tmp_path / "bea", "x25519")
        bea.run("put", "-", "--name", "hers", stdin=b"hers")

        def upload() -> None:
            with sfsc.connect(ada.home) as store:
                for number in range(UPLOADS):
                    store.put(io.BytesIO(b"%d" % number * 1000), name=f"file {number}")
                    acknowledged.append(f"file {number}")
                    # One file is stored again and again, and its old content removed.
                    store.put(io.BytesIO(b"%d" % number), name="hot")
                    store.prune("hot", keep=1)

        uploads = threading.Thread(target=upload)
        uploads.start()
        until(lambda: len(acknowledged) > 5)
        before = len(acknowledged)
        made = back_up(daemon, folder)
        during = len(acknowledged)
        uploads.join()
        assert len(acknowledged) == UPLOADS
        assert before <= during < UPLOADS, "the backup was not made during the uploads"
        assert made["damaged"] == []
        late = tmp_path / "photos" / "late.jpg"
        late.parent.mkdir()
        late.write_bytes(b"taken after the backup")
        ada.run("sync", late.parent)
        cleo = enrolled(daemon, "cleo", tmp_path / "cleo", "x25519")
        address = daemon.address
    elsewhere = Daemon(tmp_path / "elsewhere", address)
    restored = json.loads(
        elsewhere.run("restore", folder, "--root", elsewhere.root, "--json").stdout
    )
    assert restored["entries"] == made["entries"]
    with elsewhere:
        bea.run("put", "-", "--name", "more", stdin=b"more")
        assert bea.run("cat", "hers").stdout == b"hers"
        assert "fewer" in ada.run("ls", code=5).stderr
        ada.run("audit", "accept", "--yes")
        with sfsc.connect(ada.home) as store:
            there = {entry.name for entry in store.ls()}
            assert set(acknowledged[:before]) <= there
            for name in there - {"hot"}:
                with store.open(name) as file:
                    assert file.read() == name.removeprefix("file ").encode() * 1000
            store.put(io.BytesIO(b"again"), name=acknowledged[-1])
        ada.run("audit", "verify")
        # The server has forgotten these files; that is no deletion by another machine.
        (late.parent / "other.jpg").write_bytes(b"")
        ada.run("put", late.parent / "other.jpg", "--name", "photos/other.jpg")
        ada.run("sync", "--down", "--delete", "photos", late.parent)
        assert late.read_bytes() == b"taken after the backup"
        ada.run("sync", late.parent)
        assert ada.run("cat", "photos/late.jpg").stdout == late.read_bytes()
        # An account that is younger than the backup begins again, with a new invitation.
        cleo.run("ls", code=4)
        assert "does not know this machine" in cleo.run("audit", "accept", "--yes", code=4).stderr
        enrolled(elsewhere, "cleo", tmp_path / "cleo again", "x25519").run("ls")
    elsewhere.run("fsck", "--read-data")


def test_second_backup_links_what_did_not_change(
    used: tuple[Daemon, Client], tmp_path: Path
) -> None:
    daemon, ada = used
    first = back_up(daemon, tmp_path)
    ada.run("put", "-", "--name", "new", stdin=b"new")
    second = back_up(daemon, tmp_path)
    before, after = inodes(Path(first["path"])), inodes(Path(second["path"]))
    linked = {path for path in before if after.get(path) == before[path]}
    assert len(linked) >= 4
    assert len(after) - len(linked) == second["copied"] == 2  # ciphertext and sidecar of the new
    third = back_up(daemon, tmp_path, "--keep", "2")
    assert third["copied"] == 0
    assert third["removed"] == [Path(first["path"]).name]
    # A link never leads into the root, so that damage there does not reach a backup.
    roots = {path.stat().st_ino for path in (daemon.root / "store/users").rglob("*")}
    assert not roots & set(inodes(Path(third["path"])).values())
    for backup in (second, third):
        daemon.run("fsck", "--read-data", "--root", backup["path"])
    modes = {path.stat().st_mode & 0o077 for path in (Path(third["path"]) / "keys").iterdir()}
    assert modes == {0}


def test_flipped_bit_is_named_and_the_rest_is_copied(
    used: tuple[Daemon, Client], tmp_path: Path
) -> None:
    daemon, _ = used
    good = back_up(daemon, tmp_path / "with a last one")
    blob = large_ciphertext(daemon)
    kept, times = blob.read_bytes(), blob.stat()
    try:
        damage(blob)
        name = blob.relative_to(daemon.root).as_posix()
        shown = daemon.run("backup", tmp_path / "first", code=5)
        assert f"changed: {name}" in shown.text
        assert "1 damaged file in" in shown.stderr
        (first,) = (tmp_path / "first").glob("2*")
        assert not (first / name).exists()
        assert len(inodes(first)) == len(inodes(Path(good["path"]))) - 1
        # The last backup has a good copy, which stays in the next ones; nothing old is removed.
        again = back_up(daemon, tmp_path / "with a last one", "--keep", "1", code=5)
        assert [one["path"] for one in again["damaged"]] == [name]
        assert Path(good["path"]).exists()
        assert (Path(again["path"]) / name).read_bytes() == kept
        # A disk changes no time: only reading everything finds that.
        os.utime(blob, ns=(times.st_mtime_ns, times.st_mtime_ns))
        assert back_up(daemon, tmp_path / "with a last one")["damaged"] == []
        read = back_up(daemon, tmp_path / "with a last one", "--read-data", code=5)
        assert [one["path"] for one in read["damaged"]] == [name]
    finally:
        blob.write_bytes(kept)


def test_killed_backup_leaves_nothing_that_looks_whole(
    used: tuple[Daemon, Client], tmp_path: Path
) -> None:
    daemon, _ = used
    folder = tmp_path / "backups"
    variables = environment({"SFSD_ROOT": str(daemon.root)})
    words = [sys.executable, "-c", KILLED_BEFORE_ITS_NAME, "backup", str(folder)]
    killed = subprocess.run(words, env=variables, check=False)
    assert killed.returncode == -9
    assert [one.name[:8] for one in folder.iterdir() if one.is_dir()] == [".making-"]
    assert (
        "no backup in" in daemon.run("restore", folder, "--root", tmp_path / "new", code=3).stderr
    )
    made = back_up(daemon, folder)
    assert [one for one in folder.iterdir() if one.is_dir()] == [Path(made["path"])]


def test_backup_that_is_copied_plainly_can_be_served(
    used: tuple[Daemon, Client], tmp_path: Path
) -> None:
    daemon, ada = used
    made = back_up(daemon, tmp_path / "backups")
    shutil.copytree(made["path"], tmp_path / "copied")
    with Daemon(tmp_path / "copied") as copied:
        status = json.loads(copied.run("status", "--json").stdout)
    assert (status["failed"], status["damaged"]) == ("", [])
    assert ada.run("cat", "small").stdout == b"small"  # of the daemon that went on
