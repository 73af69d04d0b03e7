"""The table as the matrix of who may ask for what, and what becomes of everything that fails."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from protocol.records.records import RecoveryKey
from protocol.records.signatures import Label, SigningKey, verify_signature
from protocol.wire.connection import UnknownRequest
from protocol.wire.messages import Done, Error, Request, registered
from protocol.wire.messages.accounts import (
    ForceRotation,
    Status,
    StatusAnswer,
    Usage,
    UserAccess,
    UserAdd,
    UserList,
    UserQuota,
    UserShow,
)
from protocol.wire.messages.downloads import Bytes, GetLeaves, GetOpen, Opened, Read
from protocol.wire.messages.files import History, List, Listing, Record, Stat, Stated
from protocol.wire.messages.log import CONSISTENCY, LogEntries, LogHead, LogProof
from protocol.wire.messages.rotation import (
    GetBundle,
    GetWraps,
    NewStatement,
    Rewrap,
    RotateBegin,
    RotateFinish,
)
from protocol.wire.messages.session import OPENING, Ping
from protocol.wire.messages.sharing import Inbox, Lookup, SetReaders
from protocol.wire.messages.uploads import (
    Data,
    PutAbort,
    PutCommit,
    PutOpen,
    PutResume,
    PutSmall,
)
from sfsd.errors import Refused
from sfsd.rules.context import OPERATIONS, Access, Principal
from sfsd.state.uploads import WINDOW
from tests.sfsd.builders import (
    ADDRESS,
    SERVER_KEY,
    Clock,
    Daemon,
    Person,
    daemon,
    done,
    file_id,
    login,
    refused,
)
from tests.sfsd.faults import FaultyFiles

F = file_id(1)
U, H, S = bytes(16), bytes(16), bytes(64)

USERS = {Access.FULL}
STATEMENTS = {Access.FULL, Access.RECOVERY}
OWN_KEYS = {Access.FULL, Access.RESTRICTED, Access.RECOVERY}
EVERYONE = set(Access)
OPERATORS = {Access.OPERATOR}

MATRIX: dict[Request, set[Access]] = {
    Ping(): EVERYONE,
    PutSmall(b"", S, b"", (), b""): USERS,
    PutOpen("ada", F, 0): USERS,
    Data(U, 0, b"x"): USERS,
    PutResume(U): USERS,
    PutCommit(U, b"", S, b"", ()): USERS,
    PutAbort(U): USERS,
    GetOpen("ada", F, 0): USERS,
    GetLeaves(H, 0): USERS,
    Read(H, 0, 1): USERS,
    Stat("ada", F, 0): USERS,
    List("", 1, 0): USERS,
    History("ada", F, 1): USERS,
    Record(()): USERS,
    Lookup("ada", 1): OWN_KEYS,
    SetReaders(b"", S, ()): USERS,
    Inbox("", 1, 0): USERS,
    Usage(): USERS,
    LogHead(): EVERYONE,
    LogEntries(0, 1, own=True): {Access.FULL, Access.OPERATOR},
    LogProof(CONSISTENCY, 0, 0): EVERYONE,
    UserList(""): OPERATORS,
    UserShow("ada"): OPERATORS,
    UserAdd("bob", bytes(32), 2**40, 0): OPERATORS,
    UserAccess("ada", disabled=False, reason=""): OPERATORS,
    Status(): OPERATORS,
    UserQuota("ada", 0): OPERATORS,
    NewStatement(b"", (), b""): STATEMENTS,
    GetBundle(0): OWN_KEYS,
    RotateBegin(b"", (), b""): STATEMENTS,
    GetWraps("", 1, all_of_them=False): USERS,
    Rewrap(()): USERS,
    RotateFinish(b"", (), b"", b"", S): USERS,
    ForceRotation("ada", ""): OPERATORS,
}


def test_every_request_has_an_operation_and_a_row_in_the_matrix() -> None:
    requests = {
        cls for cls in registered().values() if issubclass(cls, Request) and cls not in OPENING
    }
    assert {type(message) for message in MATRIX} == set(OPERATIONS) == requests


def principals(served: Daemon) -> dict[Access, Principal]:
    """One of each kind; ada's keys are all real, the restricted session is a repeated enrolment."""
    code = SigningKey.generate()
    ada = Person("ada", served)
    operator = served.operator()
    done(served.ask(operator, ada.invitation()))
    ada.first = ada.statement(recovery=RecoveryKey(code.public, b"x" * 1216))
    full = served.open(ada.enroll())[0]
    restricted = served.open(ada.enroll())[0]
    recovery = served.open(login("ada", code, generation=0))[0]
    found = {who.access: who for who in (full, restricted, recovery, operator)}
    assert set(found) == set(Access)
    return found


