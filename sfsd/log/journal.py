"""The log: the commit point of everything the daemon does.

A group of entries is one write and one sync of logs/audit.jsonl (`sfsd.log.file` handles failures);
an entry is valid once that sync returned. Beside it are logs/checkpoint, the last signed note, and
logs/tree, a cache.

A start reads the lines past the cache's mark (`sfsd.log.replay`), and only the last one before it:
the mark's root is checked against the checkpoint. `verify_before_mark` reads the earlier lines in
the background.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from protocol.buffers.file_status import exists
from protocol.codec import merkle
from protocol.codec.errors import LogError
from protocol.codec.values import Value
from protocol.log import auditlog, checkpoint, tags
from protocol.log.auditlog import EntryDraft, LogEntry
from protocol.records.signatures import SigningKey
from protocol.wire.messages.base import MAX_RECEIPT_LEAVES, Receipt
from sfsd.errors import (
    CheckpointDamagedError,
    EntryTooLongError,
    JournalDamagedError,
    JournalError,
    JournalFailedError,
    JournalFullError,
    JournalRangeError,
    JournalUnreadableError,
    StoreFailedError,
)
from sfsd.fs.files import Files
from sfsd.histogram import Histogram
from sfsd.log import replay
from sfsd.log.cut import past_cuts
from sfsd.log.file import RESERVE_SIZE, DiskReserve, LogFile
from sfsd.log.path_table import PathTable
from sfsd.log.replay import LogState
from sfsd.log.tree import MAX_ACCOUNTS, LogTree, ProofCache, TreeMark, stored_mark

_log = logging.getLogger(__name__)
RECEIPT_LEAVES = 1024
"""Most entries whose leaf data a receipt shows."""
SET_ASIDE: Final = "checkpoint.damaged"
"""Name that a malformed checkpoint gets in the folder of the log."""
_MARK_EVERY = 4096
"""Lines between marks: how many a start reads again at most, apart from a last group."""
_PUBLISH_SECONDS = 10.0
"""The longest time that a reader waits for a group that is being published."""


class AppendedEntry(Value):
    """One durable entry: its seq, its leaf data and its line without newline."""

    seq: int
    leaf: bytes
    line: bytes

    @property
    def hash(self) -> bytes:
        """The entry's hash, 32 bytes."""
        return self.leaf[: merkle.HASH_SIZE]


def now() -> datetime:
    return datetime.now(UTC)


def log_warnings(folder: Path) -> list[str]:
    """Return what the operator should know of the log in `folder`, until the files are removed that
    the texts name."""
    found = [
        f"the end of the log was cut, users run `sfsc audit accept`: see logs/{name}"
        for name in past_cuts(folder)
    ]
    if exists(folder / SET_ASIDE):
        found.append(f"logs/checkpoint was malformed and was signed again: see logs/{SET_ASIDE}")
    return found


