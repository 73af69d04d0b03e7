"""Merkle trees of RFC 6962 and RFC 9162: roots, and making and verifying proofs.

A *leaf hash* is SHA-256(0x00 ‖ data), a *node hash* SHA-256(0x01 ‖ left ‖ right); every hash is 32
bytes. Node (level, index) is the root of the complete subtree over the 2**level leaves from
index * 2**level on. Such a node never changes once its last leaf exists. A log therefore stores
nodes in the order of completion (post-order, see `node_position`) and never rewrites one. Making a
root or a proof reads O(log n) of them through a `NodeReader`.

Two trees use this: the audit log (a leaf's data is an entry's hash and tags) and `segments_root` of
a ciphertext (a leaf's data is a piece of 1 MiB). Hashes are public, so comparing them needs no
constant time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from protocol.codec.errors import LocalProtocolError, ProofError

HASH_SIZE = 32
PIECE_SIZE = 1024 * 1024
"""Bytes of ciphertext under one leaf of `segments_root`."""
MAX_PROOF = 128
"""Most hashes in a proof; enough for every tree below 2**63 leaves."""
EMPTY_ROOT = hashlib.sha256(b"").digest()

NodeReader = Callable[[int, int], bytes]
"""Maps (level, index) to the 32-byte hash of that complete subtree."""
PathAbove = Callable[[int, int], tuple[bytes, ...]]
"""Maps (level, size) to the result of `path_above`, such as from a cache."""


def leaf_hash(data: bytes | bytearray | memoryview) -> bytes:
    """Return SHA-256(0x00 ‖ data)."""
    digest = hashlib.sha256(b"\x00")
    digest.update(data)
    return digest.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return SHA-256(0x01 ‖ left ‖ right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaf_hashes: Iterable[bytes]) -> bytes:
    """Return the root over leaf hashes (not data) in order; `EMPTY_ROOT` if there are none.

    Over the hashes of a blob's 1 MiB pieces (the last may be shorter) it is the `segments_root`.
    """
    frontier = Frontier()
    for leaf in leaf_hashes:
        frontier.append(leaf)
    return frontier.root()


class Frontier:
    """Append-only tree of `size` leaves, stored as the roots of its complete subtrees (peaks)."""

    __slots__ = ("_peaks", "size")

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        """Continue a tree of `size` leaves with its `peaks`, largest subtree first."""
        if len(peaks) != size.bit_count():
            raise LocalProtocolError(f"{len(peaks)} peaks cannot be a tree of {size} leaves")
        self.size = size
        self._peaks = list(peaks)

    @classmethod
    def load(cls, size: int, read: NodeReader) -> Frontier:
        """Load the frontier of the first `size` leaves of a stored tree."""
        return cls(size, [read(level, index) for level, index in _peaks(0, size)])

    def append(self, leaf: bytes) -> list[bytes]:
        """Add a leaf hash; return the nodes it completes from the leaf up (post-order)."""
        completed = [leaf]
        for _ in range((~self.size & (self.size + 1)).bit_length() - 1):
            completed.append(node_hash(self._peaks.pop(), completed[-1]))
        self._peaks.append(completed[-1])
        self.size += 1
        return completed

    def extend(self, subtrees: Iterable[tuple[int, bytes]]) -> None:
        """Append complete subtrees (level, root) as returned by `subtrees`.

        Raises `LocalProtocolError` if one does not begin at a multiple of its size.
        """
        for level, node in subtrees:
            if self.size % (1 << level):
                raise LocalProtocolError(f"no subtree of level {level} begins at leaf {self.size}")
            for _ in range((~(self.size >> level) & (self.size >> level) + 1).bit_length() - 1):
                node = node_hash(self._peaks.pop(), node)
            self._peaks.append(node)
            self.size += 1 << level

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """The roots of the complete subtrees, largest first: what `Frontier(size, peaks)` takes."""
        return tuple(self._peaks)

    def root(self) -> bytes:
        """Return the root over all leaves."""
        return _fold(self._peaks)


def subtrees(first: int, leaf_hashes: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Return consecutive leaves, starting at leaf `first`, as the largest complete subtrees:
    (level, root) in order. So parts of many leaves can be hashed in parallel."""
    before: list[tuple[int, bytes]] = []
    behind: list[tuple[int, bytes]] = []
    level, nodes, sha256 = 0, list(leaf_hashes), hashlib.sha256
    while nodes:
        if first & 1:
            before.append((level, nodes.pop(0)))
            first += 1
        if len(nodes) & 1:
            behind.append((level, nodes.pop()))
        pairs = zip(nodes[::2], nodes[1::2], strict=True)
        nodes = [sha256(b"\x01" + left + right).digest() for left, right in pairs]
        first, level = first >> 1, level + 1
    return before + behind[::-1]


