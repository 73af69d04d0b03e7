"""The ledger compared with a model that adds everything up each time."""

from __future__ import annotations

import threading

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sfsd.errors import Refused
from sfsd.state.quota import Holding, Ledger

files = st.sampled_from(["a", "b", "c"])
versions = st.integers(1, 3)
contents = st.integers(0, 4)
sidecars = st.integers(1, 300)
LARGE = 65 << 20


def size_of(content: int) -> int:
    return int(10**content) if content < 4 else LARGE


def holding(file_id: str, version: int, content: int | None, sidecar: int) -> Holding:
    """Return a version with this content (None: it is purged)."""
    if content is None:
        return Holding(file_id, version, b"", 0, sidecar)
    return Holding(file_id, version, bytes([content]) * 16, size_of(content), sidecar)


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.ledger.load(lambda: ([], []))
        self.held: dict[tuple[str, int], tuple[int | None, int]] = {}
        self.living: set[str] = set()
        self.reserved = 0
        self.coming: set[int] = set()

    @rule(content=contents)
    def announce(self, content: int) -> None:
        if content in self.coming or content in [known for known, _ in self.held.values()]:
            with pytest.raises(Refused, match="used before"):
                self.ledger.announce(bytes([content]) * 16)
        else:
            self.ledger.announce(bytes([content]) * 16)
            self.coming.add(content)

    @rule(content=contents)
    def retract(self, content: int) -> None:
        self.ledger.retract(bytes([content]) * 16)
        self.coming.discard(content)

    @rule(
        changes=st.dictionaries(
            st.tuples(files, versions), st.tuples(st.none() | contents, sidecars), min_size=1
        ),
        reserved=st.sampled_from([0, 100, LARGE]),
    )
    def hold(self, changes: dict[tuple[str, int], tuple[int | None, int]], reserved: int) -> None:
        """Reserve what is added exactly, except what an upload reserved, then hold it."""
        coming = [holding(*place, *changes[place]) for place in changes]
        before = self.total
        self.held |= changes
        more = max(self.total - before - reserved, 0)
        if before + more > 1 and more:  # a quota of 0 is no limit
            with pytest.raises(Refused, match=f"{more:,} more bytes"):
                self.ledger.reserve_growth(coming, before + more - 1, reserved=reserved)
        quota = max(before + more, 1) if more else 1  # no growth is refused
        assert self.ledger.reserve_growth(coming, quota, reserved=reserved) == more
        assert self.ledger.used == before + more
        for one in coming:
            self.ledger.hold(one)
        self.ledger.release(more)

    @rule(file_id=files, version=versions, sidecar=sidecars)
    def resize(self, file_id: str, version: int, sidecar: int) -> None:
        self.ledger.resize([(file_id, version, sidecar)])
        if (file_id, version) in self.held:
            self.held[file_id, version] = (self.held[file_id, version][0], sidecar)

    @rule(file_id=files, living=st.booleans())
    def mark(self, file_id: str, living: bool) -> None:
        self.ledger.mark(file_id, living=living)
        (self.living.add if living else self.living.discard)(file_id)

    @rule(size=st.integers(0, 20_000), quota=st.sampled_from([0, 1, 12_000, 10**6]))
    def reserve(self, size: int, quota: int) -> None:
        if size and quota and self.total + size > quota:
            with pytest.raises(Refused) as caught:
                self.ledger.reserve(size, quota)
            assert caught.value.code == "quota"
        else:
            self.ledger.reserve(size, quota)
            self.reserved += size

    @rule()
    def release(self) -> None:
        self.ledger.release(self.reserved)
        self.reserved = 0

    @property
    def total(self) -> int:
        found = [content for content, _ in self.held.values() if content is not None]
        leaves = 32 * 65 * found.count(4)
        beside = sum(sidecar for _, sidecar in self.held.values()) + leaves
        return sum(map(size_of, set(found))) + beside + self.reserved

    @invariant()
    def adds_up(self) -> None:
        assert self.ledger.used == self.total
        assert self.ledger.files == len(self.living)


TestLedger = LedgerMachine.TestCase


def test_changes_during_a_load_are_not_lost() -> None:
    ledger = Ledger()
    reading, changed = threading.Event(), threading.Event()

    def read() -> tuple[list[Holding], list[str]]:
        reading.set()
        assert changed.wait(10)
        return [holding("f", 1, 1, 5), holding("f", 2, 2, 5)], ["f", "gone"]

    loading = threading.Thread(target=ledger.load, args=(read,))
    loading.start()
    assert reading.wait(10)
    ledger.hold(holding("f", 2, 2, 6))  # the load sees it too
    ledger.hold(holding("f", 3, 3, 5))  # the load does not see it
    ledger.hold(holding("f", 1, None, 4))
    ledger.resize([("f", 3, 7)])
    ledger.mark("gone", living=False)
    changed.set()
    loading.join()
    assert (ledger.used, ledger.files) == (4 + 106 + 1007, 1)


def test_a_failed_load_can_be_retried() -> None:
    ledger = Ledger()

    def fail() -> tuple[list[Holding], list[str]]:
        raise Refused("damaged", "…")

    with pytest.raises(Refused):
        ledger.load(fail)
    ledger.hold(holding("f", 9, 3, 5))  # a later load will see it
    ledger.load(lambda: ([holding("f", 1, 0, 5)], []))
    ledger.load(fail)  # not loaded again
    assert ledger.used == 6


def test_a_refusal_states_the_bytes_reserved_for_uploads() -> None:
    ledger = Ledger()
    with pytest.raises(Refused) as full:
        ledger.reserve(2000, 1500)
    assert full.value.cause == "2,000 more bytes would exceed the quota of 1,500"
    ledger.reserve(1200, 1500)
    with pytest.raises(Refused, match="; 1,200 are reserved for uploads"):
        ledger.reserve(1000, 1500)
