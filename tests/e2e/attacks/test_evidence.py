"""What proves a lie is kept, of every kind: the bytes that were shown, in a private file."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sfsc
from protocol.codec.values import changed
from protocol.wire.messages import Message, encode
from protocol.wire.messages.base import FileView, SignedRecord
from protocol.wire.messages.changes import Committed
from protocol.wire.messages.downloads import Bytes, Opened
from protocol.wire.messages.files import HistoryPage, Listing, Stated
from protocol.wire.messages.log import LogCheckpoint, LogLeavesPage, LogLinesPage, LogProven
from protocol.wire.messages.rotation import SealedBundle, WrapsPage
from protocol.wire.messages.session import Session, Welcome
from protocol.wire.messages.sharing import Identity, InboxPage
from sfsc.errors import IntegrityError, Rollback, SfscError
from sfsc.keys.home import unlock_home
from sfsc.session.evidence import MAX_FILES
from sfsc.store import Store
from tests.changes import relined
from tests.harness import run
from tests.lying_server import LyingServer
from tests.opens import opens, with_each

BIG = os.urandom(3 * 1024 * 1024)
"""A content of several pieces."""


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


class Account:
    """ada, who shares a file with bob. Each lie is shown to another machine of theirs."""

    def __init__(self, server: LyingServer) -> None:
        self.server = server
        self.ada, self.bob = server.enrol("ada"), server.enrol("bob")
        self.backup = server.root.with_name("backup")
        with connect(self.ada) as store:
            store.put(io.BytesIO(b"1"), name="plan")
            self.big = store.put(io.BytesIO(BIG), name="big")
            store.share("plan", "bob", trust_first_use=True)
            store.backup(self.backup, no_passphrase=True)
        self._machines = 0

    def machine(self, home: Path | None = None) -> Path:
        """Return a new machine of ada, or of the user of `home`, that remembers nothing."""
        self._machines += 1
        return self.server.copied(home or self.ada, f"machine-{self._machines}")


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with LyingServer(tmp_path_factory.mktemp("evidence") / "root") as server:
        yield Account(server)


# --- lies


def flipped(data: bytes | bytearray | memoryview, place: int = -1) -> bytes:
    other = bytearray(data)
    other[place] ^= 1
    return bytes(other)


def forged(signed: SignedRecord) -> SignedRecord:
    """Return a record with another signature."""
    signatures = [changed(one, signature=flipped(one.signature, 5)) for one in signed.signatures]
    return SignedRecord(signed.record, tuple(signatures))


def forged_view(view: FileView) -> FileView:
    head = None if view.head is None else forged(view.head)
    return changed(view, content=forged(view.content), head=head)


def forged_note(note: bytes) -> bytes:
    """Return a checkpoint with another signature."""
    before, signature = note[:-1].rsplit(b" ", 1)
    return before + b" " + base64.b64encode(flipped(base64.b64decode(signature))) + b"\n"


def lie_of_statements(reply: Identity) -> Message:
    last = reply.statements[-1]
    lie = changed(last, statement=flipped(last.statement))
    return changed(reply, statements=(*reply.statements[:-1], lie))


def lie_of_login(reply: Session) -> Message:
    assert reply.receipt is not None
    return changed(reply, receipt=changed(reply.receipt, line=flipped(reply.receipt.line, -3)))


def lie_of_wraps(reply: WrapsPage) -> Message:
    items = [changed(one, content=forged(one.content)) for one in reply.items]
    return changed(reply, items=tuple(items))


def lie_of_inbox(reply: InboxPage) -> Message:
    files = [changed(one, view=one.view and forged_view(one.view)) for one in reply.files]
    return changed(reply, files=tuple(files))


def get(name: str) -> Callable[[Account], object]:
    def got(account: Account) -> None:
        with connect(account.machine()) as store:
            store.get(name, io.BytesIO())

    return got


def use(action: Callable[[Store], object]) -> Callable[[Account], object]:
    def used(account: Account) -> None:
        with connect(account.machine()) as store:
            action(store)

    return used


def read_inbox(account: Account) -> None:
    with connect(account.machine(account.bob)) as store:
        store.inbox()


def restore(account: Account) -> None:
    home = account.server.root.with_name("restored")
    sfsc.restore(account.backup, home=home, no_passphrase=True)


LIES: dict[str, tuple[type[Message], Callable[..., Message], Callable[[Account], object]]] = {
    "own statements": (Identity, lie_of_statements, use(lambda store: store.devices())),
    "statements of a contact": (Identity, lie_of_statements, use(lambda one: one.person("bob"))),
    "a record": (
        Stated,
        lambda reply: changed(reply, view=forged_view(reply.view)),
        use(lambda store: store.stat("plan")),
    ),
    "a listing": (
        Listing,
        lambda reply: changed(reply, views=tuple(map(forged_view, reply.views))),
        use(lambda store: list(store.ls())),
    ),
    "an opened version": (
        Opened,
        lambda reply: with_each(reply, lambda one: changed(one, view=forged_view(one.view))),
        get("plan"),
    ),
    "the hashes of pieces": (
        Opened,
        lambda reply: with_each(reply, lambda one: changed(one, leaves=flipped(one.leaves))),
        get("big"),
    ),
    "a history": (
        HistoryPage,
        lambda reply: changed(reply, records=tuple(map(forged, reply.records))),
        use(lambda store: store.history("plan")),
    ),
    "a receipt": (
        Committed,
        lambda reply: relined(reply, lambda line: flipped(line, -3)),
        use(lambda store: store.put(io.BytesIO(b"2"), name="other")),
    ),
    "the entry of a login": (Session, lie_of_login, use(lambda _store: None)),
    "the checkpoint of a login": (
        Session,
        lambda reply: changed(reply, checkpoint=forged_note(reply.checkpoint)),
        use(lambda _store: None),
    ),
    "the head of the log": (
        LogCheckpoint,
        lambda reply: changed(reply, checkpoint=forged_note(reply.checkpoint)),
        use(lambda store: store.audit_verify()),
    ),
    "leaves": (
        LogLeavesPage,
        lambda reply: changed(reply, leaves=flipped(reply.leaves)),
        use(lambda store: store.audit_verify()),
    ),
    "lines": (
        LogLinesPage,
        lambda reply: changed(
            reply,
            lines=tuple(changed(one, data=flipped(one.data, -3)) for one in reply.lines),
        ),
        use(lambda _store: None),
    ),
    "a proof": (
        LogProven,
        lambda reply: changed(reply, proof=tuple(map(flipped, reply.proof))),
        use(lambda store: store.proof_of(store.put(io.BytesIO(b"3"), name="third"))),
    ),
    "a bundle": (
        SealedBundle,
        lambda reply: changed(reply, bundle=flipped(reply.bundle)),
        restore,
    ),
    "wraps": (WrapsPage, lie_of_wraps, use(lambda store: store.verify_rotation())),
    "an inbox": (InboxPage, lie_of_inbox, read_inbox),
}


class Shown:
    """Hook that changes the answers of one type, and lists what was shown in their place."""

    def __init__(
        self, server: LyingServer, kind: type[Message], lie: Callable[..., Message]
    ) -> None:
        self._kind, self._lie = kind, lie
        self.answers: list[str] = []
        server.tamper = self._tamper

    def _tamper(self, _who: object, _request: Message, reply: Message) -> Message:
        if not isinstance(reply, self._kind):
            return reply
        shown = self._lie(reply)
        self.answers.append(base64.b64encode(b"".join(encode(0, shown))).decode())
        return shown


def assert_kept(error: SfscError, proof: str) -> None:
    """Check that the file that `error` names has these bytes, and nobody else can read it."""
    assert isinstance(error, IntegrityError)
    assert error.exit_code == 5
    assert error.evidence is not None
    assert error.evidence in error.hint
    path = Path(error.evidence)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert error.cause in text
    assert proof in text.splitlines()
    assert len(text) < 6 * 1024 * 1024


@pytest.mark.parametrize("kind", LIES)
def test_what_proves_a_lie_is_kept(account: Account, kind: str) -> None:
    answered, lie, action = LIES[kind]
    shown = Shown(account.server, answered, lie)
    try:
        with pytest.raises(IntegrityError) as caught:
            action(account)
    finally:
        account.server.honest()
    assert_kept(caught.value, shown.answers[-1])


def test_a_changed_piece_is_kept_with_the_record_that_it_contradicts(account: Account) -> None:
    """Many pieces, and so many bytes, may come between a file's record and a changed piece."""
    pieces: list[bytes] = []

    def lie(_who: object, _request: object, reply: Message) -> Message:
        if not isinstance(reply, Bytes):
            return reply
        pieces.append(flipped(reply.data))
        return changed(reply, data=pieces[-1])

    with connect(account.machine()) as store:
        account.server.tamper = lie
        with pytest.raises(IntegrityError) as caught:
            store.get("big", io.BytesIO())
    account.server.honest()
    kept = decoded(Path(str(caught.value.evidence)).read_text())
    assert any(piece in kept for piece in pieces)
    assert_kept(caught.value, base64.b64encode(account.big.record).decode())


