"""What the files of users take, counted as for their quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sfsd.errors import ConfigError
from sfsd.report.storage import UserStorage, storage_by_user

ID = "ab" * 16


def put(root: Path, path: str, size: int) -> Path:
    file = root / "store" / "users" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(size))
    return file


def test_files_are_counted_and_shared_contents_once(tmp_path: Path) -> None:
    content = put(tmp_path, f"alice/files/ab/{ID}.1.ct", 1000)
    os.link(content, content.with_name(f"{ID}.2.ct"))
    put(tmp_path, f"alice/files/ab/{ID}.1.json", 30)
    put(tmp_path, f"alice/files/ab/{ID}.2.json", 40)
    put(tmp_path, f"alice/files/ab/{ID}.1.leaves", 5)
    put(tmp_path, "alice/files/ab/.other.tmp", 99)
    put(tmp_path, "alice/files/stray", 99)
    put(tmp_path, "alice/account.json", 99)
    put(tmp_path, "bob/account.json", 99)
    put(tmp_path, ".spare/file.0", 99)
    link = tmp_path / "store" / "users" / "bob" / "files" / "ab" / f"{ID}.3.ct"
    link.parent.mkdir(parents=True)
    link.symlink_to(content)
    alice, bob = storage_by_user(tmp_path)
    assert alice == UserStorage("alice", 2, 1075, 0)
    assert bob == UserStorage("bob", 0, 0, 0)


def test_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    put(tmp_path, "alice/files/ab", 3)
    put(tmp_path, "bob/files", 3)
    alice, bob = storage_by_user(tmp_path)
    assert alice == UserStorage("alice")
    assert bob == UserStorage("bob", unreadable=1)


def test_a_root_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        list(storage_by_user(tmp_path))
    assert str(tmp_path / "store" / "users") in raised.value.cause
