"""A server that lies inside one consistent tree: every checkpoint that it signs is of one log, and
every proof holds. It hides, repeats or contradicts entries of one account."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

import sfsc
from protocol.codec.values import changed
from protocol.log import auditlog
from protocol.log.auditlog import EntryDraft
from protocol.records.records import FileRecord
from protocol.wire.messages import Done, Error, FileView, Message, Receipt, Reply, Request
from protocol.wire.messages.base import SignedRecord
from protocol.wire.messages.changes import Commit, Committed
from protocol.wire.messages.downloads import Open, Opened
from protocol.wire.messages.files import History, HistoryPage, List, Listing, Stat, Stated
from protocol.wire.messages.log import LogLeavesPage, LogLines, LogLinesPage
from protocol.wire.messages.rotation import (
    GetBundle,
    NewStatement,
    Rewrap,
    RotateBegin,
    SealedBundle,
)
from protocol.wire.messages.session import Notice, Session
from protocol.wire.messages.sharing import Identity
from protocol.wire.messages.uploads import PutOpen
from sfsc.errors import IntegrityError, Rollback, SfscError
from sfsc.keys.home import unlock_home
from sfsc.store import Store
from sfsc.transfer.download import Got
from sfsd.rules.context import Access, Principal
from sfsd.rules.users import Chain, User, UserRegistry
from tests.changes import SentChange, first_change, is_small
from tests.lying_server import DropConnection, LyingServer
from tests.opens import with_each

CHANGES = (PutOpen, Commit, NewStatement, RotateBegin, Rewrap)
"""Requests that carry a signature of the user, or keys wrapped for somebody."""


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


def put(home: Path, name: str, content: bytes) -> int:
    with connect(home) as store:
        return store.put(io.BytesIO(content), name=name).version


def attempt_put(home: Path) -> None:
    put(home, "attempt", b"a secret that was never sent")


@dataclass
class Watched:
    """Hook that lists the changes which clients send, and passes all requests on."""

    server: LyingServer
    sent: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server.intercept = self.intercept

    def intercept(self, _who: object, request: Message) -> Reply | None:
        if isinstance(request, CHANGES):
            self.sent.append(request)
        return None


# --- a rotation is hidden


class HiddenRotation(Watched):
    """The server goes on as if the statements of `user` after the first `n` had never been."""

    def __init__(
        self, server: LyingServer, user: str, n: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        super().__init__(server)
        self.user, self.n = user, n
        chain, find = UserRegistry.chain, UserRegistry.find
        found = server.context.users.chain(user)
        assert found is not None
        prefix = Chain(user, found[0].links[:n])

        def short_chain(users: UserRegistry, name: str) -> tuple[Chain, bytes] | None:
            real = chain(users, name)
            return (prefix, real[1]) if real is not None and name == user else real

        def short_find(users: UserRegistry, name: str) -> User | None:
            real = find(users, name)
            if real is None or name != user:
                return real
            return User(name, real.account, prefix, real.expect)

        monkeypatch.setattr(UserRegistry, "chain", short_chain)
        monkeypatch.setattr(UserRegistry, "find", short_find)
        self.bundle = GetBundle(n)

    def intercept(self, who: object, request: Message) -> Reply | None:
        if isinstance(request, GetBundle) and request.n == 0 and isinstance(who, Principal):
            reader = Principal(who.user, 0, Access.RECOVERY, who.session, 0, who.address)
            return self.server.ask(reader, self.bundle)
        return super().intercept(who, request)


def drop_lines(_request: LogLines, reply: LogLinesPage) -> Message:
    return changed(reply, lines=())


def refuse_lines(_request: LogLines, _reply: LogLinesPage) -> Message:
    return Error("not-found", "no such line")


def other_lines(_request: LogLines, reply: LogLinesPage) -> Message:
    lines = [changed(one, data=reply.lines[0].data) for one in reply.lines]
    return changed(reply, lines=tuple(lines))


LINES: dict[str, Callable[[LogLines, LogLinesPage], Message]] = {
    "shown": lambda _request, reply: reply,
    "left out": drop_lines,
    "refused": refuse_lines,
    "exchanged": other_lines,
}


@pytest.mark.parametrize("lines", LINES)
@pytest.mark.parametrize("machine", ["known", "restored", "recovered"])
def test_a_hidden_rotation_is_found_before_anything_is_signed(
    lying_server: LyingServer,
    monkeypatch: pytest.MonkeyPatch,
    lines: str,
    machine: str,
) -> None:
    """Otherwise that machine would go on encrypting for stolen keys."""
    ada = lying_server.enrol("ada")
    second, backup = ada.with_name("second"), ada.with_name("backup")
    code = sfsc.new_recovery_code()
    with connect(ada) as store:
        store.put(io.BytesIO(b"1"), name="a")
        store.set_recovery(code)
        link = store.link
        store.backup(backup, no_passphrase=True)
    if machine == "known":
        sfsc.restore(backup, home=second, no_passphrase=True)
        put(second, "b", b"2")
    n = len(unlock_home(ada, None).contents.statements)
    if machine == "known":
        n = len(unlock_home(second, None).contents.statements)
    with connect(ada) as store:
        store.rotate(compromised=True)
    watched = HiddenRotation(lying_server, "ada", n, monkeypatch)

    def tamper(_who: object, request: Message, reply: Message) -> Message:
        if isinstance(reply, LogLinesPage) and isinstance(request, LogLines):
            return LINES[lines](request, reply)
        return reply

    lying_server.tamper = tamper

    def join_and_put() -> None:
        if machine == "restored":
            sfsc.restore(backup, home=second, no_passphrase=True)
        if machine == "recovered":
            sfsc.recover(link, code, home=second, no_passphrase=True)
        attempt_put(second)

    with pytest.raises(SfscError) as caught:
        join_and_put()
    if lines in ("shown", "exchanged"):
        assert isinstance(caught.value, IntegrityError)
        assert caught.value.exit_code == 5
    assert watched.sent == []
    if (second / "keyring").exists():
        with pytest.raises(SfscError):
            attempt_put(second)
    assert watched.sent == []


def hidden_rotation_of_a_reader(
    server: LyingServer, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, HiddenRotation]:
    """Hide that bob, who reads ada's plan, has rotated. Return ada's home."""
    ada, bob = server.enrol("ada"), server.enrol("bob")
    with connect(ada) as store:
        store.put(io.BytesIO(b"1"), name="plan")
        store.share("plan", "bob", trust_first_use=True)
    with connect(bob) as store:
        store.rotate(compromised=True)
    return ada, HiddenRotation(server, "bob", 1, monkeypatch)


def test_a_hidden_rotation_of_a_reader_is_found_before_anything_is_wrapped(
    lying_server: LyingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, watched = hidden_rotation_of_a_reader(lying_server, monkeypatch)
    with connect(ada) as store, pytest.raises(IntegrityError):
        store.put(io.BytesIO(b"2"), name="plan")
    assert watched.sent == []


# --- entries are numbered twice, or not shown


@pytest.mark.parametrize("step", [-1, -3, 1, 2, 200])
def test_a_number_that_is_repeated_or_skipped_is_found_at_the_login(
    lying_server: LyingServer, step: int
) -> None:
    """The server hides entries of one machine from another by giving their numbers twice."""
    ada = lying_server.enrol("ada")
    put(ada, "a", b"1")
    known = lying_server.copied(ada, "known", state=True)
    put(ada, "a", b"2")
    put(ada, "a", b"3")
    fresh = lying_server.copied(ada, "fresh")
    counts = lying_server.journal._counts
    counts["ada"] += step
    for home in (ada, known, fresh):
        with pytest.raises(IntegrityError) as caught:
            connect(home)
        assert caught.value.exit_code == 5
        counts["ada"] -= 1  # each machine is told the same number


def test_a_number_that_two_overlapping_sessions_were_given_is_found(
    lying_server: LyingServer,
) -> None:
    ada = lying_server.enrol("ada")
    second = lying_server.copied(ada, "second")
    with connect(ada) as one, connect(second) as two:
        one.put(io.BytesIO(b"1"), name="a")
        lying_server.journal._counts["ada"] -= 1
        with pytest.raises(IntegrityError):
            two.put(io.BytesIO(b"2"), name="b")
    with pytest.raises(IntegrityError):
        connect(lying_server.copied(ada, "third"))


def test_an_entry_without_its_tag_is_no_success(lying_server: LyingServer) -> None:
    ada = lying_server.enrol("ada")
    with connect(ada) as store:
        tagged = lying_server.journal._tags
        lying_server.journal._tags = lambda *_draft: []  # type: ignore[method-assign]
        try:
            with pytest.raises(IntegrityError):
                store.put(io.BytesIO(b"1"), name="a")
        finally:
            lying_server.journal._tags = tagged  # type: ignore[method-assign]


@pytest.mark.parametrize("place", [0, -40, -1])
def test_leaves_with_another_tag_are_not_those_of_the_signed_tree(
    lying_server: LyingServer, place: int
) -> None:
    ada = lying_server.enrol("ada")
    put(ada, "a", b"1")
    fresh = lying_server.copied(ada, "fresh")

    def flipped(leaves: bytes | bytearray | memoryview) -> bytes:
        found = bytearray(leaves)
        if found:
            found[place] ^= 1
        return bytes(found)

    def tamper(_who: object, _request: Message, reply: Message) -> Message:
        if isinstance(reply, LogLeavesPage):
            return changed(reply, leaves=flipped(reply.leaves))
        if isinstance(reply, Session | Done) and reply.receipt is not None:
            receipt = changed(reply.receipt, leaves=flipped(reply.receipt.leaves))
            return changed(reply, receipt=receipt)
        if isinstance(reply, Committed):
            return changed(reply, leaves=flipped(reply.leaves))
        return reply

    lying_server.tamper = tamper
    watched = Watched(lying_server)
    with pytest.raises(SfscError) as caught:
        attempt_put(fresh)
    assert caught.value.exit_code in (5, 7)
    assert watched.sent == []


@pytest.mark.parametrize("machine", ["known", "fresh"])
def test_an_earlier_login_is_not_ours(lying_server: LyingServer, machine: str) -> None:
    """The server answers as it did once: it hides the log since, and this login with it."""
    ada = lying_server.enrol("ada")
    second = lying_server.copied(ada, "second")
    old: list[Session] = []

    def keep(_who: object, _request: object, reply: Message) -> Message:
        old.extend([reply] if isinstance(reply, Session) else [])
        return reply

    lying_server.tamper = keep
    put(second, "a", b"1")
    lying_server.honest()
    put(ada, "a", b"2")
    home = lying_server.copied(ada, "third")
    if machine == "known":
        shutil.copytree(second, ada.with_name("known"))
        home = ada.with_name("known")
    # To the known machine the old log would be a shorter one.
    size = lying_server.journal.size
    note = lying_server.sign_note(size, lying_server.journal.root_at(size))
    note = old[0].checkpoint if machine == "fresh" else note

    def replay(_who: object, _request: object, reply: Message) -> Message:
        return changed(old[0], checkpoint=note) if isinstance(reply, Session) else reply

    lying_server.tamper = replay
    with pytest.raises(Rollback, match="own login"):
        put(home, "b", b"3")


def test_an_account_whose_entries_have_another_tag_key_is_refused(
    lying_server: LyingServer,
) -> None:
    """The server enrols the account with a tag key of its own choice, which everybody may know."""
    real = lying_server.journal._tags

    def other_key(draft: EntryDraft, accounts: Mapping[str, int]) -> list[bytes]:
        return real(changed(draft, tag_keys=dict.fromkeys(draft.tag_keys, bytes(32))), accounts)

    ada = lying_server.enrol("ada")
    lying_server.journal._tags = other_key  # type: ignore[method-assign]
    with pytest.raises(IntegrityError):
        put(ada, "a", b"1")
    with pytest.raises(IntegrityError):
        lying_server.enrol("bob")


# --- success without an entry


class NeverLogged(Watched):
    """The server takes a change, breaks the connection, and answers the repeated request `conflict`
    as if the change were the newest record of its file. No log has it."""

    def __init__(self, server: LyingServer, *, shows_head: bool) -> None:
        super().__init__(server)
        self.shows_head = shows_head
        self.kept: list[SignedRecord] = []
        self.view: FileView | None = None

    def intercept(self, who: object, request: Message) -> Reply | None:
        if isinstance(request, Commit):
            return self._take(who, request)
        if isinstance(request, History) and self.kept:
            return HistoryPage((self.kept[0],), 0)
        if isinstance(request, Stat) and self.shows_head and self.view is not None:
            return Stated(self.view)
        return super().intercept(who, request)

    def _take(self, who: object, request: Commit) -> Reply:
        if not self.kept:
            assert isinstance(who, Principal)
            change = first_change(request)
            signed, parsed = change.signed, FileRecord.parse(change.record)
            stated = self.server.ask(who, Stat("ada", parsed.file_id, 0))
            self.kept.append(signed)
            if isinstance(stated, Stated):
                self.view = changed(stated.view, head=signed)
                if is_small(request):
                    own = tuple(one for one in change.wraps if one.user == "ada")
                    self.view = FileView(
                        stated.view.seq, stated.view.at, signed, None, change.metadata, own
                    )
            raise DropConnection
        return Error("conflict", "the file has changed", self.view if self.shows_head else None)


CALLS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put(io.BytesIO(b"2"), name="f"),
    "rm": lambda store: store.rm("f"),
    "unshare": lambda store: store.unshare("f", "bob"),
    "share": lambda store: store.share("f", "carol", trust_first_use=True),
    "mv": lambda store: store.mv("f", "g"),
}


@pytest.mark.parametrize("shows_head", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_no_change_is_done_without_an_entry_in_the_log(
    lying_server: LyingServer, call: str, *, shows_head: bool
) -> None:
    ada = lying_server.enrol("ada", key_type="x25519")
    for user in ("bob", "carol"):
        lying_server.enrol(user, key_type="x25519")
    with connect(ada) as store:
        store.put(io.BytesIO(b"1"), name="f")
        store.share("f", "bob", trust_first_use=True)
    with connect(ada) as store:
        lie = NeverLogged(lying_server, shows_head=shows_head)
        with pytest.raises(SfscError) as caught:
            CALLS[call](store)
    assert lie.kept
    assert caught.value.exit_code in (5, 6)
    if shows_head and call != "mv":  # a move is refused for the name before it is compared
        assert caught.value.exit_code == 5
    lying_server.honest()
    with connect(ada) as store:
        assert [one.user for one in store.readers("f")] == ["bob"]
        assert store.stat("f").version == 1


class NeverLoggedStatement(Watched):
    """As `NeverLogged`, for an identity statement: the chain that the server shows ends with it."""

    def __init__(self, server: LyingServer) -> None:
        super().__init__(server)
        self.kept: list[NewStatement] = []
        server.tamper = self.tamper

    def intercept(self, who: object, request: Message) -> Reply | None:
        if isinstance(request, NewStatement):
            if not self.kept:
                self.kept.append(request)
                raise DropConnection
            return Error("conflict", "the chain has grown")
        if isinstance(request, GetBundle) and self.kept:
            return SealedBundle(self.kept[0].bundle)
        return super().intercept(who, request)

    def tamper(self, _who: object, _request: Message, reply: Message) -> Message:
        if isinstance(reply, Identity) and self.kept:
            kept, last = self.kept[0], reply.statements[-1]
            shown = changed(
                last,
                statement=kept.statement,
                signatures=kept.signatures,
                possession=kept.possession,
            )
            return changed(reply, statements=(*reply.statements, shown))
        return reply


def test_no_statement_is_done_without_an_entry_in_the_log(lying_server: LyingServer) -> None:
    ada = lying_server.enrol("ada", key_type="x25519")
    with connect(ada) as store:
        lie = NeverLoggedStatement(lying_server)
        with pytest.raises(IntegrityError) as caught:
            store.set_recovery(sfsc.new_recovery_code())
    assert lie.kept
    assert caught.value.exit_code == 5
    lying_server.honest()
    with connect(ada) as store:
        assert not store.has_recovery()


# --- old versions


class OldFiles:
    """Answers about ada's files as the server would have given them once."""

    def __init__(self, server: LyingServer, home: Path) -> None:
        self.server = server
        self.replies: dict[tuple[str, str], Reply] = {}
        server.tamper = self._keep
        with connect(home) as store:
            for entry in list(store.ls()):
                store.stat(entry.name)
                store.get(entry.name, io.BytesIO())
        with connect(server.copied(home, "for the listing")) as store:
            list(store.ls())
        server.honest()

    def _keep(self, _who: object, request: Message, reply: Message) -> Message:
        if isinstance(reply, Stated | Opened | Listing):
            self.replies[self._key(request)] = reply
        return reply

    @staticmethod
    def _key(request: Message) -> tuple[str, str]:
        target = request.targets[0] if isinstance(request, Open) else request
        return type(request).__name__, getattr(target, "file_id", "")

    def intercept(self, _who: object, request: Message) -> Reply | None:
        if isinstance(request, List | Stat | Open):
            old = self.replies.get(self._key(request))
            return old or Error("not-found", "no such file")
        return None

    def now(self, _who: object, request: Message) -> Reply | None:
        """As `intercept`, but as if these were answers of now: in the log as it is."""
        reply = self.intercept(_who, request)
        size = self.server.journal.size
        if isinstance(reply, Stated):
            return changed(reply, view=changed(reply.view, at=size))
        if isinstance(reply, Opened):
            return with_each(reply, lambda one: changed(one, view=changed(one.view, at=size)))
        if isinstance(reply, Listing):
            return changed(reply, views=tuple(changed(one, at=size) for one in reply.views))
        return reply


