"""Destinations: files appear whole or not at all, and never elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from protocol.buffers.largefiles import LARGE
from protocol.codec.values import changed
from sfsc.crypto.envelope import FOLDER, LINK, Metadata
from sfsc.errors import BadDestination, LocalError, SfscError
from sfsc.transfer import destination
from sfsc.transfer.destination import (
    DestinationFolder,
    DestinationTree,
    check_local_name,
    limit_to_umask,
    replacing_file,
)
from sfsc.transfer.local_io import LargeFileWriter

PLAIN = Metadata("n", 3, None, None)
posix = pytest.mark.skipif(os.name != "posix", reason="links and modes of POSIX")


def write(
    tree: DestinationTree, name: str, content: bytes = b"new", metadata: Metadata = PLAIN
) -> None:
    with tree.destination(name)(metadata) as file:
        file.write(content)


def everything(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_tree_of_files(tmp_path: Path) -> None:
    with DestinationTree(tmp_path / "a" / "b") as tree:
        for name in ("x", "c/y", "c/d/z", "c/w", "e/v", "x"):
            write(tree, name, name.encode())
    expected = {name: name.encode() for name in ("x", "c/y", "c/d/z", "c/w", "e/v")}
    assert everything(tmp_path / "a" / "b") == expected


def test_names_that_differ_in_case_only(tmp_path: Path) -> None:
    """If they are the same file there, the second does not overwrite the first."""
    with DestinationFolder.open_folder(tmp_path) as folder:
        folds = folder.folds_case()
    (tmp_path / "case").write_bytes(b"")
    assert folds == (tmp_path / "CASE").exists()
    with DestinationTree(tmp_path / "tree") as tree:
        write(tree, "a/Name", b"first")
        if folds:
            with pytest.raises(BadDestination):
                write(tree, "A/name", b"second")
        else:
            write(tree, "A/name", b"second")
    assert everything(tmp_path / "tree")["a/Name"] == b"first"
    assert all(not path.name.startswith(".sfsc") for path in tmp_path.rglob("*"))


@posix
def test_a_name_that_is_the_same_file_as_another(tmp_path: Path) -> None:
    """A link with both names stands for a file system that treats two names as one."""
    with DestinationTree(tmp_path, folds_case=True) as tree:
        for name in ("Name", "NAMES", "Name"):
            write(tree, name, b"first")
        os.link(tmp_path / "Name", tmp_path / "name")
        with pytest.raises(BadDestination):
            write(tree, "name", b"second")
        write(tree, "names", b"second")
    assert (tmp_path / "Name").read_bytes() == b"first"
    assert (tmp_path / "names").read_bytes() == b"second"


@posix
def test_times_and_modes_but_no_set_user_id(tmp_path: Path) -> None:
    with DestinationTree(tmp_path) as tree:
        write(tree, "a", metadata=Metadata("n", 3, 1_500_000_000_123_456_789, 0o6754))
        write(tree, "b")
    status = (tmp_path / "a").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o754, 1_500_000_000_123_456_789)
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600


@posix
@pytest.mark.parametrize(
    ("umask", "mode", "expected"),
    [(0o022, 0o777, 0o755), (0o077, 0o666, 0o600), (0o027, 0o640, 0o640), (0o777, 0o644, 0)],
)
def test_permissions_of_another_users_file_are_limited_by_the_umask(
    tmp_path: Path, umask: int, mode: int, expected: int
) -> None:
    before = os.umask(umask)
    try:
        with DestinationTree(tmp_path / "out", folds_case=False, foreign=True) as tree:
            write(tree, "a", metadata=Metadata("n", 3, None, mode))
        own = limit_to_umask(PLAIN)
    finally:
        assert os.umask(before) == umask
    assert stat.S_IMODE((tmp_path / "out/a").stat().st_mode) == expected
    assert own.mode is None


REORDERED = ["report\u202etxt.exe", "a/\u2066b\u2069/c", "x\u200fy", "\u061c"]


@pytest.mark.parametrize("name", [*REORDERED, "a\x1b]0;b", "a\x07"])
def test_names_of_another_user_with_control_or_bidi_characters(tmp_path: Path, name: str) -> None:
    with DestinationTree(tmp_path, foreign=True) as tree:
        with pytest.raises(BadDestination):
            tree.destination(name)
        write(tree, "رسالة/日本　語/👩‍💻")
    with DestinationTree(tmp_path) as tree:
        write(tree, REORDERED[0])
    assert set(everything(tmp_path)) == {"رسالة/日本　語/👩‍💻", REORDERED[0]}


@pytest.mark.parametrize("call", ["chmod", "utime"])
def test_a_file_system_without_permissions_or_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    faults = [OSError(errno.EPERM, "no such thing"), OverflowError(), OSError(errno.EIO, "broken")]

    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise faults.pop(0)

    monkeypatch.setattr(os, call, refuse)
    metadata = Metadata("n", 3, 10**18, 0o644)
    with DestinationTree(tmp_path) as tree:
        for name in ("a", "b"):
            write(tree, name, metadata=metadata)
        with pytest.raises(LocalError):
            write(tree, "c", metadata=metadata)
    assert sorted(everything(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("way", ["in a tree", "at a path"])
def test_a_large_file_appears_complete(tmp_path: Path, way: str) -> None:
    content = os.urandom(LARGE + 5)
    metadata = Metadata("n", len(content), None, None)
    with DestinationTree(tmp_path) as tree:
        place = (
            tree.destination("a")(metadata)
            if way == "in a tree"
            else replacing_file(tmp_path / "a", metadata)
        )
        with place as file:
            assert isinstance(file, LargeFileWriter)
            view = memoryview(content)
            while view:  # and nobody flushes it
                view = view[file.write(view) :]
    assert everything(tmp_path) == {"a": content}


@pytest.mark.skipif(sys.platform != "linux", reason="a file without a name is Linux's")
@pytest.mark.parametrize("lacks", ["nothing", "files without a name", "a name for one later"])
def test_a_large_file_has_no_name_until_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    if lacks == "files without a name":
        monkeypatch.setattr(destination, "_UNNAMED", os.O_WRONLY)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "not on this file system")

    if lacks == "a name for one later":
        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_bytes(b"old")
    metadata = Metadata("n", LARGE, 1_500_000_000_000_000_000, 0o640)
    with replacing_file(tmp_path / "a", metadata) as file:
        assert file.write(b"new") == 3
        there = sorted(path.name for path in tmp_path.iterdir() if path.name != "a")
        assert [name[:6] for name in there] == ([] if lacks == "nothing" else [".sfsc-"])
        assert (tmp_path / "a").read_bytes() == b"old"
    assert everything(tmp_path) == {"a": b"new"}
    status = (tmp_path / "a").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o640, metadata.mtime)
    assert status.st_nlink == 1


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def interrupted(place: AbstractContextManager[BinaryIO]) -> None:
        with place as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with DestinationTree(tmp_path) as tree:
        large = Metadata("n", LARGE, None, None)
        for place in (
            tree.destination("a")(PLAIN),
            replacing_file(tmp_path / "a", PLAIN),
            replacing_file(tmp_path / "a", large),
        ):
            with pytest.raises(KeyboardInterrupt):
                interrupted(place)
    assert everything(tmp_path) == {"a": b"old"}


@posix
@pytest.mark.parametrize("name", ["link/x", "a/link/x", "file/x", "a/file/x"])
def test_nothing_is_written_through_a_link_or_a_file(tmp_path: Path, name: str) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    for folder in (inside, inside / "a"):
        folder.mkdir()
        (folder / "link").symlink_to(outside)
        (folder / "file").write_bytes(b"mine")
    with DestinationTree(inside) as tree:
        with pytest.raises(BadDestination):
            write(tree, name)
        write(tree, "a/fine")
    assert everything(outside) == {}
    assert (inside / "a" / "fine").read_bytes() == b"new"


@posix
def test_a_link_with_the_files_name_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").symlink_to(tmp_path / "precious")
    with DestinationTree(tmp_path / "tree") as tree:
        write(tree, "a")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "tree" / "a").is_symlink()


@posix
def test_a_folder_replaced_by_a_link_meanwhile(tmp_path: Path) -> None:
    """Files are written into the open folder, wherever its name leads by then."""
    outside = tmp_path / "outside"
    outside.mkdir()
    with DestinationTree(tmp_path / "tree") as tree, tree.destination("a/x")(PLAIN) as file:
        (tmp_path / "tree" / "a").rename(tmp_path / "tree" / "b")
        (tmp_path / "tree" / "a").symlink_to(outside)
        file.write(b"new")
    assert everything(outside) == {}
    assert (tmp_path / "tree" / "b" / "x").read_bytes() == b"new"


def test_a_folder_with_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with DestinationTree(tmp_path) as tree, pytest.raises(LocalError):
        write(tree, "a")
    assert everything(tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["nul", "a/CON.txt", "com1/b", "Aux .c/x", "lpt¹"])
def test_device_names_are_rejected_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "platform", "win32")
        with pytest.raises(BadDestination):
            check_local_name(name)
    if sys.platform != "win32":
        with DestinationTree(tmp_path) as tree:
            write(tree, name)
        assert list(everything(tmp_path)) == [name]


def folder(mode: int, mtime: int = 10**18) -> Metadata:
    return Metadata("n/", 0, mtime, mode, FOLDER)


def link(target: str) -> Metadata:
    return Metadata("n", 0, 10**18, None, LINK, target)


def no_failure(what: str, error: SfscError) -> None:
    raise AssertionError(what) from error


def mode_and_time(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return stat.S_IMODE(status.st_mode), status.st_mtime_ns


@posix
def test_modes_and_times_of_folders_are_set_at_the_end(tmp_path: Path) -> None:
    """Until then new folders are for their owner only; one without a mode stays so."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old").chmod(0o755)
    stored = {"c/": 0o755, "c/ro/": 0o500, "c/ro/none/": 0, "c/set/": 0o6777}
    for turn in (False, True):  # the second time they exist, and are not writable
        with DestinationTree(tmp_path / "old" / "a", folders=stored) as tree:
            assert (tree.status("c/ro/file") is None) is not turn
            write(tree, "c/ro/file", b"%d" % turn)
            assert (tmp_path / "old/a/c/ro").stat().st_mode & 0o200
            for number, (name, mode) in enumerate(stored.items()):
                write(tree, name, b"", folder(mode, number * 10**18 + 5))
            write(tree, "unnamed/file")
            made = [tmp_path / "old" / "a" / name for name in ("", *stored, "unnamed")]
            assert {mode_and_time(one)[0] & ~0o700 for one in made} == {0} or turn
            tree.restore_folders(no_failure)
        assert [mode_and_time(tmp_path / "old" / "a" / name) for name in stored] == [
            (mode & 0o777, number * 10**18 + 5) for number, mode in enumerate(stored.values())
        ]
        assert {mode_and_time(tmp_path / "old/a" / one)[0] for one in ("", "unnamed")} == {0o700}
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o755


