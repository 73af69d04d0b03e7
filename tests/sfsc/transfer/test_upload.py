"""Uploads to a server that conflicts, loses data and disconnects."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.codec.encoding import Buffer
from protocol.codec.values import changed
from protocol.records.records import FileRecord
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.base import MAX_SMALL, PIECE
from protocol.wire.messages.changes import Committed, Outcome
from protocol.wire.messages.files import Stat
from protocol.wire.messages.uploads import (
    ALL_UPLOADS,
    Data,
    PutAbort,
    PutOpen,
    PutResume,
    UploadState,
)
from sfsc.crypto.segments import SEGMENTS_1MB, Allocate, Encryptor, ciphertext_size
from sfsc.errors import (
    BadReceipt,
    Distrusted,
    LocalError,
    ProtocolFailure,
    QuotaExceeded,
    SfscError,
    Unreachable,
    UnreadableSource,
    UsageError,
)
from sfsc.files.listing import Files
from sfsc.session.limits import MAX_WINDOW
from sfsc.session.session import Session
from sfsc.transfer.chunks import MAX_UPLOAD_STARTS, UploadStream
from sfsc.transfer.source import SMALL, Source, SourceReader
from sfsc.transfer.upload import Put, Uploads
from tests.changes import Kind, is_kind, is_large, is_small, relined
from tests.sfsc.simulator import DropConnection, Simulator
from tests.sfsc.storing import BIG, Meanwhile, drop, fetched, items, meanwhile, once, put, stopping
from tests.waiting import until

S0, S1 = SEGMENTS_1MB.capacity(0), SEGMENTS_1MB.capacity(1)


# --- stored content


@pytest.mark.parametrize(
    "size",
    [0, 1, SMALL - 1, SMALL, SMALL + 1, S0 - 1, S0, S0 + 1, S0 + S1, S0 + S1 + 1, BIG],
)
def test_put_and_get(server: Simulator, session: Session, size: int) -> None:
    content = os.urandom(size)
    done = Uploads(session).put(io.BytesIO(content), "a/b")
    assert (done.name, done.version, done.size) == ("a/b", 1, size)
    assert done.file_id == session.account.file_id("a/b")
    assert fetched(session, "a/b") == content
    assert bool(server.asked(is_small)) == (ciphertext_size(size) <= MAX_SMALL)
    assert bool(server.asked(is_large)) == (ciphertext_size(size) > MAX_SMALL)
    assert server.uploads == {}


def test_pieces_are_encrypted_in_order_on_one_thread(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller reads and sends meanwhile."""
    made = list[tuple[str, bool]]()
    seal = Encryptor.seal_segment

    def noted(
        encryptor: Encryptor, plaintext: Buffer, *, last: bool, allocate: Allocate = bytearray
    ) -> memoryview:
        made.append((threading.current_thread().name, last))
        return seal(encryptor, plaintext, last=last, allocate=allocate)

    monkeypatch.setattr(Encryptor, "seal_segment", noted)
    content = os.urandom(5 * PIECE)
    Uploads(session).put(io.BytesIO(content), "big")
    assert made == [("sfsc-make_0", last) for last in [False] * 5 + [True]]
    assert fetched(session, "big") == content


