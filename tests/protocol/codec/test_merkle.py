from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import merkle
from protocol.codec.errors import LocalProtocolError, ProofError
from protocol.codec.merkle import Frontier, PieceHasher

# The eight-leaf tree of the certificate-transparency project's own tests.
CT_LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
CT_INCLUSION = [
    (
        (0, 8),
        (
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
        ),
    ),
    (
        (5, 8),
        (
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"
        ),
    ),
    ((2, 3), "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
    (
        (1, 5),
        (
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
        ),
    ),
]
CT_CONSISTENCY = [
    ((1, 1), ""),
    (
        (1, 8),
        (
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
        ),
    ),
    (
        (6, 8),
        (
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"
        ),
    ),
    (
        (2, 5),
        (
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
        ),
    ),
]
MANY = [merkle.leaf_hash(bytes([i])) for i in range(70)]


def split_hashes(text: str) -> tuple[bytes, ...]:
    raw = bytes.fromhex(text)
    return tuple(raw[i : i + 32] for i in range(0, len(raw), 32))


def naive_root(leaves: Sequence[bytes]) -> bytes:
    """Root by the definition in RFC 6962 section 2.1, over leaf hashes."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    halves = naive_root(leaves[:k]) + naive_root(leaves[k:])
    return hashlib.sha256(b"\x01" + halves).digest()


def naive_path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """Audit path by the definition in RFC 6962 section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(m: int, leaves: Sequence[bytes], whole: bool) -> list[bytes]:
    """Consistency proof by the definition in RFC 6962 section 2.1.2."""
    if m == len(leaves):
        return [] if whole else [naive_root(leaves)]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m <= k:
        return [*naive_subproof(m, leaves[:k], whole), naive_root(leaves[k:])]
    return [*naive_subproof(m - k, leaves[k:], False), naive_root(leaves[:k])]


class Nodes:
    """The post-order array of a log; counts reads."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.reads = 0
        self.array: list[bytes] = []
        frontier = Frontier()
        for leaf in leaves:
            self.array.extend(frontier.append(leaf))

    def __call__(self, level: int, index: int) -> bytes:
        self.reads += 1
        return self.array[merkle.node_position(level, index)]


STORED = Nodes(MANY)
CT_STORED = Nodes([merkle.leaf_hash(leaf) for leaf in CT_LEAVES])


@pytest.mark.parametrize("size", range(9))
def test_published_roots(size: int) -> None:
    expected = bytes.fromhex(CT_ROOTS[size])
    assert merkle.root(merkle.leaf_hash(leaf) for leaf in CT_LEAVES[:size]) == expected
    assert merkle.root_at(size, CT_STORED) == expected


@pytest.mark.parametrize(("where", "path"), CT_INCLUSION)
def test_published_inclusion_proofs(where: tuple[int, int], path: str) -> None:
    index, size = where
    proof = split_hashes(path)
    assert merkle.inclusion_proof(index, size, CT_STORED) == proof
    leaf = merkle.leaf_hash(CT_LEAVES[index])
    merkle.verify_inclusion(leaf, index, size, proof, bytes.fromhex(CT_ROOTS[size]))


@pytest.mark.parametrize(("sizes", "path"), CT_CONSISTENCY)
def test_published_consistency_proofs(sizes: tuple[int, int], path: str) -> None:
    old, new = sizes
    proof = split_hashes(path)
    assert merkle.consistency_proof(old, new, CT_STORED) == proof
    merkle.verify_consistency(
        old, bytes.fromhex(CT_ROOTS[old]), new, bytes.fromhex(CT_ROOTS[new]), proof
    )


@pytest.mark.parametrize("size", range(34))
def test_roots_equal_the_definition(size: int) -> None:
    expected = naive_root(MANY[:size])
    assert merkle.root(MANY[:size]) == expected
    assert merkle.root_at(size, STORED) == expected
    assert Frontier.load(size, STORED).root() == expected


@pytest.mark.parametrize("size", range(1, 34))
def test_inclusion_proofs_match_the_definition_and_verify(size: int) -> None:
    root = naive_root(MANY[:size])
    for index in range(size):
        proof = merkle.inclusion_proof(index, size, STORED)
        assert list(proof) == naive_path(index, MANY[:size])
        merkle.verify_inclusion(MANY[index], index, size, proof, root)
        for wrong in range(size):
            if wrong != index:
                with pytest.raises(ProofError):
                    merkle.verify_inclusion(MANY[index], wrong, size, proof, root)


@pytest.mark.parametrize("new", range(1, 34))
def test_consistency_proofs_match_the_definition_and_verify(new: int) -> None:
    for old in range(1, new + 1):
        proof = merkle.consistency_proof(old, new, STORED)
        assert list(proof) == naive_subproof(old, MANY[:new], True)
        roots = naive_root(MANY[:old]), naive_root(MANY[:new])
        merkle.verify_consistency(old, roots[0], new, roots[1], proof)
        assert (proof == ()) == (old == new)


def mangled(proof: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    """Return proofs that differ from `proof` by one changed, dropped, doubled or added hash."""
    other = bytes(32)
    result = [(*proof, other), (other, *proof)]
    for at in range(len(proof)):
        head, tail = tuple(proof[:at]), tuple(proof[at + 1 :])
        flipped = bytes([proof[at][0] ^ 1]) + proof[at][1:]
        result += [(*head, flipped, *tail), head + tail, (*head, proof[at], proof[at], *tail)]
        result += [(*head, proof[at][:31], *tail)]
    return result


@given(st.data())
def test_a_mangled_inclusion_proof_fails(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(MANY)))
    index = data.draw(st.integers(0, size - 1))
    root = naive_root(MANY[:size])
    proof = merkle.inclusion_proof(index, size, STORED)
    for wrong in mangled(proof):
        with pytest.raises(ProofError):
            merkle.verify_inclusion(MANY[index], index, size, wrong, root)
    with pytest.raises(ProofError):
        merkle.verify_inclusion(bytes(32), index, size, proof, root)
    with pytest.raises(ProofError):
        merkle.verify_inclusion(MANY[index], index, size, proof, bytes(32))


@given(st.data())
def test_a_mangled_consistency_proof_fails(data: st.DataObject) -> None:
    new = data.draw(st.integers(1, len(MANY)))
    old = data.draw(st.integers(1, new))
    roots = naive_root(MANY[:old]), naive_root(MANY[:new])
    proof = merkle.consistency_proof(old, new, STORED)
    for wrong in mangled(proof):
        with pytest.raises(ProofError):
            merkle.verify_consistency(old, roots[0], new, roots[1], wrong)
    with pytest.raises(ProofError):
        merkle.verify_consistency(old, bytes(32), new, roots[1], proof)
    with pytest.raises(ProofError):
        merkle.verify_consistency(old, roots[0], new, bytes(32), proof)


def test_empty_consistency_proofs_are_valid_only_if_trivial() -> None:
    empty, one, two, three, four = (naive_root(MANY[:n]) for n in range(5))
    merkle.verify_consistency(0, empty, 0, empty, ())
    merkle.verify_consistency(0, empty, 2, two, ())
    merkle.verify_consistency(2, two, 2, two, ())
    for old, old_root, new, new_root in [
        (1, one, 2, two),
        (3, three, 4, four),
        (2, two, 2, one),
        (2, two, 1, one),
        (0, one, 2, two),
        (0, one, 0, one),
        (-1, empty, 2, two),
    ]:
        with pytest.raises(ProofError):
            merkle.verify_consistency(old, old_root, new, new_root, ())
    with pytest.raises(ProofError):
        merkle.verify_consistency(0, empty, 2, two, (one,))
    with pytest.raises(ProofError):
        merkle.verify_consistency(2, two, 2, two, (one,))


def test_proofs_beyond_the_tree_raise_local_errors() -> None:
    for index, size in [(0, 0), (3, 3), (-1, 3)]:
        with pytest.raises(LocalProtocolError):
            merkle.inclusion_proof(index, size, STORED)
        with pytest.raises(ProofError):
            merkle.verify_inclusion(MANY[0], index, size, (), MANY[0])
    for old, new in [(3, 2), (-1, 2)]:
        with pytest.raises(LocalProtocolError):
            merkle.consistency_proof(old, new, STORED)
    assert merkle.consistency_proof(0, 5, STORED) == ()
    with pytest.raises(LocalProtocolError):
        Frontier(3, [bytes(32)])


def test_a_too_long_proof_is_refused() -> None:
    with pytest.raises(ProofError):
        merkle.verify_inclusion(MANY[0], 0, 1 << 200, [bytes(32)] * 200, MANY[0])


def test_nodes_are_stored_in_order_of_completion() -> None:
    seen: dict[int, tuple[int, int]] = {}
    for size in range(1, 65):
        leaf = size - 1
        level = 0
        while True:
            seen[merkle.node_position(level, leaf >> level)] = (level, leaf >> level)
            if not leaf >> level & 1:
                break
            level += 1
        assert sorted(seen) == list(range(merkle.node_count(size)))
    assert len(STORED.array) == merkle.node_count(len(MANY))


def test_proofs_of_a_large_tree_read_few_nodes() -> None:
    reads: list[tuple[int, int]] = []

    def read(level: int, index: int) -> bytes:
        reads.append((level, index))
        return hashlib.sha256(f"{level} {index}".encode()).digest()

    size = (1 << 40) - 3
    for prove in (merkle.inclusion_proof, merkle.consistency_proof):
        reads.clear()
        assert len(prove(size // 3, size, read)) > 38
        assert len(reads) <= 2 * 40
    reads.clear()
    merkle.root_at(size, read)
    assert len(reads) == size.bit_count()


@given(st.lists(st.integers(0, 2_500_000), max_size=4))
def test_any_chunk_sizes_give_the_same_root(lengths: list[int]) -> None:
    blob = bytes(range(256)) * (sum(lengths) // 256 + 1)
    blob = blob[: sum(lengths)]
    hasher = PieceHasher()
    at = 0
    for length in lengths:
        hasher.update(blob[at : at + length])
        at += length
    pieces = [blob[i : i + merkle.PIECE_SIZE] for i in range(0, len(blob), merkle.PIECE_SIZE)]
    expected = [merkle.leaf_hash(piece) for piece in pieces]
    assert hasher.finish() == naive_root(expected)
    assert hasher.leaves == expected


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_piece_edges(extra: int) -> None:
    blob = bytes(merkle.PIECE_SIZE + extra)
    hasher = PieceHasher()
    hasher.update(memoryview(blob))
    hasher.finish()
    assert len(hasher.leaves) == (2 if extra > 0 else 1)


@given(st.integers(0, 300), st.lists(st.integers(0, 60), max_size=8))
def test_subtrees_hashed_separately_give_the_same_tree(start: int, sizes: list[int]) -> None:
    """Parts of any lengths appended to an existing tree give the root over all leaves."""
    total = start + sum(sizes)
    leaves = [merkle.leaf_hash(b"%d" % number) for number in range(total)]
    frontier = Frontier()
    for leaf in leaves[:start]:
        frontier.append(leaf)
    first = start
    for size in sizes:
        parts = merkle.subtrees(first, leaves[first : first + size])
        assert sum(1 << level for level, _ in parts) == size
        frontier.extend(parts)
        first += size
        assert (frontier.size, frontier.root()) == (first, merkle.root(leaves[:first]))
    frontier.append(merkle.leaf_hash(b"more"))
    assert frontier.root() == merkle.root([*leaves, merkle.leaf_hash(b"more")])


def test_a_subtree_must_begin_at_a_multiple_of_its_size() -> None:
    frontier = Frontier()
    frontier.append(merkle.leaf_hash(b"0"))
    with pytest.raises(LocalProtocolError):
        frontier.extend([(1, bytes(32))])