@posix
def test_folders_of_another_user(tmp_path: Path) -> None:
    """They get no more than the umask allows, and what existed before is not changed."""
    (tmp_path / "mine").mkdir(mode=0o700)
    before, (umask) = mode_and_time(tmp_path / "mine"), os.umask(0o027)
    try:
        with DestinationTree(tmp_path, foreign=True, folders=["mine/"]) as tree:
            for name, mode in {"mine/": 0o777, "new/": 0o777, "closed/": 0}.items():
                write(tree, name, b"", folder(mode))
            tree.restore_folders(no_failure)
    finally:
        os.umask(umask)
    assert mode_and_time(tmp_path / "mine") == before
    assert mode_and_time(tmp_path / "new") == (0o750, 10**18)
    assert mode_and_time(tmp_path / "closed") == (0o700, 10**18)


@posix
def test_links_are_made_and_never_followed(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    with DestinationTree(inside) as tree:
        write(tree, "a", b"", link(str(outside)))
        for name in ("a/precious", "a/new"):
            with pytest.raises(BadDestination):
                write(tree, name)
            with pytest.raises(BadDestination):
                write(tree, name, b"", link("x"))
        with pytest.raises(BadDestination):
            write(tree, "a/", b"", folder(0o777))
        write(tree, "b", b"", link(str(outside / "precious")))
        assert os.readlink(inside / "b") == str(outside / "precious")
        assert mode_and_time(inside / "b")[1] == 10**18
        write(tree, "b")  # replaced, not followed
        write(tree, "c/x")
        with pytest.raises(LocalError):
            write(tree, "c", b"", link(str(outside)))
    # A folder that was replaced by a link before its mode is set.
    with DestinationTree(inside) as tree:
        write(tree, "d/", b"", folder(0o777))
        write(tree, "e")
        (inside / "d").rmdir()
        (inside / "d").symlink_to(outside)
        failed: list[str] = []
        tree.restore_folders(lambda what, _error: failed.append(what))
        assert failed == ["d/"]
    assert everything(outside) == {"precious": b"precious"}
    assert stat.S_IMODE(outside.stat().st_mode) & 0o077 != 0o077
    assert sorted(os.listdir(inside)) == ["a", "b", "c", "d", "e"]


@posix
@pytest.mark.parametrize(
    ("name", "target", "leads_out"),
    [
        ("a", "b", False),
        ("a", "b/c", False),
        ("d/a", "../b", False),
        ("d/e/a", "../../b/c", False),
        ("a", ".", False),
        ("a", "/etc/passwd", True),
        ("a", "..", True),
        ("a", "../b", True),
        ("d/a", "../../b", True),
        # Lexically inside; but if b is a link to a folder further up, it is not.
        ("a", "b/..", True),
        ("d/a", "b/../../c", True),
        ("d/a", "./../..", True),
        ("a", "C:b", True),
        ("a", "..\\b", True),
        ("a", "b\x1b[2J", True),
        ("a", "b\u202egpj.exe", True),
    ],
)
def test_links_of_another_user_stay_inside(
    tmp_path: Path, name: str, target: str, *, leads_out: bool
) -> None:
    refused = pytest.raises(BadDestination) if leads_out else contextlib.nullcontext()
    with DestinationTree(tmp_path, foreign=True) as tree, refused:
        write(tree, name, b"", link(target))
    assert (tmp_path / name).is_symlink() is not leads_out
    with DestinationTree(tmp_path) as tree:  # our own come back as they were
        write(tree, name, b"", link(target))
    assert os.readlink(tmp_path / name) == target


@posix
def test_holes_of_a_sparse_file(tmp_path: Path) -> None:
    """Pages of zero bytes take no space, however the content is cut when it is written."""
    page = b"p" * 4096
    content = bytes(999_999) + page + bytes(4096) + b"x" + bytes(8000) + b"y" + bytes(100_000)
    metadata = changed(PLAIN, size=len(content), sparse=True)
    for piece in (1_000, 4096, 5_000, 300_000, len(content)):
        with DestinationTree(tmp_path) as tree, tree.destination("a")(metadata) as file:
            for start in range(0, len(content), piece):
                file.write(content[start : start + piece])
        assert (tmp_path / "a").read_bytes() == content
        assert (tmp_path / "a").stat().st_blocks * 512 <= 32 * 1024
    with replacing_file(tmp_path / "b", metadata) as file:
        file.write(content)
    assert (tmp_path / "b").stat().st_blocks * 512 <= 32 * 1024
    with DestinationTree(tmp_path) as tree, tree.destination("a")(PLAIN) as file:
        file.write(content)
    assert (tmp_path / "a").stat().st_blocks * 512 >= len(content)


@posix
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_file_system_that_cannot_sync_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A network share does not support it; an I/O error is one."""
    sync = os.fsync

    def fails(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fails)
    raised = pytest.raises(LocalError) if code == errno.EIO else contextlib.nullcontext()
    with raised, replacing_file(tmp_path / "file", PLAIN) as file:
        file.write(b"data")
    assert (tmp_path / "file").read_bytes() == b"data"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere another call syncs")
@pytest.mark.parametrize("size", [3, LARGE])
def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Otherwise a power cut could leave an empty file in the place of a good one."""
    calls: list[str] = []
    sync, replace = os.fsync, os.replace

    def noting_sync(handle: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def noting_replace(old: str, new: str, **folders: Any) -> None:
        calls.append("rename")
        replace(old, new, **folders)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(os, "replace", noting_replace)
    with replacing_file(tmp_path / "file", changed(PLAIN, size=size)) as file:
        file.write(bytes(size))
    assert calls == ["file", "rename", "folder"]


def test_names_that_windows_cannot_store(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a:b", "x/c.", "d ", "e?", 'f"', "g|h"]
    for name in names:
        assert check_local_name(name) == tuple(name.split("/"))
    monkeypatch.setattr(sys, "platform", "win32")
    for name in names:
        with pytest.raises(BadDestination):
            check_local_name(name)


def test_invalid_destination_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(LocalError):
            DestinationFolder.open_folder(path)
    with pytest.raises(LocalError):
        DestinationTree(tmp_path / "file" / "x")


@posix
def test_a_device_is_written_to(tmp_path: Path) -> None:
    with replacing_file(Path(os.devnull), PLAIN) as file:
        file.write(b"gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