READS: dict[str, Callable[[Store], object]] = {
    "ls": lambda store: list(store.ls()),
    "get -r": lambda store: list(store.get_tree("", Path(store._session.state.home) / "out")),
    "stat of a file with a newer version": lambda store: store.stat("contract"),
    "get of a file with a newer version": lambda store: store.get("contract", io.BytesIO()),
    "stat of a newer file": lambda store: store.stat("will"),
    "get of a deleted file": lambda store: store.get("gone", io.BytesIO()),
}


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("read", READS)
def test_old_files_are_refused_on_new_and_on_known_machines(
    lying_server: LyingServer, read: str, *, aware: bool
) -> None:
    ada = lying_server.enrol("ada", key_type="x25519")
    put(ada, "contract", b"salary 1000")
    put(ada, "gone", b"an old secret")
    old = OldFiles(lying_server, ada)
    known = lying_server.copied(ada, "known", state=True)
    with connect(ada) as store:
        store.put(io.BytesIO(b"salary 2000"), name="contract")
        store.put(io.BytesIO(b"important"), name="will")
        store.rm("gone")
    for home in (known, lying_server.copied(ada, "fresh")):
        lying_server.intercept = old.now if aware else old.intercept
        with connect(home) as store, pytest.raises(IntegrityError) as caught:
            READS[read](store)
        assert caught.value.exit_code == 5
        lying_server.honest()
        with connect(home) as store:  # nothing of the lie stays
            assert [entry.name for entry in store.ls()] == ["contract", "will"]
            into = io.BytesIO()
            store.get("contract", into)
            assert into.getvalue() == b"salary 2000"


