"""Lookups, changes of readers, and the inbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.codec.values import changed
from protocol.log import auditlog
from protocol.records.records import ACCESS, ReaderEntry, key_id, record_hash
from protocol.records.signatures import Label
from protocol.wire.messages import Error
from protocol.wire.messages.accounts import ForceRotation
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.changes import Commit
from protocol.wire.messages.downloads import OpenedVersion, Read
from protocol.wire.messages.files import Stat
from protocol.wire.messages.rotation import GetWraps, RewrapItem, Rewrapped, WrapsPage
from protocol.wire.messages.sharing import (
    BlockedOwners,
    BlockOwner,
    Identity,
    Inbox,
    InboxPage,
    ListBlocked,
    Lookup,
)
from sfsd.errors import Refused, SfsdError, Stale
from sfsd.operations import changesets, sharing
from sfsd.rules.context import Access, Transaction
from sfsd.settings.kinds import DAY
from tests.opens import open_one
from tests.sfsd.builders import (
    Daemon,
    Person,
    Version,
    check_receipt,
    check_tags,
    daemon,
    done,
    file_id,
    refused,
)

F = file_id(1)


def test_lookup_shows_the_log_entry_of_each_statement(served: Daemon) -> None:
    ada, bob = served.person("ada"), served.person("bob")
    reply = ada.ask(Lookup("bob", 1))
    assert isinstance(reply, Identity)
    (link,) = reply.statements
    assert (link.statement, reply.next) == (bob.first.encode(), 0)
    entry = auditlog.parse(link.line, seq=link.index)
    assert (entry.op, entry.owner, entry.rec) == ("enrol", "bob", link.statement)
    assert link.line == served.context.journal.line(link.index)
    assert "192.0.2.7" not in link.line.decode()  # other users see this line


def test_lookup_past_the_end_of_a_chain_is_empty(served: Daemon) -> None:
    ada = served.person("ada")
    reply = ada.ask(Lookup("ada", 2))
    assert isinstance(reply, Identity)
    assert (reply.statements, reply.next) == ((), 0)


def test_invited_and_unknown_users_give_the_same_error(served: Daemon) -> None:
    ada = served.person("ada")
    served.ask(served.operator(), Person("eve", served).invitation())
    invited = refused(ada.ask(Lookup("eve", 1)), "not-found")
    assert invited == refused(ada.ask(Lookup("nobody", 1)), "not-found")


def test_a_session_of_an_older_key_looks_up_only_its_own_user(served: Daemon) -> None:
    ada = served.person("ada")
    served.person("bob")
    who = ada.log_in(generation=2)
    assert who.access is Access.RESTRICTED
    assert isinstance(served.ask(who, Lookup("ada", 1)), Identity)
    refused(served.ask(who, Lookup("bob", 1)), "not-allowed")


def reader(person: Person, expires: int = 0) -> ReaderEntry:
    return (person.name, person.first_hash, expires)


def record_of(owner: Person, *readers: ReaderEntry, **changed: object) -> Version:
    record = owner.record(F, ACCESS, readers=tuple(sorted(readers)), **changed)
    return owner.signed(record)


def change(
    owner: Person, *readers: ReaderEntry, wraps: dict[int, list[Wrap]] | None = None
) -> tuple[Version, Commit]:
    """Return a record that changes the readers of `F`, and its request; `wraps` by version."""
    made = record_of(owner, *readers)
    return made, made.share(wraps)


def decided(served: Daemon, who: Person, message: Commit) -> Transaction[int]:
    """Return the decision on a changeset of one."""
    changeset = changesets.commit(served.context, who.who, message)
    [made] = changeset.decide([0], lambda _lines: None)
    if isinstance(made, SfsdError):
        raise made
    assert isinstance(made, Transaction)
    return made


def shared(
    owner: Person, *readers: ReaderEntry, wraps: dict[int, list[Wrap]] | None = None
) -> None:
    made, message = change(owner, *readers, wraps=wraps)
    check_receipt(done(owner.ask(message)), made.body)
    owner.took(made)


def received(person: Person, since: int = 0) -> list[tuple[str, str, bool]]:
    found: list[tuple[str, str, bool]] = []
    after = ""
    while True:
        page = person.ask(Inbox(after, 2, since))
        assert isinstance(page, InboxPage), page
        found += [(one.owner, one.file_id, one.view is not None) for one in page.files]
        if not page.next:
            return found
        after = page.next


def wrap_owners(served: Daemon, owner: str, version: int) -> set[str]:
    sidecar = served.context.index.for_user(owner).sidecar(F, version).value
    return {wrap.user for wrap in sidecar.wraps}


@pytest.fixture
def bob(served: Daemon) -> Person:
    return served.person("bob")


def test_a_file_is_shared_read_and_unshared(served: Daemon, ada: Person, bob: Person) -> None:
    ada.put(F, b"one")
    ada.put(F, b"two")
    refused(bob.ask(open_one("ada", F, 0)), "not-found")
    shared(ada, reader(bob), wraps={2: [bob.wrap()]})
    assert received(bob) == [("ada", F, True)]
    opened = bob.ask(open_one("ada", F, 0))
    assert isinstance(opened, OpenedVersion)
    assert [wrap.user for wrap in opened.view.wraps] == ["bob"]
    # An older version is visible, but has no wrap for bob.
    older = bob.ask(open_one("ada", F, 1))
    assert isinstance(older, OpenedVersion)
    assert older.view.wraps == ()
    shared(ada)
    for asked in (open_one("ada", F, 0), open_one("ada", F, 1), Read(opened.handle, 0, 1)):
        refused(bob.ask(asked), "not-found")
    assert received(bob) == []
    assert wrap_owners(served, "ada", 2) == {"ada"}
    assert [set(entry.accounts) for entry in served.entries("access")] == [{"ada", "bob"}] * 2
    check_tags(served, {"ada": ada.tag_key, "bob": bob.tag_key})


def test_wraps_of_older_versions_are_added_and_dropped_with_a_reader(
    served: Daemon, ada: Person, bob: Person
) -> None:
    for content in (b"1", b"2", b"3"):
        ada.put(F, content)
    shared(ada, reader(bob), wraps={v: [bob.wrap()] for v in (1, 2, 3)})
    assert all(wrap_owners(served, "ada", v) == {"ada", "bob"} for v in (1, 2, 3))
    ada.put(F, b"4", wraps=(ada.wrap(), bob.wrap()))
    shared(ada)
    assert all(wrap_owners(served, "ada", v) == {"ada"} for v in (1, 2, 3, 4))


def test_wraps_of_many_versions_are_dropped_by_several_records(
    served: Daemon, ada: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "MAX_TOUCHED", 2)
    for content in (b"1", b"2", b"3"):
        ada.put(F, content)
    shared(ada, reader(bob), wraps={3: [bob.wrap()], 2: [bob.wrap()]})
    shared(ada, reader(bob), wraps={1: [bob.wrap()]})
    refused(ada.ask(change(ada, wraps={v: [bob.wrap()] for v in (1, 2)})[1]), "bad-request")
    shared(ada)
    assert [wrap_owners(served, "ada", v) for v in (3, 2)] == [{"ada"}] * 2
    refused(bob.ask(open_one("ada", F, 1)), "not-found")
    shared(ada)
    assert wrap_owners(served, "ada", 1) == {"ada"}


def test_older_wraps_of_a_reader_who_is_added_again_are_removed(
    served: Daemon, ada: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are for a key that the reader may have destroyed meanwhile."""
    for content in (b"1", b"2", b"3"):
        ada.put(F, content)
    shared(ada, reader(bob), wraps={v: [bob.wrap()] for v in (1, 2, 3)})
    with monkeypatch.context() as patch:
        patch.setattr(sharing, "MAX_TOUCHED", 1)
        shared(ada)
    assert [wrap_owners(served, "ada", v) for v in (1, 2)] == [{"ada", "bob"}] * 2
    shared(ada, reader(bob), wraps={v: [bob.wrap()] for v in (1, 3)})
    both = {"ada", "bob"}
    assert [wrap_owners(served, "ada", v) for v in (1, 2, 3)] == [both, {"ada"}, both]
    page = bob.ask(GetWraps("", 10, all_of_them=True))
    assert isinstance(page, WrapsPage)
    assert [one.version for one in page.items] == [1, 3]


