"""One machine is shown two logs of one server, or another log than another device has seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.codec.values import changed
from protocol.log import checkpoint
from protocol.log.auditlog import EntryDraft
from protocol.records.records import FileRecord, Statement, record_hash
from protocol.wire.messages import Error, Receipt, Reply, Request
from protocol.wire.messages.log import LogCheckpoint, LogHead, LogProof
from sfsc.errors import BadReceipt, Distrusted, Fork, Rollback
from sfsc.keys.bundle import SeenCheckpoint
from sfsc.keys.home import unlock_home
from sfsc.session.session import Session
from sfsc.trust.followed_log import FollowedLog
from sfsc.trust.server_log import SentChange
from sfsc.trust.state import ClientState, open_client_state
from tests.sfsc.conftest import QUICK
from tests.sfsc.simulator import Simulator
from tests.sfsc.storing import put


def follow_elsewhere(home: Path) -> None:
    """Follow the log in another process of the same machine."""
    file = unlock_home(home, None)
    with open_client_state(home, file) as state:
        session = Session(file.contents, state, QUICK)
        session.connect()
        session.close()


@pytest.mark.parametrize("other", [0, 1, 20])
def test_two_processes_that_are_shown_two_logs_notice(
    server: Simulator, session: Session, home: Path, other: int
) -> None:
    """Each would save what it learns, and the state would forget what only one of them was shown:
    a reader that was removed would come back."""
    mine = server.log
    server.log = mine.fork(mine.size)
    server.log.fill(other)
    follow_elsewhere(home)
    server.log = mine
    server.log.fill(2)
    with pytest.raises((Fork, Rollback)) as caught:
        session.refresh_log()
    assert caught.value.exit_code == 5
    assert caught.value.evidence is not None
    with pytest.raises(Distrusted):
        session.check_trusted()


@pytest.mark.parametrize("shown", [1, 30])
def test_a_log_that_is_not_proven_to_be_that_of_another_process(
    server: Simulator, session: Session, home: Path, shown: int
) -> None:
    server.log.fill(20)
    follow_elsewhere(home)

    def tamper(request: Request, reply: Reply) -> Reply:
        if isinstance(request, LogHead):
            return LogCheckpoint(server.log.checkpoint(session.followed_size + shown))
        refused = Error("bad-request", "no such part of the log")
        return refused if isinstance(request, LogProof) else reply

    server.log.fill(20)
    server.tamper = tamper
    with pytest.raises(Rollback) as caught:
        session.refresh_log()
    assert caught.value.evidence is not None


@pytest.mark.parametrize("shown", [1, 30, 41])
def test_two_processes_that_are_shown_one_log_go_on(
    server: Simulator, session: Session, home: Path, shown: int
) -> None:
    server.log.fill(20)
    follow_elsewhere(home)
    server.log.fill(20)
    before = session.followed_size

    def tamper(request: Request, reply: Reply) -> Reply:
        if isinstance(request, LogHead):
            return LogCheckpoint(server.log.checkpoint(before + shown))
        return reply

    server.tamper = tamper
    session.refresh_log()
    assert session.state.followed().size == max(before + shown, before + 21)
    assert len(server.asked(LogProof)) == 1


def must_pass(state: ClientState, server: Simulator) -> None:
    statement = server.log.statement(spki=server.spki)
    state.remember_seen(SeenCheckpoint(server.log.checkpoint(), *statement))


@pytest.mark.parametrize("forked", [False, True])
def test_a_checkpoint_of_another_device_is_never_left_out(
    server: Simulator, home: Path, *, forked: bool
) -> None:
    """It lies too far back to be computed again, because the answer to the login has shown more
    leaves."""
    server.log.fill(4)
    file = unlock_home(home, None)
    elsewhere = home.with_name("elsewhere")
    with open_client_state(elsewhere, file) as state:
        must_pass(state, server)
        if forked:
            server.log = server.log.fork(1)
        server.log.fill(9000)
        session = Session(file.contents, state, QUICK)
        if forked:
            with pytest.raises(Fork):
                session.connect()
        else:
            session.connect()
            assert state.must_pass() is None
        session.close()


def connect_new_machine(home: Path, name: str) -> None:
    """Open a session on a machine with the same keys that remembers nothing."""
    elsewhere = home.with_name(name)
    elsewhere.mkdir()
    (elsewhere / "keyring").write_bytes((home / "keyring").read_bytes())
    follow_elsewhere(elsewhere)


def test_a_record_whose_signer_was_shown_another_log(
    server: Simulator, session: Session, home: Path
) -> None:
    """The server copies the record of one machine into the log that it shows to another one."""
    put(session, b"content", "a")
    stored = server.files[session.account.file_id("a")].records[0]
    connect_new_machine(home, "told the truth")
    server.log = server.log.fork(1)
    server.log.fill(3)
    record, signature = FileRecord.parse(stored.record), stored.signatures[0].signature
    server._append("upload", "ada", stored.record, signature, record)
    with pytest.raises(Fork) as caught:
        connect_new_machine(home, "lied to")
    assert "ada signed that the log had" in Path(str(caught.value.evidence)).read_text()


def test_a_log_with_another_statement_than_the_keyring_knows(
    server: Simulator, session: Session, home: Path
) -> None:
    first = server.statement
    body = changed(Statement.parse(first), created=7).encode()
    server.log = server.log.fork(0)
    server.log.append(
        EntryDraft(
            op="enrol",
            actor="ada",
            owner="ada",
            rec=body,
            sigs={},
            accounts=("ada",),
            identity=(record_hash(first), 1),
        )
    )
    with pytest.raises(BadReceipt, match="another statement of this account"):
        connect_new_machine(home, "new")


def test_statements_of_a_contact_are_saved_if_the_position_is_the_same(
    server: Simulator, session: Session
) -> None:
    first = b"f" * 32
    server.log.append(EntryDraft(op="enrol", actor="bob", accounts=("bob",), identity=(first, 1)))
    session.refresh_log()
    before = session.state.followed()
    session.watch_contact(first)
    assert session.state.followed() == before
    assert session.state.statement_leaf(first, 1) is not None
    assert session.state.contacts() == {first: 1}


@pytest.mark.parametrize("size", [4, 5])
def test_each_checkpoint_of_a_receipt_is_passed(
    server: Simulator, session: Session, size: int
) -> None:
    """One has a false root, and fewer entries than the others, or as many."""
    log = server.log
    draft = EntryDraft(op="test", actor="ada", accounts=("ada",))
    seqs = [log.append(draft) for _ in range(3)]
    assert log.size == 5
    false = checkpoint.sign(log.key, checkpoint.origin_of(log.server_id), size, bytes(32))
    sent = SentChange("test", "ada", None, None, None, b"", {})
    for seq, note in zip(seqs, (log.checkpoint(), false, log.checkpoint()), strict=True):
        session.accept_receipt(Receipt(log.lines[seq], note, 0, b""), sent)
    with pytest.raises(Fork):
        session.link_receipts()


def test_checkpoints_of_receipts_are_passed_once(
    server: Simulator, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that follows the log while it changes thousands of files would pass each again."""
    draft = EntryDraft(op="test", actor="ada", accounts=("ada",))
    sent = SentChange("test", "ada", None, None, None, b"", {})
    confirmed: list[int] = []
    confirm = FollowedLog.confirm

    def noting(log: FollowedLog, size: int, root: bytes) -> None:
        confirmed.append(size)
        confirm(log, size, root)

    monkeypatch.setattr(FollowedLog, "confirm", noting)
    for _ in range(3):
        line = server.log.lines[server.log.append(draft)]
        session.accept_receipt(Receipt(line, server.log.checkpoint(), 0, b""), sent)
        session.refresh_log()
    session.link_receipts()
    assert confirmed == [size for size in (3, 4, 5) for _ in range(3)]
