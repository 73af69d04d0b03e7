"""Crash recovery at a start: the store becomes what the log says.

Entries past staging/applied may not be in place, or not durably. The last of them that touches a
path decides its content: a file in place with the right digest stays, any other is installed from
the stage. If an entry's bytes are in neither place and do not follow from other files, the report
names them, and `sfsd.storage.set_aside` makes the changes with which the root is served without
them. A file that is in place and cannot be read is not gone: it stays, and requests for it fail
until it can be read. The rest of the stage belongs to changes that were never committed, and is
removed. A second start changes nothing.

A disk that takes no more data does not prevent a start. If files are in place, only staging/applied
stays as it was, and the next start compares the same entries again. If files cannot be put in
place, even with the space of logs/reserve, `DirectoryStore.failed` is set, and only metadata is
served, until there is room and the daemon opens the root again.
"""

from __future__ import annotations

import logging
import re
from contextlib import AbstractContextManager
from pathlib import Path

from protocol.buffers.file_status import exists, is_folder
from protocol.codec.errors import LogError
from protocol.codec.merkle import PIECE_SIZE
from protocol.codec.values import Value
from protocol.log import auditlog
from sfsd.errors import (
    JournalDamagedError,
    PackError,
    PathError,
    RecoveryError,
    StoreBusyError,
    StoreFailedError,
    StoreFullError,
    StoreRefusedError,
    UnreadableError,
    cut_hint,
)
from sfsd.fs.files import FULL_DISK, NO_DESCRIPTORS, Files, is_damage
from sfsd.log.journal import Journal
from sfsd.storage import packs
from sfsd.storage.change import check_path, ciphertext_digest, digest_of
from sfsd.storage.derive import ExpectedFile, LoggedState, derive_file
from sfsd.storage.install import upload_folders
from sfsd.storage.prepare import InstallStep
from sfsd.storage.store import DirectoryStore

_log = logging.getLogger(__name__)
_STAGE = re.compile(r"[0-9a-f]{32}")
_OURS = re.compile(r"[0-9a-f]{32}\.(ct|pack)|\.applied\.tmp")


class RecoveryReport(Value):
    """Result of a recovery: entries past the mark, files changed, staged files dropped, and the
    files whose bytes are gone, which the caller must set aside."""

    entries: int
    installed: int
    dropped: int
    lost: tuple[ExpectedFile, ...] = ()


def recover(store: DirectoryStore, journal: Journal) -> RecoveryReport:
    """Bring `store` up to the end of `journal`; both were just opened and serve no requests yet.
    Raises `RecoveryError` if the log is shorter than the store, and `JournalDamagedError`."""
    last = journal.next_seq - 1
    if store.installer.applied > last:
        raise RecoveryError(
            f"entry {store.installer.applied} was applied, but the log ends at {last}",
            path="logs/audit.jsonl",
            hint=cut_hint(journal.size),
        )
    expected = _expected_files(store, journal)
    entries = last - store.installer.applied
    restorer = _Restorer(store, journal)
    try:
        installed = sum([restorer.restore(file) for file in expected.values()])
        lost = tuple(restorer.lost)
        if entries:
            left_out = {file.path for file in lost} | restorer.unreadable
            steps = [
                InstallStep(file.path, file.digest)
                for file in expected.values()
                if file.path not in left_out
            ]
            store.installer.sync(steps, ancestors=True)
        if lost:
            # The mark stays, so that a crash before they are set aside repeats this.
            return RecoveryReport(entries, installed, 0, lost)
        if entries:
            _record_applied(store, last)
        return RecoveryReport(entries, installed, _remove_leftovers(store))
    except (OSError, StoreFailedError, StoreRefusedError) as exc:
        code = getattr(exc, "errno", None)
        full = isinstance(exc, StoreFullError) or code in FULL_DISK
        if full and _release_reserve(journal):
            return recover(store, journal)
        store.syncs.record(
            f"recovering the store: {getattr(exc, 'strerror', None) or exc}",
            awaits_room=full or isinstance(exc, StoreBusyError) or code in NO_DESCRIPTORS,
        )
        return RecoveryReport(entries, 0, 0)


