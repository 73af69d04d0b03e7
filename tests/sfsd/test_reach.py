"""What a request tells of a file by what is that file to the asker: the second half of the matrix
whose first, who may ask for what at all, is in `test_service`.

What somebody may not see must look like what is not there, to the last byte of the answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from protocol.codec.values import changed
from protocol.records.records import ACCESS, DELETE, MOVE, PURGE, PUT, REENCRYPT, RESTORE
from protocol.wire.messages import Error, Request
from protocol.wire.messages.accounts import UserAccess
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.downloads import Bytes, GetLeaves, GetOpen, LeavesPage, Opened, Read
from protocol.wire.messages.files import History, List, Record, Stat
from protocol.wire.messages.log import INCLUSION, LogEntries, LogProof
from protocol.wire.messages.rotation import GetWraps, Rewrap, RewrapItem, Rewrapped, WrapsPage
from protocol.wire.messages.sharing import Inbox, InboxPage, Lookup, SetReaders
from protocol.wire.messages.uploads import Data, PutAbort, PutOpen, PutResume, UploadState
from sfsd.config import DAY
from sfsd.rules.context import OPERATIONS, Access, Principal
from tests.sfsd.builders import Daemon, Person, Version, daemon, done, file_id, refused

SHARED, PRIVATE, DROPPED, EXPIRED, DELETED, MOVED, UNKNOWN = map(file_id, range(1, 8))
HIDDEN = (PRIVATE, DROPPED, EXPIRED, MOVED)
"""What is there and not for bob to know of; DELETED was his too, and he may see that it is gone."""


@dataclass
class Town:
    """Ada owns every file, bob is or was a reader of most; his are `own` and an upload."""

    served: Daemon
    ada: Person
    bob: Person
    handles: dict[str, bytes]
    uploads: dict[str, bytes]


def wraps(*people: Person) -> tuple[Wrap, ...]:
    return tuple(person.wrap() for person in people)


def share(owner: Person, file: str, *readers: tuple[str, bytes, int]) -> None:
    record = owner.signed(owner.record(file, ACCESS, readers=readers))
    done(owner.ask(SetReaders(record.body, record.signature, ())))
    owner.took(record)


def opened(person: Person, owner: str, file: str) -> bytes:
    reply = person.ask(GetOpen(owner, file, 0))
    assert isinstance(reply, Opened), reply
    return reply.handle


def begun(person: Person, file: str) -> bytes:
    state = person.ask(PutOpen(person.name, file, 0))
    assert isinstance(state, UploadState)
    return state.upload


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    with daemon(tmp_path) as served:
        ada, bob = served.person("ada"), served.person("bob")
        soon = int(served.clock.now) + DAY
        handles: dict[str, bytes] = {}
        for file in (SHARED, DROPPED, EXPIRED, DELETED, MOVED):
            reader = ("bob", bob.first_hash, soon if file == EXPIRED else 0)
            ada.put(file, b"1" * 60, readers=(reader,), wraps=wraps(ada, bob))
            handles[file] = opened(bob, "ada", file)
        ada.put(PRIVATE)
        handles["ada's"] = opened(ada, "ada", SHARED)
        share(ada, DROPPED)
        ada.delete(DELETED)
        share(ada, MOVED)
        ada.delete(MOVED)
        bob.put(UNKNOWN)  # an id says nothing about who else has one like it
        served.clock.now = soon
        bob.who = bob.log_in()
        handles |= {"own": opened(bob, "bob", UNKNOWN)}
        uploads = {"ada's": begun(ada, file_id(20)), "own": begun(bob, file_id(20))}
        yield Town(served, ada, bob, handles, uploads)


def foreign(asker: Person, op: str, owner: str, file: str) -> Version:
    """A record of `asker`'s that claims to be `owner`'s, right in all that he can know."""
    number = None if op in (DELETE, ACCESS, PURGE) else 1
    content = {} if number is None else {"content_id": bytes(16), "ciphertext_size": 1}
    if number is not None:
        content |= {name: bytes(32) for name in ("segments_root", "dek_commit")}
        content |= {"version": 1, "metadata_sha256": hashlib.sha256(b"m").digest()}
    content |= {"from_": (file, 1)} if op in (RESTORE, MOVE) else {}
    content |= {"purged": (1,)} if op == PURGE else {}
    record = asker.record(
        file, op, owner=owner, actor=asker.name, rev=2, prev=bytes(32), readers=(), **content
    )
    return asker.signed(record, b"m", (asker.wrap(),))


def rewrap(asker: Person, owner: str, file: str) -> Rewrap:
    return Rewrap((RewrapItem(owner, file, 1, asker.wrap(), ()),))


def moved(asker: Person, owner: str, file: str) -> Record:
    there, gone = foreign(asker, MOVE, owner, file), foreign(asker, DELETE, owner, file)
    return Record((*there.change().changes, *gone.change().changes))


def taken(asker: Person, owner: str, file: str) -> Record:
    """A move of another's file to a name of one's own."""
    there, gone = foreign(asker, MOVE, asker.name, file_id(30)), foreign(asker, DELETE, owner, file)
    return Record((*there.change().changes, *gone.change().changes))


def readers(asker: Person, owner: str, file: str) -> SetReaders:
    made = foreign(asker, ACCESS, owner, file)
    return SetReaders(made.body, made.signature, ())


About = Callable[[Person, str, str], Request]

ABOUT: dict[str, tuple[About, bool]] = {
    "stat": (lambda _, owner, file: Stat(owner, file, 0), True),
    "stat of a version": (lambda _, owner, file: Stat(owner, file, 1), True),
    "open": (lambda _, owner, file: GetOpen(owner, file, 1), True),
    "history": (lambda _, owner, file: History(owner, file, 1), True),
    "rewrap": (rewrap, True),
    "open an upload": (lambda _, owner, file: PutOpen(owner, file, 0), False),
    "open one anew": (lambda _, owner, file: PutOpen(owner, file, 60, 1), False),
    "put": (lambda asker, *of: foreign(asker, PUT, *of).small(), False),
    "reencrypt": (lambda asker, *of: foreign(asker, REENCRYPT, *of).small(), False),
    "commit": (lambda asker, *of: foreign(asker, PUT, *of).commit(bytes(16)), False),
    "delete": (lambda asker, *of: foreign(asker, DELETE, *of).change(), False),
    "restore": (lambda asker, *of: foreign(asker, RESTORE, *of).change(), False),
    "purge": (lambda asker, *of: foreign(asker, PURGE, *of).change(), False),
    "move": (moved, False),
    "move to oneself": (taken, False),
    "readers": (readers, False),
}
"""Of each request about a file: how one asks, and whether a reader is given it."""

NAMELESS: dict[type[Request], str] = {
    **dict.fromkeys((GetLeaves, Read), "a handle, below"),
    **dict.fromkeys((Data, PutResume, PutAbort), "an upload, below"),
    **dict.fromkeys((Inbox, List, GetWraps), "what is the asker's, from a place on; below"),
    **dict.fromkeys((LogEntries, LogProof), "the log; below"),
    Lookup: "a user, whom everybody may look up; below",
}
"""Requests that tell of files and name none, by what they name."""


def tells_of_no_file() -> set[type[Request]]:
    """Those that the first half of the matrix settles: accounts, and one's own keys."""
    named = {"Ping", "Usage", "LogHead", "NewStatement", "GetBundle", "RotateBegin", "RotateFinish"}
    alone = {name for name, one in OPERATIONS.items() if one.access == {Access.OPERATOR}}
    return alone | {request for request in OPERATIONS if request.__name__ in named}


