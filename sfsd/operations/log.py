"""Read the log. Every account can verify all of it, and read its own entries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocol.codec.errors import LogError
from protocol.log import auditlog
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.log import (
    INCLUSION,
    LogCheckpoint,
    LogEntries,
    LogHead,
    LogItem,
    LogLeaves,
    LogLeavesPage,
    LogLines,
    LogLinesPage,
    LogPage,
    LogProof,
    LogProven,
)
from sfsd.errors import JournalDamagedError, JournalRangeError, Refused
from sfsd.rules.context import EVERYONE, USER, Access, Principal, ServerContext, operation

READERS: Final = frozenset({Access.FULL, Access.OPERATOR})
PAGE_BYTES: Final = 1024 * 1024
"""Maximum bytes of one page's lines; a frame holds 4 KiB more."""
ENTRIES_BYTES: Final = 128 * 1024
"""Bytes at which a page of `LogEntries` ends, unless it is one entry: other users wait for it."""
_ITEM_OVERHEAD: Final = 15
"""Bytes of an array header (1), a seq (9) and the header of a byte string (5)."""
SCAN: Final = 32 * 1024
"""Maximum lines examined for one page, so that no request reads a whole long log."""


@operation(LogHead, access=EVERYONE)
def log_head(server: ServerContext, who: Principal, message: LogHead) -> LogCheckpoint:  # noqa: ARG001
    """Return the checkpoint of a size."""
    journal = server.journal
    try:
        return LogCheckpoint(
            journal.checkpoint_at(message.size) if message.size else journal.checkpoint()
        )
    except JournalRangeError as exc:
        raise Refused("bad-request", str(exc)) from exc


@operation(LogProof, access=EVERYONE)
def log_proof(server: ServerContext, who: Principal, message: LogProof) -> LogProven:  # noqa: ARG001
    """Return an inclusion or consistency proof."""
    journal = server.journal
    prove = journal.prove_inclusion if message.kind == INCLUSION else journal.prove_consistency
    try:
        return LogProven(prove(message.start, message.size))
    except JournalRangeError as exc:
        raise Refused("bad-request", str(exc)) from exc


@operation(LogLeaves, access=USER, slow=True, weight=PIECE)
def log_leaves(server: ServerContext, who: Principal, message: LogLeaves) -> LogLeavesPage:  # noqa: ARG001
    """Return leaf data, by which a client follows the log without reading its lines."""
    return LogLeavesPage(server.journal.leaves(message.first, message.limit, PIECE))


@operation(LogLines, access=USER, slow=True, weight=PIECE)
def log_lines(server: ServerContext, who: Principal, message: LogLines) -> LogLinesPage:
    """Return lines in full, as many as a frame holds. Raises `Refused` (not-found) for one that the
    user may not read."""
    lines: list[LogItem] = []
    room = PAGE_BYTES
    for seq in message.seqs:
        line = _full_line(server, who, seq)
        room -= len(line) + _ITEM_OVERHEAD
        if room < 0:
            break
        lines.append(LogItem(seq, line))
    return LogLinesPage(tuple(lines))


def _full_line(server: ServerContext, who: Principal, seq: int) -> bytes:
    """Return line `seq` if the user may read it. Raises `Refused` (not-found)."""
    try:
        line = server.journal.line(seq)
        if _may_read(who, seq, line) or auditlog.parse(line, seq=seq).op in auditlog.IDENTITY_OPS:
            return line
    except JournalRangeError:
        pass  # the same answer as for a line of others
    except LogError as exc:
        raise JournalDamagedError.from_log_error(exc) from exc
    raise Refused("not-found", "no such entry")


@operation(LogEntries, access=READERS, slow=True, weight=PIECE)
def log_entries(server: ServerContext, who: Principal, message: LogEntries) -> LogPage:
    """Return log entries from `first` on: own entries in full, of others only the leaf.

    Sessions of older keys may not: a stolen old key or enrolment token must not reveal activity.
    """
    size = server.journal.size
    end = min(size, message.first + SCAN)
    entries: list[LogItem] = []
    room = ENTRIES_BYTES
    for item in _items(server, who, range(message.first, end), own=message.own):
        room -= len(item.data) + _ITEM_OVERHEAD
        if (entries and room < 0) or len(entries) == message.limit:
            return LogPage(tuple(entries), item.seq)
        entries.append(item)
    return LogPage(tuple(entries), end if end < size else 0)


def _items(server: ServerContext, who: Principal, wanted: range, *, own: bool) -> Iterator[LogItem]:
    """Yield own lines in full, and unless `own` is set the leaf data of the others."""
    if not wanted:
        return
    for seq, line in enumerate(server.journal.lines(wanted.start, wanted.stop), wanted.start):
        try:
            if _may_read(who, seq, line):
                yield LogItem(seq, line)
            elif not own:
                yield LogItem(seq, auditlog.leaf_data(line, seq=seq))
        except LogError as exc:
            raise JournalDamagedError.from_log_error(exc) from exc


def _may_read(who: Principal, seq: int, line: bytes) -> bool:
    """Whether the user is the entry's actor, owner or one of its accounts, or is the operator."""
    if who.access is Access.OPERATOR:
        return True
    # User names never need JSON escapes, so most lines of other users are skipped unparsed.
    if f'"{who.user}"'.encode() not in line:
        return False
    if auditlog.belongs_to(line, who.user):
        return True
    entry = auditlog.parse(line, seq=seq)
    return who.user in (entry.actor, entry.owner)
