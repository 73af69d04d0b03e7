"""Compares log, sidecars and ciphertext: what the log says the store holds, and what it holds.

The log has the digest of every file that was ever written. So the whole store is checked against it
without any key: no file missing, changed or extra. Data that can be derived from the rest is
repaired on demand; other damage is reported. The root is not in use meanwhile.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from protocol.codec import merkle
from protocol.codec.values import Value
from protocol.log.auditlog import LOST, LogEntry
from sfsd.errors import DamagedError, JournalDamagedError, RecoveryError
from sfsd.fs.descriptors import SyncGuard
from sfsd.fs.files import NO_DESCRIPTORS, Files
from sfsd.log.path_table import FILES, NAME, TableComparison, TableUnreadableError
from sfsd.log.verify import verify_log
from sfsd.storage.change import is_ciphertext
from sfsd.storage.crash_recovery import StagedFiles
from sfsd.storage.damage import UNREADABLE, Damage, find_damage
from sfsd.storage.derive import ExpectedFile, LoggedState, derive_file, leaves_of
from sfsd.storage.install import Installer
from sfsd.storage.json_files import parse_sidecar
from sfsd.storage.set_aside import STRAY, move_aside


class Finding(Value):
    """One difference. `kind` is log, cache, waiting, missing, changed, unreadable, stray or lost;
    `seq` is the entry that last wrote `path` (relative to the root), if there is one."""

    kind: str
    path: str
    seq: int | None
    repaired: bool
    text: str


class Fsck:
    """One check of a root; the caller holds the root's lock."""

    def __init__(self, root: Path, *, read_data: bool = False, repair: bool = False) -> None:
        self._root = root
        self._users = root / "store" / "users"
        self._read_data = read_data
        self._repair = repair
        self._files = Files.below(root)
        self._logged = LoggedState(applied_mark(root, self._files))
        self._stage = StagedFiles(self._files, root / "staging", self._users)
        self._sizes: dict[str, int] = {}
        self._lost: list[str] = []
        self._table: TableComparison | None = None
        self._unlisted: dict[str, str] = {}
        """Folders of the store that cannot be listed, and why."""
        self.checked = 0

    def run(self) -> Iterator[Finding]:
        """Yield every difference. A waiting file is no damage: a start installs it."""
        yield from self._read_table()
        try:
            verified = verify_log(self._root, self._apply)
        except JournalDamagedError as exc:
            yield Finding("log", "logs/audit.jsonl", exc.seq, False, str(exc))
            return
        if verified.cache_differs is not None:
            yield self._drop_cache(verified.cache_differs)
        yield from self._check_table(verified.entries)
        present = set(self._walk())
        wanted = self._logged.waiting.values()
        waiting = {one.path: one.seq for one in wanted if self._waits(one, present)}
        if waiting:
            text = (
                "logged changes are not installed yet; the next start of the daemon installs them"
            )
            yield Finding("waiting", "staging", min(waiting.values()), False, text)
        for path in sorted(present | self._logged.paths.keys(), key=_sidecars_first):
            if path not in waiting:
                self.checked += 1
                yield from self._check(path, there=path in present)
        for path in self._lost:
            text = "this version was marked as lost: its bytes are on no disk"
            yield Finding(LOST, f"store/users/{path}", self._logged.paths[path][1], True, text)

    def _apply(self, entry: LogEntry) -> None:
        self._logged.apply(entry)
        if self._table is not None:
            self._table.apply(entry.seq, entry.paths)

    def _read_table(self) -> Iterator[Finding]:
        """Read the table of the newest entries, to compare it with the log."""
        try:
            self._table = TableComparison(self._root / "logs" / "tree")
        except TableUnreadableError as exc:
            yield self._drop_table(exc.cause, None)

    def _check_table(self, entries: int) -> Iterator[Finding]:
        """Compare the table with the log, up to the mark of the table."""
        seq = None if self._table is None else self._table.first_difference(entries)
        if seq is not None:
            yield self._drop_table("the table of newest files differs from the log", seq)

    def _drop_table(self, text: str, seq: int | None) -> Finding:
        if self._repair:
            for name in FILES:
                self._files.remove(self._root / "logs" / "tree" / name)
        return Finding("cache", NAME, seq, self._repair, f"{text}; a start makes a missing one")

    def _waits(self, want: ExpectedFile, present: set[str]) -> bool:
        """Return whether a start will restore the path, which does not match the log yet."""
        there = want.path in present
        if want.digest is None:
            return there
        try:
            if there and self._matches(want.path, want.digest):
                return False
        except OSError:
            pass  # a start installs what cannot be read, too
        try:
            self._stage.find(want)
        except RecoveryError:
            return False
        return True

    def _walk(self) -> Iterator[str]:
        for folder, folders, names in os.walk(self._users, onerror=self._note_unlisted):
            # Uploads of a store on a disk of its own; no user has such a name.
            folders[:] = [one for one in folders if not one.startswith(".")]
            for name in names:
                yield (Path(folder) / name).relative_to(self._users).as_posix()

    def _note_unlisted(self, exc: OSError) -> None:
        if exc.errno in NO_DESCRIPTORS:
            raise exc
        if isinstance(exc, FileNotFoundError):
            return  # what it held is missing
        folder = Path(os.fsdecode(exc.filename)).relative_to(self._users).as_posix()
        self._unlisted[folder] = exc.strerror or str(exc)

    def _unlisted_folder(self, path: str) -> str | None:
        """Return why the folder of a path cannot be listed, None if it was."""
        for parent in Path(path).parents:
            if (why := self._unlisted.get(parent.as_posix())) is not None:
                return why
        return None

    def _check(self, path: str, *, there: bool) -> Iterator[Finding]:
        known = self._logged.paths.get(path)
        if known is None:
            yield self._move_stray(path)
            return
        digest, seq = known
        if (problem := self._problem(path, digest, there=there)) is None:
            return
        # Only a file with the digest that the log says is put in place.
        repaired = self._repair and derive_file(
            self._files, self._users, self._logged, path, digest
        )
        yield Finding(problem.kind, f"store/users/{path}", seq, repaired, problem.text)

    def _problem(self, path: str, digest: bytes, *, there: bool) -> Damage | None:
        """Return what is wrong with a file that the log says is there. Raises OSError if this
        process has too much open."""
        if not there and (why := self._unlisted_folder(path)) is not None:
            return Damage(UNREADABLE, f"its folder cannot be listed: {why}")
        return find_damage(digest, lambda: self._read_digest(path, digest))

    def _matches(self, path: str, digest: bytes) -> bool:
        """Return whether the file matches the log. Raises OSError."""
        return self._read_digest(path, digest) == digest

    def _read_digest(self, path: str, wanted: bytes) -> bytes:
        """Return the digest of a file. Unless all is read, a ciphertext of the right size counts as
        the `wanted` one. Raises OSError."""
        target = self._users / path
        if is_ciphertext(path):
            size, found = self._sizes.get(path), target.stat().st_size
            if size is not None and found != size:
                return b""
            return merkle.root(leaves_of(target)) if self._read_data else wanted
        data = target.read_bytes()
        found_digest = hashlib.sha256(data).digest()
        if found_digest == wanted and path.endswith(".json"):
            self._note_sidecar(path, data)
        return found_digest

    def _note_sidecar(self, path: str, data: bytes) -> None:
        """Note the size of the ciphertext beside a sidecar, and whether the version is lost."""
        if "/files/" not in path:
            return
        try:
            sidecar = parse_sidecar(path, data)
        except DamagedError:
            return  # it is what was written; the daemon reports it when it reads it
        self._sizes[f"{path.removesuffix('.json')}.ct"] = (
            sidecar.content_record.ciphertext_size or 0
        )
        if sidecar.lost:
            self._lost.append(path)

    def _move_stray(self, path: str) -> Finding:
        text = "the log has no such file"
        if self._repair:
            move_aside(self._files, self._users, path)
            text += f"; moved to {STRAY}/"
        return Finding("stray", f"store/users/{path}", None, self._repair, text)

    def _drop_cache(self, seq: int) -> Finding:
        if self._repair:
            for part in sorted((self._root / "logs" / "tree").iterdir()):
                self._files.remove(part)
        text = "the cached tree differs from the log; a start rebuilds a missing one"
        return Finding("cache", "logs/tree", seq, self._repair, text)


def applied_mark(root: Path, files: Files) -> int:
    """Return the seq up to which every entry is in place; -1 if unknown."""
    users, staging = root / "store" / "users", root / "staging"
    try:
        return Installer(files, SyncGuard(files), users=users, staging=staging).applied
    except OSError:
        return -1


def _sidecars_first(path: str) -> tuple[str, int, str]:
    """Sort a version's sidecar before its ciphertext, whose size the sidecar states."""
    stem, _, kind = path.rpartition(".")
    return (stem, 0 if kind == "json" else 1, kind)
