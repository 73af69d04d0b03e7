"""Sharing and unsharing with a real daemon and clients, and a malicious operator in between."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

import sfsc
from protocol.codec import encoding
from protocol.codec.values import changed
from protocol.records.records import WRAP_ITEM_SIZE, FileRecord
from protocol.wire.messages import Error, FileView, Reply
from protocol.wire.messages.downloads import Opened, OpenedVersion
from protocol.wire.messages.files import Listing, Stated
from protocol.wire.messages.sharing import Identity, InboxPage, SharedFile
from sfsc.cli.commands.sharing import parse_expiry
from sfsc.crypto.envelope import ContentKey, Metadata, WrapBatches
from sfsc.crypto.primitives import metadata_key, seal
from sfsc.crypto.segments import HEADER_SIZE
from sfsc.errors import (
    BadReceipt,
    BadRecord,
    BrokenChain,
    ConflictError,
    NotFound,
    Rollback,
    SfscError,
    Tampered,
    UsageError,
    WeakRecipient,
)
from sfsc.session.limits import Ticket
from sfsc.session.transport import Transport
from sfsc.trust.file_records import SETTINGS
from sfsd.storage.json_files import parse_sidecar
from tests.e2e.accounts import enrolled, new_root
from tests.harness import Client, Daemon
from tests.opens import only_result, with_each
from tests.protocol.wire_form import plain
from tests.terminal import converse


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with new_root(tmp_path_factory.mktemp("sharing") / "root") as served:
        yield served


def people(daemon: Daemon, folder: Path, *names: str) -> list[Client]:
    """Return users that no other test uses."""
    return [enrolled(daemon, name, folder / name) for name in names]


def connect(client: Client) -> sfsc.Store:
    return sfsc.connect(client.home)


def another_machine(client: Client, folder: Path) -> Client:
    """Return the same account on another machine without remembered state."""
    backup, home = folder / "backup", folder / "second"
    with connect(client) as store:
        store.backup(backup, no_passphrase=True)
    sfsc.restore(backup, home=home, no_passphrase=True)
    return Client(home)


def blob_of(daemon: Daemon, client: Client, name: str, version: int | None = None) -> bytes:
    with connect(client) as store:
        where = store.export_dek(name, version=version).ciphertext
    return (daemon.root / where).read_bytes()


def test_share_read_rotate_and_unshare(daemon: Daemon, tmp_path: Path) -> None:
    alice, bob = people(daemon, tmp_path, "alice", "bob")
    with connect(alice) as store:
        put(store, "docs/plan.txt", b"the plan, first draft")

    # A user is not trusted only because the server names them.
    refused = alice.run("share", "docs/plan.txt", "bob", code=4)
    shown = sfsc.whoami(bob.home).fingerprint.hex()
    assert shown in refused.stderr
    alice.run("key", "verify", "bob", "00" * 32, code=5)
    alice.run("key", "verify", "bob", shown)
    alice.run("share", "docs/plan.txt", "bob")

    # Bob reads the file; until bob compares fingerprints, only the server vouches for the owner.
    (listed,) = [json.loads(line) for line in bob.run("--json", "inbox").lines]
    assert (listed["owner"], listed["name"]) == ("alice", "docs/plan.txt")
    assert listed["verified"] is False
    bob.run("cat", "alice:docs/plan.txt", code=4)
    own = sfsc.whoami(alice.home).fingerprint.hex()
    bob.run("key", "verify", "alice", own)
    assert bob.run("cat", "alice:docs/plan.txt").text == "the plan, first draft"

    # Bob rotates and keeps access. Alice writes again and rotates, which bob does not notice.
    with connect(bob) as reader:
        reader.rotate()
        assert fetched(reader, "alice", "docs/plan.txt") == b"the plan, first draft"
    with connect(alice) as store, connect(bob) as reader:
        put(store, "docs/plan.txt", b"the plan, second draft")
        assert fetched(reader, "alice", "docs/plan.txt") == b"the plan, second draft"
        store.rotate()
        assert fetched(reader, "alice", "docs/plan.txt") == b"the plan, second draft"
        for one in (store, reader):
            one.verify_rotation()
            one.audit_verify()
    assert bob.run("ls", "--shared").text == "alice:docs/plan.txt\n"
    assert "with bob" in alice.run("stat", "docs/plan.txt").text

    # Bob may have kept the key of a version that bob has read.
    saved = saved_key(bob, "alice", "docs/plan.txt")
    assert opens(saved, blob_of(daemon, alice, "docs/plan.txt"))
    alice.run("unshare", "docs/plan.txt", "bob", "--reencrypt")
    bob.run("cat", "alice:docs/plan.txt", code=3)
    bob.run("get", "alice:docs/plan.txt", "--id", listed["file_id"], code=3)
    with pytest.raises(Tampered):
        opens(saved, blob_of(daemon, alice, "docs/plan.txt"))
    with connect(alice) as store, connect(bob) as reader:
        with store.open("docs/plan.txt") as file:
            assert file.read() == b"the plan, second draft"
        with pytest.raises(NotFound):
            store.unshare("docs/plan.txt", "bob")
        assert reader.inbox() == []
        for one in (store, reader):
            one.audit_verify()


def saved_key(reader: Client, owner: str, name: str) -> ContentKey:
    with connect(reader) as store:
        blob = store._inbox.request_version(owner, name)
        return blob._key


def opens(key: ContentKey, blob: bytes) -> bool:
    key.decryptor(memoryview(blob)[:HEADER_SIZE], len(blob)).open_segment(0, memoryview(blob))
    return True


# --- folders, versions, time ------------------------------------------------------------------


def put(store: sfsc.Store, name: str, content: bytes) -> None:
    store.put(io.BytesIO(content), name=name)


def fetched(store: sfsc.Store, owner: str, name: str, version: int | None = None) -> bytes:
    target = io.BytesIO()
    store.get_shared(owner, name, target, version=version, trust_first_use=True)
    return target.getvalue()


def names(store: sfsc.Store) -> list[str]:
    return [f"{one.owner}:{one.entry.name}" for one in store.inbox()]


def test_files_shared_together_have_one_batch_for_the_reader(
    daemon: Daemon, tmp_path: Path
) -> None:
    rob, sal = people(daemon, tmp_path, "rob", "sal")
    with connect(rob) as store:
        for name in ("team/a", "team/b", "team/c"):
            put(store, name, name.encode())
        assert len(list(store.share_tree("team", "sal", trust_first_use=True))) == 3
    batches: dict[str, set[bytes]] = {"rob": set(), "sal": set()}
    for path in (daemon.root / "store" / "users" / "rob" / "files").rglob("*.json"):
        for wrap in parse_sidecar(path.name, path.read_bytes()).wraps:
            batches[wrap.user].add(wrap.wrapped[:-WRAP_ITEM_SIZE])
    assert len(batches["sal"]) == 1
    assert len(batches["rob"]) == 4, "of each put, and of the settings"
    assert batches["sal"].isdisjoint(batches["rob"])
    with connect(sal) as store:
        assert [fetched(store, "rob", f"team/{name}") for name in "abc"] == [
            b"team/a",
            b"team/b",
            b"team/c",
        ]


def test_a_shared_folder_is_synchronized_to_every_machine(daemon: Daemon, tmp_path: Path) -> None:
    fay, gil = people(daemon, tmp_path, "fay", "gil")
    with connect(fay) as store:
        put(store, "team/a", b"a")
        put(store, "private", b"p")
        store.rm("team/a")
        put(store, "team/a", b"again")
    fay.run("share", "-r", "team", "gil", "--trust-first-use")
    second = another_machine(fay, tmp_path)
    with connect(second) as store:
        put(store, "team/b", b"b")
        put(store, "teammate", b"not inside")
        assert [one.name for one in store.ls()] == ["private", "team/a", "team/b", "teammate"]
        assert [one.user for one in store.readers("team/b")] == ["gil"]
    gil.run("get", "-r", "fay:team", "-o", tmp_path / "got", "--trust-first-use")
    assert (tmp_path / "got" / "team" / "a").read_bytes() == b"again"
    assert (tmp_path / "got" / "team" / "b").read_bytes() == b"b"
    with connect(gil) as store:
        assert names(store) == ["fay:team/a", "fay:team/b"]
    assert "gil\t-\tteam/" in fay.run("share", "--list").text
    second.run("unshare", "-r", "team", "gil")
    with connect(fay) as store:
        put(store, "team/c", b"c")
        assert store.readers("team/c") == store.readers("team/a") == []
        assert store.shared_folders() == ()
        store.rotate()
        store.verify_rotation()
        store.audit_verify()
    with connect(gil) as store:
        assert names(store) == []


def test_a_file_that_returns_to_a_shared_folder_gets_its_readers(
    daemon: Daemon, tmp_path: Path
) -> None:
    fox, gus = people(daemon, tmp_path, "fox", "gus")
    with connect(fox) as store:
        for name in ("team/put", "team/large", "team/restored", "moved"):
            put(store, name, b"old")
        for name in ("put", "large", "restored"):
            store.rm(f"team/{name}")
        assert list(store.share_tree("team", "gus", trust_first_use=True)) == []
        large = bytes(3_000_000)
        put(store, "team/put", b"new")
        put(store, "team/large", large)
        store.restore("team/restored")
        store.mv("moved", "team/moved")
        for name in ("put", "large", "restored", "moved"):
            assert [one.user for one in store.readers(f"team/{name}")] == ["gus"]
        store.audit_verify()
    with connect(gus) as reader:
        assert len(names(reader)) == 4
        assert fetched(reader, "fox", "team/put") == b"new"
        assert fetched(reader, "fox", "team/large") == large
        assert fetched(reader, "fox", "team/restored") == b"old"
        assert fetched(reader, "fox", "team/moved") == b"old"
    empty = fox.run("share", "-r", "nothing", "gus")
    assert "no file is in nothing yet" in empty.stderr


def test_the_end_of_a_grant_is_kept(daemon: Daemon, tmp_path: Path) -> None:
    kit, _ = people(daemon, tmp_path, "kit", "ulla")
    end = "until 2099-12-31"
    with connect(kit) as store:
        put(store, "team/f", b"1")
        put(store, "team/f", b"2")
    first = kit.run("share", "team/f", "ulla", "--expires", "2099-12-30", "--trust-first-use")
    assert end in first.stderr
    assert end in kit.run("share", "team/f", "ulla", "--history").stderr
    assert end in kit.run("share", "-r", "team", "ulla").stderr
    assert "2099" not in kit.run("share", "--list").text
    kit.run("share", "-r", "team", "ulla", "--expires", "2099-12-30")
    kit.run("share", "-r", "team", "ulla")
    assert "\t2099-12-31 00:00:00Z\t" in kit.run("share", "--list").text
    assert "until" not in kit.run("share", "team/f", "ulla", "--expires", "never").stderr
    with connect(kit) as store:
        assert [one.expires for one in store.readers("team/f")] == [0]


def test_restore_and_move_keep_readers(daemon: Daemon, tmp_path: Path) -> None:
    hal, ida = people(daemon, tmp_path, "hal", "ida")
    with connect(hal) as store, connect(ida) as reader:
        for content in (b"one", b"two"):
            put(store, "f", content)
        store.share("f", "ida", trust_first_use=True)
        assert fetched(reader, "hal", "f") == b"two"
        with pytest.raises(sfsc.KeyringError, match="version 1 was not shared with you"):
            fetched(reader, "hal", "f", 1)
        store.share("f", "ida", history=True)
        assert fetched(reader, "hal", "f", 1) == b"one"
        store.rm("f")
        assert names(reader) == []
        with pytest.raises(NotFound):
            fetched(reader, "hal", "f")
        store.restore("f", version=1)
        assert fetched(reader, "hal", "f") == b"one"
        store.mv("f", "g")
        assert names(reader) == ["hal:g"]
        assert fetched(reader, "hal", "g") == b"one"
        with reader.open_shared("hal", "g") as file:
            file.seek(1)
            assert file.read() == b"ne"
        store.audit_verify()
        reader.audit_verify()


def test_a_large_upload_is_rewrapped_for_a_changed_key(daemon: Daemon, tmp_path: Path) -> None:
    """The reader's new key is found while the log is followed, before the upload is committed."""
    jon, kim = people(daemon, tmp_path, "jon", "kim")
    content = bytes(3_000_000)
    with connect(jon) as store, connect(kim) as reader:
        put(store, "big", b"small at first")
        put(store, "small", b"1")
        store.share("big", "kim", trust_first_use=True)
        store.share("small", "kim")
        reader.rotate(key_type="rsa2048")
        sent: list[str] = []
        with watched(sent):
            put(store, "big", content)
            put(store, "small", b"2")
        assert sent.count("PutOpen") == 1
        assert sent.count("Commit") == 2, "one for each file, and none is repeated"
        assert fetched(reader, "jon", "big") == content
        assert fetched(reader, "jon", "small") == b"2"
        # In the other direction: the owner decides which keys are strong enough.
    with sfsc.connect(jon.home, min_wrap_alg="x25519") as store:
        for denied in (
            lambda: put(store, "big", b"x"),
            lambda: store.share("small", "kim"),
            lambda: store.restore("small", version=1),
        ):
            with pytest.raises(WeakRecipient):
                denied()
    jon.run("put", tmp_path / "jon" / "keyring", "--name", "small", code=0)


