"""Model test of changesets: two machines of one account change files at once, against a dictionary.

Each step is a changeset of 1 to 256 changes, an atomic one or many that are decided alone. The
other machine may change the same files just before the server sees it, the connection may break
before or after it is made, and the server may be restarted. SFS_MODEL_STEPS is the number of steps
(`make changeset-model`), SFS_MODEL_SEED the seed.
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator
from typing import BinaryIO

import pytest

import sfsc
from protocol.log import auditlog
from protocol.wire.messages import Message, Reply, Request
from protocol.wire.messages.changes import Commit
from sfsc.errors import ConflictError, NotFound, SfscError
from sfsc.store import Store
from tests.lying_server import DropConnection, LyingServer

STEPS = int(os.environ.get("SFS_MODEL_STEPS") or 15)
SEED = os.environ.get("SFS_MODEL_SEED") or "5"
NAMES = [f"{folder}/{number:02}" for folder in "abcdef" for number in range(60)]
LARGE = 270_000
"""Bytes of a content that is uploaded before its record."""

Files = dict[str, bytes]
Act = tuple[str, str, str | bytes]
"""("put", name, content), ("delete", name, "") or ("move", name, new name)."""


class Model:
    """The files that both machines must see, and what happens to them."""

    def __init__(self, server: LyingServer, stores: tuple[Store, Store]) -> None:
        self.chance = random.Random(SEED)
        self.files: Files = {}
        self.made = {"made": 0, "refused": 0, "raced": 0, "dropped": 0, "restarted": 0, "atomic": 0}
        self._server = server
        self._stores = stores

    def content(self) -> bytes:
        size = LARGE if self.chance.random() < 0.01 else self.chance.randrange(200)
        return self.chance.randbytes(size)

    def acts(self, count: int) -> list[Act]:
        """Return changes of different names, most of which the present files allow."""
        names = self.chance.sample(NAMES, min(len(NAMES), 2 * count))
        found: list[Act] = []
        while names and len(found) < count:
            name, there = names.pop(), self.files
            kind = self.chance.choice(["put", "put", "delete", "move"])
            odd = self.chance.random() < 0.1 / count
            if kind == "put" or (name not in there and not odd):
                found.append(("put", name, self.content()))
            elif kind == "delete":
                found.append(("delete", name, ""))
            else:
                free = [one for one in names if odd or one not in there]
                if free:
                    names.remove(free[0])
                    found.append(("move", name, free[0]))
        # A move has two of at most 256 names.
        while sum(1 + (one[0] == "move") for one in found) > 256:
            found.pop()
        return found

    def step(self) -> None:
        chance = self.chance
        first, other = self._stores if chance.random() < 0.5 else self._stores[::-1]
        if chance.random() < 0.1:
            self._server.stop()
            self._server.start()
            self.made["restarted"] += 1
        count = chance.choice([1, 1, 2, 3, 8, 8, 40, 256])
        acts = self.acts(count)
        touched = [one[1] for one in acts]
        race: list[Act] = []
        if chance.random() < 0.5:
            some = chance.sample(touched, min(len(touched), 1 + chance.randrange(3)))
            race = [("put", name, b"raced " + chance.randbytes(9)) for name in some]
        drops = chance.choice(["", "", "", "before", "after"])
        atomic = chance.random() < 0.7
        if not atomic:
            acts = [one for one in acts if one[0] == "put"]
        if acts:
            self._interfere(other, race, drops)
            self._change(first, acts, race, atomic=atomic)
        self._server.honest()
        self.check()

    def _interfere(self, other: Store, race: list[Act], drops: str) -> None:
        """Let the other machine change files before the server sees the next changeset, and break
        the connection."""
        self._raced = self._dropped = False

        def intercept(_who: object, request: Request) -> Reply | None:
            if isinstance(request, Commit) and race and not self._raced:
                self._raced = True
                self._server.honest()
                list(other.put_many(_puts(race)))
                self._server.intercept, self._server.tamper = intercept, tamper
            if isinstance(request, Commit) and drops == "before" and not self._dropped:
                self._dropped = True
                raise DropConnection
            return None

        def tamper(_who: object, request: Message, reply: Message) -> Message:
            if isinstance(request, Commit) and drops == "after" and not self._dropped:
                self._dropped = True
                raise DropConnection
            return reply

        self._server.intercept, self._server.tamper = intercept, tamper

    def _change(self, store: Store, acts: list[Act], race: list[Act], *, atomic: bool) -> None:
        error = changed = None
        try:
            if atomic:
                with store.transaction() as change:
                    for act in acts:
                        _ask(change, act)
                changed = change.results
            else:
                list(store.put_many(_puts(acts)))
        except SfscError as exc:
            error = exc
        if self._raced:
            self.files = _after(self.files, race) or {}
            self.made["raced"] += 1
        self.made["dropped"] += self._dropped
        self.made["atomic"] += atomic
        after = _after(self.files, acts)
        if after is None:
            assert isinstance(error, (NotFound, ConflictError)), error
            self.made["refused"] += 1
            return
        assert error is None, error
        if self._raced and not atomic:
            # Several requests are in flight: the other machine may have come before or after one.
            for _, name, raced in race:
                into = io.BytesIO()
                store.get(name, into)
                assert into.getvalue() in (after[name], raced)
                after[name] = into.getvalue()
        self.files = after
        self.made["made"] += 1
        if changed is not None:
            assert [one.name for one in changed] == [act[1] for act in acts]

    def check(self) -> None:
        """Check that both machines see the same files, and some of the contents."""
        for store in self._stores:
            assert {entry.name for entry in store.ls()} == self.files.keys()
        some = self.chance.sample(sorted(self.files), min(4, len(self.files)))
        self.check_contents(self.chance.choice(self._stores), some)

    def check_contents(self, store: Store, names: list[str]) -> None:
        for name in names:
            into = io.BytesIO()
            store.get(name, into)
            assert into.getvalue() == self.files[name], name


def _ask(change: sfsc.Transaction, act: Act) -> None:
    kind, name, other = act
    if isinstance(other, bytes):
        change.put(name, io.BytesIO(other))
    elif kind == "delete":
        change.delete(name)
    else:
        change.move(name, other)


def _puts(acts: list[Act]) -> list[tuple[BinaryIO, str | None]]:
    """Return the puts among the changes, for `Store.put_many`."""
    return [(io.BytesIO(other), name) for _, name, other in acts if isinstance(other, bytes)]


def _after(files: Files, acts: list[Act]) -> Files | None:
    """Return the files after changes that are made together; None if one is impossible."""
    found = dict(files)
    for kind, name, other in acts:
        if isinstance(other, bytes):
            found[name] = other
            continue
        if name not in files or (kind == "move" and other in files):
            return None
        content = found.pop(name)
        if kind == "move":
            found[other] = content
    return found


@pytest.fixture
def model(lying_server: LyingServer) -> Iterator[Model]:
    home = lying_server.enrol("ada", key_type="x25519")
    copy = lying_server.copied(home, "second")
    with (
        sfsc.connect(home, auto_rotate=False) as first,
        sfsc.connect(copy, auto_rotate=False) as second,
    ):
        yield Model(lying_server, (first, second))


@pytest.mark.timeout(0 if STEPS > 15 else 200)
def test_two_machines_see_what_a_dictionary_holds(lying_server: LyingServer, model: Model) -> None:
    for _ in range(STEPS):
        model.step()
    model.check_contents(model._stores[0], sorted(model.files))
    if STEPS >= 200 or SEED == "5":
        assert all(model.made.values()), model.made
    sets, prev = auditlog.SetCheck(), auditlog.GENESIS
    for entry in auditlog.verify_chain(lying_server.journal.lines(), prev=prev):
        sets.add(entry)
    assert sets.open is None