def test_a_path_has_a_name_a_time_and_a_mode(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "report.pdf"
    path.write_bytes(b"content")
    path.chmod(0o640)
    os.utime(path, ns=(1_600_000_000_000_000_123, 1_600_000_000_000_000_123))
    assert Uploads(session).put(path).name == "report.pdf"
    entry = Files(session).stat("report.pdf")
    assert (entry.size, entry.mtime) == (7, 1_600_000_000)
    assert os.name != "posix" or entry.mode == 0o640


def test_the_server_sees_no_plaintext_and_no_name(server: Simulator, session: Session) -> None:
    put(session, b"a secret that is long enough to be searched for", "secret name.txt")
    sent = b"".join(
        bytes(part)
        for request in server.asked(is_small)
        for change in request.changes
        for part in (change.record, change.metadata, request.contents)
    )
    assert b"secret" not in sent


def test_each_version_has_its_own_key(server: Simulator, session: Session) -> None:
    for _ in range(3):
        put(session, b"same")
    records = [FileRecord.parse(change.record) for change in server.changes(is_small)]
    assert len({record.content_id for record in records}) == 3
    assert len({record.dek_commit for record in records}) == 3
    assert len({bytes(request.contents) for request in server.asked(is_small)}) == 3


@pytest.mark.parametrize("name", ["", "/absolute", "a/../b", "a//b", "nul\0", "new\nline", "a\\b"])
def test_an_invalid_name(server: Simulator, session: Session, name: str) -> None:
    before = len(server.requests)
    with pytest.raises(UsageError):
        put(session, b"", name)
    assert len(server.requests) == before


def test_a_stream_needs_a_name(session: Session) -> None:
    with pytest.raises(UsageError):
        Uploads(session).put(io.BytesIO(b""))


def test_an_unreadable_path(session: Session, tmp_path: Path) -> None:
    with pytest.raises(LocalError):
        Uploads(session).put(tmp_path / "missing")
    with pytest.raises(LocalError):
        Uploads(session).put(tmp_path, "folder")


def test_a_source_that_fails_during_the_upload(server: Simulator, session: Session) -> None:
    class Failing(io.BytesIO):
        def readinto(self, buffer: object, /) -> int:
            if self.tell() > 2 * PIECE:
                raise OSError(5, "Input/output error")
            return super().readinto(buffer)  # type: ignore[arg-type]

    with pytest.raises(LocalError):
        Uploads(session).put(Failing(bytes(BIG)), "file")
    assert len(server.asked(PutAbort)) == 1
    assert (server.files, server.uploads) == ({}, {})


# --- versions and conflicts


# --- lost connections


@pytest.mark.parametrize(
    ("kind", "nth"), [(PutOpen, 0), (Data, 0), (Data, 1), (Data, 2), (Data, 3), (is_large, 0)]
)
def test_a_large_upload_resumes(server: Simulator, session: Session, kind: Kind, nth: int) -> None:
    server.tamper = once(kind, drop, nth)
    content = os.urandom(BIG)
    assert Uploads(session).put(io.BytesIO(content), "file").size == BIG
    assert fetched(session, "file") == content
    assert session.connections == 2
    (record,) = {change.record for change in server.changes(is_large)}
    # One ciphertext: a repeated piece has the same bytes.
    pieces = {request.offset: bytes(request.data) for request in server.asked(Data)}
    for request in server.asked(Data):
        assert pieces[request.offset] == request.data
    assert FileRecord.parse(record).version == 1


def test_a_server_that_loses_acknowledged_pieces(server: Simulator, session: Session) -> None:
    """The client no longer has these pieces, either."""

    def forget(request: Request, _reply: Reply) -> Reply:
        del server.uploads[request.upload][PIECE:]  # type: ignore[attr-defined]
        raise DropConnection

    # Pieces are released only when the ring is full: by then two more than the server keeps.
    ring = MAX_WINDOW // PIECE
    server.tamper = once(Data, forget, nth=ring + 2)
    with pytest.raises(ProtocolFailure):
        put(session, bytes((ring + 8) * PIECE))


def lost(server: Simulator) -> Callable[[Request, Reply], Reply]:
    """Restart the server without its staged uploads."""

    def hook(_request: Request, _reply: Reply) -> Reply:
        server.uploads.clear()
        raise DropConnection

    return hook


@pytest.mark.parametrize("kind", [Data, is_large])
def test_a_lost_upload_starts_again_under_a_fresh_key(
    server: Simulator, session: Session, kind: Kind
) -> None:
    lost: list[Request] = []

    def lose(request: Request) -> Reply | None:
        if is_kind(request, kind) and not lost:
            lost.append(request)
            server.uploads.clear()
            raise DropConnection
        return None

    server.intercept = lose
    content = os.urandom(BIG)
    source = io.BytesIO(b"ahead" + content)
    source.seek(5)
    assert Uploads(session).put(source, "file").size == BIG
    assert fetched(session, "file") == content
    headers = {bytes(request.data[:40]) for request in server.asked(Data) if request.offset == 0}
    assert len(headers) == 2, "the same salt would mean that segments were encrypted twice"
    commits = {change.record for change in server.changes(is_large)}
    assert len({FileRecord.parse(body).content_id for body in commits}) == len(commits)


def test_a_lost_upload_from_a_pipe_fails(server: Simulator, session: Session) -> None:
    reading, writing = os.pipe()
    server.tamper = once(Data, lost(server))
    content = bytes(BIG)

    def feed() -> None:
        with open(writing, "wb") as pipe:
            try:
                pipe.write(content)
            except BrokenPipeError:
                return

    feeder = threading.Thread(target=feed)
    feeder.start()
    with open(reading, "rb") as pipe, pytest.raises(Unreachable):
        Uploads(session).put(pipe, "file")
    feeder.join(10)
    assert server.files == {}


def test_a_server_that_always_loses_the_upload(server: Simulator, session: Session) -> None:
    server.intercept = lambda request: (
        Error("upload-lost", "gone") if isinstance(request, Data) else None
    )
    with pytest.raises(Unreachable):
        put(session, bytes(BIG))


@pytest.mark.parametrize("offset", [1, PIECE - 1, 9 * PIECE])
def test_an_impossible_resume_offset(server: Simulator, session: Session, offset: int) -> None:
    def tamper(request: Request, reply: Reply) -> Reply:
        if isinstance(request, Data):
            raise DropConnection
        if isinstance(request, PutResume):
            return UploadState(request.upload, offset)
        return reply

    server.tamper = tamper
    with pytest.raises(ProtocolFailure):
        put(session, bytes(BIG))


# --- many


def test_results_of_many_files_are_in_order(server: Simulator, session: Session) -> None:
    done = list(Uploads(session).put_many(items(150)))
    assert [put.name for put in done] == [f"many/{i:03}" for i in range(150)]
    assert len(server.changes(is_small)) == 150
    assert fetched(session, "many/149") == b"149" * 10


def test_large_and_small_files_and_a_repeated_name(session: Session) -> None:
    mixed: list[tuple[Source, str | None]] = [
        (io.BytesIO(b"one"), "a"),
        (io.BytesIO(b"two"), "a"),
        (io.BytesIO(bytes(BIG)), "b"),
        (io.BytesIO(b"three"), "a"),
        (io.BytesIO(b""), "c"),
    ]
    done = list(Uploads(session).put_many(mixed))
    assert [(put.name, put.version) for put in done] == [
        ("a", 1),
        ("a", 2),
        ("b", 1),
        ("a", 3),
        ("c", 1),
    ]
    assert fetched(session, "a") == b"three"


@pytest.mark.parametrize("nth", [0, 1, 2])
def test_a_window_survives_a_lost_connection(server: Simulator, session: Session, nth: int) -> None:
    server.tamper = once(is_small, drop, nth)
    done = list(Uploads(session).put_many(items(30)))
    assert [put.version for put in done] == [1] * 30
    assert session.connections == 2
    for i in range(30):
        assert fetched(session, f"many/{i:03}") == b"%d" % i * 10


@pytest.mark.parametrize("nth", [0, 2])
def test_requests_are_repeated_after_a_server_restart(
    server: Simulator, session: Session, nth: int
) -> None:
    server.tamper = once(is_small, stopping, nth)
    done = list(Uploads(session).put_many(items(30)))
    assert [put.version for put in done] == [1] * 30
    assert session.connections == 2
    server.tamper = once(is_small, stopping)
    assert put(session, b"alone") == 1
    assert session.connections == 3


@pytest.mark.parametrize("kind", [PutOpen, Data, is_large])
def test_pieces_are_sent_again_after_a_server_restart(
    server: Simulator, session: Session, kind: Kind
) -> None:
    content = os.urandom(BIG)
    server.tamper = once(kind, stopping)
    assert put(session, content) == 1
    assert session.connections == 2
    assert fetched(session, "file") == content


def test_an_error_is_raised_after_earlier_results(
    server: Simulator, session: Session, tmp_path: Path
) -> None:
    sources: list[tuple[Source, str | None]] = [
        *items(3),
        (tmp_path / "missing", "missing"),
        *items(9)[6:],
    ]
    many, done = Uploads(session).put_many(sources), list[Put]()
    with pytest.raises(LocalError):
        done.extend(many)
    assert [put.name for put in done] == ["many/000", "many/001", "many/002"]
    assert len(server.files) == 3


def test_a_rejected_file_does_not_hide_other_results(server: Simulator, session: Session) -> None:
    def refuse_one(_request: Request, reply: Reply) -> Reply:
        assert isinstance(reply, Committed)
        outcomes = list(reply.outcomes)
        outcomes[1] = Outcome(0, b"", Error("quota", "full"))
        return changed(reply, outcomes=tuple(outcomes))

    server.tamper = once(is_small, refuse_one)
    many, done = Uploads(session).put_many(items(4)), list[Put]()
    with pytest.raises(QuotaExceeded):
        done.extend(many)
    assert [put.name for put in done] == ["many/000", "many/002", "many/003"]


def test_collected_files_are_not_signed_after_a_split_view(
    server: Simulator, session: Session
) -> None:
    def sources() -> Iterator[tuple[Source, str | None]]:
        yield from items(13)  # of which five wait for others
        session.state.distrust("evidence")  # as another process does

    many, done = Uploads(session).put_many(sources()), list[Put]()
    with pytest.raises(Distrusted):
        done.extend(many)
    assert [put.name for put in done] == [f"many/{i:03}" for i in range(8)]
    assert len(server.changes(is_small)) == 8


def test_collected_files_are_not_sent_after_an_integrity_error(
    server: Simulator, session: Session
) -> None:
    def unproven(request: Request, reply: Reply) -> Reply:
        return relined(reply, lambda line: line[:-9])

    def sources() -> Iterator[tuple[Source, str | None]]:
        yield from items(5)
        yield io.BytesIO(b"again"), "many/000"  # the first must be answered before

    server.tamper = unproven
    with pytest.raises(BadReceipt):
        list(Uploads(session).put_many(sources()))
    assert len(server.changes(is_small)) == 5


def mixture() -> tuple[list[tuple[Source, str | None]], dict[str, bytes]]:
    """Return large files among small ones, as sources and as contents by name."""
    contents = {f"mixed/{i:02}": os.urandom(BIG if i % 3 == 1 else 10) for i in range(9)}
    return [(io.BytesIO(content), name) for name, content in contents.items()], contents


def check_stored(session: Session, done: list[Put], contents: dict[str, bytes]) -> None:
    assert [(put.name, put.version) for put in done] == [(name, 1) for name in contents]
    for name, content in contents.items():
        assert fetched(session, name) == content


def test_no_file_waits_for_a_large_file(server: Simulator, session: Session) -> None:
    sources, contents = mixture()
    many = Uploads(session).put_many(sources)
    first = next(many)
    # The first reply, of a small file, is processed once the window is full.
    assert len(server.asked(PutOpen)) > 1
    check_stored(session, [first, *many], contents)


@pytest.mark.parametrize(
    ("kind", "nth"),
    [(PutOpen, 1), (Data, 0), (Data, 4), (Data, 7), (is_large, 0), (is_large, 2), (is_small, 3)],
)
def test_large_files_among_many_survive_a_lost_connection(
    server: Simulator, session: Session, kind: Kind, nth: int
) -> None:
    sources, contents = mixture()
    server.tamper = once(kind, drop, nth)
    check_stored(session, list(Uploads(session).put_many(sources)), contents)
    assert session.connections == 2


def test_a_connection_lost_between_the_pieces_and_their_commit(
    server: Simulator, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, contents = mixture()
    leaves = UploadStream.leaves

    def lose(sending: UploadStream) -> list[bytes]:
        """Lose all pieces after they were sent."""
        monkeypatch.undo()
        session.close()
        until(lambda: not server.connected)  # so none is on its way to arrive beside others
        server.uploads[sending._upload].clear()
        session.reconnect()
        return leaves(sending)

    monkeypatch.setattr(UploadStream, "leaves", lose)
    check_stored(session, list(Uploads(session).put_many(sources)), contents)
    assert session.connections == 2


@pytest.mark.parametrize(("kind", "nth"), [(Data, 0), (Data, 6), (PutOpen, 1), (is_large, 1)])
def test_lost_uploads_among_many_start_again(
    server: Simulator, session: Session, kind: Kind, nth: int
) -> None:
    """The daemon restarts: commits are kept, staged pieces are lost."""
    sources, contents = mixture()
    server.tamper = once(kind, lost(server), nth)
    check_stored(session, list(Uploads(session).put_many(sources)), contents)
    # No two contents were sent under one content_id.
    ids = [FileRecord.parse(one.record).content_id for one in server.changes(is_large)]
    records = {one.record for one in server.changes(is_large)}
    assert len(records) == len(set(ids))


def test_a_large_file_whose_reply_was_lost_before_a_newer_version(
    server: Simulator, session: Session, other: Session
) -> None:
    server.tamper = once(is_large, drop)
    session._waiting = Meanwhile(meanwhile(other))
    content = os.urandom(BIG)
    sources: list[tuple[Source, str | None]] = [
        (io.BytesIO(content), "file"),
        (io.BytesIO(b"small"), "beside"),
    ]
    done = list(Uploads(session).put_many(sources))
    assert [(put.name, put.version) for put in done] == [("file", 1), ("beside", 1)]
    assert fetched(session, "file", 1) == content


@pytest.mark.parametrize("kind", [Data, is_large])
@pytest.mark.parametrize("many", [False, True])
def test_a_large_upload_starts_three_times_at_most(
    server: Simulator, session: Session, kind: Kind, *, many: bool
) -> None:
    server.intercept = lambda request: (
        Error("upload-lost", "gone") if is_kind(request, kind) else None
    )
    uploads, source = Uploads(session), io.BytesIO(bytes(BIG))
    done = uploads.put_many([(source, "file")])
    with pytest.raises(Unreachable):
        _ = list(done) if many else uploads.put(source, "file")
    assert len(server.asked(PutOpen)) == MAX_UPLOAD_STARTS


@pytest.mark.parametrize("kind", [Data, is_large])
def test_a_rejected_large_file_among_many(server: Simulator, session: Session, kind: Kind) -> None:
    """The reason is reported, its space is released, and the others are stored."""
    sources, contents = mixture()

    def refuse(request: Request) -> Reply | None:
        if is_kind(request, kind):
            server.intercept = lambda _request: None
            return Error("quota", "full")
        return None

    server.intercept = refuse
    many, done = Uploads(session).put_many(sources), list[Put]()
    with pytest.raises(QuotaExceeded):
        done.extend(many)
    assert {put.name for put in done} >= {"mixed/00", "mixed/02"}
    assert "mixed/01" not in {put.name for put in done}
    assert len(server.asked(PutAbort)) == 1
    for one in done:
        assert fetched(session, one.name) == contents[one.name]


def test_sources_are_closed_and_memory_is_bounded(session: Session, tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(30)]
    for name in names:
        (tmp_path / name).write_bytes(os.urandom(PIECE + 5))
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
    most, many = 0, Uploads(session).put_many([(tmp_path / name, name) for name in names])
    done = list[str]()
    for one in many:
        done.append(one.name)
        if before:
            most = max(most, len(list(Path("/proc/self/fd").iterdir())) - before)
    assert done == names
    assert most <= 8  # two pieces each: four hold eight, and one more may be under way
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_keys_rotated_before_the_replies_arrive(session: Session) -> None:
    def sources() -> Iterator[tuple[Source, str | None]]:
        yield from items(8)  # none of which waits for others
        current = session.keyring.current
        assert current is not None
        newer = changed(current, generation=2, sign_seed=b"n" * 32)
        session.use_keyring(changed(session.keyring, generations=(current, newer)))

    done = list(Uploads(session).put_many(sources()))
    # A record signed with the older key is in the log with that signature.
    assert [FileRecord.parse(put.record).generation for put in done] == [1] * 8
    assert session.author.generation == 2


def test_a_caller_who_stops_early(server: Simulator, session: Session) -> None:
    many = Uploads(session).put_many(items(100))
    next(many)
    del many
    assert put(session, b"later") == 1
    assert fetched(session, "file") == b"later"
    assert session.connections == 1


def test_expecting_the_present_version_costs_one_request(
    server: Simulator, session: Session
) -> None:
    put(session, b"")
    before = len(server.requests)
    Files(session).stat("file")
    assert len(server.requests) == before + 1
    assert len(server.asked(Stat)) == 1


class Broken(io.BytesIO):
    """Starts well and then cannot be read to its end."""

    def readinto(self, buffer: Buffer, /) -> int:  # type: ignore[override]
        if self.tell() >= self.getbuffer().nbytes // 2:
            raise OSError(5, "Input/output error")
        view = memoryview(buffer).cast("B")[: self.getbuffer().nbytes // 2]
        return super().readinto(view)


@pytest.mark.parametrize("size", [1000, BIG])
def test_an_unreadable_source_among_many(server: Simulator, session: Session, size: int) -> None:
    items: list[tuple[Source, str | None]] = [
        (io.BytesIO(b"1"), "a"),
        (Broken(bytes(size)), "b"),
        (io.BytesIO(b"3"), "c"),
    ]
    told: list[SfscError] = []
    done = Uploads(session).put_many(items, skip=lambda _what, error: told.append(error))
    assert [put.name for put in done] == ["a", "c"]
    assert [type(error) for error in told] == [UnreadableSource]
    assert server.uploads == {}
    with pytest.raises(UnreadableSource):
        list(Uploads(session).put_many([(Broken(bytes(size)), "b")]))


def test_a_source_that_fails_on_the_second_read(server: Simulator, session: Session) -> None:
    """The failed source, which is an earlier one, is reported, and the present one is stored."""

    class Once(io.BytesIO):
        def seek(self, *_place: int) -> int:
            raise OSError(5, "Input/output error")

    refused = [Error("upload-lost", "no such upload")]

    def refuse(request: Request) -> Reply | None:
        return refused.pop() if is_large(request) and refused else None

    server.intercept = refuse
    items: list[tuple[Source, str | None]] = [(Once(bytes(BIG)), "a"), (io.BytesIO(b"2"), "a")]
    told: list[tuple[str, type[SfscError]]] = []
    done = Uploads(session).put_many(
        items, skip=lambda what, error: told.append((what, type(error)))
    )
    assert [(put.name, put.size) for put in done] == [("a", 1)]
    assert told == [("the source", UnreadableSource)]
    refused.append(Error("upload-lost", "no such upload"))
    with pytest.raises(LocalError, match="cannot read"):
        list(Uploads(session).put_many([(Once(bytes(BIG)), "b"), (io.BytesIO(b"2"), "c")]))


# --- sources that change


def changing(monkeypatch: pytest.MonkeyPatch, path: Path, *changes: Callable[[], object]) -> None:
    """Make each of `changes` during one reading of `path`, after its first bytes."""
    left = list(changes)
    read = SourceReader._read

    def changed(source: SourceReader, buffer: memoryview, offset: int) -> int:
        count = read(source, buffer[:10] if not offset else buffer, offset)
        if not offset and source.name == str(path) and left:
            left.pop(0)()
        return count

    monkeypatch.setattr(SourceReader, "_read", changed)


@pytest.mark.parametrize("size", [1000, BIG])
@pytest.mark.parametrize("many", [False, True])
def test_a_source_that_changes_once_is_read_again(
    server: Simulator,
    session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    *,
    many: bool,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    newer = os.urandom(size)
    changing(monkeypatch, path, lambda: path.write_bytes(newer))
    uploads = Uploads(session)
    done = next(uploads.put_many([(path, "file")])) if many else uploads.put(path, "file")
    assert not done.unstable
    assert fetched(session, "file") == newer
    assert server.uploads == {}
    opened = server.asked(PutOpen)
    assert [bool(one.size) for one in opened] == ([True, False] if size == BIG else [])
    headers = {bytes(one.data[:40]) for one in server.asked(Data) if one.offset == 0}
    assert len(headers) == len(opened), "a segment was encrypted twice under one key"


@pytest.mark.parametrize("size", [1000, BIG])
@pytest.mark.parametrize("after", [0, 500, 2000, BIG - PIECE, BIG + PIECE])
def test_a_source_that_keeps_changing_is_stored_as_it_was_read(
    server: Simulator,
    session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    after: int,
) -> None:
    """It grows or shrinks during both readings; the files behind it are stored."""
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    changing(
        monkeypatch,
        path,
        lambda: os.truncate(path, (size + after) // 2),
        lambda: os.truncate(path, after),
    )
    sources: list[tuple[Source, str | None]] = [(path, "a"), (io.BytesIO(b"2"), "b")]
    done = list(Uploads(session).put_many(sources, skip=lambda _what, error: None))
    assert [(put.name, put.unstable) for put in done] == [("a", True), ("b", False)]
    stored = fetched(session, "a")
    # A prefix of what the second reading found: no longer than the file was when it began.
    assert stored == bytes(len(stored))
    assert len(stored) == max(10, min(after, (size + after) // 2))
    assert server.uploads == {}


def test_a_source_that_is_removed_or_replaced_is_stored_as_it_was_opened(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = tmp_path / "file", os.urandom(BIG)
    path.write_bytes(content)
    changing(monkeypatch, path, path.unlink)
    assert not Uploads(session).put(path, "file").unstable
    assert fetched(session, "file") == content


@pytest.mark.parametrize("kind", [PutOpen, Data])
@pytest.mark.parametrize("close_first", [False, True])
def test_an_interrupted_put_leaves_no_upload(
    server: Simulator, session: Session, kind: Kind, *, close_first: bool
) -> None:
    class Interrupted(io.BytesIO):
        def readinto(self, buffer: Buffer, /) -> int:  # type: ignore[override]
            if len(server.asked(kind)) >= 1:
                raise KeyboardInterrupt
            return super().readinto(memoryview(buffer).cast("B")[: PIECE // 2])

    many: list[tuple[Source, str | None]] = [
        (io.BytesIO(bytes(BIG)), "a"),
        (Interrupted(bytes(9 * PIECE)), "b"),
    ]
    with pytest.raises(KeyboardInterrupt):
        list(Uploads(session).put_many(many))
    assert server.asked(PutAbort)[-1].upload == ALL_UPLOADS
    assert session.uploading == 0
    if close_first:
        session.close()
    else:
        assert put(session, b"later") == 1
    assert server.uploads == {}


def test_results_that_are_not_read_leave_no_upload(server: Simulator, session: Session) -> None:
    sources, _contents = mixture()
    many = Uploads(session).put_many(sources)
    next(many)
    assert session.uploading == 1
    del many
    assert session.uploading == 0
    assert server.uploads == {}