def test_own_keys_obey_the_minimum_algorithm(daemon: Daemon, tmp_path: Path) -> None:
    sue = enrolled(daemon, "sue", tmp_path / "sue", "x25519")
    with sfsc.connect(sue.home, min_wrap_alg="xwing") as store:
        with pytest.raises(WeakRecipient):
            store.rotate(key_type="rsa3072")
        assert store.rotate().key_type == "xwing"
        assert store.rotate().key_type == "xwing"
    with pytest.raises(UsageError):
        sfsc.connect(sue.home, min_wrap_alg="rot13")
    sue.run("whoami")


@contextlib.contextmanager
def watched(sent: list[str]) -> Iterator[None]:
    submit = Transport.submit

    def noting(transport: Transport, message: object) -> Ticket:
        sent.append(type(message).__name__)
        return submit(transport, message)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transport, "submit", noting)
        yield


def test_duplicate_and_invalid_names_from_a_sharer(daemon: Daemon, tmp_path: Path) -> None:
    """The owner of a shared file is not trusted: neither the file ids nor the names."""
    lea, max_ = people(daemon, tmp_path, "lea", "max")
    with connect(lea) as store:
        for name in ("twin", "other", "fine"):
            put(store, name, name.encode())
            store.share(name, "max", trust_first_use=True)
        with pytest.MonkeyPatch.context() as patch:
            # The owner's modified client seals arbitrary metadata.
            sealed = ContentKey.seal_metadata
            patch.setattr(
                ContentKey,
                "seal_metadata",
                lambda key, metadata: sealed(key, renamed(metadata, "twin")),
            )
            put(store, "other", b"the other twin")
    max_.run("cat", "lea:twin", "--trust-first-use", code=6)
    with connect(max_) as store:
        ids = {one.entry.file_id for one in store.inbox() if one.entry.name == "twin"}
        with pytest.raises(ConflictError, match="2 files") as caught:
            fetched(store, "lea", "twin")
        assert all(one in caught.value.cause for one in ids)
        found = set()
        for one in ids:
            target = io.BytesIO()
            store.get_shared("lea", "twin", target, file_id=one)
            found.add(target.getvalue())
        assert found == {b"twin", b"the other twin"}
    with connect(lea) as store, pytest.MonkeyPatch.context() as patch:
        hostile = "../../.ssh/authorized_keys"
        patch.setattr(
            ContentKey, "seal_metadata", lambda key, metadata: _sealed_as(key, metadata, hostile)
        )
        put(store, "other", b"hostile")
    skipped: list[tuple[str, SfscError]] = []
    with connect(max_) as store:
        shown = store.inbox(skip=lambda what, why: skipped.append((what, why)))
        assert [one.entry.name for one in shown] == ["fine", "twin"]
        ((what, why),) = skipped
        assert what.startswith("lea:")
        assert isinstance(why, BadRecord)
        assert fetched(store, "lea", "fine") == b"fine"
    max_.run("inbox", code=5)


