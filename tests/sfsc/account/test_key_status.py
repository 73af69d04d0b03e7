"""When keys are rotated: because of our own statement, pending work, or the server's notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.codec.values import changed
from protocol.records.records import Statement
from protocol.wire.messages.session import Notice
from sfsc.account.key_status import RETRY_SECONDS, KeyStatus, has_old_keys, is_rotating
from sfsc.keys.home import unlock_home
from sfsc.keys.keyring import KeyringFile, PendingStatement
from sfsc.session.session import Session

DAY = 86_400
FORCED = Notice(0, "forced", "a laptop was stolen")


@pytest.fixture
def file(home: Path) -> KeyringFile:
    return unlock_home(home, None)


def head(file: KeyringFile) -> Statement:
    return Statement.parse(file.contents.statements[-1])


def clock_at(now: float) -> Callable[[], float]:
    return lambda: now


def test_rotation_is_due_by_own_statement(session: Session, file: KeyringFile) -> None:
    due = head(file).due
    for now, expected in ((due - 1, False), (due - 0.5, False), (due, True), (due + 1.5, True)):
        status = KeyStatus(session, file, clock_at(now))
        assert status.is_due() is expected
        assert status.should_rotate() is expected
        assert status.should_rotate() is expected  # the answer is not remembered
    assert session.state.last_server_rotation() == 0


def test_failed_rotation_is_not_repeated_at_once(session: Session, file: KeyringFile) -> None:
    due = head(file).due
    KeyStatus(session, file, clock_at(due)).remember_failure()
    for now, expected in ((due, False), (due + RETRY_SECONDS - 1, False), (due - 1, False)):
        assert KeyStatus(session, file, clock_at(now)).should_rotate() is expected
    assert KeyStatus(session, file, clock_at(due + RETRY_SECONDS)).should_rotate()


def test_no_pending_work(session: Session, file: KeyringFile) -> None:
    assert not KeyStatus(session, file).has_pending_work


@pytest.mark.parametrize("state", ["due", "overdue", "forced", "rotated"])
def test_rotation_by_another_device_is_pending_work(
    session: Session, file: KeyringFile, state: str
) -> None:
    session.notice = changed(FORCED, state=state)
    assert KeyStatus(session, file).has_pending_work is (state == "rotated")


def test_unsent_statement_is_pending_work(session: Session, file: KeyringFile) -> None:
    statement, keys = file.contents.statements[-1], file.contents.generations[-1]
    for keys_begun, expected in ((None, True), (keys, False)):  # a rotation is finished by rotating
        file.save(
            changed(
                file.contents, pending=PendingStatement(statement, (bytes(64),), b"", keys_begun)
            )
        )
        assert KeyStatus(session, file).has_pending_work is expected


def test_old_keys_are_pending_work(session: Session, file: KeyringFile) -> None:
    (first,) = file.contents.generations
    newer = changed(first, generation=2)
    keyring = changed(file.contents, generations=(first, newer))
    file.save(keyring)
    assert has_old_keys(file.contents)
    assert KeyStatus(session, file).has_pending_work
    begun = changed(head(file), n=2, generation=2, prev=bytes(32))
    file.save(changed(keyring, statements=(*keyring.statements, begun.encode())))
    assert not KeyStatus(session, file).has_pending_work  # they count during a rotation


def test_unlisted_device_is_pending_work(session: Session, file: KeyringFile) -> None:
    device = changed(file.contents.device, device_id=bytes(16))
    file.save(changed(file.contents, device=device))
    assert KeyStatus(session, file).has_pending_work


def test_pending_statement_makes_rotation_due(session: Session, file: KeyringFile) -> None:
    statement = file.contents.statements[-1]
    file.save(changed(file.contents, pending=PendingStatement(statement, (bytes(64),), b"", None)))
    status = KeyStatus(session, file, clock_at(0))
    assert status.is_due()
    assert status.should_rotate()


def test_unfinished_rotation_is_due(session: Session, file: KeyringFile) -> None:
    begun = changed(head(file), generation=2, n=2, prev=bytes(32))
    assert is_rotating(begun)
    assert not is_rotating(head(file))
    assert not is_rotating(changed(begun, oldest=2))
    statements = (*file.contents.statements, begun.encode())
    file.save(changed(file.contents, statements=statements))
    assert KeyStatus(session, file, clock_at(0)).should_rotate()


def test_server_notice_counts_once_a_day(session: Session, file: KeyringFile) -> None:
    session.notice = FORCED
    start = head(file).created
    assert KeyStatus(session, file, clock_at(start)).should_rotate()
    for later, expected in ((0, False), (DAY - 1, False), (DAY, True), (DAY + 1, False)):
        status = KeyStatus(session, file, clock_at(start + later))
        assert status.is_due()
        assert status.should_rotate() is expected
    # If the clock was set back, a day may have passed.
    assert KeyStatus(session, file, clock_at(start)).should_rotate()


def test_keys_rotated_by_another_device_are_not_due(session: Session, file: KeyringFile) -> None:
    session.notice = changed(FORCED, state="rotated")
    assert not KeyStatus(session, file, clock_at(0)).is_due()


def test_no_automatic_rotation_at_a_distrusted_server(session: Session, file: KeyringFile) -> None:
    session.state.distrust("evidence")
    status = KeyStatus(session, file, clock_at(head(file).due))
    assert status.is_due()
    assert not status.should_rotate()
