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
from typing import Final

from protocol.codec import merkle
from protocol.codec.errors import RemoteProtocolError
from protocol.codec.merkle import PIECE_SIZE
from protocol.codec.values import Mutable, Value, field
from protocol.log.auditlog import LogEntry
from protocol.records.records import Statement
from sfsd.errors import DamagedError, JournalDamagedError, RecoveryError
from sfsd.fs.descriptors import SyncGuard
from sfsd.fs.files import Files
from sfsd.log.verify import verify_log
from sfsd.storage.change import is_ciphertext
from sfsd.storage.crash_recovery import ExpectedFile, StagedFiles
from sfsd.storage.install import Installer
from sfsd.storage.json_files import StoredStatement, encode_statements, parse_sidecar

STRAY: Final = "stray"
"""Folder in the root that takes files that the log does not know."""
_EMPTY_DIGEST: Final = hashlib.sha256(b"").digest()
_CHAIN_OPS: Final = frozenset({"enrol", "statement", "rotate-begin", "rotate-finish"})


class Finding(Value):
    """One difference. `kind` is log, cache, waiting, missing, changed or stray; `seq` is the entry
    that last wrote `path` (relative to the root), if there is one."""

    kind: str
    path: str
    seq: int | None
    repaired: bool
    text: str


class _LoggedState(Mutable):
    """The store according to the log: each path's digest and the entry that wrote it, and every
    user's chain. Also what entries past `applied` touch, which may still be in the stage."""

    applied: int
    paths: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    chains: dict[str, list[StoredStatement]] = field(default_factory=dict)
    waiting: dict[str, ExpectedFile] = field(default_factory=dict)

    def apply(self, entry: LogEntry) -> None:
        for path, digest in entry.paths.items():
            if entry.seq > self.applied:
                self.waiting[path] = ExpectedFile(entry.seq, path, digest, entry.stage)
            if digest is None:
                self.paths.pop(path, None)
            else:
                self.paths[path] = (digest, entry.seq)
        if entry.op in _CHAIN_OPS and entry.owner is not None and entry.rec is not None:
            self._link(entry, entry.owner, entry.rec)

    def _link(self, entry: LogEntry, owner: str, body: bytes) -> None:
        try:
            statement = Statement.parse(body)
        except RemoteProtocolError:
            return  # what is derived from it will not have the digest
        link = StoredStatement(body, tuple(entry.sigs.values()), entry.seq, statement)
        self.chains.setdefault(owner, []).append(link)


