"""Reading the audit log: its signed head, its entries as far as they are one's own, its proofs."""

from __future__ import annotations

from typing import Annotated, ClassVar

from protocol.codec.fields import AtMost, Between, Count, OneOf, Struct
from protocol.log.auditlog import MAX_LINE
from protocol.wire.messages.base import CheckpointNote, Proof, Reply, Request, message

MAX_ENTRIES = 1000
"""Entries in one page; the server sends fewer where a page would pass a frame."""
INCLUSION = "inclusion"
CONSISTENCY = "consistency"


@message(113)
class LogCheckpoint(Reply):
    """The log's signed present, proven from the checkpoint that opened the session."""

    checkpoint: CheckpointNote
    consistency: Proof


@message(112)
class LogHead(Request):
    REPLIES: ClassVar[tuple[type[Reply], ...]] = (LogCheckpoint,)


class LogItem(Struct):
    """Entry `seq`: its exact line without newline, or its hash, 32 bytes, where it is not the
    asker's to read. No line is that short."""

    seq: Count
    data: Annotated[bytes, AtMost(MAX_LINE)]


@message(115)
class LogPage(Reply):
    """Entries in order of seq; `next` is the next page's `first`, 0 at the end.

    The server looks through a bounded part of the log for one page: it may be short, or empty, with
    more to come.
    """

    entries: Annotated[tuple[LogItem, ...], AtMost(MAX_ENTRIES)]
    next: Count


@message(114)
class LogEntries(Request):
    """At most `limit` entries from seq `first` on; with `own`, those that the asker may read only.

    What is one's own comes without a gap: each such line says in ``detail.accounts`` how many of
    that account came before, and the hash of the last.
    """

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (LogPage,)

    first: Count
    limit: Annotated[int, Between(1, MAX_ENTRIES)]
    own: bool


@message(117)
class LogProven(Reply):
    proof: Proof


@message(116)
class LogProof(Request):
    """For `size` entries: that entry `start` is among them (inclusion), or that they continue the
    log of `start` entries (consistency)."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (LogProven,)

    kind: Annotated[str, OneOf((CONSISTENCY, INCLUSION))]
    start: Count
    size: Count
