"""The log file: the commit point of everything the daemon does.

A group of entries is one write and one sync of logs/audit.jsonl (`logfile` decides what a failure
leaves); an entry counts once that sync returned. Beside it stand logs/checkpoint, the last signed
note, and logs/tree, a cache.

A start reads the lines past the cache's mark (`logreplay`), and of those before it only the last:
the mark's root is checked against the checkpoint. `verify_before_mark` reads the others, in the
background.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from protocol.codec import merkle
from protocol.codec.errors import LogError
from protocol.codec.values import Value
from protocol.log import auditlog, checkpoint
from protocol.log.auditlog import EntryDraft, LogEntry
from protocol.records.signatures import SigningKey
from protocol.wire.messages.base import Receipt
from sfsd.errors import (
    EntryTooLongError,
    JournalDamagedError,
    JournalError,
    JournalFailedError,
    JournalFullError,
    JournalRangeError,
    JournalUnreadableError,
)
from sfsd.fs.files import Files
from sfsd.log import replay
from sfsd.log.file import RESERVE_SIZE, DiskReserve, LogFile
from sfsd.log.proofs import Consistency, Inclusion, ProofCache
from sfsd.log.replay import NO_ENTRY, AccountHead, LogState
from sfsd.log.tree import MAX_ACCOUNTS, LogTree, TreeMark

_log = logging.getLogger(__name__)
_MARK_EVERY = 4096
"""Lines between marks: what a start has to read again at most, but for a last group."""


class AppendedEntry(Value):
    """One durable entry: its seq, its hash (32 bytes) and its line without newline."""

    seq: int
    hash: bytes
    line: bytes


def now() -> datetime:
    return datetime.now(UTC)


class Journal:
    """The log of one root. One thread appends; any thread reads, proves and asks for receipts."""

    def __init__(
        self,
        folder: Path,
        key: SigningKey,
        origin: str,
        *,
        files: Files | None = None,
        clock: Callable[[], datetime] = now,
        reserve: int = RESERVE_SIZE,
    ) -> None:
        """Open the log in `folder`, verify what must be and cut what is torn.

        Raises `JournalDamagedError` with the first seq that is not what was signed, or OSError.
        `reserve` is the size of logs/reserve in bytes.
        """
        self._folder = folder
        self._key = key
        self._origin = origin
        self._files = files or Files()
        self._clock = clock
        self._failed: str | None = None
        self._signing = threading.Lock()
        self._signed: tuple[int, bytes] | None = None
        self._recent: dict[int, bytes] = {}
        self._files.make_folder(folder)
        self._reserve = DiskReserve(folder / "reserve", reserve, self._files)
        self._file = LogFile(folder / "audit.jsonl", self._files)
        self._tree = LogTree(folder / "tree", self._files)
        try:
            verifier = checkpoint.Verifier(origin, key.public)
            signed = replay.stored_checkpoint(folder / "checkpoint", verifier)
            found = replay.replay(self._file, self._tree, signed)
            self._file.truncate(found.state.end)
            self._files.sync_folder(folder)
        except (JournalError, OSError):
            self._close_files()
            raise
        self._proofs = ProofCache(self._tree)
        self._state, self._accounts = found.state, found.heads
        self._marked = self._trusted = found.trusted
        self.refill_reserve()

    # Appending: the committer's thread only.

    @property
    def next_seq(self) -> int:
        """The seq of the next entry: how many there are."""
        return self._state.size

    size = next_seq

    @property
    def failed(self) -> str | None:
        """Why nothing is appended any more, or None. Then no download may be served either."""
        return self._failed

    @property
    def full(self) -> bool:
        """Whether the reserve is spent: only what frees or reads should be asked for now."""
        return not self._reserve.held

    def account(self, user: str) -> AccountHead:
        """How many entries belong to `user`, and the last one's hash."""
        return self._accounts.get(user, NO_ENTRY)

    def append(self, drafts: Sequence[EntryDraft]) -> list[AppendedEntry]:
        """Make `drafts` the next entries, in order, in one write and one sync; all or none.

        A draft's `stage` and `detail["paths"]` are the committer's to fill; `detail["accounts"]` is
        filled here. Raises `EntryTooLongError` (nothing written), `JournalRefusedError` (taken
        back; `JournalFullError` for a full disk), `JournalFailedError` (from now on always).
        """
        if self._failed is not None:
            raise JournalFailedError(self._failed)
        appended, heads = self._encode(drafts)
        if not appended:
            return []
        try:
            self._file.append(b"".join(item.line + b"\n" for item in appended))
        except JournalFullError:
            self._reserve.release()
            raise
        except JournalFailedError as exc:
            self._failed = str(exc)
            raise
        self._accounts |= heads
        self._advance(appended)
        return appended

    def _encode(
        self, drafts: Sequence[EntryDraft]
    ) -> tuple[list[AppendedEntry], dict[str, AccountHead]]:
        time = self._clock().strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        prev, heads, appended = self._state.hash, dict[str, AccountHead](), list[AppendedEntry]()
        salts = os.urandom(auditlog.SALT_SIZE * len(drafts))
        for index, draft in enumerate(drafts):
            befores = {user: heads.get(user) or self.account(user) for user in draft.accounts}
            accounts = {user: (count, last.hex()) for user, (count, last) in befores.items()}
            try:
                line, prev = auditlog.encode(
                    draft,
                    seq=self._state.size + index,
                    time=time,
                    salt=salts[index * auditlog.SALT_SIZE : (index + 1) * auditlog.SALT_SIZE],
                    detail={**draft.detail, "accounts": accounts},
                    prev=prev,
                )
            except LogError as exc:
                raise EntryTooLongError(str(exc), index=index) from exc
            heads |= {user: (count + 1, prev) for user, (count, _) in befores.items()}
            appended.append(AppendedEntry(self._state.size + index, prev, line))
        return appended, heads

    def _advance(self, appended: Sequence[AppendedEntry]) -> None:
        """Durable lines become part of the log. Readers see the new state last."""
        # For the receipts that are asked for next.
        self._recent = {item.seq: item.line for item in appended}
        end = self._state.end
        for item in appended:
            self._tree.append(item.hash, end)
            end += len(item.line) + 1
        self._state = LogState(appended[-1].seq + 1, end, appended[-1].hash, self._tree.root())

    # Behind: also the committer's, when it has time.

    def save_mark(self, *, force: bool = False) -> None:
        """Save a mark if many lines came since the last, so that the next start is short."""
        state = self._state
        if self._failed or state.size - self._marked.size < (1 if force else _MARK_EVERY):
            return
        if len(self._accounts) > MAX_ACCOUNTS:
            return  # starts read the whole log; nothing else is lost
        heads = sorted(self._accounts.items())
        accounts = tuple((user, count, last) for user, (count, last) in heads)
        note = self.checkpoint()
        try:
            with self._signing:
                self._files.replace_durable(self._folder / "checkpoint", note)
            self._tree.save_mark(TreeMark(state.size, state.end, state.hash, state.root, accounts))
        except OSError as exc:
            _log.warning("logs/tree could not be saved, the next start is longer: %s", exc.strerror)
        self._marked = state  # saved or not, the next try is that many lines away

    def refill_reserve(self) -> None:
        """Lay the reserve on the disk if it is not there and there is room."""
        self._reserve.keep()

    def release_reserve(self) -> None:
        """Give the reserve's room to the disk, which the store has found full."""
        self._reserve.release()

    def close(self) -> None:
        """Save a mark and let go of the files."""
        self.save_mark(force=True)
        self._close_files()

    def _close_files(self) -> None:
        self._tree.close()
        self._file.close()

    # Reading and proving: any thread. What cannot be read raises
    # `JournalUnreadableError`.

    def line(self, seq: int) -> bytes:
        """Line `seq` without its newline. Raises `JournalRangeError`."""
        state = self._state
        if not 0 <= seq < state.size:
            raise JournalRangeError(f"no entry {seq} in a log of {state.size}")
        if seq + 1 == state.size:
            return self._file.read(self._start(seq, state), state.end - 1)
        start, following = self._starts(seq, 2)
        return self._file.read(start, following - 1)

    def entry(self, seq: int) -> LogEntry:
        """Entry `seq`. Raises `JournalRangeError`, or `JournalDamagedError`."""
        try:
            return auditlog.parse(self.line(seq), seq=seq)
        except LogError as exc:
            raise JournalDamagedError.from_log_error(exc) from exc

    def paths(self, seq: int) -> dict[str, bytes | None]:
        """`Entry.paths` of entry `seq`, at half of what the whole entry takes. Raises as `entry`.

        A line that the tree has a leaf of is, byte for byte, one that was accepted when it came
        there, and is not judged a second time.
        """
        line = self.line(seq)
        try:
            leaf = merkle.leaf_hash(auditlog.line_hash(line, seq=seq))
        except LogError as exc:
            raise JournalDamagedError.from_log_error(exc) from exc
        if self._proofs.node(0, seq) != leaf:
            return self.entry(seq).paths  # perhaps only the tree is wrong: `verify` mends it
        return auditlog.paths_of(line)

    def lines(self, first: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Lines [first, end) without their newlines; to the present end by default."""
        state = self._state
        end = state.size if end is None else end
        if not 0 <= first <= end <= state.size:
            raise JournalRangeError(f"no entries {first} to {end} in a log of {state.size}")
        return self._file.lines(self._start(first, state), self._start(end, state))

    def checkpoint(self) -> bytes:
        """The signed note of the present, durable size; also kept in logs/checkpoint."""
        return self._sign()[1]

    def root_at(self, size: int) -> bytes:
        """The Merkle root of the first `size` lines. Raises `JournalRangeError`."""
        self._check_size(size)
        return self._proofs.root_at(size)

    def prove(self, what: Inclusion | Consistency) -> tuple[bytes, ...]:
        """A proof of O(log n) hashes. Raises `JournalRangeError`."""
        if isinstance(what, Inclusion):
            self._check_size(what.size)
            if not 0 <= what.index < what.size:
                raise JournalRangeError(f"no entry {what.index} in a log of {what.size}")
        else:
            self._check_size(what.new)
            if not 0 <= what.old <= what.new:
                raise JournalRangeError(f"a log of {what.new} does not continue one of {what.old}")
        return self._proofs.prove(what)

    def receipt(self, seq: int, since: int) -> Receipt:
        """Proof that entry `seq` is logged, from a checkpoint of size `since` on.

        Raises `JournalRangeError` for a `seq` or `since` past the log.
        """
        size, note = self._sign()
        return Receipt(
            line=self._recent.get(seq) or self.line(seq),
            inclusion=self.prove(Inclusion(seq, size)),
            checkpoint=note,
            consistency=self.prove(Consistency(since, size)),
        )

    def verify(self, *, stop: threading.Event | None = None) -> None:
        """Check every line against chain and tree, until `stop` is set.

        A tree that differs from a sound log is mended. Raises `JournalDamagedError` with the first
        seq that is wrong; then nothing is appended any more.
        """
        self._verify(self._state, stop)

    def verify_before_mark(self, *, stop: threading.Event | None = None) -> None:
        """`verify` what the start took on trust from its mark; for the background."""
        self._verify(self._trusted, stop)

    def _verify(self, upto: LogState, stop: threading.Event | None) -> None:
        try:
            differences = replay.compare(self._file, self._tree, upto, stop or threading.Event())
            for difference in differences:
                self._tree.repair(*difference)
                self._proofs.forget()
        except JournalDamagedError as exc:
            self._failed = str(exc)
            raise
        except OSError as exc:
            raise JournalError(f"logs/tree cannot be read or mended: {exc.strerror}") from exc

    def _sign(self) -> tuple[int, bytes]:
        with self._signing:
            state = self._state
            if self._signed is None or self._signed[0] != state.size:
                note = checkpoint.sign(self._key, self._origin, state.size, state.root)
                self._signed = (state.size, note)
                try:
                    self._files.replace_soon(self._folder / "checkpoint", note)
                except OSError as exc:
                    # The one stored before still holds; the next start vouches for less.
                    _log.warning("logs/checkpoint could not be replaced: %s", exc.strerror)
            return self._signed

    def _start(self, seq: int, state: LogState) -> int:
        return state.end if seq == state.size else self._starts(seq, 1)[0]

    def _starts(self, seq: int, count: int) -> tuple[int, ...]:
        try:
            return self._tree.offsets(seq, count)
        except (OSError, EOFError) as exc:
            raise JournalUnreadableError("logs/tree cannot be read") from exc

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= self._state.size:
            raise JournalRangeError(f"a log of {self._state.size} was never of size {size}")
