"""Renames at a server that may lie."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from protocol.codec.values import changed
from protocol.records.records import MOVE
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.files import Stat
from sfsc.errors import (
    BadReceipt,
    BadRecord,
    ConflictError,
    Denied,
    NotFound,
    Unreachable,
    UsageError,
)
from sfsc.files.history import FileHistory
from sfsc.files.listing import Files
from sfsc.files.rename import Renames
from sfsc.session.session import Session
from sfsc.transfer.download import Downloads
from sfsc.transfer.upload import Uploads
from tests.changes import changes_no_content, has_op
from tests.sfsc.simulator import DropConnection, Simulator


def put(session: Session, name: str, content: bytes = b"content") -> None:
    Uploads(session).put(io.BytesIO(content), name)


def get(session: Session, name: str) -> bytes:
    target = io.BytesIO()
    Downloads(session).get(name, target)
    return target.getvalue()


def names(session: Session) -> list[str]:
    return [entry.name for entry in Files(session).ls()]


def test_rename(session: Session, other: Session) -> None:
    put(session, "a", b"old")
    put(session, "a", b"content")
    entry = Renames(session).mv("a", "b/c")
    assert (entry.name, entry.version, entry.size) == ("b/c", 1, 7)
    for device in (session, other):
        assert names(device) == ["b/c"]
        assert get(device, "b/c") == b"content"
        with pytest.raises(NotFound):
            get(device, "a")
    assert entry == Files(other).stat("b/c")
    (arrived,) = FileHistory(other).history("b/c")
    assert (arrived.op, arrived.moved) == ("move", session.account.file_id("a"))
    *_, left = FileHistory(other).history("a")
    assert (left.op, left.moved) == ("delete", session.account.file_id("b/c"))
    # Earlier versions stay under the old name.
    assert FileHistory(other).restore("a", 1).size == 3
    assert names(session) == ["a", "b/c"]


def test_rename_back_and_again(session: Session, other: Session) -> None:
    put(session, "a")
    for old, new in (("a", "b"), ("b", "a"), ("a", "b")):
        Renames(session).mv(old, new)
    assert Renames(other).mv("b", "a").version == 3
    put(session, "a", b"onward")
    assert get(other, "a") == b"onward"


def test_invalid_renames(session: Session) -> None:
    put(session, "a")
    put(session, "b")
    with pytest.raises(ConflictError):
        Renames(session).mv("a", "b")
    with pytest.raises(NotFound):
        Renames(session).mv("none", "c")
    for wrong in ("a", "", "/c", "../c", "c\0"):
        with pytest.raises(UsageError):
            Renames(session).mv("a", wrong)
    assert names(session) == ["a", "b"]


def test_rename_retries_after_conflicts(
    server: Simulator, session: Session, other: Session
) -> None:
    """Another device changes first the file, then the file at the new name."""
    put(session, "a")

    def there_and_gone() -> None:
        put(other, "b")
        Files(other).rm("b")

    steps: list[Callable[[], None]] = [lambda: put(other, "a", b"newer"), there_and_gone]

    def hook(request: Request) -> Reply | None:
        if has_op(MOVE)(request) and steps:
            step = steps.pop(0)
            server._lock.release()
            step()
            server._lock.acquire()
        return None

    server.intercept = hook
    entry = Renames(session).mv("a", "b")
    assert (entry.version, get(other, "b")) == (2, b"newer")
    assert steps == []


def test_conflict_with_a_malformed_record(server: Simulator, session: Session) -> None:
    put(session, "a")
    view = server.view(session.account.file_id("a"))
    nonsense = changed(view, content=changed(view.content, record=b"nonsense"))

    def hook(request: Request) -> Reply | None:
        return Error("conflict", "", nonsense) if changes_no_content(request) else None

    server.intercept = hook
    with pytest.raises(BadRecord):
        Renames(session).mv("a", "b")


def test_target_is_created_meanwhile(server: Simulator, session: Session, other: Session) -> None:
    put(session, "a")
    Files(session).ls()
    put(other, "b")
    with pytest.raises(ConflictError):
        Renames(session).mv("a", "b")
    assert names(other) == ["a", "b"]


def test_lost_reply_followed_by_another_change(
    server: Simulator, session: Session, other: Session
) -> None:
    put(session, "a")
    lost = [True]

    def hook(request: Request, reply: Reply) -> Reply:
        if changes_no_content(request) and lost.pop() if lost else False:
            server.tamper = lambda _request, reply: reply
            server._lock.release()
            put(other, "b", b"onto it")
            server._lock.acquire()
            raise DropConnection
        return reply

    server.tamper = hook
    assert Renames(session).mv("a", "b").version == 1
    assert get(session, "b") == b"onto it"
    assert len(server.files[session.account.file_id("b")].records) == 2


def without(_detail: dict[str, Any]) -> dict[str, Any]:
    return {}


def another(detail: dict[str, Any]) -> dict[str, Any]:
    return {**detail, "tombstone": "YQ=="}


def unsigned(detail: dict[str, Any]) -> dict[str, Any]:
    return {**detail, "tombstone_sigs": {}}


@pytest.mark.parametrize("lie", [without, another, unsigned])
def test_log_entry_without_the_tombstone(
    server: Simulator, session: Session, lie: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    put(session, "a")
    server.log_moves = lie
    with pytest.raises(BadReceipt):
        Renames(session).mv("a", "b")


def test_refusals_are_raised(server: Simulator, session: Session) -> None:
    put(session, "a")
    for code, error in (("denied", Denied), ("unavailable", Unreachable)):

        def hook(request: Request, code: str = code) -> Reply | None:
            return Error(code, "no") if changes_no_content(request) else None

        server.intercept = hook
        with pytest.raises(error):
            Renames(session).mv("a", "c")
    assert names(session) == ["a"]


def test_what_another_device_changes_meanwhile_is_moved_too(
    server: Simulator, session: Session, other: Session
) -> None:
    """After the listing: a new version, a file at the new name that comes and goes, a deletion."""
    for name in ("a/1", "a/2", "a/3", "b"):
        put(session, name)
    Files(session).rm("b")

    def change() -> None:
        put(other, "a/1", b"newer")
        put(other, "n/2", b"in between")
        Files(other).rm("n/2")
        Files(other).rm("a/3")

    steps = [change]

    def hook(request: Request) -> Reply | None:
        if isinstance(request, Stat) and steps:
            step = steps.pop()
            server._lock.release()
            step()
            server._lock.acquire()
        return None

    server.intercept = hook
    failed: list[str] = []
    moved = Renames(session).mv_many(["a"], "n", lambda name, _error: failed.append(name))
    assert [(one.before, one.entry.name) for one in moved] == [("a/1", "n/1"), ("a/2", "n/2")]
    assert (get(session, "n/1"), get(session, "n/2")) == (b"newer", b"content")
    assert failed == ["a/3"]
    assert not steps