def test_every_request_says_of_which_files_it_tells(town: Town) -> None:
    """Who adds one enters it here."""
    about = {type(build(town.bob, "ada", SHARED)) for build, _ in ABOUT.values()}
    parts = [about, set(NAMELESS), tells_of_no_file()]
    assert set().union(*parts) == set(OPERATIONS)
    assert sum(map(len, parts)) == len(OPERATIONS)


def test_what_is_hidden_looks_like_what_is_not_there(town: Town) -> None:
    bob = town.bob
    places = [("nobody", SHARED), ("nobody", UNKNOWN), *(("ada", file) for file in HIDDEN)]
    for what, (build, for_readers) in ABOUT.items():
        nothing = bob.ask(build(bob, "ada", UNKNOWN))
        if not isinstance(nothing, Rewrapped):  # that says which items it has left as they are
            refused(nothing, "not-found")
        for owner, file in places:
            assert bob.ask(build(bob, owner, file)) == nothing, (what, owner, file)
        for file in (SHARED, DELETED):
            reply = bob.ask(build(bob, "ada", file))
            assert (reply != nothing) == for_readers, (what, file, reply)
            assert not (for_readers and isinstance(reply, Error))


def test_a_session_that_may_not_ask_learns_nothing(town: Town) -> None:
    """Restricted, recovery, operator: the same refusal, whatever stands there."""
    places = [("ada", SHARED), ("ada", UNKNOWN), ("bob", UNKNOWN), ("nobody", SHARED)]
    for who in others(town):
        for build, _ in ABOUT.values():
            (reply,) = {town.served.ask(who, build(town.bob, *place)) for place in places}
            refused(reply, "not-allowed")


def others(town: Town) -> list[Principal]:
    """Bob's sessions that are none of his present key, and the operator's."""
    full = town.bob.who
    assert full.access is Access.FULL
    return [
        changed(full, access=Access.RESTRICTED),
        changed(full, access=Access.RECOVERY, generation=0),
        town.served.operator(),
    ]


