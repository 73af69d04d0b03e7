"""Downloads from a server that lies: a file appears whole and verified, or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.buffers.largefiles import LARGE
from protocol.codec.encoding import Buffer
from protocol.codec.values import changed
from protocol.records.records import FileRecord
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.downloads import (
    Bytes,
    GetLeaves,
    LeavesPage,
    Open,
    Opened,
    OpenedVersion,
    Read,
)
from sfsc.errors import (
    BadReceipt,
    BadRecord,
    ConflictError,
    IntegrityError,
    KeyringError,
    LocalError,
    NotFound,
    ProtocolFailure,
    Rollback,
    SfscError,
    Tampered,
    UnsupportedKind,
    UsageError,
)
from sfsc.files.listing import Files
from sfsc.files.rename import Renames
from sfsc.files.tree import walk_folder
from sfsc.session.session import Session
from sfsc.transfer.destination import DestinationFolder, DestinationTree
from sfsc.transfer.download import DownloadItem, Downloads, Got, Target
from sfsc.transfer.local_io import DirectWriter
from sfsc.transfer.reader import Reader
from sfsc.transfer.reencrypt import Reencryption
from sfsc.transfer.remote_version import RemoteVersion, VersionRequest
from sfsc.transfer.source import SMALL
from sfsc.transfer.upload import Uploads
from tests.opens import open_one, opens, with_each
from tests.sfsc.simulator import DropConnection, Simulator, Tamper
from tests.sfsc.storing import Meanwhile, drop, once, stopping
from tests.waiting import until

BIG = 9 * PIECE + 77
NAME = "docs/report.pdf"


def store(session: Session, content: bytes, name: str = NAME) -> None:
    Uploads(session).put(io.BytesIO(content), name)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder / "file"


def refused(session: Session, target: Path, name: str = NAME) -> SfscError:
    """Return the error of a get, which must leave nothing, or what was there before."""
    raised: list[SfscError] = []
    for before in (None, b"what was there before"):
        target.unlink(missing_ok=True)
        if before is not None:
            target.write_bytes(before)
        with pytest.raises(SfscError) as caught:
            Downloads(session).get(name, target)
        raised.append(caught.value)
        assert [file.name for file in target.parent.iterdir()] == ([target.name] if before else [])
        assert before is None or target.read_bytes() == before
    return raised[0]


# --- targets


@pytest.mark.parametrize("size", [0, 1000, 256 * 1024, PIECE + 5, BIG, LARGE + PIECE + 5])
def test_into_a_file(session: Session, target: Path, size: int) -> None:
    content = os.urandom(size)
    store(session, content)
    got = Downloads(session).get(NAME, target)
    assert (got.name, got.version, got.size, got.path) == (NAME, 1, size, target)
    assert target.read_bytes() == content
    assert [file.name for file in target.parent.iterdir()] == ["file"]


def test_a_large_file_is_decrypted_into_the_write_buffers(
    session: Session, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(LARGE)
    store(session, content)
    copied = list[bool]()

    class Noted(DirectWriter):
        def _take_lent(self, lead: int, chunk: memoryview) -> memoryview | None:
            memory = super()._take_lent(lead, chunk)
            copied.append(memory is None)
            return memory

    def for_empty_file(descriptor: int) -> DirectWriter:
        (made,) = target.parent.iterdir()
        return Noted(descriptor, os.open(made, os.O_RDWR))

    monkeypatch.setattr(DestinationFolder, "_create_unnamed", lambda *_: None)
    monkeypatch.setattr(DirectWriter, "for_empty_file", for_empty_file)
    Downloads(session).get(NAME, target)
    assert target.read_bytes() == content
    assert copied == [False] * 17


def test_into_a_folder_and_into_the_current_folder(
    session: Session, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(session, b"content")
    assert Downloads(session).get(NAME, target.parent).path == target.parent / "report.pdf"
    elsewhere = target.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert Downloads(session).get(NAME).path == Path("report.pdf")
    assert (elsewhere / "report.pdf").read_bytes() == b"content"


def test_into_a_stream(session: Session) -> None:
    content = os.urandom(BIG)
    store(session, content)
    stream = io.BytesIO(b"")
    assert Downloads(session).get(NAME, stream).path is None
    assert stream.getvalue() == content


def test_into_a_stream_with_short_writes(session: Session) -> None:
    class Slow(io.RawIOBase):
        taken = b""

        def writable(self) -> bool:
            return True

        def write(self, data: object, /) -> int:
            part = bytes(data)[:70_000]  # type: ignore[call-overload]
            self.taken += part
            return len(part)

    content = os.urandom(PIECE + 5)
    store(session, content)
    slow = Slow()
    Downloads(session).get(NAME, slow)  # type: ignore[arg-type]
    assert slow.taken == content


def test_errors_of_a_stream_are_not_translated(session: Session) -> None:
    class Broken(io.BytesIO):
        def write(self, _data: object, /) -> int:
            raise BrokenPipeError

    store(session, b"content")
    with pytest.raises(BrokenPipeError):
        Downloads(session).get(NAME, Broken())
    assert Files(session).stat(NAME).size == 7


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="devices")
def test_a_device_is_written_and_not_replaced(session: Session) -> None:
    store(session, b"content")
    Downloads(session).get(NAME, "/dev/null")
    assert Path("/dev/null").is_char_device()


def test_a_missing_folder(session: Session, target: Path) -> None:
    store(session, b"content")
    with pytest.raises(LocalError):
        Downloads(session).get(NAME, target.parent / "missing" / "file")


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_time_and_mode_are_restored_without_special_bits(
    session: Session, target: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    source.chmod(0o6751)
    os.utime(source, ns=(1_500_000_000_123_456_789, 1_500_000_000_123_456_789))
    Uploads(session).put(source, NAME)
    Downloads(session).get(NAME, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o751
    assert target.stat().st_mtime_ns == 1_500_000_000_123_456_789


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_a_file_from_a_pipe_is_private(session: Session, target: Path) -> None:
    store(session, b"content")
    Downloads(session).get(NAME, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


# --- requests


def test_small_files_take_one_round_trip(server: Simulator, session: Session) -> None:
    store(session, os.urandom(200_000))
    before = len(server.requests)
    Downloads(session).get(NAME, io.BytesIO())
    assert len(server.requests) == before + 1


def test_no_byte_is_requested_twice(server: Simulator, session: Session) -> None:
    store(session, os.urandom(BIG))
    Downloads(session).get(NAME, io.BytesIO())
    asked = server.asked(Read)
    (blob,) = [stored.blob for stored in server.handles.values()]
    assert sum(read.length for read in asked) + 256 * 1024 == len(blob)
    assert len(server.asked(GetLeaves)) == 3, "the simulator gives three hashes a page"


@pytest.mark.parametrize("first", [0, 20, 39, 40, 41])
@pytest.mark.parametrize("size", [0, 1000, BIG])
def test_a_short_first_reply(server: Simulator, session: Session, first: int, size: int) -> None:
    content = os.urandom(size)
    store(session, content)
    server.tamper = opened(data=lambda o: o.data[:first])
    stream = io.BytesIO()
    Downloads(session).get(NAME, stream)
    assert stream.getvalue() == content


def test_an_older_version(session: Session) -> None:
    for content in (b"one", b"two", b"three"):
        store(session, content)
    for version, content in ((1, b"one"), (2, b"two"), (3, b"three")):
        stream = io.BytesIO()
        assert Downloads(session).get(NAME, stream, version=version).version == version
        assert stream.getvalue() == content
    with pytest.raises(NotFound):
        Downloads(session).get(NAME, io.BytesIO(), version=4)
    with pytest.raises(UsageError):
        Downloads(session).get(NAME, io.BytesIO(), version=0)


def test_missing_files_and_versions(session: Session, target: Path) -> None:
    assert isinstance(refused(session, target, "unknown"), NotFound)
    store(session, b"content")
    Files(session).rm(NAME)
    assert isinstance(refused(session, target), NotFound)
    Downloads(session).get(NAME, io.BytesIO(), version=1)


# --- false replies


def flip(data: Buffer, at: int) -> bytes:
    changes = bytearray(data)
    changes[at] ^= 1
    return bytes(changes)


def on(kind: type[Reply], tamper: Callable[[Reply], Reply]) -> Tamper:
    return lambda _request, reply: tamper(reply) if isinstance(reply, kind) else reply


def opened(**changes: Callable[[OpenedVersion], object]) -> Tamper:
    def tamper(reply: Reply) -> Reply:
        assert isinstance(reply, Opened)

        def change_one(one: OpenedVersion) -> OpenedVersion:
            made = {name: change(one) for name, change in changes.items()}
            return changed(one, **made)  # type: ignore[arg-type]

        return with_each(reply, change_one)

    return on(Opened, tamper)


def read(change: Callable[[bytes], bytes], offset: int) -> Tamper:
    def tamper(request: Request, reply: Reply) -> Reply:
        if isinstance(request, Read) and isinstance(reply, Bytes) and request.offset == offset:
            return Bytes(change(bytes(reply.data)))
        return reply

    return tamper


LIES: dict[str, tuple[Tamper, type[SfscError]]] = {
    "salt flipped": (opened(data=lambda o: flip(o.data, 5)), Tampered),
    "nonce flipped": (opened(data=lambda o: flip(o.data, 39)), Tampered),
    "version byte": (opened(data=lambda o: flip(o.data, 0)), Tampered),
    "first bytes flipped": (opened(data=lambda o: flip(o.data, 100)), Tampered),
    "leaf flipped": (opened(leaves=lambda o: flip(o.leaves, 3)), Tampered),
    "too many leaves": (opened(leaves=lambda o: o.leaves * 7), Tampered),
    "half a leaf": (opened(leaves=lambda o: o.leaves[:-1]), Tampered),
    "no more leaves": (on(LeavesPage, lambda _: LeavesPage(b"")), ProtocolFailure),
    "middle flipped": (read(lambda data: flip(data, 12345), 4 * PIECE), Tampered),
    "tag flipped": (read(lambda data: flip(data, -1), 4 * PIECE), Tampered),
    "middle short": (read(lambda data: data[:-1], 4 * PIECE), Tampered),
    "middle empty": (read(lambda _: b"", 4 * PIECE), Tampered),
    "end short": (read(lambda data: data[:-1], 9 * PIECE), Tampered),
    "end long": (read(lambda data: data + b"\0", 9 * PIECE), Tampered),
    "metadata flipped": (
        opened(view=lambda o: changed(o.view, metadata=flip(o.view.metadata, 20))),
        Tampered,
    ),
    "wrap flipped": (
        opened(
            view=lambda o: changed(
                o.view,
                wraps=(changed(o.view.wraps[0], wrapped=flip(o.view.wraps[0].wrapped, 50)),),
            )
        ),
        Tampered,
    ),
    "no wrap": (opened(view=lambda o: changed(o.view, wraps=())), KeyringError),
    "record flipped": (
        opened(
            view=lambda o: changed(
                o.view,
                content=changed(o.view.content, record=flip(o.view.content.record, -1)),
            )
        ),
        BadRecord,
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_false_reply_leaves_no_file(
    server: Simulator, session: Session, target: Path, lie: str
) -> None:
    content = os.urandom(BIG)
    store(session, content)
    server.tamper, error = LIES[lie]
    assert type(refused(session, target)) is error
    server.tamper = lambda _request, reply: reply
    Downloads(session).get(NAME, target)
    assert target.read_bytes() == content


@pytest.mark.parametrize("at", [1, 9, 16])
def test_a_false_reply_within_a_large_file_leaves_no_file(
    server: Simulator, session: Session, target: Path, at: int
) -> None:
    store(session, os.urandom(LARGE))
    server.tamper = read(lambda data: flip(data, -1), at * PIECE)
    assert type(refused(session, target)) is Tampered


def test_reordered_segments_are_detected(server: Simulator, session: Session, target: Path) -> None:
    """Even with matching leaves: the record's root covers the order."""
    store(session, os.urandom(BIG))

    def swapped(request: Request, reply: Reply) -> Reply:
        (stored,) = server.files[session.account.file_id(NAME)].versions.values()
        if isinstance(request, Read) and request.offset in (2 * PIECE, 3 * PIECE):
            at = 5 * PIECE - request.offset
            return Bytes(stored.blob[at : at + PIECE])
        return reply

    server.tamper = swapped
    assert isinstance(refused(session, target), Tampered)


