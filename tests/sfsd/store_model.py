"""Model of a store and its log: a dictionary that predicts what they must hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from protocol.log.auditlog import EntryDraft
from sfsd.errors import SfsdError, Stale
from sfsd.fs.files import Files
from sfsd.log.journal import Journal
from sfsd.storage.change import Adopt, Change, Effect, Link, Remove, Write, digest_of
from sfsd.storage.committer import GroupCommitter, Made, Pending
from sfsd.storage.crash_recovery import RecoveryReport, recover
from sfsd.storage.store import DirectoryStore
from tests.sfsd import journals

State = dict[str, bytes]
"""Bytes of each path."""


@dataclass(frozen=True)
class Put:
    """Write bytes to a path; `stamped` prefixes the entry's seq, as in a sidecar."""

    path: str
    data: bytes
    stamped: bool = False


@dataclass(frozen=True)
class Upload:
    path: str
    data: bytes


@dataclass(frozen=True)
class Copy:
    path: str
    source: str


@dataclass(frozen=True)
class Drop:
    path: str


@dataclass(frozen=True)
class Step:
    """One change; `expect` has the bytes that a path must have, None for no file."""

    actions: tuple[Put | Upload | Copy | Drop, ...] = ()
    expect: dict[str, bytes | None] = field(default_factory=dict)


Asked = Step | tuple[Step, ...]
"""A change, or an atomic set of changes."""


def stored(root: Path) -> State:
    """Return every file of the store, including temporary files."""
    users = root / "store" / "users"
    files = [Path(folder) / name for folder, _, names in os.walk(users) for name in names]
    return {path.relative_to(users).as_posix(): path.read_bytes() for path in files}


