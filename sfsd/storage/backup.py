"""Backups of a root that may be served meanwhile.

A backup is a whole root: settings, keys, the log up to one signed checkpoint, and exactly the files
that the log says are there at that size. The checkpoint covers only entries whose effects are in
place, so nothing has to stop. Files are copied while others change. Whatever later entries touched
is copied again, until every file is the one that the log names at the newest checkpoint. A file
that does not match, and that no later entry names, is damaged: it is reported and left out.

Files that no entry touched since the last backup in the same folder become hard links to it. Those
never lead into the root itself, so damage there does not reach a backup. A backup is made under a
temporary name, compared with its log by `sfsd.storage.fsck`, synced, and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from protocol.buffers.file_status import exists, file_status, is_file
from protocol.codec import merkle
from protocol.codec.errors import LogError
from protocol.codec.values import Value
from protocol.log import auditlog
from protocol.records.records import ServerStatement
from sfsd import server_keys
from sfsd.errors import CommandError, JournalDamagedError, PathError
from sfsd.fs.files import NO_DESCRIPTORS, Files, naming
from sfsd.log.cut import check_no_cut
from sfsd.log.verify import signed_checkpoint
from sfsd.storage.change import check_path, is_ciphertext
from sfsd.storage.fsck import Finding, Fsck

LOCK: Final = ".lock"
"""File in a folder of backups that the command which changes it holds locked."""
_CHUNK: Final = 1 << 20
_NAME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z")
_TEMPORARY: Final = re.compile(rf"\.(making|removing)-{_NAME.pattern}")
_CUT: Final = re.compile(r"cut-\d{1,16}\.(jsonl|checkpoint)")
_WAIT_SECONDS: Final = 60.0
"""The longest time without a new checkpoint while logged changes are not in place."""
_WAIT_PAUSE: Final = 0.02
_MAX_PASSES: Final = 10_000
_READ: Final[int] = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")
)
"""Follows no link, and does not wait for a program at the other end of a pipe."""
SETTINGS: Final = "sfsd.toml"
"""File of every root, and so of every backup."""
_Wanted = tuple[bytes | None, int]
"""Digest of a path, None if it is to be absent, and the seq of the entry that says so."""


class BackupResult(Value):
    """A finished backup in the folder `path`: the state after `entries` entries of the log, in
    `files` files below store/users. `copied` of them, with `size` bytes, were copied from the root;
    the others are links to the last backup. `damaged` are the differences from the log."""

    path: str
    entries: int
    files: int
    copied: int
    size: int
    damaged: tuple[Finding, ...]


def whole_backups(folder: Path) -> list[str]:
    """Return the names of the finished backups in `folder`, the oldest first. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(
            one.name
            for one in entries
            if _NAME.fullmatch(one.name) and one.is_dir(follow_symlinks=False)
        )


def remove_old(folder: Path, keep: int) -> list[str]:
    """Remove all but the newest `keep` backups in `folder`; return the names of those removed. A
    kill leaves none that is half there. Raises OSError."""
    files, removed = Files(), whole_backups(folder)[:-keep]
    for name in removed:
        gone = folder / f".removing-{name}"
        files.replace(folder / name, gone)
        files.sync_folder(folder)
        shutil.rmtree(gone)
    return removed


def remove_leftovers(folder: Path) -> None:
    """Remove what killed commands left in `folder`; the caller holds its lock. Raises OSError."""
    with os.scandir(folder) as entries:
        found = [one.path for one in entries if _TEMPORARY.fullmatch(one.name)]
    for path in found:
        shutil.rmtree(path)


