"""Changesets: up to 256 changes of the user's files, signed and sent together.

A change is one signed record: a put, delete, restore, move, purge, share, or an encryption under a
new key. The records are leaves of one RFC 6962 tree (`protocol.records.record_signatures`), so that
one Ed25519 signature covers all of them, and the DEKs for one recipient are wrapped in one batch.
"""

from __future__ import annotations

from typing import Annotated, Final

from protocol.codec.encoding import Buffer
from protocol.codec.fields import (
    AtMost,
    Between,
    Bytes16,
    Bytes32,
    Count,
    Exactly,
    Signature,
    Struct,
    UserName,
)
from protocol.log.auditlog import MAX_LINE
from protocol.records.record_signatures import MAX_SIGNED
from protocol.records.records import (
    BATCH_ID_SIZE,
    MAX_WRAPPED_KEY,
    WRAP_ITEM_SIZE,
    Version,
    WrapAlgorithm,
)
from protocol.wire.messages.base import (
    MAX_RECEIPT_LEAVES,
    MAX_SMALL,
    PIECE,
    CheckpointNote,
    Error,
    Metadata,
    RecordBytes,
    Reply,
    Request,
    UploadId,
    message,
)

MAX_CHANGES: Final = MAX_SIGNED
"""Most changes of one request."""
MAX_BATCHES: Final = 257
"""Most wrap batches of one request: one for the owner, and one for each of 256 readers."""
MAX_CHANGE_WRAPS: Final = 1024
"""Most wraps of one request, of all of its changes together."""

_Leaf = Annotated[int, Between(0, MAX_SIGNED - 1)]


class WrapBatch(Struct):
    """A KEK, encrypted to one recipient's key as `enc`. It wraps the DEKs of several versions."""

    batch_id: Bytes16
    user: UserName
    key_id: Bytes32
    algorithm: WrapAlgorithm
    enc: Annotated[bytes, AtMost(MAX_WRAPPED_KEY - BATCH_ID_SIZE - WRAP_ITEM_SIZE)]


class BatchedWrap(Struct):
    """The DEK of a `version` of the file of change number `change`, wrapped by the KEK of batch
    number `batch`; both numbers count from 0."""

    change: Annotated[int, Between(0, MAX_CHANGES - 1)]
    version: Version
    batch: Annotated[int, Between(0, MAX_BATCHES - 1)]
    item: Annotated[bytes, Exactly(WRAP_ITEM_SIZE)]


class Change(Struct):
    """A record, what it describes, and the number of its leaf in the signed tree.

    A new ciphertext is part of the request's contents (`inline_size` bytes, at most 256 KiB) or was
    uploaded before (`upload`). `tombstone` is the second record of a move, for the old name; empty
    for any other change.
    """

    record: RecordBytes
    leaf: _Leaf
    metadata: Metadata
    inline_size: Annotated[int, Between(0, MAX_SMALL)] = 0
    upload: UploadId | None = None
    tombstone: RecordBytes = b""
    tombstone_leaf: _Leaf = 0


class Outcome(Struct):
    """The outcome of one change: the number of its log entry, or why it was refused.

    `line` is the entry's exact line without newline. It is empty if the lines of the request are
    too long for one reply: `LogLines` has it.
    """

    seq: Count
    line: Annotated[bytes, AtMost(MAX_LINE)]
    error: Error | None


@message(41)
class Committed(Reply):
    """The outcome of each change, in order. All accepted ones are durable.

    `checkpoint` is a C2SP signed note of a log that has their entries. `leaves` is the leaf data
    from entry `first` up to that checkpoint, as in `LogLeavesPage`, or empty if that is too much:
    the client asks for it.
    """

    outcomes: Annotated[tuple[Outcome, ...], AtMost(MAX_CHANGES)]
    checkpoint: CheckpointNote
    first: Count
    leaves: Annotated[bytes, AtMost(MAX_RECEIPT_LEAVES)]


@message(40, bulk="contents", replies=(Committed,))
class Commit(Request):
    """Change up to 256 of the user's files, each at most once.

    `leaves` are the leaf hashes of the signed tree; leaves that are no change's are padding.
    `signature` covers the tree for the generation that all records state. `contents` are the new
    ciphertexts of the changes, in order and without gaps. Changes are accepted or refused one by
    one; refused ones do not affect others. A change that was accepted before is accepted again.

    With `atomic`, all changes are accepted, or none is: those that were not refused themselves have
    the error `set-refused`. Their log entries are consecutive and state their set
    (`protocol.log.auditlog`), unless there is only one.
    """

    changes: Annotated[tuple[Change, ...], AtMost(MAX_CHANGES)]
    leaves: Annotated[tuple[Bytes32, ...], AtMost(MAX_SIGNED)]
    signature: Signature
    batches: Annotated[tuple[WrapBatch, ...], AtMost(MAX_BATCHES)]
    wraps: Annotated[tuple[BatchedWrap, ...], AtMost(MAX_CHANGE_WRAPS)]
    atomic: bool
    contents: Annotated[Buffer, AtMost(PIECE)]