class Fsck:
    """One check of a root; the caller holds the root's lock."""

    def __init__(self, root: Path, *, read_data: bool = False, repair: bool = False) -> None:
        self._root = root
        self._users = root / "store" / "users"
        self._read_data = read_data
        self._repair = repair
        self._files = Files.below(root)
        self._logged = _LoggedState(self._applied())
        self._stage = StagedFiles(self._files, root / "staging")
        self._sizes: dict[str, int] = {}
        self.checked = 0

    def run(self) -> Iterator[Finding]:
        """Yield every difference. A waiting file is no damage: a start installs it."""
        try:
            verified = verify_log(self._root, self._logged.apply)
        except JournalDamagedError as exc:
            yield Finding("log", "logs/audit.jsonl", exc.seq, False, str(exc))
            return
        if verified.cache_differs is not None:
            yield self._drop_cache(verified.cache_differs)
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

    def _applied(self) -> int:
        """Return the seq up to which every entry is in place; -1 if unknown."""
        syncs, staging = SyncGuard(self._files), self._root / "staging"
        try:
            return Installer(self._files, syncs, users=self._users, staging=staging).applied
        except (OSError, RecoveryError):
            return -1

    def _waits(self, want: ExpectedFile, present: set[str]) -> bool:
        """Return whether a start will restore the path, which does not match the log yet."""
        there = want.path in present
        if want.digest is None:
            return there
        if there and self._matches(want.path, want.digest):
            return False
        try:
            self._stage.find(want)
        except RecoveryError:
            return False
        return True

    def _walk(self) -> Iterator[str]:
        for folder, _, names in os.walk(self._users):
            for name in names:
                yield (Path(folder) / name).relative_to(self._users).as_posix()

    def _check(self, path: str, *, there: bool) -> Iterator[Finding]:
        known = self._logged.paths.get(path)
        if known is None:
            yield self._move_stray(path)
            return
        digest, seq = known
        problem = None if there else "missing"
        if there and not self._matches(path, digest):
            problem = "changed"
        if problem is None:
            return
        repaired = self._repair and self._restore(path, digest)
        what = (
            "the file is in the log but not on the disk"
            if problem == "missing"
            else "the content is not what was written"
        )
        yield Finding(problem, f"store/users/{path}", seq, repaired, what)

    def _matches(self, path: str, digest: bytes) -> bool:
        """Return whether the file matches the log; a ciphertext by its size, unless all is read."""
        target = self._users / path
        if is_ciphertext(path):
            size = self._sizes.get(path)
            if size is not None and target.stat().st_size != size:
                return False
            return not self._read_data or merkle.root(self._leaves(target)) == digest
        data = target.read_bytes()
        if hashlib.sha256(data).digest() != digest:
            return False
        if path.endswith(".json"):
            self._note_size(path, data)
        return True

    def _note_size(self, path: str, data: bytes) -> None:
        if "/files/" not in path:
            return
        try:
            record = parse_sidecar(path, data).content_record
        except DamagedError:
            return  # it is what was written; the daemon reports it when it reads it
        self._sizes[f"{path.removesuffix('.json')}.ct"] = record.ciphertext_size or 0

    def _leaves(self, target: Path) -> list[bytes]:
        leaves = []
        with target.open("rb", buffering=0) as file:
            while piece := file.read(PIECE_SIZE):
                leaves.append(merkle.leaf_hash(piece))
        return leaves or [merkle.leaf_hash(b"")]

    def _restore(self, path: str, digest: bytes) -> bool:
        """Derive the file from the rest; return whether that was possible. Only a file with the
        digest that the log says is put in place."""
        if is_ciphertext(path):
            return self._relink(path, digest)
        derived = None
        if digest == _EMPTY_DIGEST:
            derived = b""  # an inbox note is empty: its name is its content
        elif path.endswith(".leaves"):
            blob = self._users / f"{path.removesuffix('.leaves')}.ct"
            derived = b"".join(self._leaves(blob)) if blob.is_file() else None
        elif path.endswith("/statements.json"):
            chain = self._logged.chains.get(path.partition("/")[0])
            derived = encode_statements(chain) if chain else None
        if derived is None or hashlib.sha256(derived).digest() != digest:
            return False
        self._files.make_folder((self._users / path).parent)
        self._files.replace_durable(self._users / path, derived)
        return True

    def _relink(self, path: str, digest: bytes) -> bool:
        """Link another ciphertext of the same content, common after a restore or a move."""
        for other, (known, _) in self._logged.paths.items():
            if known != digest or other == path or not is_ciphertext(other):
                continue
            source, target = self._users / other, self._users / path
            if source.is_file() and merkle.root(self._leaves(source)) == digest:
                self._files.remove(target)
                self._files.make_folder(target.parent)
                self._files.link_or_copy(source, target)
                self._files.sync_folder(target.parent)
                return True
        return False

    def _move_stray(self, path: str) -> Finding:
        text = "the log has no such file"
        if self._repair:
            target = self._root / STRAY / path
            self._files.make_folder(target.parent)
            self._files.replace(self._users / path, target)
            text += f"; moved to {STRAY}/"
        return Finding("stray", f"store/users/{path}", None, self._repair, text)

    def _drop_cache(self, seq: int) -> Finding:
        if self._repair:
            for part in sorted((self._root / "logs" / "tree").iterdir()):
                self._files.remove(part)
        text = "the cached tree differs from the log; a start rebuilds a missing one"
        return Finding("cache", "logs/tree", seq, self._repair, text)


def _sidecars_first(path: str) -> tuple[str, int, str]:
    """Sort a version's sidecar before its ciphertext, whose size the sidecar states."""
    stem, _, kind = path.rpartition(".")
    return (stem, 0 if kind == "json" else 1, kind)
