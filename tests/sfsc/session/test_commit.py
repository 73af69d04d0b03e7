"""Changes committed together: conflicts, refusals, lost replies and renewed keys."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from protocol.codec.values import changed
from protocol.records.records import DELETE
from protocol.wire.messages import Error, FileView, Reply, Request
from protocol.wire.messages.changes import Commit, Committed, Outcome
from protocol.wire.messages.log import LogLines
from sfsc.crypto.envelope import WrapBatches
from sfsc.errors import ConflictError, LocalError, QuotaExceeded
from sfsc.files.listing import Files
from sfsc.session import commit
from sfsc.session.changeset import Draft
from sfsc.session.commit import (
    MAX_CONFLICTS,
    FileChange,
    build_tombstone,
    commit_changes,
    commit_if_needed,
    draft_of,
    find_current_file,
)
from sfsc.session.session import Session
from sfsc.transfer.upload import Uploads
from sfsc.trust.file_records import VerifiedFile
from tests.changes import has_op, relined
from tests.sfsc.simulator import DropConnection, Simulator
from tests.sfsc.storing import fetched, items, once, put


def deletion(session: Session, name: str) -> FileChange:
    """Return a change that deletes a file; nothing is left to do if it is deleted already."""

    def build(file: VerifiedFile, _batches: WrapBatches) -> Draft | None:
        if file.deleted:
            return None
        return draft_of(build_tombstone(session, file.head, file.head_body))

    return FileChange(find_current_file(session, name), build)


def stored(session: Session, count: int) -> list[str]:
    names = [f"f{at:03}" for at in range(count)]
    for name in names:
        put(session, name.encode(), name)
    return names


def names(session: Session) -> list[str]:
    return [entry.name for entry in Files(session).ls()]


def test_changes_share_requests_and_their_results_keep_their_order(
    server: Simulator, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "TOGETHER", 50)
    wanted = stored(session, 70)
    made = list(commit_changes(session, [deletion(session, name) for name in wanted]))
    assert [one.file_id for one in made] == [session.account.file_id(name) for name in wanted]
    sizes = [len(request.changes) for request in server.asked(has_op(DELETE))]
    assert sizes == [50, 20]
    assert names(session) == []


def test_only_the_changes_on_which_others_were_faster_are_sent_again(
    server: Simulator, session: Session, other: Session
) -> None:
    wanted = stored(session, 6)
    changes = [deletion(session, name) for name in wanted]
    put(other, b"newer", "f001")
    put(other, b"newer", "f004")
    made = list(commit_changes(session, changes))
    assert len({one.file_id for one in made}) == 6
    assert [len(request.changes) for request in server.asked(has_op(DELETE))] == [6, 2]
    assert [one.rev for one in made] == [2, 3, 2, 2, 3, 2], "in the order in which they were wanted"
    assert names(other) == []


def test_a_change_with_nothing_left_to_do_is_no_request(
    server: Simulator, session: Session, other: Session
) -> None:
    stored(session, 1)
    change = deletion(session, "f000")
    put(other, b"newer", "f000")
    Files(other).rm("f000")
    assert commit_if_needed(session, change) is None, "the conflict shows that it is deleted"
    assert len(server.asked(has_op(DELETE))) == 2
    assert commit_if_needed(session, change) is None
    assert len(server.asked(has_op(DELETE))) == 2


def test_a_refused_change_is_raised_after_the_results_of_the_others(
    server: Simulator, session: Session
) -> None:
    wanted = stored(session, 5)
    changes = [deletion(session, name) for name in wanted]

    def refuse_two(_request: Request, reply: Reply) -> Reply:
        if not isinstance(reply, Committed):
            return reply
        outcomes = list(reply.outcomes)
        outcomes[1] = Outcome(0, b"", Error("quota", "full"))
        outcomes[3] = Outcome(0, b"", Error("denied", "no"))
        return changed(reply, outcomes=tuple(outcomes))

    server.tamper = refuse_two
    made = list[str]()
    done = commit_changes(session, changes)
    with pytest.raises(QuotaExceeded):  # the first of the two errors
        made.extend(one.file_id for one in done)
    assert made == [session.account.file_id(wanted[at]) for at in (0, 2, 4)]


def test_changes_behind_one_that_cannot_be_drafted_are_not_sent(
    server: Simulator, session: Session
) -> None:
    wanted = stored(session, 3)
    changes = [deletion(session, name) for name in wanted]

    def fail(_file: VerifiedFile, _batches: WrapBatches) -> Draft | None:
        raise LocalError("the disk is full")

    changes[1] = FileChange(changes[1].file, fail)
    made = list[str]()
    done = commit_changes(session, changes)
    with pytest.raises(LocalError, match="the disk is full"):
        made.extend(one.file_id for one in done)
    assert made == [session.account.file_id(wanted[0])]
    assert names(session) == wanted[1:]


def test_a_change_that_fails_is_skipped(
    server: Simulator, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it cannot be drafted, or the server refuses it."""
    wanted = stored(session, 6)
    changes = [deletion(session, name) for name in wanted]
    for name, change in zip(wanted, changes, strict=True):
        change.name = name

    def failing(_batches: WrapBatches) -> Draft:
        raise LocalError("cannot be drafted")

    def refuse(_request: Request, reply: Reply) -> Reply:
        assert isinstance(reply, Committed)
        refused = Outcome(0, b"", Error("quota", "full"))
        return changed(reply, outcomes=(refused, *reply.outcomes[1:]))

    monkeypatch.setattr(changes[2], "draft", failing)
    server.tamper = once(Commit, refuse)
    failed: list[tuple[str, str]] = []
    found = commit_changes(session, changes, lambda name, error: failed.append((name, error.cause)))
    made = [change.file_id for change in found]
    assert made == [session.account.file_id(name) for name in (*wanted[1:2], *wanted[3:])]
    assert [name for name, _ in failed] == ["f002", "f000"]


