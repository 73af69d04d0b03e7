"""Three machines of one account change one file at once: no honest server is blamed for that."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

import sfsc
from protocol.wire.messages import Message
from protocol.wire.messages.files import Record, Stat, Stated
from protocol.wire.messages.sharing import SetReaders
from protocol.wire.messages.uploads import PutSmall
from sfsc.store import Store
from tests.lying_server import DropConnection, LyingServer


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


CALLS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put(io.BytesIO(b"of the first"), name="plan"),
    "unshare": lambda store: store.unshare("plan", "bob"),
    "restore": lambda store: store.restore("plan", version=1),
    "rm": lambda store: store.rm("plan"),
}


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_no_false_alarm(lying_server: LyingServer, call: str, *, drops: bool) -> None:
    """While the first machine changes a file, the second rotates the keys, and the third stores a
    version; the connection of the first may break in between.

    A deletion is raced once only: it reads the deleted version afterwards, for which two rotations
    within one request leave no key.
    """
    first = lying_server.enrol("ada", key_type="x25519")
    lying_server.enrol("bob", key_type="x25519")
    backup = first.with_name("backup")
    with connect(first) as store:
        store.put(io.BytesIO(b"1"), name="plan")
        store.share("plan", "bob", trust_first_use=True)
        store.backup(backup, no_passphrase=True)
    second, third = first.with_name("second"), first.with_name("third")
    for home in (second, third):
        sfsc.restore(backup, home=home, no_passphrase=True)
    met: list[str] = []

    def race(_who: object, request: Message, reply: Message) -> Message:
        meeting = (
            "head"
            if isinstance(reply, Stated) and isinstance(request, Stat)
            else "change"
            if isinstance(request, PutSmall | Record | SetReaders)
            else ""
        )
        if meeting and meeting not in met and not (met and call == "rm"):
            met.append(meeting)
            lying_server.tamper = lambda _who, _request, passed: passed
            with connect(second) as store:
                store.rotate()
            with connect(third) as store:
                store.put(io.BytesIO(b"of the third"), name="plan")
            lying_server.tamper = race
            if drops:
                raise DropConnection
        return reply

    with connect(first) as store:
        store.stat("plan")
        lying_server.tamper = race
        CALLS[call](store)
    assert met
    lying_server.honest()
    with connect(second) as store:
        seen = [entry.name for entry in store.ls()]
        assert seen == ([] if call == "rm" else ["plan"])
        if call == "unshare":
            assert store.readers("plan") == []
