"""The one thread that makes changes, and the order in which they take effect (docs/design.md).

Changes that gather while the last group is written form the next group: check and stage it
(`DirectoryStore.prepare`), log it (`Journal.append`: the commit point), publish, sign, answer. A
second thread settles what was published. Since one thread makes every change, nothing else locks.

The changes of an atomic set are never in different groups. Their lines name the set, so that a
start can undo a group of which a crash has left only a part.

A failure before the log undoes the group, and the daemon continues. A failure after it cannot be
undone, and if the state of the disk is unknown, it must not be guessed. From then on `failed` says
why nothing is acknowledged until a restart recovers. If a logged group only lacks room, the daemon
opens the root again once there is some (`awaits_room`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import NamedTuple

from protocol.codec.values import Mutable, field
from sfsd.errors import (
    EntryTooLongError,
    JournalError,
    JournalFailedError,
    Refused,
    SetRefused,
    SfsdError,
    ShuttingDown,
    StoreBusyError,
    StoreError,
    StoreFailedError,
    StoreFullError,
    StoreRefusedError,
    StoreWaitsError,
)
from sfsd.fair_queue import FairQueue
from sfsd.fs.descriptors import store_error
from sfsd.fs.files import FULL_DISK, NO_DESCRIPTORS
from sfsd.histogram import Histogram
from sfsd.log.journal import Journal
from sfsd.storage.change import Change, Write
from sfsd.storage.prepare import PreparedGroup
from sfsd.storage.store import DirectoryStore
from sfsd.storage.tag_keys import TagKeys

MAX_GROUP = 512
"""Most changes that are made durable together: a changeset, and those of others beside it."""
MAX_GROUP_EFFECTS = 4096
MAX_GROUP_BYTES = 8 << 20
"""Bytes of small files in one group's pack; a single change may exceed it."""
MAX_UNSETTLED = 16 * 1024
"""Files published and not yet settled; past this the committer settles before it continues."""
_CALLABLE_SIZE = 8 << 10
_PUBLISH_SECONDS = 60.0
"""The longest time that a logged group waits for a free descriptor, or for room on the disk."""
_PUBLISH_PAUSE = 0.02
_PROOF = ".write-proof"
_GROUP_SIZES = tuple(float(1 << power) for power in range(10))
_RESERVE_EVERY = 10.0
"""Seconds between attempts to create the reserve again after a full disk."""
Made = int | SfsdError
"""The seq of a change's entry, or why the change was not made."""


class Pending(Mutable):
    """Changes that were submitted together, and a future of the outcome of each: the seq of its
    entry, or why it was not made. An atomic set is made with consecutive seqs, or not at all."""

    changes: Sequence[Change]
    is_atomic: bool = False
    future: Future[list[Made]] = field(default_factory=Future)
    outcomes: dict[int, Made] = field(default_factory=dict)
    _cost: tuple[int, int] | None = None

    @property
    def cost(self) -> tuple[int, int]:
        """The approximate (effects, bytes in the pack)."""
        if self._cost is None:
            self._cost = cost_of(self.changes)
        return self._cost

    def units(self) -> list[_Unit]:
        """Return the changes that are made together or not at all, in order."""
        if self.is_atomic:
            return [_Unit(self, 0, self.changes)]
        return [_Unit(self, place, (change,)) for place, change in enumerate(self.changes)]

    def end(self) -> None:
        """Complete the future once the outcome of every change is known."""
        if not self.future.done() and len(self.outcomes) == len(self.changes):
            self.future.set_result([self.outcomes[place] for place in range(len(self.changes))])

    def fail(self, exc: SfsdError) -> None:
        """Set the outcome of every change that has none."""
        for place in range(len(self.changes)):
            self.outcomes.setdefault(place, exc)
        self.end()


class _Unit(NamedTuple):
    """Changes of `pending`, from number `first` on, that are made together or not at all."""

    pending: Pending
    first: int
    changes: Sequence[Change]

    def make(self, seq: int) -> None:
        """Set the outcome: the changes are the entries from `seq` on."""
        for place in range(len(self.changes)):
            self.pending.outcomes[self.first + place] = seq + place

    def refuse(self, exc: SfsdError) -> None:
        """Set the outcome: none was made."""
        for place in range(len(self.changes)):
            one = exc.at(place) if isinstance(exc, SetRefused) else exc
            self.pending.outcomes[self.first + place] = one


def cost_of(changes: Iterable[Change]) -> tuple[int, int]:
    """Return the approximate (effects, bytes in the pack) of changes."""
    effects = size = 0
    for change in changes:
        effects += len(change.effects)
        for effect in change.effects:
            if isinstance(effect, Write):
                size += len(effect.data) if isinstance(effect.data, bytes) else _CALLABLE_SIZE
    return effects, size


