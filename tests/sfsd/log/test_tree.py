from __future__ import annotations

import errno
import hashlib
from itertools import accumulate
from pathlib import Path

import pytest

from protocol.codec import merkle
from protocol.codec.merkle import Frontier
from protocol.codec.values import changed
from sfsd.errors import JournalUnreadableError
from sfsd.fs.files import Files
from sfsd.log.tree import MAX_ACCOUNTS, LogTree, ProofCache, TreeLine, TreeMark
from tests.sfsd.faults import FaultyFiles

HASHES = [hashlib.sha256(bytes([number])).digest() for number in range(70)]
PROVEN = 37
"""Size of the tree in the tests of `ProofCache`."""
DATA = [entry_hash + bytes(16 * (seq % 4)) for seq, entry_hash in enumerate(HASHES)]
"""Leaf data with 0 to 3 tags."""
LEAVES = [merkle.leaf_hash(data) for data in DATA]
STARTS = [0, *accumulate(len(data) + 2 for data in DATA)]
"""Where each leaf begins in the file."""


def fill(tree: LogTree, first: int, end: int) -> None:
    for seq in range(first, end):
        tree.append(DATA[seq], 100 * seq)


def mark_of(tree: LogTree) -> TreeMark:
    heads = (("alice", 3), ("bob", 1))
    size = tree.size
    return TreeMark(size, 100 * size, STARTS[size], HASHES[size - 1], tree.root(), heads)


def line_of(tree: LogTree, seq: int) -> TreeLine:
    return TreeLine(seq, 100 * seq, STARTS[seq], DATA[seq], tree.completed_by(seq))


def bundle(first: int, end: int) -> bytes:
    """Return the leaves [first, end) as a client gets them."""
    return b"".join(len(data).to_bytes(2) + data for data in DATA[first:end])


def assert_whole(tree: LogTree, size: int) -> None:
    assert tree.size == size
    assert tree.root() == merkle.root(LEAVES[:size]) == merkle.root_at(size, tree.node)
    frontier = Frontier()
    for seq in range(size):
        completed = b"".join(frontier.append(LEAVES[seq]))
        assert tree.completed_by(seq) == completed
        assert tree.offset(seq) == 100 * seq
        assert tree.agrees(TreeLine(seq, 100 * seq, STARTS[seq], DATA[seq], completed))
        for count in range(min(5, size - seq) + 1):
            starts = tuple(100 * one for one in range(seq, seq + count))
            assert tree.offsets(seq, count) == starts
        line = line_of(tree, seq)
        for wrong in (
            {"offset": line.offset + 1},
            {"leaf_offset": line.leaf_offset + 1},
            {"completed": completed[:-1] + b"?"},
            {"leaf": bytes([line.leaf[0] ^ 1]) + line.leaf[1:]},
        ):
            assert not tree.agrees(changed(line, **wrong))


def saved(folder: Path, size: int = 40) -> TreeMark:
    tree = LogTree(folder, Files())
    tree.truncate(0, 0)
    fill(tree, 0, size)
    mark = mark_of(tree)
    tree.save_mark(mark)
    tree.close()
    return mark


@pytest.mark.parametrize("flushed", [0, 1, 37, 69, 70])
def test_memory_and_files_read_alike(tmp_path: Path, flushed: int) -> None:
    tree = LogTree(tmp_path, Files())
    fill(tree, 0, flushed)
    tree.flush()
    fill(tree, flushed, 70)
    assert_whole(tree, 70)
    tree.flush()
    assert_whole(tree, 70)


def test_a_saved_tree_is_loaded_again(tmp_path: Path) -> None:
    mark = saved(tmp_path)
    tree = LogTree(tmp_path, Files())
    assert tree.load_mark() == mark
    tree.truncate(mark.size, mark.leaves)
    assert_whole(tree, 40)
    fill(tree, 40, 70)
    assert_whole(tree, 70)


def test_a_mark_holds_the_maximum_of_accounts(tmp_path: Path) -> None:
    tree = LogTree(tmp_path, Files())
    fill(tree, 0, 3)
    counts = tuple((f"user{n:05}", 1) for n in range(MAX_ACCOUNTS))
    mark = changed(mark_of(tree), accounts=counts)
    tree.save_mark(mark)
    assert LogTree(tmp_path, Files()).load_mark() == mark