def test_every_request_is_refused_after_a_grant_expires(
    served: Daemon, ada: Person, bob: Person
) -> None:
    ada.put(F, b"one")
    until = int(served.clock.now) + DAY
    shared(ada, reader(bob, until), wraps={1: [bob.wrap()]})
    opened = bob.ask(open_one("ada", F, 0))
    assert isinstance(opened, OpenedVersion)
    served.clock.now = until - 1
    assert not isinstance(bob.ask(Read(opened.handle, 0, 1)), Error)
    served.clock.now = until
    refused(bob.ask(Read(opened.handle, 0, 1)), "not-found")
    refused(bob.ask(open_one("ada", F, 0)), "not-found")
    assert received(bob) == []


def test_invalid_readers_are_refused(served: Daemon, ada: Person, bob: Person) -> None:
    ada.put(F, b"one")
    eve = served.person("eve")
    unknown = ("zoe", bytes(32), 0)
    for code, readers, wraps in (
        ("stale-recipient", [reader(bob)], {}),
        ("stale-recipient", [reader(bob)], {1: [bob.wrap(key_id=bytes(32))]}),
        ("bad-request", [unknown], {1: [bob.wrap(user="zoe")]}),
        ("bad-request", [("bob", bytes(32), 0)], {1: [bob.wrap()]}),
        ("bad-request", [reader(bob)], {1: [bob.wrap(), eve.wrap()]}),
        ("bad-request", [reader(bob)], {1: [bob.wrap(wrapped=bytes(155))]}),
        ("bad-request", [reader(bob)], {1: [bob.wrap(), bob.wrap()]}),
        ("not-found", [reader(bob)], {2: [bob.wrap()]}),
        ("bad-request", [reader(bob)], {1: [bob.wrap(), ada.wrap()]}),
    ):
        refused(ada.ask(change(ada, *readers, wraps=wraps)[1]), code)
    moved_on = record_of(ada, reader(bob), current=0)
    refused(ada.ask(moved_on.share({1: [bob.wrap()]})), "bad-request")
    right, message = change(ada, reader(bob), wraps={1: [bob.wrap()]})
    refused(bob.ask(message), "not-found")
    refused(ada.ask(changed(message, signature=bytes(64))), "refused")
    assert received(bob) == []
    # The same request again gets the same receipt.
    first = check_receipt(done(ada.ask(message)))
    assert check_receipt(done(ada.ask(message))) == first
    ada.took(right)


