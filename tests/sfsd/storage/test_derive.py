"""Files made again from the log and from other files: only with the digest that the log has."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from protocol.codec import merkle
from protocol.codec.merkle import PIECE_SIZE
from sfsd.fs.files import Files
from sfsd.storage.derive import LoggedState, derive_file, leaves_of
from sfsd.storage.paths import VersionPaths

CONTENT = b"first" * (PIECE_SIZE // 4)
ONE, TWO = (VersionPaths.for_version("ada", f"{number:032x}", 1) for number in (1, 2))
LEAVES = [
    merkle.leaf_hash(CONTENT[at : at + PIECE_SIZE]) for at in range(0, len(CONTENT), PIECE_SIZE)
]
ROOT = merkle.root(LEAVES)


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """Two ciphertexts of the same content."""
    for paths in (ONE, TWO):
        path = tmp_path / paths.ciphertext
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
    return tmp_path


def derive(users: Path, path: str, digest: bytes) -> bool:
    logged = LoggedState(9, {ONE.ciphertext: (ROOT, 1), TWO.ciphertext: (ROOT, 2)})
    return derive_file(Files(), users, logged, path, digest)


@pytest.mark.parametrize("damaged", [b"other" * (PIECE_SIZE // 4), CONTENT[:-1], b""])
def test_leaves_of_a_damaged_ciphertext_are_not_stored(users: Path, damaged: bytes) -> None:
    target, digest = users / ONE.leaves, hashlib.sha256(b"".join(LEAVES)).digest()
    target.write_bytes(b"wrong")
    (users / ONE.ciphertext).write_bytes(damaged)
    assert not derive(users, ONE.leaves, digest)
    assert target.read_bytes() == b"wrong"
    (users / ONE.ciphertext).write_bytes(CONTENT)
    assert derive(users, ONE.leaves, digest)
    assert target.read_bytes() == b"".join(leaves_of(users / TWO.ciphertext))


@pytest.mark.parametrize("damaged", [b"other" * (PIECE_SIZE // 4), CONTENT[:-1], b""])
def test_a_damaged_ciphertext_replaces_no_other_one(users: Path, damaged: bytes) -> None:
    """Also if it has the right length."""
    for paths in (ONE, TWO):
        (users / paths.ciphertext).write_bytes(damaged)
    assert not derive(users, ONE.ciphertext, ROOT)
    assert not (users / ONE.ciphertext).samefile(users / TWO.ciphertext)
    (users / TWO.ciphertext).write_bytes(CONTENT)
    assert derive(users, ONE.ciphertext, ROOT)
    assert (users / ONE.ciphertext).read_bytes() == CONTENT