def test_data_past_the_mark_is_overwritten(tmp_path: Path) -> None:
    saved(tmp_path)
    for name in ("nodes", "offsets", "leaves"):
        with (tmp_path / name).open("ab") as file:
            file.write(b"left by a crash" * 100)
    tree = LogTree(tmp_path, Files())
    mark = tree.load_mark()
    assert mark is not None
    tree.truncate(mark.size, mark.leaves)
    fill(tree, 40, 70)
    tree.save_mark(mark_of(tree))
    again = LogTree(tmp_path, Files())
    assert again.load_mark() is not None
    again.truncate(70, STARTS[70])
    assert_whole(again, 70)


def test_a_damaged_mark_is_ignored(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    whole = (tmp_path / "mark").read_bytes()
    for at in range(len(whole)):
        (tmp_path / "mark").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        tree = LogTree(tmp_path, Files())
        assert tree.load_mark() is None
        tree.close()
    for torn in (b"", whole[:10], whole[:-1], whole + b"x"):
        (tmp_path / "mark").write_bytes(torn)
        tree = LogTree(tmp_path, Files())
        assert tree.load_mark() is None
        tree.close()


@pytest.mark.parametrize("name", ["nodes", "offsets", "leaves"])
def test_a_truncated_file_invalidates_the_cache(tmp_path: Path, name: str) -> None:
    saved(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1])
    tree = LogTree(tmp_path, Files())
    assert tree.load_mark() is None
    tree.truncate(0, 0)
    fill(tree, 0, 70)
    assert_whole(tree, 70)


def test_a_changed_peak_invalidates_the_cache(tmp_path: Path) -> None:
    saved(tmp_path)
    nodes = bytearray((tmp_path / "nodes").read_bytes())
    nodes[merkle.node_position(5, 0) * 32] ^= 1
    (tmp_path / "nodes").write_bytes(nodes)
    assert LogTree(tmp_path, Files()).load_mark() is None


@pytest.mark.parametrize("name", ["nodes", "offsets", "leaves"])
@pytest.mark.parametrize("short", [None, 0, 33])
def test_a_full_disk_costs_the_cache_nothing(tmp_path: Path, name: str, short: int | None) -> None:
    files = FaultyFiles()
    tree = LogTree(tmp_path, files)
    fill(tree, 0, 30)
    tree.flush()
    fill(tree, 30, 50)
    if short is not None:
        files.fail("write", name, short=short)  # part of it is written
        files.fail("write", name, errno.ENOSPC)
    else:
        files.fail("write", name, errno.ENOSPC)
    with pytest.raises(OSError, match="space"):
        tree.flush()
    assert_whole(tree, 50)
    fill(tree, 50, 60)
    tree.flush()
    assert_whole(tree, 60)
    assert (tmp_path / "nodes").stat().st_size == merkle.node_count(60) * 32
    assert (tmp_path / "offsets").stat().st_size == 60 * 16
    assert (tmp_path / "leaves").stat().st_size == STARTS[60]


@pytest.mark.parametrize(
    ("call", "name"),
    [("sync_data", "nodes"), ("sync_data", "offsets"), ("replace", "mark"), ("write", ".mark.tmp")],
)
def test_a_failed_mark_leaves_the_previous_one(tmp_path: Path, call: str, name: str) -> None:
    before = saved(tmp_path)
    files = FaultyFiles()
    tree = LogTree(tmp_path, files)
    assert tree.load_mark() == before
    tree.truncate(40, STARTS[40])
    fill(tree, 40, 70)
    files.fail(call, name)
    with pytest.raises(OSError, match="error"):
        tree.save_mark(mark_of(tree))
    assert LogTree(tmp_path, Files()).load_mark() == before


def test_the_mark_is_written_after_the_data_it_covers(tmp_path: Path) -> None:
    files = FaultyFiles()
    tree = LogTree(tmp_path, files)
    fill(tree, 0, 3)
    tree.save_mark(mark_of(tree))
    order = [files.calls.index(("sync_data", name)) for name in ("nodes", "offsets", "leaves")]
    assert max(order) < files.calls.index(("replace", "mark"))


def test_damage_is_repaired(tmp_path: Path) -> None:
    saved(tmp_path)
    tree = LogTree(tmp_path, Files())
    assert tree.load_mark() is not None
    tree.truncate(40, STARTS[40])
    right = line_of(tree, 15)
    for wrong in (
        changed(right, offset=7),
        changed(right, completed=bytes(len(right.completed))),
        changed(right, leaf=right.leaf[::-1]),
    ):
        tree.repair(wrong)
        assert not tree.agrees(right)
        tree.repair(right)
        assert_whole(tree, 40)


