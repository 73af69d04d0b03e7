"""logs/tree/: the Merkle tree over the log, and where each line stands. A cache, rebuildable.

``nodes`` holds the hashes of all complete subtrees in post-order (32 bytes each, RFC 6962),
``offsets`` the byte offset of each line (u64 big-endian). ``mark`` (SHA-256 of the rest, then
msgpack) says up to where both are good, and what the journal must know to go on from there. What
follows the last mark lives in memory: so an append never waits for the cache, and a crash, or a
disk too full for it, costs a replay and never an entry.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from pathlib import Path
from typing import Annotated, ClassVar

from protocol.codec import merkle
from protocol.codec.errors import RemoteProtocolError
from protocol.codec.fields import AtMost, Bytes32, Count, Principal
from protocol.codec.merkle import HASH_SIZE, node_count
from protocol.records.records import SignedStruct
from sfsd.fs.files import Files

_OFFSET_SIZE = 8
_DIGEST_SIZE = 32
MAX_ACCOUNTS = 8192


class TreeMark(SignedStruct):
    """The log's first `size` lines: bytes, last hash, root, each account's (count, last hash)."""

    LIMIT: ClassVar[int] = 1 << 20
    ELEMENTS: ClassVar[int] = MAX_ACCOUNTS

    size: Count
    offset: Count
    hash: Bytes32
    root: Bytes32
    accounts: Annotated[tuple[tuple[Principal, Count, Bytes32], ...], AtMost(MAX_ACCOUNTS)]


class LogTree:
    """Appended to and saved by one thread, read by any. What touches the files may raise OSError;
    reading may raise EOFError too, of files that were cut while the daemon ran."""

    def __init__(self, folder: Path, files: Files) -> None:
        """Open the cache in `folder`; `load_mark` and `cut` come before any other use."""
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
        """How many lines the tree is over."""
        return self._frontier.size

    def load_mark(self) -> TreeMark | None:
        """The mark, where there is one and what it says is here is here; else None: rebuild."""
        try:
            stored = (self._folder / "mark").read_bytes()
            body = stored[_DIGEST_SIZE:]
            if stored[:_DIGEST_SIZE] != hashlib.sha256(body).digest():
                return None
            mark = TreeMark.parse(body)
        except (FileNotFoundError, RemoteProtocolError):
            return None
        if self._files.size(self._node_handle) < node_count(mark.size) * HASH_SIZE:
            return None
        if self._files.size(self._offset_handle) < mark.size * _OFFSET_SIZE:
            return None
        self._stored = mark.size
        return mark if merkle.root_at(mark.size, self.node) == mark.root else None

    def save_mark(self, mark: TreeMark) -> None:
        """Store and sync what was appended, then state it. `mark.size` is the tree's size."""
        self.flush()
        self._files.sync_data(self._node_handle)
        self._files.sync_data(self._offset_handle)
        body = mark.encode()
        self._files.replace_durable(self._folder / "mark", hashlib.sha256(body).digest() + body)

    def truncate(self, size: int) -> None:
        """Keep the first `size` lines of the stored ones: what a mark vouches for, or none."""
        if size == 0:
            self._files.remove(self._folder / "mark")
        with self._lock:
            self._stored = size
            self._nodes, self._offsets = bytearray(), bytearray()
        self._frontier = merkle.Frontier.load(size, self.node)

    def append(self, entry_hash: bytes, offset: int) -> None:
        """Add a line: its entry hash and its byte offset in the log. In memory; cannot fail."""
        completed = self._frontier.append(merkle.leaf_hash(entry_hash))
        with self._lock:
            self._nodes += b"".join(completed)
            self._offsets += offset.to_bytes(_OFFSET_SIZE, "big")

    def flush(self) -> None:
        """Move what is in memory to the files. A failure leaves it in memory, to try again."""
        if self.size == self._stored:
            return
        for handle, start, tail in (
            (self._node_handle, node_count(self._stored) * HASH_SIZE, self._nodes),
            (self._offset_handle, self._stored * _OFFSET_SIZE, self._offsets),
        ):
            if self._files.size(handle) != start:  # what an earlier attempt or process left
                self._files.truncate(handle, start)
            self._files.write_all(handle, tail)
        with self._lock:
            self._stored = self.size
            self._nodes, self._offsets = bytearray(), bytearray()

    def node(self, level: int, index: int) -> bytes:
        """The hash of the complete subtree (level, index), 32 bytes: a `merkle.NodeReader`."""
        return self._nodes_from(merkle.node_position(level, index), 1)

    def completed_by(self, seq: int) -> bytes:
        """The nodes that line `seq` completed, its leaf first, 32 bytes each."""
        first = node_count(seq)
        return self._nodes_from(first, node_count(seq + 1) - first)

    def agrees(self, seq: int, offset: int, completed: bytes) -> bool:
        """Whether this is what the tree has of line `seq`."""
        try:
            return self.completed_by(seq) == completed and self.offset(seq) == offset
        except EOFError:
            return False

    def offset(self, seq: int) -> int:
        """Where line `seq` begins in the log."""
        return self.offsets(seq, 1)[0]

    def offsets(self, seq: int, count: int) -> tuple[int, ...]:
        """Where each of `count` lines begins, from line `seq` on."""
        with self._lock:
            stored = min(count, max(0, self._stored - seq))
            at = (seq + stored - self._stored) * _OFFSET_SIZE
            tail = bytes(self._offsets[at : at + (count - stored) * _OFFSET_SIZE])
        size = stored * _OFFSET_SIZE
        start = seq * _OFFSET_SIZE
        raw = self._files.read_exactly(self._offset_handle, size, start) + tail if size else tail
        return struct.unpack(f">{count}Q", raw)

    def repair(self, seq: int, offset: int, completed: bytes) -> None:
        """Overwrite what is stored of line `seq`, which a mark covers."""
        for name, data, start in (
            ("nodes", completed, node_count(seq) * HASH_SIZE),
            ("offsets", offset.to_bytes(_OFFSET_SIZE, "big"), seq * _OFFSET_SIZE),
        ):
            handle = self._files.open_update(self._folder / name)
            try:
                self._files.write_all_at(handle, data, start)
                self._files.sync_data(handle)
            finally:
                self._files.close(handle)

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
