"""Reads the log at a start, and checks all of it in the background.

Up to the stored checkpoint everything must be as it was signed. Past it, complete lines that chain
are kept, even if their success was never reported: their effects are recovered from the stage. The
first line that is torn or does not chain ends the log, and so does an atomic set that is not whole:
its first lines count as never written.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from pathlib import Path

from protocol.codec import merkle
from protocol.codec.errors import CheckpointError, LogError
from protocol.codec.values import Value
from protocol.log import auditlog, checkpoint
from protocol.log.auditlog import LogEntry
from sfsd.errors import CheckpointDamagedError, JournalDamagedError
from sfsd.fs.files import is_damage
from sfsd.log.file import LogFile
from sfsd.log.tree import LogTree, TreeLine, TreeMark, encode_leaf

_log = logging.getLogger(__name__)
_FLUSH_EVERY = 65_536
"""Lines between flushes while the cache is rebuilt: about 5 MiB of memory."""


class LogState(Value):
    """The first `size` lines of a log: their bytes, the last one's hash, the Merkle root."""

    size: int
    end: int
    hash: bytes
    root: bytes


EMPTY = LogState(0, 0, auditlog.GENESIS, merkle.EMPTY_ROOT)


class ReplayResult(Value):
    """Result of a start: the log's `state`, each account's number of entries, and the `unverified`
    part."""

    state: LogState
    counts: dict[str, int]
    unverified: LogState


def stored_checkpoint(path: Path, verifier: checkpoint.Verifier) -> checkpoint.Checkpoint:
    """Return the checkpoint in the note `path`, of size 0 if there is none. Raises
    `CheckpointDamagedError` for anything but a note of this log, or OSError."""
    try:
        note = path.read_bytes()
    except FileNotFoundError:
        note = b""
    except OSError as exc:
        if not is_damage(exc):
            raise
        raise CheckpointDamagedError("the disk cannot read it") from exc
    # The note is replaced without a sync: after a power loss some file systems have the new name
    # with no content or zeros.
    if not note.strip(b"\0"):
        return checkpoint.Checkpoint(verifier.name, 0, merkle.EMPTY_ROOT)
    try:
        return checkpoint.verify(note, verifier)
    except CheckpointError as exc:
        raise CheckpointDamagedError(str(exc)) from exc


def replay(
    file: LogFile, tree: LogTree, signed: checkpoint.Checkpoint, *, use_mark: bool = True
) -> ReplayResult:
    """Load the cache up to its mark unless `use_mark` is false, and the lines past it as long as
    they chain. Raises `JournalDamagedError` with the first seq that differs from what `signed`
    covers."""
    mark = _fitting_mark(file, tree) if use_mark else None
    if mark is None:
        # The cache does not match this log. Read all of it, and report damage in the log itself.
        tree.truncate(0, 0)
        unverified, counts = EMPTY, {}
    else:
        tree.truncate(mark.size, mark.leaves)
        unverified = LogState(mark.size, mark.offset, mark.hash, mark.root)
        counts = dict(mark.accounts)
    size, end, last = unverified.size, unverified.end, unverified.hash
    sets, begun = auditlog.SetCheck(), list[tuple[LogEntry, int]]()  # of a set that is not whole
    prev = last
    for line in file.lines(end, file.end):
        try:
            entry = next(auditlog.verify_chain([line], first=size + len(begun), prev=prev))
            sets.add(entry)
            advance_counts(counts, entry)
        except LogError as exc:
            if exc.seq < signed.size:
                raise JournalDamagedError.from_log_error(exc) from exc
            break
        prev = entry.hash
        begun.append((entry, len(line) + 1))
        if sets.open is not None:
            continue
        for one, length in begun:
            tree.append(one.leaf_data, end)
            size, end, last = size + 1, end + length, one.hash
            if size % _FLUSH_EVERY == 0:
                with suppress(OSError):  # no space on the disk: the nodes stay in memory
                    tree.flush()
        begun.clear()
    for one, _ in reversed(begun):
        counts |= one.accounts
    if size < signed.size:
        raise JournalDamagedError("covered by the signed checkpoint, but missing", seq=size)
    if merkle.root_at(signed.size, tree.node) != signed.root:
        if unverified.size:  # perhaps only the cache is wrong
            return replay(file, tree, signed, use_mark=False)
        # The lines chain, so they were rewritten from some entry on. Only a copy of the log could
        # show which.
        raise JournalDamagedError("this entry or a later one differs from the signed log", seq=0)
    return ReplayResult(LogState(size, end, last, tree.root()), counts, unverified)


def compare(file: LogFile, tree: LogTree, upto: LogState, stop: threading.Event) -> list[TreeLine]:
    """Check the lines before `upto` against its root. Return what the tree should have where it
    differs from such an intact log; an empty list once `stop` is set. Raises `JournalDamagedError`
    with the first wrong seq."""
    differences: list[TreeLine] = []
    frontier = merkle.Frontier()
    offset = leaves = 0
    try:
        for line in file.lines(0, upto.end):
            if stop.is_set():
                return []
            seq = frontier.size
            leaf = auditlog.leaf_data(line, seq=seq)
            completed = b"".join(frontier.append(merkle.leaf_hash(leaf)))
            expected = TreeLine(seq, offset, leaves, leaf, completed)
            if not tree.agrees(expected):
                differences.append(expected)
            offset += len(line) + 1
            leaves += len(encode_leaf(leaf))
        # The root commits to every hash, and each hash to its line, so no parsing is needed.
        if frontier.size != upto.size or frontier.root() != upto.root:
            raise LogError("the line is not what was written", seq=max(0, upto.size - 1))
    except LogError as exc:
        # If a line was rewritten with a new hash, the tree still has the old leaf.
        seq = min([exc.seq] + [one.seq for one in differences])
        raise JournalDamagedError(exc.problem, seq=seq) from exc
    return differences


def _fitting_mark(file: LogFile, tree: LogTree) -> TreeMark | None:
    """Return the mark of the cached tree if both match the log. None if they do not, or if the disk
    cannot read the cache. Raises OSError."""
    try:
        mark = tree.load_mark()
        return mark if mark is not None and _fits(mark, file, tree) else None
    except OSError as exc:
        if not is_damage(exc):
            raise
        # If it is the log that cannot be read, reading all of it fails again.
        _log.error("logs/tree is made again from the log: %s", exc)
        return None


def _fits(mark: TreeMark, file: LogFile, tree: LogTree) -> bool:
    """Return whether the log has the line that the mark names, ending at the marked offset."""
    if mark.size == 0:
        return mark.offset == 0
    start = tree.offset(mark.size - 1)
    if not start < mark.offset <= min(start + auditlog.MAX_LINE + 1, file.end):
        return False
    line = file.read(start, mark.offset)
    try:
        return line.endswith(b"\n") and auditlog.line_hash(line[:-1]) == mark.hash
    except LogError:
        return False


def advance_counts(counts: dict[str, int], entry: LogEntry) -> None:
    """Add the next entry to the counts of its accounts. Raises `LogError` if it does not follow."""
    for user, count in entry.accounts.items():
        if count != counts.get(user, 0):
            raise LogError(f"not the next entry of {user[:40]!r}", seq=entry.seq)
    counts |= {user: count + 1 for user, count in entry.accounts.items()}