# --- a record that was once refused


def test_a_record_that_lost_a_race_does_not_hide_an_unshare(lying_server: LyingServer) -> None:
    """It is signed, and has the revision of the record that was logged instead."""
    ada = lying_server.enrol("ada", key_type="x25519")
    lying_server.enrol("bob", key_type="x25519")
    with connect(ada) as store:
        store.put(io.BytesIO(b"1"), name="plan")
        store.share("plan", "bob", trust_first_use=True)
    second = lying_server.copied(ada, "second", state=True)
    kept: list[SentChange] = []

    def refuse(_who: object, request: Message) -> Reply | None:
        if is_small(request):
            kept.append(first_change(request))
            return Error("unavailable", "the disk is full; nothing was done")
        return None

    with connect(second) as store:
        store.stat("plan")
        lying_server.intercept = refuse
        with pytest.raises(SfscError):
            store.put(io.BytesIO(b"a draft"), name="plan")
    lying_server.honest()
    loser = kept[0]
    record = FileRecord.parse(loser.record)
    assert [one[0] for one in record.readers] == ["bob"]
    with connect(ada) as store:
        store.unshare("plan", "bob")
    signed = loser.signed
    own = tuple(one for one in loser.wraps if one.user == "ada")
    sent: list[Message] = []

    def lie(_who: object, request: Message) -> Reply | None:
        if isinstance(request, Stat) and request.file_id == record.file_id:
            size = lying_server.journal.size
            return Stated(FileView(size - 1, size, signed, None, loser.metadata, own))
        if is_small(request) and FileRecord.parse(first_change(request).record).rev == 1:
            # A machine that knows nothing of the file; nobody reads this version yet.
            size = lying_server.journal.size
            view = FileView(size - 1, size, signed, None, loser.metadata, own)
            return Error("conflict", "the file has changed", view)
        if isinstance(request, CHANGES):
            sent.append(request)
            return Error("unavailable", "the disk is full; nothing was done")
        return None

    for home in (second, lying_server.copied(ada, "third")):
        lying_server.intercept = lie
        with connect(home) as store, pytest.raises(IntegrityError):
            store.put(io.BytesIO(b"the new plan, not for bob"), name="plan")
        assert sent == []


