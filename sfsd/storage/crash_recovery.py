"""Crash recovery at a start: the store becomes what the log says.

Entries past staging/applied may not be in place, or not durably. The last of them that touches a
path decides its content: a file in place with the right digest stays, any other is installed from
the stage. If an entry's bytes are in neither place, the daemon does not start. The rest of the
stage belongs to changes that were never committed, and is removed. A second start changes nothing.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path

from protocol.codec.errors import LogError
from protocol.codec.merkle import PIECE_SIZE
from protocol.codec.values import Value
from protocol.log import auditlog
from sfsd.errors import JournalDamagedError, PackError, PathError, RecoveryError
from sfsd.fs.descriptors import store_error
from sfsd.fs.files import Files
from sfsd.log.journal import Journal
from sfsd.storage import packs
from sfsd.storage.change import check_path, ciphertext_digest, digest_of
from sfsd.storage.prepare import InstallStep
from sfsd.storage.store import DirectoryStore

_STAGE = re.compile(r"[0-9a-f]{32}")
_OURS = re.compile(r"[0-9a-f]{32}\.(ct|pack)|\.applied\.tmp")


class RecoveryReport(Value):
    """Result of a recovery: entries past the mark, files changed, staged files dropped."""

    entries: int
    installed: int
    dropped: int


class ExpectedFile(Value):
    """The file that entry `seq` requires under `path`; `stage` names its pack."""

    seq: int
    path: str
    digest: bytes | None
    stage: str | None


def recover(store: DirectoryStore, journal: Journal) -> RecoveryReport:
    """Bring `store` up to the end of `journal`; both were just opened and serve no requests yet.
    Raises `RecoveryError` naming the file whose bytes are missing, `JournalDamagedError`,
    StoreRefusedError, StoreFailedError."""
    try:
        return _recover(store, journal)
    except OSError as exc:
        raise store_error(exc, "recovering the store") from exc


def _recover(store: DirectoryStore, journal: Journal) -> RecoveryReport:
    last = journal.next_seq - 1
    if store.installer.applied > last:
        raise RecoveryError(
            f"entry {store.installer.applied} was applied, but the log ends at {last}",
            path="logs/audit.jsonl",
        )
    expected = _expected_files(store, journal)
    stage = StagedFiles(store.files, store.staging)
    installed = sum([_restore(store, stage, file) for file in expected.values()])
    entries = last - store.installer.applied
    if entries:
        steps = [InstallStep(file.path, file.digest) for file in expected.values()]
        store.installer.sync(steps, ancestors=True)
        store.installer.write_applied(last)
    return RecoveryReport(entries, installed, _remove_leftovers(store))


def _expected_files(store: DirectoryStore, journal: Journal) -> dict[str, ExpectedFile]:
    """Return what entries past the mark say of each path; the last one decides."""
    expected: dict[str, ExpectedFile] = {}
    first = store.installer.applied + 1
    for seq, line in enumerate(journal.lines(first), first):
        try:
            entry = auditlog.parse(line, seq=seq)
        except LogError as exc:
            raise JournalDamagedError.from_log_error(exc) from exc
        for path, digest in entry.paths.items():
            try:
                check_path(path)
            except PathError as exc:
                raise RecoveryError(f"entry {seq} names an invalid path", path=path) from exc
            expected[path] = ExpectedFile(seq, path, digest, entry.stage)
    return expected


def _restore(store: DirectoryStore, stage: StagedFiles, file: ExpectedFile) -> bool:
    """Restore one path; return whether it was changed."""
    store.installer.remove_temporary(file.path)
    if store.digest_in_place(file.path) == file.digest:
        return False
    store.installer.install(
        InstallStep(file.path, None) if file.digest is None else stage.find(file)
    )
    return True


class StagedFiles:
    """The files in staging/; each pack is opened when an entry needs it."""

    def __init__(self, files: Files, folder: Path) -> None:
        self._files = files
        self._folder = folder
        self._packs: dict[str, dict[tuple[str, bytes], packs.Member]] = {}

    def find(self, file: ExpectedFile) -> InstallStep:
        """Return the step that installs a file, its digest checked. Raises `RecoveryError`."""
        problem = f"entry {file.seq} wrote it, and its bytes are neither in place nor staged"
        if file.stage is None or file.digest is None or not _STAGE.fullmatch(file.stage):
            raise RecoveryError(problem, path=file.path)
        try:
            member = self._members(file.stage)[file.path, file.digest]
            step = InstallStep(file.path, file.digest, self._data(file.stage, member), member.blob)
            known = self._digest_of(step)
        except (PackError, FileNotFoundError, EOFError, KeyError) as exc:
            raise RecoveryError(problem, path=file.path) from exc
        if known != file.digest:
            raise RecoveryError(f"{problem} (the staged bytes are damaged)", path=file.path)
        return step

    def _members(self, name: str) -> dict[tuple[str, bytes], packs.Member]:
        if name not in self._packs:
            with self._open(f"{name}.pack") as handle:
                found = packs.read_index(self._files, handle)
            self._packs[name] = {(member.path, member.digest): member for member in found}
        return self._packs[name]

    def _data(self, name: str, member: packs.Member) -> bytes:
        if member.blob is not None:
            return b""
        with self._open(f"{name}.pack") as handle:
            return self._files.read_exactly(handle, member.size, member.offset)

    def _digest_of(self, step: InstallStep) -> bytes:
        if step.blob is None:
            return digest_of(step.path, step.data)
        with self._open(f"{step.blob}.ct") as handle:
            offsets = range(0, self._files.size(handle), PIECE_SIZE)
            return ciphertext_digest(self._files.read_at(handle, PIECE_SIZE, at) for at in offsets)

    def _open(self, name: str) -> AbstractContextManager[int]:
        return self._files.closing(self._files.open_read(self._folder / name))


def _remove_leftovers(store: DirectoryStore) -> int:
    """Remove all staged files: everything that entries need from them is durable in place."""
    leftovers = [path for path in store.staging.iterdir() if _OURS.fullmatch(path.name)]
    for path in leftovers:
        store.files.remove(path)
    return len(leftovers)
