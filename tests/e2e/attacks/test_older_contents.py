"""A server shows a genuine content in the place of an older version, which no head names."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import sfsc
from protocol.codec.merkle import leaf_hash
from protocol.codec.values import changed
from protocol.records.records import FileRecord
from protocol.wire.messages import Error, FileView, Message, Reply, Request
from protocol.wire.messages.downloads import Open, OpenedVersion
from protocol.wire.messages.files import History, HistoryPage, Stat, Stated
from sfsc.errors import BadRecord, IntegrityError, Rollback, SfscError
from sfsc.store import Store
from sfsd.rules.context import Principal
from sfsd.storage.json_files import Sidecar
from sfsd.storage.paths import VersionPaths
from tests.changes import SentChange, first_change, is_small
from tests.lying_server import LyingServer
from tests.opens import opened_as, opens


class Kept:
    """What the server has kept of a version: its sidecar and its ciphertext."""

    def __init__(self, server: LyingServer, owner: str, file_id: str, version: int) -> None:
        paths = VersionPaths.for_version(owner, file_id, version)
        self.server, self.owner, self.file_id, self.version = server, owner, file_id, version
        self.sidecar: Sidecar = server.context.documents.sidecar(paths.sidecar).value
        self.ciphertext = (server.root / "store" / "users" / paths.ciphertext).read_bytes()

    def intercept(self, who: Principal, request: Request) -> Reply | None:
        """Show this version, under the true and newest head, in place of the present one."""
        if not isinstance(request, Open | Stat):
            return None
        target = request.targets[0] if isinstance(request, Open) else request
        if target.file_id != self.file_id or target.version not in (0, self.version):
            return None
        files = self.server.context.index.for_user(self.owner)
        newest = files.sidecar(self.file_id, files.newest(self.file_id)).value
        view = changed(self.sidecar, head=newest.last).view(
            who.user, newest.last, self.server.context.journal.size
        )
        if isinstance(request, Stat):
            return Stated(view)
        leaves = self.sidecar.leaves or b""
        return opened_as(OpenedVersion(bytes(16), view, leaves, self.ciphertext))


@contextmanager
def connected(home: Path) -> Iterator[Store]:
    with sfsc.connect(home, auto_rotate=False) as store:
        yield store


def content(store: Store, name: str, version: int | None = None) -> bytes:
    into = io.BytesIO()
    store.get(name, into, version=version)
    return into.getvalue()


def put(store: Store, name: str, data: bytes) -> None:
    store.put(io.BytesIO(data), name=name)


@pytest.fixture
def home(lying_server: LyingServer) -> Path:
    return lying_server.enrol("ada")


def refused(call: object, *errors: type[IntegrityError]) -> None:
    assert callable(call)
    with pytest.raises(errors or (Rollback,)) as caught:
        call()
    assert caught.value.exit_code == 5


def test_a_refused_content_is_refused_again(lying_server: LyingServer, home: Path) -> None:
    """A put that failed is validly signed, and has the number of the one that was accepted."""
    with connected(home) as store:
        put(store, "offer", b"price: 100")
    second = lying_server.copied(home, "second", state=True)
    kept: list[SentChange] = []

    def refuse(_who: Principal, request: Request) -> Reply | None:
        if is_small(request):
            kept.append(first_change(request))
            return Error("unavailable", "the disk is full")
        return None

    lying_server.intercept = refuse
    with connected(second) as store, pytest.raises(SfscError):
        put(store, "offer", b"price: 1")
    lying_server.honest()
    lying_server.enrol("bob")
    with connected(home) as store:
        put(store, "offer", b"price: 200")
        store.share("offer", "bob", trust_first_use=True)
        file_id = store._session.account.file_id("offer")
        put(store, "offer", b"price: 300")
    (lost,) = kept
    assert FileRecord.parse(lost.record).version == 2
    data = bytes(lost.ciphertext)

    def lie(who: Principal, request: Request) -> Reply | None:
        if not opens(request, file_id, 2):
            return None
        files = lying_server.context.index.for_user("ada")
        newest = files.sidecar(file_id, files.newest(file_id)).value
        wraps = tuple(one for one in lost.wraps if one.user == who.user)
        view = FileView(
            newest.seq,
            lying_server.context.journal.size,
            lost.signed,
            newest.last,
            lost.metadata,
            wraps,
        )
        return opened_as(OpenedVersion(bytes(16), view, leaf_hash(data), data))

    lying_server.intercept = lie
    with connected(home) as store:
        refused(lambda: content(store, "offer", 2))
    lying_server.honest()
    with connected(home) as store:
        assert content(store, "offer", 2) == b"price: 200"
        assert content(store, "offer", 1) == b"price: 100"


@pytest.mark.parametrize("reader", [False, True])
def test_an_older_version_is_confirmed_by_the_files_records(
    lying_server: LyingServer, home: Path, *, reader: bool
) -> None:
    """Its content was encrypted again; the server kept the one before."""
    bob = lying_server.enrol("bob")
    with connected(home) as store:
        put(store, "log", b"one")
        store.share("log", "bob", trust_first_use=True)
        file_id = store._session.account.file_id("log")
        old = Kept(lying_server, "ada", file_id, 1)
        store.unshare("log", "bob", reencrypt=True)
        store.share("log", "bob", trust_first_use=True)
        put(store, "log", b"two")
    machine = bob if reader else home

    def fetched(store: Store) -> bytes:
        if not reader:
            return content(store, "log", 1)
        into = io.BytesIO()
        store.get_shared("ada", "log", into, version=1, trust_first_use=True)
        return into.getvalue()

    with connected(machine) as store:
        assert fetched(store) == b"one"
    lying_server.intercept = old.intercept
    with connected(machine) as store:
        refused(lambda: fetched(store))
    # Nor does a history help that is cut, or does not lead to the head.
    for cut in (1, 2):

        def shortened(_who: object, request: Message, reply: Message, keep: int = cut) -> Message:
            if isinstance(request, History) and isinstance(reply, HistoryPage):
                return HistoryPage(reply.records[:keep] if keep == 1 else reply.records[1:], 0)
            return reply

        lying_server.tamper = shortened
        with connected(machine) as store:
            refused(lambda: fetched(store), Rollback, BadRecord)


def test_a_restore_takes_the_deleted_files_last_content(
    lying_server: LyingServer, home: Path
) -> None:
    with connected(home) as store:
        put(store, "a", b"old")
        file_id = store._session.account.file_id("a")
        old = Kept(lying_server, "ada", file_id, 1)
        put(store, "a", b"new")
        store.rm("a")
    lying_server.intercept = old.intercept
    with connected(lying_server.copied(home, "fresh")) as store:
        refused(lambda: store.restore("a"))
    lying_server.honest()
    with connected(home) as store:
        store.restore("a")
        assert content(store, "a") == b"new"
        store.restore("a", version=1)
        assert content(store, "a") == b"old"
