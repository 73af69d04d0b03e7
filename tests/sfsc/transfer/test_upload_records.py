"""Records of new versions: the head they build on, their proof, and lost replies."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import pytest

from protocol.codec.values import changed
from protocol.log.auditlog import EntryDraft
from protocol.records.records import FileRecord
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.changes import Commit
from protocol.wire.messages.log import LogHead, LogLeaves, LogLines, LogProof
from protocol.wire.messages.uploads import PutOpen
from sfsc.errors import (
    BadReceipt,
    ConflictError,
    Fork,
    QuotaExceeded,
    Rollback,
    Unreachable,
)
from sfsc.files.history import FileHistory
from sfsc.files.listing import Files
from sfsc.files.rename import Renames
from sfsc.session.commit import MAX_CONFLICTS
from sfsc.session.session import Session
from sfsc.transfer.upload import Uploads
from tests.changes import is_large, is_small, relined
from tests.sfsc.simulator import DropConnection, Simulator
from tests.sfsc.storing import BIG, Meanwhile, drop, fetched, items, meanwhile, once, put


def test_versions_count_up_in_one_round_trip_each(server: Simulator, session: Session) -> None:
    """Each receipt shows all that is new in the log."""
    server.all_leaves = True
    before = len(server.requests)
    assert [put(session, b"%d" % i) for i in range(4)] == [1, 2, 3, 4]
    assert len(server.requests) == before + 4
    assert fetched(session, "file") == b"3"
    assert fetched(session, "file", 2) == b"1"


def test_a_put_in_a_batch_builds_on_the_one_before(server: Simulator, session: Session) -> None:
    """One file was stored before, another one is stored twice in the batch."""
    put(session, b"before", "old")
    uploads = Uploads(session)
    contents = [(io.BytesIO(b"1"), "new"), (io.BytesIO(b"2"), "old"), (io.BytesIO(b"3"), "new")]
    assert [done.version for done in uploads.put_many(contents)] == [1, 2, 2]
    assert len(server.changes(is_small)) == 4
    assert [done.version for done in uploads.put_many([(io.BytesIO(b"4"), "old")])] == [3]
    uploads.put(io.BytesIO(b"5"), "old")
    assert (fetched(session, "old"), fetched(session, "new")) == (b"5", b"3")


@pytest.mark.parametrize("size", [5, BIG])
def test_the_later_of_two_puts_is_the_newest(
    server: Simulator, session: Session, other: Session, size: int
) -> None:
    first, second = os.urandom(size), os.urandom(size)
    assert put(session, first) == 1
    assert put(other, second) == 2, "nothing is known there: a conflict shows the head"
    assert fetched(session, "file") == second
    assert put(session, first) == 3
    sent = server.changes(is_small if size == 5 else is_large)
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
    # The remembered version is older than the one the caller expects.
    assert put(session, b"", expected=2) == 3
    with pytest.raises(ConflictError):
        put(other, b"", expected=2)
    Files(session).rm("file")
    assert put(session, b"", expected=0) == 4


def test_repeated_conflicts_give_up(server: Simulator, session: Session) -> None:
    count = 0

    def faster(request: Request) -> Reply | None:
        nonlocal count
        if not is_small(request):
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
    server.intercept = lambda request: Error("conflict", "", old) if is_small(request) else None
    with pytest.raises(Rollback):
        put(session, b"three")


def test_upload_lost_for_a_small_file_is_an_error(server: Simulator, session: Session) -> None:
    """A small file has no upload: it is not sent again, and there is no traceback."""

    def lost(request: Request) -> Reply | None:
        return Error("upload-lost", "") if is_small(request) else None

    server.intercept = lost
    with pytest.raises(Unreachable):
        put(session, b"content")
    with pytest.raises(Unreachable):
        list(Uploads(session).put_many(items(3)))
    assert len(server.changes(is_small)) == 1 + 3


def test_an_exceeded_quota(server: Simulator, session: Session) -> None:
    server.intercept = lambda request: (
        Error("quota", "full") if (is_small(request) or isinstance(request, PutOpen)) else None
    )
    for size in (5, BIG):
        with pytest.raises(QuotaExceeded):
            put(session, bytes(size))


@pytest.mark.parametrize("size", [5, BIG])
def test_only_a_proven_receipt_is_a_success(server: Simulator, session: Session, size: int) -> None:
    def unproven(request: Request, reply: Reply) -> Reply:
        return relined(reply, lambda _line: server.log.lines[0])

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
    """Both logs continue the log at login, and have different lengths."""
    forked = server.log.fork(server.log.size)
    put(session, b"ours", "a")
    before = session.trust.newest
    server.log = forked
    server.log.fill(4)
    with pytest.raises(Fork):
        put(session, b"theirs", "b")
    assert session.trust.newest == before


@pytest.mark.parametrize("kind", [LogLeaves, LogLines])
def test_a_connection_lost_between_a_receipt_and_the_log(
    server: Simulator, session: Session, kind: type[Request]
) -> None:
    put(session, b"one", "a")
    server.log.append(EntryDraft(op="login", actor="ada", accounts=("ada",)))
    server.all_leaves = False
    server.tamper = once(kind, drop)
    done = list(Uploads(session).put_many(items(30)))
    assert [put.version for put in done] == [1] * 30
    assert session.connections == 2
    assert session.trust.newest.size == server.log.size


def test_more_files_than_entries_are_kept(
    server: Simulator, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each receipt is checked when the log has its checkpoint, and asks for nothing later."""
    monkeypatch.setattr("sfsc.session.session._OWN_ENTRIES", 16)
    server.all_leaves = True
    before = len(server.asked(LogLeaves))
    assert len(list(Uploads(session).put_many(items(24)))) == 24
    assert len(server.asked(LogLeaves)) == before
    assert not server.asked(LogProof)


