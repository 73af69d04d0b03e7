"""Operations are decided and committed in batches, and retried if their state changed."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from protocol.log.auditlog import EntryDraft
from sfsd.errors import Refused
from sfsd.net.batches import ATTEMPTS, BatchRunner, OperationError
from sfsd.rules.context import Transaction
from sfsd.storage.change import Change, Write
from sfsd.storage.committer import Committer
from sfsd.storage.store import DirectoryStore
from tests.sfsd import journals

Decision = str | OperationError | Transaction[str | OperationError]


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


def outcomes(committer: Committer, decides: Sequence[Callable[[], Decision]]) -> list[str]:
    """Return the outcome of each operation as text, in input order."""

    async def run() -> list[str]:
        async with open_runner(committer) as runner:
            return [str(one) for one in await runner.run_all("alice", decides)]

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


def test_bug_in_one_operation_undoes_the_whole_batch(
    committer: Committer,
) -> None:
    undone: list[int] = []
    decides: list[Callable[[], Decision]] = [
        lambda: write("a", undo=lambda: undone.append(1)),
        lambda: str(1 // 0),
    ]
    with pytest.raises(ZeroDivisionError):
        outcomes(committer, decides)
    assert undone == [1]
    assert outcomes(committer, [lambda: write("b")]) == ["b is 0"]


def set_outcomes(committer: Committer, decides: Sequence[Callable[[], Decision]]) -> list[str]:
    async def run() -> list[str]:
        async with open_runner(committer) as runner:
            return [str(one) for one in await runner.run_set("alice", decides)]

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


def test_a_refusal_undoes_the_whole_set(committer: Committer) -> None:
    undone: list[str] = []

    def refused() -> Decision:
        raise Refused("denied", "no")

    def bug() -> Decision:
        return str(1 // 0)

    def made(name: str) -> Callable[[], Decision]:
        return lambda: write(name, undo=lambda: undone.append(name))

    found = set_outcomes(committer, [made("a"), refused, made("b"), refused])
    assert [one == "no" for one in found] == [False, True, False, True]
    assert all("another change" in one for one in found[::2])
    found = set_outcomes(committer, [made("c"), lambda: "made before"])
    assert "only a part" in found[0]
    with pytest.raises(ZeroDivisionError):
        set_outcomes(committer, [made("d"), bug])
    assert undone == ["a", "b", "c", "d"]
    assert set_outcomes(committer, [lambda: "made before"] * 2) == ["made before"] * 2
    assert set_outcomes(committer, [made("e"), made("f")]) == ["e is 0", "f is 1"]


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