def test_a_stream_receives_only_verified_bytes(server: Simulator, session: Session) -> None:
    content = os.urandom(BIG)
    store(session, content)
    server.tamper, _ = LIES["middle flipped"]
    stream = io.BytesIO()
    with pytest.raises(Tampered):
        Downloads(session).get(NAME, stream)
    written = stream.getvalue()
    assert len(written) < len(content)
    assert content.startswith(written)


def test_another_file_than_requested_is_rejected(
    server: Simulator, session: Session, target: Path
) -> None:
    store(session, b"one", "one")
    store(session, b"two", "two")
    one, two = (session.account.file_id(name) for name in ("one", "two"))

    def other(request: Request, reply: Reply) -> Reply:
        if opens(request, one):
            return server.answer(open_one(session.account.user, two))
        return reply

    server.tamper = other
    assert isinstance(refused(session, target, "one"), BadRecord)


def test_an_older_version_instead_of_the_newest(
    server: Simulator, session: Session, other: Session, target: Path
) -> None:
    store(session, b"old")
    chain = server.files[session.account.file_id(NAME)]
    old = dataclasses.replace(chain, records=chain.records[:1], versions=dict(chain.versions))
    store(session, b"new")
    server.files[session.account.file_id(NAME)] = old
    assert isinstance(refused(session, target), Rollback)
    assert isinstance(refused(other, target), Rollback)  # it follows the log


