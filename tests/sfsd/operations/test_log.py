"""Reading the log over the wire: all of it verifies, and users read their own entries."""

from __future__ import annotations

import pytest

from protocol.codec import merkle
from protocol.codec.encoding import MAX_BODY
from protocol.log import auditlog
from protocol.log.auditlog import EntryDraft
from protocol.log.checkpoint import Checkpoint, verify
from protocol.log.tags import account_tag
from protocol.wire.messages import Request, encode
from protocol.wire.messages.log import (
    CONSISTENCY,
    INCLUSION,
    MAX_LEAVES,
    LogCheckpoint,
    LogHead,
    LogItem,
    LogLeaves,
    LogLeavesPage,
    LogLines,
    LogLinesPage,
    LogProof,
    LogProven,
)
from sfsd.rules.context import Access, Principal
from sfsd.storage.change import Change
from tests.sfsd.builders import SERVER_ID, VERIFIER, Daemon, refused


def head(served: Daemon, who: Principal) -> tuple[LogCheckpoint, Checkpoint]:
    answer = served.ask(who, LogHead())
    assert isinstance(answer, LogCheckpoint), answer
    return answer, verify(answer.checkpoint, VERIFIER)


def proof(served: Daemon, who: Principal, kind: str, start: int, size: int) -> tuple[bytes, ...]:
    answer = served.ask(who, LogProof(kind, start, size))
    assert isinstance(answer, LogProven), answer
    return answer.proof


def test_the_head_is_the_present_checkpoint(served: Daemon) -> None:
    ada = served.person("ada")
    served.person("bob")
    _, point = head(served, ada.who)
    journal = served.context.journal
    assert (point.size, point.root) == (journal.size, journal.root_at(journal.size))


def test_a_user_name_in_a_foreign_entry_reveals_nothing(served: Daemon) -> None:
    """A name counts only as actor, owner or account of an entry."""
    ada, bob = served.person("ada"), served.person("bob")
    change = Change(EntryDraft("note", "bob", detail={"reason": "ada"}, accounts=("bob",)))
    seq = served.context.committer.submit(change).result(10)
    refused(served.ask(ada.who, LogLines((seq,))), "not-found")
    assert lines(served, bob.who, seq) == (LogItem(seq, served.context.journal.line(seq)),)


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


def test_a_session_of_an_old_key_gets_proofs(served: Daemon) -> None:
    ada = served.person("ada")
    who = ada.log_in(generation=2)
    assert who.access is Access.RESTRICTED
    assert head(served, who)[1].size == served.context.journal.size
    assert proof(served, who, CONSISTENCY, 1, 2)


def leaves(served: Daemon, who: Principal, limit: int = MAX_LEAVES) -> list[bytes]:
    """Return the leaf data of the whole log, read page by page."""
    found = list[bytes]()
    while True:
        answer = served.ask(who, LogLeaves(len(found), limit))
        assert isinstance(answer, LogLeavesPage), answer
        rest, before = bytes(answer.leaves), len(found)
        while rest:
            size = int.from_bytes(rest[:2])
            found.append(rest[2 : 2 + size])
            rest = rest[2 + size :]
        assert len(found) - before <= limit
        if len(found) == before:
            return found


def lines(served: Daemon, who: Principal, *seqs: int) -> tuple[LogItem, ...]:
    answer = served.ask(who, LogLines(seqs))
    assert isinstance(answer, LogLinesPage), answer
    assert sum(map(len, encode(2**32 - 1, answer))) <= MAX_BODY
    return answer.lines


@pytest.mark.parametrize("limit", [1, 3, MAX_LEAVES])
def test_leaves_lead_to_the_checkpoint(served: Daemon, limit: int) -> None:
    ada = served.person("ada")
    served.person("bob")
    found = leaves(served, ada.who, limit)
    assert found == [entry.leaf_data for entry in served.entries()]
    hashes = [merkle.leaf_hash(data) for data in found]
    answer = served.ask(ada.who, LogHead())
    assert isinstance(answer, LogCheckpoint), answer
    point = verify(answer.checkpoint, VERIFIER)
    assert (point.size, point.root) == (len(found), merkle.root(hashes))


def tags_in(data: bytes) -> list[bytes]:
    """Return the tags in leaf data."""
    return [data[at : at + 16] for at in range(32, len(data), 16)]


def test_own_tags_lead_to_own_lines(served: Daemon) -> None:
    ada, bob = served.person("ada"), served.person("bob")
    ada.log_in()
    found = leaves(served, ada.who)
    for count in range(served.context.journal.count("ada")):
        tag = account_tag(ada.tag_key, SERVER_ID, "ada", count)
        [seq] = [seq for seq, data in enumerate(found) if tag in tags_in(data)]
        [item] = lines(served, ada.who, seq)
        assert item.seq == seq
        assert auditlog.leaf_data(item.data) == found[seq]
        assert auditlog.parse(item.data).accounts["ada"] == count
    after = account_tag(ada.tag_key, SERVER_ID, "ada", served.context.journal.count("ada"))
    assert not any(after in tags_in(data) for data in found)
    other = account_tag(bob.tag_key, SERVER_ID, "ada", 0)
    assert not any(other in tags_in(data) for data in found)


def test_lines_of_others_are_as_if_they_did_not_exist(served: Daemon) -> None:
    """But for identity statements, which all users may look up."""
    ada, bob = served.person("ada"), served.person("bob")
    for entry in served.entries():
        readable = "ada" in (entry.owner, *entry.accounts) or entry.op == "enrol"
        answer = served.ask(ada.who, LogLines((entry.seq,)))
        if readable:
            assert isinstance(answer, LogLinesPage), answer
            assert answer.lines == (LogItem(entry.seq, served.context.journal.line(entry.seq)),)
            continue
        hidden = refused(answer, "not-found")
        assert hidden == refused(served.ask(ada.who, LogLines((2**53,))), "not-found")
    assert [item.seq for item in lines(served, bob.who, 2, 4)] == [2, 4]
    refused(served.ask(ada.who, LogLines((2, 3))), "not-found")


@pytest.mark.parametrize("message", [LogLeaves(0, 1), LogLines((0,))])
def test_only_the_current_key_may_follow_the_log(served: Daemon, message: Request) -> None:
    """A thief of an old key or invitation must not learn from where the owner logs in."""
    ada = served.person("ada")
    again = ada.log_in(generation=2)
    assert again.access is Access.RESTRICTED
    refused(served.ask(again, message), "stale-generation")
    refused(served.ask(served.operator(), message), "not-allowed")


def test_a_page_of_lines_fits_in_a_frame(served: Daemon) -> None:
    ada = served.person("ada")
    long = EntryDraft("note", "ada", detail={"reason": "x" * 60_000}, accounts=("ada",))
    seqs = [served.context.committer.submit(Change(long)).result(10) for _ in range(20)]
    found = list[int]()
    while len(found) < len(seqs):
        some = lines(served, ada.who, *seqs[len(found) :])
        assert some
        found += [item.seq for item in some]
    assert found == seqs


def test_a_name_within_other_accounts_is_not_an_account(served: Daemon) -> None:
    served.person("ada")
    assert not auditlog.belongs_to(served.context.journal.line(0), "tags")
    *_, line = served.context.journal.lines()
    assert auditlog.belongs_to(line, "ada")
    for other in ("tags", "prev", "hash", "accounts", "da", "op"):
        assert not auditlog.belongs_to(line, other)
