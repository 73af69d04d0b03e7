"""Follows the server's log leaf by leaf, without I/O; `sfsc.session` feeds it what was received.

A checkpoint signs one Merkle tree, but inside one consistent tree a server could still hide an
entry from one machine and show it to another. So each entry's leaf carries a *tag* for each account
that it belongs to, and for each identity statement (`protocol.log.tags`). Tags of one account are
numbered, and nobody else can compute or recognise them. A client that reads all leaves, and finds
each of its numbers exactly once and in order, has missed no entry of its account.

`LogFollower` holds the frontier of a Merkle tree (RFC 6962), so its memory does not grow with the
log. It believes nothing before `check_root` has compared the tree with a signed checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from protocol.codec import merkle
from protocol.codec.values import Value
from sfsc.errors import BadReceipt, Fork

ENTRY_HASH_SIZE: Final = 32
TAG_SIZE: Final = 16
_WINDOW: Final = 4096
"""Newest leaves for which every root can be computed again: answers to requests that were sent
together come with checkpoints in any order."""
REPORT: Final = "keep what you have; compare with other users of this server, then ask its operator"


class FoundLeaf(Value):
    """A leaf with a tag that was looked for: entry `seq` has the tag with this `number`. `data` is
    the leaf data: the 32-byte hash of the entry, then its tags."""

    number: int
    seq: int
    data: bytes

    def pack(self) -> bytes:
        """Return 40 bytes that name this leaf: u64be(seq), SHA-256 of the leaf data."""
        return self.seq.to_bytes(8) + hashlib.sha256(self.data).digest()


class TagSequence:
    """Numbered tags of one account or identity, of which each stands in the log exactly once, in
    order. `following` is the number that the next one must have; `found` collects the leaves, and
    is emptied by the reader."""

    def __init__(
        self,
        what: str,
        make: Callable[[int], bytes],
        following: int,
        near: int = 64,
        *,
        first: int | None = None,
    ) -> None:
        """`what` names the sequence in errors; `make` returns the 16-byte tag of a number, which is
        not negative. That many numbers `near` the next one, before and after it, are recognised. An
        entry whose number is wrong by more would have an author who did not check it. With `first`,
        all numbers from there on up to the next one are recognised."""
        self.what = what
        self.following: int = following
        self.found: list[FoundLeaf] = []
        self._make = make
        self._near = near
        self._first = max(0, following - near) if first is None else first

    def near(self) -> dict[bytes, tuple[TagSequence, int]]:
        """Return the tags that are recognised at first."""
        numbers = range(self._first, self.following + self._near)
        return {self._make(number): (self, number) for number in numbers}

    def accept(self, number: int, seq: int, data: bytes) -> tuple[bytes, int]:
        """Take the leaf of entry `seq`, which has the tag of `number`. Return the next tag that is
        to be recognised and its number. Raises `Fork` for a repeated number, `BadReceipt` for one
        that skips others."""
        if number < self.following:
            raise Fork(
                f"entry {seq} of the log has number {number} of {self.what}, which another has",
                REPORT,
            )
        if number > self.following:
            raise BadReceipt(
                f"entry {seq} of the log has number {number} of {self.what}, but number "
                f"{self.following} is not in the log",
                REPORT,
            )
        self.found.append(FoundLeaf(number, seq, data))
        self.following += 1
        return self._make(number + self._near), number + self._near


class LogFollower:
    """The log as one client has followed it. A method that raises leaves it unusable: then the
    connection ends, and the next one continues from what was saved before."""

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        """Continue after the first `size` entries; `peaks` are their complete subtrees."""
        self._frontier = merkle.Frontier(size, peaks)
        self._base = merkle.Frontier(size, peaks)
        self._recent: list[bytes] = []  # hashes of the leaves after `_base`
        self._tags: dict[bytes, tuple[TagSequence, int]] = {}

    @property
    def size(self) -> int:
        """The number of leaves read."""
        return self._frontier.size

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """The frontier: roots of the complete subtrees, largest first, 32 bytes each."""
        return self._frontier.peaks

    def watch(self, sequence: TagSequence) -> None:
        """Look for the tags of `sequence` from the next leaf on."""
        self._tags |= sequence.near()

    def feed(self, first: int, page: bytes | memoryview) -> None:
        """Read leaves from entry `first` on: `u16be length ‖ leaf data` each, which is an entry
        bundle of C2SP tlog-tiles. Leaves that were read before are skipped.

        Raises `BadReceipt` for a malformed page, one that does not continue what was read, and tags
        that are missing, doubled or unsorted; `Fork` for a number that another entry has.
        """
        if first > self.size:
            raise _malformed(f"leaves from entry {first} on do not continue {self.size}")
        page, at, seq, start = bytes(page), 0, first, self.size
        hashes: list[bytes] = []
        sha256, tags, end = hashlib.sha256, self._tags, len(page)
        while at < end:
            length = int.from_bytes(page[at : at + 2])
            data = page[at + 2 : at + 2 + length]
            at += 2 + length
            if at > end or length < ENTRY_HASH_SIZE or length % TAG_SIZE:
                raise _malformed(f"the leaf of entry {seq} has a wrong length")
            if seq >= start:
                hashes.append(sha256(b"\0" + data).digest())
                if length > ENTRY_HASH_SIZE:
                    before = b""
                    for place in range(ENTRY_HASH_SIZE, length, TAG_SIZE):
                        tag = data[place : place + TAG_SIZE]
                        if tag <= before:
                            raise _malformed(f"the tags of entry {seq} are not ascending")
                        before = tag
                        if tag in tags:
                            self._take(tag, seq, data)
            seq += 1
        self._frontier.extend(merkle.subtrees(start, hashes))
        self._recent += hashes
        if len(self._recent) > 2 * _WINDOW:
            old = self._recent[:-_WINDOW]
            self._base.extend(merkle.subtrees(self._base.size, old))
            del self._recent[: len(old)]

    def can_check(self, size: int) -> bool:
        """Return whether `check_root` can compute the root at `size`."""
        return self._base.size <= size <= self.size

    def check_root(self, size: int, root: bytes) -> None:
        """Check a signed checkpoint of `size`, which must not be above `self.size`, against the
        leaves. Raises `Fork`. A checkpoint of a log much shorter than `size` cannot be checked any
        more: `BadReceipt`."""
        if size == self.size:
            known = self._frontier.root()
        elif self._base.size <= size < self.size:
            part = merkle.Frontier(self._base.size, self._base.peaks)
            behind = self._recent[: size - self._base.size]
            part.extend(merkle.subtrees(part.size, behind))
            known = part.root()
        else:
            raise BadReceipt(
                f"the server shows a checkpoint of {size} entries out of order", REPORT
            )
        if known != root:
            raise Fork(f"the first {size} entries are not those that the server signed", REPORT)

    def _take(self, tag: bytes, seq: int, data: bytes) -> None:
        sequence, number = self._tags[tag]
        following, its_number = sequence.accept(number, seq, data)
        self._tags[following] = sequence, its_number


def _malformed(cause: str) -> BadReceipt:
    return BadReceipt(f"the server returned a malformed part of its log: {cause}", REPORT)
