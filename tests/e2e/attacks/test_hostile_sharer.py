"""What one user can do to another by sharing files, if the server is honest."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sfsc
from protocol.codec import encoding
from protocol.codec.values import changed
from protocol.log.auditlog import EntryDraft
from protocol.records.records import LeaveRecord, key_id, record_hash
from protocol.records.signatures import Label
from protocol.wire.messages import Message, Reply, Request
from protocol.wire.messages.sharing import BlockOwner, LeaveFile
from sfsc.crypto.envelope import FOLDER, LINK, ContentKey, Metadata
from sfsc.crypto.primitives import metadata_key, seal
from sfsc.errors import (
    BadDestination,
    BadReceipt,
    LocalError,
    NotFound,
    SfscError,
    ShareRefused,
    UsageError,
)
from sfsc.store import Store
from sfsc.transfer.source import TreeItem
from sfsd.rules.context import Principal
from tests.harness import Client
from tests.lying_server import DropConnection, LyingServer


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


HIDDEN = "team/invoice\u202efdp.exe"


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_fetched_files_of_a_sharer_have_plain_names_and_modes_within_the_umask(
    lying_server: LyingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, bob = lying_server.enrol("ada"), lying_server.enrol("bob")
    open_to_all = tmp_path / "open"
    open_to_all.write_bytes(b"1")
    open_to_all.chmod(0o777)
    with connect(ada) as store:
        for name in ("team/a", HIDDEN, "team/z"):
            store.put(open_to_all, name=name)
        list(store.share_tree("team", "bob", trust_first_use=True))
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o027)
    try:
        skipped: list[tuple[str, SfscError]] = []
        with connect(bob) as store:
            got = store.get_tree(
                "team",
                tmp_path / "out",
                "ada",
                skip=lambda *one: skipped.append(one),
                trust_first_use=True,
            )
            assert [one.name for one in got] == ["team/a", "team/z"]
            for target in (None, tmp_path / "out"):
                with pytest.raises(BadDestination):
                    store.get_shared("ada", HIDDEN, target)
            store.get_shared("ada", HIDDEN, tmp_path / "named")
            into = io.BytesIO()
            store.get_shared("ada", HIDDEN, into)
            assert into.getvalue() == b"1"
        with connect(ada) as store:  # the mode and the name are the user's own choice
            store.get(HIDDEN, tmp_path / "own")
    finally:
        os.umask(before)
    assert [(name, type(error)) for name, error in skipped] == [(HIDDEN, BadDestination)]
    assert sorted(os.listdir(tmp_path / "out/team")) == ["a", "z"]

    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert [mode(tmp_path / name) for name in ("out/team/a", "named", "own")] == [
        0o750,
        0o750,
        0o777,
    ]


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_links_and_folders_of_a_sharer_lead_nowhere(
    lying_server: LyingServer, tmp_path: Path
) -> None:
    """Whatever order they come in, and however often the folder is fetched: nothing is written,
    and nothing can be read, outside of it."""
    mallory, bob = lying_server.enrol("mallory3"), lying_server.enrol("bob3")
    home, out = tmp_path / "home", tmp_path / "home" / "out"
    home.mkdir(mode=0o750)
    (home / "precious").write_bytes(b"precious")
    (home / "mine").mkdir()
    out.mkdir(mode=0o700)
    (out / "kept").mkdir(mode=0o700)
    home.chmod(0o777)
    status = home.stat()
    home.chmod(0o750)
    out_of_tree = {
        "m/absolute": str(home),
        "m/up": "../..",
        "m/dots": "sub/../../../precious",
        "m/through": "sub/deep/../../mine",
        "m/bidi": "a\u202ecod.exe",
        "m/control": "a\x1b[2J",
        "kept": "../mine",
    }
    targets = out_of_tree | {"m/sub/deep": "..", "m/inside": "sub/file", "m/a": "sub"}
    items = [TreeItem(name, name, LINK, status, target) for name, target in targets.items()]
    items += [TreeItem(name, name, FOLDER, status) for name in ("kept/", "m/", "m/closed/", "m/a/")]
    written = ("m/absolute/x", "m/up/x", "m/a/x", "m/sub/file", "m/sub/deep/x", "kept/precious")
    with connect(mallory) as store:
        list(store._uploads.put_many([(item, None) for item in items]))
        for name in written:
            store.put(io.BytesIO(b"new"), name=name)
        list(store.share_tree("", "bob3", trust_first_use=True))
    for _ in range(2):
        refused = dict[str, SfscError]()
        with connect(bob) as store:
            got = store.get_tree(
                "/", out, "mallory3", skip=refused.__setitem__, trust_first_use=True, links=True
            )
            assert {"m/inside", "m/sub/file", "kept/precious"} <= {one.name for one in got}
        assert out_of_tree.keys() == {
            name for name, error in refused.items() if "leads elsewhere" in error.cause
        }
        assert {type(error) for error in refused.values()} <= {BadDestination, LocalError}
    everything = [Path(at) / name for at, dirs, files in os.walk(home) for name in dirs + files]
    for path in everything:
        if path.is_symlink():
            assert path.resolve().is_relative_to(out.resolve()), path
    assert sorted(os.listdir(home)) == ["mine", "out", "precious"]
    assert (home / "precious").read_bytes() == b"precious"
    assert os.listdir(home / "mine") == []
    assert stat.S_IMODE(home.stat().st_mode) == 0o750
    assert [stat.S_IMODE((out / name).stat().st_mode) for name in ("", "kept")] == [0o700] * 2


NAMES = ["", "/etc/passwd", "../.ssh/config", "a//b", "a\x00b", "\x1b[2Jsafe", "x" * 2000, 7]
"""Names that no honest client seals."""


def sealed_with(name: object) -> Callable[[ContentKey, Metadata], bytes]:
    """Return what replaces `ContentKey.seal_metadata` in a hostile sharer's client."""

    def seal_metadata(self: ContentKey, metadata: Metadata) -> bytes:
        fields = {one: getattr(metadata, one) for one in metadata.__struct_fields__}
        body = encoding.pack(fields | {"name": name})
        return seal(metadata_key(self.dek), body, self.content_id)

    return seal_metadata


