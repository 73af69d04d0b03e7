"""One login: how it is opened, and which failures it survives."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.codec.values import changed
from protocol.log import auditlog
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.accounts import Usage, UsageAnswer
from protocol.wire.messages.base import ERROR_CODES
from protocol.wire.messages.files import Stat
from protocol.wire.messages.log import LogLeavesPage
from protocol.wire.messages.session import Login, Welcome
from sfsc import errors
from sfsc.keys.home import unlock_home
from sfsc.session.retry import MAX_LOSSES
from sfsc.session.server_errors import to_exception
from sfsc.session.session import Session
from sfsc.trust.state import open_client_state
from tests.sfsc.conftest import QUICK
from tests.sfsc.simulator import DropConnection, SimulatedLog, Simulator, Tamper
from tests.sfsc.storing import fetched, put


def dropping(kind: type[Request], times: int) -> tuple[list[Request], Tamper]:
    """Return (requests whose reply was lost, a hook that loses the first `times` replies to
    `kind`)."""
    lost: list[Request] = []

    def tamper(request: Request, reply: Reply) -> Reply:
        if isinstance(request, kind) and len(lost) < times:
            lost.append(request)
            raise DropConnection
        return reply

    return lost, tamper


def test_a_session_opens_and_is_remembered(server: Simulator, session: Session, home: Path) -> None:
    assert session.trust.newest.size == server.log.size
    followed = session.state.followed()
    assert (followed.size, followed.note) == (server.log.size, server.log.checkpoint())
    assert session.call(Usage(), UsageAnswer) == UsageAnswer(0, 0, 0)
    with open_client_state(home, unlock_home(home, None)) as state:
        again = Session(session.keyring, state, QUICK)
        again.connect()
        again.close()
    assert [login.known_size for login in server.asked(Login)] == [1, 2]


def test_a_keyring_that_was_never_enrolled(home: Path) -> None:
    file = unlock_home(home, None)
    with (
        open_client_state(home, file) as state,
        pytest.raises(errors.KeyringMissing),
    ):
        Session(changed(file.contents, generations=(), statements=()), state)


def test_the_next_address_is_tried(server: Simulator, home: Path) -> None:
    file = unlock_home(home, None)
    keyring = file.contents
    with open_client_state(home, file) as state:
        dead = changed(keyring, addresses=("127.0.0.1:1", server.address))
        session = Session(dead, state, QUICK)
        session.connect()
        session.close()
        nowhere = Session(changed(keyring, addresses=("127.0.0.1:1",)), state, QUICK)
        with pytest.raises(errors.Unreachable):
            nowhere.connect()


def test_nothing_is_sent_to_an_unverified_server(server: Simulator, home: Path) -> None:
    file = unlock_home(home, None)
    keyring = file.contents
    server.requests.clear()
    real, server.log = server.log, SimulatedLog()
    with open_client_state(home, file) as state:
        with pytest.raises(errors.WrongServer):
            Session(keyring, state, QUICK).connect()
        server.log = real
        server.welcome = lambda welcome: changed(welcome, signature=bytes(64))
        with pytest.raises(errors.BadRecord):
            Session(keyring, state, QUICK).connect()
    assert server.requests == []


def test_a_rolled_back_log_is_rejected(server: Simulator, session: Session) -> None:
    session.close()
    before = session.state.followed()
    server.log = server.log.fork(1)
    server.log.fill(5)
    with pytest.raises(errors.Fork):
        session.connect()
    server.log = server.log.fork(0)
    with pytest.raises(errors.Rollback):
        session.connect()
    assert session.state.followed() == before


def test_a_rejected_login(server: Simulator, session: Session) -> None:
    session.close()
    server.tamper = lambda _request, _reply: Error("refused", "no")
    with pytest.raises(errors.Denied):
        session.connect()


@pytest.mark.parametrize("times", [1, MAX_LOSSES])
def test_a_request_is_repeated_if_its_reply_was_lost(
    server: Simulator, session: Session, times: int
) -> None:
    lost, server.tamper = dropping(Usage, times)
    assert session.call(Usage(), UsageAnswer) == UsageAnswer(0, 0, 0)
    assert (len(lost), session.connections) == (times, 1 + times)


def test_reconnecting_gives_up_if_every_connection_is_lost(
    server: Simulator, session: Session
) -> None:
    lost, server.tamper = dropping(Usage, 1000)
    with pytest.raises(errors.Unreachable):
        session.call(Usage(), UsageAnswer)
    assert len(lost) == MAX_LOSSES + 1


def test_each_new_connection_is_verified_like_the_first(
    server: Simulator, session: Session
) -> None:
    _, server.tamper = dropping(Usage, 1)
    server.welcome = lambda welcome: other_statement(server, welcome)
    with pytest.raises(errors.Fork):
        session.call(Usage(), UsageAnswer)


def other_statement(server: Simulator, welcome: Welcome) -> Welcome:
    body, signature = server.log.statement(1, server.spki, created=7)
    return changed(welcome, statement=body, signature=signature)


def test_a_busy_reply_does_not_reconnect(server: Simulator, session: Session) -> None:
    server.tamper = lambda _request, _reply: Error("busy", "later")
    with pytest.raises(errors.Unreachable):
        session.call(Usage(), UsageAnswer)
    assert session.connections == 1


def test_a_known_file_that_the_server_denies_is_a_rollback(
    server: Simulator, session: Session
) -> None:
    with pytest.raises(errors.NotFound):
        session.fetch_newest("a" * 32)
    put(session, b"content", "a")
    server.files.clear()
    with pytest.raises(errors.Rollback, match="no longer knows a file that its log has"):
        session.fetch_newest(session.account.file_id("a"))
    assert len(server.asked(Stat)) == 2


EXITS = {
    "bad-request": 7,
    "unknown-request": 7,
    "not-allowed": 4,
    "refused": 4,
    "clock": 4,
    "token": 4,
    "not-found": 3,
    "denied": 4,
    "conflict": 6,
    "quota": 4,
    "damaged": 5,
    "changed": 6,
    "stale-recipient": 6,
    "stale-generation": 4,
    "rotation-required": 4,
    "share-refused": 4,
    "set-refused": 7,
    "upload-lost": 7,
    "busy": 7,
    "unavailable": 7,
    "shutting-down": 7,
}


@pytest.mark.parametrize("code", ERROR_CODES)
def test_every_code_has_an_exit_code_and_a_hint(code: str) -> None:
    error = to_exception(Error(code, "why"))
    assert (error.exit_code, error.cause) == (EXITS[code], "why")
    assert error.hint
    assert to_exception(Error(code, "")).cause == code


def test_a_login_is_logged_by_the_entry_of_its_own_connection(
    server: Simulator, session: Session
) -> None:
    first = session.login
    session.close()
    session.connect()
    second = session.login
    assert first is not None
    assert second is not None
    lines = enumerate(server.log.lines)
    one, two = [
        entry
        for entry in (auditlog.parse(line, seq=seq) for seq, line in lines)
        if entry.op == "login"
    ]
    assert first.is_logged_by(one)
    assert second.is_logged_by(two)
    assert not first.is_logged_by(two)
    assert not second.is_logged_by(one)
    for wrong in (
        changed(two, sigs=one.sigs),
        changed(two, sigs={}),
        changed(two, sigs={**two.sigs, **dict.fromkeys(["0" * 64], bytes(64))}),
        changed(two, rec=one.rec),
        changed(two, op="upload"),
        changed(two, actor="eve"),
    ):
        assert not second.is_logged_by(wrong)


def test_an_older_head_is_a_rollback_and_another_one_has_no_receipt(
    server: Simulator, session: Session
) -> None:
    put(session, b"1", "a")
    file_id = session.account.file_id("a")
    older = session.fetch_newest(file_id)
    put(session, b"2", "a")
    at = session.followed_size
    with pytest.raises(errors.Rollback, match="revision 1 of a file; its log has revision 2"):
        session.check_head(older.head, older.head_body, at, 0)
    newest = session.fetch_newest(file_id)
    session.check_head(newest.head, newest.head_body, at, 0)
    forged = changed(newest.head, created=newest.head.created + 1)
    with pytest.raises(errors.BadReceipt):
        session.check_head(forged, forged.encode(), at, 0)
    assert server.log.size == at


def test_a_log_that_was_wrong_stays_wrong_until_another_login(
    server: Simulator, session: Session
) -> None:
    def cut(_request: Request, reply: Reply) -> Reply:
        return changed(reply, leaves=b"\0\1x") if isinstance(reply, LogLeavesPage) else reply

    server.log.fill(3)
    server.tamper = cut
    with pytest.raises(errors.IntegrityError) as first:
        session.refresh_log()
    with pytest.raises(errors.IntegrityError) as again:
        _ = session.log
    assert again.value is first.value
    server.tamper = lambda _request, reply: reply
    session.reconnect()
    assert session.log.size == server.log.size
    fresh = Session(session.keyring, session.state, QUICK)
    with pytest.raises(errors.Unreachable):
        _ = fresh.log


def test_the_first_record_of_a_file_is_fetched_for_its_first_version(session: Session) -> None:
    for content in (b"1", b"2", b"3"):
        put(session, content, "a")
    assert [fetched(session, "a", version) for version in (1, 2, 3)] == [b"1", b"2", b"3"]


def test_a_session_of_old_keys_sends_nothing_but_what_it_may(
    server: Simulator, session: Session
) -> None:
    session.transport.allowed = (Stat,)
    before = len(server.requests)
    with pytest.raises(errors.StaleGeneration):
        session.transport.call(Usage())
    assert len(server.requests) == before
    session.transport.call(Stat("ada", session.account.file_id("a"), 0))
    assert len(server.requests) == before + 1