def _release_reserve(journal: Journal) -> bool:
    """Free the space of logs/reserve; return whether there is more now."""
    before = journal.full
    journal.reserve.release()
    return journal.full != before


def _record_applied(store: DirectoryStore, last: int) -> None:
    """Write staging/applied if the disk takes it. Everything is durable in place already, so an
    older mark costs the next start some work and nothing else. Raises OSError, StoreFailedError."""
    try:
        store.installer.write_applied(last)
    except (OSError, StoreBusyError) as exc:
        if isinstance(exc, OSError) and exc.errno not in FULL_DISK | NO_DESCRIPTORS:
            raise
        why = exc.strerror if isinstance(exc, OSError) else exc
        _log.warning("staging/applied not written, the next start takes longer: %s", why)


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


class _Restorer:
    """Restores paths one by one; `lost` has those whose bytes are gone, `unreadable` those that
    stay as they are."""

    def __init__(self, store: DirectoryStore, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._stage = StagedFiles(store.files, store.staging, store.users)
        self._logged: LoggedState | None = None
        self.lost: list[ExpectedFile] = []
        self.unreadable = set[str]()

    def restore(self, file: ExpectedFile) -> bool:
        """Restore one path; return whether it was changed. Raises OSError, StoreBusyError."""
        store, digest = self._store, file.digest
        store.installer.remove_temporary(file.path)
        problem: UnreadableError | None = None
        try:
            if store.digest_in_place(file.path) == digest:
                return False
        except UnreadableError as exc:
            problem = exc
        if digest is None:
            store.installer.install(InstallStep(file.path, None))
            return True
        try:
            step = self._stage.find(file)
        except RecoveryError:
            if derive_file(store.files, store.users, self._read_log(), file.path, digest):
                return True
            if problem is None:
                self.lost.append(file)
            else:
                _log.error("entry %d: it stays as it is: %s", file.seq, problem)
                self.unreadable.add(file.path)
            return False
        store.installer.install(step)
        return True

    def _read_log(self) -> LoggedState:
        if self._logged is None:
            self._logged = LoggedState(self._journal.size)
            for seq in range(self._journal.size):
                self._logged.apply(self._journal.entry(seq))
        return self._logged


class StagedFiles:
    """The files in staging/; each pack is opened when an entry needs it."""

    def __init__(self, files: Files, folder: Path, users: Path) -> None:
        self._files = files
        self._folder = folder
        self._uploads = upload_folders(users, folder)
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
        except OSError as exc:
            if not is_damage(exc):
                raise
            raise RecoveryError(f"{problem} (the disk cannot read them)", path=file.path) from exc
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
        name = f"{step.blob}.ct"
        folder = next((one for one in self._uploads if exists(one / name)), self._folder)
        with self._files.closing(self._files.open_read(folder / name)) as handle:
            offsets = range(0, self._files.size(handle), PIECE_SIZE)
            return ciphertext_digest(self._files.read_at(handle, PIECE_SIZE, at) for at in offsets)

    def _open(self, name: str) -> AbstractContextManager[int]:
        return self._files.closing(self._files.open_read(self._folder / name))


def _remove_leftovers(store: DirectoryStore) -> int:
    """Remove all staged files: everything that entries need from them is durable in place. A pack
    in a spare file becomes a spare file again; its inode would go to another program. A ciphertext
    must not: it may be a second name of an installed file."""
    folders = [one for one in upload_folders(store.users, store.staging) if is_folder(one)]
    found = [path for folder in folders for path in folder.iterdir()]
    leftovers = [path for path in found if _OURS.fullmatch(path.name)]
    for path in leftovers:
        if path.suffix != ".pack" or not store.pack_spares.give_back(path):
            store.files.remove(path)
    return len(leftovers)