@pytest.mark.parametrize("flushed", [True, False])
def test_a_line_past_the_end_is_not_in_the_tree(tmp_path: Path, *, flushed: bool) -> None:
    tree = LogTree(tmp_path, Files())
    tree.truncate(0, 0)
    fill(tree, 0, 5)
    if flushed:
        tree.save_mark(mark_of(tree))
    assert len(tree.offsets(0, 5)) == 5
    for first, count in ((5, 1), (4, 2), (6, 1)):
        with pytest.raises(EOFError):
            tree.offsets(first, count)


@pytest.mark.parametrize("name", ["nodes", "offsets", "leaves"])
def test_a_file_truncated_at_run_time_disagrees(tmp_path: Path, name: str) -> None:
    saved(tmp_path)
    tree = LogTree(tmp_path, Files())
    assert tree.load_mark() is not None
    tree.truncate(40, STARTS[40])
    right = line_of(tree, 39)
    (tmp_path / name).write_bytes(b"")
    assert not tree.agrees(right)
    with pytest.raises(EOFError):
        _ = tree.node(0, 39), tree.offset(39), tree.leaves(39, 40, 1000)


@pytest.mark.parametrize("flushed", [0, 20, 50])
def test_leaves_come_from_the_file_and_from_memory(tmp_path: Path, flushed: int) -> None:
    tree = LogTree(tmp_path, Files())
    tree.truncate(0, 0)
    fill(tree, 0, flushed)
    tree.flush()
    fill(tree, flushed, 50)
    for first in range(51):
        for end in range(first, 51):
            assert tree.leaves(first, end, 1 << 20) == bundle(first, end)


def test_leaves_are_as_many_as_fit(tmp_path: Path) -> None:
    tree = LogTree(tmp_path, Files())
    tree.truncate(0, 0)
    fill(tree, 0, 30)
    tree.flush()
    fill(tree, 30, 50)
    for room in range(82, 500, 7):
        for first in (0, 17, 28, 33):
            found = tree.leaves(first, 50, room)
            count = sum(STARTS[end] - STARTS[first] <= room for end in range(first + 1, 51))
            assert found == bundle(first, first + count)
            assert count >= 1


@pytest.fixture
def proven_tree(tmp_path: Path) -> LogTree:
    tree = LogTree(tmp_path, Files())
    tree.truncate(0, 0)
    fill(tree, 0, PROVEN)
    return tree


def test_proofs_verify_with_and_without_the_cache(proven_tree: LogTree) -> None:
    proofs = ProofCache(proven_tree)
    for _ in range(2):  # uncached, then cached
        for size in range(1, PROVEN + 1):
            root = merkle.root(LEAVES[:size])
            assert proofs.root_at(size) == root
            for index in range(size):
                path = proofs.prove_inclusion(index, size)
                merkle.verify_inclusion(LEAVES[index], index, size, path, root)
            for old in range(size + 1):
                proof = proofs.prove_consistency(old, size)
                merkle.verify_consistency(old, merkle.root(LEAVES[:old]), size, root, proof)


def test_clear_drops_proofs_of_a_damaged_tree(proven_tree: LogTree, tmp_path: Path) -> None:
    root = proven_tree.root()
    proven_tree.save_mark(
        TreeMark(PROVEN, PROVEN * 100, STARTS[PROVEN], HASHES[PROVEN - 1], root, ())
    )
    at = merkle.node_position(0, 4) * merkle.HASH_SIZE
    nodes = bytearray((tmp_path / "nodes").read_bytes())
    right = bytes(nodes[at : at + 32])
    nodes[at : at + 32] = bytes(32)
    (tmp_path / "nodes").write_bytes(nodes)
    proofs = ProofCache(proven_tree)
    assert proofs.prove_inclusion(5, PROVEN)[0] == bytes(32)
    proven_tree.repair(TreeLine(4, 400, STARTS[4], DATA[4], right))
    assert proofs.prove_inclusion(5, PROVEN)[0] == bytes(32), "kept"
    proofs.clear()
    merkle.verify_inclusion(LEAVES[5], 5, PROVEN, proofs.prove_inclusion(5, PROVEN), root)


def test_proofs_of_a_truncated_tree_are_refused(proven_tree: LogTree, tmp_path: Path) -> None:
    root = proven_tree.root()
    proven_tree.save_mark(
        TreeMark(PROVEN, PROVEN * 100, STARTS[PROVEN], HASHES[PROVEN - 1], root, ())
    )
    (tmp_path / "nodes").write_bytes(b"")
    with pytest.raises(JournalUnreadableError):
        ProofCache(proven_tree).prove_inclusion(5, PROVEN)