def test_the_hidden_rotation_is_of_the_chain_that_the_log_has(lying_server: LyingServer) -> None:
    """What these tests lie about is true: the daemon's chain is longer than what is shown."""
    ada = lying_server.enrol("ada")
    with connect(ada) as store:
        store.rotate()
    found = lying_server.context.users.chain("ada")
    assert found is not None
    assert found[0].head.generation == 2


# --- a session that does not follow the log


def call_keys_old(_who: object, _request: Message, reply: Message) -> Message:
    """Open each session as one with older keys, which may only adopt newer ones."""
    if isinstance(reply, Session):
        return changed(reply, notice=Notice(0, "rotated", "another device"))
    return reply


def test_a_machine_that_is_told_of_newer_keys_signs_nothing_before_it_has_them(
    lying_server: LyingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server alone says that a session has older keys, so as not to be followed."""
    ada, watched = hidden_rotation_of_a_reader(lying_server, monkeypatch)
    lying_server.tamper = call_keys_old
    with pytest.raises(SfscError):
        put(ada, "plan", b"2")
    assert watched.sent == []


@pytest.mark.parametrize("when", ["at login", "after a lost connection"])
def test_a_machine_that_is_told_of_newer_keys_shows_nothing_before_it_has_them(
    lying_server: LyingServer, when: str
) -> None:
    ada = lying_server.enrol("ada")
    second, old = lying_server.copied(ada, "second"), list[Stated]()
    put(ada, "a", b"1")

    def keep(_who: object, _request: object, reply: Message) -> Message:
        if isinstance(reply, Stated):
            old.append(reply)
        return reply

    def lie(who: object, request: Message, reply: Message) -> Message:
        if isinstance(reply, Stated):
            return changed(reply, view=changed(old[0].view, at=reply.view.at))
        return call_keys_old(who, request, reply)

    def drop_once(_who: object, request: Message) -> Reply | None:
        if isinstance(request, Stat):
            lying_server.intercept = lambda _who, _request: None
            raise DropConnection
        return None

    lying_server.tamper = keep
    with connect(second) as store:
        store.stat("a")
        lying_server.honest()
        put(ada, "a", b"22")
        lying_server.tamper = lie
        if when == "after a lost connection":
            lying_server.intercept = drop_once
            with pytest.raises(SfscError):
                store.stat("a")
    with pytest.raises(SfscError), connect(second) as store:
        store.stat("a")


def test_a_change_is_not_done_by_an_entry_beyond_the_signed_log(lying_server: LyingServer) -> None:
    """Its leaf would be shown to one machine only, and no checkpoint would ever contradict it."""
    ada = lying_server.enrol("ada")

    def sign_less(_who: object, request: Message, reply: Message) -> Message:
        if isinstance(reply, Committed):
            assert reply.leaves
            size, journal = reply.outcomes[0].seq, lying_server.journal
            return changed(reply, checkpoint=lying_server.sign_note(size, journal.root_at(size)))
        return reply

    with connect(ada) as store:
        lying_server.tamper = sign_less
        with pytest.raises(IntegrityError):
            store.put(io.BytesIO(b"1"), name="a")


Lie = Callable[[Receipt], Receipt]


def lies_of_a_receipt(server: LyingServer) -> dict[str, Lie]:
    """What a server may show with a download instead of the truth."""

    def signed_below(receipt: Receipt) -> Receipt:
        size = auditlog.parse(receipt.line).seq
        return changed(receipt, checkpoint=server.sign_note(size, server.journal.root_at(size)))

    def another_entry(receipt: Receipt) -> Receipt:
        return changed(receipt, line=server.journal.line(0))

    def unlogged_entry(receipt: Receipt) -> Receipt:
        line = receipt.line[: receipt.line.index(b',"hash":')]
        spelled = line.replace(b'"session":', b'"session":1', 1)
        digest = hashlib.sha256(spelled).hexdigest().encode()
        return changed(receipt, line=b'%b,"hash":"%b"}' % (spelled, digest))

    extra = (32).to_bytes(2) + bytes(32)
    return {
        "a checkpoint before the entry": signed_below,
        "more leaves": lambda true: changed(true, leaves=true.leaves + extra),
        "another leaf": lambda true: changed(true, leaves=true.leaves[:-1] + b"?"),
        "a part of a leaf": lambda true: changed(true, leaves=true.leaves[:-1]),
        "another entry": another_entry,
        "an entry that is not logged": unlogged_entry,
        "neither leaves nor the entry": lambda true: unlogged_entry(changed(true, leaves=b"")),
    }


def test_a_download_is_refused_with_a_false_part_of_the_log(
    lying_server: LyingServer, tmp_path: Path
) -> None:
    """What comes with opened versions is checked as every other part of the log."""
    ada = lying_server.enrol("ada")
    lies = lies_of_a_receipt(lying_server)
    with connect(ada) as store:
        names = [f"{lie}/{number}" for lie in lies for number in range(2)]
        list(store.put_many([(io.BytesIO(b"1"), name) for name in names]))
        asked: list[type[Request]] = []
        store.put(io.BytesIO(b"1"), name="a")
        lying_server.intercept = lambda _who, request: asked.append(type(request))
        store.get("a", io.BytesIO())
    assert asked == [Open]  # the log is asked for nothing
    told: list[str] = []

    def tamper(_who: object, _request: Message, reply: Message) -> Message:
        if isinstance(reply, Opened) and reply.receipt is not None:
            told.append(name)
            return changed(reply, receipt=lies[name](reply.receipt))
        return reply

    lying_server.tamper = tamper
    for number, name in enumerate(lies):
        with connect(lying_server.copied(ada, name, state=True)) as store:
            tree = store.get_tree(name, tmp_path / "out")
            fetch: Callable[[], object] = partial(store.get, f"{name}/0", io.BytesIO())
            with pytest.raises(IntegrityError) as caught:
                (partial(list[Got], tree) if number % 2 else fetch)()
        assert caught.value.exit_code == 5, name
    assert told == [*lies]
