"""Cached listings and signed deletions."""

from __future__ import annotations

import io
import random

import pytest

from protocol.codec.values import changed
from protocol.records.records import DELETE, FileRecord, record_hash
from protocol.wire.messages import Error, FileView, Reply, Request
from protocol.wire.messages.changes import Committed
from protocol.wire.messages.files import List, Listing, Stat, Stated
from sfsc.crypto.envelope import ContentKey, Metadata
from sfsc.errors import (
    BadReceipt,
    BadRecord,
    NotFound,
    ProtocolFailure,
    Rollback,
    SfscError,
    Tampered,
    UsageError,
)
from sfsc.files.listing import Files
from sfsc.session.session import Session
from sfsc.transfer.upload import Uploads
from sfsc.trust.file_records import Entry, KnownRevision, OwnAccount, VerifiedFile
from tests.changes import changes_no_content, has_op, relined
from tests.sfsc.simulator import DropConnection, Simulator


def store(session: Session, *names: str) -> None:
    for name in names:
        Uploads(session).put(io.BytesIO(name.encode()), name)


def names(session: Session, prefix: str = "") -> list[str]:
    return [entry.name for entry in Files(session).ls(prefix)]


# --- ls


def test_names_sorted_and_by_prefix(session: Session, other: Session) -> None:
    assert names(session) == []
    store(session, "b", "a/2", "a/1", "ä", "a")
    for device in (session, other):
        assert names(device) == ["a", "a/1", "a/2", "b", "ä"]
        assert names(device, "a/") == ["a/1", "a/2"]
        assert names(device, "/2") == names(device, "2") == []
        assert names(device, "nothing") == names(device, "\udc80") == []


def test_what_is_stored_under_some_names(session: Session, other: Session) -> None:
    """Others are not looked at, on a machine that knows the files and on one that does not."""
    store(session, "a", "b", "c", "d")
    Files(session).rm("c")
    asked = ["d", "a", "c", "none", "bad\udc80", ""]
    for device in (session, other):
        files = Files(device)
        found = files.named(asked, files.damaged())
        assert sorted(found) == ["a", "d"]
        assert found["a"] == files.stat("a")
        assert files.named(asked, {found["a"].file_id}).keys() == {"d"}
    assert list(other.state.cached_entries([other.account.file_id("b")])) == []


def test_entry_fields(session: Session, other: Session) -> None:
    store(session, "a", "a", "b")
    (a, b) = Files(other).ls()
    assert (a.version, a.revision, a.size, b.version) == (2, 2, 1, 1)
    assert a == Files(other).stat("a")
    assert a.file_id == session.account.file_id("a")


