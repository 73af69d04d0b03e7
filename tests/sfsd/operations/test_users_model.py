"""Model test: several users send valid and invalid requests to one daemon in any order.

The model has each file's readers, versions and contents. It predicts the reply to each request. A
refused request must change nothing, and after every restart the log and the store must verify.

What a user uses of the quota is at any time what their files take on the disk. A request that is
refused for the quota says how many bytes it would add: with one byte less it is refused again, with
as many it is accepted and adds exactly these.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.records.records import (
    ACCESS,
    DELETE,
    MOVE,
    PURGE,
    PUT,
    RESTORE,
    FileRecord,
    ReaderEntry,
    ServerStatement,
)
from protocol.records.signatures import Label
from protocol.wire.messages import Done, Error, Request
from protocol.wire.messages.accounts import Usage, UsageAnswer
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.changes import Committed
from protocol.wire.messages.downloads import Bytes, OpenedVersion, Read
from protocol.wire.messages.files import List, Listing
from protocol.wire.messages.rotation import Rewrapped
from protocol.wire.messages.sharing import Inbox, InboxPage
from protocol.wire.messages.uploads import Aborted, PutAbort, PutOpen
from sfsd.log.verify import verify_log
from sfsd.settings.kinds import DAY
from sfsd.storage.fsck import Fsck
from tests.opens import open_one
from tests.sfsd.builders import (
    SERVER_KEY,
    SPKI,
    VERIFIER,
    Clock,
    Daemon,
    Person,
    Result,
    Version,
    daemon,
    file_id,
)
from tests.sfsd.operations.test_rotation import begun, finished, rewrapped, wraps
from tests.temporary import memory

NAMES = ("ada", "bob", "eve")
FILES = tuple(map(file_id, (1, 2, 3)))
QUOTA = 6000
DIGITS = 2
"""Bytes that a change may add more than before: sidecars have the number of their entry, which may
have got one more digit since."""
ADDED = re.compile(r"([0-9,]+) more bytes would exceed the quota of ([0-9,]+)")

name = st.sampled_from(NAMES)
file = st.sampled_from(FILES)
number = st.integers(1, 4)
group = st.sets(name)
size = st.integers(1, 250)


@dataclass
class Kept:
    """A version of a file; `data` is None once it is purged."""

    made: Version
    data: bytes | None
    wrapped: set[str]


@dataclass
class File:
    readers: tuple[ReaderEntry, ...] = ()
    current: int = 0
    versions: dict[int, Kept] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        return {reader[0] for reader in self.readers}


class Users(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp(dir=memory()))
        self.clock = Clock()
        self.stack = ExitStack()
        self._keep_statement()
        self.served: Daemon = self.stack.enter_context(daemon(self.root, self.clock))
        self.people = {one: self.served.person(one, quota=QUOTA) for one in NAMES}
        self.first = {one: person.first_hash for one, person in self.people.items()}
        self.files: dict[tuple[str, str], File] = {}
        self.past: list[tuple[str, Request, Version]] = []

    def _keep_statement(self) -> None:
        """Write the server statement, from which log verification takes the log's key."""
        body = ServerStatement(SERVER_KEY.public, 1, (SPKI,), VERIFIER.vkey, 1_800_000_000).encode()
        signature = SERVER_KEY.sign(Label.SERVER_STATEMENT, body)
        lines = b"\n".join(map(base64.b64encode, (body, signature)))
        (self.root / "keys").mkdir()
        (self.root / "keys" / "server.statement").write_bytes(lines)

    def teardown(self) -> None:
        if hasattr(self, "root"):
            try:
                self.stack.close()
                self._check_sound()
            finally:
                shutil.rmtree(self.root)

    def _check_sound(self) -> None:
        verify_log(self.root)
        assert list(Fsck(self.root, read_data=True).run()) == []

    def _wraps(self, owner: str, readers: set[str]) -> tuple[Wrap, ...]:
        return tuple(self.people[one].wrap() for one in sorted({owner} | readers))

    def _ask(self, who: str, request: Request, made: Version, expected: str) -> bool:
        """Send a request and check the reply: `expected` is an error code, "" for success. What is
        refused for the quota is granted with a higher quota."""
        before, person = self.served.context.journal.size, self.people[who]
        reply = person.ask(request)
        if expected:
            self._is_refused(reply, expected, before)
            return False
        if isinstance(reply, Error):
            self._is_refused(reply, "quota", before)
            reply = self._granted(person, request, reply)
        else:
            assert self.served.context.journal.size == before + 1
        assert isinstance(reply, Done), reply
        person.took(made)
        self.past.append((who, request, made))
        return True

    def _granted(self, person: Person, request: Request, refusal: Error) -> Result:
        """Repeat a request that the quota refused, with one byte too little and with enough."""
        stored, added = person.stored(), _added(refusal)
        again = 2 if "twice" in refusal.text else 1  # to encrypt again, twice the quota is granted
        assert stored + added > again * QUOTA
        enough = -(-(stored + added + DIGITS) // again)
        self.served.set_quota(person.name, enough - DIGITS - 1)
        before = self.served.context.journal.size
        self._is_refused(person.ask(request), "quota", before)
        self.served.set_quota(person.name, enough)
        reply = person.ask(request)
        assert 0 <= person.stored() - stored - added <= DIGITS
        self.served.set_quota(person.name, QUOTA)
        return reply

    def _is_refused(self, reply: Result, code: str, log_size: int) -> None:
        assert isinstance(reply, Error), reply
        assert reply.code == code, reply
        assert self.served.context.journal.size == log_size

    @rule(owner=name, file=file, size=size, large=st.booleans())
    def put(self, owner: str, file: str, size: int, *, large: bool) -> None:
        ada, found = self.people[owner], self.files.get((owner, file), File())
        data = os.urandom(size)
        if large and ada.stored() + size > QUOTA:
            assert isinstance(ada.ask(PutOpen(owner, file, size)), Error)
            return
        made = ada.version(file, data, readers=found.readers, wraps=self._wraps(owner, found.names))
        if large:
            upload = ada.upload(file, data)
            before = self.served.context.journal.size
            reply = ada.ask(made.commit(upload))
            if isinstance(reply, Error):  # there is no room for its sidecar
                self._is_refused(reply, "quota", before)
                assert ada.stored() + size + _added(reply) > QUOTA
                assert isinstance(ada.ask(PutAbort(upload)), Aborted)
                return
            ada.took(made)
            self.past.append((owner, made.commit(upload), made))
        elif not self._ask(owner, made.small(), made, ""):
            return
        self._has(owner, file, made, data, found.names | {owner})

    @rule(owner=name, file=file, size=size)
    def put_what_counts_as_another(self, owner: str, file: str, size: int) -> None:
        """Put with the content_id of a stored content, which counts once."""
        ada, found = self.people[owner], self.files.get((owner, file), File())
        kept = [
            one.made.record.content_id
            for (whose, _), other in self.files.items()
            for one in other.versions.values()
            if whose == owner and one.data is not None
        ]
        if kept:
            made = ada.version(
                file,
                os.urandom(size),
                readers=found.readers,
                wraps=self._wraps(owner, found.names),
                content_id=kept[0],
            )
            self._ask(owner, made.small(), made, "bad-request")

    def _has(self, owner: str, file: str, made: Version, data: bytes, wrapped: set[str]) -> None:
        found = self.files.setdefault((owner, file), File())
        version = made.record.version or 0
        found.versions[version] = Kept(made, data, set(wrapped))
        found.current, found.readers = made.record.current, made.record.readers

    @rule(owner=name, file=file)
    def delete(self, owner: str, file: str) -> None:
        found = self.files.get((owner, file))
        made = self.people[owner].signed(self.people[owner].record(file, DELETE, current=0))
        expected = "not-found" if found is None else "" if found.current else "conflict"
        if self._ask(owner, made.change(), made, expected) and found:
            found.current = 0

    @rule(
        owner=name,
        plan=st.lists(st.sampled_from(["", PUT, DELETE, "late"]), min_size=3, max_size=3),
        size=size,
    )
    def together(self, owner: str, plan: list[str], size: int) -> None:
        """Change several files in one request; each is accepted or refused alone, in order."""
        ada, asked = self.people[owner], list[tuple[Version, str]]()
        for file, action in zip(FILES, plan, strict=True):
            found = self.files.get((owner, file))
            if action == DELETE:
                made = ada.signed(ada.record(file, DELETE, current=0))
                refusal = "not-found" if found is None else "" if found.current else "conflict"
                asked.append((made, refusal))
            elif action == PUT or (action == "late" and found is not None):
                readers, names = (found.readers, found.names) if found else ((), set[str]())
                late = {"prev": bytes(32)} if action == "late" else {}
                given = self._wraps(owner, names)
                made = ada.version(file, os.urandom(size), readers=readers, wraps=given, **late)
                asked.append((made, "conflict" if late else "*"))
        if not asked:
            return
        before, stored = self.served.context.journal.size, ada.stored()
        request = ada.changeset(*(made for made, _ in asked))
        reply = self.served.run(self.served.dispatcher.handle(ada.who, request))
        assert isinstance(reply, Committed), reply
        codes = ["" if one.error is None else one.error.code for one in reply.outcomes]
        full = [one.error for one in reply.outcomes if one.error and one.error.code == "quota"]
        assert all(stored + _added(one) + _reserved(one) > QUOTA for one in full)
        assert [
            "*" if code in ("", "quota") and refusal == "*" else code
            for code, (_, refusal) in zip(codes, asked, strict=True)
        ] == [refusal for _, refusal in asked]
        assert self.served.context.journal.size == before + codes.count("")
        for (made, _), code in zip(asked, codes, strict=True):
            if code:
                continue
            ada.took(made)
            file = made.record.file_id
            if made.record.op == DELETE:
                self.files[owner, file].current = 0
            else:
                names = {reader[0] for reader in made.record.readers}
                self._has(owner, file, made, made.ciphertext, names | {owner})

    def _taken_over(self, ada: Person, op: str, kept: Kept, at: tuple[str, int], new: str) -> Any:  # noqa: ANN401
        old = kept.made.record
        same = ("content_id", "ciphertext_size", "segments_root", "dek_commit")
        fields = {one: getattr(old, one) for one in same}
        found = self.files[ada.name, at[0]]
        return ada.version(
            new,
            b"",
            op=op,
            from_=at,
            readers=found.readers,
            wraps=self._wraps(ada.name, found.names),
            **fields,
        )

    @rule(owner=name, file=file, version=number)
    def restore(self, owner: str, file: str, version: int) -> None:
        ada, found = self.people[owner], self.files.get((owner, file), File())
        if not found.versions:
            return
        kept = found.versions.get(version)
        source = kept or found.versions[1]
        made = self._taken_over(ada, RESTORE, source, (file, version), file)
        expected = "not-found" if kept is None or kept.data is None else ""
        if self._ask(owner, made.change(), made, expected) and kept and kept.data is not None:
            self._has(owner, file, made, kept.data, found.names | {owner})

    @rule(owner=name, old=file, new=file)
    def move(self, owner: str, old: str, new: str) -> None:
        ada = self.people[owner]
        found, target = self.files.get((owner, old), File()), self.files.get((owner, new), File())
        if not found.current or old == new:
            return
        kept = found.versions[found.current]
        made = self._taken_over(ada, MOVE, kept, (old, found.current), new)
        gone = ada.signed(ada.record(old, DELETE, current=0, to=new))
        request = ada.together(made, gone)
        dropped = target.names - found.names
        if self._ask(owner, request, made, "conflict" if target.current else ""):
            ada.took(gone)
            found.current = 0
            assert kept.data is not None
            self._has(owner, new, made, kept.data, found.names | {owner})
            for other in self.files[owner, new].versions.values():
                other.wrapped -= dropped

    @rule(owner=name, file=file, versions=st.sets(number, max_size=3))
    def purge(self, owner: str, file: str, versions: set[int]) -> None:
        ada, found = self.people[owner], self.files.get((owner, file))
        made = ada.signed(ada.record(file, PURGE, purged=tuple(sorted(versions))))
        if found is None:
            expected = "not-found"
        elif not versions or found.current in versions:
            expected = "bad-request"
        else:
            expected = "" if versions <= found.versions.keys() else "not-found"
        if self._ask(owner, made.change(), made, expected) and found:
            for version in versions:
                found.versions[version].data = None
                found.versions[version].wrapped.clear()

    @rule(owner=name, file=file, readers=group)
    def share(self, owner: str, file: str, readers: set[str]) -> None:
        ada, found = self.people[owner], self.files.get((owner, file))
        names = sorted(readers - {owner})
        made = ada.signed(
            ada.record(file, ACCESS, readers=tuple((one, self.first[one], 0) for one in names))
        )
        new = [] if found is None or not found.current else sorted(set(names) - found.names)
        given = [self.people[one].wrap() for one in new]
        request = made.share({found.current: given} if found else {})
        if self._ask(owner, request, made, "not-found" if found is None else "") and found:
            found.readers = made.record.readers
            if found.current:
                found.versions[found.current].wrapped |= set(new)
            for kept in found.versions.values():
                kept.wrapped &= {owner, *names}

    @rule(owner=name, file=file, version=number, more=st.sampled_from([0, 0, 0, 1]))
    def reencrypt(self, owner: str, file: str, version: int, more: int) -> None:
        ada, found = self.people[owner], self.files.get((owner, file))
        if found is None:
            return
        kept = found.versions.get(version)
        had = b"" if kept is None or kept.data is None else kept.data
        data = os.urandom(len(had) + more or 1)
        given = self._wraps(owner, found.names)
        made = ada.reencrypted(file, version, data, wraps=given)
        expected = ""
        if kept is None or kept.data is None:
            expected = "not-found"
        elif more:
            expected = "bad-request"
        if self._ask(owner, made.small(), made, expected):
            found.versions[version] = Kept(made, data, found.names | {owner})

    @rule(who=name, owner=name, file=file, op=st.sampled_from([PUT, DELETE, ACCESS, PURGE]))
    def meddle(self, who: str, owner: str, file: str, op: str) -> None:
        """Send a valid record for another user's file, signed by the sender."""
        if who == owner or (owner, file) not in self.files:
            return
        bob, ada = self.people[who], self.people[owner]
        before = self.served.context.journal.size
        match op:
            case "put":
                body = ada.version(file, b"x", readers=self.files[owner, file].readers)
            case "purge":
                body = ada.signed(ada.record(file, PURGE, purged=(1,)))
            case _:
                body = ada.signed(ada.record(file, op))
        self._is_refused(bob.ask(body.small()), "not-found", before)

    @precondition(lambda self: bool(getattr(self, "past", ())))
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """Repeat an earlier request: it gets the same receipt, or is refused."""
        who, request, made = data.draw(st.sampled_from(self.past))
        before = self.served.context.journal.size
        reply = self.people[who].ask(request)
        assert self.served.context.journal.size == before
        if self.people[who].heads[made.record.file_id] != made.body:
            assert isinstance(reply, Error), reply

    @rule(who=name, owner=name, file=file, version=st.integers(0, 4))
    def get(self, who: str, owner: str, file: str, version: int) -> None:
        found = self.files.get((owner, file), File())
        wanted = version or found.current
        kept = found.versions.get(wanted) if who == owner or who in found.names else None
        reply = self.people[who].ask(open_one(owner, file, version))
        if kept is None or kept.data is None:
            assert isinstance(reply, Error)
            assert reply.code == "not-found"
            return
        assert isinstance(reply, OpenedVersion), reply
        assert bytes(reply.data) == kept.data
        assert reply.view.content.record == kept.made.body
        assert {wrap.user for wrap in reply.view.wraps} == kept.wrapped & {who}
        read = self.people[who].ask(Read(reply.handle, 0, 1 << 20))
        assert read == Bytes(kept.data)

    @rule(who=name, finish=st.booleans())
    def rotate(self, who: str, *, finish: bool) -> None:
        self.clock.now += DAY  # forty rotations are allowed in thirty days
        for person in self.people.values():
            person.who = person.log_in()
        ada = self.people[who]
        begun(ada)
        while items := wraps(ada):
            for owner in {item.owner for item in items}:
                own = owner == who
                asked = [
                    rewrapped(ada, item, **({} if own else {"endorsed": ()}))
                    for item in items
                    if item.owner == owner
                ]
                reply = ada.ask(ada.rewrap(*asked))
                assert isinstance(reply, Rewrapped), reply
                assert reply.left == ()
        if finish:
            ended = finished(ada)
            assert isinstance(ada.ask(ended), Done)
            ada.first = type(ada.first).parse(ended.statement)

    @rule()
    def restart(self) -> None:
        self.stack.close()
        self._check_sound()
        self.stack = ExitStack()
        self.served = self.stack.enter_context(daemon(self.root, self.clock))
        for person in self.people.values():
            person.served = self.served
            person.who = person.log_in()

    @precondition(lambda self: hasattr(self, "people"))
    @invariant()
    def each_sees_and_uses_what_is_his(self) -> None:
        for one, person in self.people.items():
            usage = person.ask(Usage())
            assert isinstance(usage, UsageAnswer)
            own = {file: found for (owner, file), found in self.files.items() if owner == one}
            living = sum(found.current != 0 for found in own.values())
            assert (usage.used, usage.files) == (person.stored(), living)
            listing = person.ask(List("", 256, 0))
            assert isinstance(listing, Listing)
            seen = {FileRecord.parse(view.content.record).file_id for view in listing.views}
            assert seen == own.keys()
            for file, found in own.items():
                for number, kept in found.versions.items():
                    sidecar = self.served.context.index.for_user(one).sidecar(file, number).value
                    assert {wrap.user for wrap in sidecar.wraps} == kept.wrapped
            page = person.ask(Inbox("", 256, 0))
            assert isinstance(page, InboxPage)
            assert {(each.owner, each.file_id) for each in page.files} == {
                place for place, found in self.files.items() if found.current and one in found.names
            }


def _added(refusal: Error) -> int:
    """Return how many bytes a change that was refused for the quota would add."""
    found = ADDED.match(refusal.text)
    assert found is not None, refusal
    return int(found[1].replace(",", ""))


def _reserved(refusal: Error) -> int:
    """Return the bytes that were reserved by then."""
    found = re.search(r"; ([0-9,]+) are reserved", refusal.text)
    return 0 if found is None else int(found[1].replace(",", ""))


TestUsers = Users.TestCase
TestUsers.settings = settings(stateful_step_count=30, max_examples=16)
