"""Quota ledger of an owner's ciphertext: all versions, trash and running uploads.

Each content counts once. Bytes are *held* by versions of files or *reserved* by running uploads and
puts. A put reserves before its change is made, on the committer thread, so that two puts cannot
both take the last bytes of a quota.

A content is identified by its content_id, which its owner chooses: two contents stored under one id
would count once. So if there is a quota, no id of another content is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from protocol.codec.values import Value
from sfsd.errors import Refused
from sfsd.state.load_once import LoadOnce


class Holding(Value):
    """The content of one version of a file: `size` bytes of ciphertext."""

    file_id: str
    version: int
    content_id: bytes
    size: int


class Ledger(LoadOnce):
    """One owner's quota. Reserving needs no load if there is no quota. Safe on several threads."""

    def __init__(self) -> None:
        super().__init__()
        self._versions: dict[tuple[str, int], tuple[bytes, int]] = {}
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
        """Record that a version has this content."""

        def change() -> None:
            self._leave(holding.file_id, holding.version)
            self._enter(holding)

        self._note(change)

    def drop(self, file_id: str, version: int) -> None:
        """Record that a version has no content any more."""
        self._note(lambda: self._leave(file_id, version))

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
        """Reserve `size` bytes of `quota` bytes (0: no limit). Raises `Refused`."""
        with self._lock:
            if quota and self._held + self._reserved + size > quota:
                # Reserved bytes are in no listing: a user who has nothing to delete learns the
                # cause here.
                also = f"; {self._reserved:,} are reserved for uploads" if self._reserved else ""
                raise Refused(
                    "quota", f"{size:,} more bytes would exceed the quota of {quota:,}{also}"
                )
            self._reserved += size

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

    def is_shared(self, content_id: bytes) -> bool:
        """Return whether several versions have this content."""
        with self._lock:
            return self._holders.get(content_id, 0) > 1

    def _enter(self, holding: Holding) -> None:
        self._versions[holding.file_id, holding.version] = (holding.content_id, holding.size)
        holders = self._holders.get(holding.content_id, 0)
        self._holders[holding.content_id] = holders + 1
        if not holders:
            self._held += holding.size

    def _leave(self, file_id: str, version: int) -> None:
        content_id, size = self._versions.pop((file_id, version), (b"", 0))
        if not content_id:
            return
        self._holders[content_id] -= 1
        if not self._holders[content_id]:
            del self._holders[content_id]
            self._held -= size
