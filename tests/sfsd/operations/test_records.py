"""Delete, restore, move and purge."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from protocol.codec.values import changed
from protocol.log import auditlog
from protocol.log.auditlog import GENESIS, MAX_LINE, EntryDraft
from protocol.records.records import (
    DELETE,
    MAX_READERS,
    MOVE,
    PURGE,
    PURGED_AT_ONCE,
    RESTORE,
    record_hash,
)
from protocol.wire.messages import Error, FileView
from protocol.wire.messages.accounts import Usage, UsageAnswer
from protocol.wire.messages.downloads import OpenedVersion
from protocol.wire.messages.files import History, HistoryPage, Stat, Stated
from protocol.wire.messages.sharing import BlockOwner, Inbox, InboxPage
from sfsd.storage.paths import VersionPaths
from tests.opens import open_one
from tests.sfsd.builders import (
    Daemon,
    Person,
    Version,
    check_receipt,
    daemon,
    done,
    file_id,
    refused,
)

F, G = file_id(1), file_id(2)


def stat(person: Person, wanted: str = F, version: int = 0) -> FileView:
    reply = person.ask(Stat("ada", wanted, version))
    assert isinstance(reply, Stated), reply
    return reply.view


def revisions(person: Person, wanted: str = F) -> list[bytes]:
    reply = person.ask(History("ada", wanted, 1))
    assert isinstance(reply, HistoryPage), reply
    return [one.record for one in reply.records]


def usage(person: Person) -> tuple[int, int]:
    """Return (bytes held, files with a current version)."""
    reply = person.ask(Usage())
    assert isinstance(reply, UsageAnswer), reply
    return reply.used, reply.files


def restored(person: Person, version: int, **changes: Any) -> Version:
    """Return a restore of `version`."""
    source = person.made[F, version].record
    kept = {
        key: getattr(source, key)
        for key in ("content_id", "ciphertext_size", "segments_root", "dek_commit")
    }
    return person.version(F, b"", op=RESTORE, from_=(F, version), **(kept | changes))


def move(
    person: Person,
    old: str = F,
    new: str = G,
    *,
    left: dict[str, Any] | None = None,
    **changes: Any,
) -> tuple[Version, Version]:
    """Return the two records of a move of `old`, valid except for what `changed` changes."""
    number = max(v for f, v in person.made if f == old)
    source = person.made[old, number].record
    kept = {
        key: getattr(source, key)
        for key in ("content_id", "ciphertext_size", "segments_root", "dek_commit", "readers")
    }
    fields: dict[str, Any] = {"op": MOVE, "from_": (old, number), "metadata": b"renamed"}
    made = person.version(new, b"", **(fields | kept | changes))
    gone = changed(person.record(old, DELETE, current=0, to=new), **(left or {}))
    return made, person.signed(gone)


def test_a_delete_adds_a_tombstone_and_frees_no_quota(served: Daemon, ada: Person) -> None:
    ada.put(F, b"x" * 500)
    stored = ada.stored()
    gone = ada.delete(F)
    again = check_receipt(done(ada.ask(gone.change())), gone.body)
    assert len(served.entries("delete")) == 1
    assert again.paths.keys() == {f"ada/files/00/{F}.1.json"}
    assert usage(ada) == (ada.stored(), 0)
    assert ada.stored() > stored  # the tombstone is stored too
    ada.put(F, b"again")
    assert stat(ada).head is None


WRONG_DELETES: dict[str, tuple[str, dict[str, Any]]] = {
    "something stays current": ("bad-request", {"current": 1}),
    "part of a move": ("bad-request", {"to": file_id(9)}),
    "not onto the head": ("conflict", {"prev": bytes(32)}),
    "other readers": ("bad-request", {"readers": (("bob", bytes(32), 0),)}),
}


@pytest.mark.parametrize("wrong", WRONG_DELETES)
def test_a_delete_that_breaks_a_rule_is_refused(ada: Person, wrong: str) -> None:
    code, changes = WRONG_DELETES[wrong]
    ada.put(F)
    record = ada.record(F, DELETE, **({"current": 0} | changes))
    refused(ada.ask(ada.signed(record).change()), code)
    assert isinstance(ada.ask(open_one("ada", F, 0)), OpenedVersion)


def test_a_missing_or_deleted_file_cannot_be_deleted(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    ada.put(F)
    unknown = ada.signed(ada.record(file_id(2), DELETE, current=0))
    mine = refused(ada.ask(unknown.change()), "not-found")
    foreign = ada.signed(ada.record(F, DELETE, current=0))
    assert refused(bob.ask(foreign.change()), "not-found") == mine
    ada.delete(F)
    twice = ada.signed(ada.record(F, DELETE, current=0))
    error = refused(ada.ask(twice.change()), "conflict")
    assert error.head is not None


def test_a_delete_with_metadata_or_wraps_is_refused(ada: Person) -> None:
    ada.put(F)
    made = ada.signed(ada.record(F, DELETE, current=0))
    for wrong in (changed(made, metadata=b"m"), changed(made, wraps=(ada.wrap(),))):
        refused(ada.ask(wrong.change()), "bad-request")


def test_a_restore_makes_an_old_content_the_newest_version(served: Daemon, ada: Person) -> None:
    ada.put(F, b"precious")
    ada.put(F, b"mistaken")
    ada.delete(F)
    made = restored(ada, 1)
    entry = check_receipt(done(ada.ask(made.change())), made.body)
    ada.took(made)
    assert (entry.op, entry.version, entry.detail["from"]) == ("restore", 3, 1)
    opened = ada.ask(open_one("ada", F, 0))
    assert isinstance(opened, OpenedVersion)
    assert (opened.data, opened.view.wraps) == (b"precious", made.wraps)
    assert usage(ada) == (ada.stored(), 1)  # one content is counted once
    ada.put(F, b"onward")


def test_a_restore_takes_quota_for_its_sidecar_only(served: Daemon) -> None:
    ada = served.person("ada", quota=104_000)
    ada.put(F, bytes(100_000))
    ada.delete(F)
    done(ada.ask(ada.took(restored(ada, 1)).change()))
    assert usage(ada) == (ada.stored(), 1)
    served.set_quota("ada", ada.stored() + 1000)
    refused(ada.ask(restored(ada, 1).change()), "quota")


WRONG_RESTORES: dict[str, tuple[str, dict[str, Any]]] = {
    "another content": ("bad-request", {"content_id": bytes(16)}),
    "another key": ("bad-request", {"dek_commit": bytes(32)}),
    "another size": ("bad-request", {"ciphertext_size": 9}),
    "another root": ("bad-request", {"segments_root": bytes(32)}),
    "of another file": ("bad-request", {"from_": (file_id(2), 1)}),
    "of a version that is not there": ("not-found", {"from_": (F, 7)}),
    "without wraps": ("stale-recipient", {"wraps": ()}),
}


@pytest.mark.parametrize("wrong", WRONG_RESTORES)
def test_a_restore_that_breaks_a_rule_is_refused(ada: Person, wrong: str) -> None:
    code, changes = WRONG_RESTORES[wrong]
    ada.put(F, b"precious")
    fields = dict(changes)
    if "from_" in fields:
        made = restored(ada, 1)
        made = ada.signed(changed(made.record, **fields), made.metadata, made.wraps)
    else:
        made = restored(ada, 1, **fields)
    refused(ada.ask(made.change()), code)


def test_a_purge_removes_bytes_and_wraps_and_keeps_records(served: Daemon, ada: Person) -> None:
    bodies = [ada.put(F, bytes([n]) * 9000).body for n in range(3)]
    stored = ada.stored()
    purge = ada.signed(ada.record(F, PURGE, purged=(1, 2)))
    entry = check_receipt(done(ada.ask(purge.change())), purge.body)
    ada.took(purge)
    assert entry.paths[f"ada/files/00/{F}.1.ct"] is None
    assert served.context.store.children("ada/files/00") == [
        f"{F}.1.json",
        f"{F}.2.json",
        f"{F}.3.ct",
        f"{F}.3.json",
    ]
    old = stat(ada, version=1)
    assert (old.metadata, old.wraps) == (b"", ())
    assert revisions(ada) == [*bodies, purge.body]
    assert usage(ada) == (ada.stored(), 1)
    assert ada.stored() < stored - 2 * 9000
    refused(ada.ask(restored(ada, 1).change()), "not-found")
    ada.put(F, b"onward")


def test_a_purge_of_as_many_versions_as_clients_send_at_once(served: Daemon) -> None:
    ada = served.person("a" * 32)
    for number in range(PURGED_AT_ONCE):
        ada.put(F, bytes([number]))
    ada.delete(F)
    purged = tuple(range(1, PURGED_AT_ONCE + 1))
    done(ada.ask(ada.signed(ada.record(F, PURGE, purged=purged)).change()))


def test_a_purge_of_a_file_with_many_readers_fits_in_a_log_line(ada: Person) -> None:
    """The entry fits for any number of readers and the longest names."""
    owner, purged = "a" * 32, tuple(range(100_001, 100_001 + PURGED_AT_ONCE))
    readers = tuple((f"{number:032}", bytes(32), 2**40) for number in range(MAX_READERS))
    record = ada.record(F, PURGE, owner=owner, actor=owner, readers=readers, purged=purged)
    paths: dict[str, str | None] = {}
    for number in purged:
        version = VersionPaths.for_version(owner, F, number)
        paths |= {version.sidecar: "0" * 64, version.ciphertext: None, version.leaves: None}
    draft = EntryDraft(
        op="purge",
        actor=owner,
        owner=owner,
        file=F,
        session=10**9,
        stage="0" * 32,
        rec=record.encode(),
        sigs={"0" * 64: bytes(64)},
    )
    detail = {"purged": purged, "paths": paths}
    line, _ = auditlog.encode(
        draft,
        seq=10**9,
        time="2026-11-26T09:30:00.000Z",
        salt=bytes(16),
        detail=detail,
        accounts={owner: 10**9},
        tags=[bytes(16)],
        prev=GENESIS,
    )
    assert len(line) <= MAX_LINE


def test_every_version_of_a_deleted_file_can_be_purged(served: Daemon, ada: Person) -> None:
    ada.put(F, b"1")
    ada.delete(F)
    purge = ada.took(ada.signed(ada.record(F, PURGE, purged=(1,))))
    done(ada.ask(purge.change()))
    view = stat(ada)
    assert view.head is not None
    assert view.head.record == purge.body
    assert usage(ada) == (ada.stored(), 0)


WRONG_PURGES: dict[str, tuple[str, dict[str, Any]]] = {
    "of nothing": ("bad-request", {"purged": ()}),
    "of the current version": ("bad-request", {"purged": (2,)}),
    "out of order": ("bad-request", {"purged": (2, 1), "current": 2}),
    "that changes what is current": ("bad-request", {"purged": (1,), "current": 0}),
    "of a version that is not there": ("not-found", {"purged": (7,)}),
}


@pytest.mark.parametrize("wrong", WRONG_PURGES)
def test_a_purge_that_breaks_a_rule_is_refused(ada: Person, wrong: str) -> None:
    code, changes = WRONG_PURGES[wrong]
    ada.put(F, b"1")
    ada.put(F, b"2")
    refused(ada.ask(ada.signed(ada.record(F, PURGE, **changes)).change()), code)


def test_a_move_is_one_log_entry_with_both_records(served: Daemon, ada: Person) -> None:
    ada.put(F, b"old")
    ada.put(F, b"precious")
    made, gone = move(ada)
    entry = check_receipt(done(ada.ask(ada.together(made, gone))), made.body)
    assert (entry.op, entry.file, entry.version) == ("move", G, 1)
    assert [body for body, _ in entry.records] == [made.body, gone.body]
    assert entry.detail["tombstone"] == base64.b64encode(gone.body).decode()
    assert entry.accounts.keys() == {"ada"}
    ada.took(made)
    ada.took(gone)
    opened = ada.ask(open_one("ada", G, 0))
    assert isinstance(opened, OpenedVersion)
    assert (opened.data, opened.view.metadata) == (b"precious", b"renamed")
    refused(ada.ask(open_one("ada", F, 0)), "not-found")
    older = ada.ask(open_one("ada", F, 1))
    assert isinstance(older, OpenedVersion)
    assert older.data == b"old"
    assert usage(ada) == (ada.stored(), 1)  # a content in two files is counted once
    # The same request again gets the same receipt.
    again = check_receipt(done(ada.ask(ada.together(made, gone))), made.body)
    assert again.seq == entry.seq
    assert len(served.entries("move")) == 1


def test_a_file_can_be_moved_back_and_again(served: Daemon, ada: Person) -> None:
    bodies = {F: [ada.put(F, b"x").body], G: []}
    for old, new in ((F, G), (G, F), (F, G)):
        made, gone = move(ada, old, new)
        done(ada.ask(ada.together(ada.took(made), ada.took(gone))))
        bodies[new].append(made.body)
        bodies[old].append(gone.body)
    ada.put(G, b"onward")
    ada.put(F, b"another")
    assert revisions(ada, F)[:-1] == bodies[F]
    assert revisions(ada, G)[:-1] == bodies[G]


def test_history_finds_the_tombstone_of_a_move_in_the_log(ada: Person) -> None:
    bodies = [ada.put(F, b"x").body]
    made, gone = move(ada)
    done(ada.ask(ada.together(made, ada.took(gone))))
    back = restored(ada, 1)
    done(ada.ask(ada.took(back).change()))
    bodies += [gone.body, back.body, ada.put(F, b"y").body]
    assert revisions(ada) == bodies


def test_a_move_survives_a_restart(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        ada = served.person("ada")
        ada.put(F, b"precious")
        done(ada.ask(ada.together(*move(ada))))
        before = [changed(stat(ada, one), at=0) for one in (F, G)]
    with daemon(tmp_path, served.clock) as served:
        ada.served = served
        ada.who = ada.log_in()
        assert [changed(stat(ada, one), at=0) for one in (F, G)] == before
        assert usage(ada) == (ada.stored(), 1)


WRONG_MOVES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "another content": ("bad-request", {"content_id": bytes(16)}, {}),
    "another key": ("bad-request", {"dek_commit": bytes(32)}, {}),
    "another size": ("bad-request", {"ciphertext_size": 9}, {}),
    "another root": ("bad-request", {"segments_root": bytes(32)}, {}),
    "of an older version": ("bad-request", {"from_": (F, 1)}, {}),
    "of a third file": ("bad-request", {"from_": (file_id(3), 2)}, {}),
    "without wraps": ("stale-recipient", {"wraps": ()}, {}),
    "other readers": ("bad-request", {"readers": (("bob", bytes(32), 0),)}, {}),
    "not onto the new head": ("conflict", {"rev": 2, "prev": bytes(32)}, {}),
    "not onto the old head": ("conflict", {}, {"prev": bytes(32)}),
    "a tombstone that leads nowhere": ("bad-request", {}, {"to": None}),
    "a tombstone that leads elsewhere": ("bad-request", {}, {"to": file_id(3)}),
    "a tombstone with something current": (
        "bad-request",
        {},
        {"current": 2, "content": bytes(32)},
    ),
    "a tombstone of a third file": ("not-found", {}, {"file_id": file_id(3)}),
}


@pytest.mark.parametrize("wrong", WRONG_MOVES)
def test_a_move_that_breaks_a_rule_is_refused(ada: Person, wrong: str) -> None:
    code, changes, left = WRONG_MOVES[wrong]
    ada.put(F, b"1")
    ada.put(F, b"2")
    refused(ada.ask(ada.together(*move(ada, left=left, **changes))), code)
    assert len(revisions(ada)) == 2
    refused(ada.ask(Stat("ada", G, 0)), "not-found")


def test_a_move_adds_and_drops_no_reader(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    readers = (("bob", bob.first_hash, 0),)
    ada.put(F, b"1")
    added = move(ada, readers=readers, wraps=(ada.wrap(), bob.wrap()))
    refused(ada.ask(ada.together(*added)), "bad-request")
    shared = file_id(3)
    ada.put(shared, b"2", readers=readers, wraps=(ada.wrap(), bob.wrap()))
    refused(ada.ask(ada.together(*move(ada, shared, readers=()))), "bad-request")
    done(ada.ask(ada.together(*move(ada, shared, wraps=(ada.wrap(), bob.wrap())))))


def test_a_move_onto_a_living_file_is_a_conflict(ada: Person) -> None:
    ada.put(F, b"1")
    there = ada.put(G, b"2")
    error = refused(ada.ask(ada.together(*move(ada))), "conflict")
    assert error.head is not None
    assert error.head.content.record == there.body
    ada.delete(G)
    made, gone = move(ada)
    done(ada.ask(ada.together(made, gone)))
    assert (made.record.version, made.record.rev) == (2, 3)


def test_one_record_of_a_move_is_refused(ada: Person) -> None:
    ada.put(F, b"1")
    made, gone = move(ada)
    refused(ada.ask(ada.together(gone, made)), "bad-request")
    refused(ada.ask(made.change()), "bad-request")
    refused(ada.ask(ada.together(made, made)), "bad-request")
    ada.delete(F)
    refused(ada.ask(ada.together(*move(ada))), "conflict")


def test_a_foreign_file_cannot_be_moved(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    ada.put(F, b"1")
    bob.put(F, b"1")
    made, gone = move(ada)
    theirs = move(bob)
    mixed = bob.together(theirs[0], gone), bob.together(made, theirs[1])
    for wrong in (ada.together(made, gone), *mixed):
        refused(bob.ask(wrong), "not-found")


def wrapped_for(served: Daemon, wanted: str, version: int) -> set[str]:
    sidecar = served.context.index.for_user("ada").sidecar(wanted, version).value
    return {wrap.user for wrap in sidecar.wraps}


def test_a_move_removes_the_wraps_of_dropped_readers(served: Daemon, ada: Person) -> None:
    """The destination had readers that the moved file does not have."""
    bob = served.person("bob")
    for number in (1, 2):
        readers = (("bob", bob.first_hash, 0),)
        ada.put(G, b"%d" % number * 60, readers=readers, wraps=(ada.wrap(), bob.wrap()))
    ada.delete(G)
    ada.put(F, b"moves" * 20)
    made, gone = move(ada)
    entry = check_receipt(done(ada.ask(ada.together(made, gone))), made.body)
    assert {"ada", "bob"} == set(entry.accounts)
    assert [wrapped_for(served, G, number) for number in (1, 2, 3)] == [{"ada"}] * 3
    assert (stat(ada, G, 2).content.record, stat(ada, G, 1).metadata) == (
        ada.made[G, 2].body,
        ada.made[G, 1].metadata,
    )
    refused(bob.ask(open_one("ada", G, 1)), "not-found")
    assert usage(ada) == (ada.stored(), 1)


def test_a_move_offers_the_file_to_nobody_who_has_left_it(ada: Person, served: Daemon) -> None:
    """It reaches readers who have not left, also those who block the owner: these see nothing."""
    people = [served.person(name) for name in ("bob", "carol", "dan")]
    readers = tuple((one.name, one.first_hash, 0) for one in people)
    ada.put(F, b"one", readers=readers, wraps=tuple(one.wrap() for one in (ada, *people)))
    bob, carol, dan = people
    done(bob.ask(bob.leave("ada", F, record_hash(ada.heads[F]))))
    done(carol.ask(BlockOwner("ada", blocked=True)))
    missing = ada.together(*move(ada, wraps=(ada.wrap(),)))
    assert refused(ada.ask(missing), "stale-recipient").text == "no wrap for dan"
    done(ada.ask(ada.together(*move(ada, wraps=(ada.wrap(), dan.wrap())))))
    for one, sees in ((bob, False), (carol, False), (dan, True)):
        page = one.ask(Inbox("", 9, 0))
        assert isinstance(page, InboxPage)
        assert [shared.file_id for shared in page.files] == ([G] if sees else [])
    done(carol.ask(BlockOwner("ada", blocked=False)))
    assert not isinstance(carol.ask(Stat("ada", G, 0)), Error)
    refused(bob.ask(Stat("ada", G, 0)), "not-found")


def test_a_restore_needs_no_wrap_for_a_reader_who_has_left(ada: Person, served: Daemon) -> None:
    bob = served.person("bob")
    both = (ada.wrap(), bob.wrap())
    ada.put(F, b"one", readers=((bob.name, bob.first_hash, 0),), wraps=both)
    ada.put(F, b"two", wraps=both)
    refused(ada.ask(restored(ada, 1, wraps=(ada.wrap(),)).change()), "stale-recipient")
    done(bob.ask(bob.leave("ada", F, record_hash(ada.heads[F]))))
    done(ada.ask(restored(ada, 1, wraps=(ada.wrap(),)).change()))
