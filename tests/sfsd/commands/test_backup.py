"""`sfsd backup` and `sfsd restore` without a daemon: what they refuse, and hostile folders."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from protocol.wire.messages.accounts import UserQuota
from sfsd.commands import operator_client
from sfsd.storage import backup as module
from tests.sfsd.commands.conftest import Sfsd


@pytest.fixture
def users(root: Path, sfsd: Sfsd) -> Path:
    """Add two users; return the root."""
    for name in ("ada", "bea"):
        sfsd("user", "add", name)
    return root


def newest(folder: Path) -> Path:
    return max(folder.glob("2*"))


def test_change_while_a_file_is_copied_is_in_the_backup(
    users: Path, sfsd: Sfsd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that a later entry replaced is not damaged: it is copied again, with that entry."""
    copy, left = module.copy_file, list(range(3))

    def copied_late(*arguments: object) -> tuple[bytes, int]:
        if left and str(arguments[1]).endswith("ada/account.json"):
            request = UserQuota("ada", 100 + left.pop())
            operator_client.send_requests(users, [request])
        return copy(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "copy_file", copied_late)
    made = json.loads(sfsd("backup", tmp_path / "b", "--json").out)
    assert not left
    assert made["damaged"] == []
    sfsd("restore", tmp_path / "b", "--root", tmp_path / "new")
    (ada,) = map(
        json.loads, sfsd("user", "show", "ada", "--json", "--root", tmp_path / "new").lines
    )
    assert ada["quota"] == 100


def test_file_removed_while_it_is_copied_is_not_in_the_backup(
    users: Path, sfsd: Sfsd, tmp_path: Path
) -> None:
    """A second pass removes what an entry removed: no stray file is left."""
    one = module.Backup(users, tmp_path)
    (tmp_path / "kept").write_bytes(b"copied in the first pass")
    one._wanted = {"kept": (None, 7)}
    one._capture(tmp_path)
    assert not one._wanted
    assert not (tmp_path / "kept").exists()


def _make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda path: path.write_bytes(b"{}"), "changed"),
        (Path.unlink, "missing"),
        (lambda path: path.unlink() or path.symlink_to("/etc/hostname"), "unreadable"),
        (_make_pipe, "changed"),
    ],
)
def test_damaged_file_does_not_stop_the_rest(
    users: Path, sfsd: Sfsd, tmp_path: Path, damage: Callable[[Path], object], kind: str
) -> None:
    damage(users / "store/users/ada/account.json")
    made = json.loads(sfsd("backup", tmp_path / "b", "--json", code=5).out)
    assert [(one["kind"], one["path"]) for one in made["damaged"]] == [
        (kind, "store/users/ada/account.json")
    ]
    copied = newest(tmp_path / "b") / "store" / "users"
    assert (copied / "bea" / "account.json").is_file()
    assert not (copied / "ada" / "account.json").exists()
    restored = sfsd("restore", tmp_path / "b", "--root", tmp_path / "new", code=5)
    assert "missing: store/users/ada/account.json" in restored.out
    sfsd("fsck", "--repair", "--root", tmp_path / "new")


def test_damaged_log_is_no_backup(users: Path, sfsd: Sfsd, tmp_path: Path) -> None:
    log = users / "logs" / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"quota":0', b'"quota":9', 1))
    assert "entry" in sfsd("backup", tmp_path / "b", code=5).err
    assert not list((tmp_path / "b").glob("*2*"))


def test_refused_targets(users: Path, sfsd: Sfsd, tmp_path: Path) -> None:
    assert "inside the root" in sfsd("backup", users / "store" / "b", code=2).err
    assert "is its disk mounted?" in sfsd("backup", tmp_path / "missing" / "b", code=3).err
    sfsd("backup", tmp_path / "b")
    with FileLock(tmp_path / "b" / module.LOCK):
        assert "another backup" in sfsd("backup", tmp_path / "b", code=6).err
    sfsd("init", "--root", tmp_path / "other")
    refused = sfsd("backup", tmp_path / "b", "--root", tmp_path / "other", code=2)
    assert "another server" in refused.err


def test_backup_of_a_restored_root_links_nothing_of_a_longer_log(
    users: Path, sfsd: Sfsd, tmp_path: Path
) -> None:
    """The root went back and on: the same entry numbers are other entries now."""
    sfsd("backup", tmp_path / "b")
    sfsd("restore", tmp_path / "b", "--root", tmp_path / "new")
    sfsd("user", "quota", "ada", "1G")
    sfsd("backup", tmp_path / "b")
    sfsd("user", "quota", "ada", "2G", "--root", tmp_path / "new")
    made = json.loads(sfsd("backup", tmp_path / "b", "--json", "--root", tmp_path / "new").out)
    assert made["copied"] == made["files"] == 2
    sfsd("fsck", "--root", made["path"])


def test_restore_refuses_a_root_that_is_not_empty(users: Path, sfsd: Sfsd, tmp_path: Path) -> None:
    sfsd("backup", tmp_path / "b")
    before = sorted(users.rglob("*"))
    assert "is not empty" in sfsd("restore", tmp_path / "b", "--root", users, code=6).err
    assert sorted(users.rglob("*")) == before
    inside = newest(tmp_path / "b") / "new"
    assert "in each other" in sfsd("restore", newest(tmp_path / "b"), "--root", inside, code=2).err


def test_restore_follows_no_link_and_waits_for_no_pipe(
    users: Path, sfsd: Sfsd, tmp_path: Path
) -> None:
    sfsd("backup", tmp_path / "b")
    secret = tmp_path / "outside" / "secret"
    secret.parent.mkdir()
    secret.write_text("secret")
    backup = newest(tmp_path / "b")
    (backup / "keys" / "more").symlink_to(secret)
    (backup / "keys" / "pipe").unlink(missing_ok=True)
    os.mkfifo(backup / "keys" / "pipe")
    (backup / "store" / "users" / "eve").symlink_to(secret.parent)
    told = sfsd("restore", tmp_path / "b", "--root", tmp_path / "new", code=5).out
    for name in ("keys/more", "keys/pipe", "store/users/eve"):
        assert f"link: {name}: it is not a file; it was left out" in told
        assert not (tmp_path / "new" / name).exists()
    (backup / "sfsd.toml").unlink()
    (backup / "sfsd.toml").symlink_to(secret)
    sfsd("restore", backup, "--root", tmp_path / "again", code=5)
    assert not (tmp_path / "again" / "sfsd.toml").exists()


def test_read_only_copy_is_checked(
    users: Path, sfsd: Sfsd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an account that may write nothing there, with and without a file to lock."""
    sfsd("backup", tmp_path / "b")
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")  # open to every account
    for copy in (newest(tmp_path / "b"), users):
        for path in (*copy.rglob("*"), copy):
            path.chmod(0o555)
        monkeypatch.chdir(copy)  # the folders above may belong to another account
        before = sorted(path.name for path in copy.rglob("*"))
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                Path("new").touch()
            assert "no damage left" in sfsd("fsck", "--read-data", "--root", ".").out
            table = sfsd("audit", "verify", "--root", ".").out.splitlines()[2]
            assert table.startswith("the table of newest files ")
            if copy == users:
                assert table.startswith("the table of newest files is that of ")
                with open("run/lock", "rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    assert "another process uses" in sfsd("fsck", "--root", ".", code=1).err
        finally:
            if is_root:
                os.seteuid(0)
            for path in (copy, *copy.rglob("*")):
                path.chmod(0o755)
        assert sorted(path.name for path in copy.rglob("*")) == before
