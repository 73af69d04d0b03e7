"""The account's own log, followed: what it says of files, and a server that lies about it.

That no entry can be left out or put in is tested with `Audit`, which reads the same way.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from protocol.messages import Reply, Request
from protocol.messages.log import LogEntries, LogPage
from sfsc.errors import BadReceipt, Rollback
from sfsc.listing import Files
from sfsc.moves import Moves
from sfsc.own_log import OwnLog
from sfsc.session import Session
from sfsc.uploads import Uploads
from tests.sfsc.lying import Simulator


def put(session: Session, name: str) -> str:
    return Uploads(session).put(io.BytesIO(b"content"), name).file_id


def asked(server: Simulator) -> list[int]:
    """From which seq on the log is asked for, from now on."""
    firsts: list[int] = []

    def note(request: Request, reply: Reply) -> Reply:
        if isinstance(request, LogEntries):
            firsts.append(request.first)
        return reply

    server.spoil = note
    return firsts


def test_every_file_s_newest_record_before_this_login_is_known(session: Session) -> None:
    ids = {name: put(session, name) for name in ("a", "b")}
    put(session, "a")
    Files(session).rm("b")
    Moves(session).mv("a", "c")
    ids["c"] = session.account.file_id("c")
    session.reconnect()
    OwnLog(session).follow()
    logged = {name: session.state.logged(file_id) for name, file_id in ids.items()}
    assert logged == {"a": 3, "b": 2, "c": 1}  # a tombstone counts like any record


def test_only_what_is_new_is_read_and_once_a_login(server: Simulator, session: Session) -> None:
    file_id = put(session, "a")
    session.reconnect()
    log = OwnLog(session)
    log.follow()
    firsts = asked(server)
    log.follow()
    assert firsts == []
    put(session, "a")
    session.reconnect()
    log.follow()
    followed = session.state.followed()
    assert followed is not None
    assert len(firsts) == 1
    assert firsts[0] > 0
    assert session.state.logged(file_id) == 2
    assert followed.count == server.log.heads["ada"][0]


def spoil(server: Simulator, change: Callable[[LogPage], LogPage]) -> None:
    server.spoil = lambda _request, reply: change(reply) if isinstance(reply, LogPage) else reply


def test_lies_about_what_is_new(server: Simulator, session: Session) -> None:
    put(session, "a")
    session.reconnect()
    OwnLog(session).follow()
    put(session, "a")
    session.reconnect()
    spoil(server, lambda page: LogPage(page.entries[1:], page.next))
    with pytest.raises(BadReceipt):
        OwnLog(session).follow()
    spoil(server, lambda page: LogPage(page.entries[:-1], page.next))
    with pytest.raises(Rollback):
        OwnLog(session).follow()
    spoil(server, lambda page: LogPage((), 0))
    with pytest.raises(Rollback):
        OwnLog(session).follow()
    server.spoil = lambda _request, reply: reply
    OwnLog(session).follow()
