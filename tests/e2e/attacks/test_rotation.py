"""A rotation endorses and wraps again what the followed log has, and nothing else that the server
shows: an endorsement makes a record count that an old key has signed, permanently and for
everybody."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

import sfsc
from protocol.codec import merkle
from protocol.codec.values import changed
from protocol.log.auditlog import EntryDraft
from protocol.records.record_signatures import RecordSigner, RecordTree
from protocol.records.records import PURGE, FileRecord, record_hash
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Error, Message, Reply
from protocol.wire.messages.base import GenerationSignature, SignedRecord, Wrap
from protocol.wire.messages.downloads import Opened, OpenedVersion
from protocol.wire.messages.files import Stated
from protocol.wire.messages.rotation import (
    GetWraps,
    Rewrap,
    Rewrapped,
    RotateBegin,
    RotateFinish,
    WrapItem,
    WrapsPage,
    with_full_wraps,
)
from sfsc.account.rewrap import Place, place_of
from sfsc.errors import BadReceipt, BadRecord, IntegrityError, QuotaExceeded
from sfsc.keys.home import unlock_home
from sfsc.store import Store
from tests.e2e.thief import thief
from tests.lying_server import DropConnection, LyingServer
from tests.opens import with_each

_Shown = TypeVar("_Shown", Stated, OpenedVersion)


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


@pytest.fixture
def ada(lying_server: LyingServer, tmp_path: Path) -> Path:
    """The home of a user with two files, which were wrapped together."""
    home = lying_server.enrol("ada", key_type="x25519")
    for name in ("kept", "plan"):
        (tmp_path / name).write_bytes(name.encode())
    with connect(home) as store:
        list(store.put_many([(tmp_path / name, name) for name in ("kept", "plan")]))
    return home


class Thief:
    """Somebody with a copy of a keyring, who helps the server."""

    def __init__(self, home: Path) -> None:
        keyring = unlock_home(home, None).contents
        assert keyring.current is not None
        self.generation = keyring.current.generation
        key = SigningKey.from_seed(keyring.current.sign_seed)
        self.signer = RecordSigner(key, keyring.server_id, keyring.first, self.generation)

    def sign(self, record: FileRecord) -> SignedRecord:
        body = record.encode()
        (packed,) = self.signer.sign([body])
        return SignedRecord(body, (GenerationSignature(self.generation, packed),))

    def forge(self, item: WrapItem) -> SignedRecord:
        """Return a record of the same version of the file, which its owner never made."""
        record = FileRecord.parse(item.content.record)
        return self.sign(changed(record, created=record.created + 1))


def change_item(
    server: LyingServer, home: Path, name: str, change: Callable[[WrapItem], WrapItem]
) -> tuple[list[WrapItem], list[Rewrap]]:
    """Have the server show other items for a file in rotations; return the list to which it adds
    them, and the list of all rewraps that it is sent."""
    with connect(home) as store:
        file_id = store._session.account.file_id(name)
    shown, sent = list[WrapItem](), list[Rewrap]()

    def tamper(_who: object, _request: Message, reply: Message) -> Message:
        if not isinstance(reply, WrapsPage):
            return reply
        items = [
            change(one) if one.file_id == file_id else one for one in with_full_wraps(reply.items)
        ]
        shown.extend(one for one in items if one.file_id == file_id)
        return changed(reply, items=tuple(items))

    def intercept(_who: object, request: Message) -> Reply | None:
        if isinstance(request, Rewrap):
            sent.append(request)
        return None

    server.tamper, server.intercept = tamper, intercept
    return shown, sent


def purge_after(made: FileRecord, body: bytes) -> FileRecord:
    """Return a record of a purge that follows the first record of a file."""
    return FileRecord(
        server=made.server,
        owner=made.owner,
        actor=made.actor,
        generation=made.generation,
        file_id=made.file_id,
        rev=2,
        op=PURGE,
        prev=record_hash(body),
        seen=made.seen,
        created=made.created,
        readers=(),
        current=made.current,
        content=record_hash(body),
        purged=(5,),
    )


def check_left_out(store: Store, name: str, *, compromised: bool = False) -> None:
    """Rotate, and check that this file alone is left out."""
    with pytest.raises(IntegrityError) as caught:
        store.rotate(compromised=compromised)
    assert caught.value.exit_code == 5
    assert name in caught.value.cause
    assert "kept" not in caught.value.cause


@pytest.mark.parametrize("compromised", [False, True])
@pytest.mark.parametrize("as_last", [False, True])
def test_a_record_that_a_thief_signed_and_the_log_lacks_is_not_endorsed(
    lying_server: LyingServer, ada: Path, *, compromised: bool, as_last: bool
) -> None:
    thief = Thief(ada)

    def show(item: WrapItem) -> WrapItem:
        if not as_last:
            return changed(item, content=thief.forge(item))
        last = purge_after(FileRecord.parse(item.content.record), item.content.record)
        return changed(item, head=thief.sign(last))

    shown, sent = change_item(lying_server, ada, "plan", show)
    with connect(ada) as store:
        check_left_out(store, "plan", compromised=compromised)
    forged = {record_hash(one.record) for item in shown for one in (item.content, item.head) if one}
    assert sent
    assert forged.isdisjoint(
        digest for request in sent for item in request.items for digest in item.endorsed
    )


def test_a_record_of_another_version_is_not_endorsed(lying_server: LyingServer, ada: Path) -> None:
    """The log has the record, of the version before."""
    with connect(ada) as store:
        store.put(io.BytesIO(b"again"), name="plan")
        replies: list[WrapItem] = []

        def keep(_who: object, _request: Message, reply: Message) -> Message:
            replies.extend(with_full_wraps(reply.items) if isinstance(reply, WrapsPage) else ())
            return reply

        lying_server.tamper = keep
        store.rotation_plan()
        file_id = store._session.account.file_id("plan")
    first = next(one for one in replies if (one.file_id, one.version) == (file_id, 1))

    def show(item: WrapItem) -> WrapItem:
        return changed(first, version=2) if item.version == 2 else item

    _, sent = change_item(lying_server, ada, "plan", show)
    with connect(ada) as store:
        check_left_out(store, "plan version 2")
    assert (file_id, 2) not in [
        (item.file_id, item.version) for request in sent for item in request.items
    ]


@pytest.mark.parametrize("compromised", [False, True])
def test_a_record_that_a_thief_had_logged_after_the_rotation_began_is_refused(
    lying_server: LyingServer, ada: Path, *, compromised: bool
) -> None:
    """The server accepts it, logs it as an entry of the account and shows it from then on."""
    thief = Thief(ada)
    with connect(ada) as store:
        before = store._session.fetch_newest(store._session.account.file_id("plan"))
    record = changed(
        before.head, rev=2, prev=record_hash(before.head_body), version=2, current=2, content=b""
    )
    made, sent = thief.sign(record), list[Message]()

    def intercept(_who: object, request: Message) -> Reply | None:
        if isinstance(request, Rewrap | RotateFinish):
            sent.append(request)
        return None

    def tamper(_who: object, request: Message, reply: Message) -> Message:
        if isinstance(request, RotateBegin):
            lying_server.append(
                EntryDraft(
                    op="upload",
                    actor="ada",
                    owner="ada",
                    file=record.file_id,
                    version=2,
                    rec=made.record,
                    sigs={"00" * 32: made.signatures[0].signature},
                    accounts=("ada",),
                )
            )
        return reply

    lying_server.intercept, lying_server.tamper = intercept, tamper
    with connect(ada) as store, pytest.raises(BadReceipt) as caught:
        store.rotate(compromised=compromised)
    assert caught.value.exit_code == 5
    assert "generation 1, and generation 2 was in force" in caught.value.cause
    assert sent == []


def test_wraps_whose_receipt_is_lost_are_proven_by_the_log(
    lying_server: LyingServer, ada: Path
) -> None:
    """Nothing is sent twice but the request itself, and no second pass is needed."""
    pages, lost = list[GetWraps](), list[Rewrap]()

    def tamper(_who: object, request: Message, reply: Message) -> Message:
        if isinstance(request, GetWraps):
            pages.append(request)
        if isinstance(request, Rewrap) and not lost:
            lost.append(request)
            raise DropConnection
        return reply

    lying_server.tamper = tamper
    with connect(ada) as store:
        done = store.rotate()
    assert (done.wrapped, done.files, len(lost)) == (2, 2, 1)
    assert len(pages) == 1


class UnloggedRewraps:
    """A server that takes re-wraps, logs nothing, and shows them as stored from then on. Each one
    is answered as a `Rewrapped` that leaves all its items, or by an error."""

    def __init__(self, server: LyingServer, *, fails: bool = False) -> None:
        self._fails = fails
        self._wraps: dict[Place, Wrap | None] = {}
        self._endorsements: dict[bytes, GenerationSignature] = {}
        self.finished = 0
        server.tamper, server.intercept = self.tamper, self.intercept

    def intercept(self, _who: object, request: Message) -> Reply | None:
        self.finished += isinstance(request, RotateFinish)
        if not isinstance(request, Rewrap):
            return None
        new = not self._wraps
        hashes = [digest for one in request.items for digest in one.endorsed]
        made = RecordTree.of_records(hashes).pack(request.endorsement)
        for item in with_full_wraps(request.items):
            self._wraps.setdefault((item.owner, item.file_id, item.version), item.wrap)
        for digest, packed in zip(hashes, made, strict=True):
            self._endorsements.setdefault(digest, GenerationSignature(2, packed))
        if self._fails:
            return Error("quota", "the disk is full")
        if new:
            raise DropConnection
        return Rewrapped(None, tuple(range(len(request.items))))

    def tamper(self, _who: object, _request: Message, reply: Message) -> Message:
        if isinstance(reply, WrapsPage) and self._wraps:
            return changed(
                reply, items=tuple([self._show(one) for one in with_full_wraps(reply.items)])
            )
        return reply

    def _show(self, item: WrapItem) -> WrapItem:
        wrap = item.wrap and self._wraps.get(place_of(item))
        head = item.head and self._endorsed(item.head)
        if record_hash(item.content.record) not in self._endorsements:
            return item  # encrypted again since
        return changed(item, wrap=wrap, content=self._endorsed(item.content), head=head)

    def _endorsed(self, signed: SignedRecord) -> SignedRecord:
        added = self._endorsements.get(record_hash(signed.record))
        return changed(signed, signatures=(*signed.signatures, added)) if added else signed


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("what", ["wraps", "endorsements"])
def test_what_is_shown_as_stored_and_is_not_in_the_log_is_refused(
    lying_server: LyingServer, ada: Path, what: str, *, later: bool
) -> None:
    """The server breaks the connection and says that it has stored the items, or shows them so to a
    later session, which could take them for another device's."""
    with connect(ada) as store:
        for name in ("plan", "kept") if what == "endorsements" else ():
            store.rm(name)
            store.purge(name)
    lies = UnloggedRewraps(lying_server, fails=later)
    with connect(ada) as store:
        if later:
            with pytest.raises(QuotaExceeded):
                store.rotate()
    with connect(ada) as store, pytest.raises(BadReceipt, match="its log does not have") as caught:
        store.rotate()
    assert caught.value.exit_code == 5
    assert lies.finished == 0