def renamed(metadata: Metadata, name: str) -> Metadata:
    return changed(metadata, name=name)


def _sealed_as(key: ContentKey, metadata: Metadata, name: str) -> bytes:
    told = {**plain(metadata), "name": name}
    return seal(metadata_key(key.dek), encoding.pack(told), key.content_id)


def test_garbage_from_a_sharer_does_not_block_rotation(daemon: Daemon, tmp_path: Path) -> None:
    ned, oli = people(daemon, tmp_path, "ned", "oli")
    with connect(ned) as store:
        put(store, "good", b"good")
        put(store, "bad", b"bad")
        store.share("good", "oli", trust_first_use=True)
        with pytest.MonkeyPatch.context() as patch:
            wrap = WrapBatches.wrap_version
            patch.setattr(
                WrapBatches,
                "wrap_version",
                lambda *asked: [
                    (version, changed(batch, enc=bytes(1168)), item)
                    for version, batch, item in wrap(*asked)
                ],
            )
            store.share("bad", "oli")
    with connect(oli) as store:
        put(store, "own", b"own")
        assert store.rotate().files == 2  # her own file and the readable one
        store.verify_rotation()
        assert fetched(store, "ned", "good") == b"good"
        skipped: list[str] = []
        store.inbox(skip=lambda _what, why: skipped.append(why.cause))
        assert len(skipped) == 1
        with pytest.raises(NotFound):
            fetched(store, "ned", "bad")


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ("12h", 1000 + 12 * 3600),
        ("30d", 1000 + 30 * 86_400),
        ("30d 1h", 1000 + 30 * 86_400 + 3600),
        ("1970-01-02", 2 * 86_400),
        ("never", 0),
    ],
)
def test_valid_times(text: str, until: int) -> None:
    assert parse_expiry(text, 1000.9) == until


