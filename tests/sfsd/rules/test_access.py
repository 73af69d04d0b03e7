"""What each request reveals about a file, depending on the client's access to that file.

`tests/sfsd/net/test_dispatch.py` has the other half: which session may send which request. A file
that a user may not see must look like a file that does not exist, to the last byte of the answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from protocol.codec.values import changed
from protocol.log import auditlog
from protocol.records.records import (
    ACCESS,
    DELETE,
    MOVE,
    PURGE,
    PUT,
    REENCRYPT,
    RESTORE,
    record_hash,
)
from protocol.wire.messages import Error, Request
from protocol.wire.messages.accounts import UserAccess
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.changes import Commit
from protocol.wire.messages.downloads import Bytes, GetLeaves, LeavesPage, OpenedVersion, Read
from protocol.wire.messages.files import GiveUp, History, List, Stat
from protocol.wire.messages.log import (
    INCLUSION,
    LogLeaves,
    LogLeavesPage,
    LogLines,
    LogProof,
)
from protocol.wire.messages.rotation import GetWraps, Rewrap, RewrapItem, Rewrapped, WrapsPage
from protocol.wire.messages.sharing import BlockOwner, Inbox, InboxPage, LeaveFile, Lookup
from protocol.wire.messages.uploads import Data, PutAbort, PutOpen, PutResume, UploadState
from sfsd.rules.context import OPERATIONS, Access, Principal
from sfsd.settings.kinds import DAY
from tests.opens import open_one
from tests.sfsd.builders import Daemon, Person, Version, daemon, done, file_id, refused

SHARED, PRIVATE, DROPPED, EXPIRED, DELETED, MOVED, UNKNOWN = map(file_id, range(1, 8))
HIDDEN = (PRIVATE, DROPPED, EXPIRED, MOVED)
"""Files that bob must not see. DELETED is not one: bob was a reader, and may see the deletion."""


@dataclass
class Scenario:
    """Ada owns every file, bob is or was a reader of most. Bob owns one file and one upload."""

    served: Daemon
    ada: Person
    bob: Person
    handles: dict[str, bytes]
    uploads: dict[str, bytes]


def wraps(*people: Person) -> tuple[Wrap, ...]:
    return tuple(person.wrap() for person in people)


def share(owner: Person, file: str, *readers: tuple[str, bytes, int]) -> None:
    record = owner.signed(owner.record(file, ACCESS, readers=readers))
    done(owner.ask(record.share()))
    owner.took(record)


def opened(person: Person, owner: str, file: str) -> bytes:
    reply = person.ask(open_one(owner, file, 0))
    assert isinstance(reply, OpenedVersion), reply
    return reply.handle


def begun(person: Person, file: str) -> bytes:
    state = person.ask(PutOpen(person.name, file, 0))
    assert isinstance(state, UploadState)
    return state.upload


@pytest.fixture
def scenario(tmp_path: Path) -> Iterator[Scenario]:
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
        bob.put(UNKNOWN)  # other users may have a file with the same id
        served.clock.now = soon
        bob.who = bob.log_in()
        handles |= {"own": opened(bob, "bob", UNKNOWN)}
        uploads = {"ada's": begun(ada, file_id(20)), "own": begun(bob, file_id(20))}
        yield Scenario(served, ada, bob, handles, uploads)


def foreign(asker: Person, op: str, owner: str, file: str) -> Version:
    """Return a record signed by `asker` for a file of `owner`, valid as far as `asker` knows."""
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
    return asker.rewrap(RewrapItem(owner, file, 1, asker.wrap(), ()))


def moved(asker: Person, owner: str, file: str) -> Commit:
    there, gone = foreign(asker, MOVE, owner, file), foreign(asker, DELETE, owner, file)
    return asker.together(there, gone)


def taken(asker: Person, owner: str, file: str) -> Commit:
    """Return a move of another user's file to a name of the asker."""
    there, gone = foreign(asker, MOVE, asker.name, file_id(30)), foreign(asker, DELETE, owner, file)
    return asker.together(there, gone)


def readers(asker: Person, owner: str, file: str) -> Commit:
    return foreign(asker, ACCESS, owner, file).share()


About = Callable[[Person, str, str], Request]

