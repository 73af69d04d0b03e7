"""logs/tree/: the Merkle tree over the log, and each line's offset. A cache that can be rebuilt.

``nodes`` holds the hashes of all complete subtrees in post-order (32 bytes each, RFC 6962),
``offsets`` the byte offset of each line (u64 big-endian). ``mark`` (SHA-256 of the rest, then
msgpack) says up to where both are valid, and holds what the journal needs to continue from there.
Lines past the last mark are in memory. So an append never waits for the cache; a crash, or a disk
too full for it, costs a replay and never an entry.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Final

from protocol.codec import merkle
from protocol.codec.errors import RemoteProtocolError
from protocol.codec.fields import AtMost, Bytes32, Count, Principal
from protocol.codec.merkle import HASH_SIZE, node_count
from protocol.records.records import SignedStruct
from sfsd.errors import JournalUnreadableError
from sfsd.fs.files import Files

_OFFSET_SIZE = 8
_DIGEST_SIZE = 32
MAX_ACCOUNTS = 8192
_CACHED_NODES: Final = 4096
"""Nodes of the tree kept in memory, 32 bytes each."""
_CACHED_PROOFS: Final = 256
"""Consistency proofs kept in memory, one for each active session and the newest size. Also the
number of inclusion proof parts shared by lines of one complete subtree, and of roots that records
have quoted."""


class TreeMark(SignedStruct):
    """The log's first `size` lines: bytes, last hash, root, each account's number of entries."""

    LIMIT: ClassVar[int] = 1 << 20
    ELEMENTS: ClassVar[int] = MAX_ACCOUNTS

    size: Count
    offset: Count
    hash: Bytes32
    root: Bytes32
    accounts: Annotated[tuple[tuple[Principal, Count], ...], AtMost(MAX_ACCOUNTS)]


def stored_mark(folder: Path) -> TreeMark | None:
    """Return the last mark that was saved in logs/tree/, None if it is missing or damaged. The rest
    of the cache may be of another log."""
    try:
        stored = (folder / "mark").read_bytes()
        body = stored[_DIGEST_SIZE:]
        if stored[:_DIGEST_SIZE] != hashlib.sha256(body).digest():
            return None
        return TreeMark.parse(body)
    except (FileNotFoundError, RemoteProtocolError):
        return None


class LogTree:
    """The cached tree. One thread appends and saves, any thread reads. Methods that access files
    may raise OSError; reading may also raise EOFError, if a file was cut while the daemon ran."""

    def __init__(self, folder: Path, files: Files) -> None:
        """Open the cache in `folder`; call `load_mark` and `truncate` before any other method."""
        self._folder = folder
        self._files = files
        files.make_folder(folder)
        self._node_handle = files.open_append(folder / "nodes")
        self._offset_handle = files.open_append(folder / "offsets")
        self._lock = threading.Lock()
        self._stored = 0
        self._nodes = bytearray()
        self._offsets = bytearray()
        self._frontier = merkle.Frontier()

    @property
    def size(self) -> int:
        """The number of lines in the tree."""
        return self._frontier.size

    def load_mark(self) -> TreeMark | None:
        """Return the mark if it matches the stored files; otherwise None: the cache is rebuilt."""
        mark = stored_mark(self._folder)
        if mark is None:
            return None
        if self._files.size(self._node_handle) < node_count(mark.size) * HASH_SIZE:
            return None
        if self._files.size(self._offset_handle) < mark.size * _OFFSET_SIZE:
            return None
        self._stored = mark.size
        return mark if merkle.root_at(mark.size, self.node) == mark.root else None

    def save_mark(self, mark: TreeMark) -> None:
        """Store and sync all lines, then write the mark. `mark.size` is the tree's size."""
        self.flush()
        self._files.sync_data(self._node_handle)
        self._files.sync_data(self._offset_handle)
        body = mark.encode()
        self._files.replace_durable(self._folder / "mark", hashlib.sha256(body).digest() + body)

    def truncate(self, size: int) -> None:
        """Keep the first `size` stored lines: those that a mark covers, or 0. The stored mark stays
        until the next one: it says what the log once held."""
        with self._lock:
            self._stored = size
            self._nodes, self._offsets = bytearray(), bytearray()
        self._frontier = merkle.Frontier.load(size, self.node)

    def append(self, leaf_data: bytes, offset: int) -> None:
        """Add a line: its leaf data and its byte offset in the log. In memory; cannot fail."""
        completed = self._frontier.append(merkle.leaf_hash(leaf_data))
        with self._lock:
            self._nodes += b"".join(completed)
            self._offsets += offset.to_bytes(_OFFSET_SIZE, "big")

    def flush(self) -> None:
        """Write the lines in memory to the files. A failure keeps them in memory, to be retried."""
        if self.size == self._stored:
            return
        for handle, start, tail in (
            (self._node_handle, node_count(self._stored) * HASH_SIZE, self._nodes),
            (self._offset_handle, self._stored * _OFFSET_SIZE, self._offsets),
        ):
            if self._files.size(handle) != start:  # left by an earlier attempt or process
                self._files.truncate(handle, start)
            self._files.write_all(handle, tail)
        with self._lock:
            self._stored = self.size
            self._nodes, self._offsets = bytearray(), bytearray()

    def node(self, level: int, index: int) -> bytes:
        """Return the hash of the complete subtree (level, index): a `merkle.NodeReader`."""
        return self._nodes_from(merkle.node_position(level, index), 1)

    def completed_by(self, seq: int) -> bytes:
        """Return the nodes that line `seq` completed, its leaf first, 32 bytes each."""
        first = node_count(seq)
        return self._nodes_from(first, node_count(seq + 1) - first)

    def agrees(self, seq: int, offset: int, completed: bytes) -> bool:
        """Return whether the tree has this offset and these nodes for line `seq`."""
        try:
            return self.completed_by(seq) == completed and self.offset(seq) == offset
        except EOFError:
            return False

    def offset(self, seq: int) -> int:
        """Return the byte offset of line `seq` in the log."""
        return self.offsets(seq, 1)[0]

    def offsets(self, seq: int, count: int) -> tuple[int, ...]:
        """Return the byte offsets of `count` lines from line `seq` on."""
        with self._lock:
            stored = min(count, max(0, self._stored - seq))
            at = (seq + stored - self._stored) * _OFFSET_SIZE
            tail = bytes(self._offsets[at : at + (count - stored) * _OFFSET_SIZE])
        size = stored * _OFFSET_SIZE
        start = seq * _OFFSET_SIZE
        raw = self._files.read_exactly(self._offset_handle, size, start) + tail if size else tail
        return struct.unpack(f">{count}Q", raw)

    def repair(self, seq: int, offset: int, completed: bytes) -> None:
        """Overwrite the stored offset and nodes of line `seq`, which a mark covers."""
        for name, data, start in (
            ("nodes", completed, node_count(seq) * HASH_SIZE),
            ("offsets", offset.to_bytes(_OFFSET_SIZE, "big"), seq * _OFFSET_SIZE),
        ):
            with self._files.closing(self._files.open_update(self._folder / name)) as handle:
                self._files.write_all_at(handle, data, start)
                self._files.sync_data(handle)

    def root(self) -> bytes:
        return self._frontier.root()

    def close(self) -> None:
        self._files.close(self._node_handle)
        self._files.close(self._offset_handle)

    def _nodes_from(self, first: int, count: int) -> bytes:
        with self._lock:
            at = (first - node_count(self._stored)) * HASH_SIZE
            if at >= 0:
                return bytes(self._nodes[at : at + count * HASH_SIZE])
        return self._files.read_exactly(self._node_handle, count * HASH_SIZE, first * HASH_SIZE)