class PieceHasher:
    """Computes `segments_root` of a blob that arrives in chunks of any length."""

    __slots__ = ("_digest", "_filled", "leaves")

    def __init__(self) -> None:
        self.leaves: list[bytes] = []
        """Hashes of the complete pieces; after `finish`, of all pieces."""
        self._digest = hashlib.sha256(b"\x00")
        self._filled = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Hash the next bytes of the blob."""
        view = memoryview(data)
        while view:
            part = view[: PIECE_SIZE - self._filled]
            self._digest.update(part)
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == PIECE_SIZE:
                self._close_piece()

    def finish(self) -> bytes:
        """Close the last piece and return the 32-byte root. An empty blob has no piece."""
        if self._filled:
            self._close_piece()
        return root(self.leaves)

    def _close_piece(self) -> None:
        self.leaves.append(self._digest.digest())
        self._digest = hashlib.sha256(b"\x00")
        self._filled = 0


def node_count(size: int) -> int:
    """Return the number of complete nodes, leaves included, in a tree of `size` leaves."""
    return 2 * size - size.bit_count()


def node_position(level: int, index: int) -> int:
    """Return the position of node (level, index) in the post-order array, counted from 0."""
    last_leaf = ((index + 1) << level) - 1
    return node_count(last_leaf) + level


def root_at(size: int, read: NodeReader) -> bytes:
    """Return the root over the first `size` leaves."""
    return _range_root(0, size, read)


def inclusion_proof(
    index: int, size: int, read: NodeReader, above: PathAbove | None = None
) -> tuple[bytes, ...]:
    """Return the audit path of leaf `index` in a tree of `size` leaves (RFC 9162 section 2.1.3.1).

    `above` is a cached `path_above`: the part that the proofs of many leaves share.
    """
    if not 0 <= index < size:
        raise LocalProtocolError(f"no leaf {index} in a tree of {size}")
    # The level of the peak that holds the leaf: that subtree begins at the binary digits above
    # `level`, which `index` and `size` share.
    level = (index ^ size).bit_length() - 1
    below = tuple([read(under, index >> under ^ 1) for under in range(level)])
    return below + (path_above(level, size, read) if above is None else above(level, size))


def path_above(level: int, size: int, read: NodeReader) -> tuple[bytes, ...]:
    """Return the part of an audit path above the peak of `level` in a tree of `size` leaves; it is
    the same for all leaves under that peak."""
    first = size >> level + 1 << level + 1
    right = [read(*node) for node in _peaks(first + (1 << level), size)]
    left = [read(*node) for node in _peaks(0, first)]
    return (*([_fold(right)] if right else []), *reversed(left))


def consistency_proof(old: int, new: int, read: NodeReader) -> tuple[bytes, ...]:
    """Prove that the tree of `new` leaves extends the one of `old` (RFC 9162 section 2.1.4.1).

    Empty for equal sizes and for `old` = 0, because every tree extends the empty one.
    """
    if not 0 <= old <= new:
        raise LocalProtocolError(f"a tree of {new} leaves cannot continue one of {old}")
    if old in (0, new):
        return ()
    path: list[bytes] = []
    first, end = 0, new
    while old != end:
        middle = first + _split(end - first)
        if old <= middle:
            path.append(_range_root(middle, end, read))
            end = middle
        else:
            path.append(_range_root(first, middle, read))
            first = middle
    if first:  # the verifier knows the old tree's root, but no other subtree
        path.append(_range_root(first, end, read))
    return tuple(reversed(path))


def inclusion_paths(leaf_hashes: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
    """Return the root over leaf hashes and the audit path of each leaf, its hashes concatenated.

    Raises `LocalProtocolError` if there is no leaf.
    """
    if not leaf_hashes:
        raise LocalProtocolError("a tree without leaves has no paths")
    paths = [bytearray() for _ in leaf_hashes]
    nodes, level = list(leaf_hashes), 0
    while len(nodes) > 1:
        for leaf, path in enumerate(paths):
            sibling = leaf >> level ^ 1
            if sibling < len(nodes):  # else the node has none, and stands for its parent
                path += nodes[sibling]
        pairs = zip(nodes[::2], nodes[1::2], strict=False)
        unpaired = nodes[-1:] if len(nodes) & 1 else []
        nodes, level = [node_hash(*pair) for pair in pairs] + unpaired, level + 1
    return nodes[0], list(map(bytes, paths))


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes
) -> None:
    """Raise `ProofError` unless `leaf`, a leaf hash, is leaf `index` of `size` under the root."""
    if root_of_path(leaf, index, size, proof) != expected_root:
        raise ProofError("the inclusion proof leads to another root")


def root_of_path(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """Return the root to which an audit path leads from leaf hash `leaf`, leaf `index` of `size`.

    The algorithm is RFC 9162 section 2.1.3.2. Raises `ProofError` unless the path has exactly as
    many hashes as index and size require.
    """
    if not 0 <= index < size:
        raise ProofError(f"leaf {index} cannot be in a tree of {size}")
    _check_hashes(proof)
    node, last = index, size - 1
    computed, sha256 = leaf, hashlib.sha256
    for sibling in proof:
        if last == 0:
            raise ProofError("the inclusion proof is too long")
        if node & 1 or node == last:
            computed = sha256(b"\x01" + sibling + computed).digest()
            node, last = _skip_to_right_child(node, last)
        else:
            computed = sha256(b"\x01" + computed + sibling).digest()
        node, last = node >> 1, last >> 1
    if last != 0:
        raise ProofError("the inclusion proof is too short")
    return computed


def verify_consistency(
    old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Raise `ProofError` unless the tree (new, new_root) extends the tree (old, old_root).

    The algorithm is RFC 9162 section 2.1.4.2. An empty proof is valid only for equal sizes, whose
    roots must then be equal, and for `old` = 0, whose root is `EMPTY_ROOT`.
    """
    if not 0 <= old <= new:
        raise ProofError(f"a tree of {new} leaves cannot continue one of {old}")
    if old in (0, new):
        if proof:
            raise ProofError("a consistency proof that must be empty is not")
        if old_root != (new_root if old == new else EMPTY_ROOT):
            raise ProofError("the known root is not the root at that size")
        if new == 0 and new_root != EMPTY_ROOT:
            raise ProofError("an empty tree with a wrong root")
        return
    if not proof:
        raise ProofError("an empty consistency proof between different sizes")
    _check_hashes(proof)
    _verify_growth(old, old_root, new, new_root, proof)