def test_second_listing_uses_the_cache(
    server: Simulator, session: Session, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(session, *(f"file {i}" for i in range(7)))
    opened: list[bytes] = []
    open_metadata = ContentKey.open_metadata

    def counting(key: ContentKey, record: FileRecord, sealed: bytes) -> Metadata:
        opened.append(sealed)
        return open_metadata(key, record, sealed)

    # Count the calls and pass them on.
    monkeypatch.setattr(ContentKey, "open_metadata", counting)
    assert len(names(session)) == 7
    assert opened == [], "what was put here is known here"
    assert len(names(other)) == 7
    assert len(opened) == 7
    other.close()
    other.connect()
    assert len(names(other)) == 7
    assert len(names(other)) == 7
    assert len(opened) == 7
    assert server.asked(List)[-1].since_seq >= 7 + 1
    store(session, "new", "file 3")
    assert len(names(other)) == 8
    assert len(opened) == 9


def test_what_is_known_is_not_asked_for(server: Simulator, session: Session) -> None:
    store(session, "a", "b", "c", "d", "b")
    Files(session).rm("c")
    session.close()
    session.connect()
    shown: list[Reply] = []

    def noting(_request: Request, reply: Reply) -> Reply:
        shown.append(reply)
        return reply

    server.tamper = noting
    assert names(session) == names(session) == ["a", "b", "d"]
    assert shown == [Listing((), "")] * 2


def test_few_old_files_are_asked_for_alone(
    server: Simulator, session: Session, other: Session
) -> None:
    """Otherwise the server would show all files that have changed since."""
    store(session, *"abcdefgh")
    assert len(names(other)) == 8
    for file_id in [other.account.file_id(name) for name in "ad"]:
        other.state.execute("UPDATE file SET entry = NULL WHERE file_id = ?", (file_id,))
    store(session, "a", "new")
    shown: list[FileView] = []

    def noting(_request: Request, reply: Reply) -> Reply:
        shown.extend(reply.views if isinstance(reply, Listing) else ())
        return reply

    server.tamper = noting
    assert names(other) == ["a", "b", "c", "d", "e", "f", "g", "h", "new"]
    assert {FileRecord.parse(one.content.record).file_id for one in shown} == {
        other.account.file_id(name) for name in ("a", "new", "d")
    }
    assert server.asked(List)[-1].wanted == (other.account.file_id("d"),)
    assert not server.asked(Stat)


@pytest.mark.parametrize("how", ["absent", "of another file", "older"])
def test_a_file_that_is_asked_for_alone(
    server: Simulator, session: Session, other: Session, how: str
) -> None:
    store(session, *"abcd")
    asked, another = session.account.file_id("a"), session.account.file_id("b")
    older = server.view(asked)
    store(session, "a", *"bcd")
    assert names(other) == list("abcd")
    other.state.execute("UPDATE file SET entry = NULL WHERE file_id = ?", (asked,))

    def lie(request: Request) -> Reply | None:
        shown = server.view(another) if how == "of another file" else older
        if isinstance(request, List) and request.wanted == (asked,):
            return Listing(() if how == "absent" else (shown,), "")
        if not isinstance(request, Stat) or request.file_id != asked:
            return None
        return Error("not-found", "") if how == "absent" else Stated(shown)

    server.intercept = lie
    unreadable: dict[str, SfscError] = {}
    found = Files(other).ls("", unreadable.__setitem__)
    assert [entry.name for entry in found] == list("bcd")
    (error,) = unreadable.values()
    assert isinstance(error, BadRecord if how == "of another file" else Rollback)
    server.intercept = lambda _request: None
    assert names(other) == list("abcd")


@pytest.mark.parametrize("seed", range(2))
def test_listings_are_what_the_server_has(
    server: Simulator, session: Session, other: Session, seed: int
) -> None:
    """Two machines change files, lose connections and parts of their caches, and list."""
    drawn, living = random.Random(seed), dict[str, int]()
    for step in range(50):
        device = drawn.choice((session, other))
        name = drawn.choice("abcdefgh")
        match drawn.choice(("put", "put", "rm", "ls", "forget", "reconnect")):
            case "put":
                living[name] = Uploads(device).put(io.BytesIO(b"%d" % step), name).version
            case "rm" if name in living:
                Files(device).rm(name)
                del living[name]
            case "forget":
                device.state.drop_entry(device.account.file_id(name))
            case "reconnect":
                device.close()
                device.connect()
            case _:
                listed = {entry.name: entry for entry in Files(device).ls()}
                assert {one: entry.version for one, entry in listed.items()} == living
                for entry in listed.values():
                    assert entry == Files(device).stat(entry.name)
    assert names(session) == names(other) == sorted(living)


def test_listing_follows_deletions(session: Session, other: Session) -> None:
    store(session, "a", "b")
    assert names(other) == ["a", "b"]
    Files(session).rm("a")
    assert names(session) == ["b"]
    assert names(other) == ["b"]
    store(session, "a")
    assert names(other) == ["a", "b"]


def test_cached_entry_survives_a_server_that_hides_it(server: Simulator, session: Session) -> None:
    store(session, "a", "b")
    server.tamper = lambda _request, reply: Listing((), "") if isinstance(reply, Listing) else reply
    assert names(session) == ["a", "b"]


def test_views_of_cached_files_are_not_read(
    server: Simulator, session: Session, other: Session
) -> None:
    """A listing shows files stored here; whatever comes with the record is not read."""
    store(session, "a", "b")
    shown: list[int] = []

    def spoilt(_request: Request, reply: Reply) -> Reply:
        if not isinstance(reply, Listing):
            return reply
        shown.append(len(reply.views))
        views = [changed(view, metadata=b"rubbish") for view in reply.views]
        return Listing(tuple(views), reply.next)

    def show_all(request: Request) -> Reply | None:
        if not isinstance(request, List):
            return None
        return spoilt(request, server.answer(changed(request, since_seq=0)))

    server.tamper, server.intercept = spoilt, show_all
    assert names(session) == ["a", "b"]
    store(session, "a")
    assert names(session) == ["a", "b"]
    assert shown == [2, 2]
    # The other device does not know the file and reads it.
    with pytest.raises(Tampered):
        names(other)


def test_listing_of_an_old_revision(server: Simulator, session: Session) -> None:
    store(session, "a")
    file_id = session.account.file_id("a")
    old = server.view(file_id)
    store(session, "a")
    server.tamper = lambda _request, reply: (
        Listing((old,), "") if isinstance(reply, Listing) else reply
    )
    with pytest.raises(Rollback):
        names(session)


def test_listing_of_another_history(server: Simulator, session: Session, other: Session) -> None:
    store(session, "a")
    server.files.clear()
    with pytest.raises(BadReceipt):
        store(other, "a")
    with pytest.raises(BadReceipt):
        names(session)


@pytest.mark.parametrize("at", [0, -1])
def test_listing_with_a_forged_record(
    server: Simulator, session: Session, other: Session, at: int
) -> None:
    store(session, "a", "b")

    def forged(_request: Request, reply: Reply) -> Reply:
        if not isinstance(reply, Listing) or not reply.views:
            return reply
        views = list(reply.views)
        record = FileRecord.parse(views[at].content.record)
        body = changed(record, created=1).encode()
        views[at] = changed(views[at], content=changed(views[at].content, record=body))
        return Listing(tuple(views), reply.next)

    server.tamper = forged
    with pytest.raises(BadRecord):
        names(other)


def test_listing_with_swapped_metadata(server: Simulator, session: Session, other: Session) -> None:
    store(session, "a", "b")

    def swapped(_request: Request, reply: Reply) -> Reply:
        if not isinstance(reply, Listing):
            return reply
        one, two = reply.views
        return Listing((changed(one, metadata=two.metadata), two), reply.next)

    server.tamper = swapped
    with pytest.raises(Tampered):
        names(other)


@pytest.mark.parametrize("after", ["", "0" * 32])
def test_endless_listing(server: Simulator, session: Session, after: str) -> None:
    store(session, "a", "b")
    server.tamper = lambda _request, reply: (
        changed(reply, next=after or "0" * 31) if isinstance(reply, Listing) else reply
    )
    with pytest.raises(ProtocolFailure):
        names(session)
    assert len(server.asked(List)) <= 2


def test_next_page_is_requested_early(
    server: Simulator, session: Session, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(session, *"abcdef")
    asked: list[int] = []
    newest = OwnAccount.verify_newest

    def noting(
        account: OwnAccount, view: FileView, wanted: str | None, known: KnownRevision | None
    ) -> VerifiedFile:
        other.transport.call(Stat("alice", "0" * 32, 0))  # so that all before it has arrived
        asked.append(len(server.asked(List)))
        return newest(account, view, wanted, known)

    before = len(server.asked(List))
    monkeypatch.setattr(OwnAccount, "verify_newest", noting)
    assert names(other) == list("abcdef")
    pages = len(server.asked(List)) - before
    assert pages > 1
    assert asked[0] == before + 2
    assert asked[-1] == before + pages


def test_page_is_requested_again_with_newer_keys(
    server: Simulator, session: Session, other: Session
) -> None:
    store(session, *"abcdef")
    refused: list[Request] = []

    def rotated(request: Request) -> Reply | None:
        if isinstance(request, List) and request.after and len(refused) < 2:
            refused.append(request)
            return Error("stale-generation", "")
        return None

    renewed: list[int] = []
    other.renewer = lambda: renewed.append(1)
    server.intercept = rotated
    assert names(other) == list("abcdef")
    assert refused[0] == refused[1]
    assert renewed == [1]


def test_interrupted_listing_resumes(
    server: Simulator, session: Session, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(session, *"abcdef")
    server.intercept = lambda request: (
        Error("busy", "later") if isinstance(request, List) and request.after else None
    )
    with pytest.raises(Exception, match="later"):
        names(other)
    known = len(list(other.state.entries()))
    assert known
    server.intercept = lambda _request: None
    opened = list[VerifiedFile]()
    listing_entry = OwnAccount.listing_entry

    def noting(account: OwnAccount, file: VerifiedFile) -> Entry:
        opened.append(file)
        return listing_entry(account, file)

    monkeypatch.setattr(OwnAccount, "listing_entry", noting)
    assert names(other) == list("abcdef")
    assert len(opened) == 6 - known


# --- stat


def test_missing_file(session: Session) -> None:
    with pytest.raises(NotFound):
        Files(session).stat("a")
    with pytest.raises(UsageError):
        Files(session).stat("/a")
    store(session, "a")
    Files(session).rm("a")
    with pytest.raises(NotFound):
        Files(session).stat("a")


# --- rm


def test_deletion_is_a_signed_record(server: Simulator, session: Session) -> None:
    store(session, "a")
    entry = Files(session).rm("a")
    assert (entry.name, entry.version) == ("a", 1)
    chain = server.files[session.account.file_id("a")]
    record = FileRecord.parse(chain.records[-1].record)
    assert (record.op, record.rev, record.current) == (DELETE, 2, 0)
    with pytest.raises(NotFound):
        Files(session).rm("a")
    assert Uploads(session).put(io.BytesIO(b""), "a").version == 2


def test_delete_after_a_change_by_another_device(
    server: Simulator, session: Session, other: Session
) -> None:
    store(session, "a")
    raced: list[Request] = []

    def race(request: Request) -> Reply | None:
        if changes_no_content(request) and not raced:
            raced.append(request)
            return Error("conflict", "", late)
        return None

    store(other, "a")
    late = server.view(session.account.file_id("a"))
    server.intercept = race
    assert Files(session).rm("a").version == 2
    assert names(other) == []


def test_delete_after_a_deletion_by_another_device(
    server: Simulator, session: Session, other: Session
) -> None:
    store(session, "a")
    raced: list[Request] = []

    def race(request: Request) -> Reply | None:
        if changes_no_content(request) and not raced:
            raced.append(request)
            done = server.answer(request)
            assert isinstance(done, Committed)
            return Error("conflict", "", server.view(session.account.file_id("a")))
        return None

    server.intercept = race
    assert Files(session).rm("a").name == "a"
    assert names(other) == []


def test_deletions_are_signed_again_with_newer_keys(server: Simulator, session: Session) -> None:
    """Another device rotated the keys: deletions are signed again with the new ones."""
    for name in ("a", "b", "c"):
        store(session, name)
    refused, renewed = [b"", b""], list[None]()
    session.renewer = lambda: renewed.append(None)

    def refuse(request: Request) -> Reply | None:
        if changes_no_content(request) and refused:
            refused.pop()
            return Error("stale-generation", "rotated")
        return None

    server.intercept = refuse
    files = Files(session)
    assert [one.name for one in files.rm_many(list(files.ls()))] == ["a", "b", "c"]
    assert len(renewed) == 2
    assert names(session) == []


def test_delete_with_a_lost_reply(server: Simulator, session: Session) -> None:
    store(session, "a")
    lost: list[Request] = []

    def lose(request: Request, reply: Reply) -> Reply:
        if changes_no_content(request) and not lost:
            lost.append(request)
            raise DropConnection
        return reply

    server.tamper = lose
    Files(session).rm("a")
    assert session.connections == 2
    assert names(session) == []


def test_delete_without_a_valid_receipt(server: Simulator, session: Session) -> None:
    store(session, "a")
    server.tamper = lambda request, reply: relined(reply, lambda _line: server.log.lines[0])
    with pytest.raises(BadReceipt):
        Files(session).rm("a")


def test_unverified_state_is_not_signed(server: Simulator, session: Session) -> None:
    """A tombstone takes over the readers, and a restored file is encrypted for them."""
    store(session, "a")
    (entry,) = Files(session).ls()
    known = session.state.file(entry.file_id)
    assert known is not None
    record = FileRecord.parse(known.record)
    forged = changed(record, readers=(("eve", bytes(32), 0),)).encode()
    session.state.execute("UPDATE file SET record = ?, hash = ?", (forged, record_hash(forged)))
    assert list(Files(session).rm_many([entry])) == [entry]
    tombstone = FileRecord.parse(server.changes(has_op(DELETE))[-1].record)
    assert tombstone.readers == ()