class SourceError(Exception):
    """A file of the root cannot be copied: `problem` is (kind, text) of a `Finding`."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.problem = kind, text


class _GrowingLog:
    """Copies a log up to its checkpoints, entry by entry, and checks that it chains."""

    def __init__(self, source: Path, target: Path) -> None:
        """`target` is in the backup, and made by `advance`. Raises OSError."""
        self._reader = source.open("rb")
        self._target = target
        self._prev = auditlog.GENESIS
        self.size = 0

    def advance(self, size: int, each: Callable[[auditlog.LogEntry], None]) -> None:
        """Copy the entries up to `size`, which are signed. Raises `JournalDamagedError`."""
        with self._target.open("ab") as writer:
            lines = self._lines(size - self.size, writer.write)
            try:
                for entry in auditlog.verify_chain(lines, first=self.size, prev=self._prev):
                    each(entry)
                    self.size, self._prev = entry.seq + 1, entry.hash
            except LogError as exc:
                raise JournalDamagedError.from_log_error(exc) from exc
        if self.size < size:
            raise JournalDamagedError(
                "covered by the signed checkpoint, but missing", seq=self.size
            )

    def _lines(self, count: int, write: Callable[[bytes], object]) -> Iterator[bytes]:
        for _ in range(count):
            line = self._reader.readline(auditlog.MAX_LINE + 1)
            if not line.endswith(b"\n"):
                return
            write(line)
            yield line[:-1]

    def named_later(self) -> set[str]:
        """Return the paths that entries past the copied ones name, as far as they are written."""
        start, found = self._reader.tell(), set[str]()
        try:
            while (line := self._reader.readline(auditlog.MAX_LINE + 1)).endswith(b"\n"):
                found.update(auditlog.parse(line[:-1]).paths)
        except LogError:
            pass  # an entry that is undone, or damage: the next checkpoint tells
        finally:
            # Else the buffer would still have bytes that the daemon replaces.
            self._reader.seek(0, os.SEEK_END)
            self._reader.seek(start)
        return found

    def close(self) -> None:
        self._reader.close()


class _LastBackup(Value):
    """The backup whose files may be linked: its store, and its number of entries."""

    users: Path
    entries: int
    hash: bytes

    @classmethod
    def find(cls, folder: Path, server: bytes) -> _LastBackup | None:
        """Return the newest backup in `folder`, None if there is none whose log ends in an entry.
        Raises `CommandError` if it is one of another server than that with this public key."""
        names = whole_backups(folder)
        if not names:
            return None
        newest = folder / names[-1]
        if _server_of(newest) != server:
            raise CommandError(
                f"{folder} has backups of another server",
                "name a folder of its own for each server",
                exit_code=2,
            )
        with (newest / "logs" / "audit.jsonl").open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - auditlog.MAX_LINE - 1))
            line = file.read().removesuffix(b"\n").rpartition(b"\n")[2]
        try:
            entry = auditlog.parse(line)
        except LogError:
            return None  # damaged: everything is copied again
        return cls(newest / "store" / "users", entry.seq + 1, entry.hash)


class Backup:
    """One backup of `root` into the folder `target`, which the caller holds locked."""

    def __init__(
        self,
        root: Path,
        target: Path,
        *,
        read_data: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`read_data` reads every file of the root and of the last backup, also those that did not
        change since."""
        self._root = root
        self._users = root / "store" / "users"
        self._target = target
        self._read_data = read_data
        self._clock = clock
        self._files = Files.below(target)
        self._found: _LastBackup | None = None
        self._last: _LastBackup | None = None  # once the log is known to continue that one
        self._wanted: dict[str, _Wanted] = {}
        self._damaged: dict[str, Finding] = {}
        self._made: set[Path] = set()
        self._copied: dict[str, int] = {}

    def run(self) -> BackupResult:
        """Make the backup; nothing of it is left after an error.

        Raises `CommandError` if the root is in a state that cannot be copied, `JournalDamagedError`
        for a damaged log, `ConfigError`, and OSError if the target cannot be written.
        """
        check_no_cut(self._root / "logs")
        name = datetime.fromtimestamp(self._clock(), UTC).isoformat("T", "milliseconds")
        name = name.replace(":", "-").replace("+00-00", "Z")
        making, made = self._target / f".making-{name}", self._target / name
        self._files.make_folder(making)
        try:
            with syncing(self._files, making):
                entries = self._copy_all(making)
                check = Fsck(making)
                found = {one.path: one for one in left_over(check)}
            self._files.replace(making, made)
            self._files.sync_folder(self._target)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        damaged = found | self._damaged
        return BackupResult(
            path=str(made),
            entries=entries,
            files=check.checked,
            copied=len(self._copied),
            size=sum(self._copied.values()),
            damaged=tuple(damaged[path] for path in sorted(damaged)),
        )

    def _copy_all(self, making: Path) -> int:
        """Copy the root; return the number of entries of the copied log."""
        self._copy_small(making)
        self._found = _LastBackup.find(self._target, _server_of(making))
        entries = self._copy_store(making)
        self._files.write_new(making / "staging" / "applied", b"%d\n" % (entries - 1))
        return entries

    def _copy_small(self, making: Path) -> None:
        """Copy settings, keys, and what is left of former cuts of the log."""
        names = [SETTINGS]
        names += [f"keys/{one.name}" for one in (self._root / "keys").iterdir() if is_file(one)]
        names += [
            f"logs/{one.name}"
            for one in (self._root / "logs").iterdir()
            if _CUT.fullmatch(one.name)
        ]
        for folder in ("keys", "logs", "staging", "store", "store/users"):
            self._files.make_folder(making / folder)
        for name in names:
            self._files.write_new(making / name, (self._root / name).read_bytes())

    def _copy_store(self, making: Path) -> int:
        """Copy the log and the store until both agree; return the number of entries."""
        users = making / "store" / "users"
        log = _GrowingLog(self._root / "logs" / "audit.jsonl", making / "logs" / "audit.jsonl")
        with contextlib.closing(log):
            until = time.monotonic() + _WAIT_SECONDS
            for _ in range(_MAX_PASSES):
                if self._advance(making, log):
                    until = time.monotonic() + _WAIT_SECONDS
                self._capture(users)
                if self._wanted:
                    # Read after the files: an entry is written before its files are replaced.
                    later = log.named_later()
                    for path in self._wanted.keys() - later:
                        self._report(path, users)
                if not self._wanted:
                    return log.size
                if time.monotonic() > until:
                    raise CommandError(
                        "the log has entries that are not in place, and none gets there",
                        "start the daemon; `sfsd status` shows what is wrong",
                        exit_code=1,
                    )
                time.sleep(_WAIT_PAUSE)
        raise CommandError(
            "one file changes faster than it can be copied", "try again later", exit_code=1
        )

    def _advance(self, making: Path, log: _GrowingLog) -> bool:
        """Take the entries up to the newest checkpoint; return whether there are new ones."""
        note = (self._root / "logs" / "checkpoint").read_bytes()
        self._files.replace_soon(making / "logs" / "checkpoint", note)
        size = signed_checkpoint(making).size
        if size < log.size or not size:
            raise CommandError(
                "logs/checkpoint was replaced by an older one",
                "`sfsd audit verify` shows what is wrong",
                exit_code=CommandError.DAMAGED,
            )
        grown = size > log.size
        log.advance(size, self._take)
        return grown

    def _take(self, entry: auditlog.LogEntry) -> None:
        """Note what the next entry says of each path."""
        for path, digest in entry.paths.items():
            try:
                check_path(path)
            except PathError as exc:
                raise JournalDamagedError(str(exc), seq=entry.seq) from exc
            self._wanted[path] = digest, entry.seq
            self._damaged.pop(f"store/users/{path}", None)
        found = self._found
        if found is not None and entry.seq + 1 == found.entries and entry.hash == found.hash:
            self._last = found  # otherwise this root was restored, or its log was cut

    def _capture(self, users: Path) -> None:
        """Copy what is wanted; afterwards `_wanted` has what does not match the log."""
        left = dict[str, _Wanted]()
        # Sidecars first: they change more often than ciphertext, which only a purge removes.
        for path in sorted(self._wanted, key=lambda one: (is_ciphertext(one), one)):
            digest, seq = self._wanted[path]
            target = users / path
            self._files.remove(target)
            self._copied.pop(path, None)
            if digest is not None and not self._copy(path, digest, seq, target):
                left[path] = digest, seq
        self._wanted = left

    def _copy(self, path: str, digest: bytes, seq: int, target: Path) -> bool:
        """Copy one file, or link it; return whether the file of the root matches the log."""
        if target.parent not in self._made:
            self._files.make_folder(target.parent)
            self._made.add(target.parent)
        last = self._last_copy(path, seq)
        if last is None:
            return self._transfer(path, digest, target)
        unchanged = not self._read_data and self._seems_unchanged(path, last)
        # The ciphertext in a backup was compared with the log when it was copied.
        if not (unchanged and is_ciphertext(path)) and _digest_at(last, path) != digest:
            return self._transfer(path, digest, target)
        self._files.link_or_copy(last, target)
        return unchanged or self._transfer(path, digest, None)

    def _last_copy(self, path: str, seq: int) -> Path | None:
        """Return the file of the last backup that is what entry `seq` wrote, if it is there."""
        if self._last is None or seq >= self._last.entries:
            return None
        status = file_status(self._last.users / path, follow=False)
        there = status is not None and stat.S_ISREG(status.st_mode)
        return self._last.users / path if there else None

    def _seems_unchanged(self, path: str, last: Path) -> bool:
        """Return whether the file of the root has size and time of its copy."""
        try:
            now = os.stat(self._users / path)
        except OSError:
            return False
        before = os.stat(last)
        return (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)

    def _transfer(self, path: str, digest: bytes, target: Path | None) -> bool:
        """Read the file of the root, and copy it unless `target` is None; return whether it has
        this digest. A copy that has not is removed."""
        try:
            found, size = copy_file(self._files, self._users / path, target, path)
        except SourceError:
            return False
        if found != digest:
            if target is not None:
                self._files.remove(target)
            return False
        if target is not None:
            self._copied[path] = size
        return True

    def _report(self, path: str, users: Path) -> None:
        """Note that a file of the root is damaged, and why."""
        digest, seq = self._wanted[path]
        name = f"store/users/{path}"
        try:
            if copy_file(self._files, self._users / path, None, path)[0] == digest:
                return  # a start of the daemon has put it in place meanwhile
            kind, text = "changed", "the content is not what was written"
        except SourceError as exc:
            kind, text = exc.problem
        del self._wanted[path]
        if exists(users / path):
            text += "; the backup has the copy of the last one"
        self._damaged[name] = Finding(kind, name, seq, repaired=False, text=text)


