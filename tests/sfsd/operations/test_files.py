"""Listings and file history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.codec.encoding import MAX_BODY
from protocol.codec.values import changed
from protocol.log import checkpoint
from protocol.records.record_signatures import MAX_PACKED
from protocol.records.records import DELETE, PURGE, FileRecord
from protocol.wire.frames import encode_frame
from protocol.wire.messages import FileView, encode
from protocol.wire.messages.base import DamagedVersion, GenerationSignature, SignedRecord
from protocol.wire.messages.changes import Committed
from protocol.wire.messages.files import MAX_PAGE, History, HistoryPage, List, Listing, Stat, Stated
from protocol.wire.messages.log import LogCheckpoint, LogHead
from sfsd.operations import files
from sfsd.operations.rotation import MAX_SIGNATURES
from tests.sfsd.builders import VERIFIER, Daemon, Person, daemon, done, file_id, refused
from tests.sfsd.faults import FaultyFiles
from tests.sfsd.operations.test_records import restored

F = file_id(1)


def stat(person: Person, wanted: str = F, version: int = 0) -> FileView:
    reply = person.ask(Stat("ada", wanted, version))
    assert isinstance(reply, Stated), reply
    return reply.view


def listed(
    person: Person,
    after: str = "",
    limit: int = 256,
    since: int = 0,
    wanted: tuple[str, ...] = (),
) -> Listing:
    reply = person.ask(List(after, limit, since, wanted))
    assert isinstance(reply, Listing), reply
    return reply


def ids(listing: Listing) -> list[str]:
    return [FileRecord.parse(view.content.record).file_id for view in listing.views]


def revisions(person: Person, first: int = 1) -> list[bytes]:
    reply = person.ask(History("ada", F, first))
    assert isinstance(reply, HistoryPage), reply
    assert reply.next == 0
    return [one.record for one in reply.records]


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
    # The view of an older version includes the file's head, so that the client can verify it.
    old = stat(ada, version=1)
    assert old.content.record == first.body
    assert old.head == view.head
    refused(ada.ask(Stat("ada", F, 3)), "not-found")
    bob = served.person("bob")
    foreign = refused(bob.ask(Stat("ada", F, 0)), "not-found")
    assert foreign == refused(bob.ask(Stat("nobody", F, 0)), "not-found")


def test_a_listing_of_some_files(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    names = [file_id(number) for number in range(4)]
    for name in names:
        ada.put(name, b"1")
    bob.put(file_id(9), b"1")
    ada.delete(names[2])
    wanted = (names[2], file_id(9), file_id(8), names[0], names[0], names[3])
    assert ids(listed(ada, wanted=wanted)) == [names[0], names[2], names[3]]
    page = listed(ada, limit=2, wanted=wanted)
    assert (ids(page), page.next) == ([names[0], names[2]], names[2])
    assert ids(listed(ada, after=page.next, limit=2, wanted=wanted)) == [names[3]]
    assert ids(listed(bob, wanted=wanted)) == [file_id(9)]


def test_what_waits_for_a_restart_is_not_shown(tmp_path: Path) -> None:
    """Its entries are in the log, and no checkpoint has them: a client that finds an older state
    than the log has, or a newer one than is signed, takes the server for a liar."""
    faulty = FaultyFiles()
    with daemon(tmp_path, files=faulty) as served:
        ada = served.person("ada")
        other = file_id(2)
        for one in (F, other, file_id(3)):
            ada.put(one)
        size = served.context.journal.size
        faulty.fail("replace", f"{other}.1.json")
        gone = [ada.signed(ada.record(one, DELETE, current=0)) for one in (F, other)]
        reply = ada.ask(ada.changeset(*gone))
        assert isinstance(reply, Committed)
        assert [one.error and one.error.code for one in reply.outcomes] == ["unavailable"] * 2
        assert served.context.journal.size == size + 2
        head = ada.ask(LogHead())
        assert isinstance(head, LogCheckpoint)
        assert checkpoint.verify(head.checkpoint, VERIFIER).size == size
        refused(ada.ask(Stat("ada", F, 0)), "unavailable")
        page = listed(ada)
        assert ids(page) == [other, file_id(3)]
        assert {view.at for view in page.views} == {size}
        assert page.damaged == (DamagedVersion("ada", F, 1),)


def test_a_listing_is_paged_and_ordered(ada: Person) -> None:
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


def test_since_seq_lists_changed_files(served: Daemon, ada: Person) -> None:
    for number in (1, 2, 3):
        ada.put(file_id(number))
    mark = served.context.journal.size
    assert ids(listed(ada, since=mark)) == []
    ada.put(file_id(2), b"again")
    ada.delete(file_id(3))
    ada.put(file_id(4))
    assert ids(listed(ada, since=mark)) == [file_id(2), file_id(3), file_id(4)]


def test_a_page_examines_a_bounded_number_of_files(
    ada: Person, served: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_SCANNED", 6)
    monkeypatch.setattr(files, "_INDEX_BATCH", 3)
    for number in range(14):
        ada.put(file_id(number))
    mark = served.context.journal.size
    for number in (4, 13):
        ada.put(file_id(number), b"again")
    pages = [listed(ada, since=mark)]
    while pages[-1].next:
        pages.append(listed(ada, after=pages[-1].next, since=mark))
    assert [ids(page) for page in pages] == [[file_id(4)], [], [file_id(13)]]
    assert [page.next for page in pages] == [file_id(5), file_id(11), ""]
    assert ids(listed(ada, limit=5)) == [file_id(number) for number in range(5)]
    # There is no next page if the last file examined is the last file.
    assert [ids(listed(ada, after=file_id(7))), listed(ada, after=file_id(7)).next] == [
        [file_id(number) for number in range(8, 14)],
        file_id(13),
    ]


def without_size(page: Listing) -> Listing:
    """Return the page without the log sizes as of which it was made."""
    return changed(page, views=tuple(changed(view, at=0) for view in page.views))


def test_a_listing_after_a_restart_is_the_same(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        ada = served.person("ada")
        for number in (1, 2, 3):
            ada.put(file_id(number))
        mark = served.context.journal.size
        ada.put(file_id(2), b"again")
        before = listed(ada)
    with daemon(tmp_path, served.clock) as served:
        ada.served, ada.who = served, served.person("eve").who
        assert listed(ada).views == ()
        ada.who = ada.log_in()
        assert without_size(listed(ada)) == without_size(before)
        assert ids(listed(ada, since=mark)) == [file_id(2)]


def test_a_damaged_sidecar_is_reported_as_damage(served: Daemon, ada: Person) -> None:
    ada.put(F)
    ada.put(file_id(2))
    path = served.context.store.users / "ada" / "files" / "00" / f"{F}.1.json"
    path.write_bytes(path.read_bytes() + b" ")
    place = DamagedVersion("ada", F, 1)
    assert listed(ada).damaged == (place,)
    assert refused(ada.ask(Stat("ada", F, 0)), "damaged").damaged == place
    assert ids(listed(ada)) == [file_id(2)]
    ada.put(file_id(3))  # the daemon still works


def test_history_reads_records_from_the_log(ada: Person) -> None:
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


def test_history_does_not_read_the_log_before_the_file_existed(
    served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2, 9):
        ada.put(file_id(number))
    seen = served.context.journal.size
    point = seen, served.context.journal.root_at(seen)
    bodies = [ada.put(F, number, seen=point).body for number in (b"1", b"2")]
    purge = ada.took(ada.signed(ada.record(F, PURGE, purged=(1,))))
    done(ada.ask(purge.change()))
    bodies += [purge.body, ada.delete(F).body]
    looked: list[int] = []
    lines = served.context.journal.lines

    def noted(first: int = 0, end: int | None = None) -> Iterator[bytes]:
        looked.append(first)
        return lines(first, end)

    monkeypatch.setattr(served.context.journal, "lines", noted)
    assert revisions(ada) == bodies
    assert looked == [seen]


def test_a_long_history_is_paged(ada: Person) -> None:
    bodies = [ada.put(F, b"v").body for _ in range(260)]
    reply = ada.ask(History("ada", F, 1))
    assert isinstance(reply, HistoryPage)
    assert (len(reply.records), reply.next) == (256, 257)
    assert [one.record for one in reply.records] + revisions(ada, reply.next) == bodies


def test_a_history_with_many_endorsements_fits_its_pages(
    served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = ada.put(F).body + bytes(400)
    signatures = tuple(GenerationSignature(2**31, bytes(MAX_PACKED)) for _ in range(MAX_SIGNATURES))
    many = [SignedRecord(body, signatures)] * MAX_PAGE
    monkeypatch.setattr(files, "file_records", lambda *_: many)
    page = ada.ask(History("ada", F, 1))
    assert isinstance(page, HistoryPage), page
    assert len(page.records) > 32
    assert sum(map(len, encode_frame(encode(1, page)))) <= MAX_BODY
