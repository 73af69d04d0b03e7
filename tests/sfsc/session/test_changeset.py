"""Changesets as the client builds them: what fits one request, and what readers see of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codec.encoding import MAX_BODY
from protocol.codec.merkle import leaf_hash
from protocol.records.record_signatures import verify_record_signature
from protocol.records.records import DELETE, PUT, FileRecord, ReaderEntry, record_hash
from protocol.records.signatures import Label
from protocol.wire.messages import encode
from protocol.wire.messages.base import MAX_REQUEST, MAX_SMALL
from protocol.wire.messages.changes import (
    MAX_BATCHES,
    MAX_CHANGE_WRAPS,
    MAX_CHANGES,
    Commit,
    WrapBatch,
)
from sfsc.session.changeset import Changeset, Draft, fitting
from sfsc.session.session import Session

READERS: tuple[ReaderEntry, ...] = (("bob", bytes(32), 0),)


def record(number: int, readers: tuple[ReaderEntry, ...] = (), op: str = DELETE) -> FileRecord:
    own = {} if op == DELETE else {name: bytes(32) for name in ("segments_root", "dek_commit")}
    if op == PUT:
        own |= {"metadata_sha256": bytes(32), "content_id": bytes(16)}
    return FileRecord(
        server=bytes(32),
        owner="ada",
        actor="ada",
        generation=1,
        file_id=f"{number:032x}",
        rev=2 if op == DELETE else 1,
        op=op,
        prev=bytes(32) if op == DELETE else b"",
        seen=(0, bytes(32)),
        created=1,
        readers=readers,
        current=0 if op == DELETE else 1,
        content=b"",
        version=None if op == DELETE else 1,
        ciphertext_size=None if op == DELETE else 40,
        **own,  # type: ignore[arg-type]
    )


def draft(number: int, readers: tuple[ReaderEntry, ...] = ()) -> Draft:
    made = record(number, readers)
    return Draft(made, made.encode())


def batch_for(user: str) -> WrapBatch:
    return WrapBatch(os.urandom(16), user, bytes(32), "x25519", os.urandom(80))


@dataclass(frozen=True)
class Shape:
    """Sizes of one drafted change."""

    content: int
    metadata: int
    wraps: int
    moved: bool


shapes = st.builds(
    Shape,
    st.sampled_from([0, 40, 5000, MAX_SMALL]),
    st.sampled_from([0, 300, 4096]),
    st.sampled_from([0, 1, 2, 30, 257]),
    st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(shapes, max_size=60), st.integers(1, 8))
def test_what_is_said_to_fit_one_request_fits(kinds: list[Shape], repeated: int) -> None:
    batches = [batch_for(f"user{at}") for at in range(257)]
    made, other = record(1, READERS), record(2, READERS)
    drafts = [
        Draft(
            made,
            made.encode(),
            bytes(kind.metadata),
            tuple((1, batches[at], bytes(60)) for at in range(kind.wraps)),
            bytes(kind.content),
            None,
            (other, other.encode()) if kind.moved else None,
        )
        for kind in kinds * repeated
    ]
    groups = list(fitting(drafts))
    assert [one for group in groups for one in group] == drafts
    for group in groups:
        assert group
        assert sum(len(one.bodies) for one in group) <= MAX_CHANGES
        assert sum(len(one.wraps) for one in group) <= MAX_CHANGE_WRAPS
        names = {batch.batch_id for one in group for _, batch, _ in one.wraps}
        assert len(names) <= MAX_BATCHES


def test_many_small_changes_go_together() -> None:
    groups = list(fitting(draft(number) for number in range(600)))
    assert [len(group) for group in groups] == [256, 256, 88]


def request_of(session: Session, drafts: list[Draft]) -> Commit:
    request = Changeset(session, drafts).request
    assert isinstance(request, Commit)
    return request


def test_a_full_request_fits_a_frame(session: Session) -> None:
    drafts = list(next(iter(fitting(draft(number, READERS) for number in range(300)))))
    full = [
        Draft(one.record, one.body, bytes(300), ((1, batch_for("ada"), bytes(60)),), bytes(2000))
        for one in drafts
    ]
    for group in fitting(full):
        request = request_of(session, group)
        body = sum(map(len, encode(2**32 - 1, request)))
        assert body <= MAX_BODY
        assert body - len(request.contents) <= MAX_REQUEST


@pytest.mark.parametrize(("count", "leaves"), [(1, 1), (2, 2), (3, 4), (5, 8), (200, 256)])
def test_readers_learn_no_number_of_files_that_were_changed_together(
    session: Session, count: int, leaves: int
) -> None:
    """One of the files is shared: its reader gets its leaf's path and the number of leaves."""
    drafts = [draft(number, READERS if number == 0 else ()) for number in range(count)]
    first, second = request_of(session, drafts), request_of(session, drafts)
    assert len(first.leaves) == len(set(first.leaves)) == leaves
    named = [first.leaves[change.leaf] for change in first.changes]
    assert named == [leaf_hash(record_hash(one.body)) for one in drafts]
    padding = set(first.leaves) - set(named)
    assert not padding & set(second.leaves), "padding is random"
    if count > 100:
        assert [one.leaf for one in first.changes] != [one.leaf for one in second.changes]


def test_files_that_nobody_else_reads_have_no_padding(session: Session) -> None:
    drafts = [draft(number) for number in range(5)]
    request = request_of(session, drafts)
    assert [change.leaf for change in request.changes] == [0, 1, 2, 3, 4]
    assert len(request.leaves) == 5


def test_every_record_is_signed(session: Session) -> None:
    first, second = draft(1, READERS), record(2, READERS)
    moved = Draft(first.record, first.body, tombstone=(second, second.encode()))
    changeset = Changeset(session, [moved, draft(3)])
    request = changeset.request
    assert isinstance(request, Commit)
    author = session.author
    assert len(request.leaves) == 4
    assert request.changes[0].leaf != request.changes[0].tombstone_leaf

    for sent, body in zip(changeset._sent, (first.body, draft(3).body), strict=True):
        [packed] = sent.signatures.values()
        verify_record_signature(
            Label.RECORDS,
            packed,
            record_hash(body),
            session.record_signer().key.public,
            server=author.server,
            owner_first=record_hash(session.keyring.statements[0]),
            generation=1,
        )


def test_the_encrypted_kek_of_a_batch_travels_once(session: Session) -> None:
    shared, alone = batch_for("ada"), batch_for("bob")
    items = [os.urandom(60) for _ in range(4)]
    wraps = [((1, shared, items[0]),), ((1, shared, items[1]), (2, alone, items[2]))]
    wraps.append(((1, shared, items[3]),))
    drafts = [draft(number) for number in range(3)]
    with_wraps = [
        Draft(one.record, one.body, wraps=own) for one, own in zip(drafts, wraps, strict=True)
    ]
    request = request_of(session, with_wraps)
    assert request.batches == (shared, alone)
    assert [(one.change, one.version, one.batch) for one in request.wraps] == [
        (0, 1, 0),
        (1, 1, 0),
        (1, 2, 1),
        (2, 1, 0),
    ]
    assert [one.item for one in request.wraps] == items