def test_a_forked_file_history(
    server: Simulator, session: Session, other: Session, target: Path
) -> None:
    store(session, b"mine")
    server.files.clear()
    with pytest.raises(BadReceipt):
        store(other, b"forked")
    assert isinstance(refused(session, target), IntegrityError)


@pytest.mark.parametrize(
    ("code", "exit_code"), [("damaged", 5), ("changed", 6), ("denied", 4), ("unavailable", 7)]
)
def test_an_error_reply_during_the_download(
    server: Simulator, session: Session, target: Path, code: str, exit_code: int
) -> None:
    store(session, os.urandom(BIG))
    server.intercept = lambda request: (
        Error(code, "no") if isinstance(request, Read) and request.offset > 4 * PIECE else None
    )
    assert refused(session, target).exit_code == exit_code


# --- lost connections


@pytest.mark.parametrize(
    ("kind", "nth"), [(Open, 0), (GetLeaves, 0), (GetLeaves, 1), (Read, 0), (Read, 3), (Read, 8)]
)
@pytest.mark.parametrize("how", [drop, stopping])
def test_a_download_survives_a_lost_connection(
    server: Simulator, session: Session, target: Path, kind: type[Request], nth: int, how: Tamper
) -> None:
    content = os.urandom(BIG)
    store(session, content)
    server.tamper = once(kind, how, nth)
    Downloads(session).get(NAME, target)
    assert target.read_bytes() == content
    assert session.connections == 2


