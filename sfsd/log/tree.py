"""logs/tree/: the Merkle tree over the log, and each line's offset. A cache that can be rebuilt.

``nodes`` holds the hashes of all complete subtrees in post-order (32 bytes each, RFC 6962),
``leaves`` the data of all leaves (u16be length ‖ data, as in C2SP tlog-tiles), ``offsets`` where
each line begins in the log and in ``leaves`` (u64be each). ``mark`` (SHA-256 of the rest, then
msgpack) says up to where they are valid, and holds what the journal needs to continue from there.
Lines past the last mark are in memory. So an append never waits for the cache; a crash, or a disk
too full for it, costs a replay and never an entry.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from bisect import bisect_right
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Final

from protocol.codec import merkle
from protocol.codec.errors import RemoteProtocolError
from protocol.codec.fields import AtMost, Bytes32, Count, Principal
from protocol.codec.merkle import HASH_SIZE, node_count
from protocol.codec.values import Value
from protocol.records.records import SignedStruct
from sfsd.errors import JournalUnreadableError
from sfsd.fs.files import Files, is_damage

_PLACE = struct.Struct(">QQ")
"""Byte offset of a line in the log, and of its leaf in ``leaves``."""
_DIGEST_SIZE = 32
MAX_ACCOUNTS = 8192
_CACHED_NODES: Final = 4096
"""Nodes of the tree kept in memory, 32 bytes each."""
_CACHED_PROOFS: Final = 256
"""Consistency proofs kept in memory, one for each active session and the newest size. Also the
number of inclusion proof parts shared by lines of one complete subtree, and of roots that records
have quoted."""


def encode_leaf(leaf_data: bytes) -> bytes:
    """Return leaf data as an entry of a C2SP tlog-tiles entry bundle: u16be length ‖ data."""
    return len(leaf_data).to_bytes(2) + leaf_data


class TreeMark(SignedStruct):
    """The log's first `size` lines: bytes, bytes of their leaves, last hash, root, each account's
    number of entries."""

    LIMIT: ClassVar[int] = 1 << 20

    size: Count
    offset: Count
    leaves: Count
    hash: Bytes32
    root: Bytes32
    accounts: Annotated[tuple[tuple[Principal, Count], ...], AtMost(MAX_ACCOUNTS)]


def stored_mark(folder: Path) -> TreeMark | None:
    """Return the last mark that was saved in logs/tree/, None if it is missing or damaged. The rest
    of the cache may be of another log. Raises OSError, but not for a disk that cannot read it."""
    try:
        stored = (folder / "mark").read_bytes()
        body = stored[_DIGEST_SIZE:]
        if stored[:_DIGEST_SIZE] != hashlib.sha256(body).digest():
            return None
        return TreeMark.parse(body)
    except (FileNotFoundError, RemoteProtocolError):
        return None
    except OSError as exc:
        if not is_damage(exc):
            raise
        return None


class TreeLine(Value):
    """Content of the tree for line `seq`: its byte offset in the log and that of its leaf in
    ``leaves``, its leaf data, and the nodes that it completes, 32 bytes each, its leaf first."""

    seq: int
    offset: int
    leaf_offset: int
    leaf: bytes
    completed: bytes


class LogTree:
    """The cached tree. One thread appends and saves, any thread reads. Methods that access files
    may raise OSError; reading may also raise EOFError, if a file was cut while the daemon ran."""

    def __init__(self, folder: Path, files: Files) -> None:
        """Open the cache in `folder`; call `load_mark` and `truncate` before any other method."""
        self._folder = folder
        self._files = files
        files.make_folder(folder)
        self._node_handle = self._open("nodes")
        self._place_handle = self._open("offsets")
        self._leaf_handle = self._open("leaves")
        self._lock = threading.Lock()
        self._size = self._stored = 0
        self._stored_leaves = 0
        self._nodes = bytearray()
        self._places = bytearray()
        self._leaves = bytearray()
        self._frontier = merkle.Frontier()

    def _open(self, name: str) -> int:
        """Open a file of the cache; replace it by an empty one if the disk cannot read it."""
        path = self._folder / name
        try:
            return self._files.open_append(path)
        except OSError as exc:
            if not is_damage(exc):
                raise
            self._files.remove(path)
            return self._files.open_append(path)

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
        if self._files.size(self._place_handle) < mark.size * _PLACE.size:
            return None
        if self._files.size(self._leaf_handle) < mark.leaves:
            return None
        self._stored = mark.size
        return mark if merkle.root_at(mark.size, self.node) == mark.root else None

    def save_mark(self, mark: TreeMark) -> None:
        """Store and sync all lines, then write the mark. `mark.size` is the tree's size."""
        self.flush()
        for handle in (self._node_handle, self._place_handle, self._leaf_handle):
            self._files.sync_data(handle)
        body = mark.encode()
        self._files.replace_durable(self._folder / "mark", hashlib.sha256(body).digest() + body)

    def truncate(self, size: int, leaves: int) -> None:
        """Keep the first `size` stored lines and `leaves` bytes of their leaves: those that a mark
        covers, or 0. The stored mark stays until the next one: it says what the log once held."""
        with self._lock:
            self._size = self._stored = size
            self._stored_leaves = leaves
            self._clear()
        self._frontier = merkle.Frontier.load(size, self.node)

    def append(self, leaf_data: bytes, offset: int) -> None:
        """Add a line: its leaf data and its byte offset in the log. In memory; cannot fail."""
        completed = self._frontier.append(merkle.leaf_hash(leaf_data))
        with self._lock:
            self._nodes += b"".join(completed)
            self._places += _PLACE.pack(offset, self._stored_leaves + len(self._leaves))
            self._leaves += encode_leaf(leaf_data)
            self._size += 1

    @property
    def leaf_bytes(self) -> int:
        """The number of bytes of all leaves, with their lengths."""
        return self._stored_leaves + len(self._leaves)

    def _clear(self) -> None:
        self._nodes, self._places, self._leaves = bytearray(), bytearray(), bytearray()

    def flush(self) -> None:
        """Write the lines in memory to the files. A failure keeps them in memory, to be retried."""
        if self.size == self._stored:
            return
        for handle, start, tail in (
            (self._node_handle, node_count(self._stored) * HASH_SIZE, self._nodes),
            (self._place_handle, self._stored * _PLACE.size, self._places),
            (self._leaf_handle, self._stored_leaves, self._leaves),
        ):
            if self._files.size(handle) != start:  # left by an earlier attempt or process
                self._files.truncate(handle, start)
            self._files.write_all(handle, tail)
        with self._lock:
            self._stored = self.size
            self._stored_leaves += len(self._leaves)
            self._clear()

    def node(self, level: int, index: int) -> bytes:
        """Return the hash of the complete subtree (level, index): a `merkle.NodeReader`."""
        return self._nodes_from(merkle.node_position(level, index), 1)

    def completed_by(self, seq: int) -> bytes:
        """Return the nodes that line `seq` completed, its leaf first, 32 bytes each."""
        first = node_count(seq)
        return self._nodes_from(first, node_count(seq + 1) - first)

    def agrees(self, line: TreeLine) -> bool:
        """Return whether the tree has exactly this of the line."""
        seq, data = line.seq, encode_leaf(line.leaf)
        try:
            return (
                self.completed_by(seq) == line.completed
                and self._places_of(seq, 1) == ((line.offset, line.leaf_offset),)
                and self._leaves_between(line.leaf_offset, line.leaf_offset + len(data)) == data
            )
        except EOFError:
            return False

    def offset(self, seq: int) -> int:
        """Return the byte offset of line `seq` in the log."""
        return self.offsets(seq, 1)[0]

    def offsets(self, seq: int, count: int) -> tuple[int, ...]:
        """Return the byte offsets of `count` lines from line `seq` on."""
        return tuple([offset for offset, _ in self._places_of(seq, count)])

    def leaves(self, first: int, end: int, room: int) -> bytes:
        """Return the leaves of lines [first, end), as `encode_leaf` makes them, or as many of them
        as fit into `room` bytes. The tree must have these lines."""
        start, stop = self._leaf_offset(first), self._leaf_offset(end)
        if stop - start > room:
            offsets = [offset for _, offset in self._places_of(first, end - first)]
            stop = offsets[bisect_right(offsets, start + room) - 1]
        return self._leaves_between(start, stop)

    def repair(self, line: TreeLine) -> None:
        """Overwrite what is stored of a line that a mark covers."""
        places = _PLACE.pack(line.offset, line.leaf_offset)
        for name, data, start in (
            ("nodes", line.completed, node_count(line.seq) * HASH_SIZE),
            ("offsets", places, line.seq * _PLACE.size),
            ("leaves", encode_leaf(line.leaf), line.leaf_offset),
        ):
            with self._files.closing(self._files.open_update(self._folder / name)) as handle:
                self._files.write_all_at(handle, data, start)
                self._files.sync_data(handle)

    def root(self) -> bytes:
        return self._frontier.root()

    def close(self) -> None:
        for handle in (self._node_handle, self._place_handle, self._leaf_handle):
            self._files.close(handle)

    def _leaf_offset(self, seq: int) -> int:
        """Return the byte offset of the leaf of line `seq` in ``leaves``, or its end for the next
        line."""
        with self._lock:
            if seq == self._size:
                return self.leaf_bytes
        return self._places_of(seq, 1)[0][1]

    def _places_of(self, seq: int, count: int) -> tuple[tuple[int, int], ...]:
        with self._lock:
            stored = min(count, max(0, self._stored - seq))
            at = (seq + stored - self._stored) * _PLACE.size
            tail = bytes(self._places[at : at + (count - stored) * _PLACE.size])
        size = stored * _PLACE.size
        start = seq * _PLACE.size
        raw = self._files.read_exactly(self._place_handle, size, start) + tail if size else tail
        if len(raw) != count * _PLACE.size:
            raise EOFError("no such line in the tree")
        return tuple(_PLACE.iter_unpack(raw))

    def _leaves_between(self, start: int, stop: int) -> bytes:
        with self._lock:
            stored = self._stored_leaves
            tail = bytes(self._leaves[max(0, start - stored) : max(0, stop - stored)])
        size = max(0, min(stop, stored) - start)
        return self._files.read_exactly(self._leaf_handle, size, start) + tail if size else tail

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
