"""A file's history from a server that may lie."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol.codec.values import changed
from protocol.records.records import (
    ACCESS,
    REENCRYPT,
    FileRecord,
    ReaderEntry,
    record_hash,
)
from protocol.wire.messages import Reply, Request
from protocol.wire.messages.files import HistoryPage
from sfsc.errors import BadRecord, ConflictError, NotFound, Rollback, SfscError
from sfsc.files.history import FileHistory, PastReaders
from sfsc.files.listing import Files
from sfsc.files.purge import Purged, Purges
from sfsc.session.commit import build_record, build_tombstone
from sfsc.session.session import Session
from sfsc.trust.file_records import VerifiedFile
from tests.changes import changes_no_content
from tests.sfsc.simulator import Simulator
from tests.sfsc.storing import put


def tamper_history(server: Simulator, change: object) -> None:
    def hook(_request: Request, reply: Reply) -> Reply:
        if isinstance(reply, HistoryPage):
            return changed(reply, **change(reply))  # type: ignore[operator]
        return reply

    server.tamper = hook


def test_records_oldest_first(session: Session) -> None:
    put(session, b"one")
    put(session, b"three")
    Files(session).rm("file")
    history = FileHistory(session).history("file")
    assert [(one.revision, one.op, one.version, one.size) for one in history] == [
        (1, "put", 1, 3),
        (2, "put", 2, 5),
        (3, "delete", None, None),
    ]
    assert [one.kept for one in history] == [True, True, False]


def test_unknown_file_or_version(session: Session) -> None:
    for ask in (FileHistory(session).history, FileHistory(session).restore):
        with pytest.raises(NotFound):
            ask("none")
    put(session, b"one")
    with pytest.raises(NotFound):
        FileHistory(session).restore("file", 2)


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        (lambda page: {"records": page.records[1:]}, BadRecord),
        (lambda page: {"records": page.records[::-1]}, BadRecord),
        (lambda page: {"records": page.records[:-1]}, Rollback),
        (lambda page: {"records": (page.records[0], page.records[2])}, BadRecord),
        (lambda page: {"records": page.records[:1] * 3}, BadRecord),
        (lambda page: {"records": (), "next": 1}, BadRecord),
        (lambda page: {"next": 2}, BadRecord),
        (
            lambda page: {"records": tuple(changed(one, signatures=()) for one in page.records)},
            BadRecord,
        ),
    ],
    ids=[
        "first-missing",
        "reversed",
        "last-missing",
        "gap",
        "repeated",
        "endless",
        "circle",
        "unsigned",
    ],
)
def test_tampered_history(
    server: Simulator, session: Session, lie: object, error: type[Exception]
) -> None:
    for content in (b"1", b"2", b"3"):
        put(session, content)
    tamper_history(server, lie)
    with pytest.raises(error):
        FileHistory(session).history("file")


def test_history_of_another_file(server: Simulator, session: Session) -> None:
    put(session, b"1")
    put(session, b"other", "other")
    other = tuple(server.files[session.account.file_id("other")].records)
    tamper_history(server, lambda _page: {"records": other})
    with pytest.raises(BadRecord):
        FileHistory(session).history("file")


# --- another device is faster


def act_before_next_record(server: Simulator, step: Callable[[], object]) -> None:
    """Another device runs `step` just before our next record arrives."""
    steps = [step]

    def hook(request: Request) -> Reply | None:
        if changes_no_content(request) and steps:
            done = steps.pop()
            server._lock.release()
            done()
            server._lock.acquire()
        return None

    server.intercept = hook


def failing(_name: str, error: SfscError) -> None:
    raise error


def test_put_during_prune(server: Simulator, session: Session, other: Session) -> None:
    for content in (b"1", b"2", b"3"):
        put(session, content)
    act_before_next_record(server, lambda: put(other, b"theirs"))
    assert list(Purges(session).prune(["file"], 1, failing)) == [Purged("file", (1, 2, 3))]
    known = session.state.file(session.account.file_id("file"))
    assert known is not None
    assert known.version == 4
    assert put(session, b"5") == 5


def test_put_during_purge(server: Simulator, session: Session, other: Session) -> None:
    put(session, b"1")
    Files(session).rm("file")
    act_before_next_record(server, lambda: put(other, b"2"))
    with pytest.raises(ConflictError):
        Purges(session).purge("file")
    assert all(one.op != "purge" for one in FileHistory(session).history("file"))


def test_readers_of_an_older_version(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers were added while it was the newest version or before, with a grant that had not
    ended."""
    put(session, b"one")
    first = session.fetch_newest(session.account.file_id("file"))

    def reader(user: str, expires: int = 0) -> ReaderEntry:
        return user, bytes(32), expires

    def made(version: int, *readers: ReaderEntry) -> FileRecord:
        return changed(
            first.head, version=version, current=version, readers=readers, created=version
        )

    def access(current: int, *readers: ReaderEntry) -> FileRecord:
        head, body = first.head, first.head_body
        return build_record(session, head, body, op=ACCESS, current=current, readers=readers)

    bob, carol, dora, eve = (reader(user) for user in ("bob", "carol", "dora", "eve"))
    brief = reader("brief", expires=3)
    records = [
        made(1, bob),
        access(1, bob, brief, carol),
        made(2, bob, brief, carol),
        access(2, bob, brief),
        access(2, bob, brief, carol),
        made(3, bob, brief, carol),
        build_tombstone(session, first.head, first.head_body),
        access(0, bob, brief, carol, eve),
        made(4, bob, brief, carol, eve),
        access(4, bob, brief, carol, dora, eve),
    ]
    records[6] = changed(records[6], readers=(bob, brief, carol))
    asked = list[int]()

    def history(_history: FileHistory, newest: VerifiedFile) -> list[FileRecord]:
        asked.append(newest.head.rev)
        return records

    monkeypatch.setattr(FileHistory, "records", history)
    newest, last = records[-2], records[-1]
    file = VerifiedFile(newest, newest.encode(), last, last.encode(), b"m", ())
    past = PastReaders(session)
    expected = [{"bob", "brief"}, {"bob", "brief", "carol"}, {"bob", "carol"}]
    for version, users in enumerate(expected, 1):
        assert {user for user, _, _ in past.readers_of_version(file, version)} == users
    assert past.readers_of_version(file, 4) == last.readers
    # A version that was encrypted again changes no readers: the history is not read again.
    again = changed(
        newest,
        rev=3,
        prev=record_hash(file.head_body),
        op=REENCRYPT,
        version=1,
        content=record_hash(newest.encode()),
        readers=last.readers,
    )
    file = changed(file, head=again, head_body=again.encode())
    assert {user for user, _, _ in past.readers_of_version(file, 2)} == expected[1]
    assert len(asked) == 1
