from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from protocol.codec import merkle
from protocol.codec.merkle import PIECE_SIZE
from protocol.log.auditlog import EntryDraft
from sfsd.errors import PathError
from sfsd.storage.change import Adopt, Change, Link, Remove, Write, check_path, digest_of
from sfsd.storage.store import DirectoryStore

FILE_ID = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    "path",
    [
        "alice/account.json",
        "alice/bundle",
        f"alice/files/01/{FILE_ID}.1.ct",
        f"a-_/inbox/b_-.{FILE_ID}",
        "0",
        "a" * 255,
        "a/b/c/d/e/f/g/h",
    ],
)
def test_valid_paths(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/alice",
        "alice/",
        "alice//x",
        ".",
        "..",
        "alice/../bob",
        "alice/.hidden",
        "alice/x.",
        "alice/x..",
        "Alice/x",
        "alice\\x",
        "alice/x y",
        "alice/x\n",
        "alice/x\0",
        "al\u0131ce",
        "c:x",
        "a" * 256,
        "a/b/c/d/e/f/g/h/i",
    ],
)
def test_invalid_paths(path: str) -> None:
    with pytest.raises(PathError):
        check_path(path)
    with pytest.raises(PathError):
        Write(path, b"")
    with pytest.raises(PathError):
        Remove(path)
    with pytest.raises(PathError):
        Link(f"{path}.ct/", "alice/a.ct", bytes(32))


def test_only_a_ciphertext_is_adopted_or_linked(tmp_path: Path) -> None:
    staged = DirectoryStore(tmp_path).create_upload_file(bytes(16))
    with pytest.raises(PathError):
        Adopt("alice/x.json", staged)
    with pytest.raises(PathError):
        Link("alice/x.json", "alice/a.ct", bytes(32))
    with pytest.raises(PathError):
        Link("alice/x.ct", "alice/a.json", bytes(32))
    staged.discard()


def test_a_change_touches_a_path_once() -> None:
    with pytest.raises(PathError):
        Change(EntryDraft("test", "alice"), {}, (Write("alice/x", b""), Remove("alice/x")))


@pytest.mark.parametrize("size", [0, 1, PIECE_SIZE - 1, PIECE_SIZE, PIECE_SIZE + 1, 3 * PIECE_SIZE])
def test_the_digest_of_a_ciphertext_is_its_segments_root(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    pieces = [data[start : start + PIECE_SIZE] for start in range(0, size, PIECE_SIZE)]
    root = merkle.root([merkle.leaf_hash(piece) for piece in pieces])
    assert digest_of("alice/x.ct", data) == root
    assert digest_of("alice/x.json", data) == hashlib.sha256(data).digest()
