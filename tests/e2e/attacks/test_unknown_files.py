"""A machine that has the account's keys and has not seen a file yet: only the log tells it that the
file exists, and who may read it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

import sfsc
from protocol.codec.values import changed
from protocol.wire.messages import Error, Message, Reply
from protocol.wire.messages.downloads import Open, Opened
from sfsc.errors import IntegrityError, NotFound
from sfsc.store import Store
from tests.changes import first_change, is_small
from tests.lying_server import LyingServer
from tests.opens import with_each


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


GETS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("will", io.BytesIO()),
    "open": lambda store: store.open("will"),
}


@pytest.mark.parametrize("get", GETS)
def test_a_file_of_the_log_is_never_missing(lying_server: LyingServer, get: str) -> None:
    ada = lying_server.enrol("ada", key_type="x25519")
    with connect(ada) as store:
        store.put(io.BytesIO(b"1"), name="will")

    def hide(_who: object, request: Message) -> Reply | None:
        return Error("not-found", "no such file") if isinstance(request, Open) else None

    lying_server.intercept = hide
    with connect(lying_server.copied(ada, "fresh")) as store:
        with pytest.raises(IntegrityError) as caught:
            GETS[get](store)
        assert caught.value.exit_code == 5
        with pytest.raises(NotFound):
            store.get("never stored", io.BytesIO())


def test_a_file_is_not_deleted_by_a_deletion_that_was_undone(lying_server: LyingServer) -> None:
    ada = lying_server.enrol("ada", key_type="x25519")
    shown: list[Opened] = []

    def keep(_who: object, _request: Message, reply: Message) -> Message:
        if isinstance(reply, Opened):
            shown.append(reply)
        return reply

    lying_server.tamper = keep
    with connect(ada) as store:
        store.put(io.BytesIO(b"1"), name="will")
        store.rm("will")
        store.get("will", io.BytesIO(), version=1)
        store.restore("will")

    def lie(_who: object, request: Message) -> Reply | None:
        if not isinstance(request, Open):
            return None
        old = shown[0]
        size = lying_server.journal.size
        return with_each(old, lambda one: changed(one, view=changed(one.view, at=size)))

    lying_server.intercept = lie
    with connect(lying_server.copied(ada, "fresh")) as store, pytest.raises(IntegrityError):
        store.get("will", io.BytesIO())


def test_a_reader_who_was_removed_from_one_file_of_a_folder_gets_no_key_of_it(
    lying_server: LyingServer,
) -> None:
    """The server could keep a refused content, with its key wrapped for that reader."""
    ada = lying_server.enrol("ada", key_type="x25519")
    lying_server.enrol("bob", key_type="x25519")
    with connect(ada) as store:
        store.put(io.BytesIO(b"for bob"), name="team/plan")
        list(store.share_tree("team", "bob", trust_first_use=True))
        store.unshare("team/plan", "bob")
    wrapped: list[set[str]] = []

    def watch(_who: object, request: Message) -> Reply | None:
        if is_small(request):
            wrapped.append({wrap.user for wrap in first_change(request).wraps})
        return None

    lying_server.intercept = watch
    with connect(lying_server.copied(ada, "fresh")) as store:
        store.put(io.BytesIO(b"not for bob"), name="team/plan")
        store.put(io.BytesIO(b"for bob"), name="team/new")
    assert wrapped == [{"ada"}, {"ada", "bob"}]
