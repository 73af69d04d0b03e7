"""Changesets: changes that are signed and sent together, and decided one by one."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest

from protocol.codec import merkle
from protocol.codec.values import changed
from protocol.log import auditlog
from protocol.log.auditlog import leaf_data
from protocol.records.record_signatures import RecordTree
from protocol.records.records import ACCESS, DELETE, PURGE, FileRecord, record_hash
from protocol.wire.messages import Error
from protocol.wire.messages.accounts import Usage
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.changes import Commit, Committed
from protocol.wire.messages.downloads import OpenedVersion
from protocol.wire.messages.files import Stat, Stated
from sfsd.net.batches import THREADS
from sfsd.operations import changesets
from sfsd.rules.record_rules import parse_record
from tests.opens import open_one
from tests.sfsd.builders import (
    Clock,
    Daemon,
    Person,
    Result,
    Version,
    batched,
    daemon,
    file_id,
    refused,
)

A, B, C, D, E = (file_id(number) for number in range(1, 6))
LARGE = os.urandom(PIECE + 99)


def committed(reply: Result) -> Committed:
    assert isinstance(reply, Committed), reply
    return reply


def content(person: Person, file: str) -> bytes:
    opened = person.ask(open_one(person.name, file, 0))
    assert isinstance(opened, OpenedVersion), opened
    return bytes(opened.data)


def puts(person: Person, count: int, size: int = 60) -> list[Version]:
    return [person.version(file_id(at + 1), os.urandom(size)) for at in range(count)]


def test_changes_of_all_kinds_are_made_together(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    for file in (B, C, D):
        ada.put(file, b"1" * 60)
    ada.put(C, b"2" * 60)
    upload = ada.upload(E, LARGE)
    versions = [
        ada.version(A, b"new" * 20),
        ada.version(E, LARGE),
        ada.signed(ada.record(B, DELETE, current=0)),
        ada.signed(ada.record(C, PURGE, purged=(1,))),
        ada.signed(
            ada.record(D, ACCESS, readers=(("bob", bob.first_hash, 0),)), b"", (bob.wrap(),)
        ),
    ]
    reply = committed(ada.ask(ada.changeset(*versions, uploads={1: upload})))
    first = reply.outcomes[0].seq
    assert [one.error for one in reply.outcomes] == [None] * 5
    assert [one.seq for one in reply.outcomes] == list(range(first, first + 5)), "one commit group"
    entries = [auditlog.parse(one.line) for one in reply.outcomes]
    assert [entry.op for entry in entries] == ["upload", "upload", "delete", "purge", "access"]
    assert [entry.rec for entry in entries] == [version.body for version in versions]
    for one in reply.outcomes:
        data = leaf_data(one.line)
        assert len(data).to_bytes(2) + data in reply.leaves
    assert content(ada, A) == b"new" * 20
    assert isinstance(ada.ask(Stat("ada", E, 0)), Stated)
    refused(ada.ask(open_one("ada", B, 0)), "not-found")
    refused(ada.ask(Stat("ada", C, 9)), "not-found")
    shared = bob.ask(open_one("ada", D, 0))
    assert isinstance(shared, OpenedVersion)


def test_each_record_keeps_a_signature_that_verifies_alone(ada: Person) -> None:
    versions = puts(ada, 3)
    committed(ada.ask(ada.changeset(*versions, padding=[os.urandom(32) for _ in range(5)])))
    for version in versions:
        stated = ada.ask(Stat("ada", version.record.file_id, 0))
        assert isinstance(stated, Stated)
        [signature] = stated.view.content.signatures
        assert len(signature.signature) == 64 + 4 + 3 * 32, "the path in a tree of eight leaves"
        ada.took(version)
        # The next version is only accepted onto a head whose signature verifies.
        ada.put(version.record.file_id, b"next" * 15)


def test_a_refused_change_does_not_affect_the_others(ada: Person) -> None:
    stale = ada.version(B, b"late" * 15)
    head = ada.put(B, b"early" * 15)
    versions = [ada.version(A, b"a" * 60), stale, ada.version(C, b"c" * 60)]
    request = ada.changeset(*versions)
    reply = committed(ada.ask(request))
    codes = [one.error and one.error.code for one in reply.outcomes]
    assert codes == [None, "conflict", None]
    error = reply.outcomes[1].error
    assert error is not None
    assert error.head is not None
    assert error.head.content.record == head.body
    assert (content(ada, A), content(ada, B)) == (b"a" * 60, b"early" * 15)
    # Sent again, for the reply may be lost: the same entries, the same refusal.
    again = committed(ada.ask(request))
    assert [one.seq for one in again.outcomes] == [one.seq for one in reply.outcomes]
    assert [one.line for one in again.outcomes] == [one.line for one in reply.outcomes]
    assert [one.error and one.error.code for one in again.outcomes] == codes


def test_most_changes_of_one_request(ada: Person) -> None:
    versions = puts(ada, 256)
    reply = committed(ada.ask(ada.changeset(*versions)))
    assert {one.error for one in reply.outcomes} == {None}
    assert len({one.seq for one in reply.outcomes}) == 256
    for version in versions[::51]:
        assert content(ada, version.record.file_id) == version.ciphertext


def test_lines_beyond_one_reply_are_left_out(ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    ada.put(E)
    line = ada.served.context.journal.line(ada.served.context.journal.size - 1)
    versions = puts(ada, 4)
    monkeypatch.setattr(changesets, "MAX_LINES", 5 * len(line) // 2)
    reply = committed(ada.ask(ada.changeset(*versions)))
    assert [bool(one.line) for one in reply.outcomes] == [True, True, False, False]
    assert {one.error for one in reply.outcomes} == {None}
    assert len({one.seq for one in reply.outcomes}) == 4


def test_heads_beyond_one_reply_are_left_out(ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    late = puts(ada, 3)
    for at in range(3):
        ada.put(file_id(at + 1))
    monkeypatch.setattr(changesets, "MAX_LINES", 4000)
    reply = committed(ada.ask(ada.changeset(*late)))
    errors = [one.error for one in reply.outcomes]
    assert [error and error.code for error in errors] == ["conflict"] * 3
    shown = [error is not None and error.head is not None for error in errors]
    assert shown[0]
    assert not shown[2]


def test_accepted_changes_survive_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    with daemon(tmp_path, clock) as served:
        ada = served.person("ada")
        versions = puts(ada, 40)
        before = committed(ada.ask(ada.changeset(*versions)))
    with daemon(tmp_path, clock) as served:
        ada.served = served
        ada.who = ada.log_in()
        for version in versions:
            assert content(ada, version.record.file_id) == version.ciphertext
        again = committed(ada.ask(ada.changeset(*versions)))
        assert [one.seq for one in again.outcomes] == [one.seq for one in before.outcomes]


def wrong_requests(ada: Person, bob: Person) -> dict[str, tuple[Commit, str]]:
    """Return requests that are refused as a whole, with the code of the error."""
    versions = [ada.version(A, b"a" * 60), ada.version(B, b"b" * 70)]
    good = ada.changeset(*versions)
    one, two = good.changes
    wrap = good.wraps[0]
    twice = ada.changeset(ada.version(A, b"1" * 60), ada.version(A, b"2" * 60))
    foreign = bob.changeset(bob.version(A, b"b" * 60), versions[1])

    def having(**fields: Any) -> Commit:
        return changed(good, **fields)

    return {
        "no change": (having(changes=(), wraps=(), contents=b""), "bad-request"),
        "no leaf": (having(leaves=()), "bad-request"),
        "a leaf twice": (having(leaves=(good.leaves[0],) * 2), "bad-request"),
        "one leaf for two records": (having(changes=(one, changed(two, leaf=0))), "bad-request"),
        "a leaf that is missing": (having(changes=(one, changed(two, leaf=2))), "bad-request"),
        "a file twice": (twice, "bad-request"),
        "a record that is none": (having(changes=(changed(one, record=b"?"), two)), "bad-request"),
        "contents too short": (having(contents=good.contents[:-1]), "bad-request"),
        "contents too long": (having(contents=bytes(good.contents) + b"?"), "bad-request"),
        "a wrap for no change": (having(wraps=(wrap, changed(wrap, change=2))), "bad-request"),
        "a wrap of no batch": (having(wraps=(changed(wrap, batch=2),)), "bad-request"),
        "another user's file": (foreign, "not-found"),
    }


def test_a_malformed_request_is_refused_as_a_whole(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    size = served.context.journal.size
    for what, (request, code) in wrong_requests(ada, bob).items():
        reply = ada.ask(request)
        assert isinstance(reply, Error), what
        assert reply.code == code, what
    assert served.context.journal.size == size
    refused(ada.ask(Stat("ada", A, 0)), "not-found")


def test_a_malformed_request_is_parsed_once(ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each of its changes."""
    request = ada.changeset(*puts(ada, 20))
    *fine, last = request.changes
    parsed: list[bytes] = []

    def parse(body: bytes) -> FileRecord:
        parsed.append(body)
        return parse_record(body)

    monkeypatch.setattr(changesets, "parse_record", parse)
    refused(ada.ask(changed(request, changes=(*fine, changed(last, record=b"?")))), "bad-request")
    assert len(parsed) == 20


