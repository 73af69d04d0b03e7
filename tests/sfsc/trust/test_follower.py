"""The follower against a model of a log, and against logs that hide, repeat or reorder entries."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import merkle
from sfsc.errors import BadReceipt, Fork, IntegrityError
from sfsc.trust.follower import FoundLeaf, LogFollower, TagSequence

KEY, OTHER = b"k" * 32, b"o" * 32


def tag(key: bytes, number: int) -> bytes:
    return hmac.digest(key, number.to_bytes(8), "sha256")[:16]


def leaf(seq: int, *tags: bytes) -> bytes:
    return hashlib.sha256(seq.to_bytes(8)).digest() + b"".join(sorted(tags))


def page(leaves: Sequence[bytes]) -> bytes:
    return b"".join(len(one).to_bytes(2) + one for one in leaves)


def root(leaves: Sequence[bytes]) -> bytes:
    return merkle.root([merkle.leaf_hash(one) for one in leaves])


def own(following: int = 0) -> TagSequence:
    return TagSequence("this account", lambda number: tag(KEY, number), following)


def log_of(owners: Sequence[int]) -> list[bytes]:
    """Return leaves: 0 belongs to nobody, 1 to us, 2 to somebody else, 3 to both."""
    counts, leaves = [0, 0], list[bytes]()
    for seq, owner in enumerate(owners):
        tags = []
        for bit, key in enumerate((KEY, OTHER)):
            if owner >> bit & 1:
                tags.append(tag(key, counts[bit]))
                counts[bit] += 1
        leaves.append(leaf(seq, *tags))
    return leaves


@given(
    owners=st.lists(st.integers(0, 3), max_size=300),
    cuts=st.lists(st.integers(0, 300), max_size=6),
    overlap=st.integers(0, 20),
)
def test_finds_each_own_leaf_in_any_pages(owners: list[int], cuts: list[int], overlap: int) -> None:
    leaves = log_of(owners)
    follower, sequence = LogFollower(), own()
    follower.watch(sequence)
    for end in [*sorted(min(cut, len(leaves)) for cut in cuts), len(leaves)]:
        first = max(0, follower.size - overlap)
        follower.feed(first, page(leaves[first:end]))
        follower.check_root(end, root(leaves[:end]))
        # A client that stops here continues from what it saved.
        follower = LogFollower(follower.size, follower.peaks)
        follower.watch(sequence)
    mine = [seq for seq, owner in enumerate(owners) if owner & 1]
    assert sequence.found == [FoundLeaf(n, seq, leaves[seq]) for n, seq in enumerate(mine)]
    assert sequence.following == len(mine)


@given(owners=st.lists(st.integers(0, 3), min_size=1, max_size=40), data=st.data())
def test_a_changed_leaf_has_another_root(owners: list[int], data: st.DataObject) -> None:
    leaves = log_of(owners)
    signed, seq = root(leaves), data.draw(st.integers(0, len(leaves) - 1))
    place = data.draw(st.integers(0, 31))
    changed = bytearray(leaves[seq])
    changed[place] ^= 1
    follower = LogFollower()
    follower.feed(0, page([*leaves[:seq], bytes(changed), *leaves[seq + 1 :]]))
    with pytest.raises(Fork):
        follower.check_root(len(leaves), signed)


@pytest.mark.parametrize(
    ("numbers", "error"),
    [
        ([0, 1, 1], Fork),
        ([0, 1, 0], Fork),
        ([0, 2], BadReceipt),
        ([1], BadReceipt),
        ([0, 1, 63], BadReceipt),
    ],
    ids=["one count twice", "a count repeated later", "ahead by one", "first missing", "far ahead"],
)
def test_wrong_counts_are_refused(numbers: list[int], error: type[IntegrityError]) -> None:
    leaves = [leaf(seq, tag(KEY, number)) for seq, number in enumerate(numbers)]
    follower = LogFollower()
    follower.watch(own())
    with pytest.raises(error):
        follower.feed(0, page(leaves))


def test_a_count_of_an_earlier_session_is_refused_when_it_comes_again() -> None:
    follower = LogFollower()
    follower.watch(own(10))
    with pytest.raises(Fork):
        follower.feed(0, page([leaf(10, tag(KEY, 9))]))


@pytest.mark.parametrize(
    "data",
    [
        bytes(31),
        bytes(33),
        bytes(16),
        bytes(32) + b"b" * 16 + b"a" * 16,
        bytes(32) + b"a" * 16 + b"a" * 16,
    ],
    ids=["short", "long", "no hash", "unsorted", "doubled"],
)
def test_malformed_leaves_are_refused(data: bytes) -> None:
    follower = LogFollower()
    with pytest.raises(BadReceipt):
        follower.feed(0, page([data]))


@pytest.mark.parametrize("rest", [b"\0", b"\0\x20" + bytes(31)])
def test_a_page_that_is_cut_off_is_refused(rest: bytes) -> None:
    follower = LogFollower()
    with pytest.raises(BadReceipt):
        follower.feed(0, page([leaf(0)]) + rest)


def test_a_page_with_a_gap_before_it_is_refused() -> None:
    follower = LogFollower()
    with pytest.raises(BadReceipt):
        follower.feed(1, page([leaf(1)]))


def test_earlier_checkpoints_are_checked_too() -> None:
    leaves = [leaf(seq) for seq in range(20_000)]
    follower = LogFollower()
    for first in range(0, len(leaves), 1000):
        follower.feed(first, page(leaves[first : first + 1000]))
    for size in (19_999, 18_123, 16_384):
        follower.check_root(size, root(leaves[:size]))
    with pytest.raises(Fork):
        follower.check_root(18_123, bytes(32))
    with pytest.raises(BadReceipt):
        follower.check_root(20_001, bytes(32))
    with pytest.raises(BadReceipt):
        follower.check_root(5, root(leaves[:5]))
