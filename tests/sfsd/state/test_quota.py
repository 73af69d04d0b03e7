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


def size_of(content: int) -> int:
    return int(10**content)


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.ledger.load(lambda: ([], []))
        self.held: dict[tuple[str, int], int] = {}
        self.living: set[str] = set()
        self.reserved = 0
        self.coming: set[int] = set()

    @rule(content=contents)
    def announce(self, content: int) -> None:
        if content in self.coming or content in self.held.values():
            with pytest.raises(Refused, match="used before"):
                self.ledger.announce(bytes([content]) * 16)
        else:
            self.ledger.announce(bytes([content]) * 16)
            self.coming.add(content)

    @rule(content=contents)
    def retract(self, content: int) -> None:
        self.ledger.retract(bytes([content]) * 16)
        self.coming.discard(content)

    @rule(file_id=files, version=versions, content=contents)
    def hold(self, file_id: str, version: int, content: int) -> None:
        self.ledger.hold(Holding(file_id, version, bytes([content]) * 16, size_of(content)))
        self.held[file_id, version] = content

    @rule(file_id=files, version=versions)
    def drop(self, file_id: str, version: int) -> None:
        self.ledger.drop(file_id, version)
        self.held.pop((file_id, version), None)

    @rule(file_id=files, living=st.booleans())
    def mark(self, file_id: str, living: bool) -> None:
        self.ledger.mark(file_id, living=living)
        (self.living.add if living else self.living.discard)(file_id)

    @rule(size=st.integers(0, 20_000), quota=st.sampled_from([0, 1, 12_000, 10**6]))
    def reserve(self, size: int, quota: int) -> None:
        if quota and self.total + size > quota:
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
        return sum(size_of(content) for content in set(self.held.values())) + self.reserved

    @invariant()
    def adds_up(self) -> None:
        assert self.ledger.used == self.total
        assert self.ledger.files == len(self.living)
        for content in range(5):
            shared = list(self.held.values()).count(content) > 1
            assert self.ledger.is_shared(bytes([content]) * 16) == shared


TestLedger = LedgerMachine.TestCase


def holding(version: int, size: int = 5) -> Holding:
    return Holding("f", version, bytes([version]) * 16, size)


def test_changes_during_a_load_are_not_lost() -> None:
    ledger = Ledger()
    reading, changed = threading.Event(), threading.Event()

    def read() -> tuple[list[Holding], list[str]]:
        reading.set()
        assert changed.wait(10)
        return [holding(1), holding(2)], ["f", "gone"]

    loading = threading.Thread(target=ledger.load, args=(read,))
    loading.start()
    assert reading.wait(10)
    ledger.hold(holding(2))  # the load sees it too
    ledger.hold(holding(3))  # the load does not see it
    ledger.drop("f", 1)
    ledger.mark("gone", living=False)
    changed.set()
    loading.join()
    assert (ledger.used, ledger.files) == (10, 1)


def test_a_failed_load_can_be_retried() -> None:
    ledger = Ledger()

    def fail() -> tuple[list[Holding], list[str]]:
        raise Refused("damaged", "…")

    with pytest.raises(Refused):
        ledger.load(fail)
    ledger.hold(holding(9))  # a later load will see it
    ledger.load(lambda: ([holding(1)], []))
    ledger.load(fail)  # not loaded again
    assert ledger.used == 5


def test_a_refusal_states_the_bytes_reserved_for_uploads() -> None:
    ledger = Ledger()
    with pytest.raises(Refused) as full:
        ledger.reserve(2000, 1500)
    assert full.value.cause == "2,000 more bytes would exceed the quota of 1,500"
    ledger.reserve(1200, 1500)
    with pytest.raises(Refused, match="; 1,200 are reserved for uploads"):
        ledger.reserve(1000, 1500)