def test_the_matrix_holds(served: Daemon) -> None:
    roles = principals(served)
    for message, allowed in MATRIX.items():
        for access, who in roles.items():
            reply = served.ask(who, message)
            got_in = not (isinstance(reply, Error) and reply.code == "not-allowed")
            assert got_in == (access in allowed), (message, access, reply)
            assert not (isinstance(reply, Error) and reply.code == "unknown-request")


def test_an_answer_is_of_a_type_that_the_request_has(served: Daemon) -> None:
    roles = principals(served)
    for message in MATRIX:
        for who in roles.values():
            assert isinstance(served.ask(who, message), (*message.REPLIES, Error))


def test_a_request_of_a_later_version_is_unknown(ada: Person) -> None:
    refused(ada.ask(UnknownRequest(4711)), "unknown-request")


def test_entries_have_the_op_that_the_table_says(served: Daemon, ada: Person) -> None:
    ada.put(F)
    ada.ask(GetOpen("ada", F, 0))
    ada.delete(F)
    stated = " ".join(op.logged or "" for op in OPERATIONS.values())
    logged = {entry.op for entry in served.entries()} - {"login", "enrol"}
    assert logged == {"user-add", "upload", "download", "delete"}
    assert all(op in stated for op in logged)


def test_a_welcome_is_fresh_signed_and_states_the_limits(served: Daemon) -> None:
    first, second = served.service.welcome(), served.service.welcome()
    assert first.challenge != second.challenge
    verify_signature(Label.SERVER_STATEMENT, first.statement, first.signature, SERVER_KEY.public)
    policy = served.world.config.rotation
    assert (first.limits.window, first.limits.max_age) == (WINDOW, policy.max_age)