def test_a_concurrent_put_does_not_change_the_download(
    server: Simulator, session: Session, other: Session, target: Path
) -> None:
    content = os.urandom(BIG)
    store(session, content)
    dropped: list[Request] = []

    def tamper(request: Request, reply: Reply) -> Reply:
        if isinstance(request, Read) and request.offset == 5 * PIECE and not dropped:
            dropped.append(request)
            raise DropConnection
        return reply

    server.tamper = tamper
    session._waiting = Meanwhile(lambda _seconds: store(other, b"newer"))
    assert Downloads(session).get(NAME, target).version == 1
    assert target.read_bytes() == content


def test_a_concurrent_reencryption_is_a_conflict(
    server: Simulator, session: Session, target: Path
) -> None:
    store(session, os.urandom(BIG))

    def with_another_record(one: OpenedVersion) -> OpenedVersion:
        content = changed(one.view.content, record=b"another")
        return changed(one, view=changed(one.view, content=content))

    def tamper(request: Request, reply: Reply) -> Reply:
        if isinstance(request, Read):
            raise DropConnection
        if isinstance(reply, Opened) and len(server.asked(Open)) > 1:
            return with_each(reply, with_another_record)
        return reply

    server.tamper = tamper
    with pytest.raises(ConflictError):
        Downloads(session).get(NAME, target)
    assert list(target.parent.iterdir()) == []


