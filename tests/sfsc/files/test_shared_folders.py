"""Readers that a shared folder gives to its new files; tests/e2e/test_sharing.py uses a real
daemon."""

from __future__ import annotations

import pytest

from sfsc.files.settings import Folder
from sfsc.files.shared_folders import readers_of

A, B = b"a" * 32, b"b" * 32


@pytest.mark.parametrize(
    ("prefix", "name", "inside"),
    [
        ("", "x", True),
        ("", "a/b", True),
        ("a", "a/b", True),
        ("a", "a/b/c", True),
        ("a/b", "a/b/c", True),
        ("a", "a", False),
        ("a", "ab/c", False),
        ("a/b", "a/bc", False),
    ],
)
def test_folder_holds_name(prefix: str, name: str, inside: bool) -> None:
    assert Folder(prefix, "bob", B, 0).holds(name) is inside


def test_readers_are_sorted_with_their_longest_grant() -> None:
    folders = [
        Folder("", "bob", B, 50),
        Folder("a", "bob", B, 70),
        Folder("a", "ann", A, 60),
        Folder("a/b", "ann", A, 0),
        Folder("z", "zoe", B, 0),
    ]
    assert readers_of(folders, "a/b/c", 10) == (("ann", A, 0), ("bob", B, 70))
    assert readers_of(folders, "a/x", 10) == (("ann", A, 60), ("bob", B, 70))
    assert readers_of(folders, "x", 10) == (("bob", B, 50),)
    assert readers_of(folders, "x", 50) == ()
    assert readers_of(folders, "a/x", 60) == (("bob", B, 70),)
