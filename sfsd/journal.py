"""The log file: the commit point of everything the daemon does.

A group of entries is one write and one sync of logs/audit.jsonl. What a failure leaves is decided
here, and only here:

- A write that fails or comes up short (a full disk) is taken back: truncate, sync. The group fails,
  the log goes on. If taking it back fails, nothing is appended any more.
- A sync that fails leaves unknown what is on the disk; the kernel may have dropped the pages. So
  nothing is appended any more, and nobody is told that anything was done.
- After a crash the last lines may be torn, or never acknowledged. Up to the stored checkpoint all
  must be as it was signed, or the journal refuses to open. Past it, complete lines that chain are
  kept (their effects are recovered from the stage), the rest is cut.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from protocol import auditlog, checkpoint, merkle
from protocol.auditlog import Draft, Entry
from protocol.errors import CheckpointError, LogError
from protocol.messages.base import Receipt
from protocol.signatures import SigningKey
from sfsd.errors import (
    EntryTooLongError,
    JournalDamagedError,
    JournalFailedError,
    JournalFullError,
    JournalRangeError,
    JournalRefusedError,
)
from sfsd.files import FULL_DISK, Files
from sfsd.logtree import MAX_ACCOUNTS, LogTree, Mark

RESERVE = 16 * 1024 * 1024
"""Bytes kept for a full disk, so that reads, deletes and purges can still be logged."""
_MARK_EVERY = 4096
"""Lines between marks: what a start has to read again at most, but for a last group."""
_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class Appended:
    """One durable entry: its seq, its hash (32 bytes) and its line without newline."""

    seq: int
    hash: bytes
    line: bytes


@dataclass(frozen=True, slots=True)
class Inclusion:
    """That line `index` stands in the log of `size` lines."""

    index: int
    size: int


@dataclass(frozen=True, slots=True)
class Consistency:
    """That the log of `new` lines continues the log of `old`."""

    old: int
    new: int


@dataclass(frozen=True, slots=True)
class _State:
    """What is durable. Replaced whole, so a reader on another thread sees one or the next."""

    size: int
    end: int
    hash: bytes
    root: bytes


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
    ) -> None:
        """Open the log in `folder`, verify what must be and cut what is torn.

        Raises `JournalDamagedError` with the first seq that is not what was signed, or OSError.
        """
        self._folder = folder
        self._key = key
        self._origin = origin
        self._files = files or Files()
        self._clock = clock
        self._failed: str | None = None
        self._accounts: dict[str, tuple[int, bytes]] = {}
        self._signing = threading.Lock()
        self._files.make_folder(folder)
        self._log = self._files.open_append(folder / "audit.jsonl")
        self._tree = LogTree(folder / "tree", self._files)
        self._state = _State(0, 0, auditlog.GENESIS, merkle.EMPTY_ROOT)
        self._signed = (-1, b"")
        self._marked = 0
        self._open()

    # Opening.

    def _open(self) -> None:
        stored = self._stored_checkpoint()
        mark = self._tree.load_mark()
        if mark is not None and not self._fits(mark, stored):
            mark = None  # the cache is not this log's: read it all, and name what is wrong
        if mark is not None:
            self._state = _State(mark.size, mark.offset, mark.hash, mark.root)
            self._accounts = {user: (count, last) for user, count, last in mark.accounts}
        self.marked = self._marked = self._state.size
        self._tree.cut(self._state.size)
        self._replay(stored)
        self._cut_tail()
        self._files.sync(self._log)
        self._files.sync_folder(self._folder)
        self.checkpoint()
        self.keep_reserve()

    def _fits(self, mark: Mark, stored: checkpoint.Checkpoint) -> bool:
        """Whether the log ends its line mark.size - 1 where and how the mark says.

        Marks are written for signed sizes only, so one past the stored checkpoint fits nothing.
        """
        if mark.size > stored.size or mark.offset > self._files.size(self._log):
            return False
        if mark.size == 0:
            return mark.offset == 0
        start = self._tree.offset(mark.size - 1)
        if not start < mark.offset <= start + auditlog.MAX_LINE + 1:
            return False
        line = self._files.read_exactly(self._log, mark.offset - start - 1, start)
        try:
            return auditlog.line_hash(line) == mark.hash
        except LogError:
            return False

    def _stored_checkpoint(self) -> checkpoint.Checkpoint:
        try:
            note = (self._folder / "checkpoint").read_bytes()
        except FileNotFoundError:
            return checkpoint.Checkpoint(self._origin, 0, merkle.EMPTY_ROOT)
        try:
            return checkpoint.verify(note, self._verifier)
        except CheckpointError as exc:
            raise JournalDamagedError(f"the stored checkpoint: {exc}", seq=0) from exc

    def _replay(self, stored: checkpoint.Checkpoint) -> None:
        """Take in the lines past the mark, up to the first that is torn or does not chain."""
        if stored.size == self._state.size:
            self._check_root(stored)
        for line in self._complete_lines(self._state.end):
            seq = self._state.size
            try:
                entry = next(auditlog.verify_chain([line], first=seq, prev=self._state.hash))
            except LogError as exc:
                if seq < stored.size:
                    raise JournalDamagedError(str(exc), seq=seq) from exc
                break
            self._tree.append([(entry.hash, self._state.end)])
            self._note_accounts(self._accounts, entry)
            end = self._state.end + len(line) + 1
            self._state = _State(seq + 1, end, entry.hash, b"")
            if seq + 1 == stored.size:
                self._state = replace(self._state, root=self._tree.root())
                self._check_root(stored)
        if self._state.size < stored.size:
            raise JournalDamagedError("signed for, and not there", seq=self._state.size)
        self._state = replace(self._state, root=self._tree.root())

    def _check_root(self, stored: checkpoint.Checkpoint) -> None:
        if self._state.root != stored.root:
            # The lines chain, so they were rewritten from some entry on; which one, only a copy
            # of the log could tell.
            raise JournalDamagedError("not the log that the checkpoint was signed for", seq=0)

    def _note_accounts(self, heads: dict[str, tuple[int, bytes]], entry: Entry) -> None:
        for user, (count, _) in entry.accounts.items():
            heads[user] = (count + 1, entry.hash)

    def _complete_lines(self, offset: int) -> Iterator[bytes]:
        """Lines from `offset` on that end in a newline; one past MAX_LINE is given as it begins."""
        kept = b""
        while block := self._files.read_at(self._log, _READ, offset + len(kept)):
            kept += block
            *lines, rest = kept.split(b"\n")
            yield from lines
            offset += len(kept) - len(rest)
            kept = rest
            if len(kept) > auditlog.MAX_LINE:
                yield kept
                return

    def _cut_tail(self) -> None:
        if self._files.size(self._log) > self._state.end:
            self._files.truncate(self._log, self._state.end)

    # Appending: the committer's thread only.

    @property
    def next_seq(self) -> int:
        """The seq of the next entry: how many there are."""
        return self._state.size

    size = next_seq

    @property
    def failed(self) -> str | None:
        """Why nothing is appended any more, or None."""
        return self._failed

    @property
    def full(self) -> bool:
        """Whether the reserve is spent: only what frees or reads should be asked for now."""
        return not (self._folder / "reserve").exists()

    def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        """Make `drafts` the next entries, in order, in one write and one sync; all or none.

        Raises `EntryTooLongError` (nothing written), `JournalRefusedError` or `JournalFullError`
        (taken back), `JournalFailedError` (from now on always).
        """
        if self._failed is not None:
            raise JournalFailedError(self._failed)
        appended, heads = self._encode(drafts)
        block = b"".join(item.line + b"\n" for item in appended)
        self._write(block)
        self._sync()
        offset = self._state.end
        lines: list[tuple[bytes, int]] = []
        for item in appended:
            lines.append((item.hash, offset))
            offset += len(item.line) + 1
        self._tree_append(lines)
        self._accounts.update(heads)
        last = appended[-1]
        self._state = _State(last.seq + 1, offset, last.hash, self._tree.root())
        return appended

    def _encode(
        self, drafts: Sequence[Draft]
    ) -> tuple[list[Appended], dict[str, tuple[int, bytes]]]:
        time = self._clock().strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        prev, heads, appended = self._state.hash, dict[str, tuple[int, bytes]](), list[Appended]()
        for index, draft in enumerate(drafts):
            accounts: dict[str, tuple[int, str]] = {}
            for user in draft.accounts:
                count, last = heads.get(user) or self._accounts.get(user, (0, auditlog.GENESIS))
                accounts[user] = (count, last.hex())
            seq = self._state.size + index
            detail = {**draft.detail, "accounts": accounts}
            salt = os.urandom(auditlog.SALT_SIZE)
            try:
                line, prev = auditlog.encode(
                    draft, seq=seq, time=time, salt=salt, detail=detail, prev=prev
                )
            except LogError as exc:
                raise EntryTooLongError(str(exc), index=index) from exc
            heads.update({user: (count + 1, prev) for user, (count, _) in accounts.items()})
            appended.append(Appended(seq, prev, line))
        return appended, heads

    def _write(self, block: bytes) -> None:
        try:
            written = self._files.write(self._log, block)
            if written == len(block):
                return
            full, reason = True, f"{written} of {len(block)} bytes were taken"
        except OSError as exc:
            full, reason = exc.errno in FULL_DISK, exc.strerror or str(exc)
        self._take_back()
        if not full:
            raise JournalRefusedError(f"the log could not be written: {reason}")
        self._files.remove(self._folder / "reserve")
        raise JournalFullError(f"the disk is full: {reason}")

    def _take_back(self) -> None:
        try:
            self._files.truncate(self._log, self._state.end)
            self._files.sync_data(self._log)
        except OSError as exc:
            self._fail(f"a torn write could not be taken back: {exc.strerror or exc}", exc)

    def _sync(self) -> None:
        try:
            self._files.sync_data(self._log)
        except OSError as exc:
            self._fail(f"the log could not be synced: {exc.strerror or exc}", exc)

    def _tree_append(self, lines: list[tuple[bytes, int]]) -> None:
        try:
            self._tree.append(lines)
        except OSError as exc:
            # The entries are durable and stay; without the tree nothing can be proven, so nothing
            # is acknowledged. A restart rebuilds it.
            self._fail(f"the tree could not be written: {exc.strerror or exc}", exc)

    def _fail(self, reason: str, cause: OSError) -> NoReturn:
        self._failed = reason
        raise JournalFailedError(reason) from cause

    # Behind: also the committer's, when it has time.

    def keep_mark(self, *, force: bool = False) -> None:
        """Save a mark if many lines came since the last, so that the next start is short."""
        state = self._state
        if state.size - self._marked < (1 if force else _MARK_EVERY) or self._failed:
            return
        self.checkpoint()
        heads = sorted(self._accounts.items())
        if len(heads) > MAX_ACCOUNTS:
            return  # starts read the whole log; nothing else is lost
        accounts = tuple((user, count, last) for user, (count, last) in heads)
        self._tree.save_mark(Mark(state.size, state.end, state.hash, state.root, accounts))
        self._marked = state.size

    def keep_reserve(self) -> None:
        """Lay the reserve on the disk if it is not there and there is room."""
        path = self._folder / "reserve"
        if path.exists():
            return
        # No room is not an error here: `full` says so until there is.
        with suppress(OSError):
            self._files.write_new_durable(path, bytes(RESERVE))

    def close(self) -> None:
        """Save a mark and let go of the files."""
        if self._failed is None:
            self.keep_mark(force=True)
        self._tree.close()
        self._files.close(self._log)

    # Reading and proving: any thread.

    @property
    def _verifier(self) -> checkpoint.Verifier:
        return checkpoint.Verifier(self._origin, self._key.public)

    def line(self, seq: int) -> bytes:
        """Line `seq` without its newline. Raises `JournalRangeError`."""
        state = self._state
        if not 0 <= seq < state.size:
            raise JournalRangeError(f"no entry {seq} in a log of {state.size}")
        start = self._tree.offset(seq)
        end = self._tree.offset(seq + 1) if seq + 1 < state.size else state.end
        return self._files.read_exactly(self._log, end - start - 1, start)

    def entry(self, seq: int) -> Entry:
        """Entry `seq`. Raises `JournalRangeError`, or `JournalDamagedError`."""
        try:
            return auditlog.parse(self.line(seq), seq=seq)
        except LogError as exc:
            raise JournalDamagedError(str(exc), seq=seq) from exc

    def lines(self, first: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Lines [first, end) without their newlines; to the present end by default."""
        state = self._state
        end = state.size if end is None else end
        if not 0 <= first <= end <= state.size:
            raise JournalRangeError(f"no entries {first} to {end} in a log of {state.size}")
        if first == end:
            return
        for count, line in enumerate(self._complete_lines(self._tree.offset(first)), first + 1):
            yield line
            if count == end:
                return

    def checkpoint(self) -> bytes:
        """The signed note of the present, durable size; also kept in logs/checkpoint."""
        return self._sign()[1]

    def _sign(self) -> tuple[_State, bytes]:
        with self._signing:
            state = self._state
            if self._signed[0] != state.size:
                note = checkpoint.sign(self._key, self._origin, state.size, state.root)
                self._files.replace_soon(self._folder / "checkpoint", note)
                self._signed = (state.size, note)
            return state, self._signed[1]

    def root_at(self, size: int) -> bytes:
        """The Merkle root of the first `size` lines. Raises `JournalRangeError`."""
        self._check_size(size)
        return merkle.root_at(size, self._tree.node)

    def prove(self, what: Inclusion | Consistency) -> tuple[bytes, ...]:
        """A proof of O(log n) hashes. Raises `JournalRangeError`."""
        if isinstance(what, Inclusion):
            self._check_size(what.size)
            if not 0 <= what.index < what.size:
                raise JournalRangeError(f"no entry {what.index} in a log of {what.size}")
            return merkle.inclusion_proof(what.index, what.size, self._tree.node)
        self._check_size(what.new)
        if not 0 <= what.old <= what.new:
            raise JournalRangeError(f"a log of {what.new} does not continue one of {what.old}")
        return merkle.consistency_proof(what.old, what.new, self._tree.node)

    def receipt(self, seq: int, since: int) -> Receipt:
        """Proof that entry `seq` is logged, from a checkpoint of size `since` on."""
        state, note = self._sign()
        return Receipt(
            line=self.line(seq),
            inclusion=self.prove(Inclusion(seq, state.size)),
            checkpoint=note,
            consistency=self.prove(Consistency(min(since, state.size), state.size)),
        )

    def verify(self, end: int | None = None) -> int:
        """Check every line up to `end` against chain and tree; returns how many.

        Raises `JournalDamagedError` with the first seq that is wrong.
        """
        end = self._state.size if end is None else end
        checked = 0
        try:
            for entry in auditlog.verify_chain(self.lines(0, end)):
                if self._tree.node(0, entry.seq) != merkle.leaf_hash(entry.hash):
                    raise JournalDamagedError("not the entry the tree has", seq=entry.seq)
                checked += 1
        except LogError as exc:
            raise JournalDamagedError(str(exc), seq=exc.seq) from exc
        if checked != end:
            raise JournalDamagedError("missing", seq=checked)
        return checked

    def verify_before_mark(self) -> int:
        """Check what the start took on trust from its mark; for the background."""
        return self.verify(self.marked)

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= self._state.size:
            raise JournalRangeError(f"a log of {self._state.size} was never of size {size}")