def test_an_integrity_error_is_never_retried(
    server: Simulator, session: Session, target: Path
) -> None:
    store(session, os.urandom(BIG))
    server.tamper, _ = LIES["middle flipped"]
    with pytest.raises(IntegrityError):
        Downloads(session).get(NAME, target)
    assert session.connections == 1
    assert len(server.asked(Open)) == 1


# --- many


SIZES = {"a": BIG, "b": 1000, "c": 3 * PIECE - 200, "d": 0, "e": 300_000, "f": BIG, "g": 256 * 1024}
"""Of these, a, c, e, f and (its tag and header too) g do not come whole with their opening."""


@pytest.fixture
def contents(session: Session) -> dict[str, bytes]:
    made = {name: os.urandom(size) for name, size in SIZES.items()}
    for name, content in made.items():
        store(session, content, name)
    return made


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[DestinationTree]:
    with DestinationTree(tmp_path / "tree") as opened:
        yield opened


def items(session: Session, tree: DestinationTree) -> list[DownloadItem]:
    return [
        DownloadItem(
            one.name, one.file_id, one.version, tree.location(one.name), tree.destination(one.name)
        )
        for one in Files(session).ls()
    ]


def arrived(tree: DestinationTree) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tree.path.iterdir()}


def refuse(name: str, error: SfscError) -> None:
    raise AssertionError(name) from error


def test_many_files_arrive_in_order(
    session: Session, tree: DestinationTree, contents: dict[str, bytes]
) -> None:
    for got in Downloads(session).get_many(items(session, tree), refuse):
        assert got.path is not None
        assert got.path.read_bytes() == contents[got.name], "it is told of when it is there"
    assert arrived(tree) == contents


def test_pairs_of_names_and_targets_succeed_or_fail_alone(
    server: Simulator, session: Session, contents: dict[str, bytes], tmp_path: Path
) -> None:
    stream = io.BytesIO()
    asked: list[tuple[str, Target | None]] = [
        ("a", tmp_path / "a"),
        ("c", stream),
        ("none", tmp_path / "none"),
        ("a", f"{tmp_path}/made/"),
        ("", tmp_path / "nameless"),
        ("b", tmp_path / "missing" / "b"),
        ("f", tmp_path),
    ]
    outcomes = dict(Downloads(session).get_each(asked))
    kinds = [Got, Got, NotFound, Got, UsageError, LocalError, Got]
    assert [type(outcomes[index]) for index in range(len(asked))] == kinds
    assert stream.getvalue() == contents["c"]
    paths = {"a": "a", "made/a": "a", "f": "f"}
    for path, name in paths.items():
        assert (tmp_path / path).read_bytes() == contents[name]
    assert [len(one.targets) for one in server.asked(Open)] == [3, 3], "a is asked for twice"


def test_larger_files_are_prefetched(
    server: Simulator, session: Session, tree: DestinationTree, contents: dict[str, bytes]
) -> None:
    got = Downloads(session).get_many(items(session, tree), refuse)
    assert [next(got).name for _ in range(2)] == ["a", "b"]
    whole = 1 + BIG // PIECE
    until(lambda: len(server.asked(Read)) >= whole + 3)  # c is asked for
    assert set(arrived(tree)) == {"a", "b"}
    assert [one.name for one in got] == ["c", "d", "e", "f", "g"]
    expected = 2 * whole + 3 + 1 + 1
    assert len(server.asked(Read)) == expected, "something was asked for twice"
    assert arrived(tree) == contents


@pytest.mark.parametrize("nth", [0, 8, 10, 12, 13, 15, 20])
def test_many_files_over_a_lost_connection(
    server: Simulator, session: Session, tree: DestinationTree, contents: dict[str, bytes], nth: int
) -> None:
    """Prefetched pieces are requested again."""
    count = 0

    def tamper(request: Request, reply: Reply) -> Reply:
        nonlocal count
        count += isinstance(request, Read)
        if isinstance(request, Read) and count == nth + 1:
            raise DropConnection
        return reply

    server.tamper = tamper
    assert len(list(Downloads(session).get_many(items(session, tree), refuse))) == len(SIZES)
    assert arrived(tree) == contents
    assert session.connections == 2