def test_a_version_is_kept_that_was_shown_among_many(account: Account) -> None:
    """It fails before the others are stored, and is reported after them."""
    machine, failed = account.machine(), list[SfscError]()
    with connect(account.ada) as store:
        sources = [(io.BytesIO(os.urandom(200_000)), f"many/{number:02}") for number in range(24)]
        file_ids = [put.file_id for put in store.put_many(sources)]
    shown: list[str] = []

    def lie(_who: object, request: Message, reply: Message) -> Message:
        if not isinstance(reply, Opened) or not opens(request, file_ids[0]):
            return reply
        first, *others = reply.results
        assert first.opened is not None
        view = changed(first.opened.view, metadata=flipped(first.opened.view.metadata))
        first = changed(first, opened=changed(first.opened, view=view))
        shown.append(base64.b64encode(b"".join(encode(0, Opened((first,))))).decode())
        return Opened((first, *others))

    with connect(machine) as store:
        account.server.tamper = lie
        out = machine / "out"
        got = list(store.get_tree("many/", out, skip=lambda _name, error: failed.append(error)))
    account.server.honest()
    assert len(got) == 23
    (error,) = failed
    assert_kept(error, shown[-1])


def test_an_older_record_is_kept_with_the_checkpoint_that_it_contradicts(account: Account) -> None:
    with connect(account.ada) as store:
        store.put(io.BytesIO(b"1"), name="old")
    old: list[Stated] = []

    def keep(_who: object, _request: object, reply: Message) -> Message:
        old.extend([reply] if isinstance(reply, Stated) else [])
        return reply

    account.server.tamper = keep
    with connect(account.machine()) as store:
        store.stat("old")
    account.server.honest()
    with connect(account.ada) as store:
        store.put(io.BytesIO(b"2"), name="old")
    shown = Shown(
        account.server,
        Stated,
        lambda reply: changed(reply, view=changed(old[0].view, at=reply.view.at)),
    )
    with connect(account.machine()) as store:
        with pytest.raises(Rollback) as caught:
            store.stat("old")
        note = store.checkpoint().decode()
    account.server.honest()
    assert_kept(caught.value, shown.answers[-1])
    assert note in Path(str(caught.value.evidence)).read_text()