@pytest.mark.parametrize(
    "wrong",
    [
        "an upload besides its content",
        "a tombstone of a put",
        "a content of a delete",
        "a wrap for another version",
        "another leaf's place",
    ],
)
def test_one_malformed_change_is_refused_alone(ada: Person, wrong: str) -> None:
    ada.put(B)
    upload = ada.upload(C, b"u" * 60)
    fine, put = ada.version(A, b"a" * 60), ada.version(C, b"u" * 60)
    gone = ada.signed(ada.record(B, DELETE, current=0))
    request = ada.changeset(fine, put)
    first, second = request.changes
    match wrong:
        case "an upload besides its content":
            request = changed(request, changes=(first, changed(second, upload=upload)))
        case "a tombstone of a put":
            tree = RecordTree.of_records(record_hash(one.body) for one in (fine, put, gone))
            signature = ada.changeset(fine, put, gone).signature
            with_tombstone = changed(second, tombstone=gone.body, tombstone_leaf=2)
            request = changed(
                request,
                changes=(first, with_tombstone),
                leaves=tree.leaves,
                signature=signature,
            )
        case "a content of a delete":
            request = ada.changeset(fine, changed(gone, ciphertext=b"c" * 60))
        case "a wrap for another version":
            listed = {0: [(1, fine.wraps[0])], 1: [(1, put.wraps[0]), (2, ada.wrap())]}
            batches, wraps = batched(listed)
            request = changed(request, batches=batches, wraps=wraps)
        case "another leaf's place":
            other = merkle.leaf_hash(record_hash(b"another record"))
            leaves = (request.leaves[0], other)
            signed = ada.changeset(fine, changed(put, body=b"another record")).signature
            request = changed(request, leaves=leaves, signature=signed)
    reply = committed(ada.ask(request))
    assert reply.outcomes[0].error is None
    error = reply.outcomes[1].error
    assert error is not None
    assert error.code in ("bad-request", "refused")
    assert content(ada, A) == b"a" * 60


