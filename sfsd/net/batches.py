"""Runs operations in batches: decide on a pool thread, commit as one group, answer together.

The state that an operation relied on may change before its change is committed. It then decides
again, at most `ATTEMPTS` times; after that the client is told `busy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, Generic, TypeAlias, TypeVar

from protocol.codec.values import Value
from sfsd.errors import Refused, SetRefused, SfsdError, Stale, without_frames
from sfsd.net.thread_pool import ThreadPool
from sfsd.rules.context import Transaction
from sfsd.storage.committer import Committer

THREADS: Final = 8
ATTEMPTS: Final = 16
"""How often one request is decided before the client is told `busy`."""

_Answer = TypeVar("_Answer")
OperationError: TypeAlias = SfsdError | OSError
Outcome: TypeAlias = _Answer | OperationError
Decide: TypeAlias = Callable[[], _Answer | Transaction[_Answer]]
_SET_REFUSED: Final = "another change of the atomic set was refused, so this one was not made"


class _Submitted(Value, Generic[_Answer]):
    commit: Transaction[_Answer]
    done: Future[int]

    def answer(self) -> _Answer:
        """Return the answer once `done` is. Raises the error that prevented the change."""
        return self.commit.answer(self.done.result())


class _SubmittedSet(Value, Generic[_Answer]):
    commits: Sequence[Transaction[_Answer]]
    done: Future[int]

    def outcomes(self) -> list[Outcome[_Answer]]:
        """Return the outcome of each change once `done` is."""
        try:
            first = self.done.result()
        except SetRefused as exc:
            error = without_frames(exc.error)
            return _refused({exc.place: error}, len(self.commits))
        except (SfsdError, OSError) as exc:
            return [without_frames(exc)] * len(self.commits)
        return [
            _outcome_of(partial(one.answer, first + place))
            for place, one in enumerate(self.commits)
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
        """Run one operation and return its outcome; as `run_all`."""
        [outcome] = await self.run_all(user, [decide], slow=slow, bulk=bulk)
        return outcome

    async def run_all(
        self,
        user: str,
        decides: Sequence[Decide[_Answer]],
        *,
        slow: bool = False,
        bulk: bool = False,
    ) -> list[Outcome[_Answer]]:
        """Run operations in a turn of `user`; return the outcome of each, in input order.

        That of a `Transaction` is known once its change is durable. `slow` and `bulk` are as in
        `ThreadPool.run`.
        """
        outcomes = dict[int, Outcome[_Answer]]()
        left = list(range(len(decides)))
        for _ in range(ATTEMPTS):
            decide = partial(self._decide, [decides[index] for index in left])
            decided = await self.pool.run(user, decide, slow=slow, bulk=bulk)
            submitted: list[tuple[int, _Submitted[_Answer]]] = []
            stale: list[int] = []
            for index, one in zip(left, decided, strict=True):
                if isinstance(one, _Submitted):
                    submitted.append((index, one))
                elif isinstance(one, Stale):
                    stale.append(index)
                else:
                    outcomes[index] = one
            answers = await self._answers(user, [one for _, one in submitted])
            for (index, _), answer in zip(submitted, answers, strict=True):
                if isinstance(answer, Stale):
                    stale.append(index)
                else:
                    outcomes[index] = answer
            if not stale:
                break
            left = stale
        else:
            for index in left:
                outcomes[index] = Refused("busy", "others change the same things; try again")
        return [outcomes[index] for index in range(len(decides))]

    async def run_set(
        self,
        user: str,
        decides: Sequence[Decide[_Answer]],
        accept: Callable[[Sequence[Transaction[_Answer]]], None] = lambda _commits: None,
    ) -> list[Outcome[_Answer]]:
        """Run the operations of an atomic set: all of their changes are made, or none. Return the
        outcome of each. If any is refused, the others have the error `set-refused`.

        A set of which only a part was made before is refused, too.
        `accept` may raise `Refused` for the changes of a new set.
        """
        for _ in range(ATTEMPTS):
            decide = partial(self._decide_set, decides, accept)
            decided = await self.pool.run(user, decide)
            if isinstance(decided, _SubmittedSet):
                decided = await self.pool.run_after(user, [decided.done], decided.outcomes)
            if not any(isinstance(one, Stale) for one in decided):
                return decided
        busy = Refused("busy", "others change the same things; try again")
        return [busy for _ in decides]

    def _decide_set(
        self,
        decides: Sequence[Decide[_Answer]],
        accept: Callable[[Sequence[Transaction[_Answer]]], None],
    ) -> _SubmittedSet[_Answer] | list[Outcome[_Answer]]:
        """Decide all and submit their changes, or return why not; runs on a pool thread."""
        decided: list[Transaction[_Answer] | Outcome[_Answer]] = []
        commits: list[Transaction[_Answer]] = []
        try:
            for decide in decides:
                one = _outcome_of(decide)
                decided.append(one)
                if isinstance(one, Transaction):
                    commits.append(one)
            refused = {
                place: one
                for place, one in enumerate(decided)
                if isinstance(one, (SfsdError, OSError))
            }
            if not refused and 0 < len(commits) < len(decided):
                place = decided.index(commits[0])
                refused = {place: Refused("conflict", "only a part of the set was made before")}
            if not refused and commits:
                accept(commits)
                done = self._committer.submit_set([one.change for one in commits])
                for one in commits:
                    if one.undo is not None:
                        done.add_done_callback(partial(_undo_if_failed, one.undo))
                return _SubmittedSet(commits, done)
        except BaseException as exc:
            _undo(commits)
            if not isinstance(exc, Refused):
                raise
            return [without_frames(exc)] * len(decided)
        _undo(commits)
        if refused:
            return _refused(refused, len(decided))
        return [one for one in decided if not isinstance(one, Transaction)]

    def _decide(
        self, decides: Sequence[Decide[_Answer]]
    ) -> list[_Submitted[_Answer] | Outcome[_Answer]]:
        """Decide all and submit their changes; runs on a pool thread."""
        decided: list[Transaction[_Answer] | Outcome[_Answer]] = []
        try:
            for decide in decides:
                decided.append(_outcome_of(decide))  # noqa: PERF401 - undone if a later one fails
            return self._submit(decided)
        except BaseException:
            # A bug in one operation: the others of the batch are not committed either.
            _undo(decided)
            raise

    def _submit(
        self, decided: Sequence[Transaction[_Answer] | Outcome[_Answer]]
    ) -> list[_Submitted[_Answer] | Outcome[_Answer]]:
        commits = [one for one in decided if isinstance(one, Transaction)]
        futures = iter(self._committer.submit_all([one.change for one in commits]))
        outcomes: list[_Submitted[_Answer] | Outcome[_Answer]] = []
        for one in decided:
            if not isinstance(one, Transaction):
                outcomes.append(one)
                continue
            future = next(futures)
            if one.undo is not None:
                future.add_done_callback(partial(_undo_if_failed, one.undo))
            outcomes.append(_Submitted(one, future))
        return outcomes

    async def _answers(
        self, user: str, submitted: Sequence[_Submitted[_Answer]]
    ) -> list[Outcome[_Answer]]:
        if not submitted:
            return []
        return await self.pool.run_after(
            user,
            [one.done for one in submitted],
            lambda: [_outcome_of(one.answer) for one in submitted],
        )


def _outcome_of(call: Callable[[], _Answer]) -> Outcome[_Answer]:
    try:
        return call()
    except (SfsdError, OSError) as exc:
        return without_frames(exc)


def _refused(errors: Mapping[int, OperationError], count: int) -> list[Outcome[_Answer]]:
    """Return the outcomes of a set of `count` changes, of which some have these errors."""
    others = Refused("set-refused", _SET_REFUSED)
    return [errors.get(place, others) for place in range(count)]


def _undo(decided: Iterable[object]) -> None:
    """Undo what was decided and is not submitted."""
    for one in decided:
        if isinstance(one, Transaction) and one.undo is not None:
            one.undo()


def _undo_if_failed(undo: Callable[[], None], done: Future[int]) -> None:
    if done.exception() is not None:
        undo()