def test_the_wraps_that_a_reencryption_needs(ada: Person, bob: Person) -> None:
    """The newest version needs a wrap for every reader, an older one only for the owner."""
    ada.put(F, b"1" * 60)
    ada.put(F, b"2" * 60)
    shared(ada, reader(bob), wraps={2: [bob.wrap()]})
    refused(
        ada.ask(ada.reencrypted(F, 2, b"n" * 60, wraps=(ada.wrap(),)).small()), "stale-recipient"
    )
    both = (ada.wrap(), bob.wrap())
    for version, wraps in ((2, both), (1, (ada.wrap(),)), (1, both)):
        made = ada.reencrypted(F, version, b"n" * 60, wraps=wraps)
        done(ada.ask(made.small()))
        ada.took(made)
    refused(
        ada.ask(ada.reencrypted(F, 1, b"n" * 60, wraps=(bob.wrap(),)).small()), "stale-recipient"
    )


def test_an_old_record_or_another_op_does_not_change_readers(ada: Person, bob: Person) -> None:
    ada.put(F, b"one")
    early, message = change(ada, reader(bob), wraps={1: [bob.wrap()]})
    ada.put(F, b"two")
    assert refused(ada.ask(message), "conflict").head is not None
    sneaky = ada.version(F, b"three", readers=(reader(bob),), wraps=(ada.wrap(), bob.wrap()))
    refused(ada.ask(sneaky.small()), "bad-request")
    assert early.record.rev == 2