class Journal:
    """The log of one root. One thread appends; any thread reads, proves and requests receipts."""

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
        """Open the log in `folder`, verify the unmarked part and cut a torn last line. Raises
        `JournalDamagedError` with the first seq that differs from what was signed, or OSError.
        `reserve` is the size in bytes of logs/reserve, and of what is kept allocated behind the end
        of the log."""
        self._folder = folder
        self._key = key
        self._origin = origin
        self._server = checkpoint.server_of(origin)
        self._files = files or Files()
        self._clock = clock
        self.failed: str | None = None
        """Why nothing is appended any more, or None. If set, no download may be served either."""
        self._signing = threading.Lock()
        self._signed: tuple[int, bytes] | None = None
        self._checkpoint_stale = False
        self._recent: dict[int, bytes] = {}
        self._stored = 0
        self._published: LogState | None = None
        self._publishing = threading.Condition()
        self._publish_failed = False
        self._files.make_folder(folder)
        self.reserve = DiskReserve(folder / "reserve", reserve, self._files)
        self._file = LogFile(folder / "audit.jsonl", self._files, reserve)
        self._tree = LogTree(folder / "tree", self._files)
        try:
            signed = self._signed_before()
            self._stored = signed.size
            found = replay.replay(self._file, self._tree, signed)
            self._file.truncate(found.state.end)
            self._files.sync_folder(folder)
        except (JournalError, OSError):
            self._close_files()
            raise
        self._proofs = ProofCache(self._tree)
        self._state, self._counts = found.state, found.counts
        self._marked = self._unverified = found.unverified
        try:
            latest = PathTable(folder / "tree", self._files, key.seed, self)
        except (JournalError, OSError):
            self._close_files()
            raise
        self.latest: Final = latest
        """The newest entry of each path, but for the group that is being published."""
        self.reserve.refill()

    def _signed_before(self) -> checkpoint.Checkpoint:
        """Return what the log must hold at least: the stored checkpoint, or the mark of the tree if
        there is none. A malformed checkpoint is set aside: nothing but a signature is lost with
        it. Raises OSError."""
        path = self._folder / "checkpoint"
        try:
            signed = replay.stored_checkpoint(
                path, checkpoint.Verifier(self._origin, self._key.public)
            )
        except CheckpointDamagedError as exc:
            self._files.replace(path, self._folder / SET_ASIDE)
            self._files.sync_folder(self._folder)
            _log.error("logs/checkpoint: %s; moved to logs/%s", exc.problem, SET_ASIDE)
            signed = checkpoint.Checkpoint(self._origin, 0, merkle.EMPTY_ROOT)
        if signed.size == 0 and (mark := stored_mark(self._folder / "tree")) is not None:
            return checkpoint.Checkpoint(self._origin, mark.size, mark.root)
        return signed

    # Appending: the committer's thread only.

    @property
    def next_seq(self) -> int:
        """The seq of the next entry, which is the number of entries."""
        return self._state.size

    size = next_seq

    @property
    def published_size(self) -> int:
        """How many entries have their effects where readers find them, and are signed for."""
        return self._published_state.size

    @property
    def _published_state(self) -> LogState:
        return self._published or self._state

    def mark_published(self) -> None:
        """Record that all entries have their effects where readers find them. Until the first call,
        entries count as published when they are appended."""
        with self._publishing:
            self._published = self._state
            self._publishing.notify_all()

    def stop_publishing(self) -> None:
        """Record that entries were appended whose effects wait for the next start."""
        with self._publishing:
            self._published = self._published_state
            self._publish_failed = True
            self._publishing.notify_all()

    @property
    def folder(self) -> Path:
        """The folder of the log."""
        return self._folder

    @property
    def stored_size(self) -> int:
        """How many entries logs/checkpoint signs for, as far as it was written since the start."""
        return self._stored

    @property
    def byte_size(self) -> int:
        """How many bytes the entries have in logs/audit.jsonl."""
        return self._state.end

    @property
    def sync_seconds(self) -> Histogram:
        """How long the syncs of appended entries took."""
        return self._file.sync_seconds

    @property
    def full(self) -> bool:
        """Whether the reserve is used up: then only requests that free space or read make sense."""
        return not self.reserve.held

    def count(self, user: str) -> int:
        """Return how many entries belong to `user`."""
        return self._counts.get(user, 0)

    def append(self, drafts: Sequence[EntryDraft]) -> list[AppendedEntry]:
        """Append `drafts` as the next entries, in order, in one write and one sync; all or none.
        After a crash, some of the first may be there: of the drafts of an atomic set all, or none.
        The committer fills a draft's `stage`, `detail["paths"]` and `tag_keys`. Raises
        `EntryTooLongError` (nothing written), `JournalRefusedError` (undone; `JournalFullError` for
        a full disk, `JournalBusyError`), `JournalFailedError` (from then on always)."""
        if self.failed is not None:
            raise JournalFailedError(self.failed)
        appended, counts = self._encode(drafts)
        if not appended:
            return []
        try:
            self._file.append(b"".join(item.line + b"\n" for item in appended))
        except JournalFullError:
            self.reserve.release()
            raise
        except JournalFailedError as exc:
            self.failed = str(exc)
            raise
        self._counts |= counts
        self._advance(appended)
        return appended

    def _encode(self, drafts: Sequence[EntryDraft]) -> tuple[list[AppendedEntry], dict[str, int]]:
        time = self._clock().strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        prev, counts, appended = self._state.hash, dict[str, int](), list[AppendedEntry]()
        too_long: dict[int, str] = {}  # all of them: each time, the whole group is made again
        salts = os.urandom(auditlog.SALT_SIZE * len(drafts))
        for index, draft in enumerate(drafts):
            accounts = {user: counts.get(user) or self.count(user) for user in draft.tag_keys}
            found = self._tags(draft, accounts)
            try:
                line, prev = auditlog.encode(
                    draft,
                    seq=self._state.size + index,
                    time=time,
                    salt=salts[index * auditlog.SALT_SIZE : (index + 1) * auditlog.SALT_SIZE],
                    detail=draft.detail,
                    accounts=accounts,
                    tags=found,
                    prev=prev,
                )
            except LogError as exc:
                too_long[index] = str(exc)
                continue
            counts |= {user: count + 1 for user, count in accounts.items()}
            leaf = prev + b"".join(found)
            appended.append(AppendedEntry(self._state.size + index, leaf, line))
        if too_long:
            raise EntryTooLongError(next(iter(too_long.values())), indexes=tuple(too_long))
        return appended, counts

    def _tags(self, draft: EntryDraft, accounts: Mapping[str, int]) -> list[bytes]:
        """Return the entry's tags, sorted."""
        found = [
            tags.account_tag(key, self._server, user, accounts[user])
            for user, key in draft.tag_keys.items()
        ]
        if draft.identity is not None:
            found.append(tags.identity_tag(self._server, *draft.identity))
        return sorted(found)

    def _advance(self, appended: Sequence[AppendedEntry]) -> None:
        """Add durable lines to the in-memory state. Readers see the new state last."""
        # Receipts for these are requested next.
        self._recent = {item.seq: item.line for item in appended}
        end = self._state.end
        for item in appended:
            self._tree.append(item.leaf, end)
            end += len(item.line) + 1
        self._state = LogState(appended[-1].seq + 1, end, appended[-1].hash, self._tree.root())

    # Maintenance: also the committer's thread, when it is idle.

    def save_mark(self, *, force: bool = False) -> None:
        """Save a mark if many lines came since the last, so that the next start is short."""
        state = self._state
        if self.failed is None:
            self._save_latest(force=force)
        if self.failed or state.size - self._marked.size < (1 if force else _MARK_EVERY):
            return
        if len(self._counts) > MAX_ACCOUNTS:
            return  # starts read the whole log; nothing else is lost
        accounts = tuple(sorted(self._counts.items()))
        note = self.checkpoint()
        try:
            with self._signing:
                self._files.replace_durable(self._folder / "checkpoint", note)
            leaves = self._tree.leaf_bytes
            self._tree.save_mark(
                TreeMark(state.size, state.end, leaves, state.hash, state.root, accounts)
            )
        except OSError as exc:
            _log.warning("logs/tree not saved, the next start takes longer: %s", exc.strerror)
        self._marked = state  # saved or not, the next attempt is that many lines away

    def _save_latest(self, *, force: bool) -> None:
        try:
            self.latest.save(force=force)
        except JournalDamagedError as exc:
            self.failed = str(exc)
        except JournalError as exc:
            _log.warning("logs/tree/paths not saved, the next start takes longer: %s", exc)

    def close(self) -> None:
        """Save a mark and close the files."""
        self.save_mark(force=True)
        self.latest.close()
        self._close_files()

    def _close_files(self) -> None:
        self._tree.close()
        self._file.close()

    # Reading and proving: any thread. Raises `JournalUnreadableError` if the log cannot be read.

    def line(self, seq: int) -> bytes:
        """Return line `seq` without its newline. Raises `JournalRangeError`."""
        state = self._state
        if not 0 <= seq < state.size:
            raise JournalRangeError(f"no entry {seq} in a log of {state.size}")
        if seq + 1 == state.size:
            return self._file.read(self._start(seq, state), state.end - 1)
        start, following = self._starts(seq, 2)
        return self._file.read(start, following - 1)

    def entry(self, seq: int) -> LogEntry:
        """Return entry `seq`. Raises `JournalRangeError` or `JournalDamagedError`."""
        try:
            return auditlog.parse(self.line(seq), seq=seq)
        except LogError as exc:
            raise JournalDamagedError.from_log_error(exc) from exc

    def paths(self, seq: int) -> dict[str, bytes | None]:
        """Return `LogEntry.paths` of entry `seq` at half the cost of parsing it. Raises as `entry`.
        A line whose leaf is in the tree was checked when it was added."""
        line = self.line(seq)
        try:
            leaf = merkle.leaf_hash(auditlog.leaf_data(line, seq=seq))
        except LogError as exc:
            raise JournalDamagedError.from_log_error(exc) from exc
        if not self.has(seq, leaf):
            return self.entry(seq).paths  # perhaps only the tree is wrong: `verify` repairs it
        return auditlog.paths_of(line)

    def lines(self, first: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield lines [first, end) without their newlines; `end` is the present end by default."""
        state = self._state
        end = state.size if end is None else end
        if not 0 <= first <= end <= state.size:
            raise JournalRangeError(f"no entries {first} to {end} in a log of {state.size}")
        return self._file.lines(self._start(first, state), self._start(end, state))

    def await_published(self, size: int) -> None:
        """Wait until `size` entries are published, for a reader who has seen an effect of one that
        is being published: what is shown is never newer than what is signed. Raises
        `StoreFailedError` if that fails or takes too long."""
        with self._publishing:
            self._publishing.wait_for(
                lambda: self._publish_failed or self.published_size >= size, _PUBLISH_SECONDS
            )
            if self.published_size < size:
                raise StoreFailedError(f"what entry {size - 1} wrote is not in place")

    def checkpoint(self) -> bytes:
        """Return the signed note of the published size, also kept in logs/checkpoint. What is
        appended and not yet published is not in it: a client that was shown it would take answers
        without its effects for lies."""
        return self._sign()[1]

    def leaves(self, first: int, limit: int, room: int) -> bytes:
        """Return the leaf data of at most `limit` entries from `first` on, each u16be length ‖
        data, as many as fit into `room` bytes; nothing past the end."""
        end = min(self._state.size, first + limit)
        try:
            return self._tree.leaves(first, end, room) if first < end else b""
        except (OSError, EOFError) as exc:
            raise JournalUnreadableError("logs/tree cannot be read") from exc

    def root_at(self, size: int) -> bytes:
        """Return the Merkle root of the first `size` lines. Raises `JournalRangeError`."""
        self._check_size(size)
        return self._proofs.root_at(size)

    def has(self, seq: int, leaf: bytes) -> bool:
        """Return whether the tree has the hash `leaf` for line `seq`."""
        return self._proofs.node(0, seq) == leaf

    def frontier_at(self, size: int) -> merkle.Frontier:
        """Return the frontier of the first `size` lines. Raises `JournalRangeError`."""
        self._check_size(size)
        return merkle.Frontier.load(size, self._proofs.node)

    def prove_inclusion(self, seq: int, size: int) -> tuple[bytes, ...]:
        """Prove that entry `seq` is in the log of `size` entries: O(log n) hashes of 32 bytes.
        Raises `JournalRangeError`."""
        self._check_size(size)
        if not 0 <= seq < size:
            raise JournalRangeError(f"no entry {seq} in a log of {size}")
        return self._proofs.prove_inclusion(seq, size)

    def prove_consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """Prove that the log of `new` entries extends the log of `old`: O(log n) hashes. Raises
        `JournalRangeError`."""
        self._check_size(new)
        if not 0 <= old <= new:
            raise JournalRangeError(f"a log of {new} does not extend one of {old}")
        return self._proofs.prove_consistency(old, new)

    def receipt(self, seq: int, since: int) -> tuple[Receipt, int]:
        """Return entry `seq` with the newest checkpoint and the leaf data from entry `since` on,
        unless it is too much; and the size of that checkpoint. Raises `JournalRangeError`."""
        first, leaves, note, size = self.unseen(since)
        return Receipt(self.appended_line(seq), note, first, leaves), size

    def appended_line(self, seq: int) -> bytes:
        """Return line `seq` as it was appended, without reading it again if it is one of the
        newest. Raises as `line`."""
        return self._recent.get(seq) or self.line(seq)

    def unseen(self, since: int) -> tuple[int, bytes, bytes, int]:
        """Return (first, leaf data from entry `first` on, checkpoint, its size): the newest
        checkpoint, and what a session that was shown `since` entries needs to follow to it. The
        leaf data is empty if it is too much."""
        size, note = self._sign()
        shown = 0 <= size - since <= RECEIPT_LEAVES
        leaves = self.leaves(since, size - since, MAX_RECEIPT_LEAVES) if shown else b""
        return since if shown else size, leaves, note, size

    def verify_before_mark(self, *, stop: threading.Event | None = None) -> None:
        """Verify the lines that the start took from its mark unchecked; for the background."""
        self.verify(self._unverified, stop=stop)

    def verify(self, upto: LogState | None = None, *, stop: threading.Event | None = None) -> None:
        """Check every line against chain and tree, until `stop` is set. Repairs a tree that differs
        from an intact log. Raises `JournalDamagedError` with the first wrong seq; then nothing is
        appended any more."""
        try:
            differences = replay.compare(
                self._file, self._tree, upto or self._state, stop or threading.Event()
            )
            for difference in differences:
                self._tree.repair(difference)
                self._proofs.clear()
        except JournalDamagedError as exc:
            self.failed = str(exc)
            raise
        except OSError as exc:
            raise JournalError(f"logs/tree cannot be read or repaired: {exc.strerror}") from exc

    def _sign(self) -> tuple[int, bytes]:
        with self._signing:
            state = self._published_state
            if self._signed is None or self._signed[0] != state.size:
                note = checkpoint.sign(self._key, self._origin, state.size, state.root)
                self._signed = (state.size, note)
                try:
                    self._files.replace_soon(self._folder / "checkpoint", note)
                    self._checkpoint_stale = False
                    self._stored = state.size
                except OSError as exc:
                    # The previous stored checkpoint remains valid; the next start verifies fewer
                    # lines by it.
                    if not self._checkpoint_stale:
                        _log.warning("logs/checkpoint could not be replaced: %s", exc.strerror)
                    self._checkpoint_stale = True
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
