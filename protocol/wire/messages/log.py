"""Reading the audit log: its signed head, the user's own entries, and proofs."""

from __future__ import annotations

from typing import Annotated

from protocol.codec.fields import AtMost, Between, Count, OneOf, Struct
from protocol.log.auditlog import MAX_LINE
from protocol.wire.messages.base import CheckpointNote, Proof, Reply, Request, message

MAX_ENTRIES = 1000
"""Most entries in a page; the server sends fewer if they would exceed a frame."""
INCLUSION = "inclusion"
CONSISTENCY = "consistency"


@message(113)
class LogCheckpoint(Reply):
    """The log's current checkpoint, proven from the one that opened the session."""

    checkpoint: CheckpointNote
    consistency: Proof


@message(112, replies=(LogCheckpoint,))
class LogHead(Request):
    """Get the log's current checkpoint."""


class LogItem(Struct):
    """Entry `seq`: its exact line without newline, or its leaf data if the user may not read it."""

    seq: Count
    data: Annotated[bytes, AtMost(MAX_LINE)]


@message(115)
class LogPage(Reply):
    """Entries in order of seq; `next` is the next page's `first`, 0 at the end.

    The server searches a bounded part of the log for a page. A page may be short or even empty and
    not be the last one.
    """

    entries: Annotated[tuple[LogItem, ...], AtMost(MAX_ENTRIES)]
    next: Count


@message(114, replies=(LogPage,))
class LogEntries(Request):
    """Get at most `limit` entries from seq `first` on; with `own`, only those the user may read.

    A gap in these would show: each states in `accounts` how many entries of the account came before
    it.
    """

    first: Count
    limit: Annotated[int, Between(1, MAX_ENTRIES)]
    own: bool


@message(117)
class LogProven(Reply):
    """The requested proof."""

    proof: Proof


@message(116, replies=(LogProven,))
class LogProof(Request):
    """Prove, for the log at `size` entries, that it holds entry `start` (inclusion) or extends the
    log of `start` entries (consistency)."""

    kind: Annotated[str, OneOf((CONSISTENCY, INCLUSION))]
    start: Count
    size: Count
