"""`sfsd init`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfsd import server_keys
from sfsd.settings.config import Config

Sfsd = Callable[..., Any]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_new_root(tmp_path: Path, sfsd: Sfsd) -> None:
    root = tmp_path / "new"
    answer = sfsd("init", "--root", root, "--public", "[2001:db8::1]:7373")
    assert answer.lines == [server_keys.load(root / "keys").server_id.hex()]
    assert Config.load(root) == Config(public="[2001:db8::1]:7373")
    folders = {path.name for path in root.iterdir()}
    assert folders == {"keys", "staging", "store", "run", "logs", "sfsd.toml"}
    if os.name == "posix":
        assert {(root / name).stat().st_mode & 0o77 for name in folders} == {0}


def test_listen_address_and_next_steps(tmp_path: Path, sfsd: Sfsd) -> None:
    root = tmp_path / "my root"
    answer = sfsd("init", "--root", root, "--listen", "[::]:7373")
    assert Config.load(root) == Config(listen="[::]:7373")
    assert "public = " in answer.err
    assert "Only this machine" not in answer.err
    for step in ("check-config", "serve", "user add NAME"):
        assert f"sfsd {step} --root '{root}'" in answer.err
    assert str(root / "keys") in answer.err
    answer = sfsd("init", "--root", tmp_path / "new", "--public", "files.example:1")
    assert "Only this machine can connect to 127.0.0.1:7373" in answer.err
    assert "public = " not in answer.err


def test_no_secret_is_printed(tmp_path: Path, sfsd: Sfsd) -> None:
    answer = sfsd("init", "--root", tmp_path / "new")
    for path in (tmp_path / "new" / "keys").glob("*.key"):
        for line in path.read_text().split():
            assert line not in answer.out + answer.err


def test_current_folder(tmp_path: Path, sfsd: Sfsd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SFSD_ROOT", raising=False)
    sfsd("init")
    assert (tmp_path / "sfsd.toml").exists()


def test_existing_root_is_refused(root: Path, sfsd: Sfsd) -> None:
    before = tree(root)
    answer = sfsd("init", code=1)
    assert "hint: " in answer.err
    assert tree(root) == before


def test_keys_without_settings_are_not_overwritten(root: Path, sfsd: Sfsd) -> None:
    (root / "sfsd.toml").unlink()
    before = tree(root)
    assert "hint: " in sfsd("init", code=1).err
    assert tree(root) == before


@pytest.mark.parametrize("address", ["files.example", "files.example:0", "a b:1", "x:99999"])
def test_invalid_public_address(tmp_path: Path, sfsd: Sfsd, address: str) -> None:
    sfsd("init", "--root", tmp_path / "new", "--public", address, code=2)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path: Path, sfsd: Sfsd) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "hint: " in sfsd("init", "--root", tmp_path / "new", code=1).err
    finally:
        tmp_path.chmod(0o700)


def test_file_in_place_of_the_folder(tmp_path: Path, sfsd: Sfsd) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "store").write_text("in the way")
    answer = sfsd("init", "--root", tmp_path / "new", code=1)
    assert answer.err.startswith("sfsd: ")
    assert "hint: " in answer.err