@pytest.mark.parametrize("text", ["", "30", "0d", "-1d", "1970-01-01x", "1969-12-31", "31d1x"])
def test_invalid_times(text: str) -> None:
    with pytest.raises(UsageError):
        parse_expiry(text, 1000.0)


@pytest.mark.skipif(os.name == "nt", reason="terminals are POSIX ones here")
def test_the_fingerprint_is_confirmed_on_a_terminal(daemon: Daemon, tmp_path: Path) -> None:
    pia, ray = people(daemon, tmp_path, "pia", "ray")
    with connect(pia) as store:
        put(store, "f", b"f")
    shown = sfsc.whoami(ray.home).fingerprint.hex()
    question = "Have you compared this fingerprint with the user?"
    refused = converse(pia.home, "share", "f", "ray", answers=[(question, "n")], code=4)
    assert shown in refused.stderr
    arguments = ("share", "f", "ray", "--expires", "2099-12-31")
    converse(pia.home, *arguments, answers=[(question, "y")], stdin=b"n\n")
    (shared,) = [json.loads(line) for line in ray.run("--json", "inbox").lines]
    assert (shared["owner"], shared["name"], shared["expires"]) == ("pia", "f", 4_102_444_800)
    about = json.loads(pia.run("--json", "stat", "f").text)
    assert about["readers"] == [{"user": "ray", "expires": 4_102_444_800}]
    known = json.loads(pia.run("--json", "key", "verify", "ray").text)
    assert (known["fingerprint"], known["verified"]) == (shown, True)
    # After the first confirmation the user is not asked again.
    with connect(pia) as store:
        store.unshare("f", "ray")
        store.share("f", "ray")


