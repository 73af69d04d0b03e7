"""The scrub: compares every file of the store with the log while the daemon serves.

It reads in a thread of its own, at the lowest priority of the disk and at most so many bytes a
second, and never waits in the queues of requests. Where it has come to is kept
(`sfsd.state.scrub_progress`), so a restart continues the pass. Files that users change, rewrap or
remove meanwhile are no damage: a file that differs is read again while publishing is paused.

The table of newest files has the digest of each file but ciphertexts and leaf hashes. Their digest
follows from the signed record in the sidecar beside them.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Final

from protocol.codec import merkle
from protocol.codec.values import Value
from sfsd.errors import DamagedError, JournalError, StoreBusyError
from sfsd.fs.disk_priority import lower_disk_priority
from sfsd.log.path_table import LatestEntry
from sfsd.rules.context import ServerContext
from sfsd.storage.damage import CHANGED, Damage, find_damage
from sfsd.storage.derive import leaves_of
from sfsd.storage.json_files import Sidecar, parse_sidecar_lenient
from sfsd.storage.paths import parse_version_path

JOB: Final = "scrub"
FIRST_PAUSE: Final = 60.0
"""Seconds after the start, so that clients that wait for the daemon come first."""
PAUSE: Final = 60.0
"""Seconds between checks of the clock, and after an error."""
FILE_BYTES: Final = 128 << 10
"""Bytes that opening a file counts as, for the limit on the rate."""
LOGGED: Final = 100
"""Damaged files that a pass prints; the others are only in `sfsd scrub`."""
_SAVE_SECONDS: Final = 10.0
_SLEEP_SECONDS: Final = 0.05
"""Least sleep: waking up for each small file would cost more than reading it."""
_TRIES: Final = 4
_MANY: Final = 20_000
"""Log entries of a user from which the files are listed in 256 parts, to hold the table's lock for
a short time."""
_TOGETHER: Final = 16
_log = logging.getLogger(__name__)


class _StoppedError(Exception):
    """The daemon stops."""


class _Expected(Value):
    """A sidecar that is what the log says, parsed."""

    entry: LatestEntry
    sidecar: Sidecar


class Scrubber:
    """Runs the passes for one root. `run` is a thread; `stop` ends it."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._progress = context.scrub
        self._users = context.store.users
        self._stopping = False
        self._wake = threading.Event()
        self._free_at = 0.0
        self._saved_at = 0.0
        self._logged = 0
        context.scrub.on_want(self._wake.set)

    def stop(self) -> None:
        """End `run` soon, also in the middle of a large file. Any thread."""
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        """Begin or continue a pass whenever one is due, until `stop`."""
        lower_disk_priority()
        try:
            self._run()
        finally:
            if not self._stopping:  # a bug, which the end of the thread prints
                self._context.metrics.failed_jobs[JOB] = "it has ended; restart the daemon"

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._stopping:
            if not self._progress.is_wanted:
                self._wake.wait(pause)
            self._wake.clear()
            pause = PAUSE
            if not self._stopping and self.is_due():
                with contextlib.suppress(_StoppedError):
                    self._try_pass()

    def is_due(self) -> bool:
        """Tell whether a pass is to begin, or to go on."""
        progress, every = self._progress, self._context.config.scrub.every
        if self._context.failed is not None:
            return False  # what a failure has left is for the next start to put in place
        if progress.is_wanted:
            return True
        if not every:
            return False
        # A clock that was set back must not postpone the scrub for years.
        return bool(progress.began) or not 0 <= self._context.now - progress.last_began < every

    def run_pass(self) -> None:
        """Read everything that the pass has not read yet. Raises `JournalError`, StoreBusyError,
        OSError if this process has too much open."""
        progress = self._progress
        if not progress.began:
            progress.begin(self._context.now)
            self._logged = 0
            _log.info("scrub: pass %d begins", progress.number)
        progress.is_wanted = False
        try:
            for path in self._paths_left():
                if self._context.failed is not None:
                    return  # what was logged may not be in place: the next start continues
                self._examine(path)
                self._save()
            progress.finish(self._context.now)
            progress.is_wanted = False
        finally:
            progress.save()
        _log.info(
            "scrub: pass %d has read %d files, %d bytes; %d are damaged",
            progress.number,
            progress.last_files,
            progress.last_bytes,
            len(progress.damaged),
        )

    def _try_pass(self) -> None:
        """Run a pass; after an error the next turn continues it."""
        failed = self._context.metrics.failed_jobs
        try:
            self.run_pass()
        except (JournalError, StoreBusyError, OSError) as exc:
            _log.warning("scrub: interrupted: %s", exc)
            failed[JOB] = str(exc)
        else:
            failed.pop(JOB, None)

    def _save(self) -> None:
        if time.monotonic() >= self._saved_at + _SAVE_SECONDS:
            self._progress.save()
            self._saved_at = time.monotonic()

    # What is to be read.

    def _paths_left(self) -> Iterator[str]:
        """Yield the paths after the last one that was read, in order: users by name, and the paths
        of each."""
        after = self._progress.after
        users = self._context.journal.latest.users()
        first = after.partition("/")[0]
        for user in users[bisect.bisect_left(users, first) :]:
            for prefix in self._prefixes(user):
                paths = [path for path, _ in self._context.journal.latest.below(prefix)]
                yield from (path for path in sorted(paths) if user != first or path > after)

    def _prefixes(self, user: str) -> Iterator[str]:
        """Yield prefixes in whose order, and in order below each, a user's paths are in order."""
        if self._context.journal.count(user) < _MANY:
            yield f"{user}/"
            return
        yield from (f"{user}/{one}" for one in "abcde")
        yield from (f"{user}/files/{number:02x}/" for number in range(256))
        yield from (f"{user}/{chr(one)}" for one in range(ord("g"), ord("z") + 1))

    # One file.

    def _examine(self, path: str) -> None:
        """Read a file, and the ciphertext and leaf hashes beside a sidecar."""
        if parse_version_path(path) is None:
            self._note(path, self._find_small(path))
        else:
            self._examine_version(path)
        self._progress.note_examined(path)
        self._wait_for(FILE_BYTES)

    def _examine_version(self, path: str) -> None:
        """Examine a version. What was read of a ciphertext counts only if the sidecar beside it is
        still of the same content."""
        beside = path.removesuffix(".json")
        for _ in range(_TRIES):
            found = self._read_sidecar(path)
            if not isinstance(found, _Expected):
                self._note(path, found)
                return  # the record in it is not known, and so neither is the ciphertext
            self._note(path, None)
            sidecar, seq = found.sidecar, found.entry.seq
            if sidecar.metadata is None:  # purged or lost
                self._note(f"{beside}.ct", None)
                self._note(f"{beside}.leaves", None)
                return
            leaves: list[bytes] = []
            problem = self._find_in_ciphertext(f"{beside}.ct", sidecar, leaves)
            tail = None
            if problem is None and sidecar.leaves is None:
                tail = self._find_in_leaves(f"{beside}.leaves", leaves)
            if problem is None and tail is None:
                self._note(f"{beside}.ct", None)
                self._note(f"{beside}.leaves", None)
                return
            again = self._read_sidecar(path, paused=True)
            if isinstance(again, _Expected) and _same_content(again.sidecar, sidecar):
                self._note(f"{beside}.ct", None if problem is None else (problem, seq))
                self._note(f"{beside}.leaves", None if tail is None else (tail, seq))
                return
        # It changes all the time: the next pass reads it.

    def _find_in_ciphertext(
        self, path: str, sidecar: Sidecar, leaves: list[bytes]
    ) -> Damage | None:
        """Compare a ciphertext with the record in its sidecar; append its leaf hashes."""
        wanted = sidecar.content_record.segments_root or b""

        def read() -> bytes:
            leaves.extend(leaves_of(self._users / path, self._count))
            return merkle.root(leaves)

        return find_damage(wanted, read)

    def _find_in_leaves(self, path: str, leaves: list[bytes]) -> Damage | None:
        wanted = hashlib.sha256(b"".join(leaves)).digest()
        return find_damage(wanted, lambda: hashlib.sha256(self._read(path)).digest())

    def _find_small(self, path: str) -> tuple[Damage, int] | None:
        """Compare a file with its newest entry; return what is wrong and that entry's seq."""
        entry = self._context.journal.latest.get(path)
        if entry is None or self._small_damage(path, entry) is None:
            return None
        with self._context.store.publishing_paused():
            entry = self._context.journal.latest.get(path)
            if entry is None or self._context.failed is not None:
                return None
            problem = self._small_damage(path, entry)
        return None if problem is None else (problem, entry.seq)

    def _small_damage(self, path: str, entry: LatestEntry) -> Damage | None:
        return find_damage(entry.digest, lambda: hashlib.sha256(self._read(path)).digest())

    def _read_sidecar(
        self, path: str, *, paused: bool = False
    ) -> _Expected | tuple[Damage, int] | None:
        """Return the sidecar if it is what its newest entry wrote, else what is wrong and the seq
        of the entry, or None if there is to be no such file. If it differs, it is read again while
        publishing is paused."""
        store, data = self._context.store, b""

        def read() -> bytes:
            nonlocal data
            data = self._read(path)
            return hashlib.sha256(data).digest()

        with store.publishing_paused() if paused else contextlib.nullcontext():
            entry = self._context.journal.latest.get(path)
            if entry is None or (paused and self._context.failed is not None):
                return None
            problem = find_damage(entry.digest, read)
        if problem is not None:
            return (problem, entry.seq) if paused else self._read_sidecar(path, paused=True)
        try:
            return _Expected(entry, parse_sidecar_lenient(path, data))
        except DamagedError:
            return Damage(CHANGED, "it is what was written, but no sidecar"), entry.seq

    def _read(self, path: str) -> bytes:
        data = (self._users / path).read_bytes()
        self._progress.bytes += len(data)
        return data

    # What comes of it.

    def _note(self, path: str, problem: tuple[Damage, int] | None) -> None:
        """Record what is wrong with a file, and print it unless this pass has."""
        if problem is None:
            self._progress.note_right(path)
            return
        damage, seq = problem
        if not self._progress.note_damage(path, damage.kind, damage.text, seq):
            return  # a restart lets the pass read the last file again
        self._logged += 1
        if self._logged <= LOGGED:
            _log.error("scrub: store/users/%s (entry %d): %s", path, seq, damage.text)
        elif self._logged == LOGGED + 1:
            _log.error("scrub: more files are damaged: see `sfsd scrub`")
        if self._logged <= LOGGED:
            self._progress.save()

    # The limit on the rate.

    def _count(self, size: int) -> None:
        """Count bytes of a ciphertext that were read, and wait as the limit demands."""
        self._progress.bytes += size
        self._wait_for(size)

    def _wait_for(self, size: int) -> None:
        """Wait until so many more bytes may be read. Raises `_StoppedError`."""
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + size / self._context.config.scrub.rate
        while (left := self._free_at - now) >= _SLEEP_SECONDS and not self._stopping:
            self._wake.wait(left)
            if not self._stopping:
                self._wake.clear()  # a pass that runs is what was asked for
            now = time.monotonic()
        if self._stopping:
            raise _StoppedError


def _same_content(one: Sidecar, other: Sidecar) -> bool:
    return (
        one.metadata is not None
        and one.content_record.segments_root == other.content_record.segments_root
    )