@contextlib.contextmanager
def syncing(files: Files, folder: Path) -> Iterator[None]:
    """At the end of the block, write everything below `folder` to the disk. Raises OSError."""
    if sys.platform == "linux":
        disk = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # opened before: see `Files.sync_all`
        with files.closing(disk):
            yield
            if files.sync_all(disk):
                return
    else:
        yield
    _sync_tree(files, folder)


def _sync_tree(files: Files, folder: Path) -> None:
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            with files.closing(files.open_update(Path(path) / name)) as handle:
                files.sync(handle)
        files.sync_folder(Path(path))


def left_over(check: Fsck) -> list[Finding]:
    """Return the damage that a check of a copy finds. Raises `JournalDamagedError` if it is in the
    log, because nothing else can be compared then."""
    found = [one for one in check.run() if not one.repaired and one.kind != "waiting"]
    for one in found:
        if one.kind == "log":
            raise JournalDamagedError(one.text, seq=one.seq or 0)
    return found


def _server_of(root: Path) -> bytes:
    """Return the public key of the server of a root, 32 bytes. Raises `ConfigError`."""
    body, _ = server_keys.read_server_statement(root / "keys")
    return ServerStatement.parse(body).server_pub


def _digest_at(path: Path, name: str) -> bytes | None:
    """Return the digest of a file as the log has it for `name`, None if it cannot be read."""
    try:
        return copy_file(Files(), path, None, name)[0]
    except SourceError:
        return None


