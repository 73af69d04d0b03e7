"""The records of a file tell which content a version has."""

from __future__ import annotations

import pytest

from protocol.codec.values import changed
from protocol.records.records import FileRecord
from protocol.wire.messages.base import SignedRecord
from sfsc.errors import BadRecord, Rollback
from sfsc.trust import record_chain
from sfsc.trust.file_records import VerifiedFile
from sfsc.trust.record_chain import RecordChain
from tests.sfsc.trust.test_file_records import Made, access, reencrypted, tombstone, version

FIRST = version()
SECOND = version(2, FIRST.body)
THIRD = version(3, SECOND.body)
RECORDS = [FIRST.record, SECOND.record, access(SECOND.record)]
"""Versions 1 and 2, and a change of the readers."""


def shown(made: Made, head: FileRecord = RECORDS[-1]) -> VerifiedFile:
    return VerifiedFile(made.record, made.body, head, head.encode(), made.metadata, made.wraps)


def signed(*records: FileRecord) -> list[SignedRecord]:
    return [SignedRecord(record.encode(), ()) for record in records]


def test_versions_on_the_chain_are_confirmed() -> None:
    chain = RecordChain(shown(FIRST))
    assert chain.first == 3
    chain.prepend(signed(RECORDS[1]))
    assert chain.first == 2
    assert chain.confirm(shown(SECOND), newest=True).is_confirmed
    chain.prepend(signed(RECORDS[0]))
    assert chain.first == 1
    assert chain.confirm(shown(FIRST)) == changed(shown(FIRST), confirmed=True)
    with pytest.raises(Rollback, match="as its newest"):
        chain.confirm(shown(FIRST), newest=True)


def test_a_refused_or_replaced_content_is_not_confirmed() -> None:
    again = reencrypted(FIRST)
    # A thief of an old key has the content before it was encrypted again.
    head = access(again.record)
    chain = RecordChain(shown(FIRST, head))
    chain.prepend(signed(FIRST.record, again.record))
    assert chain.confirm(shown(again, head)).confirmed
    for lie in (shown(FIRST, head), shown(version(), head), shown(version(2, FIRST.body), head)):
        with pytest.raises(Rollback):
            chain.confirm(lie)


def test_records_that_do_not_lead_to_the_head_are_refused() -> None:
    other = version(2, FIRST.body)
    for wrong in (
        signed(FIRST.record, other.record),
        signed(FIRST.record),
        signed(version().record, SECOND.record),
        signed(SECOND.record, FIRST.record),
        signed(FIRST.record, SECOND.record, RECORDS[2]),
        signed(FIRST.record, changed(SECOND.record, rev=1, prev=b"")),
        [SignedRecord(b"\x80", ())],
    ):
        with pytest.raises(BadRecord):
            RecordChain(shown(FIRST)).prepend(wrong)


def test_a_chain_follows_its_file() -> None:
    chain = RecordChain(shown(FIRST))
    chain.prepend(signed(*RECORDS[:2]))
    assert chain.extend(shown(FIRST))
    third = version(3, RECORDS[2].encode())
    assert chain.extend(shown(third, third.record))
    assert chain.confirm(shown(third, third.record), newest=True).is_confirmed
    deleted = tombstone(third.record)
    assert chain.extend(shown(third, deleted))
    with pytest.raises(Rollback):
        chain.confirm(shown(SECOND, deleted), newest=True)
    # Another file, another head of the same revision, or a gap: another chain is needed.
    elsewhere = changed(deleted, file_id="0" * 32)
    fork = changed(deleted, created=1)
    gap = access(access(deleted))
    for head in (elsewhere, fork, gap, RECORDS[2]):
        assert not chain.extend(shown(third, head))


def test_a_chain_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_chain, "MAX_REVISIONS", 1)
    chain = RecordChain(shown(FIRST))
    chain.prepend(signed(RECORDS[1]))
    chain.prepend(signed(RECORDS[0]))
    longer = RecordChain(shown(FIRST, access(RECORDS[2])))
    longer.prepend(signed(RECORDS[2]))
    longer.prepend(signed(RECORDS[1]))
    with pytest.raises(BadRecord, match="too many"):
        longer.prepend(signed(RECORDS[0]))
