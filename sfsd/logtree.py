"""logs/tree/: the Merkle tree over the log, and where each line stands. A cache, rebuildable.

``nodes`` holds the hashes of all complete subtrees in post-order (32 bytes each, RFC 6962),
``offsets`` the byte offset of each line (u64 big-endian). Both only grow and are not synced on the
way of an append. ``mark`` says up to where both are known to be on the disk, and what the journal
must know to go on from there; it is replaced after a sync of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from protocol import merkle
from protocol.errors import RemoteProtocolError
from protocol.fields import AtMost, Bytes32, Count, Principal
from protocol.records import Record
from sfsd.files import Files

_OFFSET_SIZE = 8
MAX_ACCOUNTS = 8192


@dataclass(frozen=True, slots=True)
class Mark(Record):
    """The log's first `size` lines: bytes, last hash, root, each account's (count, last hash)."""

    LIMIT: ClassVar[int] = 1 << 20

    size: Count
    offset: Count
    hash: Bytes32
    root: Bytes32
    accounts: Annotated[tuple[tuple[Principal, Count, Bytes32], ...], AtMost(MAX_ACCOUNTS)]


class LogTree:
    """Appended to by one thread, read by any. Every method may raise OSError."""

    def __init__(self, folder: Path, files: Files) -> None:
        """Open the cache in `folder` as it stands; `cut` it to a known size before use."""
        self._folder = folder
        self._files = files
        files.make_folder(folder)
        self._nodes = files.open_append(folder / "nodes")
        self._offsets = files.open_append(folder / "offsets")
        self._frontier = merkle.Frontier()

    @property
    def size(self) -> int:
        """How many lines the tree is over."""
        return self._frontier.size

    def load_mark(self) -> Mark | None:
        """The mark, where there is one and what it says is here is here; else None: rebuild."""
        try:
            mark = Mark.parse((self._folder / "mark").read_bytes())
        except (FileNotFoundError, RemoteProtocolError):
            return None
        nodes = merkle.node_count(mark.size) * merkle.HASH_SIZE
        if self._files.size(self._nodes) < nodes:
            return None
        if self._files.size(self._offsets) < mark.size * _OFFSET_SIZE:
            return None
        return mark if merkle.root_at(mark.size, self.node) == mark.root else None

    def save_mark(self, mark: Mark) -> None:
        """Sync what was appended, then state it."""
        self._files.sync(self._nodes)
        self._files.sync(self._offsets)
        self._files.replace_durable(self._folder / "mark", mark.encode())

    def cut(self, size: int) -> None:
        """Forget all lines from seq `size` on."""
        self._files.truncate(self._nodes, merkle.node_count(size) * merkle.HASH_SIZE)
        self._files.truncate(self._offsets, size * _OFFSET_SIZE)
        self._frontier = merkle.Frontier.load(size, self.node)

    def append(self, lines: list[tuple[bytes, int]]) -> None:
        """Add lines, each its entry hash and its byte offset in the log."""
        nodes: list[bytes] = []
        for entry_hash, _ in lines:
            nodes.extend(self._frontier.append(merkle.leaf_hash(entry_hash)))
        self._files.write_all(self._nodes, b"".join(nodes))
        offsets = b"".join(offset.to_bytes(_OFFSET_SIZE, "big") for _, offset in lines)
        self._files.write_all(self._offsets, offsets)

    def node(self, level: int, index: int) -> bytes:
        """The hash of the complete subtree (level, index), 32 bytes: a `merkle.NodeReader`."""
        position = merkle.node_position(level, index) * merkle.HASH_SIZE
        return self._files.read_exactly(self._nodes, merkle.HASH_SIZE, position)

    def offset(self, seq: int) -> int:
        """Where line `seq` begins in the log."""
        raw = self._files.read_exactly(self._offsets, _OFFSET_SIZE, seq * _OFFSET_SIZE)
        return int.from_bytes(raw, "big")

    def root(self) -> bytes:
        return self._frontier.root()

    def close(self) -> None:
        self._files.close(self._nodes)
        self._files.close(self._offsets)
