"""Uploads of folders; tests/e2e covers the whole way."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sfsc.errors import NotRegularFile, SfscError, UnreadableSource
from sfsc.files.tree import MAX_DEPTH, Trees, walk_folder
from sfsc.session.session import Session
from sfsc.transfer.source import TreeItem, open_source

Skipped = list[tuple[str, SfscError]]


def walked(folder: Path, prefix: str, *, links: bool = True) -> tuple[list[TreeItem], Skipped]:
    skipped: Skipped = []
    found = walk_folder(folder, prefix, lambda *one: skipped.append(one), links=links)
    return list(found), skipped


def test_an_item_that_cannot_be_examined(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("a", "c"):
        (folder / name).write_bytes(b"")
    (folder / "b").symlink_to("a")

    def readlink(_path: str) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "readlink", readlink)
    skipped: Skipped = []
    stored = Trees(session).put([folder], "d", lambda what, why: skipped.append((what, why)))
    assert [one.name for one in stored] == ["d/a", "d/c"]
    assert [what for what, _ in skipped] == [str(folder / "b")]
    assert isinstance(skipped[0][1], UnreadableSource)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", ["a.txt", "a/", "a/b/", "a/b/x", "c/", "l"]),
        ("p/q", ["p/q/", "p/q/a.txt", "p/q/a/", "p/q/a/b/", "p/q/a/b/x", "p/q/c/", "p/q/l"]),
    ],
)
def test_a_folder_comes_before_what_is_in_it(
    tmp_path: Path, prefix: str, expected: list[str]
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    os.mkfifo(tmp_path / "c" / "pipe")  # not stored, so the folder is empty
    (tmp_path / "a" / "b" / "x").write_bytes(b"")
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "l").symlink_to("a")
    found, skipped = walked(tmp_path, prefix)
    assert sorted(item.name for item in found) == expected
    for item in found:
        before = [one.name for one in found[: found.index(item)]]
        parent = item.name.removesuffix("/").rpartition("/")[0]
        assert not parent or f"{parent}/" in before or parent == "p"
    full = {"p/q/", "p/q/a/", "p/q/a/b/", "a/", "a/b/"}
    assert {item.name for item in found if item.full} == full & set(expected)
    assert [type(error) for _, error in skipped] == [NotRegularFile]
    without, skipped = walked(tmp_path, prefix, links=False)
    assert [item.name for item in found if item.target is None] == [one.name for one in without]
    assert len(skipped) == 2


def test_deep_folders_end_where_names_are_too_long(tmp_path: Path) -> None:
    deep, before = tmp_path / "t", os.getcwd()
    deep.mkdir()
    try:
        os.chdir(deep)
        for part in (*["n" * 200] * 6, *["d"] * MAX_DEPTH):
            (Path(part) / "f").parent.mkdir()
            os.chdir(part)
            Path("f").write_bytes(b"")
    finally:
        os.chdir(before)
    found, skipped = walked(deep, "t")
    assert len([item for item in found if item.kind == "file"]) == 5
    assert [error.cause.split(":")[0] for _, error in skipped] == [
        "cannot be stored under its name"
    ]
    narrow = tmp_path / "d"
    narrow.mkdir()
    try:
        os.chdir(narrow)
        for _ in range(MAX_DEPTH + 3):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(before)
    found, skipped = walked(narrow, "")
    assert len(found) == MAX_DEPTH - 1
    assert [error.cause for _, error in skipped] == ["the folders are nested too deeply"]


def become_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("become", [become_link, os.mkfifo, os.mkdir, lambda _path: None])
def test_a_file_that_was_replaced_since_the_folder_was_listed(
    tmp_path: Path, become: Callable[[Path], None]
) -> None:
    """It is neither followed nor waited for."""
    (tmp_path / "a").write_bytes(b"a")
    ((item,), _) = walked(tmp_path, "")
    with open_source(item) as reader:
        assert reader.read_small() == b"a"
    (tmp_path / "a").unlink()
    become(tmp_path / "a")
    with pytest.raises(UnreadableSource):
        open_source(item)
