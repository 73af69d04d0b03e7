"""Packed signatures of single records, by any key and under any label."""

from __future__ import annotations

from protocol.records.record_signatures import RecordTree
from protocol.records.records import record_hash
from protocol.records.signatures import Label, SigningKey


def packed_signature(
    key: SigningKey,
    body: bytes,
    *,
    server: bytes,
    first: bytes,
    generation: int = 1,
    label: Label = Label.RECORDS,
) -> bytes:
    """Return the packed signature of a record that is signed, or endorsed, alone."""
    return packed_hash(
        key, record_hash(body), server=server, first=first, generation=generation, label=label
    )


def packed_hash(
    key: SigningKey,
    digest: bytes,
    *,
    server: bytes,
    first: bytes,
    generation: int,
    label: Label,
) -> bytes:
    """Like `packed_signature`, for the record with the hash `digest`."""
    tree = RecordTree.of_records([digest])
    (packed,) = tree.pack(key.sign(label, tree.signed_body(server, first, generation)))
    return packed