# --- lost connections


@pytest.mark.parametrize("size", [5, BIG])
def test_a_lost_reply(server: Simulator, session: Session, size: int) -> None:
    kind = is_small if size == 5 else is_large
    server.tamper = once(kind, drop)
    content = os.urandom(size)
    done = Uploads(session).put(io.BytesIO(content), "file")
    assert done.receipt is not None
    assert (done.version, session.connections) == (1, 2)
    sent = server.changes(kind)
    assert sent[0].record == sent[1].record
    assert fetched(session, "file") == content


@pytest.mark.parametrize("size", [5, BIG])
def test_a_lost_reply_before_a_newer_version(
    server: Simulator, session: Session, other: Session, size: int
) -> None:
    """The put was accepted, its reply lost, and another device has put a newer version since."""
    server.tamper = once(is_small if size == 5 else is_large, drop)
    session._waiting = Meanwhile(meanwhile(other))
    content = os.urandom(size)
    done = Uploads(session).put(io.BytesIO(content), "file")
    assert (done.version, done.receipt) == (1, None)
    assert server.asked(LogHead)
    assert fetched(session, "file", 1) == content
    assert fetched(session, "file") == b"theirs"
    assert put(session, b"again") == 3


def test_a_conflict_after_a_lost_request(
    server: Simulator, session: Session, other: Session
) -> None:
    """The put was lost before it reached the server, which has another version by now."""

    lost: list[Request] = []

    def lose(request: Request) -> Reply | None:
        if is_small(request) and not lost:
            lost.append(request)
            raise DropConnection
        return None

    server.intercept = lose
    session._waiting = Meanwhile(meanwhile(other))
    assert put(session, b"ours") == 2
    assert fetched(session, "file", 1) == b"theirs"


ACTIONS: dict[str, Callable[[Session], object]] = {
    "put": lambda session: put(session, b"again"),
    "put a large one": lambda session: put(session, os.urandom(BIG)),
    "rm": lambda session: Files(session).rm("file"),
    "mv": lambda session: Renames(session).mv("file", "other"),
    "restore": lambda session: FileHistory(session).restore("file", 1),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_change_accepted_before_a_rotation_is_not_repeated(
    server: Simulator, session: Session, action: str
) -> None:
    """The reply was lost, and the next connection was opened with older keys."""
    for content in (b"1", b"2"):
        put(session, content)
    sent: list[Request] = []

    def renew() -> None:
        current = session.keyring.current
        assert current is not None
        newer = changed(current, generation=2, sign_seed=b"n" * 32)
        session.use_keyring(changed(session.keyring, generations=(current, newer)))

    def stale(request: Request) -> Reply | None:
        if not isinstance(request, Commit):
            return None
        sent.append(request)
        return Error("stale-generation", "rotated") if len(sent) > 1 else None

    def lose(request: Request, reply: Reply) -> Reply:
        if isinstance(request, Commit) and len(sent) == 1:
            raise DropConnection
        return reply

    session.renewer = renew
    server.intercept, server.tamper = stale, lose
    ACTIONS[action](session)
    assert len(server.files[session.account.file_id("file")].records) == 3
    assert session.author.generation == 2
