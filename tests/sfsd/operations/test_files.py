"""Looking at files; delete, restore and purge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol.messages import FileView
from protocol.messages.accounts import Usage, UsageAnswer
from protocol.messages.downloads import GetOpen, Opened
from protocol.messages.files import (
    History,
    HistoryPage,
    List,
    Listing,
    Record,
    Stat,
    Stated,
)
from protocol.records import ACCESS, DELETE, PURGE, RESTORE, FileRecord
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

F = file_id(1)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path) as running:
        yield running


@pytest.fixture
def ada(served: Daemon) -> Person:
    return served.person("ada")


def stat(person: Person, wanted: str = F, version: int = 0) -> FileView:
    reply = person.ask(Stat("ada", wanted, version))
    assert isinstance(reply, Stated), reply
    return reply.view


def listed(person: Person, after: str = "", limit: int = 256, since: int = 0) -> Listing:
    reply = person.ask(List(after, limit, since))
    assert isinstance(reply, Listing), reply
    return reply


def ids(listing: Listing) -> list[str]:
    return [FileRecord.parse(view.content.record).file_id for view in listing.views]


def revisions(person: Person, first: int = 1) -> list[bytes]:
    reply = person.ask(History("ada", F, first))
    assert isinstance(reply, HistoryPage), reply
    assert reply.next == 0
    return [one.record for one in reply.records]


def restored(person: Person, version: int, **changed: Any) -> Version:
    """A restore of what was put as `version`."""
    source = person.made[F, version].record
    kept = {
        key: getattr(source, key)
        for key in ("content_id", "ciphertext_size", "segments_root", "dek_commit")
    }
    return person.version(F, b"", op=RESTORE, from_=(F, version), **(kept | changed))


def test_stat_shows_the_newest_version_and_the_head(served: Daemon, ada: Person) -> None:
    first = ada.put(F, b"1")
    assert stat(ada).content.record == first.body
    second = ada.put(F, b"2")
    gone = ada.delete(F)
    view = stat(ada)
    assert view.content.record == second.body
    assert view.head is not None
    assert view.head.record == gone.body
    assert view.seq == served.entries("delete")[0].seq
    # An older version comes with the file's head too, so that it can be judged.
    old = stat(ada, version=1)
    assert old.content.record == first.body
    assert old.head == view.head
    refused(ada.ask(Stat("ada", F, 3)), "not-found")
    bob = served.person("bob")
    foreign = refused(bob.ask(Stat("ada", F, 0)), "not-found")
    assert foreign == refused(bob.ask(Stat("nobody", F, 0)), "not-found")


def test_a_listing_comes_in_pages_in_order(ada: Person) -> None:
    numbers = [5, 3, 8, 1, 9, 2]
    for number in numbers:
        ada.put(file_id(number))
    found: list[str] = []
    page = listed(ada, limit=4)
    assert len(page.views) == 4
    while True:
        found += ids(page)
        if not page.next:
            break
        page = listed(ada, after=page.next, limit=4)
    assert found == [file_id(number) for number in sorted(numbers)]


def test_a_page_stays_below_a_frame(served: Daemon, ada: Person) -> None:
    puts = [
        ada.version(file_id(number), b"c" * 56, metadata=bytes([number]) * 4096).small()
        for number in range(256)
    ]
    for reply in served.ask_all(ada.who, puts):
        done(reply)
    page = listed(ada)
    assert 100 < len(page.views) < 256
    rest = listed(ada, after=page.next)
    assert rest.next == ""
    assert ids(page) + ids(rest) == [file_id(number) for number in range(256)]


def test_since_seq_gives_what_changed(served: Daemon, ada: Person) -> None:
    for number in (1, 2, 3):
        ada.put(file_id(number))
    mark = served.world.journal.size
    assert ids(listed(ada, since=mark)) == []
    ada.put(file_id(2), b"again")
    ada.delete(file_id(3))
    ada.put(file_id(4))
    assert ids(listed(ada, since=mark)) == [file_id(2), file_id(3), file_id(4)]


def test_a_listing_after_a_restart_is_the_same(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        ada = served.person("ada")
        for number in (1, 2, 3):
            ada.put(file_id(number))
        mark = served.world.journal.size
        ada.put(file_id(2), b"again")
        before = listed(ada)
    with daemon(tmp_path, served.clock) as served:
        ada.served, ada.who = served, served.person("eve").who
        assert listed(ada).views == ()
        ada.who = ada.log_in()
        assert listed(ada) == before
        assert ids(listed(ada, since=mark)) == [file_id(2)]


def test_one_damaged_sidecar_is_named_damaged(served: Daemon, ada: Person) -> None:
    ada.put(F)
    ada.put(file_id(2))
    path = served.world.store.users / "ada" / "files" / "00" / f"{F}.1.json"
    path.write_bytes(path.read_bytes() + b" ")
    refused(ada.ask(List("", 256, 0)), "damaged")
    refused(ada.ask(Stat("ada", F, 0)), "damaged")
    assert ids(listed(ada, after=F)) == [file_id(2)]
    ada.put(file_id(3))  # the daemon goes on


def test_a_delete_is_a_tombstone_and_frees_nothing(served: Daemon, ada: Person) -> None:
    ada.put(F, b"x" * 500)
    gone = ada.delete(F)
    again = check_receipt(done(ada.ask(gone.change())), gone.body)
    assert len(served.entries("delete")) == 1
    assert again.paths.keys() == {f"ada/files/00/{F}.1.json"}
    usage = ada.ask(Usage())
    assert isinstance(usage, UsageAnswer)
    assert (usage.used, usage.files) == (500, 0)
    ada.put(F, b"anew")
    assert stat(ada).head is None


WRONG_DELETES: dict[str, tuple[str, dict[str, Any]]] = {
    "something stays current": ("bad-request", {"current": 1}),
    "part of a move": ("bad-request", {"to": file_id(9)}),
    "not onto the head": ("conflict", {"prev": bytes(32)}),
    "other readers": ("bad-request", {"readers": (("bob", bytes(32), 0),)}),
}


@pytest.mark.parametrize("wrong", WRONG_DELETES)
def test_a_delete_that_breaks_a_rule_is_refused(ada: Person, wrong: str) -> None:
    code, changed = WRONG_DELETES[wrong]
    ada.put(F)
    record = ada.record(F, DELETE, **({"current": 0} | changed))
    refused(ada.ask(ada.signed(record).change()), code)
    assert isinstance(ada.ask(GetOpen("ada", F, 0)), Opened)


def test_what_is_not_there_cannot_be_deleted(served: Daemon, ada: Person) -> None:
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


def test_a_delete_brings_neither_metadata_nor_wraps(ada: Person) -> None:
    ada.put(F)
    made = ada.signed(ada.record(F, DELETE, current=0))
    for wrong in (replace(made, metadata=b"m"), replace(made, wraps=(ada.wrap(),))):
        refused(ada.ask(wrong.change()), "bad-request")


def test_records_come_one_by_one_and_of_known_ops(ada: Person) -> None:
    put = ada.put(F)
    refused(ada.ask(Record(())), "bad-request")
    refused(ada.ask(put.change()), "bad-request")
    access = ada.signed(ada.record(F, ACCESS))
    refused(ada.ask(access.change()), "bad-request")


def test_a_restore_is_an_old_content_as_a_new_version(served: Daemon, ada: Person) -> None:
    ada.put(F, b"precious")
    ada.put(F, b"mistaken")
    ada.delete(F)
    made = restored(ada, 1)
    entry = check_receipt(done(ada.ask(made.change())), made.body)
    ada.took(made)
    assert (entry.op, entry.version, entry.detail["from"]) == ("restore", 3, 1)
    opened = ada.ask(GetOpen("ada", F, 0))
    assert isinstance(opened, Opened)
    assert (opened.data, opened.view.wraps) == (b"precious", made.wraps)
    usage = ada.ask(Usage())
    assert isinstance(usage, UsageAnswer)
    assert (usage.used, usage.files) == (16, 1)  # one content is counted once
    ada.put(F, b"onward")


def test_a_restore_never_fails_on_quota(served: Daemon) -> None:
    ada = served.person("ada", quota=100)
    ada.put(F, bytes(100))
    ada.delete(F)
    done(ada.ask(restored(ada, 1).change()))


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
    code, changed = WRONG_RESTORES[wrong]
    ada.put(F, b"precious")
    fields = dict(changed)
    if "from_" in fields:
        made = restored(ada, 1)
        made = ada.signed(replace(made.record, **fields), made.metadata, made.wraps)
    else:
        made = restored(ada, 1, **fields)
    refused(ada.ask(made.change()), code)


def test_a_purge_takes_bytes_and_wraps_and_leaves_records(served: Daemon, ada: Person) -> None:
    bodies = [ada.put(F, bytes([n]) * 100).body for n in range(3)]
    purge = ada.signed(ada.record(F, PURGE, purged=(1, 2)))
    entry = check_receipt(done(ada.ask(purge.change())), purge.body)
    ada.took(purge)
    assert entry.paths[f"ada/files/00/{F}.1.ct"] is None
    assert served.world.store.children("ada/files/00") == [
        f"{F}.1.json",
        f"{F}.2.json",
        f"{F}.3.ct",
        f"{F}.3.json",
    ]
    old = stat(ada, version=1)
    assert (old.metadata, old.wraps) == (b"", ())
    assert revisions(ada) == [*bodies, purge.body]
    usage = ada.ask(Usage())
    assert isinstance(usage, UsageAnswer)
    assert usage.used == 100
    refused(ada.ask(restored(ada, 1).change()), "not-found")
    ada.put(F, b"onward")


def test_a_deleted_file_is_purged_whole(served: Daemon, ada: Person) -> None:
    ada.put(F, b"1")
    ada.delete(F)
    purge = ada.took(ada.signed(ada.record(F, PURGE, purged=(1,))))
    done(ada.ask(purge.change()))
    view = stat(ada)
    assert view.head is not None
    assert view.head.record == purge.body
    usage = ada.ask(Usage())
    assert isinstance(usage, UsageAnswer)
    assert (usage.used, usage.files) == (0, 0)


WRONG_PURGES: dict[str, tuple[str, dict[str, Any]]] = {
    "of nothing": ("bad-request", {"purged": ()}),
    "of the current version": ("bad-request", {"purged": (2,)}),
    "out of order": ("bad-request", {"purged": (2, 1), "current": 2}),
    "that changes what is current": ("bad-request", {"purged": (1,), "current": 0}),
    "of a version that is not there": ("not-found", {"purged": (7,)}),
}


@pytest.mark.parametrize("wrong", WRONG_PURGES)
def test_a_purge_that_breaks_a_rule_is_refused(ada: Person, wrong: str) -> None:
    code, changed = WRONG_PURGES[wrong]
    ada.put(F, b"1")
    ada.put(F, b"2")
    refused(ada.ask(ada.signed(ada.record(F, PURGE, **changed)).change()), code)


def test_history_finds_in_the_log_what_no_sidecar_has(ada: Person) -> None:
    bodies = [ada.put(F, b"1").body]
    for _ in range(2):
        bodies.append(ada.delete(F).body)
        made = restored(ada, 1)
        done(ada.ask(ada.took(made).change()))
        bodies.append(made.body)
    purge = ada.took(ada.signed(ada.record(F, PURGE, purged=(2,))))
    done(ada.ask(purge.change()))
    bodies += [purge.body, ada.delete(F).body]
    assert revisions(ada) == bodies
    assert revisions(ada, first=3) == bodies[2:]
    assert revisions(ada, first=99) == []


def test_a_long_history_comes_in_pages(ada: Person) -> None:
    bodies = [ada.put(F, b"v").body for _ in range(260)]
    reply = ada.ask(History("ada", F, 1))
    assert isinstance(reply, HistoryPage)
    assert (len(reply.records), reply.next) == (256, 257)
    assert [one.record for one in reply.records] + revisions(ada, reply.next) == bodies
