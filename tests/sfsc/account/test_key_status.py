"""When keys are to be replaced: by our own statement, by what was begun, by the server's notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.codec.values import changed
from protocol.records.records import Statement
from protocol.wire.messages.session import Notice
from sfsc.account.key_status import KeyStatus, has_old_keys, is_rotating
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


def at(now: float) -> Callable[[], float]:
    return lambda: now


def test_by_our_own_statement(session: Session, file: KeyringFile) -> None:
    due = head(file).due
    for now, expected in ((due - 1, False), (due - 0.5, False), (due, True), (due + 1.5, True)):
        dues = KeyStatus(session, file, at(now))
        assert dues.is_due() is expected
        assert dues.should_rotate() is expected
        assert dues.should_rotate() is expected  # nothing of it is remembered
    assert session.state.last_server_rotation() == 0


def test_a_machine_that_has_nothing_left_to_do(session: Session, file: KeyringFile) -> None:
    assert not KeyStatus(session, file).has_pending_work


@pytest.mark.parametrize("state", ["due", "overdue", "forced", "rotated"])
def test_another_machine_has_rotated(session: Session, file: KeyringFile, state: str) -> None:
    session.notice = changed(FORCED, state=state)
    assert KeyStatus(session, file).has_pending_work is (state == "rotated")


def test_a_statement_that_was_kept_and_not_sent(session: Session, file: KeyringFile) -> None:
    statement, keys = file.contents.statements[-1], file.contents.generations[-1]
    for of, expected in ((None, True), (keys, False)):  # a rotation is not settled but rotated
        file.save(
            changed(file.contents, pending=PendingStatement(statement, (bytes(64),), b"", of))
        )
        assert KeyStatus(session, file).has_pending_work is expected


def test_keys_that_count_no_more(session: Session, file: KeyringFile) -> None:
    (first,) = file.contents.generations
    newer = changed(first, generation=2)
    keyring = changed(file.contents, generations=(first, newer))
    file.save(keyring)
    assert has_old_keys(file.contents)
    assert KeyStatus(session, file).has_pending_work
    begun = changed(head(file), n=2, generation=2, prev=bytes(32))
    file.save(changed(keyring, statements=(*keyring.statements, begun.encode())))
    assert not KeyStatus(session, file).has_pending_work  # they count while it is not finished


def test_a_machine_that_has_not_joined(session: Session, file: KeyringFile) -> None:
    device = changed(file.contents.device, device_id=bytes(16))
    file.save(changed(file.contents, device=device))
    assert KeyStatus(session, file).has_pending_work


def test_what_was_begun_is_finished(session: Session, file: KeyringFile) -> None:
    statement = file.contents.statements[-1]
    file.save(changed(file.contents, pending=PendingStatement(statement, (bytes(64),), b"", None)))
    dues = KeyStatus(session, file, at(0))
    assert dues.is_due()
    assert dues.should_rotate()


def test_a_generation_that_was_not_ended(session: Session, file: KeyringFile) -> None:
    begun = changed(head(file), generation=2, n=2, prev=bytes(32))
    assert is_rotating(begun)
    assert not is_rotating(head(file))
    assert not is_rotating(changed(begun, oldest=2))
    statements = (*file.contents.statements, begun.encode())
    file.save(changed(file.contents, statements=statements))
    assert KeyStatus(session, file, at(0)).should_rotate()


def test_a_server_is_listened_to_once_a_day(session: Session, file: KeyringFile) -> None:
    session.notice = FORCED
    start = head(file).created
    assert KeyStatus(session, file, at(start)).should_rotate()
    for later, expected in ((0, False), (DAY - 1, False), (DAY, True), (DAY + 1, False)):
        dues = KeyStatus(session, file, at(start + later))
        assert dues.is_due()
        assert dues.should_rotate() is expected
    # Of a clock that was set back nobody can say that a day has not passed.
    assert KeyStatus(session, file, at(start)).should_rotate()


def test_keys_that_another_machine_has_rotated_are_not_due(
    session: Session, file: KeyringFile
) -> None:
    session.notice = changed(FORCED, state="rotated")
    assert not KeyStatus(session, file, at(0)).is_due()


def test_nothing_is_rotated_at_a_server_that_is_distrusted(
    session: Session, file: KeyringFile
) -> None:
    session.state.distrust("evidence")
    dues = KeyStatus(session, file, at(head(file).due))
    assert dues.is_due()
    assert not dues.should_rotate()