def _verify_growth(
    old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    path = list(proof)
    if old & (old - 1) == 0:  # a complete old tree is the first node, which the proof leaves out
        path.insert(0, old_root)
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    computed_old = computed_new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProofError("the consistency proof is too long")
        if node & 1 or node == last:
            computed_old = node_hash(sibling, computed_old)
            computed_new = node_hash(sibling, computed_new)
            node, last = _skip_to_right_child(node, last)
        else:
            computed_new = node_hash(computed_new, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise ProofError("the consistency proof is too short")
    if computed_old != old_root:
        raise ProofError("the consistency proof does not start from the known root")
    if computed_new != new_root:
        raise ProofError("the consistency proof leads to another root")


def _skip_to_right_child(node: int, last: int) -> tuple[int, int]:
    """Climb the right edge past levels at which the subtree has no sibling."""
    while node and not node & 1:
        node, last = node >> 1, last >> 1
    return node, last


def _check_hashes(proof: Sequence[bytes]) -> None:
    if len(proof) > MAX_PROOF or not {HASH_SIZE}.issuperset(map(len, proof)):
        raise ProofError(f"a proof is at most {MAX_PROOF} hashes of {HASH_SIZE} bytes")


def _split(size: int) -> int:
    """Return the largest power of two below `size`, at which RFC 6962 divides a tree."""
    return 1 << ((size - 1).bit_length() - 1)


def _peaks(first: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the complete subtrees that cover leaves [first, end), largest first.

    `first` must be a multiple of the largest power of two within end - first. That holds for every
    range that `_split` yields from a whole tree.
    """
    while first < end:
        level = (end - first).bit_length() - 1
        yield level, first >> level
        first += 1 << level


def _range_root(first: int, end: int, read: NodeReader) -> bytes:
    size = end - first
    if size.bit_count() == 1:  # one complete subtree: the common case in a proof
        level = size.bit_length() - 1
        return read(level, first >> level)
    return _fold([read(level, index) for level, index in _peaks(first, end)])


def _fold(peaks: Sequence[bytes]) -> bytes:
    """Return the root over complete subtrees of falling size."""
    if not peaks:
        return EMPTY_ROOT
    result = peaks[-1]
    for peak in reversed(peaks[:-1]):
        result = node_hash(peak, result)
    return result
