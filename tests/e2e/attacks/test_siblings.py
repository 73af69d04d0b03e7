"""A changeset of which the server stores a part: the rest is validly signed, and worth nothing."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import pytest

from protocol.codec.merkle import leaf_hash
from protocol.codec.values import changed
from protocol.records.records import FileRecord, record_hash
from protocol.wire.messages import Error, FileView, Message, Reply, Request
from protocol.wire.messages.changes import Commit, Committed, Outcome
from protocol.wire.messages.downloads import OpenedVersion
from protocol.wire.messages.files import List, Listing, Stat, Stated
from protocol.wire.messages.rotation import WrapItem, WrapsPage
from sfsc.errors import IntegrityError, SfscError
from sfsd.rules.context import Principal
from tests.changes import SentChange, sent_change, without_change
from tests.e2e.attacks.test_contents import connect, content_of
from tests.lying_server import LyingServer
from tests.opens import opened_as, opens

SIBLINGS = ("first", "offer", "last")
"""Names that are put together; the server refuses the one in the middle."""
NEWER = b"price: 1,000"


def put_siblings(server: LyingServer, home: Path) -> SentChange:
    """Put the siblings, all but one of which the server stores. Return that one."""
    kept: list[SentChange] = []

    def refuse_one(who: Principal, request: Request) -> Reply | None:
        if not isinstance(request, Commit) or len(request.changes) < len(SIBLINGS):
            return None
        number = SIBLINGS.index("offer")
        kept.append(sent_change(request, number))
        reply = server.ask(who, without_change(request, number))
        assert isinstance(reply, Committed)
        assert all(one.error is None for one in reply.outcomes)
        refused = Outcome(0, b"", Error("unavailable", "the disk is full"))
        outcomes = (*reply.outcomes[:number], refused, *reply.outcomes[number:])
        return changed(reply, outcomes=outcomes)

    server.intercept = refuse_one
    with connect(home) as store, pytest.raises(SfscError):
        list(store.put_many((io.BytesIO(b"price: 1"), name) for name in SIBLINGS))
    server.honest()
    (one,) = kept
    return one


@pytest.fixture
def ada(lying_server: LyingServer) -> Path:
    return lying_server.enrol("ada", key_type="x25519")


def test_the_siblings_of_a_refused_change_are_stored(lying_server: LyingServer, ada: Path) -> None:
    put_siblings(lying_server, ada)
    with connect(ada) as store:
        assert [entry.name for entry in store.ls()] == ["first", "last"]
        assert (content_of(store, "first"), content_of(store, "last")) == (b"price: 1",) * 2


MACHINES = ["known", "fresh"]
STORED_AGAIN = [False, True]


@pytest.mark.parametrize("again", STORED_AGAIN, ids=["never stored", "stored again"])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("use", ["get", "stat", "ls"])
def test_a_refused_sibling_is_no_version(
    lying_server: LyingServer, ada: Path, machine: str, use: str, *, again: bool
) -> None:
    """Neither of a file that was never stored, nor in the place of what was stored instead."""
    lost = put_siblings(lying_server, ada)
    if again:
        with connect(ada) as store:
            store.put(io.BytesIO(NEWER), name="offer")
    home = ada if machine == "known" else lying_server.copied(ada, "fresh")
    size = lying_server.journal.size
    view = FileView(size - 1, size, lost.signed, None, lost.metadata, lost.wraps)
    file_id = FileRecord.parse(lost.record).file_id

    def lie(_who: object, request: Message, reply: Message) -> Message:
        now = changed(view, at=lying_server.journal.size)
        if opens(request, file_id):
            data = lost.ciphertext
            return opened_as(OpenedVersion(bytes(16), now, leaf_hash(data), data))
        if isinstance(request, Stat) and request.file_id == file_id:
            return Stated(now)
        if isinstance(request, List) and isinstance(reply, Listing):
            others = [one for one in reply.views if one.content.record != lost.record]
            return changed(reply, views=(*others, now))
        return reply

    lying_server.tamper = lie
    with connect(home) as store:
        if use == "ls":
            sizes: dict[str, int] = {}
            with suppress(IntegrityError):  # unless the server is not asked, or not believed
                sizes = {entry.name: entry.size for entry in store.ls()}
            assert sizes.get("offer") in (None, len(NEWER) if again else None)
        else:
            with pytest.raises(IntegrityError) as caught:
                content_of(store, "offer") if use == "get" else store.stat("offer")
            assert caught.value.exit_code == 5


def test_a_refused_sibling_is_not_endorsed(lying_server: LyingServer, ada: Path) -> None:
    """An endorsement would make it valid permanently."""
    lost = put_siblings(lying_server, ada)
    shown: list[WrapItem] = []

    def lie(_who: object, _request: Message, reply: Message) -> Message:
        if not isinstance(reply, WrapsPage):
            return reply
        file_id = FileRecord.parse(lost.record).file_id
        item = WrapItem("ada", file_id, 1, lost.signed, None, lost.wraps[0])
        shown.append(item)
        items = sorted((*reply.items, item), key=lambda one: (one.owner, one.file_id))
        return changed(reply, items=tuple(items))

    lying_server.tamper = lie
    requests: list[Request] = []
    lying_server.intercept = lambda _who, request: requests.append(request)
    with connect(ada) as store, pytest.raises(IntegrityError):
        store.rotate()
    assert shown
    endorsed = {
        digest
        for request in requests
        for item in getattr(request, "items", ())
        for digest in getattr(item, "endorsed", ())
    }
    assert record_hash(lost.record) not in endorsed