@pytest.mark.parametrize("bad", ["b", "c", "f"])
def test_a_false_reply_about_one_of_many_files(
    server: Simulator, session: Session, tree: DestinationTree, contents: dict[str, bytes], bad: str
) -> None:
    """It is reported in its turn, and the others arrive."""
    file_id = session.account.file_id(bad)
    told: list[str] = []

    def falsify(one: OpenedVersion) -> OpenedVersion:
        if FileRecord.parse(one.view.content.record).file_id != file_id:
            return one
        return changed(one, leaves=flip(one.leaves, 10))

    def tamper(request: Request, reply: Reply) -> Reply:
        return with_each(reply, falsify) if isinstance(reply, Opened) else reply

    def skip(name: str, error: SfscError) -> None:
        assert type(error) is Tampered
        told.append(name)

    server.tamper = tamper
    for got in Downloads(session).get_many(items(session, tree), skip):
        told += [got.name]
    assert told == list(SIZES)
    del contents[bad]
    assert arrived(tree) == contents


def test_a_caller_who_stops_early(
    session: Session, tree: DestinationTree, contents: dict[str, bytes], target: Path
) -> None:
    got = Downloads(session).get_many(items(session, tree), refuse)
    next(got)
    del got
    assert set(arrived(tree)) == {"a"}
    assert Downloads(session).get("f", target).size == BIG
    assert target.read_bytes() == contents["f"]


# --- kinds


@pytest.mark.parametrize("name", ["docs/folder/", "docs/link"])
def test_folders_and_links_are_placed_and_have_no_content(
    session: Session, target: Path, tree: DestinationTree, tmp_path: Path, name: str
) -> None:
    """They are listed, renamed, encrypted again and fetched, but not read."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "folder").mkdir(mode=0o750)
    (tmp_path / "docs" / "link").symlink_to("elsewhere")
    (item,) = (one for one in walk_folder(tmp_path / "docs", "docs", fail) if one.name == name)
    list(Uploads(session).put_many([(item, None)]))
    what = "is a folder, not a file" if name.endswith("/") else "is a link, not a file"
    remote = RemoteVersion.request(
        session, VersionRequest.build(session, session.account.file_id(name), 0, name=name)
    )
    with pytest.raises(UnsupportedKind, match=what):
        Downloads(session).fetch(remote, target)
    with pytest.raises(UnsupportedKind, match=what):
        Reader(session, remote)
    store(session, b"other", "other")
    got = list(Downloads(session).get_many(items(session, tree), fail))
    assert [one.name for one in got] == [name, "other"]
    tree.restore_folders(fail)
    if item.target is None:
        assert (tree.path / name).stat().st_mode & 0o777 == 0o750
        assert (tree.path / name).stat().st_mtime_ns == item.status.st_mtime_ns
    else:
        assert os.readlink(tree.path / name) == "elsewhere"
        assert (tree.path / name).lstat().st_mtime_ns == item.status.st_mtime_ns
    (entry, _) = Files(session).ls()
    assert (entry.name, entry.kind, entry.target) == (name, item.kind, item.target)
    Reencryption(session, lambda file, _version: file.head.readers).version(entry.file_id, 1)
    again = session.account.open_version(session.fetch_newest(entry.file_id))[1]
    assert (again.kind, again.target) == (item.kind, item.target)
    if item.target is not None:
        assert Renames(session).mv(name, "moved").target == "elsewhere"


def fail(what: str, error: SfscError) -> None:
    raise AssertionError(what) from error


@pytest.mark.parametrize("size", [0, 1000, SMALL])
def test_metadata_of_a_small_file_has_the_hash_of_its_plaintext(
    session: Session, size: int
) -> None:
    content = os.urandom(size)
    store(session, content)
    metadata = session.account.open_version(session.fetch_newest(session.account.file_id(NAME)))[1]
    assert metadata.sha256 == hashlib.sha256(content).digest()
    assert (metadata.kind, metadata.target, metadata.padding) == ("file", None, None)
