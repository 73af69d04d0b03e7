"""The account's own log: what it says about files, and false replies about it.

Omitted and inserted entries are tested with `Audit`, which reads the log in the same way.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.log.auditlog import EntryDraft
from protocol.wire.messages import Reply, Request
from protocol.wire.messages.log import LogEntries, LogPage
from protocol.wire.messages.session import Login
from sfsc.crypto.primitives import state_key
from sfsc.errors import BadReceipt, Rollback
from sfsc.files.listing import Files
from sfsc.files.rename import Renames
from sfsc.log.account_log import AccountLog
from sfsc.session.session import Session
from sfsc.transfer.upload import Uploads
from sfsc.trust.state import LOG_START, ClientState, LogPosition, state_path
from tests.sfsc.conftest import QUICK, opened
from tests.sfsc.simulator import Simulator


def put(session: Session, name: str) -> str:
    return Uploads(session).put(io.BytesIO(b"content"), name).file_id


def asked(server: Simulator) -> list[int]:
    """Record from which seq the log is requested, from now on."""
    firsts: list[int] = []

    def note(request: Request, reply: Reply) -> Reply:
        if isinstance(request, LogEntries):
            firsts.append(request.first)
        return reply

    server.tamper = note
    return firsts


def test_the_newest_record_of_each_file_before_login_is_remembered(session: Session) -> None:
    ids = {name: put(session, name) for name in ("a", "b")}
    put(session, "a")
    Files(session).rm("b")
    Renames(session).mv("a", "c")
    ids["c"] = session.account.file_id("c")
    session.reconnect()
    AccountLog(session).follow_to_login()
    logged = {name: session.state.logged_revision(file_id) for name, file_id in ids.items()}
    assert logged == {"a": 3, "b": 2, "c": 1}  # a tombstone counts like any record


def test_only_new_entries_are_read_and_once_per_login(server: Simulator, session: Session) -> None:
    file_id = put(session, "a")
    session.reconnect()
    log = AccountLog(session)
    log.follow_to_login()
    firsts = asked(server)
    log.follow_to_login()
    assert firsts == []
    put(session, "a")
    session.reconnect()
    log.follow_to_login()
    followed = session.state.followed_log()
    assert len(firsts) == 1
    assert firsts[0] > 0
    assert session.state.logged_revision(file_id) == 2
    assert followed.count == server.log.heads["ada"][0]


def tamper(server: Simulator, change: Callable[[LogPage], LogPage]) -> None:
    server.tamper = lambda _request, reply: change(reply) if isinstance(reply, LogPage) else reply


def test_false_replies_about_new_entries(server: Simulator, session: Session) -> None:
    put(session, "a")
    session.reconnect()
    AccountLog(session).follow_to_login()
    put(session, "a")
    session.reconnect()
    tamper(server, lambda page: LogPage(page.entries[1:], page.next))
    with pytest.raises(BadReceipt):
        AccountLog(session).follow_to_login()
    tamper(server, lambda page: LogPage(page.entries[:-1], page.next))
    with pytest.raises(Rollback):
        AccountLog(session).follow_to_login()
    tamper(server, lambda page: LogPage((), 0))
    with pytest.raises(Rollback):
        AccountLog(session).follow_to_login()
    server.tamper = lambda _request, reply: reply
    AccountLog(session).follow_to_login()


# --- several processes with one home


@pytest.fixture
def beside(home: Path, session: Session) -> Iterator[Session]:
    """Another process of the same machine as `session`, which logged in after it."""
    assert session.connections
    yield from opened(home)


def test_entries_after_the_login_do_not_count(session: Session, other: Session) -> None:
    """A file that was fetched before the log was read may have been changed in between."""
    file_id = put(session, "a")
    session.reconnect()
    file = session.fetch_newest(file_id)
    put(other, "a")
    AccountLog(session).follow_to_login()
    assert session.state.logged_revision(file_id) == file.head.rev == 1
    session.reconnect()
    AccountLog(session).follow_to_login()
    assert session.state.logged_revision(file_id) == 2


def test_another_process_has_followed_past_this_login(
    server: Simulator, session: Session, beside: Session
) -> None:
    put(session, "a")
    AccountLog(beside).follow_to_login()
    firsts = asked(server)
    AccountLog(session).follow_to_login()
    assert firsts == []


def test_another_process_has_followed_at_the_same_time(
    server: Simulator, home: Path, session: Session
) -> None:
    """Entries between its login and ours are followed, too."""
    file_id = put(session, "a")
    keyring = session.keyring

    class Slow(ClientState):
        def remember_followed_log(self, *what: Any) -> bool:
            if self.followed_log() == LOG_START:
                AccountLog(session).follow_to_login()
            return super().remember_followed_log(*what)

    account = keyring.server_id + keyring.user.encode()
    key = state_key(keyring.device.xwing_private)
    with Slow.open_database(state_path(home), account, key) as state:
        late = Session(keyring, state, QUICK)
        put(session, "a")
        late.connect()
        AccountLog(late).follow_to_login()
        assert state.logged_revision(file_id) == 2
        assert state.followed_log().count == server.log.heads["ada"][0]
        late.close()


def test_logins_of_two_processes_in_one_commit(server: Simulator, session: Session) -> None:
    """Another process has followed past our login, but not up to the log that came with our
    login."""
    put(session, "a")
    state, places = session.state, list[LogPosition]()

    def committed_together(request: Request, reply: Reply) -> Reply:
        if not isinstance(request, Login):
            return reply
        server.log.append(EntryDraft(op="login", actor="ada", rec=b"theirs", accounts=("ada",)))
        places.append(LogPosition(server.log.size, *server.log.heads["ada"]))
        server.log.fill(3)
        server._here.opened = server.log.size
        return server.log.session(request.known_size)

    server.tamper = committed_together
    session.reconnect()
    assert state.remember_followed_log(LOG_START, places[0], {})
    server.tamper = lambda _request, reply: reply
    AccountLog(session).follow_to_login()
    # A server that shows the login nowhere has omitted it.
    session.reconnect()
    tamper(server, lambda page: LogPage(page.entries[:-1], page.next))
    with pytest.raises(Rollback):
        AccountLog(session).follow_to_login()
