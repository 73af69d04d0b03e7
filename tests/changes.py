"""What tests ask of changesets: their kinds, and the wraps that they carry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocol.codec.values import changed
from protocol.records.record_signatures import RecordTree
from protocol.records.records import FileRecord
from protocol.wire.messages import Message, Receipt, Reply
from protocol.wire.messages.base import GenerationSignature, SignedRecord, Wrap
from protocol.wire.messages.changes import BatchedWrap, Commit, Committed

Kind = type[Message] | Callable[[Message], bool]


def is_kind(message: Message, kind: Kind) -> bool:
    return isinstance(message, kind) if isinstance(kind, type) else kind(message)


def is_small(message: Message) -> bool:
    """Whether the message stores small files."""
    return isinstance(message, Commit) and any(one.inline_size for one in message.changes)


def is_large(message: Message) -> bool:
    """Whether the message commits an upload."""
    return isinstance(message, Commit) and any(one.upload for one in message.changes)


def changes_no_content(message: Message) -> bool:
    """Whether the message deletes, restores, moves, purges or shares."""
    return isinstance(message, Commit) and not is_small(message) and not is_large(message)


def has_op(op: str) -> Callable[[Message], bool]:
    """Return whether a message is a changeset with a record of `op`."""

    def check(message: Message) -> bool:
        changes = message.changes if isinstance(message, Commit) else ()
        return any(FileRecord.parse(one.record).op == op for one in changes)

    return check


@dataclass(frozen=True)
class SentChange:
    """A change as a server could keep it, whether it accepted it or not."""

    record: bytes
    signature: bytes
    metadata: bytes
    wraps: tuple[Wrap, ...]
    ciphertext: bytes

    @property
    def signed(self) -> SignedRecord:
        generation = FileRecord.parse(self.record).generation
        return SignedRecord(self.record, (GenerationSignature(generation, self.signature),))


def first_change(request: Message) -> SentChange:
    """Return the first change of a changeset."""
    return sent_change(request, 0)


def sent_change(request: Message, number: int) -> SentChange:
    """Return one change of a changeset."""
    assert isinstance(request, Commit)
    change, packed = request.changes[number], RecordTree(request.leaves).pack(request.signature)
    wraps = tuple(wrapped(request, one) for one in request.wraps if one.change == number)
    start = sum(one.inline_size for one in request.changes[:number])
    content = bytes(request.contents[start : start + change.inline_size])
    return SentChange(change.record, packed[change.leaf], change.metadata, wraps, content)


def without_change(request: Commit, number: int) -> Commit:
    """Return the changeset without one change, whose leaf stays in the signed tree."""
    sizes = [one.inline_size for one in request.changes]
    start = sum(sizes[:number])
    contents = bytes(request.contents)
    return changed(
        request,
        changes=request.changes[:number] + request.changes[number + 1 :],
        contents=contents[:start] + contents[start + sizes[number] :],
        wraps=tuple(
            changed(one, change=one.change - (one.change > number))
            for one in request.wraps
            if one.change != number
        ),
    )


def relined(reply: Reply, line: Callable[[bytes], bytes]) -> Reply:
    """Return the answer to a changeset with the lines of all entries replaced."""
    if not isinstance(reply, Committed):
        return reply
    return changed(
        reply, outcomes=tuple(changed(one, line=line(one.line)) for one in reply.outcomes)
    )


def receipt_of(reply: Committed) -> Receipt:
    """Return the receipt of the first change of a changeset."""
    return Receipt(reply.outcomes[0].line, reply.checkpoint, reply.first, reply.leaves)


def wrapped(request: Commit, one: BatchedWrap) -> Wrap:
    """Return a wrap of a changeset as it is kept beside its file."""
    batch = request.batches[one.batch]
    sealed = batch.batch_id + batch.enc + one.item
    return Wrap(batch.user, batch.key_id, batch.algorithm, sealed)