def test_a_handle_is_of_one_session_and_of_who_may_read(town: Town) -> None:
    for ask, good in ((lambda h: Read(h, 0, 9), Bytes), (lambda h: GetLeaves(h, 0), LeavesPage)):
        assert isinstance(town.bob.ask(ask(town.handles["own"])), good)
        unknown = refused(town.bob.ask(ask(bytes(16))), "changed")
        for name in (SHARED, "ada's"):  # of his session before, and of somebody else's
            assert town.bob.ask(ask(town.handles[name])) == unknown


def test_an_open_handle_gives_nothing_once_access_is_over(town: Town) -> None:
    handle = opened(town.bob, "ada", SHARED)
    share(town.ada, SHARED)
    gone = refused(town.bob.ask(Read(handle, 0, 9)), "not-found")
    assert gone == refused(town.bob.ask(Stat("ada", UNKNOWN, 0)), "not-found")
    assert gone == refused(town.bob.ask(GetLeaves(handle, 0)), "not-found")


def test_an_upload_is_its_users(town: Town) -> None:
    asks: tuple[Callable[[bytes], Request], ...] = (
        lambda upload: Data(upload, 0, b"x"),
        PutResume,
        lambda upload: foreign(town.bob, PUT, "bob", file_id(20)).commit(upload),
        PutAbort,
    )
    for ask in asks:
        unknown = refused(town.bob.ask(ask(bytes(16))), "upload-lost")
        assert town.bob.ask(ask(town.uploads["ada's"])) == unknown
        assert town.bob.ask(ask(town.uploads["own"])) != unknown
    assert isinstance(town.ada.ask(PutResume(town.uploads["ada's"])), UploadState)


def test_lists_have_what_one_may_see_wherever_they_begin(town: Town) -> None:
    """A place is only where to begin: naming a file does not bring it."""
    for file in (*HIDDEN, UNKNOWN):
        found = town.bob.ask(Inbox(f"ada.{file}", 256, 0))
        assert isinstance(found, InboxPage)
        assert {one.file_id for one in found.files} <= {SHARED}
        for cursor in (f"ada.{file}.1", f"ada.{file}.0"):
            page = town.bob.ask(GetWraps(cursor, 256, all_of_them=True))
            assert isinstance(page, WrapsPage)
            seen = {(one.owner, one.file_id) for one in page.items}
            assert seen <= {("ada", SHARED), ("ada", DELETED), ("bob", UNKNOWN)}
    everything = town.bob.ask(GetWraps("", 256, all_of_them=True))
    assert isinstance(everything, WrapsPage)
    assert all(one.wrap is None or one.wrap.user == "bob" for one in everything.items)


def test_a_user_nobody_has_enrolled_is_none(town: Town) -> None:
    operator = town.served.operator()
    done(town.served.ask(operator, Person("carol", town.served).invitation()))
    unknown = refused(town.bob.ask(Lookup("nobody", 1)), "not-found")
    assert town.bob.ask(Lookup("carol", 1)) == unknown
    before = town.bob.ask(Lookup("ada", 1))
    done(town.served.ask(operator, UserAccess("ada", disabled=True, reason="")))
    after = town.bob.ask(Lookup("ada", 1))
    assert not isinstance(after, Error)
    assert type(before) is type(after)  # who is disabled is still who he was


def test_a_place_past_the_log_is_no_place(town: Town) -> None:
    size = town.served.context.journal.size
    assert town.bob.ask(LogEntries(2**53, 1, own=True)) == town.bob.ask(
        LogEntries(size + 1, 1, own=False)
    )
    refused(town.bob.ask(LogProof(INCLUSION, size, size)), "bad-request")


def test_who_is_disabled_does_nothing_with_a_session_that_is_still_open(town: Town) -> None:
    """The server closes it; what is on its way then must not be done."""
    bob, file = town.bob, file_id(40)
    bob.put(file, b"1" * 60)
    upload = bob.upload(file, b"x")
    asked: list[Request] = [
        bob.version(file, b"2").small(),
        PutOpen("bob", file, 0),
        bob.version(file, b"x").commit(upload),
        bob.signed(bob.record(file, DELETE, current=0)).change(),
        readers(bob, "bob", file),
        rewrap(bob, "ada", SHARED),
        GetOpen("ada", SHARED, 0),
    ]
    done(town.served.ask(town.served.operator(), UserAccess("bob", disabled=True, reason="")))
    size = town.served.context.journal.size
    for request in asked:
        reply = refused(bob.ask(request), "denied")
        assert reply.text == "the account is disabled", request
    assert town.served.context.journal.size == size
