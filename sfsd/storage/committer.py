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
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from protocol.codec.values import Value, changed, field
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
    StoreWaitsError,
)
from sfsd.fair_queue import FairQueue
from sfsd.fs.files import FULL_DISK, NO_DESCRIPTORS
from sfsd.log.journal import Journal
from sfsd.storage.change import Change, Write
from sfsd.storage.prepare import PreparedGroup
from sfsd.storage.store import DirectoryStore
from sfsd.storage.tag_keys import TagKeys

MAX_GROUP = 256
"""Most changes that are made durable together."""
MAX_GROUP_EFFECTS = 4096
MAX_GROUP_BYTES = 8 << 20
"""Bytes of small files in one group's pack; a single change may exceed it."""
MAX_UNSETTLED = 16 * 1024
"""Files published and not yet settled; past this the committer settles before it continues."""
_CALLABLE_SIZE = 8 << 10
_PUBLISH_SECONDS = 60.0
"""The longest time that a logged group waits for a free descriptor, or for room on the disk."""
_PUBLISH_PAUSE = 0.02
_RESERVE_EVERY = 10.0
"""Seconds between attempts to create the reserve again after a full disk."""


class PendingSet(Value):
    """Changes that wait for the seq of the first of them. They get consecutive seqs, and are made
    together or not at all. Most sets have one change."""

    changes: Sequence[Change]
    future: Future[int] = field(default_factory=Future)

    @property
    def cost(self) -> tuple[int, int]:
        """The approximate (effects, bytes in the pack)."""
        return cost_of(self.changes)


def cost_of(changes: Iterable[Change]) -> tuple[int, int]:
    """Return the approximate (effects, bytes in the pack) of changes."""
    effects = size = 0
    for effect in (effect for change in changes for effect in change.effects):
        effects += 1
        if isinstance(effect, Write):
            size += len(effect.data) if isinstance(effect.data, bytes) else _CALLABLE_SIZE
    return effects, size


