"""What another user shared, and the server shows, cannot keep a reader from rotating their keys."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

import sfsc
from protocol.codec.values import changed
from protocol.wire.messages import Error, Message
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.rotation import WrapItem, WrapsPage
from protocol.wire.messages.sharing import Lookup
from sfsc.account import rotate
from sfsc.store import Store
from tests.lying_server import LyingServer


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


@pytest.fixture
def bob(lying_server: LyingServer) -> Path:
    """The home of a reader of ada's file, who has a file as well."""
    ada, bob = lying_server.enrol("ada"), lying_server.enrol("bob")
    with connect(ada) as store:
        store.put(io.BytesIO(b"1"), name="shared")
        store.share("shared", "bob", trust_first_use=True)
    with connect(bob) as store:
        store.put(io.BytesIO(b"2"), name="own")
    return bob


def other_wrap(change: Callable[[Wrap], Wrap]) -> Callable[[WrapItem], WrapItem]:
    def make(item: WrapItem) -> WrapItem:
        return changed(item, wrap=None if item.wrap is None else change(item.wrap))

    return make


ITEMS: dict[str, Callable[[WrapItem], WrapItem]] = {
    "a wrap that does not open": other_wrap(
        lambda wrap: changed(wrap, wrapped=wrap.wrapped[:-1] + bytes([wrap.wrapped[-1] ^ 1]))
    ),
    "a wrap of another length": other_wrap(lambda wrap: changed(wrap, wrapped=wrap.wrapped[:-9])),
    "a wrap for a key that is gone": other_wrap(lambda wrap: changed(wrap, key_id=b"k" * 32)),
    "a malformed record": lambda item: changed(
        item, content=changed(item.content, record=b"\xc1" * 40)
    ),
    "an unsigned record": lambda item: changed(
        item, content=changed(item.content, record=item.content.record[:-1] + b"\x00")
    ),
}


@pytest.mark.parametrize("name", [*ITEMS, "an owner who is not there"])
def test_a_foreign_item_that_does_not_open_stops_no_rotation(
    lying_server: LyingServer, bob: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    shown: list[str] = []

    def tamper(_who: object, request: Message, reply: Message) -> Message:
        if isinstance(reply, WrapsPage) and name in ITEMS:
            items = [ITEMS[name](one) if one.owner == "ada" else one for one in reply.items]
            shown.extend(one.owner for one in items)
            return changed(reply, items=tuple(items))
        if isinstance(request, Lookup) and request.user == "ada" and name not in ITEMS:
            shown.append("ada")
            return Error("not-found", "no such user")
        return reply

    lying_server.tamper = tamper
    left_out: list[str] = []
    with connect(bob) as store:
        assert store.rotate(skip=lambda what, _error: left_out.append(what)).generation == 2
    assert "ada" in shown
    # Each is named, once; only an identity that cannot be read may come back, so it is left out.
    named = [one for one in caplog.messages if "is given up" in one]
    named += left_out
    assert len(named) == 1
    assert "of ada version 1" in named[0]
    assert bool(left_out) == (name not in ITEMS)
    lying_server.honest()
    with connect(bob) as store:
        into = io.BytesIO()
        store.get("own", into)
        assert into.getvalue() == b"2"
        assert store.rotate(compromised=True).generation == 3


def test_a_reader_rotates_with_wraps_for_a_key_that_they_destroyed(
    lying_server: LyingServer, bob: Path
) -> None:
    """One record that drops a reader removes their wraps of 128 versions only. If they rotate while
    they are no reader, older wraps stay for a key that is destroyed."""
    from sfsc.files import sharing

    ada = bob.with_name("home-ada")
    with connect(ada) as store, pytest.MonkeyPatch.context() as patch:
        for number in range(140):
            store.put(io.BytesIO(b"%d" % number), name="shared")
        # A client that is interrupted after the first of two records.
        patch.setattr(sharing.Sharing, "_finish_unshare", lambda *_args, **_options: None)
        store.unshare("shared", "bob")
    with connect(bob) as store:
        assert store.rotate().generation == 2
    with connect(ada) as store:
        store.share("shared", "bob", trust_first_use=True)
    with connect(bob) as store:
        into = io.BytesIO()
        store.get_shared("ada", "shared", into, trust_first_use=True)
        assert into.getvalue() == b"139"
        assert store.rotate().generation == 3
        assert store.verify_rotation().left_out == 0


def test_many_foreign_items_are_named_in_a_few_lines(
    lying_server: LyingServer,
    bob: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rotate, "_NAMED", 1)
    with connect(bob.with_name("home-ada")) as store:
        for _ in range(3):
            store.put(io.BytesIO(b"3"), name="shared")
    spoilt = ITEMS["a wrap that does not open"]

    def tamper(_who: object, _request: Message, reply: Message) -> Message:
        if isinstance(reply, WrapsPage):
            items = [spoilt(one) if one.owner == "ada" else one for one in reply.items]
            return changed(reply, items=tuple(items))
        return reply

    lying_server.tamper = tamper
    with connect(bob) as store:
        assert store.rotate().generation == 2
    named = [one for one in caplog.messages if "given up" in one]
    assert len(named) == 2
    assert "3 other versions" in named[1]
