"""Reading the audit log: its signed head, the user's own entries, and proofs."""

from __future__ import annotations

from typing import Annotated

from protocol.codec.encoding import Buffer
from protocol.codec.fields import AtMost, Between, Count, OneOf, Struct
from protocol.log.auditlog import MAX_LINE
from protocol.wire.messages.base import PIECE, CheckpointNote, Proof, Reply, Request, message

MAX_LEAVES = 4096
"""Most leaves in a page."""
MAX_LINES = 256
"""Most lines in a page of `LogLines`."""
INCLUSION = "inclusion"
CONSISTENCY = "consistency"


@message(113)
class LogCheckpoint(Reply):
    """A checkpoint of the log, as a C2SP signed note."""

    checkpoint: CheckpointNote


@message(112, replies=(LogCheckpoint,))
class LogHead(Request):
    """Get the newest checkpoint of the log."""


class LogItem(Struct):
    """Entry `seq`: its exact line without newline."""

    seq: Count
    data: Annotated[bytes, AtMost(MAX_LINE)]


@message(119, bulk="leaves")
class LogLeavesPage(Reply):
    """Leaf data of consecutive entries, each u16be length ‖ data (C2SP tlog-tiles entry bundles).

    Fewer than `limit` at the end of the log, or if a frame holds no more.
    """

    leaves: Annotated[Buffer, AtMost(PIECE)]


@message(118, replies=(LogLeavesPage,))
class LogLeaves(Request):
    """Get the leaf data of at most `limit` entries from seq `first` on."""

    first: Count
    limit: Annotated[int, Between(1, MAX_LEAVES)]


@message(121)
class LogLinesPage(Reply):
    """The first of the requested lines, in the order of the request: as many as a frame holds."""

    lines: Annotated[tuple[LogItem, ...], AtMost(MAX_LINES)]


@message(120, replies=(LogLinesPage,))
class LogLines(Request):
    """Get the lines of entries that the user may read: own ones, and identity statements of all
    users."""

    seqs: Annotated[tuple[Count, ...], AtMost(MAX_LINES)]


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