def test_nothing_is_stored_under_a_wrong_signature(served: Daemon, ada: Person) -> None:
    request = ada.changeset(*puts(ada, 3))
    size = served.context.journal.size
    reply = committed(ada.ask(changed(request, signature=bytes(64))))
    assert [one.error and one.error.code for one in reply.outcomes] == ["refused"] * 3
    assert served.context.journal.size == size


def test_quota_is_claimed_change_by_change(served: Daemon) -> None:
    bob = served.person("bob", quota=3 * 60_000)
    versions = puts(bob, 5, 50_000)
    reply = committed(bob.ask(bob.changeset(*versions)))
    codes = [one.error and one.error.code for one in reply.outcomes]
    assert codes == [None, None, None, "quota", "quota"]
    assert bob.used() == bob.stored()
    for version in versions[:3]:
        bob.took(version)
        bob.delete(version.record.file_id)


def atomic(person: Person, *versions: Version, **fields: Any) -> Commit:
    return person.changeset(*versions, atomic=True, **fields)


def codes(reply: Result) -> list[str | None]:
    errors = [one.error for one in committed(reply).outcomes]
    return [None if error is None else error.code for error in errors]


def test_an_atomic_changeset_is_made_as_one_set(served: Daemon, ada: Person) -> None:
    ada.put(B, b"1" * 60)
    upload = ada.upload(E, LARGE)
    versions = [
        ada.version(A, b"new" * 20),
        ada.signed(ada.record(B, DELETE, current=0)),
        ada.version(E, LARGE),
    ]
    request = atomic(ada, *versions, uploads={2: upload})
    reply = committed(ada.ask(request))
    first = reply.outcomes[0].seq
    assert codes(reply) == [None] * 3
    assert [one.seq for one in reply.outcomes] == [first, first + 1, first + 2]
    entries = [auditlog.parse(one.line) for one in reply.outcomes]
    assert [(entry.op, entry.in_set) for entry in entries] == [
        ("upload", (first, 3)),
        ("delete", (first, 3)),
        ("upload", (first, 3)),
    ]
    assert content(ada, A) == b"new" * 20
    refused(ada.ask(open_one("ada", B, 0)), "not-found")
    # Sent again, for the reply may be lost.
    again = committed(ada.ask(request))
    assert [one.line for one in again.outcomes] == [one.line for one in reply.outcomes]
    alone = committed(
        served.run(served.dispatcher.handle(ada.who, atomic(ada, ada.version(C, b"c"))))
    )
    assert auditlog.parse(alone.outcomes[0].line).in_set is None


