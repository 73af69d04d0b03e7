"""Three machines of one account change one file at once: no honest server is blamed for that."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

import sfsc
from protocol.wire.messages import Message, Reply, Request
from protocol.wire.messages.changes import Commit
from protocol.wire.messages.files import Stat, Stated
from protocol.wire.messages.rotation import (
    GetBundle,
    GetWraps,
    NewStatement,
    Rewrap,
    RotateBegin,
    RotateFinish,
)
from protocol.wire.messages.sharing import Lookup
from sfsc.errors import ConflictError
from sfsc.keys.home import unlock_home
from sfsc.store import Store
from tests.lying_server import DropConnection, LyingServer


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


CALLS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put(io.BytesIO(b"of the first"), name="plan"),
    "share": lambda store: store.share("plan", "carol", trust_first_use=True),
    "unshare": lambda store: store.unshare("plan", "bob"),
    "restore": lambda store: store.restore("plan", version=1),
    "mv": lambda store: store.mv("plan", "moved"),
    "rm": lambda store: store.rm("plan"),
}


@pytest.fixture
def machines(lying_server: LyingServer) -> tuple[Path, Path, Path]:
    """The homes of three machines of a user."""
    first = lying_server.enrol("ada", key_type="x25519")
    backup = first.with_name("backup")
    with connect(first) as store:
        store.put(io.BytesIO(b"1"), name="plan")
        store.backup(backup, no_passphrase=True)
    second, third = first.with_name("second"), first.with_name("third")
    for home in (second, third):
        sfsc.restore(backup, home=home, no_passphrase=True)
    return first, second, third


def put_plan(store: Store) -> object:
    return store.put(io.BytesIO(b"of the third"), name="plan")


@pytest.mark.parametrize(
    ("call", "last", "drops"),
    [
        *((call, put_plan, drops) for call in ("put", "unshare", "restore") for drops in (0, 1)),
        ("rm", put_plan, False),
        *((call, Store.rotate, False) for call in ("share", "mv", "rm")),
        ("rm", Store.rotate, True),
    ],
)
def test_no_false_alarm(
    lying_server: LyingServer,
    machines: tuple[Path, Path, Path],
    call: str,
    last: Callable[[Store], object],
    drops: bool,
) -> None:
    """While the first machine changes a file, the second rotates the keys, and the third stores a
    version or rotates them again; the connection of the first may break in between."""
    first, second, third = machines
    met: list[str] = []

    def race(_who: object, request: Message, reply: Message) -> Message:
        meeting = (
            "head"
            if isinstance(reply, Stated) and isinstance(request, Stat)
            else "change"
            if isinstance(request, Commit)
            else ""
        )
        if meeting and meeting not in met:
            met.append(meeting)
            lying_server.tamper = lambda _who, _request, passed: passed
            with connect(second) as store:
                store.rotate()
            with connect(third) as store:
                last(store)
            lying_server.tamper = race
            if drops:
                raise DropConnection
        return reply

    with connect(first) as store:
        if "share" in call:
            user = "bob" if call == "unshare" else "carol"
            lying_server.enrol(user, key_type="x25519")
            if call == "unshare":
                store.share("plan", user, trust_first_use=True)
        store.stat("plan")
        lying_server.tamper = race
        done = CALLS[call](store)
    assert "change" in met
    lying_server.honest()
    with connect(second) as store:
        seen = [entry.name for entry in store.ls()]
        assert seen == {"rm": [], "mv": ["moved"]}.get(call, ["plan"])
        if call == "unshare":
            assert store.readers("plan") == []
    if isinstance(done, sfsc.Entry):
        assert done.name == ("moved" if call == "mv" else "plan")
        assert done.size > 0


MEETINGS = (NewStatement, RotateBegin, GetWraps, Rewrap, RotateFinish, GetBundle, Lookup)


@pytest.mark.parametrize(
    ("when", "compromised", "drops"),
    [
        ("before", False, False),
        ("after", False, True),
        ("before", True, True),
        ("after", True, False),
    ],
)
def test_two_rotations_meet(
    lying_server: LyingServer,
    machines: tuple[Path, Path, Path],
    when: str,
    compromised: bool,
    drops: bool,
) -> None:
    """Another machine rotates the keys at each step of a rotation. This one goes on with its keys.
    If contents are to be encrypted again and have to be so under keys of its own, it says that
    another device was first, and succeeds when it is run again."""
    first, second, _ = machines
    met: list[type[Message]] = []
    drops_now: list[bool] = []

    def meet(request: Message) -> None:
        if type(request) in MEETINGS and type(request) not in met:
            met.append(type(request))
            lying_server.honest()
            with connect(second) as store:
                store.rotate()
            drops_now.append(drops)
            race()

    def intercept(_who: object, request: Request) -> Reply | None:
        meet(request)
        if drops_now and drops_now.pop():
            raise DropConnection
        return None

    def tamper(_who: object, request: Message, reply: Message) -> Message:
        meet(request)
        if drops_now and drops_now.pop():
            raise DropConnection
        return reply

    def race() -> None:
        if when == "before":
            lying_server.intercept = intercept
        else:
            lying_server.tamper = tamper

    with connect(first) as store:
        race()
        first_time = (
            pytest.raises(ConflictError, match="another device has just rotated the keys")
            if compromised and when == "before"
            else nullcontext()
        )
        with first_time:
            done = store.rotate(compromised=compromised)
        if compromised:
            done = store.rotate(compromised=True)
        assert {RotateBegin, GetWraps} <= {*met}
        lying_server.honest()
        assert done.left_out == 0
        assert store.verify_rotation().files == 1
    with connect(second) as store:
        into = io.BytesIO()
        store.get("plan", into)
        assert into.getvalue() == b"1"


def test_another_process_of_a_machine_drops_the_old_keys_first(
    lying_server: LyingServer, machines: tuple[Path, Path, Path]
) -> None:
    """Both read the account's bundle back after the rotation has finished."""
    first, met = machines[0], list[Message]()

    def finish(_who: object, request: Message, reply: Message) -> Message:
        if isinstance(request, RotateFinish):
            met.append(request)
        if met and isinstance(request, GetBundle):
            lying_server.honest()
            with connect(first):
                met.append(request)
        return reply

    lying_server.tamper = finish
    with connect(first) as store:
        assert store.rotate().generation == 2
        assert [type(one) for one in met] == [RotateFinish, GetBundle]
        assert len(unlock_home(first, None).contents.generations) == 1
        store.verify_rotation()