def snapshot(root: Path) -> dict[str, bytes]:
    """Return every file below the root."""
    files = [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


class StoreModel:
    """One root with the committer's logic, run on the calling thread.

    `states[k]` is what the store must hold after the first k log entries, including requested ones
    that may fail; `acknowledged` is the number of acknowledged entries. `inside` are the sizes at
    which a log would end within an atomic set.
    """

    def __init__(self, root: Path, files: Files | None = None, state: State | None = None) -> None:
        self.root = root
        self.files = files or Files()
        self.journal: Journal = journals.open_journal(root / "logs", self.files)
        self.store = DirectoryStore(root, self.files)
        self.recovered: RecoveryReport = recover(self.store, self.journal)
        self.point = GroupCommitter(self.store, self.journal)
        self.base = self.journal.next_seq
        self.states: list[State] = [dict(state or {})]
        self.inside: set[int] = set()
        self.futures: list[Future[list[Made]]] = []
        self._uploads = 0

    @property
    def acknowledged(self) -> int:
        """Number of acknowledged entries, which the log must never lose."""
        made = [one for future in self.futures if future.done() for one in future.result()]
        return max([one + 1 for one in made if isinstance(one, int)], default=self.base)

    def state_at(self, size: int) -> State:
        """Return what the store must hold when the log has `size` entries."""
        assert size not in self.inside, "a part of an atomic set"
        return self.states[size - self.base]

    def commit(self, asked: Sequence[Asked]) -> list[Future[list[Made]]]:
        """Commit a group. Exactly the changes that are stale in the model must be refused, those of
        an atomic set together.

        If the disk refused some, the model drops them; once the disk has failed, it keeps all that
        may have been done. Raises StoreRefusedError if an upload could not be staged.
        """
        sets = [one if isinstance(one, tuple) else (one,) for one in asked]
        submitted = [Pending([self._change(step) for step in one], len(one) > 1) for one in sets]
        before = len(self.states)
        valid = self._predict(sets)
        futures = [each.future for each in submitted]
        self.futures += futures
        self.point.commit(submitted)
        errors = [error_of(future) for future in futures]
        if all(error is None or isinstance(error, Stale) for error in errors):
            assert valid == [error is None for error in errors]
        elif self.point.failed is None:
            del self.states[before:]
            for steps, error in zip(sets, errors, strict=True):
                if error is None:
                    self._add(steps)
        return futures

    def close(self) -> None:
        self.point.settle(force=True)
        self.journal.close()

    def _predict(self, sets: Sequence[Sequence[Step]]) -> list[bool]:
        touched: set[str] = set()
        valid: list[bool] = []
        for steps in sets:
            before, by_set, fine = len(self.states), set[str](), True
            for step in steps:
                state = self.states[-1]
                fine = all(state.get(path) == data for path, data in step.expect.items())
                for action in step.actions:
                    if isinstance(action, Copy):
                        fine = fine and action.source in state
                        fine = fine and action.source not in touched | by_set
                if not fine:
                    break
                self.states.append(self._after(state, step))
                by_set |= {action.path for action in step.actions}
            del self.states[before:]
            valid.append(fine)
            if fine:
                touched |= by_set
                self._add(steps)
        return valid

    def _add(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self.states.append(self._after(self.states[-1], step))
        end = self.base + len(self.states) - 1
        self.inside -= set(range(end - len(steps), end + 1))  # of sets that were refused
        self.inside |= set(range(end - len(steps) + 1, end))

    def _after(self, state: State, step: Step) -> State:
        seq = self.base + len(self.states) - 1
        after = dict(state)
        for action in step.actions:
            match action:
                case Put(path, data, stamped):
                    after[path] = _stamp(seq, data) if stamped else data
                case Upload(path, data):
                    after[path] = data
                case Copy(path, source):
                    after[path] = state[source]
                case Drop(path):
                    after.pop(path, None)
        return after

    def _change(self, step: Step) -> Change:
        expect = {
            path: None if data is None else digest_of(path, data)
            for path, data in step.expect.items()
        }
        effects = tuple(self._effect(action) for action in step.actions)
        return Change(EntryDraft("test", "alice", accounts=("alice",)), expect, effects)

    def _effect(self, action: Put | Upload | Copy | Drop) -> Effect:
        match action:
            case Put(path, data, stamped):
                return Write(path, (lambda seq: _stamp(seq, data)) if stamped else data)
            case Upload(path, data):
                self._uploads += 1
                name = hashlib.sha256(b"%d %d" % (self.base, self._uploads)).digest()[:16]
                staged = self.store.create_upload_file(name)
                staged.write(0, data)
                return Adopt(path, staged)
            case Copy(path, source):
                root = digest_of(path, self.states[-1].get(source, b""))
                return Link(path, source, root)
            case Drop(path):
                return Remove(path)


def _stamp(seq: int, data: bytes) -> bytes:
    return b"%d %b" % (seq, data)


def check_start(root: Path, files: Files | None = None) -> tuple[int, State]:
    """Recover a root twice after a crash; return the log's size and the contents of the store.

    The store must hold exactly what the log says, and the second start must not change a byte.
    """
    model = StoreModel(root, files)
    entries = journals.check(model.journal)
    model.journal.verify()
    digests: dict[str, bytes] = {}
    for entry in entries:
        for path, digest in entry.paths.items():
            digests.pop(path, None)
            if digest is not None:
                digests[path] = digest
    held = stored(root)
    assert {path: digest_of(path, data) for path, data in held.items()} == digests
    left = {path.name for path in model.store.staging.iterdir()}
    assert left <= {"applied"}
    size = model.journal.next_seq
    model.journal.close()
    before = snapshot(root)
    again = StoreModel(root, files)
    again.journal.close()
    assert again.recovered == RecoveryReport(0, 0, 0)
    assert snapshot(root) == before
    return size, held


def error_of(future: Future[list[Made]]) -> SfsdError | None:
    """Return the first error of finished changes, None if all were made."""
    return next((one for one in future.result(0) if isinstance(one, SfsdError)), None)
