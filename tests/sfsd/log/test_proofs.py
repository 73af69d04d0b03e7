"""ProofCache out of the cached tree: what they prove, and what is kept of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from protocol.codec import merkle
from sfsd.errors import JournalUnreadableError
from sfsd.fs.files import Files
from sfsd.log.proofs import Consistency, Inclusion, ProofCache
from sfsd.log.tree import LogTree, TreeMark

SIZE = 37
HASHES = [hashlib.sha256(b"%d" % number).digest() for number in range(SIZE)]
LEAVES = [merkle.leaf_hash(one) for one in HASHES]


@pytest.fixture
def tree(tmp_path: Path) -> LogTree:
    made = LogTree(tmp_path, Files())
    made.truncate(0)
    for number, one in enumerate(HASHES):
        made.append(one, number * 100)
    return made


def test_what_is_proven_holds(tree: LogTree) -> None:
    proofs = ProofCache(tree)
    for _ in range(2):  # from the tree, and from memory
        for size in range(1, SIZE + 1):
            root = merkle.root(LEAVES[:size])
            assert proofs.root_at(size) == root
            for index in range(size):
                path = proofs.prove(Inclusion(index, size))
                merkle.verify_inclusion(LEAVES[index], index, size, path, root)
            for old in range(size + 1):
                proof = proofs.prove(Consistency(old, size))
                merkle.verify_consistency(old, merkle.root(LEAVES[:old]), size, root, proof)


def test_after_the_tree_was_mended_nothing_of_before_is_shown(
    tree: LogTree, tmp_path: Path
) -> None:
    root = tree.root()
    tree.save_mark(TreeMark(SIZE, SIZE * 100, HASHES[-1], root, ()))
    at = merkle.node_position(0, 4) * merkle.HASH_SIZE
    nodes = bytearray((tmp_path / "nodes").read_bytes())
    right = bytes(nodes[at : at + 32])
    nodes[at : at + 32] = bytes(32)
    (tmp_path / "nodes").write_bytes(nodes)
    proofs = ProofCache(tree)
    wanted = Inclusion(5, SIZE)
    assert proofs.prove(wanted)[0] == bytes(32)
    tree.repair(4, 400, right)
    assert proofs.prove(wanted)[0] == bytes(32), "kept"
    proofs.forget()
    merkle.verify_inclusion(LEAVES[5], 5, SIZE, proofs.prove(wanted), root)


def test_a_tree_that_was_cut_cannot_be_read(tree: LogTree, tmp_path: Path) -> None:
    tree.save_mark(TreeMark(SIZE, SIZE * 100, HASHES[-1], tree.root(), ()))
    (tmp_path / "nodes").write_bytes(b"")
    with pytest.raises(JournalUnreadableError):
        ProofCache(tree).prove(Inclusion(5, SIZE))
