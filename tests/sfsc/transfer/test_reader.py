"""A stored file as a file object: reads anywhere, and only the needed segments are fetched."""

from __future__ import annotations

import io
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.codec.values import changed
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.downloads import Bytes, LeavesPage, Open, Opened, Read
from sfsc.errors import NotFound, Tampered, Unreachable
from sfsc.session.session import Session
from sfsc.transfer.reader import AHEAD, Reader
from sfsc.transfer.remote_version import RemoteVersion
from sfsc.transfer.upload import Uploads
from tests.opens import with_each
from tests.sfsc.simulator import DropConnection, Simulator
from tests.sfsc.storing import once
from tests.waiting import until

SIZES = [0, 1, 300_000, PIECE - 56, PIECE - 55, 7 * PIECE + 77]


def stored(session: Session, size: int) -> bytes:
    content = random.Random(size).randbytes(size)
    Uploads(session).put(io.BytesIO(content), "file")
    return content


def reader(session: Session) -> Reader:
    return Reader(session, RemoteVersion.open_own(session, "file", 0))


@pytest.mark.parametrize("size", SIZES)
def test_reading_everything(session: Session, size: int) -> None:
    content = stored(session, size)
    with io.BufferedReader(reader(session)) as file:
        assert file.read() == content
        assert (file.seek(-min(size, 10), io.SEEK_END), file.read()) == (
            max(0, size - 10),
            content[-10:],
        )
        assert file.seek(size + 5) == size + 5
        assert file.read() == b""


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(-9 * PIECE, 9 * PIECE), st.integers(0, 2 * PIECE)),
        max_size=8,
    )
)
def test_reads_and_seeks_like_bytesio(
    server: Simulator, session: Session, steps: list[tuple[int, int, int]]
) -> None:
    if "file" not in (entry := server.__dict__.setdefault("contents", {})):
        entry["file"] = stored(session, 7 * PIECE + 77)
    model = io.BytesIO(entry["file"])
    with io.BufferedReader(reader(session)) as file:
        for whence, offset, count in steps:
            base = (0, model.tell(), 7 * PIECE + 77)[whence]
            if base + offset < 0:
                with pytest.raises(ValueError, match=r"."):
                    file.seek(offset, whence)
                continue
            assert file.seek(offset, whence) == model.seek(offset, whence)
            assert file.read(count) == model.read(count)
            assert file.tell() == model.tell()


def test_only_what_is_read_is_fetched(server: Simulator, session: Session) -> None:
    content = stored(session, 7 * PIECE + 77)
    server.requests.clear()
    with reader(session) as file:
        file.seek(5 * PIECE)
        assert file.read(10) == content[5 * PIECE : 5 * PIECE + 10]
        assert [read.offset for read in server.asked(Read)] == [5 * PIECE]
        file.seek(5 * PIECE + 100)
        file.read(10)
        assert len(server.asked(Read)) == 1
        # Sequential: the next segments are requested ahead, and each once.
        file.seek(6 * PIECE)
        file.read(10)
        # A reply may arrive before the server has received the next request.
        until(lambda: len(server.asked(Read)) >= 3)
        assert [read.offset // PIECE for read in server.asked(Read)] == [5, 6, 7]
    assert len(server.asked(Open)) == 1


def test_sequential_reads_prefetch_each_segment_once(server: Simulator, session: Session) -> None:
    content = stored(session, 7 * PIECE + 77)
    server.requests.clear()
    with reader(session) as file:
        assert file.read(10) == content[:10]
        assert len(server.asked(Read)) <= AHEAD + 1
        assert file.readall() == content[10:]
    assert sorted(read.offset // PIECE for read in server.asked(Read)) == list(range(8))


def test_a_connection_lost_between_reads(server: Simulator, session: Session) -> None:
    content = stored(session, 7 * PIECE + 77)
    drops = {2, 4, 9}

    def hook(request: Request, reply: Reply) -> Reply:
        if isinstance(request, Read) and len(server.asked(Read)) in drops:
            raise DropConnection
        return reply

    server.tamper = hook
    with io.BufferedReader(reader(session)) as file:
        file.seek(3 * PIECE)
        assert file.read(5) == content[3 * PIECE : 3 * PIECE + 5]
        file.seek(0)
        # Other work in between, over yet another connection.
        session.transport.close()
        Uploads(session).put(io.BytesIO(b"more"), "other")
        assert file.read() == content
    assert session.connections > 3


def test_closing_after_a_lost_connection_sends_nothing(server: Simulator, session: Session) -> None:
    stored(session, 7 * PIECE)
    file = reader(session)
    file.read(5)
    session.reconnect()
    before = len(server.requests)
    file.close()
    assert len(server.requests) == before


def test_a_failed_reopening_is_retried(server: Simulator, session: Session) -> None:
    """The next read retries it, and does not use the handle of the lost connection."""
    content = stored(session, 7 * PIECE)
    with reader(session) as file:
        file.seek(3 * PIECE)
        session.reconnect()
        server.requests.clear()
        server.tamper = once(Open, lambda _request, _reply: Error("busy", "later"))
        with pytest.raises(Unreachable):
            file.read(5)
        assert file.read(5) == content[3 * PIECE : 3 * PIECE + 5]
        assert len(server.asked(Open)) == 2
        session.transport.close()
        file.seek(5 * PIECE)
        file.read(5)
        assert len(server.asked(Open)) == 3


def test_a_changed_version_is_not_read(server: Simulator, session: Session) -> None:
    content = stored(session, 3 * PIECE)
    with reader(session) as file:
        Uploads(session).put(io.BytesIO(b"newer"), "file")
        assert file.readall() == content
        assert (file.version, file.size) == (1, len(content))


@pytest.mark.parametrize("kind", [Bytes, Opened, LeavesPage])
def test_every_segment_is_verified(server: Simulator, session: Session, kind: type[Reply]) -> None:
    stored(session, 3 * PIECE + 5)

    def flip(data: object) -> bytes:
        changes = bytearray(bytes(data))  # type: ignore[call-overload]
        changes[5] ^= 1
        return bytes(changes)

    def hook(_request: Request, reply: Reply) -> Reply:
        if isinstance(reply, kind) and isinstance(reply, Opened):
            return with_each(reply, lambda one: changed(one, data=flip(one.data)))
        if isinstance(reply, kind):
            name = "leaves" if kind is LeavesPage else "data"
            return changed(reply, **{name: flip(getattr(reply, name))})
        return reply

    server.tamper = hook
    with pytest.raises(Tampered), reader(session) as file:
        file.readall()


def test_closed_readers_and_missing_files(session: Session) -> None:
    stored(session, 5)
    file = reader(session)
    file.close()
    file.close()
    for use in (file.read, file.tell, lambda: file.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            use()
    with pytest.raises(NotFound):
        RemoteVersion.open_own(session, "none", 0)
