"""Changesets: changes of files that are signed and sent together, and what their answer proves."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from protocol.codec.encoding import MAX_BODY, Buffer
from protocol.codec.merkle import HASH_SIZE, leaf_hash
from protocol.codec.values import Value
from protocol.records.record_signatures import MAX_SIGNED, RecordTree
from protocol.records.records import WRAP_ITEM_SIZE, FileRecord, record_hash
from protocol.wire.messages import Error, Receipt, Reply
from protocol.wire.messages.base import MAX_REQUEST
from protocol.wire.messages.changes import (
    MAX_BATCHES,
    MAX_CHANGE_WRAPS,
    MAX_CHANGES,
    BatchedWrap,
    Change,
    Commit,
    Committed,
    WrapBatch,
)
from sfsc.crypto.envelope import VersionWrap
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session
from sfsc.trust.server_log import SentChange

_CHANGE_BYTES: Final = 96 + 2 * HASH_SIZE
"""Upper estimate of a change's bytes on the wire, beside its records and metadata."""
_WRAP_BYTES: Final = WRAP_ITEM_SIZE + 24
_BATCH_BYTES: Final = 128
"""Upper estimate of a wrap batch's bytes on the wire, beside its encrypted KEK."""
_ENVELOPE: Final = 4096


class Draft(Value):
    """A change that is ready to be signed: its record with the exact bytes, and what it describes.

    `metadata` is encrypted. A new ciphertext is `content`, at most 256
    KiB, or has been uploaded as `upload`. `tombstone` is the second record of a move.
    """

    record: FileRecord
    body: bytes
    metadata: bytes = b""
    wraps: tuple[VersionWrap, ...] = ()
    content: Buffer = b""
    upload: bytes | None = None
    tombstone: tuple[FileRecord, bytes] | None = None

    @property
    def bodies(self) -> tuple[bytes, ...]:
        """The exact bytes of the one or two records."""
        return (self.body,) if self.tombstone is None else (self.body, self.tombstone[1])


class Changeset:
    """Drafts, signed together. The request must be sent at once: see `Session.check_trusted`."""

    def __init__(self, session: Session, drafts: Sequence[Draft], *, atomic: bool = False) -> None:
        """`drafts` are of different files, and fit into one request (`fitting`). If `atomic`, all
        are made, or none. Raises as `Session.record_signer`."""
        self._atomic = atomic
        self._session = session
        self.drafts = drafts
        self.connection: int = session.connections
        """The connection that the request was made for."""
        self.since: int = session.followed_size
        """The size to which the log was followed then."""
        signer = session.record_signer()
        tree, places = _tree_of(drafts)
        signature = signer.sign_tree(tree)
        packed = tree.pack(signature)
        changes = list[Change]()
        self._sent = list[SentChange]()
        for draft, leaves in zip(drafts, places, strict=True):
            tombstone = None
            if draft.tombstone is not None:
                tombstone = draft.tombstone[1], packed[leaves[1]]
            self._sent.append(
                session.sent_record(draft.record, draft.body, packed[leaves[0]], tombstone)
            )
            changes.append(
                Change.of_checked(
                    draft.body,
                    leaves[0],
                    draft.metadata,
                    len(draft.content),
                    draft.upload,
                    b"" if draft.tombstone is None else draft.tombstone[1],
                    leaves[-1] if draft.tombstone is not None else 0,
                )
            )
        batches, wraps = _batched(drafts)
        contents = b"".join(draft.content for draft in drafts)
        self.request: Commit = Commit(
            tuple(changes), tree.leaves, signature, batches, wraps, atomic, contents
        )

    def outcomes(self, reply: Reply) -> list[Receipt | Error]:
        """Return what became of each draft: a receipt, whose entry matches what was sent, or the
        error. Call `Session.link_receipts` before reporting success. Raises `BadReceipt`, and
        `PartialSet` if only some of an atomic set were made."""
        if isinstance(reply, Error):
            return [reply] * len(self.drafts)
        answer = expect_reply(reply, Committed)
        records = {draft.body: draft.record for draft in self.drafts}
        return self._session.accept_changes(answer, self._sent, records, atomic=self._atomic)

    def has_landed(self) -> bool:
        """Return whether the log has the changes of an atomic set, although the server refused
        them: the reply to an earlier request may have been lost. Raises `PartialSet`, and as
        `Session.refresh_log`."""
        self._session.refresh_log()
        return self._session.has_set(self._sent)


def fitting(drafts: Iterable[Draft]) -> Iterator[list[Draft]]:
    """Cut drafts into lists that fit into one request each, keeping their order."""
    room: _Room | None = None
    found: list[Draft] = []
    for draft in drafts:
        if room is None or not room.takes(draft):
            if found:
                yield found
            room, found = _Room(), []
            room.takes(draft)
        found.append(draft)
    if found:
        yield found


class _Room:
    """The room that is left in one request."""

    def __init__(self) -> None:
        self._records = MAX_CHANGES
        self._wraps = MAX_CHANGE_WRAPS
        self._head = MAX_REQUEST - _ENVELOPE
        self._body = MAX_BODY - _ENVELOPE
        self._batches: dict[int, WrapBatch] = {}

    def takes(self, draft: Draft) -> bool:
        """Take the room that the draft needs, and return whether it was there."""
        new = {id(batch): batch for _, batch, _ in draft.wraps if id(batch) not in self._batches}
        head = sum(map(len, draft.bodies)) + len(draft.metadata) + _CHANGE_BYTES
        head += len(draft.wraps) * _WRAP_BYTES
        head += sum(len(batch.enc) + _BATCH_BYTES for batch in new.values())
        self._records -= len(draft.bodies)
        self._wraps -= len(draft.wraps)
        self._head -= head
        self._body -= head + len(draft.content)
        self._batches.update(new)
        left = self._records, self._wraps, self._head, self._body
        return min(left) >= 0 and len(self._batches) <= MAX_BATCHES


def _tree_of(drafts: Sequence[Draft]) -> tuple[RecordTree, list[tuple[int, ...]]]:
    """Return the tree over the records of all drafts, and the numbers of each draft's leaves.

    Readers of a shared file get its leaf's path. So that they do not learn how many files were
    changed together, or in which order, leaves are then shuffled and padded to a power of two.
    """
    leaves = [leaf_hash(record_hash(body)) for draft in drafts for body in draft.bodies]
    order = list(range(len(leaves)))
    if len(leaves) > 1 and any(draft.record.readers for draft in drafts):
        size = min(MAX_SIGNED, 1 << (len(leaves) - 1).bit_length())
        leaves += [os.urandom(HASH_SIZE) for _ in range(size - len(leaves))]
        order = sorted(range(size), key=lambda _leaf: os.urandom(HASH_SIZE))
    place = {leaf: number for number, leaf in enumerate(order)}
    tree = RecordTree([leaves[leaf] for leaf in order])
    counted = iter(range(len(leaves)))
    return tree, [tuple(place[next(counted)] for _ in draft.bodies) for draft in drafts]


def _batched(
    drafts: Sequence[Draft],
) -> tuple[tuple[WrapBatch, ...], tuple[BatchedWrap, ...]]:
    """Return the wraps of all drafts, and their batches, each once."""
    numbers: dict[int, int] = {}
    batches: list[WrapBatch] = []
    wraps: list[BatchedWrap] = []
    for change, draft in enumerate(drafts):
        for version, batch, item in draft.wraps:
            number = numbers.setdefault(id(batch), len(numbers))
            if number == len(batches):
                batches.append(batch)
            wraps.append(BatchedWrap.of_checked(change, version, number, item))
    return tuple(batches), tuple(wraps)