REFUSALS = {
    "conflict": "conflict",
    "no such file": "not-found",
    "another key": "stale-recipient",
    "malformed": "bad-request",
    "wrong signature": "refused",
    "lost upload": "upload-lost",
    "quota": "quota",
}


@pytest.mark.parametrize("why", REFUSALS)
def test_one_refused_change_of_an_atomic_changeset_refuses_all(served: Daemon, why: str) -> None:
    """Nothing is stored, logged or counted, and the upload of a sibling can be committed after."""
    name = f"bob-{why.replace(' ', '-')}"
    bob = served.person(name, quota=300_000)
    bob.put(C, b"old" * 20)
    upload = bob.upload(E, b"u" * 50_000)
    fine, large = bob.version(A, b"a" * 60_000), bob.version(E, b"u" * 50_000)
    gone = bob.signed(bob.record(C, DELETE, current=0))
    uploads = {2: upload}
    match why:
        case "conflict":
            bad = bob.version(B, b"late" * 15)
            bob.put(B, b"early" * 15)
        case "no such file":
            bad = bob.signed(bob.record(B, DELETE, current=0))
        case "another key":
            bad = bob.version(B, b"b" * 60, wraps=(bob.wrap(key_id=bytes(32)),))
        case "malformed":
            bad = bob.version(B, b"b" * 60, metadata_sha256=bytes(32))
        case "wrong signature":
            bad = bob.version(B, b"b" * 60)
        case "lost upload":
            bad, uploads = bob.version(B, b"b" * 60), uploads | {3: bytes(16)}
        case _:
            bad = bob.version(B, b"b" * 200_000)
    request = atomic(bob, fine, gone, large, bad, uploads=uploads)
    if why == "wrong signature":
        leaf = merkle.leaf_hash(record_hash(b"another record"))
        request = changed(request, leaves=(*request.leaves[:3], leaf))
        tree = RecordTree(request.leaves)
        signer = atomic(
            bob, fine, gone, large, changed(bad, body=b"another record"), uploads=uploads
        )
        assert tree.leaves == signer.leaves
        request = changed(request, signature=signer.signature)
    size, used = served.context.journal.size, bob.ask(Usage())
    reply = bob.ask(request)
    assert codes(reply) == ["set-refused"] * 3 + [REFUSALS[why]]
    error = committed(reply).outcomes[3].error
    assert error is not None
    assert (error.head is not None) == (why == "conflict")
    assert served.context.journal.size == size
    assert bob.ask(Usage()) == used
    refused(bob.ask(Stat(name, A, 0)), "not-found")
    assert content(bob, C) == b"old" * 20
    without = atomic(bob, fine, gone, large, uploads={2: upload})
    assert codes(bob.ask(without)) == [None] * 3


