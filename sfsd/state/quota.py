"""Quota ledger of an owner: what all versions take on the disk, trash and running uploads included.

A version takes its ciphertext, its sidecar, and the file of its leaf hashes if it has one. A purged
version takes its sidecar. A content that several versions share counts once: their ciphertexts are
names of one file. Bytes are *held* by versions or *reserved* by running uploads and changes. A
change reserves what it adds before it is made, on the committer thread, so that two changes cannot
both take the last bytes of a quota.

A content is identified by its content_id, which its owner chooses: two contents stored under one id
would count once. So if there is a quota, no id of another content is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from protocol.codec.merkle import HASH_SIZE, PIECE_SIZE
from protocol.codec.values import Value, changed
from sfsd.errors import Refused
from sfsd.state.load_once import LoadOnce
from sfsd.storage.json_files import INLINE_LEAVES


class Holding(Value):
    """The files of version `version` of a file: a sidecar of `sidecar` bytes and a ciphertext of
    `size` bytes. A version without content has no `content_id` (empty) and a `size` of 0."""

    file_id: str
    version: int
    content_id: bytes
    size: int
    sidecar: int

    @property
    def beside(self) -> int:
        """Bytes of the sidecar and of the file of leaf hashes, which each version has for
        itself."""
        pieces = -(-self.size // PIECE_SIZE)
        return self.sidecar + (pieces * HASH_SIZE if pieces > INLINE_LEAVES else 0)


class Ledger(LoadOnce):
    """One owner's quota. Reserving needs no load if there is no quota. Safe on several threads."""

    def __init__(self) -> None:
        super().__init__()
        self._versions: dict[tuple[str, int], Holding] = {}
        self._holders: dict[bytes, int] = {}
        self._living: set[str] = set()
        self._held = 0
        self._reserved = 0
        self._coming: set[bytes] = set()

    def load(self, read: Callable[[], tuple[Iterable[Holding], Iterable[str]]]) -> None:
        """Load once. `read` returns all contents, and the file_ids with a current version."""

        def enter(found: tuple[Iterable[Holding], Iterable[str]]) -> None:
            holdings, living = found
            for holding in holdings:
                self._enter(holding)
            self._living.update(living)

        self._load(read, enter)

    def hold(self, holding: Holding) -> None:
        """Record what a version has now."""
        self._note(lambda: self._enter(holding))

    def resize(self, sidecars: Sequence[tuple[str, int, int]]) -> None:
        """Record new sidecars with the same contents: (file_id, version, bytes of its sidecar). A
        version that was damaged when the ledger was loaded stays uncounted."""

        def change() -> None:
            for file_id, version, size in sidecars:
                if (before := self._versions.get((file_id, version))) is not None:
                    self._enter(changed(before, sidecar=size))

        self._note(change)

    def mark(self, file_id: str, *, living: bool) -> None:
        """Record whether a file has a current version."""
        self._note(lambda: (self._living.add if living else self._living.discard)(file_id))

    @property
    def used(self) -> int:
        """Bytes held and reserved; complete once loaded."""
        with self._lock:
            return self._held + self._reserved

    @property
    def files(self) -> int:
        """The number of files that have a current version."""
        with self._lock:
            return len(self._living)

    def reserve(self, size: int, quota: int) -> None:
        """Reserve `size` bytes of `quota` bytes (0: no limit). Nothing is always granted. Raises
        `Refused`."""
        with self._lock:
            if size and quota and self._held + self._reserved + size > quota:
                # Reserved bytes are in no listing: a user who has nothing to delete learns the
                # cause here.
                also = f"; {self._reserved:,} are reserved for uploads" if self._reserved else ""
                raise Refused(
                    "quota", f"{size:,} more bytes would exceed the quota of {quota:,}{also}"
                )
            self._reserved += size

    def reserve_growth(self, coming: Iterable[Holding], quota: int, *, reserved: int) -> int:
        """Reserve what is added once these versions are held, except `reserved` bytes of it that
        are reserved already; return how much that is, 0 if they take less than before. Raises
        `Refused`."""
        with self._lock:
            more = max(self._growth(coming) - reserved, 0)
            self.reserve(more, quota)
            return more

    def _growth(self, coming: Iterable[Holding]) -> int:
        """Return by how many bytes `used` grows, which may be negative, once these are held."""
        grown, sizes, holders = 0, dict[bytes, int](), dict[bytes, int]()
        for new in coming:
            old = self._versions.get((new.file_id, new.version))
            for holding, sign in ((old, -1), (new, 1)):
                if holding is not None:
                    grown += sign * holding.beside
                    sizes[holding.content_id] = holding.size
                    holders[holding.content_id] = holders.get(holding.content_id, 0) + sign
        for content_id, more in holders.items():
            before = self._holders.get(content_id, 0)
            grown += sizes[content_id] * ((before + more > 0) - (before > 0))
        return grown

    def release(self, size: int) -> None:
        """Release reserved bytes that are unneeded or held by now."""
        with self._lock:
            self._reserved -= size

    def announce(self, content_id: bytes) -> None:
        """Reserve a content_id for a coming content. Raises `Refused` if another content has it."""
        with self._lock:
            if content_id in self._holders or content_id in self._coming:
                raise Refused("bad-request", "the content_id was used before")
            self._coming.add(content_id)

    def retract(self, content_id: bytes) -> None:
        """Release a content_id that is held by now, or will not come."""
        with self._lock:
            self._coming.discard(content_id)

    def _enter(self, holding: Holding) -> None:
        key = holding.file_id, holding.version
        if (before := self._versions.get(key)) is not None:
            self._count(before, -1)
        self._versions[key] = holding
        self._count(holding, 1)

    def _count(self, holding: Holding, sign: int) -> None:
        """Add the bytes of a version (`sign` 1), or subtract them (-1)."""
        self._held += sign * holding.beside
        if not holding.content_id:
            return
        before = self._holders.pop(holding.content_id, 0)
        if before + sign:
            self._holders[holding.content_id] = before + sign
        if not before or not before + sign:
            self._held += sign * holding.size