def test_a_session_that_ends_does_not_undo_what_is_on_its_way(served: Daemon, ada: Person) -> None:
    put = ada.version(F, b"c" * 56)

    async def cut_off() -> None:
        task = asyncio.ensure_future(served.service.handle(ada.who, put.small()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    served.run(cut_off())
    ada.took(put)
    # Whether it was made or not is not known to the client; sending it again settles that.
    done(ada.ask(put.small()))
    assert len(served.entries("upload")) == 1


def test_disabling_a_user_calls_the_server(served: Daemon, ada: Person) -> None:
    revoked: list[str] = []
    served.service.on_revoke = lambda user, _which: revoked.append(user)
    operator = served.operator()
    done(served.ask(operator, UserAccess("ada", disabled=False, reason="")))
    refused(served.ask(operator, UserAccess("nobody", disabled=True, reason="")), "not-found")
    assert revoked == []
    done(served.ask(operator, UserAccess("ada", disabled=True, reason="")))
    assert revoked == ["ada"]


def test_refused_attempts_are_logged_by_source_and_minute(served: Daemon, ada: Person) -> None:
    stranger = SigningKey.generate()
    for _ in range(50):
        with pytest.raises(Refused):
            served.open(login("ada", stranger))
    with pytest.raises(Refused):
        served.open(login("eve", stranger), address="198.51.100.1")
    refused(ada.ask(Status()), "not-allowed")
    refused(ada.ask(GetOpen("eve", F, 0)), "not-found")
    refused(ada.ask(GetOpen("ada", F, 0)), "not-found")  # no attempt on anyone's file
    served.run(served.service.tick())
    assert served.entries("refused") == []
    served.clock.now += 60
    served.run(served.service.tick())
    served.operator()  # committed after them
    here, there = sorted(served.entries("refused"), key=lambda entry: -entry.detail["count"])
    assert (here.detail["address"], here.detail["count"]) == (ADDRESS, 52)
    assert here.detail["codes"] == {"refused": 50, "not-allowed": 1, "not-found": 1}
    assert here.detail["users"] == {"ada": 52}
    assert there.detail["users"] == {"eve": 1}
    assert (here.actor, here.detail["minute"]) == ("server", "2027-01-15T08:00Z")


def test_refusals_are_not_lost_when_the_daemon_stops(tmp_path: Path) -> None:
    clock = Clock()
    with daemon(tmp_path, clock) as served, pytest.raises(Refused):
        served.open(login("ada", SigningKey.generate()))
    with daemon(tmp_path, clock) as served:
        assert len(served.entries("refused")) == 1


def test_after_a_failed_sync_only_looking_goes_on(tmp_path: Path) -> None:
    files = FaultyFiles()
    with daemon(tmp_path, files=files) as served:
        ada = served.person("ada")
        ada.put(F)
        opened = ada.ask(GetOpen("ada", F, 0))
        assert isinstance(opened, Opened)
        assert isinstance(ada.ask(Read(opened.handle, 0, 1)), Bytes)
        upload = ada.upload(F, b"", size=0)
        files.fail("sync_data", "audit.jsonl")
        refused(ada.ask(ada.version(F, b"lost").small()), "unavailable")
        files.heal()
        for message in (
            ada.version(F, b"lost").small(),
            GetOpen("ada", F, 0),
            GetOpen("ada", F, 1),
            Read(opened.handle, 0, 1),
            PutOpen("ada", F, 0),
            Data(upload, 0, b"x"),
        ):
            refused(ada.ask(message), "unavailable")
        assert isinstance(ada.ask(Stat("ada", F, 0)), Stated)
        # New sessions may look as well; the log has no entry of them.
        who = ada.log_in()
        assert who.session == -1
        assert isinstance(served.ask(who, List("", 9, 0)), Listing)
        refused(served.ask(who, GetOpen("ada", F, 0)), "unavailable")
        status = served.ask(served.operator(), Status())
        assert isinstance(status, StatusAnswer)
        assert status.failed


def test_a_full_disk_refuses_and_goes_on(tmp_path: Path) -> None:
    files = FaultyFiles()
    with daemon(tmp_path, files=files) as served:
        ada = served.person("ada", quota=10_000)
        files.fail("write", "audit.jsonl", errno.ENOSPC)
        put = ada.version(F, b"x" * 6000)
        error = refused(ada.ask(put.small()), "unavailable")
        assert "disk is full" in error.text
        told = served.service.unwritten.report()
        assert told is not None
        assert "disk is full" in told
        # What it had reserved of the quota was given back.
        assert isinstance(ada.ask(put.small()), Done)


def test_an_answer_that_is_too_long_for_its_message_is_cut(served: Daemon, ada: Person) -> None:
    reason = "話" * 170  # 510 bytes, and more with what is said before it
    done(served.ask(served.operator(), ForceRotation("ada", reason)))
    refused(ada.ask(ada.version(F, b"x").small()), "rotation-required")


class UnreadableLog(FaultyFiles):
    """From `broken` on, nothing of the log can be read."""

    broken = False

    def read_at(self, handle: int, length: int, offset: int) -> bytes:
        if self.broken and self._names.get(handle) == "audit.jsonl":
            raise OSError(errno.EIO, "broken")
        return super().read_at(handle, length, offset)


def test_a_log_that_cannot_be_read_is_said_to_the_asker(tmp_path: Path) -> None:
    files = UnreadableLog()
    with daemon(tmp_path, files=files) as served:
        ada = served.person("ada")
        ada.put(F)
        files.broken = True
        refused(ada.ask(LogEntries(0, 10, own=True)), "unavailable")
        assert isinstance(ada.ask(Stat("ada", F, 0)), Stated)


@pytest.mark.parametrize("message", [RotateFinish(b"", (), b"", b"", S), Inbox("", 1, 0), Usage()])
def test_who_reads_all_of_an_account_holds_up_nobody(served: Daemon, message: Request) -> None:
    """It is not decided in one go with others, nor by a thread that counts as free."""
    assert not served.service.is_swift(message)