def test_too_many_readers_or_versions_at_once_are_refused(
    served: Daemon, ada: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada.put(F, b"one")
    monkeypatch.setattr(sharing, "MAX_READERS_CHANGED", 0)
    refused(ada.ask(change(ada, reader(bob), wraps={1: [bob.wrap()]})[1]), "bad-request")
    monkeypatch.undo()
    monkeypatch.setattr(served.context.wishes, "shared_files", 1)
    ada.put(file_id(2), b"x", readers=(reader(bob),), wraps=(ada.wrap(), bob.wrap()))
    full = refused(ada.ask(change(ada, reader(bob), wraps={1: [bob.wrap()]})[1]), "share-refused")
    assert full.readers == ("bob",)
    eve = served.person("eve")
    eve.put(F, b"y", readers=(reader(bob),), wraps=(eve.wrap(), bob.wrap()))
    assert {owner for owner, _, _ in received(bob)} == {"ada", "eve"}


def test_a_user_who_must_rotate_may_drop_readers_and_add_none(
    served: Daemon, ada: Person, bob: Person
) -> None:
    """A thief of the key must not give anybody access."""
    cat = served.person("cat")
    ada.put(F, b"one", readers=(reader(bob),), wraps=(ada.wrap(), bob.wrap()))
    done(served.ask(served.operator(), ForceRotation("ada", "stolen laptop")))
    for readers in ((reader(bob), reader(cat)), (reader(cat),)):
        _, message = change(ada, *readers, wraps={1: [cat.wrap()]})
        refused(ada.ask(message), "rotation-required")
    shared(ada)
    assert wrap_owners(served, "ada", 1) == {"ada"}


def test_two_records_are_never_appended_to_the_same_head(
    served: Daemon, ada: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another record is stored between the decision on one record and its read of the sidecar."""
    ada.put(F, b"one")
    cat = served.person("cat")
    (_, first), (second, other) = (
        change(ada, reader(one), wraps={1: [one.wrap()]}) for one in (bob, cat)
    )
    winner = decided(served, ada, other)
    decide = sharing.change_readers

    def overtaken(*arguments: Any) -> Transaction[int]:
        served.context.committer.submit(winner.change).result(10)
        return decide(*arguments)

    monkeypatch.setitem(changesets._BY_OP, ACCESS, overtaken)
    loser = decided(served, ada, first)
    with pytest.raises(Stale):
        served.context.committer.submit(loser.change).result(10)
    assert wrap_owners(served, "ada", 1) == {"ada", "cat"}
    ada.took(second)


def test_repeated_sharing_and_unsharing_does_not_grow_the_sidecar(
    served: Daemon, ada: Person, bob: Person
) -> None:
    ada.put(F, b"one")
    sizes: set[int] = set()
    for turn in range(12):
        shared(ada, reader(bob), wraps={1: [bob.wrap()]})
        shared(ada)
        if turn:  # the sidecar has the decimal number of its entry
            sizes.add(len(served.context.store.read(f"ada/files/{F[:2]}/{F}.1.json")))
    assert max(sizes) - min(sizes) < 16
    assert received(bob) == []
    assert served.context.store.children("bob/inbox") == []


def test_a_new_file_with_too_many_readers_for_a_log_line_is_refused(
    served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 readers exceed a log line of 64 KiB: the put is refused, and the daemon still works."""
    crowd = [served.person(f"reader-{n:03}") for n in range(16)]
    readers = tuple(reader(one) for one in crowd)
    put = ada.version(F, b"x", readers=readers, wraps=(ada.wrap(), *(o.wrap() for o in crowd)))
    monkeypatch.setattr(auditlog, "MAX_LINE", 4096)
    refused(ada.ask(put.small()), "bad-request")
    refused(ada.ask(open_one("ada", F, 0)), "not-found")
    assert received(crowd[0]) == []
    monkeypatch.undo()
    ada.took(put)
    done(ada.ask(put.small()))
    assert isinstance(crowd[15].ask(open_one("ada", F, 0)), OpenedVersion)


def test_an_inbox_is_ordered_and_lists_changed_files(
    served: Daemon, ada: Person, bob: Person
) -> None:
    eve = served.person("eve")
    for owner in (eve, ada):
        for number in (3, 1, 2):
            wraps = (owner.wrap(), bob.wrap())
            owner.put(file_id(number), b"x", readers=(reader(bob),), wraps=wraps)
    everything = [(o, file_id(n), True) for o in ("ada", "eve") for n in (1, 2, 3)]
    assert received(bob) == everything
    size = served.context.journal.size
    ada.put(file_id(2), b"y", wraps=(ada.wrap(), bob.wrap()))
    eve.delete(file_id(3))
    assert received(bob, size) == [
        ("ada", file_id(1), False),
        ("ada", file_id(2), True),
        ("ada", file_id(3), False),
        ("eve", file_id(1), False),
        ("eve", file_id(2), False),
    ]
    for odd in ("zzz", "eve.zz", "..", "eve"):
        assert isinstance(bob.ask(Inbox(odd, 2, 0)), InboxPage)


def test_an_inbox_survives_a_restart(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        ada, bob = served.person("ada"), served.person("bob")
        ada.put(F, b"x", readers=(reader(bob),), wraps=(ada.wrap(), bob.wrap()))
        ada.put(file_id(2), b"x")
    with daemon(tmp_path) as served:
        bob.served = served
        bob.who = bob.log_in()
        assert received(bob) == [("ada", F, True)]


def wraps_of(person: Person, *, everything: bool) -> list[tuple[str, str, int]]:
    found: list[tuple[str, str, int]] = []
    after = ""
    while True:
        page = person.ask(GetWraps(after, 2, everything))
        assert isinstance(page, WrapsPage), page
        found += [(one.owner, one.file_id, one.version) for one in page.items]
        if not page.next:
            return found
        after = page.next


def test_wraps_are_ordered_by_owner_file_and_version(served: Daemon, ada: Person) -> None:
    bob, cat = served.person("bob"), served.person("cat")
    for owner in (ada, cat):
        for number in (1, 2):
            wraps = (owner.wrap(), bob.wrap())
            owner.put(file_id(number), b"x", readers=(reader(bob),), wraps=wraps)
            owner.put(file_id(number), b"y", wraps=wraps)
    bob.put(F, b"own")
    expected = [("ada", file_id(n), v) for n in (1, 2) for v in (1, 2)]
    expected += [("bob", F, 1)]
    expected += [("cat", file_id(n), v) for n in (1, 2) for v in (1, 2)]
    assert wraps_of(bob, everything=True) == expected
    assert wraps_of(bob, everything=False) == []


def test_a_reader_can_replace_only_their_own_wrap(served: Daemon, ada: Person, bob: Person) -> None:
    eve = served.person("eve")
    ada.put(F, b"x", readers=(reader(bob),), wraps=(ada.wrap(), bob.wrap()))
    before = served.context.index.for_user("ada").sidecar(F, 1).value.wraps
    mine = bob.wrap()
    # bob's key is unchanged, so nothing is written; ada's versions are not shared with others.
    assert bob.ask(bob.rewrap(RewrapItem("ada", F, 1, mine, ()))) == Rewrapped(None, (0,))
    assert eve.ask(eve.rewrap(RewrapItem("ada", F, 1, eve.wrap(), ()))) == Rewrapped(None, (0,))
    for code, wrap in (
        ("bad-request", ada.wrap()),
        ("bad-request", bob.wrap(user="ada")),  # in ada's name, for bob's key
        ("stale-recipient", bob.wrap(key_id=ada.wrap().key_id)),
    ):
        refused(bob.ask(bob.rewrap(RewrapItem("ada", F, 1, wrap, ()))), code)
    assert served.context.index.for_user("ada").sidecar(F, 1).value.wraps == before
    # A reader may remove a wrap that does not open.
    reply = bob.ask(bob.rewrap(RewrapItem("ada", F, 1, None, ())))
    assert isinstance(reply, Rewrapped)
    assert reply.receipt is not None
    entry = check_receipt(reply.receipt)
    assert (entry.op, entry.owner, entry.actor) == ("rewrap", "ada", "bob")
    assert set(entry.accounts) == {"ada", "bob"}
    assert wrap_owners(served, "ada", 1) == {"ada"}


def left(reader_: Person, owner: Person, file: str = F) -> None:
    message = reader_.leave(owner.name, file, record_hash(owner.heads[file]))
    entry = check_receipt(done(reader_.ask(message)), message.record)
    who = (entry.op, entry.actor, entry.owner, entry.file)
    assert who == ("leave", reader_.name, owner.name, file)
    assert set(entry.accounts) == {owner.name, reader_.name}
    signer = key_id("ed25519", reader_.key.public).hex()
    assert entry.sigs == {signer: message.signature}


def test_a_reader_who_has_left_sees_nothing_and_needs_no_wrap(
    served: Daemon, ada: Person, bob: Person
) -> None:
    ada.put(F, b"one", readers=(reader(bob),), wraps=(ada.wrap(), bob.wrap()))
    left(bob, ada)
    assert received(bob) == []
    for asked in (open_one("ada", F, 0), Stat("ada", F, 0), open_one("ada", F, 1)):
        refused(bob.ask(asked), "not-found")
    page = bob.ask(GetWraps("", 10, all_of_them=True))
    assert isinstance(page, WrapsPage)
    assert page.items == ()
    refused(bob.ask(bob.leave("ada", F, record_hash(ada.heads[F]))), "not-found")
    # The owner's client may still wrap for the reader, but nobody waits for it.
    ada.put(F, b"two", wraps=(ada.wrap(),))
    ada.put(F, b"three", wraps=(ada.wrap(), bob.wrap()))
    assert received(bob) == []
    # A reader who is dropped and added again is a new reader.
    shared(ada)
    shared(ada, reader(bob), wraps={3: [bob.wrap()]})
    assert received(bob) == [("ada", F, True)]
    # So is one for whom the owner makes a wrap anew.
    left(bob, ada)
    shared(ada, reader(bob))
    assert received(bob) == []
    shared(ada, reader(bob), wraps={3: [bob.wrap()]})
    assert received(bob) == [("ada", F, True)]
    assert [set(one.accounts) for one in served.entries("access")][-2:] == [{"ada"}, {"ada", "bob"}]
    check_tags(served, {"ada": ada.tag_key, "bob": bob.tag_key})


def test_leaving_makes_room_for_another_file(
    served: Daemon, ada: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.context.wishes, "shared_files", 1)
    both = (ada.wrap(), bob.wrap())
    ada.put(F, b"one", readers=(reader(bob),), wraps=both)
    other = ada.version(file_id(2), b"two", readers=(reader(bob),), wraps=both)
    refused(ada.ask(other.small()), "share-refused")
    left(bob, ada)
    done(ada.ask(other.small()))
    assert received(bob) == [("ada", file_id(2), True)]


def test_a_new_file_needs_a_wrap_for_each_reader(ada: Person, bob: Person) -> None:
    """Nobody can have left it yet."""
    made = ada.version(F, b"one", readers=(reader(bob),), wraps=(ada.wrap(),))
    refused(ada.ask(made.small()), "stale-recipient")


def test_a_reader_whose_account_is_damaged_stops_no_put(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        ada, bob = served.person("ada"), served.person("bob")
    (tmp_path / "store/users/bob/account.json").write_bytes(b"{}")
    with daemon(tmp_path) as served:
        ada.served, ada.who = served, served.open(ada.login())[0]
        with pytest.raises(Refused):
            served.open(bob.login())
        ada.put(F, b"one", readers=(reader(bob),), wraps=(ada.wrap(),))
        ada.put(F, b"two", wraps=(ada.wrap(),))


def test_wrong_leave_records_are_refused(served: Daemon, ada: Person, bob: Person) -> None:
    eve = served.person("eve")
    readers = tuple(sorted((reader(bob), reader(eve))))
    ada.put(F, b"one", readers=readers, wraps=(ada.wrap(), bob.wrap(), eve.wrap()))
    head = record_hash(ada.heads[F])
    right = bob.leave("ada", F, head)
    other = eve.leave("ada", F, head)
    for code, message in (
        ("bad-request", bob.leave("ada", F, head, server=bytes(32))),
        ("bad-request", bob.leave("ada", F, head, user="eve", first=eve.first_hash)),
        ("bad-request", bob.leave("ada", F, head, first=bytes(32))),
        ("bad-request", bob.leave("ada", F, head, generation=2)),
        ("bad-request", changed(right, record=right.record[:-1])),
        ("bad-request", other),
        ("refused", changed(right, signature=other.signature)),
        ("refused", changed(right, signature=bob.key.sign(Label.RECORDS, right.record))),
        ("conflict", bob.leave("ada", F, bytes(32))),
        ("not-found", bob.leave("ada", file_id(9), head)),
    ):
        refused(bob.ask(message), code)
    assert {owner for owner, _, _ in received(bob)} == {"ada"}
    ada.put(F, b"two", wraps=(ada.wrap(), bob.wrap(), eve.wrap()))
    stale = refused(bob.ask(right), "conflict")
    assert stale.head is not None
    assert stale.head.content.record == ada.heads[F]
    assert [one.user for one in stale.head.wraps] == ["bob"]


def test_a_blocked_owner_is_not_seen_and_stores_without_the_reader(
    served: Daemon, ada: Person, bob: Person
) -> None:
    eve = served.person("eve")
    ada.put(F, b"one", readers=(reader(bob),), wraps=(ada.wrap(), bob.wrap()))
    eve.put(F, b"one", readers=(reader(bob),), wraps=(eve.wrap(), bob.wrap()))
    entry = check_receipt(done(bob.ask(BlockOwner("eve", blocked=True))))
    assert (entry.op, entry.owner, set(entry.accounts)) == ("block", "bob", {"bob"})
    assert bob.ask(ListBlocked()) == BlockedOwners(("eve",))
    assert received(bob) == [("ada", F, True)]
    refused(bob.ask(open_one("eve", F, 0)), "not-found")
    page = bob.ask(GetWraps("", 10, all_of_them=True))
    assert isinstance(page, WrapsPage)
    assert {one.owner for one in page.items} == {"ada"}
    # New shares are refused, and the owner can go on without this reader.
    eve.put(file_id(2), b"two")
    new = eve.signed(eve.record(file_id(2), ACCESS, readers=(reader(bob),)))
    assert refused(eve.ask(new.share({1: [bob.wrap()]})), "share-refused").readers == ("bob",)
    both = (eve.wrap(), bob.wrap())
    first = eve.version(file_id(3), b"3", readers=(reader(bob),), wraps=both)
    assert refused(eve.ask(first.small()), "share-refused").readers == ("bob",)
    eve.put(F, b"two", wraps=(eve.wrap(),))
    assert received(bob) == [("ada", F, True)]
    done(bob.ask(BlockOwner("eve", blocked=False)))
    assert bob.ask(ListBlocked()) == BlockedOwners(())
    assert [one[:2] for one in received(bob)] == [("ada", F), ("eve", F)]
    check_tags(served, {one.name: one.tag_key for one in (ada, bob, eve)})


def test_wrong_blocks_are_refused(
    served: Daemon, ada: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.person("eve")
    refused(bob.ask(BlockOwner("bob", blocked=True)), "bad-request")
    refused(bob.ask(BlockOwner("zoe", blocked=True)), "not-found")
    monkeypatch.setattr(sharing, "MAX_BLOCKED", 1)
    done(bob.ask(BlockOwner(ada.name, blocked=True)))
    done(bob.ask(BlockOwner(ada.name, blocked=True)))
    refused(bob.ask(BlockOwner("eve", blocked=True)), "denied")
    done(bob.ask(BlockOwner("zoe", blocked=False)))
    assert bob.ask(ListBlocked()) == BlockedOwners(("ada",))


def test_a_file_stays_left_after_a_restart(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        ada, bob = served.person("ada"), served.person("bob")
        for file in (F, file_id(2)):
            ada.put(file, b"1", readers=(reader(bob),), wraps=(ada.wrap(), bob.wrap()))
        left(bob, ada)
    with daemon(tmp_path) as served:
        bob.served, bob.who = served, served.open(bob.login())[0]
        assert received(bob) == [("ada", file_id(2), True)]
