"""Runs operations in batches: decide on a pool thread, commit as one group, answer together.

The state that an operation relied on may change before its change is committed. It then decides
again, at most `ATTEMPTS` times; after that the client is told `busy`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, Generic, TypeAlias, TypeVar

from protocol.codec.values import Value
from sfsd.errors import OperationError, Refused, SfsdError, Stale, outcome_of, without_frames
from sfsd.net.thread_pool import ThreadPool
from sfsd.rules.context import Transaction
from sfsd.storage.committer import Committer, Made

THREADS: Final = 8
ATTEMPTS: Final = 16
"""How often one request is decided before the client is told `busy`."""

_Answer = TypeVar("_Answer")
Outcome: TypeAlias = _Answer | OperationError
Decide: TypeAlias = Callable[[], _Answer | Transaction[_Answer]]
Decided: TypeAlias = Transaction[_Answer] | Outcome[_Answer]
DecideMany: TypeAlias = Callable[[Sequence[int]], Sequence[Decided[_Answer]]]
"""Decides the changes with these numbers, each alone; see `BatchRunner.run_many`."""


class _Submitted(Value, Generic[_Answer]):
    """Decisions, and a future of the outcomes of the transactions among it."""

    decided: Sequence[Decided[_Answer]]
    done: Future[list[Made]]

    def outcomes(self) -> list[Outcome[_Answer]]:
        """Return the outcome of each once `done` is."""
        made = iter(self.done.result())
        return [
            outcome_of(partial(_answer_of, one, next(made)))
            if isinstance(one, Transaction)
            else one
            for one in self.decided
        ]


class BatchRunner:
    """Runs operations on a thread pool and a committer. Call its methods on one loop's thread."""

    def __init__(self, committer: Committer) -> None:
        self.pool = ThreadPool(THREADS, "operation")
        self._committer = committer

    async def run(
        self,
        user: str,
        decide: Decide[_Answer],
        *,
        slow: bool = False,
        bulk: bool = False,
    ) -> Outcome[_Answer]:
        """Run one operation and return its outcome; as `run_many`."""
        [outcome] = await self.run_many(user, 1, lambda _places: [decide()], slow=slow, bulk=bulk)
        return outcome

    async def run_many(
        self,
        user: str,
        count: int,
        decide: DecideMany[_Answer],
        *,
        is_atomic: bool = False,
        slow: bool = False,
        bulk: bool = False,
    ) -> list[Outcome[_Answer]]:
        """Run `count` operations in a turn of `user`; return the outcome of each, in input order.

        `decide` gets the numbers of those to decide, and returns a change to make or an outcome for
        each; an error that it raises is that of all. The outcome of a `Transaction` is known once
        its change is durable. With `is_atomic`, all are decided together, and all changes are made
        or none. `slow` and `bulk` are as in `ThreadPool.run`.
        """
        outcomes = dict[int, Outcome[_Answer]]()
        left = list(range(count))
        for _ in range(ATTEMPTS):
            call = partial(self._decide, decide, left, is_atomic)
            decided = await self.pool.run(user, call, slow=slow, bulk=bulk)
            if isinstance(decided, _Submitted):
                found = await self.pool.run_after(user, decided.done, decided.outcomes)
            else:
                found = list(decided)
            outcomes |= zip(left, found, strict=True)
            stale = [place for place in left if isinstance(outcomes[place], Stale)]
            if not stale:
                break
            left = left if is_atomic else stale
        else:
            busy = Refused("busy", "others change the same things; try again")
            outcomes |= dict.fromkeys(left, busy)
        return [outcomes[place] for place in range(count)]

    def _decide(
        self, decide: DecideMany[_Answer], places: Sequence[int], is_atomic: bool
    ) -> _Submitted[_Answer] | Sequence[Outcome[_Answer]]:
        """Decide and submit the changes; runs on a pool thread."""
        try:
            decided = decide(places)
        except (SfsdError, OSError) as exc:
            return [without_frames(exc)] * len(places)
        commits = [one for one in decided if isinstance(one, Transaction)]
        if not commits:
            return [one for one in decided if not isinstance(one, Transaction)]
        done = self._committer.submit_all([one.change for one in commits], is_atomic=is_atomic)
        if any(one.undo is not None for one in commits):
            done.add_done_callback(partial(_undo_failed, commits))
        return _Submitted(decided, done)


def _answer_of(commit: Transaction[_Answer], made: Made) -> _Answer:
    if isinstance(made, int):
        return commit.answer(made)
    raise made


def _undo_failed(commits: Sequence[Transaction[_Answer]], done: Future[list[Made]]) -> None:
    for commit, made in zip(commits, done.result(), strict=True):
        if not isinstance(made, int) and commit.undo is not None:
            commit.undo()
