"""Operations are decided and committed in batches, and retried if their state changed."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from protocol.log.auditlog import EntryDraft
from sfsd.errors import OperationError, Refused, outcome_of
from sfsd.net.batches import ATTEMPTS, BatchRunner
from sfsd.rules.context import Transaction
from sfsd.storage.change import Change, Write
from sfsd.storage.committer import Committer
from sfsd.storage.store import DirectoryStore
from tests.sfsd import journals

Decision = str | OperationError | Transaction[str]


@pytest.fixture
def committer(tmp_path: Path) -> Iterator[Committer]:
    journal = journals.open_journal(tmp_path / "logs")
    made = Committer(DirectoryStore(tmp_path), journal)
    yield made
    made.close()
    journal.close()


@asynccontextmanager
async def open_runner(committer: Committer) -> AsyncIterator[BatchRunner]:
    runner = BatchRunner(committer)
    try:
        yield runner
    finally:
        await asyncio.to_thread(runner.pool.shutdown)


def decide_each(decides: Sequence[Callable[[], Decision]], places: Sequence[int]) -> list[Decision]:
    return [outcome_of(decides[place]) for place in places]


def outcomes(committer: Committer, decides: Sequence[Callable[[], Decision]]) -> list[str]:
    """Return the outcome of each operation as text, in input order."""

    async def run() -> list[str]:
        async with open_runner(committer) as runner:
            found = await runner.run_many("alice", len(decides), partial(decide_each, decides))
            return [str(one) for one in found]

    return asyncio.run(run())


def write(name: str, *, undo: Callable[[], None] | None = None, stale: bool = False) -> Decision:
    path = f"alice/{name}"
    expect = {path: bytes(32)} if stale else {}
    change = Change(EntryDraft("test", "alice"), expect, (Write(path, b"x"),))
    return Transaction(change, lambda seq: f"{name} is {seq}", undo)


def test_each_operation_of_a_batch_has_its_own_outcome(
    committer: Committer,
) -> None:
    undone: list[str] = []
    tries: list[int] = []

    def refused() -> Decision:
        raise Refused("denied", "no")

    def at_the_third() -> Decision:
        tries.append(1)
        return write("late", stale=len(tries) < 3)

    def too_long() -> Decision:
        change = Change(EntryDraft("test", "alice", detail={"much": "x" * 65536}))
        return Transaction(change, lambda _seq: "", lambda: undone.append("too long"))

    def unanswerable() -> Decision:
        def answer(_seq: int) -> str:
            raise OSError("the disk")

        return Transaction(
            Change(EntryDraft("test", "alice")), answer, lambda: undone.append("made")
        )

    found = outcomes(
        committer,
        [
            lambda: "at once",
            refused,
            lambda: write("a", undo=lambda: undone.append("a")),
            too_long,
            lambda: write("b"),
            at_the_third,
            unanswerable,
        ],
    )
    assert found[0] == "at once"
    assert found[1] == "no"
    assert (found[2], found[4], found[5]) == ("a is 0", "b is 1", "late is 3")
    assert "at most" in found[3] or "allowed" in found[3]
    assert found[6] == "the disk"
    assert undone == ["too long"]
    assert len(tries) == 3


def test_operation_that_stays_stale_is_refused_as_busy(committer: Committer) -> None:
    undone: list[int] = []
    decides: list[Callable[[], Decision]] = [
        lambda: write("a", stale=True, undo=lambda: undone.append(1)),
        lambda: write("b"),
    ]
    busy, made = outcomes(committer, decides)
    assert "try again" in busy
    assert made == "b is 0"
    assert len(undone) == ATTEMPTS


def set_outcomes(committer: Committer, decides: Sequence[Callable[[], Decision]]) -> list[str]:
    async def run() -> list[str]:
        async with open_runner(committer) as runner:
            count = len(decides)
            decide = partial(decide_each, decides)
            found = await runner.run_many("alice", count, decide, is_atomic=True)
            return [str(one) for one in found]

    return asyncio.run(run())


def test_a_set_is_decided_again_as_a_whole(committer: Committer) -> None:
    decided: list[str] = []
    undone: list[str] = []

    def decide(name: str, stale_until: int = 0) -> Decision:
        decided.append(name)
        stale = decided.count(name) <= stale_until
        return write(name, undo=lambda: undone.append(name), stale=stale)

    found = set_outcomes(
        committer, [lambda: decide("a"), lambda: decide("b", 2), lambda: decide("c")]
    )
    assert found == ["a is 0", "b is 1", "c is 2"]
    assert decided == ["a", "b", "c"] * 3
    assert undone == ["a", "b", "c"] * 2
    busy = set_outcomes(committer, [lambda: decide("d"), lambda: decide("e", 99)])
    assert all("try again" in one for one in busy)
    assert undone.count("d") == ATTEMPTS


def test_an_error_of_the_decision_is_that_of_all(committer: Committer) -> None:
    async def run() -> list[str]:
        def refuse(places: Sequence[int]) -> list[Decision]:
            raise Refused("denied", f"no {len(places)}")

        async with open_runner(committer) as runner:
            return [str(one) for one in await runner.run_many("alice", 3, refuse)]

    assert asyncio.run(run()) == ["no 3"] * 3


def test_a_change_that_fails_undoes_its_whole_set(committer: Committer) -> None:
    undone: list[str] = []
    long = Change(EntryDraft("test", "alice", detail={"much": "x" * 65536}))
    found = set_outcomes(
        committer,
        [
            lambda: write("a", undo=lambda: undone.append("a")),
            lambda: Transaction(long, lambda _seq: "", lambda: undone.append("long")),
        ],
    )
    assert "another change" in found[0]
    assert "at most" in found[1]
    assert undone == ["a", "long"]


@pytest.mark.parametrize("where", ["decision", "answer"])
def test_a_refused_operation_leaves_nothing_in_memory(committer: Committer, where: str) -> None:
    """Without waiting for a cycle collection: refused requests may hold a MiB each."""
    payload = bytearray(b"p")

    def refuse(held: bytearray) -> str:
        raise Refused("bad-request", f"refused with {len(held)} byte")

    def decide() -> Decision:
        held = payload
        if where == "decision":
            return refuse(held)
        commit = write("file")
        assert isinstance(commit, Transaction)
        return Transaction(commit.change, lambda _seq: refuse(held))

    gc.collect()
    gc.disable()
    try:
        before = sys.getrefcount(payload)
        assert outcomes(committer, [decide]) == ["refused with 1 byte"]
        assert sys.getrefcount(payload) == before
    finally:
        gc.enable()