def test_malformed_names_do_not_end_the_inbox(
    lying_server: LyingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mallory, ada = lying_server.enrol("mallory"), lying_server.enrol("ada")
    bob = lying_server.enrol("bob")
    with connect(mallory) as store:
        list(store.share_tree("m", "bob", trust_first_use=True))
        for number, name in enumerate((*NAMES, "m/safe\u202efdp.exe")):
            with monkeypatch.context() as patch:
                patch.setattr(ContentKey, "seal_metadata", sealed_with(name))
                store.put(io.BytesIO(b"1"), name=f"m/{number}")
    with connect(ada) as store:
        store.put(io.BytesIO(b"1"), name="zebra")
        store.share("zebra", "bob", trust_first_use=True)
    client = Client(bob)
    shown = client.run("inbox", code=5)
    listed = [line.split("\t")[4] for line in shown.lines]
    assert listed == ["ada:zebra", r"mallory:m/safe\u202efdp.exe"]
    assert not {"\x1b", "\0"} & {*shown.text, *shown.stderr}
    unreadable = [line for line in shown.stderr.splitlines() if "mallory:" in line]
    assert len(unreadable) == len(NAMES)
    # What cannot be shown can be left by the id that is shown instead.
    (file_id,) = {line.split("mallory:")[1][:32] for line in unreadable[:1]}
    client.run("inbox", "leave", f"mallory:{file_id}")
    again = client.run("inbox", code=5)
    assert len([line for line in again.stderr.splitlines() if "mallory:" in line]) == 7
    client.run("inbox", "block", "mallory")
    assert client.run("inbox", "blocked").lines == ["mallory"]
    assert [line.split("\t")[4] for line in client.run("inbox").lines] == ["ada:zebra"]
    (one,) = client.run("inbox", "--json").lines
    assert json.loads(one)["name"] == "zebra"
    client.run("inbox", "unblock", "mallory")
    client.run("inbox", "block", "nobody", code=3)
    client.run("inbox", "leave", "own-name", code=2)


@pytest.fixture
def shared(lying_server: LyingServer) -> tuple[Path, Path]:
    """The homes of ada, who shares the folder `team` with a file, and of bob, its reader."""
    ada, bob = lying_server.enrol("ada"), lying_server.enrol("bob")
    with connect(ada) as store:
        store.put(io.BytesIO(b"1"), name="team/plan")
        list(store.share_tree("team", "bob", trust_first_use=True))
    return ada, bob


def names_of(store: Store) -> list[str]:
    return [one.entry.name for one in store.inbox()]


def test_a_reader_leaves_a_file_and_the_owner_drops_them(
    lying_server: LyingServer, shared: tuple[Path, Path]
) -> None:
    ada, bob = shared
    with connect(bob) as store:
        assert names_of(store) == ["team/plan"]
        store.leave("ada", "team/plan")
        assert names_of(store) == []
        with pytest.raises(NotFound):
            store.leave("ada", "team/plan")
        with pytest.raises(NotFound):
            store.get_shared("ada", "team/plan", io.BytesIO(), trust_first_use=True)
        assert store.rotate().files == 0
        assert [one.op for one in store.audit_log()][-1] != "leave"
        assert "leave" in [one.op for one in store.audit_log()]
        store.audit_verify()
    with connect(ada) as store:
        assert [one.user for one in store.readers("team/plan")] == ["bob"]
    with connect(ada) as store:  # the session before has read the leave record
        store.put(io.BytesIO(b"2"), name="team/plan")
        assert store.readers("team/plan") == []
        assert [one.op for one in store.audit_log("team/plan")][-3:] == [
            "leave",
            "access",
            "upload",
        ]
        store.put(io.BytesIO(b"3"), name="team/plan")
        assert [one.op for one in store.audit_log("team/plan")][-1] == "upload"
        assert [one.op for one in store.history("team/plan")][-3:] == ["access", "put", "put"]
        store.put(io.BytesIO(b"1"), name="team/new")  # the folder is still shared
        store.audit_verify()
    with connect(bob) as store:
        assert names_of(store) == ["team/new"]
    with connect(ada) as store:
        store.share("team/plan", "bob")
    with connect(bob) as store:
        assert names_of(store) == ["team/new", "team/plan"]
        into = io.BytesIO()
        store.get_shared("ada", "team/plan", into, trust_first_use=True)
        assert into.getvalue() == b"3"


CHANGES: dict[str, Callable[[Store, str], object]] = {
    "put": lambda store, name: store.put(io.BytesIO(b"9"), name=name),
    "delete": lambda store, name: store.rm(name),
    "restore": lambda store, name: store.restore(name, version=1),
    "prune": lambda store, name: store.prune(name, keep=1),
    "move": lambda store, name: store.mv(name, "private"),
    "share": lambda store, name: store.share(name, "carol", trust_first_use=True),
}


def test_the_next_change_of_any_machine_drops_who_has_left(
    lying_server: LyingServer, shared: tuple[Path, Path]
) -> None:
    ada, bob = shared
    lying_server.enrol("carol")
    names = [f"team/{change}" for change in CHANGES]
    with connect(ada) as store:
        for _ in range(2):
            list(store.put_many((io.BytesIO(b"1"), name) for name in names))
    with connect(bob) as store:
        for name in (*names, "team/plan"):
            store.leave("ada", name)
    # A machine that remembers nothing learns it from the log.
    with connect(lying_server.copied(ada, "second")) as store:
        for name, change in zip(names, CHANGES.values(), strict=True):
            change(store, name)
        list(store.share_tree("team", "carol"))
    with connect(ada) as store:
        session = store._session
        for name in (*names, "team/plan", "private"):
            head = session.fetch_newest(session.account.file_id(name)).head
            assert "bob" not in [user for user, _, _ in head.readers], name
        store.audit_verify()


def test_to_share_a_file_again_brings_back_a_reader_who_has_left(
    shared: tuple[Path, Path],
) -> None:
    ada, bob = shared
    with connect(bob) as store:
        store.leave("ada", "team/plan")
    with connect(ada) as store:
        store.share("team/plan", "bob")
        store.put(io.BytesIO(b"2"), name="team/plan")
        assert [one.user for one in store.readers("team/plan")] == ["bob"]
    with connect(bob) as store:
        assert names_of(store) == ["team/plan"]


def test_leaving_survives_a_lost_answer_and_a_change_of_the_file(
    lying_server: LyingServer, shared: tuple[Path, Path]
) -> None:
    ada, bob = shared
    asked: list[Message] = []

    def overtake(_who: Principal, request: Request) -> Reply | None:
        if isinstance(request, LeaveFile):
            asked.append(request)
            if len(asked) == 1:
                with connect(ada) as other:
                    other.put(io.BytesIO(b"2"), name="team/plan")
        return None

    def lose(_who: object, request: Message, reply: Message) -> Message:
        if isinstance(request, LeaveFile) and len(asked) == 2:
            raise DropConnection
        return reply

    lying_server.intercept, lying_server.tamper = overtake, lose
    with connect(bob) as store:
        store.leave("ada", "team/plan")
        assert names_of(store) == []
        assert [one.op for one in store.audit_log()].count("leave") == 1
    assert len(asked) == 3


def forged(ada: Path, bob: Path, *, signed: bool = False, **changes: bytes) -> EntryDraft:
    """Return an entry that says that bob has left ada's file, which he has not asked for."""
    with connect(ada) as store:
        file = store._session.fetch_newest(store._session.account.file_id("team/plan"))
    with connect(bob) as store:
        account, key = store._session.account, store._session.record_signer().key
    fields = {"server": account.server_id, "record": record_hash(file.head_body)} | changes
    body = LeaveRecord(
        user="bob",
        first=account.first,
        generation=1,
        owner="ada",
        file_id=file.file_id,
        created=1,
        **fields,
    ).encode()
    signature = key.sign(Label.LEAVE, body) if signed else bytes(64)
    signer = key_id("ed25519", key.public).hex()
    return EntryDraft(
        "leave",
        "bob",
        "ada",
        file.file_id,
        rec=body,
        sigs={signer: signature},
        accounts=("ada", "bob"),
    )


@pytest.mark.parametrize("of_another_server", [False, True])
def test_a_leave_record_that_the_reader_has_not_signed_here_drops_nobody(
    lying_server: LyingServer, shared: tuple[Path, Path], of_another_server: bool
) -> None:
    ada, bob = shared
    lie = forged(ada, bob, signed=True, server=bytes(32)) if of_another_server else forged(ada, bob)
    lying_server.append(lie)
    with connect(ada) as store:
        store.put(io.BytesIO(b"2"), name="team/plan")
        assert [one.user for one in store.readers("team/plan")] == ["bob"]
    with connect(bob) as store:
        assert names_of(store) == ["team/plan"]


def test_a_leave_record_of_another_state_of_the_file_is_a_lie(
    lying_server: LyingServer, shared: tuple[Path, Path]
) -> None:
    """A server could otherwise show an old one again after the reader was added again."""
    ada, bob = shared
    lying_server.append(forged(ada, bob, record=hashlib.sha256(b"").digest()))
    with pytest.raises(BadReceipt):
        connect(ada)


def test_a_blocked_sharer_stores_on_without_the_reader(
    lying_server: LyingServer, shared: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    ada, bob = shared
    carol = lying_server.enrol("carol")
    with connect(ada) as store:
        list(store.share_tree("team", "carol", trust_first_use=True))
        store.put(io.BytesIO(b"1"), name="other/gone")
        store.rm("other/gone")
        list(store.share_tree("other", "bob"))
        store.put(io.BytesIO(b"1"), name="private")
    with connect(bob) as store:
        store.block("ada")
        assert store.blocked() == ("ada",)
        assert names_of(store) == []
        assert store.rotate().files == 0
    with caplog.at_level(logging.WARNING), connect(ada) as store:
        store.put(io.BytesIO(b"2"), name="other/gone")
        assert store.put(io.BytesIO(b"2"), name="team/plan").version == 2
        done = list(store.put_many((io.BytesIO(b"1"), f"team/{n}") for n in range(20)))
        assert [one.version for one in done] == [1] * 20
        store.mv("private", "other/private")
        for name in ("team/0", "team/19"):
            assert [one.user for one in store.readers(name)] == ["carol"]
        for call in (
            lambda: store.share("other/private", "bob"),
            lambda: list(store.share_tree("team", "bob")),
        ):
            with pytest.raises(ShareRefused) as refusal:
                call()
            assert refusal.value.readers == ("bob",)
            assert refusal.value.exit_code == 4
        store.audit_verify()
    told = [one for one in caplog.messages if "bob is left out of new files" in one]
    assert len(told) == 1
    with connect(carol) as store:
        assert len(names_of(store)) == 21
    with connect(bob) as store:
        store.unblock("ada")
        assert names_of(store) == ["team/plan"]
        into = io.BytesIO()
        store.get_shared("ada", "team/plan", into, trust_first_use=True)
        assert into.getvalue() == b"2"


def test_a_block_that_the_server_logs_otherwise_is_found(lying_server: LyingServer) -> None:
    bob = lying_server.enrol("bob")
    for user in ("mallory", "carol"):
        lying_server.enrol(user)

    def turn(who: Principal, request: Request) -> Reply | None:
        if not isinstance(request, BlockOwner):
            return None
        return lying_server.ask(who, changed(request, owner="carol"))

    lying_server.intercept = turn
    with connect(bob) as store, pytest.raises(BadReceipt):
        store.block("mallory")
    lying_server.honest()
    with connect(bob) as store:
        assert store.blocked() == ("carol",)
        for user in ("bob", "no user"):
            with pytest.raises(UsageError):
                store.block(user)


@pytest.fixture
def narrow_server(tmp_path: Path) -> Iterator[LyingServer]:
    settings = "[limits]\nuser_shared_files = 2\n"
    with LyingServer(tmp_path / "narrow", settings) as server:
        yield server


def test_one_sharer_cannot_fill_an_inbox(narrow_server: LyingServer) -> None:
    mallory, ada = narrow_server.enrol("mallory"), narrow_server.enrol("ada")
    bob = narrow_server.enrol("bob")
    with connect(mallory) as store:
        list(store.share_tree("junk", "bob", trust_first_use=True))
        for number in range(4):
            store.put(io.BytesIO(b""), name=f"junk/{number}")
        store.put(io.BytesIO(b""), name="more")
        with pytest.raises(ShareRefused):
            store.share("more", "bob")
        with pytest.raises(ShareRefused):
            store.mv("junk/0", "junk/5")
    with connect(ada) as store:
        store.put(io.BytesIO(b"1"), name="f")
        store.share("f", "bob", trust_first_use=True)
    with connect(bob) as store:
        assert names_of(store) == ["f", "junk/0", "junk/1"]
        store.block("mallory")
        assert names_of(store) == ["f"]
        assert store.rotate().files == 1