def test_a_forged_greeting_is_kept(account: Account) -> None:
    shown: list[str] = []

    def lie(welcome: Welcome) -> Welcome:
        forged = changed(welcome, signature=flipped(welcome.signature))
        shown.append(base64.b64encode(b"".join(encode(0, forged))).decode())
        return forged

    account.server.welcome = lie
    with pytest.raises(IntegrityError) as caught:
        connect(account.ada)
    account.server.honest()
    assert_kept(caught.value, shown[-1])


def secrets(home: Path) -> list[bytes]:
    keyring = unlock_home(home, None).contents
    found = [keyring.tag_key, *keyring.name_keys, keyring.device.sign_seed]
    found.append(keyring.device.xwing_private)
    waiting = () if keyring.pending is None or keyring.pending.keys is None else (keyring.pending,)
    for one in (*keyring.generations, *(pending.keys for pending in waiting)):
        assert one is not None
        found += [one.sign_seed, one.wrap_private]
    return found


def decoded(text: str) -> bytes:
    """Return a file of evidence, its base64 decoded too."""
    found = text.encode()
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            found += base64.b64decode(line, validate=True)
    return found


def test_evidence_against_an_enrolment_holds_no_secret(account: Account) -> None:
    """The tag key is sent to the server only."""
    shown = Shown(account.server, Session, lie_of_login)
    home = account.server.root.with_name("enrolled")
    with pytest.raises(IntegrityError) as caught:
        account.server.enrol("carol", home)
    account.server.honest()
    assert_kept(caught.value, shown.answers[-1])
    text = Path(str(caught.value.evidence)).read_text()
    assert "Session, the answer to Enroll" in text
    for secret in secrets(home):
        assert secret not in decoded(text)
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text


def test_a_command_says_where_the_evidence_is_until_there_is_too_much(account: Account) -> None:
    machine = account.machine()
    Shown(account.server, Stated, lambda reply: changed(reply, view=forged_view(reply.view)))
    folder = machine / "evidence"
    try:
        first = run("sfsc", ("stat", "plan"), {"SFSC_HOME": str(machine)}).expect(5)
        (kept,) = folder.iterdir()
        assert str(kept) in first.stderr
        for number in range(1, MAX_FILES):
            (folder / f"answers-{number}.txt").touch()
        last = run("sfsc", ("stat", "plan"), {"SFSC_HOME": str(machine)}).expect(5)
    finally:
        account.server.honest()
    assert "is full of evidence" in last.stderr
    assert len(list(folder.iterdir())) == MAX_FILES
