"""Access matrix of the operations, and the replies and log entries of failed requests."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from protocol.records.records import RecoveryKey
from protocol.records.signatures import Label, SigningKey, verify_signature
from protocol.wire.connection import UnknownRequest
from protocol.wire.messages import Done, Error, Request, registered
from protocol.wire.messages.accounts import (
    ForceRotation,
    StartScrub,
    Status,
    StatusAnswer,
    Usage,
    UserAccess,
    UserAdd,
    UserErase,
    UserList,
    UserQuota,
    UserRemove,
    UserRevoke,
    UserShow,
)
from protocol.wire.messages.base import DamagedVersion
from protocol.wire.messages.changes import Commit
from protocol.wire.messages.downloads import Bytes, GetLeaves, OpenedVersion, Read
from protocol.wire.messages.files import GiveUp, History, List, Listing, Stat, Stated
from protocol.wire.messages.log import (
    CONSISTENCY,
    LogHead,
    LogLeaves,
    LogLines,
    LogProof,
)
from protocol.wire.messages.rotation import (
    GetBundle,
    GetWraps,
    NewStatement,
    Rewrap,
    RotateBegin,
    RotateFinish,
)
from protocol.wire.messages.session import OPENING, Ping
from protocol.wire.messages.sharing import BlockOwner, Inbox, LeaveFile, ListBlocked, Lookup
from protocol.wire.messages.uploads import Data, PutAbort, PutOpen, PutResume
from sfsd.errors import Refused
from sfsd.rules.context import OPERATIONS, Access, Principal
from sfsd.settings.config import Config, ConnectionLimits
from sfsd.state.uploads import WINDOW
from sfsd.storage.paths import VersionPaths
from tests.opens import open_one
from tests.sfsd.builders import (
    ADDRESS,
    OPERATOR_KEY,
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
JOINING = {Access.FULL, Access.JOINING}
RECOVERING = {Access.FULL, Access.RECOVERY}
OWN_KEYS = {Access.FULL, Access.RESTRICTED, Access.JOINING, Access.RECOVERY}
EVERYONE = set(Access)
OPERATORS = {Access.OPERATOR}
MONITORING = {Access.OPERATOR, Access.MONITOR}

MATRIX: dict[Request, set[Access]] = {
    Ping(): EVERYONE,
    Commit((), (), S, (), (), False, b""): USERS,
    PutOpen("ada", F, 0): USERS,
    Data(U, 0, b"x"): USERS,
    PutResume(U): USERS,
    PutAbort(U): USERS,
    open_one("ada", F, 0): USERS,
    GetLeaves(H, 0): USERS,
    Read(H, 0, 1): USERS,
    Stat("ada", F, 0): USERS,
    List("", 1, 0): USERS,
    History("ada", F, 1): USERS,
    GiveUp(F, 1): USERS,
    Lookup("ada", 1): OWN_KEYS,
    Inbox("", 1, 0): USERS,
    LeaveFile(b"", S): USERS,
    BlockOwner("ada", blocked=True): USERS,
    ListBlocked(): USERS,
    Usage(): USERS,
    LogHead(): EVERYONE,
    LogProof(CONSISTENCY, 0, 0): EVERYONE,
    LogLeaves(0, 1): {Access.FULL},
    LogLines((0,)): {Access.FULL},
    UserList(""): OPERATORS,
    UserShow("ada"): OPERATORS,
    UserAdd("bob", bytes(32), 2**40, 0): OPERATORS,
    UserAccess("ada", disabled=False, reason=""): OPERATORS,
    Status(): MONITORING,
    StartScrub(): OPERATORS,
    UserQuota("ada", 0): OPERATORS,
    UserRevoke("ada", ""): OPERATORS,
    UserRemove("ada", 1, ""): OPERATORS,
    UserErase("ada", ""): OPERATORS,
    NewStatement(b"", (), b""): JOINING,
    GetBundle(0): OWN_KEYS,
    RotateBegin(b"", (), b""): RECOVERING,
    GetWraps("", 1, all_of_them=False): USERS,
    Rewrap((), b""): USERS,
    RotateFinish(b"", (), b"", b"", S): USERS,
    ForceRotation("ada", ""): OPERATORS,
}


def test_every_request_has_an_operation_and_a_row_in_the_matrix() -> None:
    requests = {
        cls for cls in registered().values() if issubclass(cls, Request) and cls not in OPENING
    }
    assert {type(message) for message in MATRIX} == set(OPERATIONS) == requests


REFUSALS = {
    access: {"not-allowed"} | ({"stale-generation"} if access is Access.RESTRICTED else set())
    for access in Access
}
"""What a session is told of a request that it may not send."""


def principals(served: Daemon) -> dict[Access, Principal]:
    """Return a principal of each kind of access."""
    code = SigningKey.generate()
    ada = Person("ada", served)
    operator = served.operator()
    done(served.ask(operator, ada.invitation()))
    ada.first = ada.statement(recovery=RecoveryKey(code.public, b"x" * 1216))
    possession = code.sign(Label.RECOVERY_POSSESSION, ada.first.encode())
    full = served.open(ada.enroll(possession=possession))[0]
    restricted = ada.log_in(generation=2)
    joining = served.open(login("ada", ada.key))[0]
    recovery = served.open(login("ada", code, generation=0))[0]
    monitor = served.open(login("operator", OPERATOR_KEY, generation=0))[0]
    everyone = (full, restricted, joining, recovery, operator, monitor)
    found = {who.access: who for who in everyone}
    assert set(found) == set(Access)
    return found


def test_access_matrix(served: Daemon) -> None:
    roles = principals(served)
    for message, allowed in MATRIX.items():
        for access, who in roles.items():
            reply = served.ask(who, message)
            admitted = not (isinstance(reply, Error) and reply.code in REFUSALS[access])
            assert admitted == (access in allowed), (message, access, reply)
            assert not (isinstance(reply, Error) and reply.code == "unknown-request")


def test_reply_types_match_the_request(served: Daemon) -> None:
    roles = principals(served)
    for message in MATRIX:
        for who in roles.values():
            assert isinstance(served.ask(who, message), (*message.REPLIES, Error))


def test_request_of_a_later_version_is_unknown(ada: Person) -> None:
    refused(ada.ask(UnknownRequest(4711)), "unknown-request")


def test_log_entries_have_the_op_of_the_table(served: Daemon, ada: Person) -> None:
    ada.put(F)
    ada.ask(open_one("ada", F, 0))
    ada.delete(F)
    stated = " ".join(op.logged or "" for op in OPERATIONS.values())
    logged = {entry.op for entry in served.entries()} - {"login", "enrol"}
    assert logged == {"user-add", "upload", "download", "delete"}
    assert all(op in stated for op in logged)


def test_welcome_is_fresh_signed_and_states_the_limits(served: Daemon) -> None:
    first, second = (served.dispatcher.welcome(served.context.identity) for _ in range(2))
    assert first.challenge != second.challenge
    verify_signature(Label.SERVER_STATEMENT, first.statement, first.signature, SERVER_KEY.public)
    policy = served.context.config.rotation
    assert (first.limits.window, first.limits.max_age) == (WINDOW, policy.max_age)


def test_cancelled_request_may_still_be_committed(served: Daemon, ada: Person) -> None:
    put = ada.version(F, b"c" * 56)

    async def cut_off() -> None:
        task = asyncio.ensure_future(served.dispatcher.handle(ada.who, put.small()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    served.run(cut_off())
    ada.took(put)
    # The client does not know whether it was committed, so it sends it again.
    done(ada.ask(put.small()))
    assert len(served.entries("upload")) == 1


def test_disabling_a_user_revokes_their_sessions(served: Daemon, ada: Person) -> None:
    revoked: list[str] = []
    served.dispatcher.on_revoke = lambda user, _which: revoked.append(user)
    operator = served.operator()
    done(served.ask(operator, UserAccess("ada", disabled=False, reason="")))
    refused(served.ask(operator, UserAccess("nobody", disabled=True, reason="")), "not-found")
    assert revoked == []
    done(served.ask(operator, UserAccess("ada", disabled=True, reason="")))
    assert revoked == ["ada"]


def test_a_user_who_fills_the_log_is_refused_and_nobody_else(tmp_path: Path) -> None:
    config = Config(limits=ConnectionLimits(user_log_lines_per_day=10))
    with daemon(tmp_path, config=config) as served:
        ada, bob = served.person("ada"), served.person("bob")
        puts = [ada.ask(ada.version(file_id(n), b"c" * 56).small()) for n in range(10, 22)]
        assert [type(one) for one in puts] == [Done] * 10 + [Error] * 2
        error = refused(puts[-1], "busy")
        assert re.search(r"try again in [0-9,]+ s$", error.text)
        upload = ada.upload(F, b"c" * 56)
        for _ in range(2):  # the first did not leave the upload as one that is being committed
            error = refused(ada.ask(ada.version(F, b"c" * 56).commit(upload)), "busy")
            assert "the log has" in error.text
        assert isinstance(ada.ask(Stat("ada", file_id(10), 0)), Stated)
        bob.put(F)
        operator = served.operator()
        for number in range(20):
            done(served.ask(operator, UserAccess("bob", disabled=number % 2 == 0, reason="")))
        for _ in range(10):
            ada.log_in()
        with pytest.raises(Refused) as too_often:
            ada.log_in()
        assert too_often.value.code == "busy"
        served.operator()
        lines = [entry for entry in served.entries() if entry.actor == "ada"]
    assert Counter(entry.op for entry in lines) == {"enrol": 1, "upload": 10, "login": 10}


def test_refused_attempts_are_logged_by_source_and_minute(served: Daemon, ada: Person) -> None:
    unknown_key = SigningKey.generate()
    for _ in range(50):
        with pytest.raises(Refused):
            served.open(login("ada", unknown_key))
    with pytest.raises(Refused):
        served.open(login("eve", unknown_key), address="198.51.100.1")
    refused(ada.ask(Status()), "not-allowed")
    refused(ada.ask(open_one("eve", F, 0)), "not-found")
    refused(ada.ask(open_one("ada", F, 0)), "not-found")  # no attempt on anyone's file
    served.run(served.dispatcher.tick())
    assert served.entries("refused") == []
    served.clock.now += 60
    served.run(served.dispatcher.tick())
    served.operator()  # committed after them
    here, there = sorted(served.entries("refused"), key=lambda entry: -entry.detail["count"])
    assert (here.detail["address"], here.detail["count"]) == (ADDRESS, 52)
    assert here.detail["codes"] == {"refused": 50, "not-allowed": 1, "not-found": 1}
    assert here.detail["users"] == {"ada": 52}
    assert there.detail["users"] == {"eve": 1}
    assert (here.actor, here.detail["minute"]) == ("server", "2027-01-15T08:00Z")


def test_refusals_are_logged_when_the_daemon_stops(tmp_path: Path) -> None:
    clock = Clock()
    with daemon(tmp_path, clock) as served, pytest.raises(Refused):
        served.open(login("ada", SigningKey.generate()))
    with daemon(tmp_path, clock) as served:
        assert len(served.entries("refused")) == 1


def test_failed_sync_leaves_metadata_readable(tmp_path: Path) -> None:
    files = FaultyFiles()
    with daemon(tmp_path, files=files) as served:
        ada = served.person("ada")
        ada.put(F)
        opened = ada.ask(open_one("ada", F, 0))
        assert isinstance(opened, OpenedVersion)
        assert isinstance(ada.ask(Read(opened.handle, 0, 1)), Bytes)
        upload = ada.upload(F, b"", size=0)
        files.fail("sync_data", "audit.jsonl")
        refused(ada.ask(ada.version(F, b"lost").small()), "unavailable")
        files.heal()
        for message in (
            ada.version(F, b"lost").small(),
            open_one("ada", F, 0),
            open_one("ada", F, 1),
            Read(opened.handle, 0, 1),
            PutOpen("ada", F, 0),
            Data(upload, 0, b"x"),
        ):
            refused(ada.ask(message), "unavailable")
        assert isinstance(ada.ask(Stat("ada", F, 0)), Stated)
        # New sessions may read metadata too; the log has no entry of them.
        who = ada.log_in()
        assert who.session == -1
        assert isinstance(served.ask(who, List("", 9, 0)), Listing)
        refused(served.ask(who, open_one("ada", F, 0)), "unavailable")
        status = served.ask(served.operator(), Status())
        assert isinstance(status, StatusAnswer)
        assert status.failed


def test_full_disk_refuses_and_goes_on(tmp_path: Path) -> None:
    files = FaultyFiles()
    with daemon(tmp_path, files=files) as served:
        ada = served.person("ada", quota=10_000)
        files.fail("write", "audit.jsonl", errno.ENOSPC)
        put = ada.version(F, b"x" * 6000)
        error = refused(ada.ask(put.small()), "unavailable")
        assert "disk is full" in error.text
        told = served.dispatcher.disk_failures.report()
        assert told is not None
        assert f"the disk of {tmp_path / 'logs'} is full" in told
        # Its reservation of quota was released.
        assert isinstance(ada.ask(put.small()), Done)


def test_long_error_text_is_shortened(served: Daemon, ada: Person) -> None:
    reason = "話" * 170  # 510 bytes, plus the text before it
    done(served.ask(served.operator(), ForceRotation("ada", reason)))
    refused(ada.ask(ada.version(F, b"x").small()), "rotation-required")


class UnreadableLog(FaultyFiles):
    """Files whose log cannot be read once `broken` is set."""

    broken = False

    def read_at(self, handle: int, length: int, offset: int) -> bytes:
        if self.broken and self._names.get(handle) == "audit.jsonl":
            raise OSError(errno.EIO, "broken")
        return super().read_at(handle, length, offset)


def test_unreadable_log_is_reported_to_the_client(tmp_path: Path) -> None:
    files = UnreadableLog()
    with daemon(tmp_path, files=files) as served:
        ada = served.person("ada")
        ada.put(F)
        files.broken = True
        refused(ada.ask(LogLines((0,))), "unavailable")
        assert isinstance(ada.ask(Stat("ada", F, 0)), Stated)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_the_operator_is_told_of_an_unreadable_file(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        ada = served.person("ada")
        ada.put(F)
        paths = VersionPaths.for_version("ada", F, 1)
        ciphertext = tmp_path / "store" / "users" / paths.ciphertext
        ciphertext.unlink()
        ciphertext.symlink_to(ciphertext.name)  # opening it fails
        answer = refused(ada.ask(open_one("ada", F, 0)), "damaged")
        assert answer.damaged == DamagedVersion("ada", F, 1)
        assert "cannot read" in answer.text
        told = served.dispatcher.disk_failures.report()
    assert told == f"opening a file: {os.strerror(errno.ELOOP)}: 1"


@pytest.mark.parametrize("message", [RotateFinish(b"", (), b"", b"", S), Inbox("", 1, 0), Usage()])
def test_operations_on_whole_accounts_are_slow(message: Request) -> None:
    """Their thread does not count as free meanwhile."""
    assert OPERATIONS[type(message)].slow
