"""Read the log. Every account can verify all of it, and read its own entries."""

from __future__ import annotations

from typing import Final

from protocol.codec.errors import LogError
from protocol.log import auditlog
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.log import (
    INCLUSION,
    LogCheckpoint,
    LogHead,
    LogItem,
    LogLeaves,
    LogLeavesPage,
    LogLines,
    LogLinesPage,
    LogProof,
    LogProven,
)
from sfsd.errors import JournalDamagedError, JournalRangeError, Refused
from sfsd.rules.context import EVERYONE, USER, Principal, ServerContext, operation

PAGE_BYTES: Final = 1024 * 1024
"""Maximum bytes of one page's lines; a frame holds 4 KiB more."""
_ITEM_OVERHEAD: Final = 15
"""Bytes of an array header (1), a seq (9) and the header of a byte string (5)."""


@operation(LogHead, access=EVERYONE)
def log_head(server: ServerContext, who: Principal, message: LogHead) -> LogCheckpoint:  # noqa: ARG001
    """Return the newest checkpoint."""
    return LogCheckpoint(server.journal.checkpoint())


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


def _may_read(who: Principal, seq: int, line: bytes) -> bool:
    """Whether the user is the entry's actor, owner or one of its accounts."""
    # User names never need JSON escapes, so most lines of other users are skipped unparsed.
    if f'"{who.user}"'.encode() not in line:
        return False
    if auditlog.belongs_to(line, who.user):
        return True
    entry = auditlog.parse(line, seq=seq)
    return who.user in (entry.actor, entry.owner)