def copy_file(files: Files, source: Path, target: Path | None, name: str) -> tuple[bytes, int]:
    """Copy a file that is called `name` in the log, with its time; return (digest, size in bytes).
    Only read it if `target` is None. Raises `SourceError` if the source cannot be read, OSError if
    the target cannot be written."""
    with contextlib.ExitStack() as opened:
        try:
            reader = opened.enter_context(files.closing(os.open(source, _READ)))
            status = os.fstat(reader)
            if not stat.S_ISREG(status.st_mode):
                raise SourceError("changed", "it is not a file")
        except FileNotFoundError as exc:
            text = "the file is in the log but not on the disk"
            raise SourceError("missing", text) from exc
        except OSError as exc:
            raise _unreadable(exc) from exc
        writer = (
            None if target is None else opened.enter_context(files.closing(files.open_new(target)))
        )
        pieces, plain, size = merkle.PieceHasher(), hashlib.sha256(), 0
        update = pieces.update if is_ciphertext(name) else plain.update
        while True:
            try:
                data = files.read_at(reader, _CHUNK, size)
            except OSError as exc:
                if target is not None:
                    files.remove(target)
                raise _unreadable(exc) from exc
            if not data:
                break
            update(data)
            size += len(data)
            if writer is not None and target is not None:
                with naming(target):
                    files.write_all(writer, data)
    if target is not None:
        os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
    return (pieces.finish() if is_ciphertext(name) else plain.digest()), size


def _unreadable(exc: OSError) -> SourceError | OSError:
    if exc.errno in NO_DESCRIPTORS:
        return exc
    return SourceError("unreadable", f"the file cannot be read: {exc.strerror}")
