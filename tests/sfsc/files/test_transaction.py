"""Transactions against a real daemon: all changes or none, whatever happens in between."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import sfsc
from protocol.codec.values import changed
from protocol.log import auditlog
from protocol.records.records import FileRecord
from protocol.wire.messages import Error, Message, Reply, Request
from protocol.wire.messages.changes import Commit, Committed
from protocol.wire.messages.uploads import Data
from sfsc.errors import (
    ConflictError,
    NotFound,
    PartialSet,
    QuotaExceeded,
    SfscError,
    Unreachable,
    UnreadableSource,
    UsageError,
)
from sfsc.store import Store
from sfsd.rules.context import Principal
from tests.lying_server import DropConnection, LyingServer

LARGE = os.urandom(300_000)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingServer]:
    with LyingServer(tmp_path_factory.mktemp("transactions") / "lying") as served:
        yield served


@pytest.fixture
def server(shared: LyingServer) -> Iterator[LyingServer]:
    yield shared
    shared.honest()


_users = iter(range(1000))


@pytest.fixture
def home(server: LyingServer) -> Path:
    """The home of a new user, with the files `old` and `draft`."""
    home = server.enrol(f"user{next(_users)}", key_type="x25519")
    with connect(home) as store:
        put(store, "old", b"o")
        put(store, "draft", b"d")
    return home


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    with connect(home) as store:
        yield store


@pytest.fixture
def other(server: LyingServer, home: Path) -> Iterator[Store]:
    """Another machine of the user."""
    with connect(server.copied(home, f"{home.name}-other")) as store:
        yield store


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


def put(store: Store, name: str, content: bytes) -> None:
    store.put(io.BytesIO(content), name=name)


def contents(store: Store) -> dict[str, bytes]:
    found = {}
    for entry in store.ls():
        into = io.BytesIO()
        store.get(entry.name, into)
        found[entry.name] = into.getvalue()
    return found


BEFORE = {"old": b"o", "draft": b"d"}
AFTER = {"new": b"n", "large": LARGE, "final": b"d"}


def fill(change: sfsc.Transaction) -> None:
    change.put("new", io.BytesIO(b"n"))
    change.put("large", io.BytesIO(LARGE))
    change.delete("old")
    change.move("draft", "final")


def transact(change: sfsc.Transaction, *acts: Callable[[sfsc.Transaction], object]) -> None:
    with change:
        for act in acts:
            act(change)


def uploads(server: LyingServer, store: Store) -> int:
    """Return the number of uploads of the user that the server keeps."""
    return len(server.context.uploads._uploads.get(store.whoami().user, {}))


def test_all_changes_are_made_together(server: LyingServer, store: Store, other: Store) -> None:
    size = server.journal.size
    with store.transaction() as change:
        fill(change)
        assert contents(store) == BEFORE
        with pytest.raises(UsageError, match="made nothing"):
            _ = change.results
    assert contents(store) == contents(other) == AFTER
    shown = [(one.op, one.name, one.to, one.version, one.size) for one in change.results]
    assert shown == [
        ("put", "new", None, 1, 1),
        ("put", "large", None, 1, len(LARGE)),
        ("delete", "old", None, 1, None),
        ("move", "draft", "final", 1, 1),
    ]
    lines = [server.journal.line(seq) for seq in range(size, server.journal.size)]
    sets = [auditlog.set_of(line) for line in lines]
    first = sets.index(next(one for one in sets if one)) + size
    assert [one for one in sets if one] == [(first, 4)] * 4
    for seq, one in enumerate(change.results, first):
        assert one.receipt is not None
        assert auditlog.parse(one.receipt.line).seq == seq
        sfsc.check_proof(store.proof_of(one), vkey=store.status().log_vkey)
    assert store.rm("new").version == 1
    assert store.restore("old").version == 2
    assert len(store.history("final")) == 1


def test_a_block_that_raises_changes_nothing(server: LyingServer, store: Store) -> None:
    sent: list[Request] = []

    def intercept(_who: object, request: Request) -> Reply | None:
        sent.append(request)
        return None

    server.intercept = intercept
    there: list[int] = []
    with pytest.raises(ZeroDivisionError):
        transact(
            store.transaction(),
            fill,
            lambda _change: there.append(uploads(server, store)),
            lambda _: 1 / 0,
        )
    assert there == [1]
    assert not [one for one in sent if isinstance(one, Commit)]
    assert [one for one in sent if isinstance(one, Data)]
    assert uploads(server, store) == 0
    assert contents(store) == BEFORE


def test_an_empty_transaction_sends_nothing(server: LyingServer, store: Store) -> None:
    size = server.journal.size
    with store.transaction() as change:
        pass
    assert change.results == ()
    assert server.journal.size == size


def test_misuse_is_named(store: Store, home: Path) -> None:
    change = store.transaction()
    with pytest.raises(UsageError, match="not begun"):
        change.delete("old")
    with change:
        change.put("new", io.BytesIO(b"1"))
        twice: list[Callable[[], None]] = [
            lambda: change.put("new", io.BytesIO(b"2")),
            lambda: change.move("new", "x"),
            lambda: change.move("draft", "new"),
            lambda: change.move("old", "old"),
        ]
        for call in twice:
            with pytest.raises(UsageError, match="twice"):
                call()
        with pytest.raises(UsageError):
            change.put("../x", io.BytesIO(b""))
        with pytest.raises(UnreadableSource):
            change.put("draft", home / "missing")
        change.put("draft", io.BytesIO(b"after all"))
    with pytest.raises(UsageError, match="ended"):
        change.delete("old")
    with pytest.raises(UsageError, match="once"):
        transact(change)
    assert contents(store) == {"old": b"o", "draft": b"after all", "new": b"1"}


def test_a_store_that_was_closed_in_the_block(home: Path) -> None:
    with connect(home) as store, pytest.raises(UsageError, match="closed"):
        transact(store.transaction(), lambda change: change.delete("old"), lambda _: store.close())
    with connect(home) as store:
        assert contents(store) == BEFORE


@pytest.mark.parametrize("what", ["names", "moves", "contents"])
def test_what_does_not_fit_is_refused_before_anything_is_changed(
    server: LyingServer, store: Store, what: str
) -> None:
    size = server.journal.size

    def overfill(change: sfsc.Transaction) -> None:
        if what == "names":
            for number in range(257):
                change.delete(f"n{number}")
        elif what == "moves":
            for number in range(129):
                change.move(f"n{number}", f"m{number}")
        else:
            change.put("large", io.BytesIO(LARGE))  # it does not count
            for number in range(5):
                change.put(f"n{number}", io.BytesIO(bytes(250_000)))

    with pytest.raises(UsageError, match="do not fit"):
        transact(store.transaction(), overfill)
    assert server.journal.size == size
    assert uploads(server, store) == 0
    assert contents(store) == BEFORE


def test_256_changes(store: Store, other: Store) -> None:
    with store.transaction() as change:
        for number in range(252):
            change.put(f"n{number:03}", io.BytesIO(b"%d" % number))
        change.delete("old")
        change.put("more", io.BytesIO(LARGE))
        change.move("draft", "final")
    assert {one.version for one in change.results} == {1}
    assert len(list(other.ls())) == 254


def on_first_commit(server: LyingServer, act: Callable[[], object]) -> list[Commit]:
    """Act before the server sees the first atomic changeset; return all that it sees."""
    seen: list[Commit] = []

    def intercept(_who: Principal, request: Request) -> Reply | None:
        if isinstance(request, Commit) and request.atomic:
            seen.append(request)
            if len(seen) == 1:
                act()
        return None

    server.intercept = intercept
    return seen


RACES: dict[str, Callable[[Store], object]] = {
    "new": lambda store: put(store, "new", b"of another machine"),
    "old": lambda store: put(store, "old", b"of another machine"),
    "draft": lambda store: put(store, "draft", b"of another machine"),
    "all": lambda store: list(
        store.put_many((io.BytesIO(b"2"), name) for name in ("new", "old", "draft", "large"))
    ),
    "rotation": lambda store: store.rotate(),
}


@pytest.mark.parametrize("race", RACES)
def test_a_conflict_drafts_all_changes_again(
    server: LyingServer, store: Store, other: Store, race: str
) -> None:
    seen = on_first_commit(server, lambda: RACES[race](other))
    with store.transaction() as change:
        fill(change)
    server.honest()
    assert len(seen) >= 2
    moved = {"draft": b"of another machine", "all": b"2"}.get(race, b"d")
    assert contents(other) == contents(store) == AFTER | {"final": moved}
    versions = {one.name: one.version for one in change.results}
    assert versions["new"] == (2 if race in ("new", "all") else 1)
    assert versions["old"] == (2 if race in ("old", "all") else 1)


REFUSED: dict[str, tuple[type[SfscError], str, Callable[[sfsc.Transaction], None]]] = {
    "missing": (NotFound, "nothing", lambda change: change.delete("nothing")),
    "missing move": (NotFound, "nothing", lambda change: change.move("nothing", "x")),
    "taken": (ConflictError, "other", lambda change: change.move("third", "other")),
    "expected": (
        ConflictError,
        "other",
        lambda change: change.put("other", io.BytesIO(b""), expected=0),
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_one_refused_change_makes_none(server: LyingServer, store: Store, why: str) -> None:
    put(store, "other", b"x")
    put(store, "third", b"y")
    kind, text, bad = REFUSED[why]
    change = store.transaction()
    with pytest.raises(kind, match=text):
        transact(change, fill, bad)
    assert uploads(server, store) == 0
    assert contents(store) == BEFORE | {"other": b"x", "third": b"y"}
    with pytest.raises(UsageError):
        _ = change.results


def test_a_full_quota_makes_none(server: LyingServer) -> None:
    home = server.root.with_name("home-quota")
    sfsc.enrol(server.invite("quota", quota=400_000), home=home, no_passphrase=True)
    with connect(home) as store:
        put(store, "old", b"o")

        def first(change: sfsc.Transaction) -> None:
            change.put("first", io.BytesIO(bytes(200_000)))
            change.delete("old")

        def second(change: sfsc.Transaction) -> None:
            change.put("second", io.BytesIO(bytes(200_000)))

        with pytest.raises(QuotaExceeded, match="second"):
            transact(store.transaction(), first, second)
        assert contents(store) == {"old": b"o"}
        transact(store.transaction(), first)
        assert list(contents(store)) == ["first"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_answer_is_resolved_by_the_log(
    server: LyingServer, store: Store, other: Store, when: str
) -> None:
    dropped: list[Commit] = []

    def drop(request: Message) -> None:
        if isinstance(request, Commit) and not dropped:
            dropped.append(request)
            raise DropConnection

    def intercept(_who: object, request: Request) -> Reply | None:
        drop(request)
        return None

    if when == "before":
        server.intercept = intercept
    else:

        def tamper(_who: object, request: Message, reply: Message) -> Message:
            drop(request)
            return reply

        server.tamper = tamper
    with store.transaction() as change:
        fill(change)
    assert dropped
    assert contents(store) == contents(other) == AFTER
    assert [one.version for one in change.results] == [1, 1, 1, 1]


def test_a_set_that_another_machine_has_changed_before_the_answer(
    server: LyingServer, store: Store, other: Store
) -> None:
    """The answer is lost, and the repeated request is refused: the log has the set all the same."""
    acted: list[int] = []

    def tamper(_who: object, request: Message, reply: Message) -> Message:
        if isinstance(request, Commit) and request.atomic and not acted:
            acted.append(1)
            put(other, "new", b"since")
            raise DropConnection
        return reply

    server.tamper = tamper
    with store.transaction() as change:
        fill(change)
    server.honest()
    assert [one.receipt for one in change.results] == [None] * 4
    assert contents(store) == AFTER | {"new": b"since"}


def test_a_lost_upload_ends_the_transaction(server: LyingServer, store: Store) -> None:
    with pytest.raises(Unreachable, match="lost an upload"):
        transact(store.transaction(), fill, lambda _: server.stop(), lambda _: server.start())
    assert contents(store) == BEFORE


# --- a server that lands half of a set


def half(request: Commit) -> Commit:
    """Return the same records as a changeset that is not atomic, without the last change."""
    count = len(request.changes) - 1
    return changed(
        request,
        atomic=False,
        changes=request.changes[:count],
        wraps=tuple(one for one in request.wraps if one.change < count),
    )


@pytest.mark.parametrize("answer", ["lost", "refused", "partial", "plain", "plain, lost"])
def test_half_of_a_set_is_an_accusation(server: LyingServer, store: Store, answer: str) -> None:
    """The server logs some of the records only, or all of them without the set."""

    def lie(who: Principal, request: Request) -> Reply | None:
        if not isinstance(request, Commit) or not request.atomic:
            return None
        made = changed(request, atomic=False) if "plain" in answer else half(request)
        reply = server.ask(who, made)
        assert isinstance(reply, Committed)
        server.honest()
        if "lost" in answer:
            raise DropConnection
        refused = Error("conflict", "no")
        last = changed(reply.outcomes[0], seq=0, line=b"", error=refused)
        if answer == "partial":
            return changed(reply, outcomes=(*reply.outcomes, last))
        return reply if answer == "plain" else refused

    server.intercept = lie
    change = store.transaction()
    with pytest.raises(PartialSet) as caught:
        transact(change, fill)
    assert caught.value.exit_code == 5
    with pytest.raises(UsageError):
        _ = change.results


def test_the_same_record_of_another_machine_is_no_part_of_the_set(
    server: LyingServer, store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deletions of one second that have seen the same log are the same bytes."""
    monkeypatch.setattr("sfsc.session.commit.time", SimpleNamespace(time=lambda: 1_900_000_000))
    assert len(list(store.ls())) == len(list(other.ls())) == 2
    seen = on_first_commit(server, lambda: other.rm("old"))
    with pytest.raises(NotFound, match="old was deleted meanwhile"):
        transact(store.transaction(), fill)
    server.honest()
    deleted = FileRecord.parse(seen[0].changes[2].record)
    assert server.context.index.for_user(deleted.owner).newest(deleted.file_id) == 1
    assert contents(store) == {"draft": b"d"}
