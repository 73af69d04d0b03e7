"""What the tree over the log proves, with what many proofs have in common kept in memory.

Complete subtrees do not change, and the receipts of one group have most of theirs in common. Any
thread.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from protocol.codec import merkle
from protocol.codec.values import Value
from sfsd.errors import JournalUnreadableError
from sfsd.log.tree import LogTree

_NODES: Final = 4096
"""Nodes of the tree kept in memory, 32 bytes each."""
_PROOFS: Final = 256
"""Consistency proofs kept in memory: one for each session that is asking, and the newest size. Of
inclusion proofs the part that those in the same complete subtree share. Roots: those that records
have seen."""


class Inclusion(Value):
    """That line `index` stands in the log of `size` lines."""

    index: int
    size: int


class Consistency(Value):
    """That the log of `new` lines continues the log of `old`."""

    old: int
    new: int


class ProofCache:
    """Over one tree, for sizes that it has. Raises `JournalUnreadableError` where it cannot be
    read."""

    def __init__(self, tree: LogTree) -> None:
        self._tree = tree
        self._node = lru_cache(_NODES)(self.node)
        self._consistency = lru_cache(_PROOFS)(self._prove_consistency)
        self._above = lru_cache(_PROOFS)(self._path_above)
        self.root_at = lru_cache(_PROOFS)(self._root_at)
        """The root of the first so many lines."""

    def node(self, level: int, index: int) -> bytes:
        """A `merkle.NodeReader`: as it stands in the tree now."""
        try:
            return self._tree.node(level, index)
        except (OSError, EOFError) as exc:
            raise JournalUnreadableError("logs/tree cannot be read") from exc

    def _root_at(self, size: int) -> bytes:
        return merkle.root_at(size, self._node)

    def prove(self, what: Inclusion | Consistency) -> tuple[bytes, ...]:
        if isinstance(what, Inclusion):
            return merkle.inclusion_proof(what.index, what.size, self._node, self._above)
        return self._consistency(what.old, what.new)

    def forget(self) -> None:
        """The tree was mended."""
        for kept in (self._node, self._consistency, self._above, self.root_at):
            kept.cache_clear()

    def _prove_consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        return merkle.consistency_proof(old, new, self._node)

    def _path_above(self, level: int, size: int) -> tuple[bytes, ...]:
        return merkle.path_above(level, size, self._node)