class ProofCache:
    """Proofs over one tree for sizes that it has. Any thread. Raises `JournalUnreadableError`.
    Complete subtrees do not change, and the receipts of one group have most of theirs in common."""

    def __init__(self, tree: LogTree) -> None:
        self._tree = tree
        self._cached_node = lru_cache(_CACHED_NODES)(self.node)
        self._path_above = lru_cache(_CACHED_PROOFS)(
            lambda level, size: merkle.path_above(level, size, self._cached_node)
        )
        self.prove_consistency = lru_cache(_CACHED_PROOFS)(self._prove_consistency)
        """Prove that the log of `new` lines extends the log of `old`."""
        self.root_at = lru_cache(_CACHED_PROOFS)(self._root_at)
        """Return the root of the first `size` lines."""

    def node(self, level: int, index: int) -> bytes:
        """Return a node as it is in the tree now: a `merkle.NodeReader`."""
        try:
            return self._tree.node(level, index)
        except (OSError, EOFError) as exc:
            raise JournalUnreadableError("logs/tree cannot be read") from exc

    def prove_inclusion(self, seq: int, size: int) -> tuple[bytes, ...]:
        """Prove that line `seq` is in the log of `size` lines."""
        return merkle.inclusion_proof(seq, size, self._cached_node, self._path_above)

    def clear(self) -> None:
        """Drop everything cached, because the tree was repaired."""
        for cached in (self._cached_node, self._path_above, self.prove_consistency, self.root_at):
            cached.cache_clear()

    def _prove_consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        return merkle.consistency_proof(old, new, self._cached_node)

    def _root_at(self, size: int) -> bytes:
        return merkle.root_at(size, self._cached_node)