class GroupCommitter:
    """Commits groups of changes on the calling thread; one at a time."""

    def __init__(self, store: DirectoryStore, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._tag_keys = TagKeys(store)
        self._reserve_tried = 0.0
        self.keep_spares = False

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

    def commit(self, group: Sequence[PendingSet]) -> None:
        """Make the changes, in order, and complete each future."""
        while group:
            group = self._commit_once(group)
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

    def _commit_once(self, group: Sequence[PendingSet]) -> Sequence[PendingSet]:
        """Try once; return the sets to retry after a change was too long for the log."""
        group = self._with_tag_keys(group)
        if not group:
            return ()
        try:
            prepared = self._prepare(group)
        except StoreFullError as exc:
            if len(group) > 1:
                # Some may clear the disk, and so need no room. Each gets its own answer.
                for one in group:
                    self.commit([one])
                return ()
            self._journal.reserve.release()
            _fail(group, exc)
            return ()
        except StoreError as exc:
            _fail(group, exc)
            return ()
        for index, refusal in prepared.refused.items():
            group[index].future.set_exception(refusal)
        accepted = [group[index] for index in prepared.accepted]
        # Before the append, so that not even a bug in it lets a client drop what the log names.
        prepared.mark_logged()
        try:
            self._journal.append(prepared.drafts)
        except EntryTooLongError as exc:
            prepared.abandon()
            return _without_long(accepted, exc)
        except JournalFailedError as exc:
            # The entries may be on the disk: the stage stays for the next start.
            _fail(accepted, exc)
            return ()
        except JournalError as exc:
            prepared.abandon()
            _fail(accepted, exc)
            return ()
        self._finish(prepared, accepted)
        return ()

    def _with_tag_keys(self, group: Sequence[PendingSet]) -> list[PendingSet]:
        """Return the changes with the tag keys of their accounts; refuse those that have none."""
        found = list[PendingSet]()
        for one in group:
            try:
                changes = tuple([self._with_tag_key(change) for change in one.changes])
            except SfsdError as exc:
                one.future.set_exception(exc)
                continue
            found.append(PendingSet(changes, one.future))
        return found

    def _with_tag_key(self, change: Change) -> Change:
        keys = self._tag_keys.for_draft(change.draft)
        return changed(change, draft=changed(change.draft, tag_keys=keys))

    def _prepare(self, group: Sequence[PendingSet]) -> PreparedGroup:
        if self._journal.failed is not None:
            raise StoreFailedError(self._journal.failed)
        return self._store.prepare([one.changes for one in group], self._journal.next_seq)

    def _finish(self, prepared: PreparedGroup, accepted: Sequence[PendingSet]) -> None:
        """Publish a logged group and complete its futures."""
        if not accepted:
            return
        try:
            self._publish(prepared)
        except StoreFailedError as exc:
            self._journal.stop_publishing()
            _fail(accepted, exc)
            return
        seq, firsts = prepared.first_seq, list[int]()
        for submitted in accepted:
            firsts.append(seq)
            for change in submitted.changes:
                if change.on_published is not None:
                    change.on_published(seq)
                seq += 1
        self._journal.mark_published()
        self._journal.checkpoint()
        for first, submitted in zip(firsts, accepted, strict=True):
            submitted.future.set_result(first)

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
        self._waiting = FairQueue[str, PendingSet]()
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

    def submit(self, change: Change) -> Future[int]:
        """Submit a change; return a future of its entry's seq, set once it is durable and
        published.

        The future fails with `Stale` (decide again), the claim's own error, `EntryTooLongError`,
        StoreRefusedError, `JournalRefusedError` (nothing was done), StoreFailedError,
        `JournalFailedError` (it may have been done; a restart finds out) or `ShuttingDown`.
        """
        return self.submit_all([change])[0]

    def submit_all(self, changes: Sequence[Change]) -> list[Future[int]]:
        """Submit all, in order, so that they share a group if they fit."""
        group = [PendingSet((change,)) for change in changes]
        self._put(group)
        return [submitted.future for submitted in group]

    def submit_set(self, changes: Sequence[Change]) -> Future[int]:
        """Submit an atomic set of 1 to 256 changes: all are made, or none. Return a future of the
        first seq; the others follow. It fails as that of `submit`, with `SetRefused` for an error
        of one of several changes, and `Refused` (bad-request) if they have too many effects."""
        pending = PendingSet(tuple(changes))
        effects, size = pending.cost
        if len(changes) > 1 and (effects > MAX_GROUP_EFFECTS or size > MAX_GROUP_BYTES):
            _fail([pending], Refused("bad-request", "the changes of the set have too many effects"))
        else:
            self._put([pending])
        return pending.future

    def _put(self, group: Sequence[PendingSet]) -> None:
        failed = self.failed
        with self._changed:
            if self._closing:
                _fail(group, ShuttingDown("the daemon is stopping"))
            elif failed is not None:
                _fail(group, (StoreWaitsError if self.awaits_room else StoreFailedError)(failed))
            else:
                for one in group:
                    self._waiting.put(one.changes[0].draft.actor, one)
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
        group: list[PendingSet] = []
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
            for submitted in left:
                if not submitted.future.done():
                    submitted.future.set_exception(StoreFailedError("the committer has stopped"))

    def _gather(self) -> list[PendingSet]:
        """Return the next group, in which actors take turns; an empty one at the end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                group = self._take()
                if group or self._closing:
                    return group

    def _take(self) -> list[PendingSet]:
        """Return a group: the set whose turn it is, and what fits beside it. A set that does not
        fit is the first of a later group; others do not wait for it once for each change."""
        group: list[PendingSet] = []
        taken = following = (0, 0, 0)

        def fits(one: PendingSet) -> bool:
            nonlocal following
            if group and taken[0] + len(one.changes) > MAX_GROUP:
                return False
            effects, size = one.cost
            following = taken[0] + len(one.changes), taken[1] + effects, taken[2] + size
            return not group or (
                following[1] <= MAX_GROUP_EFFECTS and following[2] <= MAX_GROUP_BYTES
            )

        with suppress(StopIteration):
            while taken[0] < MAX_GROUP:
                submitted = self._waiting.take(fits)
                if submitted.future.set_running_or_notify_cancel():
                    group.append(submitted)
                    taken = following
        return group

    def _settle_loop(self) -> None:
        while not self._done.is_set():
            self._published.wait()
            self._done.wait(self._settle_after)
            self._published.clear()
            self._point.settle()
            if self._point.unsettled:
                self._published.set()  # the disk was full, or too much was open: try again


def _without_long(group: list[PendingSet], exc: EntryTooLongError) -> list[PendingSet]:
    """Refuse the sets that have an entry which is too long, and return the others."""
    left, first = list[PendingSet](), 0
    for one in group:
        end = first + len(one.changes)
        place = next((index - first for index in exc.indexes if first <= index < end), None)
        if place is None:
            left.append(one)
        else:
            one.future.set_exception(SetRefused(place, exc) if len(one.changes) > 1 else exc)
        first = end
    return left


def _fail(group: Sequence[PendingSet], exc: SfsdError) -> None:
    for submitted in group:
        submitted.future.set_exception(exc)