# --- a lying server -----------------------------------------------------------------------


@contextlib.contextmanager
def lying(spoil: Callable[[Reply], Reply]) -> Iterator[None]:
    """Pass every reply through `spoil` before the client sees it."""
    result = Transport.result

    def spoiled(transport: Transport, ticket: Ticket, timeout: float | None = None) -> Reply:
        return spoil(result(transport, ticket, timeout))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transport, "result", spoiled)
        yield


@dataclasses.dataclass
class Trio:
    """ada shares `shared` with ben, not with cyd; ben shares `bens` with ada."""

    ada: Client
    ben: Client
    cyd: Client


@pytest.fixture(scope="module")
def trio(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Trio:
    made = Trio(*people(daemon, tmp_path_factory.mktemp("trio"), "ada", "ben", "cyd"))
    with connect(made.ada) as store:
        put(store, "shared", b"shared")
        put(store, "also", b"also shared")
        put(store, "mine", b"mine")
        store.share("shared", "ben", trust_first_use=True)
        store.share("also", "ben")
    with connect(made.ben) as store:
        put(store, "bens", b"bens")
        store.share("bens", "ada", trust_first_use=True)
        fetched(store, "ada", "shared")
    return made


def captured(client: Client, kind: type[Reply], action: Callable[[sfsc.Store], object]) -> Reply:
    """Return the last reply of a type that `action` receives."""
    found: list[Reply] = []

    def note(reply: Reply) -> Reply:
        if isinstance(reply, kind):
            found.append(reply)
        return reply

    with lying(note), connect(client) as store:
        action(store)
    return found[-1]


def test_a_reader_added_by_the_server_is_refused(trio: Trio) -> None:
    """Cyd is shown a file that was never shared with her; ada is shown cyd as a reader."""
    shown = captured(trio.ben, Opened, lambda store: fetched(store, "ada", "shared"))
    opened = only_result(shown)
    assert isinstance(opened, OpenedVersion)
    page = InboxPage((SharedFile("ada", file_id_of(opened.view), opened.view),), "")
    with (
        lying(lambda reply: page if isinstance(reply, InboxPage) else reply),
        connect(trio.cyd) as store,
        pytest.raises(BadRecord, match="does not share"),
    ):
        store.inbox()
    # A request by name is not answered with "not found".
    with (
        lying(lambda reply: page if isinstance(reply, InboxPage) else reply),
        connect(trio.cyd) as store,
        pytest.raises(BadRecord, match="does not share"),
    ):
        store.get_shared("ada", "shared", io.BytesIO(), trust_first_use=True)

    def with_cyd(reply: Reply) -> Reply:
        if not isinstance(reply, Stated):
            return reply
        view = reply.view
        body = view.head.record if view.head else view.content.record
        spoiled = body.replace(b"ben", b"cyd")
        signed = changed(view.head or view.content, record=spoiled)
        return Stated(changed(view, head=signed))

    with lying(with_cyd), connect(trio.ada) as store, pytest.raises(BadRecord):
        put(store, "shared", b"for whom?")


def test_another_key_for_a_user_is_refused(trio: Trio) -> None:
    """The server presents cyd's statements as ben's, and then a changed fingerprint."""
    cyd = captured(trio.ada, Identity, lambda store: store.person("cyd"))
    with (
        lying(lambda reply: cyd if isinstance(reply, Identity) else reply),
        connect(trio.ada) as store,
        pytest.raises((BadReceipt, BrokenChain)),
    ):
        store.share("mine", "ben")
    with connect(trio.ada) as store:
        fingerprint = store.person("cyd").fingerprint
        with pytest.raises(BrokenChain) as caught:
            store.verify_person("ben", fingerprint)
        assert (caught.value.exit_code, caught.value.pinned) == (5, fingerprint.hex())


def test_an_older_statement_of_a_reader_is_refused(trio: Trio) -> None:
    with connect(trio.ben) as store:
        before = captured(trio.ada, Identity, lambda owner: owner.person("ben"))
        store.rotate()
    with connect(trio.ada) as store:
        store.person("ben")
    assert isinstance(before, Identity)
    last = before.statements[-1:]

    def hidden(reply: Reply) -> Reply:
        if isinstance(reply, Identity) and any(b"ben" in one.statement for one in reply.statements):
            return changed(reply, statements=(), next=0)
        return reply

    assert last
    with lying(hidden), connect(trio.ada) as store, pytest.raises(Rollback):
        store.share("mine", "ben")
    with connect(trio.ada) as store:
        assert store.readers("mine") == []


def of_now(shown: Reply, reply: Opened) -> Reply:
    """Return what another request was shown, with the log entry of the present one."""
    assert isinstance(shown, Opened)
    return changed(shown, receipt=reply.receipt)


def test_wraps_and_contents_of_other_files_are_refused(trio: Trio) -> None:
    with connect(trio.ben) as store:
        ids = {one.entry.name: one.entry.file_id for one in store.inbox()}
    other = captured(trio.ben, Opened, lambda store: fetched(store, "ada", "also"))
    true = only_result(other)
    assert isinstance(true, OpenedVersion)

    def wrapped(reply: Reply) -> Reply:
        if not isinstance(reply, Opened):
            return reply
        return with_each(
            reply, lambda one: changed(one, view=changed(one.view, wraps=true.view.wraps))
        )

    with lying(wrapped), connect(trio.ben) as store, pytest.raises(Tampered):
        fetched(store, "ada", "shared")
    with (
        lying(lambda reply: of_now(other, reply) if isinstance(reply, Opened) else reply),
        connect(trio.ben) as store,
        pytest.raises(BadRecord),
    ):
        store.get_shared("ada", "shared", io.BytesIO(), file_id=ids["shared"])


def test_a_file_attributed_to_another_owner_is_refused(trio: Trio) -> None:
    """A file signed by ben is never shown as cyd's or ada's."""
    page = captured(trio.ada, InboxPage, lambda store: store.inbox())
    assert isinstance(page, InboxPage)
    (item,) = page.files

    def as_of(owner: str) -> Callable[[Reply], Reply]:
        told = InboxPage((SharedFile(owner, item.file_id, item.view),), "")
        return lambda reply: told if isinstance(reply, InboxPage) else reply

    for owner in ("cyd", "ada"):
        with lying(as_of(owner)), connect(trio.ada) as store, pytest.raises(BadRecord):
            store.inbox()
    opened = captured(trio.ada, Opened, lambda store: fetched(store, "ben", "bens"))
    with (
        lying(lambda reply: of_now(opened, reply) if isinstance(reply, Opened) else reply),
        connect(trio.ada) as store,
        pytest.raises(BadRecord),
    ):
        store.get("mine", io.BytesIO())


def test_an_unshare_hidden_from_another_machine(daemon: Daemon, trio: Trio, tmp_path: Path) -> None:
    """The second machine never saw the file, but the account's log shows the hidden change."""
    with connect(trio.ada) as store:
        put(store, "hidden", b"hidden")
        store.share("hidden", "ben")
    second = another_machine(trio.ada, tmp_path)
    with connect(trio.ada) as store:
        old = captured(trio.ada, Stated, lambda _store: store.stat("hidden"))
        store.unshare("hidden", "ben")
    assert isinstance(old, Stated)
    file_id = file_id_of(old.view)

    def back_then(reply: Reply) -> Reply:
        if isinstance(reply, Stated) and file_id_of(reply.view) == file_id:
            return old
        if isinstance(reply, Error) and reply.head and file_id_of(reply.head) == file_id:
            return changed(reply, head=old.view)
        return reply

    with lying(back_then), connect(second) as store, pytest.raises(Rollback) as caught:
        put(store, "hidden", b"for ben's eyes")
    assert caught.value.exit_code == 5
    with lying(back_then), connect(second) as store, pytest.raises(Rollback):
        store.share("hidden", "cyd", trust_first_use=True)
    with connect(second) as store:
        put(store, "hidden", b"not for ben")
    with connect(trio.ben) as store, pytest.raises(NotFound):
        fetched(store, "ada", "hidden")


def test_a_share_hidden_from_its_owner(trio: Trio, tmp_path: Path) -> None:
    """Another machine is shown an older record, or none, instead of the share."""
    with connect(trio.ada) as store:
        put(store, "given/away", b"")
        old = captured(trio.ada, Stated, lambda _store: store.stat("given/away"))
        store.share("given/away", "ben")
        list(store.share_tree("given", "ben"))
    assert isinstance(old, Stated)
    file_id = file_id_of(old.view)

    def back_then(reply: Reply) -> Reply:
        if isinstance(reply, Listing):
            shown = (old.view if file_id_of(one) == file_id else one for one in reply.views)
            return changed(reply, views=tuple(shown))
        is_it = isinstance(reply, Stated) and file_id_of(reply.view) == file_id
        return old if is_it else reply

    def hidden(reply: Reply) -> Reply:
        if isinstance(reply, Listing):
            return changed(reply, views=())
        return Error("not-found", "") if isinstance(reply, Stated) else reply

    def unshare_all(store: sfsc.Store) -> None:
        list(store.unshare_tree("given", "ben"))

    def unshare(store: sfsc.Store) -> None:
        store.unshare("given/away", "ben")

    for number, (lie, action) in enumerate(product((back_then, hidden), (unshare, unshare_all))):
        second = another_machine(trio.ada, tmp_path / str(number))
        with lying(lie), connect(second) as store, pytest.raises(Rollback):
            action(store)


def test_an_older_list_of_shared_folders_is_refused(
    daemon: Daemon, trio: Trio, tmp_path: Path
) -> None:
    with connect(trio.cyd) as store:
        list(store.share_tree("folder", "ben", trust_first_use=True))
        settings = store._session.account.file_id(SETTINGS)
    second = another_machine(trio.cyd, tmp_path)
    old = captured(trio.cyd, Stated, lambda store: store.shared_folders())
    assert isinstance(old, Stated)
    assert file_id_of(old.view) == settings
    with connect(trio.cyd) as store:
        assert list(store.unshare_tree("folder", "ben")) == []

    def back_then(reply: Reply) -> Reply:
        is_old = isinstance(reply, Stated) and file_id_of(reply.view) == settings
        return old if is_old else reply

    with lying(back_then), connect(second) as store, pytest.raises(Rollback):
        put(store, "folder/new", b"for ben's eyes")
    with connect(second) as store:
        put(store, "folder/new", b"not for ben")
        assert store.readers("folder/new") == []


def test_log_and_store_still_agree(daemon: Daemon, trio: Trio) -> None:
    for client in (trio.ada, trio.ben, trio.cyd):
        with connect(client) as store:
            store.audit_verify()
    daemon.stop()
    try:
        daemon.run("fsck", "--read-data")
        daemon.run("audit", "verify", "--strict")
    finally:
        daemon.start()


def file_id_of(view: FileView) -> str:
    return FileRecord.parse(view.content.record).file_id


def opened_versions(client: Client, owner: str, name: str, versions: int) -> list[int]:
    """Return the versions of a shared file that the reader's client can open."""
    found = []
    with connect(client) as store:
        for version in range(1, versions + 1):
            with contextlib.suppress(SfscError):
                with store.open_shared(owner, name, version=version, trust_first_use=True) as file:
                    assert file.read() == b"version %d" % version
                found.append(version)
    return found


@pytest.mark.parametrize("names", [["f"], []])
def test_reencryption_gives_a_reader_no_older_versions(
    daemon: Daemon, tmp_path: Path, names: list[str]
) -> None:
    """After a re-encryption each reader opens the versions since they were added, as before."""
    suffix = "named" if names else "whole"
    alice, bob, carol, dora = people(
        daemon, tmp_path, *(f"{name}-{suffix}" for name in ("anna", "bert", "carol", "dora"))
    )
    users = [sfsc.whoami(one.home).user for one in (alice, bob, carol, dora)]
    with connect(alice) as store:
        for version in range(1, 7):
            if version == 5:
                # Carol was not a reader while version 4 was stored; she has the key of the newest
                # version since she was added again.
                store.share("f", users[2], trust_first_use=True)
            put(store, "f", b"version %d" % version)
            if version == 2:
                store.share("f", users[2], trust_first_use=True)
            if version == 3:
                store.unshare("f", users[2])
                store.share("f", users[1], trust_first_use=True)
        store.share("f", users[3], trust_first_use=True, history=True)
    before = [opened_versions(one, users[0], "f", 6) for one in (bob, carol, dora)]
    assert before == [[3, 4, 5, 6], [4, 5, 6], [1, 2, 3, 4, 5, 6]]
    with connect(alice) as store:
        store.rotate(compromised=True, names=names)
    assert opened_versions(bob, users[0], "f", 6) == [3, 4, 5, 6]
    assert opened_versions(carol, users[0], "f", 6) == [4, 5, 6]
    # Older versions shared with `--history` must be shared again.
    assert opened_versions(dora, users[0], "f", 6) == [6]
    with connect(alice) as store:
        store.share("f", users[3], history=True)
        store.verify_rotation()
        store.audit_verify()
    assert opened_versions(dora, users[0], "f", 6) == [1, 2, 3, 4, 5, 6]
