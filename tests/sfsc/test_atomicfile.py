"""Small private files are replaced atomically and survive a power cut."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from sfsc import atomicfile
from sfsc.atomicfile import make_folder, remove_temporary_files, replace_file


def test_replace_leaves_only_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for data in (b"", b"more", b"x" * 100_000, b"less"):
        replace_file(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    with pytest.raises(OSError):
        replace_file(path, b"data")
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "missing" / "a", b"data")


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_modes(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_folder(tmp_path / "home")
        replace_file(tmp_path / "home" / "a", b"data")
    finally:
        os.umask(before)
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "home" / "a").stat().st_mode & 0o777 == 0o600


def test_only_matching_temporary_files_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "key [a*].x"
    left = {f".{path.name}.{'0' * 16}", f".{path.name}.0123456789abcdef"}
    others = {
        path.name,
        f".{path.name}.lock",
        f".{path.name}.{'0' * 15}",
        f".{path.name}.{'0' * 17}",
        f".key a.x.{'0' * 16}",
        f".key [a*]yx.{'0' * 16}",
    }
    for name in left | others:
        (tmp_path / name).touch()
    remove_temporary_files(path)
    assert {one.name for one in tmp_path.iterdir()} == others


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere another call syncs")
def test_folders_and_files_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sync = os.fsync

    def noting(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        sync(handle)

    monkeypatch.setattr(os, "fsync", noting)
    folder = tmp_path / "a" / "b"
    make_folder(folder)
    assert set(synced) == {tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino}
    synced.clear()
    make_folder(folder)
    assert not synced
    replace_file(folder / "file", b"data")
    # The file is synced before the rename, the folder after it.
    assert synced == [(folder / "file").stat().st_ino, folder.stat().st_ino]


@pytest.mark.skipif(os.name != "posix", reason="Windows cannot open a folder")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
@pytest.mark.parametrize("kind", [stat.S_ISDIR, stat.S_ISREG])
def test_a_sync_that_is_not_supported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    kind: Callable[[int], bool],
) -> None:
    """Network shares cannot sync a folder. An I/O error, or a file that is not synced, is one."""
    sync = os.fsync

    def fails(handle: int) -> None:
        if kind(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fails)
    if kind is stat.S_ISREG or code == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(code)):
            replace_file(tmp_path / "a", b"data")
    else:
        make_folder(tmp_path / "b" / "c")
        replace_file(tmp_path / "b" / "c" / "a", b"data")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such call")
@pytest.mark.parametrize("failing", [None, errno.ENOTSUP, errno.EIO])
def test_macos_uses_f_fullfsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int | None
) -> None:
    """On a share without it, `fsync` is used; any other error is raised."""
    asked: list[str] = []

    def full(_handle: int, _command: int) -> None:
        asked.append("full")
        if failing is not None:
            raise OSError(failing, os.strerror(failing))

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(
        atomicfile, "fcntl", SimpleNamespace(fcntl=full, F_FULLFSYNC=51), raising=False
    )
    monkeypatch.setattr(os, "fsync", lambda _handle: asked.append("plain"))
    if failing == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            replace_file(tmp_path / "a", b"data")
        assert (asked, list(tmp_path.iterdir())) == (["full"], [])
        return
    replace_file(tmp_path / "a", b"data")
    assert asked == (["full"] * 2 if failing is None else ["full", "plain"] * 2)
