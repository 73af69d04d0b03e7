"""Reading the log over the wire: all of it verifies, and users read their own entries."""

from __future__ import annotations

import pytest

from protocol.codec import merkle
from protocol.codec.encoding import MAX_BODY
from protocol.log import auditlog
from protocol.log.auditlog import EntryDraft
from protocol.log.checkpoint import Checkpoint, verify
from protocol.wire.messages import encode
from protocol.wire.messages.log import (
    CONSISTENCY,
    INCLUSION,
    MAX_ENTRIES,
    LogCheckpoint,
    LogEntries,
    LogHead,
    LogItem,
    LogPage,
    LogProof,
    LogProven,
)
from sfsd.operations import log
from sfsd.rules.context import Access, Principal
from sfsd.storage.change import Change
from tests.sfsd.builders import VERIFIER, Daemon, refused


def page(served: Daemon, who: Principal, first: int, limit: int = 100, *, own: bool) -> LogPage:
    answer = served.ask(who, LogEntries(first, limit, own))
    assert isinstance(answer, LogPage), answer
    assert sum(map(len, encode(2**32 - 1, answer))) <= MAX_BODY
    return answer


def walk(served: Daemon, who: Principal, limit: int = 100, *, own: bool) -> list[LogItem]:
    """Return the items of every page, in order."""
    found, first = list[LogItem](), 0
    while True:
        answer = page(served, who, first, limit, own=own)
        found += answer.entries
        if answer.next == 0:
            return found
        assert answer.next > first
        first = answer.next


def _is_line(item: LogItem) -> bool:
    return item.data.startswith(b'{"v":2,')


def head(served: Daemon, who: Principal) -> tuple[LogCheckpoint, Checkpoint]:
    answer = served.ask(who, LogHead())
    assert isinstance(answer, LogCheckpoint), answer
    return answer, verify(answer.checkpoint, VERIFIER)


def proof(served: Daemon, who: Principal, kind: str, start: int, size: int) -> tuple[bytes, ...]:
    answer = served.ask(who, LogProof(kind, start, size))
    assert isinstance(answer, LogProven), answer
    return answer.proof


def test_the_head_is_consistent_with_the_login_checkpoint(served: Daemon) -> None:
    ada = served.person("ada")
    served.person("bob")
    answer, point = head(served, ada.who)
    old = ada.who.known_size
    assert old < point.size == served.context.journal.size
    known = served.context.journal.root_at(old)
    merkle.verify_consistency(old, known, point.size, point.root, answer.consistency)


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_every_user_can_compute_the_root_of_the_log(served: Daemon, limit: int) -> None:
    """The root over own lines and hashes of the other lines equals the signed root."""
    ada, bob = served.person("ada"), served.person("bob")
    for person in (ada, bob):
        items = walk(served, person.who, limit, own=False)
        _, point = head(served, person.who)
        assert [item.seq for item in items] == list(range(point.size))
        leaves = [auditlog.leaf_data(i.data) if _is_line(i) else i.data for i in items]
        assert merkle.root(map(merkle.leaf_hash, leaves)) == point.root
        lines = [item for item in items if _is_line(item)]
        assert walk(served, person.who, limit, own=True) == lines
        for item in lines:
            entry = auditlog.parse(item.data, seq=item.seq)
            assert person.name in (entry.actor, entry.owner, *entry.accounts)
        others = [served.context.journal.line(i.seq) for i in items if not _is_line(i)]
        assert others
        assert not any(f'"{person.name}"'.encode() in line for line in others)


def test_own_entries_have_no_gap(served: Daemon) -> None:
    ada = served.person("ada")
    served.person("bob")
    served.open(ada.enroll())
    items = walk(served, ada.who, own=True)
    invitation, *entries = [auditlog.parse(item.data, seq=item.seq) for item in items]
    assert (invitation.op, invitation.accounts) == ("user-add", {})
    assert [entry.accounts["ada"] for entry in entries] == list(range(len(entries)))
    assert entries[0].op == "enrol"
    assert len(entries) == served.context.journal.count("ada") >= 2


def test_a_user_name_in_a_foreign_entry_reveals_nothing(served: Daemon) -> None:
    """A name counts only as actor, owner or account of an entry."""
    ada, bob = served.person("ada"), served.person("bob")
    change = Change(EntryDraft("note", "bob", detail={"reason": "ada"}, accounts=("bob",)))
    seq = served.context.committer.submit(change).result(10)
    (item,) = page(served, ada.who, seq, 1, own=False).entries
    assert item.data == auditlog.leaf_data(served.context.journal.line(seq))
    (item,) = page(served, bob.who, seq, 1, own=True).entries
    assert item.data == served.context.journal.line(seq)


def test_the_operator_reads_every_line(served: Daemon) -> None:
    served.person("ada")
    operator = served.operator()
    for own in (False, True):
        lines = [item.data for item in walk(served, operator, own=own)]
        assert lines == list(served.context.journal.lines())


def test_a_page_fits_in_a_frame(served: Daemon) -> None:
    ada = served.person("ada")
    long = EntryDraft("note", "ada", detail={"reason": "x" * 60_000}, accounts=("ada",))
    for done in [served.context.committer.submit(Change(long)) for _ in range(20)]:
        done.result(10)
    first = page(served, ada.who, 0, MAX_ENTRIES, own=True)
    assert first.next != 0
    found = walk(served, ada.who, MAX_ENTRIES, own=True)
    assert len([item for item in found if len(item.data) > 60_000]) == 20


def test_one_page_examines_a_bounded_part_of_a_long_log(
    served: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "SCAN", 2)
    ada = served.person("ada")
    served.person("bob")
    first = page(served, ada.who, 0, own=True)
    assert first.next == 2
    seqs = [item.seq for item in walk(served, ada.who, own=True)]
    assert seqs == [entry.seq for entry in served.entries() if entry.owner == "ada"]


def test_a_page_past_the_end_is_empty(served: Daemon) -> None:
    ada = served.person("ada")
    for first in (served.context.journal.size, 2**53):
        assert page(served, ada.who, first, own=False) == LogPage((), 0)


def test_proofs_verify(served: Daemon) -> None:
    ada = served.person("ada")
    journal = served.context.journal
    _, point = head(served, ada.who)
    for seq in range(point.size):
        leaf = merkle.leaf_hash(auditlog.leaf_data(journal.line(seq)))
        found = proof(served, ada.who, INCLUSION, seq, point.size)
        merkle.verify_inclusion(leaf, seq, point.size, found, point.root)
    for old in range(point.size + 1):
        found = proof(served, ada.who, CONSISTENCY, old, point.size)
        merkle.verify_consistency(old, journal.root_at(old), point.size, point.root, found)


@pytest.mark.parametrize("kind", [INCLUSION, CONSISTENCY])
@pytest.mark.parametrize(("start", "size"), [(0, 2**53), (2**53, 2**53), (3, 2)])
def test_impossible_proofs_are_refused(served: Daemon, kind: str, start: int, size: int) -> None:
    ada = served.person("ada")
    refused(served.ask(ada.who, LogProof(kind, start, size)), "bad-request")


def test_a_session_of_an_old_key_gets_proofs_but_no_entries(served: Daemon) -> None:
    """A thief of an old key or invitation must not learn from where the owner logs in."""
    ada = served.person("ada")
    who, _ = served.open(ada.enroll())
    assert who.access is Access.RESTRICTED
    assert head(served, who)[1].size == served.context.journal.size
    assert proof(served, who, CONSISTENCY, 1, 2)
    for own in (False, True):
        refused(served.ask(who, LogEntries(0, 1, own)), "not-allowed")
