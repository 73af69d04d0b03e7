"""The server shows a genuine content that is not the one that the file's newest record names."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

import sfsc
from protocol.codec import merkle
from protocol.codec.values import changed
from protocol.records.records import FileRecord
from protocol.wire.messages import Error, Message, Reply
from protocol.wire.messages.base import FileView, SignedRecord
from protocol.wire.messages.changes import Commit
from protocol.wire.messages.downloads import Open, Opened, OpenedVersion
from protocol.wire.messages.files import Stat, Stated
from sfsc.errors import IntegrityError, SfscError
from sfsc.store import Store
from tests.changes import SentChange, first_change, is_small
from tests.lying_server import LyingServer
from tests.opens import only_result, opened_as


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


def content_of(store: Store, name: str) -> bytes:
    into = io.BytesIO()
    store.get(name, into)
    return into.getvalue()


class Replies:
    """Hook that keeps the last reply of each type, and changes none."""

    def __init__(self, server: LyingServer) -> None:
        self._last: dict[type[Message], Any] = {}
        server.tamper = self._keep

    def _keep(self, _who: object, _request: Message, reply: Message) -> Message:
        self._last[type(reply)] = reply
        return reply

    def opened(self) -> OpenedVersion:
        one = only_result(self._last[Opened])
        assert isinstance(one, OpenedVersion)
        return one

    def head(self) -> SignedRecord:
        """Return the last record of the file asked for last."""
        view: FileView = self._last[Stated].view
        return view.head or view.content


def show(server: LyingServer, old: OpenedVersion, head: SignedRecord) -> list[Message]:
    """Let the server show the content of `old` under `head`. Return the list to which it adds all
    changes that the client then signs; none of them is processed."""
    signed: list[Message] = []
    view = changed(old.view, head=head)

    def lie(_who: object, request: Message) -> Reply | None:
        if isinstance(request, Open):
            return opened_as(changed(old, view=view))
        if isinstance(request, Stat):
            return Stated(view)
        if isinstance(request, Commit):
            signed.append(request)
            return Error("unavailable", "nothing was done")
        return None

    server.intercept = lie
    return signed


def test_a_content_from_before_it_was_encrypted_again_is_refused(
    lying_server: LyingServer,
) -> None:
    """The reader who was dropped has its key; the machine knows the newest record."""
    for user in ("ada", "bob", "carol", "dave"):
        lying_server.enrol(user, lying_server.root.with_name(user), key_type="x25519")
    ada, carol = (lying_server.root.with_name(user) for user in ("ada", "carol"))
    replies = Replies(lying_server)
    with connect(ada) as store:
        store.put(io.BytesIO(b"bob has its key"), name="plan")
        for user in ("bob", "carol"):
            store.share("plan", user, trust_first_use=True)
        assert content_of(store, "plan") == b"bob has its key"
        old = replies.opened()
        with connect(carol) as reader:
            reader.get_shared("ada", "plan", io.BytesIO(), trust_first_use=True)
            carols = replies.opened()
        store.unshare("plan", "bob", reencrypt=True)
        store.share("plan", "dave", trust_first_use=True)  # a record after that of the new content
        store.stat("plan")
        head = replies.head()
    lying_server.honest()
    for view in (old, carols):
        assert view.view.content.record != head.record
    signed = show(lying_server, old, head)
    with connect(ada) as store:
        with pytest.raises(IntegrityError):
            content_of(store, "plan")
        # Whatever is moved or restored from it would be signed anew, for the key that bob has.
        with pytest.raises(IntegrityError):
            store.mv("plan", "moved")
    assert signed == []
    show(lying_server, carols, head)
    with connect(carol) as reader, pytest.raises(IntegrityError):
        reader.get_shared("ada", "plan", io.BytesIO())
    lying_server.honest()
    with connect(ada) as store:
        assert content_of(store, "plan") == b"bob has its key"


def test_a_content_that_was_once_refused_is_refused_for_ever(lying_server: LyingServer) -> None:
    """It is signed, and has the number of the version that was stored instead."""
    ada = lying_server.enrol("ada", key_type="x25519")
    for user in ("bob", "carol"):
        lying_server.enrol(user, key_type="x25519")
    with connect(ada) as store:
        store.put(io.BytesIO(b"price: 100"), name="offer")
    kept: list[SentChange] = []

    def refuse(_who: object, request: Message) -> Reply | None:
        if is_small(request):
            kept.append(first_change(request))
            return Error("unavailable", "the disk is full; nothing was done")
        return None

    with connect(lying_server.copied(ada, "second")) as store:
        assert store.stat("offer").version == 1
        lying_server.intercept = refuse
        with pytest.raises(SfscError):
            store.put(io.BytesIO(b"price: 1"), name="offer")
    lying_server.honest()
    assert FileRecord.parse(kept[-1].record).version == 2
    replies = Replies(lying_server)
    with connect(ada) as store:
        store.put(io.BytesIO(b"price: 200"), name="offer")
        for user in ("bob", "carol"):  # two records after it, so that `prev` does not tell
            store.share("offer", user, trust_first_use=True)
        store.stat("offer")
        head = replies.head()
        assert content_of(store, "offer") == b"price: 200"
        true = replies.opened()
    lost = kept[-1]
    view = FileView(
        true.view.seq,
        true.view.at,
        lost.signed,
        None,
        lost.metadata,
        lost.wraps,
    )
    data = bytes(lost.ciphertext)
    show(lying_server, OpenedVersion(true.handle, view, merkle.leaf_hash(data), data), head)
    with connect(ada) as store, pytest.raises(IntegrityError):
        content_of(store, "offer")
