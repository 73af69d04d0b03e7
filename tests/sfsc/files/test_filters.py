"""Patterns of what is left out of a folder; `git check-ignore` says the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sfsc.errors import UnreadableSource, UsageError
from sfsc.files.filters import IGNORE_FILE, MAX_IGNORE_FILE, Filters, read_patterns

TOP = "*.o\n!keep.o\n/only-top\nbuild/\n# a comment\n\nmiddle/*/end\n\\#name\n*.log\n"
DEEP = "!wanted.log\nextra\n"
PATHS = {
    "a.o": True,
    "keep.o": False,
    "only-top": True,
    "sub/only-top": False,
    "build/": True,
    "build/inside": True,
    "sub/build/inside": True,
    "sub/build.txt": False,
    "middle/x/end": True,
    "middle/x/y/end": False,
    "#name": True,
    "a.log": True,
    "deep/a.log": True,
    "deep/wanted.log": False,
    "deep/more/wanted.log": False,
    "wanted.log": True,
    "extra": False,
    "deep/extra": True,
    "build/keep.o": True,
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / IGNORE_FILE).write_text(TOP)
    (tmp_path / "deep" / IGNORE_FILE).write_text(DEEP)
    return tmp_path


def test_files_of_patterns(tree: Path) -> None:
    filters = Filters((), tree)
    assert {path: filters.excludes(path) for path in PATHS} == PATHS


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_same_as_git(tree: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
    for path in ("", "deep/"):
        (tree / path / IGNORE_FILE).rename(tree / path / ".gitignore")
    asked = "\n".join(PATHS).encode()
    answer = subprocess.run(
        ["git", "check-ignore", "--stdin"], cwd=tree, input=asked, capture_output=True, check=True
    )
    assert answer.stdout.decode().split() == [path for path, out in PATHS.items() if out]


def test_given_patterns_decide_last(tree: Path) -> None:
    filters = Filters(["!a.o", "*.txt"], tree)
    assert not filters.excludes("a.o")
    assert filters.excludes("b.o")
    assert filters.excludes("deep/b.txt")
    assert Filters(["*.txt"]).excludes("x/b.txt")
    assert not Filters(["*.txt"]).excludes("a.o")


def test_the_file_of_patterns_is_kept(tree: Path) -> None:
    (tree / IGNORE_FILE).write_text("*\n")
    filters = Filters((), tree)
    assert not filters.excludes(IGNORE_FILE)
    assert filters.excludes("deep/")
    assert Filters([IGNORE_FILE], tree).excludes(IGNORE_FILE)


def test_unusable_patterns(tree: Path) -> None:
    with pytest.raises(UsageError, match="Invalid git pattern"):
        Filters(["!"])
    with pytest.raises(UnreadableSource, match="cannot read"):
        read_patterns(tree / "none")
    (tree / "deep" / IGNORE_FILE).write_text("ok\n!\n")
    with pytest.raises(UnreadableSource, match="malformed"):
        Filters((), tree).excludes("deep/file")
    (tree / "deep" / IGNORE_FILE).write_text("a" * (MAX_IGNORE_FILE + 1))
    with pytest.raises(UnreadableSource, match="more than"):
        Filters((), tree).excludes("deep/file")
    (tree / "deep" / IGNORE_FILE).unlink()
    (tree / "deep" / IGNORE_FILE).mkdir()
    assert not Filters((), tree).excludes("deep/file")