def _fits(effects: int, size: int) -> bool:
    return effects <= MAX_GROUP_EFFECTS and size <= MAX_GROUP_BYTES


def _parts(units: Sequence[_Unit]) -> Iterator[Sequence[_Unit]]:
    """Yield the units in parts that fit a group each; a single unit may exceed it. A changeset that
    does not fit is alone in its group."""
    part, effects, size = list[_Unit](), 0, 0
    for one in units:
        more = cost_of(one.changes)
        if part and not _fits(effects + more[0], size + more[1]):
            yield part
            part, effects, size = [], 0, 0
        part.append(one)
        effects, size = effects + more[0], size + more[1]
    yield part


class GroupCommitter:
    """Commits groups of changes on the calling thread; one at a time."""

    def __init__(self, store: DirectoryStore, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._tag_keys = TagKeys(store)
        self._reserve_tried = 0.0
        self.keep_spares = False
        self.group_sizes = Histogram(_GROUP_SIZES)
        """How many changes were logged and published together."""

    @property
    def failed(self) -> str | None:
        """Why nothing may be acknowledged any more, or None."""
        return self._store.failed or self._journal.failed

    @property
    def awaits_room(self) -> bool:
        """Whether `failed` ends once there is room: opening the root again does what is logged."""
        return self._store.syncs.awaits_room and self._journal.failed is None

    @property
    def unsettled(self) -> bool:
        """Whether something published is left to settle."""
        return self.failed is None and self._store.unsettled > 0

    def commit(self, group: Sequence[Pending]) -> None:
        """Make the changes, in order, and complete each future."""
        units = [unit for one in group for unit in one.units()]
        for part in [units] if _fits(*group[0].cost) else _parts(units):
            self._commit(part)
        for one in group:
            one.end()
        if self._store.unsettled > MAX_UNSETTLED and self.failed is None:
            self.settle()

    def settle(self, *, force: bool = False) -> None:
        """Call `DirectoryStore.settle`. A failure sets `failed`; a full disk is retried later."""
        try:
            self._store.settle(force=force)
        except StoreFullError:
            # Settling frees the stage's space, so it gets the little space that it needs.
            self._journal.reserve.release()
        except (StoreBusyError, StoreFailedError):
            return

    def maintain(self) -> None:
        """Between groups: save a mark for a short next start, and restore the disk reserve."""
        self._journal.save_mark()
        if time.monotonic() - self._reserve_tried > _RESERVE_EVERY:
            self._reserve_tried = time.monotonic()
            if self._journal.full:
                self._journal.reserve.refill()
            if self.keep_spares:
                self._store.refill_spares()

    def prove_writing(self) -> None:
        """Write, sync and remove a file beside the log and one on each disk of the store. Raises
        `StoreFailedError` as changes do, StoreRefusedError."""
        if self.failed is not None:
            raise StoreFailedError(self.failed)
        files = self._store.files
        for folder in dict.fromkeys(
            (self._journal.folder, self._store.staging, self._store.uploads)
        ):
            try:
                files.remove(folder / _PROOF)  # left over from a crash
                files.write_new(folder / _PROOF, b"proof\n", durable=True)
                files.remove(folder / _PROOF)
            except OSError as exc:
                raise store_error(exc, f"writing to {folder.name}/") from exc

    def _commit(self, units: Sequence[_Unit]) -> None:
        while units:
            units = self._commit_once(units)

    def _commit_once(self, units: Sequence[_Unit]) -> Sequence[_Unit]:
        """Try once; return the units to retry after a change was too long for the log."""
        try:
            prepared = self._prepare(units)
        except StoreFullError as exc:
            if len(units) > 1:
                # Some may clear the disk, and so need no room. Each gets its own answer.
                for one in units:
                    self._commit([one])
                return ()
            self._journal.reserve.release()
            _refuse(units, exc)
            return ()
        except StoreError as exc:
            _refuse(units, exc)
            return ()
        for index, refusal in prepared.refused.items():
            units[index].refuse(refusal)
        accepted = [units[index] for index in prepared.accepted]
        # Before the append, so that not even a bug in it lets a client drop what the log names.
        prepared.mark_logged()
        try:
            self._journal.append(prepared.drafts)
        except EntryTooLongError as exc:
            prepared.abandon()
            return _without_long(accepted, exc)
        except JournalFailedError as exc:
            # The entries may be on the disk: the stage stays for the next start.
            _refuse(accepted, exc)
            return ()
        except JournalError as exc:
            prepared.abandon()
            _refuse(accepted, exc)
            return ()
        self._finish(prepared, accepted)
        return ()

    def _prepare(self, units: Sequence[_Unit]) -> PreparedGroup:
        if self._journal.failed is not None:
            raise StoreFailedError(self._journal.failed)
        sets = [one.changes for one in units]
        return self._store.prepare(sets, self._journal.next_seq, self._tag_keys.for_draft)

    def _finish(self, prepared: PreparedGroup, accepted: Sequence[_Unit]) -> None:
        """Publish a logged group and set its outcomes."""
        if not accepted:
            return
        try:
            self._publish(prepared)
        except StoreFailedError as exc:
            self._journal.stop_publishing()
            _refuse(accepted, exc)
            return
        changes = [change for unit in accepted for change in unit.changes]
        for seq, change in enumerate(changes, prepared.first_seq):
            if change.on_published is not None:
                change.on_published(seq)
        self._journal.mark_published()
        self._journal.checkpoint()
        self.group_sizes.add(len(changes))
        seq = prepared.first_seq
        for unit in accepted:
            unit.make(seq)
            seq += len(unit.changes)

    def _publish(self, prepared: PreparedGroup) -> None:
        """Publish. Raises StoreFailedError: the logged group then waits for a restart, or
        `StoreWaitsError`: it waits until the daemon opens the root again."""
        until = time.monotonic() + _PUBLISH_SECONDS
        released = False
        while True:
            try:
                return self._store.publish(prepared, lambda: self._note_latest(prepared))
            except OSError as exc:
                waits = exc.errno in FULL_DISK | NO_DESCRIPTORS
                if not waits or time.monotonic() >= until:
                    self._store.syncs.fail("installing a group", exc, awaits_room=waits)
                if exc.errno in FULL_DISK and not released:
                    # It is committed already, so it may use the disk reserve.
                    released = True
                    self._journal.reserve.release()
                    self.settle()
                else:
                    time.sleep(_PUBLISH_PAUSE)

    def _note_latest(self, prepared: PreparedGroup) -> None:
        changes = [draft.detail.get("paths", {}) for draft in prepared.drafts]
        self._journal.latest.apply(prepared.first_seq, changes)


class Committer:
    """The thread that runs a `GroupCommitter`, and the thread that settles in the background.
    Everything that goes to the log goes through `submit`."""

    def __init__(
        self,
        store: DirectoryStore,
        journal: Journal,
        *,
        settle_after: float = 0.5,
        keep_spares: bool = False,
    ) -> None:
        """Start on a recovered store and log; settle every `settle_after` seconds. `keep_spares`
        keeps spare files for a full disk."""
        self._point = GroupCommitter(store, journal)
        self._point.keep_spares = keep_spares
        if keep_spares:
            store.refill_spares()
        journal.mark_published()  # the store was recovered
        self._settle_after = settle_after
        self._changed = threading.Condition()
        self._waiting = FairQueue[str, Pending]()
        self._proof: Future[None] | None = None
        self._closing = False
        self._stopped: str | None = None
        self._published = threading.Event()
        self._done = threading.Event()
        self._commits = threading.Thread(target=self._run, name="committer")
        self._settles = threading.Thread(target=self._settle_loop, name="settler")
        self._commits.start()
        self._settles.start()

    @property
    def failed(self) -> str | None:
        """Why nothing is acknowledged any more (then nothing may be downloaded either), or None."""
        return self._stopped or self._point.failed

    @property
    def awaits_room(self) -> bool:
        """See `GroupCommitter.awaits_room`."""
        return self._stopped is None and self._point.awaits_room

    @property
    def group_sizes(self) -> Histogram:
        """See `GroupCommitter.group_sizes`."""
        return self._point.group_sizes

    @property
    def is_alive(self) -> bool:
        """Whether both threads run. They end when this is closed, or because of a bug."""
        return self._commits.is_alive() and self._settles.is_alive()

    def prove_writing(self) -> Future[None]:
        """Prove between two groups that changes can be made now, without making one; callers that
        wait at the same time share a proof. The future fails with `StoreFailedError`,
        StoreRefusedError or `ShuttingDown`. It is late if the disk is."""
        with self._changed:
            if self._proof is None:
                self._proof = Future()
                if self._closing or self._stopped is not None:
                    self._proof.set_exception(ShuttingDown("the daemon is stopping"))
                self._changed.notify()
            return self._proof

    def submit(self, change: Change) -> Future[int]:
        """Submit a change; return a future of its entry's seq, set once it is durable and
        published.

        The future fails with `Stale` (decide again), the claim's own error, `EntryTooLongError`,
        StoreRefusedError, `JournalRefusedError` (nothing was done), StoreFailedError,
        `JournalFailedError` (it may have been done; a restart finds out) or `ShuttingDown`.
        """
        made: Future[int] = Future()

        def end(outcomes: Future[list[Made]]) -> None:
            [outcome] = outcomes.result()
            if not made.set_running_or_notify_cancel():
                return  # nobody waits for it any more
            if isinstance(outcome, int):
                made.set_result(outcome)
            else:
                made.set_exception(outcome)

        self.submit_all([change]).add_done_callback(end)
        return made

    def submit_all(
        self, changes: Sequence[Change], *, is_atomic: bool = False
    ) -> Future[list[Made]]:
        """Submit 1 to 256 changes, in order; they share a group. Return a future of the outcome of
        each, as that of `submit`.

        Those of an atomic set are all made, with consecutive seqs, or none is. If one of several is
        refused, the others have the error `set-refused`. A set with too many effects is refused.
        """
        pending = Pending(tuple(changes), is_atomic and len(changes) > 1)
        if pending.is_atomic and not _fits(*pending.cost):
            pending.fail(Refused("bad-request", "the changes of the set have too many effects"))
        else:
            self._put(pending)
        return pending.future

    def _put(self, pending: Pending) -> None:
        failed = self.failed
        with self._changed:
            if self._closing:
                pending.fail(ShuttingDown("the daemon is stopping"))
            elif failed is not None:
                pending.fail((StoreWaitsError if self.awaits_room else StoreFailedError)(failed))
            else:
                self._waiting.put(pending.changes[0].draft.actor, pending)
                self._changed.notify()

    def settle(self) -> None:
        """Settle what was published now, and record that. See `GroupCommitter.settle`."""
        self._point.settle(force=True)

    def close(self) -> None:
        """Make the submitted changes, settle and stop. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._commits.join()
        self._done.set()
        self._published.set()
        self._settles.join()
        self._point.settle(force=True)

    def _run(self) -> None:
        group: list[Pending] = []
        try:
            while group := self._gather():
                self._point.commit(group)
                self._published.set()
                self._point.maintain()
        finally:
            # Reached early only by a bug, which the thread's end reports. No caller may wait
            # forever because of it.
            with self._changed:
                if group:
                    self._stopped = "the committer has stopped"
                left = group
                while self._waiting:
                    left.append(self._waiting.take())
                if self._proof is not None and not self._proof.done():
                    self._proof.set_exception(ShuttingDown("the committer has stopped"))
            for one in left:
                one.fail(StoreFailedError("the committer has stopped"))

    def _gather(self) -> list[Pending]:
        """Return the next group, in which actors take turns; an empty one at the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing or self._proof)
                if self._proof is None or self._closing:
                    return self._take()
                proof, self._proof = self._proof, None
            try:
                self._point.prove_writing()
            except (StoreFailedError, StoreRefusedError) as exc:
                proof.set_exception(exc)
            else:
                proof.set_result(None)

    def _take(self) -> list[Pending]:
        """Return a group: the changes whose turn it is, and what fits beside them. What does not
        fit is the first of a later group; others do not wait for it once for each change."""
        group, changes, effects, size = list[Pending](), 0, 0, 0

        def fits(one: Pending) -> bool:
            return not group or (
                changes + len(one.changes) <= MAX_GROUP
                and _fits(effects + one.cost[0], size + one.cost[1])
            )

        with suppress(StopIteration):
            while changes < MAX_GROUP:
                group.append(one := self._waiting.take(fits))
                changes += len(one.changes)
                effects, size = effects + one.cost[0], size + one.cost[1]
        return group

    def _settle_loop(self) -> None:
        while not self._done.is_set():
            self._published.wait()
            self._done.wait(self._settle_after)
            self._published.clear()
            self._point.settle()
            if self._point.unsettled:
                self._published.set()  # the disk was full, or too much was open: try again


def _without_long(units: Sequence[_Unit], exc: EntryTooLongError) -> list[_Unit]:
    """Refuse the units that have an entry which is too long, and return the others."""
    left, first = list[_Unit](), 0
    for one in units:
        end = first + len(one.changes)
        place = next((index - first for index in exc.indexes if first <= index < end), None)
        if place is None:
            left.append(one)
        else:
            one.refuse(SetRefused(place, exc) if one.pending.is_atomic else exc)
        first = end
    return left


def _refuse(units: Sequence[_Unit], exc: SfsdError) -> None:
    for unit in units:
        unit.refuse(exc)