def test_all_refused_changes_are_named_at_once(served: Daemon) -> None:
    bob = served.person("bob-all")
    late = puts(bob, 4)
    for at in (1, 3):
        bob.put(file_id(at), b"early" * 15)
    size = served.context.journal.size
    reply = committed(bob.ask(atomic(bob, *late)))
    assert codes(reply) == ["conflict", "set-refused", "conflict", "set-refused"]
    assert served.context.journal.size == size


def test_a_part_of_a_set_that_was_made_before_is_not_made_again(served: Daemon) -> None:
    """Neither with changes that are new, nor as a set that it was not, nor in another request."""
    bob = served.person("bob-part")
    versions = puts(bob, 3)
    committed(bob.ask(bob.changeset(*versions[:2])))
    size = served.context.journal.size
    assert codes(bob.ask(atomic(bob, *versions))) == ["conflict", "conflict", "set-refused"]
    refused(bob.ask(bob.changeset(versions[0])), "conflict")
    assert codes(bob.ask(atomic(bob, *versions[:2]))) == ["bad-request"] * 2
    assert served.context.journal.size == size


def test_a_set_of_which_a_file_was_changed_since_is_a_conflict(served: Daemon) -> None:
    bob = served.person("bob-since")
    versions = puts(bob, 3)
    request = atomic(bob, *versions)
    assert codes(bob.ask(request)) == [None] * 3
    bob.took(versions[1])
    bob.put(file_id(2), b"since" * 15)
    assert codes(bob.ask(request)) == ["set-refused", "conflict", "set-refused"]


def test_the_largest_set(served: Daemon) -> None:
    bob = served.person("bob-largest")
    reply = committed(bob.ask(atomic(bob, *puts(bob, 256))))
    assert codes(reply) == [None] * 256
    first = reply.outcomes[0].seq
    assert {served.context.journal.entry(one.seq).in_set for one in reply.outcomes} == {
        (first, 256)
    }


def test_a_set_is_known_after_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    with daemon(tmp_path, clock) as served:
        ada = served.person("ada")
        ada.put(C, b"old" * 20)
        versions = [*puts(ada, 2), ada.signed(ada.record(C, DELETE, current=0))]
        request = atomic(ada, *versions)
        before = committed(ada.ask(request))
    with daemon(tmp_path, clock) as served:
        ada.served = served
        ada.who = ada.log_in()
        again = committed(ada.ask(request))
        assert [one.line for one in again.outcomes] == [one.line for one in before.outcomes]
        refused(ada.ask(open_one("ada", C, 0)), "not-found")


def test_a_refused_changeset_leaves_no_garbage(ada: Person) -> None:
    """Not until the cycle collector runs, which may be long after a flood."""
    request = ada.changeset(*puts(ada, 50, 1000))
    wrong = changed(request, signature=bytes(64))
    committed(ada.ask(wrong))
    gc.collect()
    gc.disable()
    try:
        for _ in range(3 * THREADS):
            committed(ada.ask(wrong))
        kept = sum(isinstance(one, changesets.SignedChangeset) for one in gc.get_objects())
        assert kept <= THREADS + 1, "each thread may keep its last task"
    finally:
        gc.enable()