def test_what_was_sent_is_finished_if_no_more_changes_come(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "TOGETHER", 2)
    wanted = stored(session, 4)

    def coming() -> Iterator[FileChange]:
        for name in wanted[:3]:
            yield deletion(session, name)
        raise LocalError("the rest cannot be read")

    done: list[str] = []
    found = commit_changes(session, coming())
    with pytest.raises(LocalError):
        done.extend(one.file_id for one in found)
    assert done == [session.account.file_id(name) for name in wanted[:2]]
    assert names(session) == wanted[2:]


def test_a_lost_reply_is_a_success_if_the_log_has_the_change(
    server: Simulator, session: Session, other: Session
) -> None:
    """Of two changes whose reply was lost, another machine has changed one file since."""
    stored(session, 2)
    changes = [deletion(session, name) for name in ("f000", "f001")]
    lost: list[Request] = []

    def lose(request: Request, reply: Reply) -> Reply:
        if isinstance(request, Commit) and not lost:
            lost.append(request)
            server._lock.release()
            put(other, b"theirs", "f001")
            server._lock.acquire()
            raise DropConnection
        return reply

    server.tamper = lose
    made = list(commit_changes(session, changes))
    assert [one.rev for one in made] == [2, 2]
    assert len(server.asked(has_op(DELETE))) == 2
    assert fetched(other, "f001") == b"theirs", "the deletion is not made a second time"


def test_others_who_keep_changing_a_file_end_the_attempts(
    server: Simulator, session: Session
) -> None:
    stored(session, 1)
    change = deletion(session, "f000")
    count = 0

    def faster(request: Request) -> Reply | None:
        nonlocal count
        if not isinstance(request, Commit):
            return None
        count += 1
        return Error("conflict", "", server.view(session.account.file_id("f000")))

    server.intercept = faster
    with pytest.raises(ConflictError):
        commit_if_needed(session, change)
    assert count == MAX_CONFLICTS


def test_a_conflict_without_its_head_asks_for_it(
    server: Simulator, session: Session, other: Session
) -> None:
    """The heads of many conflicts may be too much for one reply."""
    wanted = stored(session, 3)
    changes = [deletion(session, name) for name in wanted]
    for name in wanted:
        put(other, b"newer", name)
    shown: list[FileView | None] = []

    def without_heads(_request: Request, reply: Reply) -> Reply:
        if not isinstance(reply, Committed) or shown:
            return reply
        outcomes = []
        for one in reply.outcomes:
            assert one.error is not None
            shown.append(one.error.head)
            outcomes.append(changed(one, error=Error("conflict", "the file has changed")))
        return changed(reply, outcomes=tuple(outcomes))

    server.tamper = without_heads
    made = list(commit_changes(session, changes))
    assert [one.rev for one in made] == [3, 3, 3]
    assert len(shown) == 3


def test_lines_that_a_reply_had_no_room_for_are_asked_for_together(
    server: Simulator, session: Session
) -> None:
    wanted = stored(session, 3)
    changes = [deletion(session, name) for name in wanted]
    server.all_leaves = True
    server.tamper = lambda _request, reply: relined(reply, lambda _line: b"")
    before = len(server.asked(LogLines))
    assert len(list(commit_changes(session, changes))) == 3
    assert [len(one.seqs) for one in server.asked(LogLines)[before:]] == [3]


def test_keys_are_renewed_once_for_all_changes_of_a_request(
    server: Simulator, session: Session
) -> None:
    wanted = stored(session, 4)
    renewed, refused = list[None](), [b""]
    session.renewer = lambda: renewed.append(None)

    def refuse(request: Request) -> Reply | None:
        if isinstance(request, Commit) and refused:
            refused.pop()
            return Error("stale-recipient", "rotated")
        return None

    changes = [deletion(session, name) for name in wanted]
    server.intercept = refuse
    assert len(list(commit_changes(session, changes))) == 4
    assert len(renewed) == 1


def test_puts_around_a_conflict_keep_their_order(
    server: Simulator, session: Session, other: Session
) -> None:
    put(session, b"known here", "many/004")
    put(other, b"newer", "many/004")
    done = list(Uploads(session).put_many(items(12)))
    assert [one.name for one in done] == [f"many/{at:03}" for at in range(12)]
    assert [one.version for one in done] == [1, 1, 1, 1, 3, *[1] * 7]
    assert fetched(other, "many/004") == b"4" * 10
