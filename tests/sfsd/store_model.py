"""A store and its log beside a dictionary that says what they must hold."""

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
from sfsd.storage.committer import GroupCommitter, PendingChange
from sfsd.storage.crash_recovery import RecoveryReport, recover
from sfsd.storage.store import DirectoryStore
from tests.sfsd import journals

State = dict[str, bytes]
"""What stands under each path."""


@dataclass(frozen=True)
class Put:
    """Bytes under a path; `stamped` puts the entry's seq ahead, as a sidecar does."""

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
    """One change to ask for; `expect` holds the bytes a path must have, None for no file."""

    deeds: tuple[Put | Upload | Copy | Drop, ...] = ()
    expect: dict[str, bytes | None] = field(default_factory=dict)


def stored(root: Path) -> State:
    """Every file below the store, temporaries included."""
    users = root / "store" / "users"
    files = [Path(folder) / name for folder, _, names in os.walk(users) for name in names]
    return {path.relative_to(users).as_posix(): path.read_bytes() for path in files}


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file below the root."""
    files = [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def memory() -> Path | None:
    """Where many small trees that are never synced are made fast, if there is such a place."""
    folder = Path("/dev/shm")
    return folder if os.access(folder, os.W_OK) else None


class StoreModel:
    """One root with its committer's logic, run on the calling thread.

    `states[k]` is what the store must hold after the log's first k entries, asked for but perhaps
    not made included; `acknowledged` how many were answered.
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
        self.futures: list[Future[int]] = []
        self._uploads = 0

    @property
    def acknowledged(self) -> int:
        """Entries that somebody was told of: the log must have them for good."""
        done = [f.result() + 1 for f in self.futures if f.done() and f.exception() is None]
        return max(done, default=self.base)

    def state_at(self, size: int) -> State:
        """What the store must hold when the log has `size` entries."""
        return self.states[size - self.base]

    def commit(self, steps: Sequence[Step]) -> list[Future[int]]:
        """Ask for a group. Those that the dictionary says are stale must be refused, no others.

        Where the disk refused some, the dictionary follows; once the disk has failed, it keeps
        what may have been done. Raises StoreRefusedError if an upload could not be staged.
        """
        submitted = [PendingChange(self._change(step)) for step in steps]
        before = len(self.states)
        holds = self._foresee(steps)
        futures = [each.future for each in submitted]
        self.futures += futures
        self.point.commit(submitted)
        errors = [future.exception(0) for future in futures]
        if all(error is None or isinstance(error, Stale) for error in errors):
            assert holds == [error is None for error in errors]
        elif self.point.failed is None:
            del self.states[before:]
            for step, error in zip(steps, errors, strict=True):
                if error is None:
                    self.states.append(self._after(self.states[-1], step))
        return futures

    def close(self) -> None:
        self.point.settle(force=True)
        self.journal.close()

    def _foresee(self, steps: Sequence[Step]) -> list[bool]:
        touched: set[str] = set()
        holds: list[bool] = []
        for step in steps:
            state = self.states[-1]
            fine = all(state.get(path) == data for path, data in step.expect.items())
            for deed in step.deeds:
                if isinstance(deed, Copy):
                    fine = fine and deed.source in state and deed.source not in touched
            holds.append(fine)
            if fine:
                self.states.append(self._after(state, step))
                touched |= {deed.path for deed in step.deeds}
        return holds

    def _after(self, state: State, step: Step) -> State:
        seq = self.base + len(self.states) - 1
        after = dict(state)
        for deed in step.deeds:
            match deed:
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
        effects = tuple(self._effect(deed) for deed in step.deeds)
        return Change(EntryDraft("test", "alice", accounts=("alice",)), expect, effects)

    def _effect(self, deed: Put | Upload | Copy | Drop) -> Effect:
        match deed:
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
    """Start twice on what a crash left. The log's size and the store, both found sound.

    Whatever the log says is in place and nothing else is; the second start changed no byte.
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


def refusal(future: Future[int]) -> SfsdError | None:
    """Why a finished future failed."""
    error = future.exception(0)
    assert error is None or isinstance(error, SfsdError)
    return error
