"""From a decision to its answer: what came together is decided in one go on a pool thread, made in
one group by the committer, and answered in one go.

What was decided on may have changed by the time it is made; then it is decided again, a few times,
and then the asker is told `busy`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, Generic, TypeAlias, TypeVar

from protocol.codec.values import Value
from sfsd.errors import Refused, SfsdError, Stale
from sfsd.net.thread_pool import ThreadPool
from sfsd.rules.context import Commit
from sfsd.storage.committer import Committer

THREADS: Final = 8
ATTEMPTS: Final = 16
"""How often one request is decided before the asker is told `busy`."""

_Answer = TypeVar("_Answer")
OperationError: TypeAlias = SfsdError | OSError
Decide = Callable[[], _Answer | Commit[_Answer]]


class _Submitted(Value, Generic[_Answer]):
    commit: Commit[_Answer]
    made: Future[int]

    def answer(self) -> _Answer:
        """Once `made` is done. Raises what kept the change from being made."""
        return self.commit.answer(self.made.result())


class BatchRunner:
    """For one loop, on whose thread its methods are called."""

    def __init__(self, committer: Committer) -> None:
        self.pool = ThreadPool(THREADS, "operation")
        self._committer = committer
        self._counting = threading.Lock()
        self._undecided = 0
        committer.expected = lambda: self._undecided

    async def outcome(
        self, decide: Decide[_Answer], *, slow: bool = False
    ) -> _Answer | OperationError:
        """That of one."""
        [(_, one)] = [answer async for answer in self.outcomes([decide], slow=slow)]
        return one

    async def outcomes(
        self, decides: Sequence[Decide[_Answer]], *, slow: bool = False
    ) -> AsyncIterator[tuple[int, _Answer | OperationError]]:
        """(place, outcome) of each of `decides`, in any order: as soon as it was decided, or made
        where that is a `Commit`. `slow` ones wait for the disk."""
        left = list(range(len(decides)))
        for _ in range(ATTEMPTS):
            decided = await self._decided([decides[place] for place in left], slow=slow)
            submitted: list[tuple[int, _Submitted[_Answer]]] = []
            stale: list[int] = []
            for place, one in zip(left, decided, strict=True):
                if isinstance(one, _Submitted):
                    submitted.append((place, one))
                elif isinstance(one, Stale):
                    stale.append(place)
                else:
                    yield place, one
            answers = await self._answers(submitted)
            for (place, _), answer in zip(submitted, answers, strict=True):
                if isinstance(answer, Stale):
                    stale.append(place)
                else:
                    yield place, answer
            if not stale:
                return
            left = stale
        for place in left:
            yield place, Refused("busy", "others change the same things; try again")

    def _decided(
        self, asked: Sequence[Decide[_Answer]], *, slow: bool
    ) -> asyncio.Future[list[_Answer | _Submitted[_Answer] | OperationError]]:
        with self._counting:
            self._undecided += len(asked)
        return self.pool.run(partial(self._decide, asked), slow=slow)

    def _decide(
        self, asked: Sequence[Decide[_Answer]]
    ) -> list[_Answer | _Submitted[_Answer] | OperationError]:
        """On a pool thread."""
        decided: list[_Answer | Commit[_Answer] | OperationError] = []
        try:
            for decide in asked:
                decided.append(_caught(decide))  # noqa: PERF401 - undone where a later one fails
            return self._submit(decided)
        except BaseException:
            # A mistake of ours: what was decided beside it is not made either.
            for one in decided:
                if isinstance(one, Commit) and one.undo is not None:
                    one.undo()
            raise
        finally:
            with self._counting:
                self._undecided -= len(asked)

    def _submit(
        self, decided: Sequence[_Answer | Commit[_Answer] | OperationError]
    ) -> list[_Answer | _Submitted[_Answer] | OperationError]:
        commits = [one for one in decided if isinstance(one, Commit)]
        made = iter(self._committer.submit_all([one.change for one in commits]))
        outcomes: list[_Answer | _Submitted[_Answer] | OperationError] = []
        for one in decided:
            if not isinstance(one, Commit):
                outcomes.append(one)
                continue
            future = next(made)
            if one.undo is not None:
                future.add_done_callback(partial(_undo_unless_made, one.undo))
            outcomes.append(_Submitted(one, future))
        return outcomes

    async def _answers(
        self, submitted: Sequence[tuple[int, _Submitted[_Answer]]]
    ) -> list[_Answer | OperationError]:
        if not submitted:
            return []
        ones = [one for _, one in submitted]
        return await self.pool.after(
            [one.made for one in ones], lambda: [_caught(one.answer) for one in ones]
        )


def _caught(call: Callable[[], _Answer]) -> _Answer | OperationError:
    try:
        return call()
    except (SfsdError, OSError) as exc:
        return exc


def _undo_unless_made(undo: Callable[[], None], made: Future[int]) -> None:
    if made.exception() is not None:
        undo()
