"""The lying server is a real daemon, and its hooks do what their descriptions say."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

import sfsc
from protocol.codec.values import changed
from protocol.log import auditlog
from protocol.log.auditlog import EntryDraft
from protocol.wire.messages import Error, Message
from protocol.wire.messages.changes import Commit
from protocol.wire.messages.files import Stat
from protocol.wire.messages.session import Login, Session
from sfsc.errors import IntegrityError, NetworkError, Rollback, SfscError
from tests.lying_server import DropConnection, LyingServer


@pytest.fixture
def home(lying_server: LyingServer) -> Path:
    return lying_server.enrol("alice")


def _stored(home: Path, content: bytes) -> None:
    with sfsc.connect(home, auto_rotate=False) as store:
        store.put(io.BytesIO(content), name="a")


def _content(home: Path) -> bytes:
    into = io.BytesIO()
    with sfsc.connect(home, auto_rotate=False) as store:
        store.get("a", into)
    return into.getvalue()


def test_serves_the_products_clients_from_its_root_and_again_after_a_restart(
    lying_server: LyingServer, home: Path
) -> None:
    _stored(home, b"1")
    address = lying_server.address
    lying_server.stop()
    lying_server.start()
    assert lying_server.address == address
    assert _content(home) == b"1"
    assert _content(lying_server.copied(home, "second")) == b"1"
    lines = lying_server.journal.lines()
    assert [auditlog.parse(line).op for line in lines].count("login") >= 3


def test_a_reply_is_changed_before_it_is_sent_and_a_login_is_refused(
    lying_server: LyingServer, home: Path
) -> None:
    _stored(home, b"1")

    def lost(_who: object, request: Message, reply: Message) -> Message:
        return Error("not-found", "no such file") if isinstance(request, Stat) else reply

    lying_server.tamper = lost
    with sfsc.connect(home, auto_rotate=False) as store, pytest.raises(Rollback):
        store.stat("a")
    lying_server.tamper = lambda _who, request, reply: (
        Error("busy", "later") if isinstance(request, Login) else reply
    )
    with pytest.raises(SfscError):
        _content(home)
    lying_server.honest()
    assert _content(home) == b"1"


def test_a_request_is_answered_without_being_processed(
    lying_server: LyingServer, home: Path
) -> None:
    size = []
    refused = Error("quota", "no room")

    def refuse(_who: object, request: Message) -> Error | None:
        if isinstance(request, Commit):
            size.append(lying_server.journal.size)
            return refused
        return None

    lying_server.intercept = refuse
    with pytest.raises(SfscError):
        _stored(home, b"1")
    assert size
    assert lying_server.journal.size == size[0]


def test_a_connection_breaks_after_the_commit(lying_server: LyingServer, home: Path) -> None:
    broken: list[int] = []

    def drop(_who: object, request: Message, reply: Message) -> Message:
        if isinstance(request, Commit) and not broken:
            broken.append(lying_server.journal.size)
            raise DropConnection
        return reply

    lying_server.tamper = drop
    _stored(home, b"1")
    assert _content(home) == b"1"
    uploads = [e for e in map(auditlog.parse, lying_server.journal.lines()) if e.op == "upload"]
    assert len(uploads) == 1


def test_the_attacker_has_the_logs_key_and_the_log(lying_server: LyingServer, home: Path) -> None:
    _stored(home, b"1")
    seq = lying_server.append(EntryDraft(op="login", actor="nobody"))
    assert lying_server.journal.entry(seq).actor == "nobody"
    bogus = lying_server.sign_note(2**40, bytes(32))

    def shown(_who: object, request: Message, reply: Message) -> Message:
        return changed(reply, checkpoint=bogus) if isinstance(reply, Session) else reply

    lying_server.tamper = shown
    with pytest.raises(IntegrityError):
        _content(home)


def test_a_failed_assertion_in_a_hook_fails_the_test(tmp_path: Path) -> None:
    def failing(_who: object, _request: Message, _reply: Message) -> Message:
        raise AssertionError("the hook saw something unexpected")

    server = LyingServer(tmp_path / "root").start()
    home = server.enrol("alice")
    server.tamper = failing
    with pytest.raises(NetworkError):
        sfsc.connect(home)
    with pytest.raises(AssertionError, match="unexpected"):
        server.stop()