ABOUT: dict[str, tuple[About, bool]] = {
    "stat": (lambda _, owner, file: Stat(owner, file, 0), True),
    "stat of a version": (lambda _, owner, file: Stat(owner, file, 1), True),
    "open": (lambda _, owner, file: open_one(owner, file, 1), True),
    "history": (lambda _, owner, file: History(owner, file, 1), True),
    # Also for a reader: the wrap is for the key that they have, so there is nothing to change.
    "rewrap": (rewrap, False),
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
"""Each request about a file: how to build it, and whether a reader gets an answer."""

NAMELESS: dict[type[Request], str] = {
    **dict.fromkeys((GetLeaves, Read), "a handle, below"),
    **dict.fromkeys((Data, PutResume, PutAbort), "an upload, below"),
    **dict.fromkeys((Inbox, List, GetWraps), "the asker's own list, from a cursor; below"),
    **dict.fromkeys((LogLeaves, LogLines, LogProof), "the log; below"),
    GiveUp: "a file of the asker's own; below",
    LeaveFile: "a file in the asker's inbox; below",
    **dict.fromkeys((Lookup, BlockOwner), "a user; any user may look up another; below"),
}
"""Requests that reveal files and name none, with what they name; tested below."""


def requests_about_no_file() -> set[type[Request]]:
    """Return the requests that reveal no file: accounts, and the asker's own keys."""
    named = {"Ping", "Usage", "LogHead", "NewStatement", "GetBundle", "RotateBegin", "RotateFinish"}
    named |= {"ListBlocked"}
    alone = {
        name for name, one in OPERATIONS.items() if one.access <= {Access.OPERATOR, Access.MONITOR}
    }
    return alone | {request for request in OPERATIONS if request.__name__ in named}


def test_every_request_is_classified(scenario: Scenario) -> None:
    """A new request must be added to one of the tables."""
    about = {type(build(scenario.bob, "ada", SHARED)) for build, _ in ABOUT.values()}
    parts = [about, set(NAMELESS), requests_about_no_file()]
    assert set().union(*parts) == set(OPERATIONS)
    assert sum(map(len, parts)) == len(OPERATIONS)


def test_hidden_files_look_like_missing_files(scenario: Scenario) -> None:
    bob = scenario.bob
    places = [("nobody", SHARED), ("nobody", UNKNOWN), *(("ada", file) for file in HIDDEN)]
    for what, (build, for_readers) in ABOUT.items():
        nothing = bob.ask(build(bob, "ada", UNKNOWN))
        if not isinstance(nothing, Rewrapped):  # its answer lists the items that were not changes
            refused(nothing, "not-found")
        for owner, file in places:
            assert bob.ask(build(bob, owner, file)) == nothing, (what, owner, file)
        for file in (SHARED, DELETED):
            reply = bob.ask(build(bob, "ada", file))
            assert (reply != nothing) == for_readers, (what, file, reply)
            assert not (for_readers and isinstance(reply, Error))


def test_refused_sessions_learn_nothing(scenario: Scenario) -> None:
    """Restricted, recovery and operator sessions get the same refusal for every file."""
    places = [("ada", SHARED), ("ada", UNKNOWN), ("bob", UNKNOWN), ("nobody", SHARED)]
    for who in other_sessions(scenario):
        for build, _ in ABOUT.values():
            (reply,) = {scenario.served.ask(who, build(scenario.bob, *place)) for place in places}
            refused(reply, "not-allowed")


def other_sessions(scenario: Scenario) -> list[Principal]:
    """Return sessions of bob that do not use the current key, and the operator's session."""
    full = scenario.bob.who
    assert full.access is Access.FULL
    return [
        changed(full, access=Access.RESTRICTED),
        changed(full, access=Access.RECOVERY, generation=0),
        scenario.served.operator(),
    ]


def test_handle_belongs_to_one_session(scenario: Scenario) -> None:
    for ask, good in ((lambda h: Read(h, 0, 9), Bytes), (lambda h: GetLeaves(h, 0), LeavesPage)):
        assert isinstance(scenario.bob.ask(ask(scenario.handles["own"])), good)
        unknown = refused(scenario.bob.ask(ask(bytes(16))), "changed")
        for name in (SHARED, "ada's"):  # of an earlier session of bob, and of another user
            assert scenario.bob.ask(ask(scenario.handles[name])) == unknown


def test_open_handle_is_useless_after_access_is_revoked(scenario: Scenario) -> None:
    handle = opened(scenario.bob, "ada", SHARED)
    share(scenario.ada, SHARED)
    gone = refused(scenario.bob.ask(Read(handle, 0, 9)), "not-found")
    assert gone == refused(scenario.bob.ask(Stat("ada", UNKNOWN, 0)), "not-found")
    assert gone == refused(scenario.bob.ask(GetLeaves(handle, 0)), "not-found")


def test_upload_belongs_to_its_user(scenario: Scenario) -> None:
    asks: tuple[Callable[[bytes], Request], ...] = (
        lambda upload: Data(upload, 0, b"x"),
        PutResume,
        lambda upload: foreign(scenario.bob, PUT, "bob", file_id(20)).commit(upload),
        PutAbort,
    )
    for ask in asks:
        # 16 zero bytes would mean every upload of the session.
        unknown = refused(scenario.bob.ask(ask(b"\1" * 16)), "upload-lost")
        assert scenario.bob.ask(ask(scenario.uploads["ada's"])) == unknown
        assert scenario.bob.ask(ask(scenario.uploads["own"])) != unknown
    assert isinstance(scenario.ada.ask(PutResume(scenario.uploads["ada's"])), UploadState)


def test_give_up_reaches_own_files_only(scenario: Scenario) -> None:
    unknown = refused(scenario.bob.ask(GiveUp(file_id(99), 1)), "not-found")
    for file in (SHARED, *HIDDEN):
        assert scenario.bob.ask(GiveUp(file, 1)) == unknown


def test_leaving_reveals_only_visible_files(scenario: Scenario) -> None:
    bob = scenario.bob
    unknown = refused(bob.ask(bob.leave("ada", UNKNOWN, bytes(32))), "not-found")
    for file in HIDDEN:
        head = record_hash(scenario.ada.heads[file])
        for named in (head, bytes(32)):
            assert bob.ask(bob.leave("ada", file, named)) == unknown
    assert bob.ask(bob.leave("nobody", SHARED, bytes(32))) == unknown
    refused(bob.ask(bob.leave("ada", SHARED, bytes(32))), "conflict")


def test_lists_show_only_visible_files_from_any_cursor(scenario: Scenario) -> None:
    """A cursor only says where to begin: naming a hidden file does not reveal it."""
    for file in (*HIDDEN, UNKNOWN):
        found = scenario.bob.ask(Inbox(f"ada.{file}", 256, 0))
        assert isinstance(found, InboxPage)
        assert {one.file_id for one in found.files} <= {SHARED}
        for cursor in (f"ada.{file}.1", f"ada.{file}.0"):
            page = scenario.bob.ask(GetWraps(cursor, 256, all_of_them=True))
            assert isinstance(page, WrapsPage)
            seen = {(one.owner, one.file_id) for one in page.items}
            assert seen <= {("ada", SHARED), ("ada", DELETED), ("bob", UNKNOWN)}
    everything = scenario.bob.ask(GetWraps("", 256, all_of_them=True))
    assert isinstance(everything, WrapsPage)
    assert all(one.wrap is None or one.wrap.user == "bob" for one in everything.items)


def test_invited_user_looks_like_a_missing_user(scenario: Scenario) -> None:
    operator = scenario.served.operator()
    done(scenario.served.ask(operator, Person("carol", scenario.served).invitation()))
    unknown = refused(scenario.bob.ask(Lookup("nobody", 1)), "not-found")
    assert scenario.bob.ask(Lookup("carol", 1)) == unknown
    assert scenario.bob.ask(BlockOwner("carol", blocked=True)) == unknown
    assert scenario.bob.ask(BlockOwner("nobody", blocked=True)) == unknown
    before = scenario.bob.ask(Lookup("ada", 1))
    done(scenario.served.ask(operator, UserAccess("ada", disabled=True, reason="")))
    after = scenario.bob.ask(Lookup("ada", 1))
    assert not isinstance(after, Error)
    assert type(before) is type(after)  # a disabled user keeps the identity


def test_positions_past_the_log_look_alike(scenario: Scenario) -> None:
    size = scenario.served.context.journal.size
    refused(scenario.bob.ask(LogProof(INCLUSION, size, size)), "bad-request")
    assert scenario.bob.ask(LogLeaves(2**53, 1)) == LogLeavesPage(b"")
    hidden = [
        scenario.bob.ask(LogLines((entry.seq,)))
        for entry in scenario.served.entries()
        if "bob" not in (entry.actor, entry.owner, *entry.accounts)
        and entry.op not in auditlog.IDENTITY_OPS
    ]
    assert hidden
    assert all(one == scenario.bob.ask(LogLines((2**53,))) for one in hidden)


def test_disabled_user_cannot_use_an_open_session(scenario: Scenario) -> None:
    """The server closes the session; requests that arrive before that must be refused."""
    bob, file = scenario.bob, file_id(40)
    bob.put(file, b"1" * 60)
    upload = bob.upload(file, b"x")
    asked: list[Request] = [
        bob.version(file, b"2").small(),
        PutOpen("bob", file, 0),
        bob.version(file, b"x").commit(upload),
        bob.signed(bob.record(file, DELETE, current=0)).change(),
        readers(bob, "bob", file),
        rewrap(bob, "ada", SHARED),
        open_one("ada", SHARED, 0),
    ]
    done(
        scenario.served.ask(scenario.served.operator(), UserAccess("bob", disabled=True, reason=""))
    )
    size = scenario.served.context.journal.size
    for request in asked:
        reply = refused(bob.ask(request), "denied")
        assert reply.text == "the account is disabled", request
    assert scenario.served.context.journal.size == size
