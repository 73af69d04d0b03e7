"""What a version is put onto, what proves that it was, and what a lost answer leaves open."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.records.records import FileRecord
from protocol.wire.messages import Done, Error, Reply, Request
from protocol.wire.messages.files import History, Record
from protocol.wire.messages.log import LogProof
from protocol.wire.messages.uploads import PutCommit, PutOpen, PutSmall
from sfsc.errors import (
    BadReceipt,
    ConflictError,
    Fork,
    LocalError,
    QuotaExceeded,
    Rollback,
    Unreachable,
)
from sfsc.files.history import FileHistory
from sfsc.files.listing import Files
from sfsc.files.rename import Renames
from sfsc.session.commit import MAX_CONFLICTS
from sfsc.session.session import Session
from sfsc.transfer.upload import Uploads, run_stepwise
from tests.sfsc.simulator import DropConnection, Simulator
from tests.sfsc.storing import BIG, drop, fetched, items, meanwhile, once, put


def test_versions_count_up_in_one_round_trip_each(server: Simulator, session: Session) -> None:
    """And one that proves each receipt from the one before."""
    before = len(server.requests)
    assert [put(session, b"%d" % i) for i in range(4)] == [1, 2, 3, 4]
    assert (len(server.asked(PutSmall)), len(server.asked(LogProof))) == (4, 3)
    assert len(server.requests) == before + 7
    assert fetched(session, "file") == b"3"
    assert fetched(session, "file", 2) == b"1"


def test_what_was_looked_up_together_counts_once(server: Simulator, session: Session) -> None:
    """The second put of a name stands on the first, though nothing was known when both were
    looked up; and one that was put before is known."""
    put(session, b"before", "old")
    uploads = Uploads(session)
    uploads.announce([("/no", "old"), ("/no", "new")])
    contents = [(io.BytesIO(b"1"), "new"), (io.BytesIO(b"2"), "old"), (io.BytesIO(b"3"), "new")]
    assert [done.version for done in uploads.put_many(contents)] == [1, 2, 2]
    assert len(server.asked(PutSmall)) == 4
    uploads.announce([("/no", "old")])
    assert [done.version for done in uploads.put_many([(io.BytesIO(b"4"), "old")])] == [3]
    uploads.put(io.BytesIO(b"5"), "old")
    assert (fetched(session, "old"), fetched(session, "new")) == (b"5", b"3")


def test_a_put_that_follows_one_that_was_not_foreseen(server: Simulator, session: Session) -> None:
    uploads = Uploads(session)
    uploads.announce([("/no", "file")])
    assert put(session, b"by another way", "file") == 1
    assert uploads.put(io.BytesIO(b"after"), "file").version == 2, "a conflict shows the head"
    assert len(server.asked(PutSmall)) == 3


@pytest.mark.parametrize("size", [5, BIG])
def test_who_comes_second_comes_last(
    server: Simulator, session: Session, other: Session, size: int
) -> None:
    first, second = os.urandom(size), os.urandom(size)
    assert put(session, first) == 1
    assert put(other, second) == 2, "nothing is known there: a conflict shows the head"
    assert fetched(session, "file") == second
    assert put(session, first) == 3
    sent = server.asked(PutSmall if size == 5 else PutCommit)
    # The conflict cost one more record, not one more upload: the ciphertext is the same.
    assert len(sent) == 4
    assert len(server.asked(PutOpen)) == (0 if size == 5 else 3)
    records = [FileRecord.parse(request.record) for request in sent]
    assert [record.rev for record in records] == [1, 1, 2, 3]
    assert records[1].segments_root == records[2].segments_root


def test_a_put_that_expects_a_version(session: Session, other: Session) -> None:
    with pytest.raises(ConflictError):
        put(session, b"", expected=1)
    assert put(session, b"", expected=0) == 1
    with pytest.raises(ConflictError) as caught:
        put(other, b"", expected=0)
    assert caught.value.head is not None
    assert put(other, b"", expected=1) == 2
    # What is remembered here is older than what the caller has heard of.
    assert put(session, b"", expected=2) == 3
    with pytest.raises(ConflictError):
        put(other, b"", expected=2)
    Files(session).rm("file")
    assert put(session, b"", expected=0) == 4


def test_endless_conflicts_end(server: Simulator, session: Session) -> None:
    count = 0

    def faster(request: Request) -> Reply | None:
        nonlocal count
        if not isinstance(request, PutSmall):
            return None
        count += 1
        return Error("conflict", "too late", server.view(session.account.file_id("file")))

    put(session, b"first")
    server.intercept = faster
    with pytest.raises(ConflictError):
        put(session, b"second")
    assert count == MAX_CONFLICTS


def test_a_conflict_that_shows_an_old_head_is_a_rollback(
    server: Simulator, session: Session
) -> None:
    put(session, b"one")
    old = server.view(session.account.file_id("file"))
    put(session, b"two")
    server.intercept = lambda request: (
        Error("conflict", "", old) if isinstance(request, PutSmall) else None
    )
    with pytest.raises(Rollback):
        put(session, b"three")


def test_a_small_one_that_the_server_says_it_has_lost(server: Simulator, session: Session) -> None:
    """There was nothing to lose: that is no reason to begin again, and no traceback."""

    def lost(request: Request) -> Reply | None:
        return Error("upload-lost", "") if isinstance(request, PutSmall) else None

    server.intercept = lost
    with pytest.raises(Unreachable):
        put(session, b"content")
    with pytest.raises(Unreachable):
        list(Uploads(session).put_many(items(3)))
    assert len(server.asked(PutSmall)) == 1 + 3


def test_a_quota_that_is_full(server: Simulator, session: Session) -> None:
    server.intercept = lambda request: (
        Error("quota", "full") if isinstance(request, (PutSmall, PutOpen)) else None
    )
    for size in (5, BIG):
        with pytest.raises(QuotaExceeded):
            put(session, bytes(size))


@pytest.mark.parametrize("size", [5, BIG])
def test_success_is_only_what_the_log_proves(
    server: Simulator, session: Session, size: int
) -> None:
    def unproven(request: Request, reply: Reply) -> Reply:
        if not isinstance(reply, Done):
            return reply
        return Done(replace(reply.receipt, line=server.log.lines[0]))

    server.tamper = unproven
    before = session.trust.newest
    with pytest.raises(BadReceipt):
        put(session, bytes(size))
    assert session.trust.newest == before
    assert session.state.file(session.account.file_id("file")) is None


def test_a_receipt_of_another_log(server: Simulator, session: Session) -> None:
    server.log = server.log.fork(1)
    server.log.fill(3)
    with pytest.raises(Fork):
        put(session, b"")


def test_a_log_that_forks_between_two_receipts(server: Simulator, session: Session) -> None:
    """Both logs continue the one the session opened with, and are of different lengths."""
    forked = server.log.fork(server.log.size)
    put(session, b"ours", "a")
    before = session.trust.newest
    server.log = forked
    server.log.fill(4)
    with pytest.raises(Fork):
        put(session, b"theirs", "b")
    assert session.trust.newest == before


def test_a_server_that_will_not_prove_that_its_log_is_one(
    server: Simulator, session: Session
) -> None:
    put(session, b"one", "a")
    server.tamper = once(LogProof, lambda *_: Error("bad-request", "no"))
    with pytest.raises(BadReceipt):
        put(session, b"two", "b")


def test_a_connection_lost_between_a_receipt_and_its_proof(
    server: Simulator, session: Session
) -> None:
    put(session, b"one", "a")
    server.tamper = once(LogProof, drop)
    done = list(Uploads(session).put_many(items(30)))
    assert [put.version for put in done] == [1] * 30
    assert session.connections == 2
    assert session.trust.newest.size == server.log.size


# --- lost connections


@pytest.mark.parametrize("size", [5, BIG])
def test_an_acknowledgement_that_is_lost(server: Simulator, session: Session, size: int) -> None:
    kind = PutSmall if size == 5 else PutCommit
    server.tamper = once(kind, drop)
    content = os.urandom(size)
    done = Uploads(session).put(io.BytesIO(content), "file")
    assert done.receipt is not None
    assert (done.version, session.connections) == (1, 2)
    sent = server.asked(kind)
    assert sent[0].record == sent[1].record
    assert fetched(session, "file") == content


@pytest.mark.parametrize("size", [5, BIG])
def test_an_acknowledgement_lost_and_overtaken(
    server: Simulator, session: Session, other: Session, size: int
) -> None:
    """The put was accepted, its answer lost, and another device has put onto it since."""
    server.tamper = once(PutSmall if size == 5 else PutCommit, drop)
    session._pause = meanwhile(other)
    content = os.urandom(size)
    done = Uploads(session).put(io.BytesIO(content), "file")
    assert (done.version, done.receipt) == (1, None)
    assert len(server.asked(History)) == 1
    assert fetched(session, "file", 1) == content
    assert fetched(session, "file") == b"theirs"
    assert put(session, b"again") == 3


def test_a_conflict_after_a_loss_that_was_not_ours(
    server: Simulator, session: Session, other: Session
) -> None:
    """The put was lost on its way *to* the server, which has something else by now."""

    def lose(request: Request, reply: Reply) -> Reply:
        server.files.clear()
        raise DropConnection

    server.tamper = once(PutSmall, lose)
    session._pause = meanwhile(other)
    assert put(session, b"ours") == 2
    assert fetched(session, "file", 1) == b"theirs"


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=6))
def test_each_step_is_taken_for_all_up_to_the_first_that_fails(fails: list[list[bool]]) -> None:
    """Against the plain reading: one after the other, until a step of one fails."""
    taken: list[tuple[int, int]] = []

    def step(number: int) -> Callable[[int], None]:
        def take(item: int) -> None:
            if fails[item][number]:
                raise LocalError(f"item {item}")
            taken.append((number, item))

        return take

    items = list(range(len(fails)))
    failure = run_stepwise(items, [step(number) for number in range(3)])
    first = next((item for item in range(len(fails)) if any(fails[item])), len(fails))
    assert items == list(range(first))
    assert failure is None if first == len(fails) else str(failure) == f"item {first}"
    assert taken == sorted(taken)
    assert {(number, item) for number in range(3) for item in items} <= set(taken)


ACTIONS: dict[str, Callable[[Session], object]] = {
    "put": lambda session: put(session, b"again"),
    "put a large one": lambda session: put(session, os.urandom(BIG)),
    "rm": lambda session: Files(session).rm("file"),
    "mv": lambda session: Renames(session).mv("file", "other"),
    "restore": lambda session: FileHistory(session).restore("file", 1),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_what_was_accepted_before_keys_were_rotated_is_not_done_twice(
    server: Simulator, session: Session, action: str
) -> None:
    """The answer was lost with its connection, and the next one was opened with older keys."""
    for content in (b"1", b"2"):
        put(session, content)
    sent: list[Request] = []

    def renew() -> None:
        current = session.keyring.current
        assert current is not None
        newer = replace(current, generation=2, sign_seed=b"n" * 32)
        session.use_keyring(replace(session.keyring, generations=(current, newer)))

    def stale(request: Request) -> Reply | None:
        if not isinstance(request, PutSmall | PutCommit | Record):
            return None
        sent.append(request)
        return Error("stale-generation", "rotated") if len(sent) > 1 else None

    def lose(request: Request, reply: Reply) -> Reply:
        if isinstance(request, PutSmall | PutCommit | Record) and len(sent) == 1:
            raise DropConnection
        return reply

    session.renewer = renew
    server.intercept, server.tamper = stale, lose
    ACTIONS[action](session)
    assert len(server.files[session.account.file_id("file")].records) == 3
    assert session.author.generation == 2