@pytest.mark.parametrize("compromised", [False, True])
def test_wraps_that_replace_logged_ones_are_refused(
    lying_server: LyingServer, ada: Path, *, compromised: bool
) -> None:
    """The server logs what a rotation stores. Then it shows the owner's own other wraps of the same
    versions, from an attempt that it did not log: to a rotation that lists all wraps again, after
    it has encrypted a content again, or to a verification."""
    names = ["kept"] if compromised else []
    lies = UnloggedRewraps(lying_server, fails=True)
    with connect(ada) as store, pytest.raises(QuotaExceeded):
        store.rotate(compromised=compromised, names=names)
    lying_server.honest()

    def tamper(who: object, request: Message, reply: Message) -> Message:
        if isinstance(request, Rewrap):
            lying_server.tamper = lies.tamper
        return reply

    lying_server.tamper = tamper
    with connect(ada) as store:
        if not compromised:
            assert store.rotate().wrapped == 2
        last = store.rotate if compromised else store.verify_rotation
        with pytest.raises(BadReceipt, match="its log does not have"):
            last()


def shown_as(item: WrapItem, place: WrapItem) -> WrapItem:
    """Return `item` in the place of another version."""
    return changed(item, owner=place.owner, file_id=place.file_id, version=place.version)


MIXED: dict[str, Callable[[dict[str, WrapItem]], dict[str, WrapItem]]] = {
    "a foreign file as ours": lambda items: {
        "plan": shown_as(items["shared"], changed(items["shared"], owner="ada"))
    },
    "a foreign file under an id of ours": lambda items: {
        "plan": shown_as(items["shared"], items["plan"])
    },
    "a foreign wrap of our file": lambda items: {
        "plan": changed(items["plan"], wrap=items["shared"].wrap)
    },
    "the wrap of another file of ours": lambda items: {
        "plan": changed(items["plan"], wrap=items["kept"].wrap)
    },
    "our file as a foreign one": lambda items: {"plan": changed(items["plan"], owner="bob")},
    "our file under a foreign id": lambda items: {
        "shared": shown_as(items["plan"], items["shared"])
    },
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("mixed", MIXED)
def test_files_of_two_owners_are_not_mixed_up(
    lying_server: LyingServer, ada: Path, mixed: str, *, cached: bool
) -> None:
    """The machine may have opened all wraps before, so that it has the KEKs of their batches."""
    bob = lying_server.enrol("bob", key_type="x25519")
    with connect(bob) as store:
        store.put(io.BytesIO(b"of bob"), name="shared")
        store.share("shared", "ada", trust_first_use=True)
    shown, sent = list[WrapItem](), list[Rewrap]()

    def tamper(_who: object, _request: Message, reply: Message) -> Message:
        if not isinstance(reply, WrapsPage):
            return reply
        items = dict(zip(names, with_full_wraps(reply.items), strict=True))
        shown[:] = sorted((items | MIXED[mixed](items)).values(), key=place_of)
        return changed(reply, items=tuple(shown))

    def intercept(_who: object, request: Message) -> Reply | None:
        if isinstance(request, Rewrap):
            sent.append(request)
        return None

    with connect(ada) as store:
        account = store._session.account
        own = sorted(("kept", "plan"), key=account.file_id)
        names = [*own, "shared"]  # by owner, then by file_id
        if cached:
            for name in own:
                store.get(name, io.BytesIO())
            store.get_shared("bob", "shared", io.BytesIO(), trust_first_use=True)
        lying_server.tamper, lying_server.intercept = tamper, intercept
        with pytest.raises(IntegrityError) as caught:
            store.rotate()
    assert caught.value.exit_code == 5
    assert "kept" not in caught.value.cause
    renewed = {(one.owner, one.file_id, one.version) for request in sent for one in request.items}
    honest = [("ada", account.file_id("kept"), 1)]
    assert renewed
    assert renewed <= {*honest, *((one.owner, one.file_id, 1) for one in shown)}


class Signer:
    """The newest keys of ada, and the ways to make one of their signatures look like that of a
    record which she never made."""

    def __init__(self, home: Path) -> None:
        self.signer = Thief(home).signer

    def _signed(self, body: bytes, packed: bytes) -> SignedRecord:
        return SignedRecord(body, (GenerationSignature(self.signer.generation, packed),))

    def endorsement(self, forged: bytes) -> SignedRecord:
        """She was made to endorse a record by its hash, which states her newest generation."""
        hashes = [record_hash(forged)]
        (packed,) = RecordTree.of_records(hashes).pack(self.signer.endorse(hashes))
        return self._signed(forged, packed)

    def padding(self, forged: bytes) -> SignedRecord:
        """The second of two leaves that she signed is a random one."""
        tree = RecordTree.of_records([record_hash(b"a record of hers"), bytes(range(32))])
        body = tree.signed_body(self.signer.server, self.signer.owner_first, 2)
        packed = tree.pack(self.signer.key.sign(Label.RECORDS, body))
        return self._signed(forged, packed[1])

    def padding_itself(self, _forged: bytes) -> SignedRecord:
        """The data of that leaf is shown as the record."""
        return changed(self.padding(b""), record=bytes(range(32)))

    def inner_node(self, forged: bytes) -> SignedRecord:
        """Of the tree of four that she signed, the path from an inner node is shown."""
        packed, path = self._four()
        return self._signed(forged, packed[:64] + b"\0\2\0\0" + path)

    def inner_node_itself(self, _forged: bytes) -> SignedRecord:
        """What is hashed for that node is shown as the record."""
        leaves = [merkle.leaf_hash(record_hash(b"%d" % number)) for number in range(4)]
        return changed(self.inner_node(b""), record=b"\1" + leaves[0] + leaves[1])

    def _four(self) -> tuple[bytes, bytes]:
        """Return a packed signature of four records, and the sibling of their first two."""
        bodies = [b"%d" % number for number in range(4)]
        leaves = [merkle.leaf_hash(record_hash(one)) for one in bodies]
        return self.signer.sign(bodies)[0], merkle.node_hash(leaves[2], leaves[3])


PRESENTED: dict[str, Callable[[Signer, bytes], SignedRecord]] = {
    "an endorsement": Signer.endorsement,
    "a padding leaf": Signer.padding,
    "the data of a padding leaf": Signer.padding_itself,
    "an inner node": Signer.inner_node,
    "the data of an inner node": Signer.inner_node_itself,
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("what", PRESENTED)
def test_what_is_signed_for_something_else_is_no_record(
    lying_server: LyingServer, ada: Path, what: str, *, cached: bool
) -> None:
    """It is shown to a reader, to the owner, and in the owner's next rotation, also if the machine
    has the KEK that opens the wrap, and with it the content."""
    bob = lying_server.enrol("bob", key_type="x25519")
    with connect(ada) as store:
        store.rotate()
        file = store._session.fetch_newest(store._session.account.file_id("plan"))
        for name in ("kept", "plan"):
            store.share(name, "bob", trust_first_use=True)
        present = store._session.fetch_newest(file.file_id)
    signer = Signer(ada)
    content = present.content
    forged = changed(
        content,
        generation=2,
        rev=present.head.rev + 1,
        prev=record_hash(present.head_body),
        version=2,
        current=2,
        readers=present.head.readers,
    )
    shown = PRESENTED[what](signer, forged.encode())
    lies: list[Stated | OpenedVersion | WrapsPage] = []

    def forge(shown_now: _Shown) -> _Shown:
        if shown_now.view.content.record != file.content_body:
            return shown_now
        lies.append(shown_now)
        return changed(shown_now, view=changed(shown_now.view, content=shown, head=None))

    def tamper(_who: object, _request: Message, reply: Message) -> Message:
        if isinstance(reply, Opened):
            return with_each(reply, forge)
        if isinstance(reply, Stated):
            return forge(reply)
        if isinstance(reply, WrapsPage):
            items = [
                changed(one, content=shown, head=None, version=2)
                if one.file_id == file.file_id
                else one
                for one in with_full_wraps(reply.items)
            ]
            lies.append(reply)
            return changed(reply, items=tuple(items))
        return reply

    with connect(ada) as store, connect(bob) as reader:
        if cached:
            store.get("plan", io.BytesIO())
            reader.get_shared("ada", "plan", io.BytesIO(), trust_first_use=True)
        else:
            reader.get_shared("ada", "kept", io.BytesIO(), trust_first_use=True)
        lying_server.tamper = tamper
        calls: list[Callable[[], object]] = [
            lambda: reader.get_shared("ada", "plan", io.BytesIO()),
            lambda: store.get("plan", io.BytesIO()),
            store.rotate,
        ]
        for call in calls:
            lies.clear()
            with pytest.raises(IntegrityError) as caught:
                call()
            assert caught.value.exit_code == 5
            assert lies


@pytest.mark.parametrize("hidden", ["an older version", "the newest version", "a file"])
def test_versions_that_the_server_does_not_list_are_named(
    lying_server: LyingServer, ada: Path, hidden: str
) -> None:
    """Whoever has the old keys opens them for ever if they are not encrypted again."""
    with connect(ada) as store:
        store.put(io.BytesIO(b"again"), name="plan")
        file_id = store._session.account.file_id("plan")
    versions = {"an older version": [1], "the newest version": [2], "a file": [1, 2]}[hidden]

    def tamper(_who: object, _request: Message, reply: Message) -> Message:
        if not isinstance(reply, WrapsPage):
            return reply
        items = [
            one for one in with_full_wraps(reply.items) if (one.file_id, one.version) not in hides
        ]
        return changed(reply, items=tuple(items))

    hides = {(file_id, version) for version in versions}
    missing = f"does not list version {versions[0]} of a file that its log has"
    lying_server.tamper = tamper
    with connect(ada) as store:
        assert store.rotation_plan().damaged == 1
        with pytest.raises(IntegrityError, match=missing):
            store.verify_rotation()
        with pytest.raises(IntegrityError, match=missing):
            store.rotate()
        # Only where contents are encrypted again, after everything was wrapped.
        lying_server.honest()
        assert store.rotate().left_out == 0
        pages: list[Message] = []

        def later(who: object, request: Message, reply: Message) -> Message:
            if isinstance(request, GetWraps):
                pages.append(reply)
            return tamper(who, request, reply) if len(pages) == 2 else reply

        lying_server.tamper = later
        with pytest.raises(IntegrityError, match=rf"version {versions[0]}$"):
            store.rotate(compromised=True)
        assert len(pages) > 1


def test_a_version_that_is_listed_twice_is_refused(lying_server: LyingServer, ada: Path) -> None:
    """It could stand for another one that is hidden."""

    def tamper(_who: object, _request: Message, reply: Message) -> Message:
        if isinstance(reply, WrapsPage):
            return changed(reply, items=(reply.items[0], reply.items[0]))
        return reply

    lying_server.tamper = tamper
    with connect(ada) as store, pytest.raises(BadRecord, match="twice"):
        store.rotate()


@pytest.mark.parametrize("lies", ["the repair", "all listings", "a rotation", "a verification"])
def test_a_wrap_for_a_thief_that_the_log_lacks_is_not_believed(
    lying_server: LyingServer, ada: Path, tmp_path: Path, lies: str
) -> None:
    """Somebody with stolen keys began a generation and wrapped nothing. The server shows a wrap for
    their key, so that the owner signs a deletion of the file, or does not encrypt it again."""
    code = sfsc.new_recovery_code()
    with connect(ada) as store:
        store.set_recovery(code)
        file_id = store._session.account.file_id("plan")
    copy = lying_server.copied(ada, "copy")
    with thief(copy) as attacker:
        attacker.begin()
        key_id = attacker.store._session.account.own_key.key_id
    pages: list[Message] = []

    def tamper(_who: object, _request: Message, reply: Message) -> Message:
        if not isinstance(reply, WrapsPage):
            return reply
        pages.append(reply)
        if lies == "the repair" and len(pages) > 1:
            return reply
        items = [
            changed(one, wrap=one.wrap and changed(one.wrap, key_id=key_id))
            if one.file_id == file_id
            else one
            for one in with_full_wraps(reply.items)
        ]
        return changed(reply, items=tuple(items))

    named: list[str] = []

    def name(what: str, error: sfsc.SfscError) -> None:
        named.append(f"{what}: {error.cause}")

    if lies in ("the repair", "all listings"):
        lying_server.tamper = tamper
    sfsc.take_back(code, home=ada, on_destroyed=name)
    with connect(ada) as store:
        if lies == "a rotation":
            lying_server.tamper = tamper
            store.rotate(compromised=True, skip=name)
        if lies == "a verification":
            lying_server.tamper = tamper
            store.verify_rotation(skip=name)
        assert pages
        assert any("wrap of somebody with stolen keys, which its log lacks" in one for one in named)
        assert all("plan" in one for one in named)
        lying_server.honest()
        assert [one.name for one in store.ls()] == ["kept", "plan"]
