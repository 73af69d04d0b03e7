"""Journals of uploads: what they resume, and when they give an upload up."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.changes import Commit
from protocol.wire.messages.uploads import Data, PutAbort, PutOpen, PutResume, UploadState
from sfsc.errors import Denied, NetworkError
from sfsc.session.session import Session
from sfsc.transfer import upload, upload_journal
from sfsc.transfer.source import SourceReader
from sfsc.transfer.upload import Uploads
from sfsc.transfer.upload_journal import LIFETIME, UploadJournals
from tests.sfsc.simulator import DropConnection, Simulator
from tests.sfsc.storing import fetched

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows keeps no journals")
PIECES = 5
SHORTEST = 2 * PIECE
SIZE = (PIECES - 1) * PIECE + 7
ALL = list(range(PIECES))


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resume short files too, so that the tests are quick."""
    monkeypatch.setattr(upload, "RESUMABLE", SHORTEST)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(SIZE))
    return path


def cut(server: Simulator, session: Session, source: Path, pieces: int = 3) -> None:
    """Lose the network for good when the server has processed so many pieces of a put."""
    before = len(server.asked(Data))

    def lose(request: Request, reply: Reply) -> Reply:
        if len(server.asked(Data)) >= before + pieces:
            raise DropConnection
        return reply

    def refuse(_request: Request) -> Reply | None:
        if len(server.asked(Data)) >= before + pieces:
            raise DropConnection
        return None

    server.tamper, server.intercept = lose, refuse
    with pytest.raises(NetworkError):
        Uploads(session).put(source, "file")
    server.tamper, server.intercept = lambda _request, reply: reply, lambda _request: None
    session.close()
    session.connect()


def put(server: Simulator, session: Session, source: Path) -> list[int]:
    """Put again, check everything, and return the numbers of the pieces that were sent."""
    before = len(server.requests)
    Uploads(session).put(source, "file")
    sent = [one for one in server.requests[before:] if isinstance(one, Data)]
    assert fetched(session, "file") == source.read_bytes()
    assert journals(session) == []
    check_nonces(server)
    return sorted({one.offset // PIECE for one in sent})


def check_nonces(server: Simulator) -> None:
    """Check that no two different segments were sent under one key and nonce: the header has the
    salt of the key and the beginning of the nonces, and the rest of a nonce is the number of the
    segment, and whether it is the last."""
    headers: dict[bytes, bytes] = {}
    pieces = defaultdict[tuple[bytes, int], set[bytes]](set)
    for one in server.asked(Data):
        if not one.offset:
            headers[one.upload] = bytes(one.data[:40])
        pieces[headers[one.upload], one.offset].add(bytes(one.data))
    assert {len(found) for found in pieces.values()} == {1}
    assert len(set(headers.values())) == len(headers)


def journals(session: Session) -> list[Path]:
    folder = session.state.home / upload_journal.FOLDER
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("pieces", [1, 3, PIECES])
def test_only_the_rest_is_sent(
    server: Simulator, session: Session, source: Path, pieces: int
) -> None:
    cut(server, session, source, pieces)
    (journal,) = journals(session)
    (received,) = server.uploads.values()
    stored = -(-len(received) // PIECE)
    assert put(server, session, source) == ALL[stored:]
    assert server.uploads.keys() == set()
    assert len(server.asked(PutOpen)) == 1
    assert not journal.exists()


def test_the_commit_alone_is_left(server: Simulator, session: Session, source: Path) -> None:
    def refuse(request: Request) -> Reply | None:
        if isinstance(request, Commit):
            raise DropConnection
        return None

    server.intercept = refuse
    with pytest.raises(NetworkError):
        Uploads(session).put(source, "file")
    server.intercept = lambda _request: None
    session.close()
    session.connect()
    assert put(server, session, source) == []


def edit(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"!!")


def replace(path: Path) -> None:
    path.unlink()
    path.write_bytes(os.urandom(SIZE))


CHANGES: dict[str, Callable[[Path], None]] = {
    "sent": lambda path: edit(path, 5),
    "unsent": lambda path: edit(path, SIZE - 2),
    "shorter": lambda path: os.truncate(path, 2 * PIECE + 5),
    "longer": lambda path: os.truncate(path, SIZE + 5 * PIECE),
    "replaced": replace,
}


@pytest.mark.parametrize("times", ["honest", "forged"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_source_has_a_new_key(
    server: Simulator,
    session: Session,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    times: str,
) -> None:
    """Also if size and times do not show that it has changed: then the hashes do, if a segment
    that may have been sent is another one."""
    if times == "forged":
        monkeypatch.setattr(SourceReader, "version", property(lambda _reader: (SIZE, 1, 1)))
    cut(server, session, source)
    CHANGES[change](source)
    sent = put(server, session, source)
    opened = len(server.asked(PutOpen))
    if times == "forged" and change == "unsent":
        assert opened <= 2  # one, if no hash of the last segment was stored yet
    else:
        assert (sent[0], opened, len(server.asked(PutAbort))) == (0, 2, 1)
    assert server.uploads.keys() == set()


def test_a_server_that_has_lost_it(server: Simulator, session: Session, source: Path) -> None:
    cut(server, session, source)
    server.uploads.clear()
    assert put(server, session, source) == ALL


@pytest.mark.parametrize(("claimed", "opened"), [(0, 1), (SIZE + 2**30, 2)])
def test_a_server_that_says_it_has_more_or_less(
    server: Simulator, session: Session, source: Path, claimed: int, opened: int
) -> None:
    """Pieces that it has already are the same bytes. It cannot have one that was not sent."""
    cut(server, session, source)

    def tamper(request: Request, reply: Reply) -> Reply:
        return UploadState(request.upload, claimed) if isinstance(request, PutResume) else reply

    server.tamper = tamper
    assert put(server, session, source) == ALL
    assert len(server.asked(PutOpen)) == opened


@pytest.mark.parametrize("damage", ["cut", "torn", "swapped", "bit", "header", "empty", "keys"])
def test_a_journal_that_is_not_whole(
    server: Simulator, session: Session, source: Path, tmp_path: Path, damage: str
) -> None:
    cut(server, session, source)
    (journal,) = journals(session)
    data = journal.read_bytes()
    assert source.read_bytes()[:100] not in data
    last, before = data[-48:], data[-96:-48]
    changed = {
        "cut": data[: 2 + int.from_bytes(data[:2]) - 1],
        "torn": data[:-1],
        "swapped": data[:-96] + last + before,
        "bit": data[:-1] + bytes([data[-1] ^ 1]),
        "header": data[:10] + bytes([data[10] ^ 1]) + data[11:],
        "empty": b"",
        "keys": data,
    }
    journal.write_bytes(changed[damage])
    if damage == "keys":  # of another account of this home: the name is another file's
        journal.rename(journal.with_name(session.account.file_id("other")))
        os.truncate(source, SIZE)
        Uploads(session).put(source, "other")
        assert fetched(session, "other") == source.read_bytes()
    else:
        assert put(server, session, source) == ALL
    check_nonces(server)
    assert len(server.asked(PutOpen)) == 2


def test_an_older_journal_in_its_place(server: Simulator, session: Session, source: Path) -> None:
    """It has fewer hashes than pieces were sent; the server has them all."""
    cut(server, session, source, 4)
    (journal,) = journals(session)
    data = journal.read_bytes()
    header = 2 + int.from_bytes(data[:2])
    journal.write_bytes(data[: header + 48])
    assert put(server, session, source) == ALL
    assert len(server.asked(PutOpen)) == 2


def test_an_older_journal_and_a_server_that_goes_along(
    server: Simulator, session: Session, source: Path
) -> None:
    """No hash shows that the last pieces were sent, but the source's times show that it changed."""
    cut(server, session, source, 4)
    (journal,) = journals(session)
    data = journal.read_bytes()
    journal.write_bytes(data[: 2 + int.from_bytes(data[:2]) + 48])
    edit(source, 3 * PIECE)

    def tamper(request: Request, reply: Reply) -> Reply:
        return UploadState(request.upload, PIECE) if isinstance(request, PutResume) else reply

    server.tamper = tamper
    Uploads(session).put(source, "file")
    check_nonces(server)
    assert len(server.asked(PutOpen)) == 2


def test_hashes_are_on_the_disk_before_their_pieces_are_sent(
    server: Simulator, session: Session, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []

    def sync(descriptor: int) -> None:
        os.fsync(descriptor)
        synced.append(os.fstat(descriptor).st_size)

    def intercept(request: Request) -> Reply | None:
        if isinstance(request, Data):
            index = request.offset // PIECE
            assert synced[-1] >= synced[0] + 48 * (index + 1)
        return None

    monkeypatch.setattr(upload_journal, "sync_to_disk", sync)
    server.intercept = intercept
    assert put(server, session, source) == ALL


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_full_disk(
    server: Simulator, session: Session, source: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The file is stored without a journal; what was sent before is given up."""
    done = 0

    def sync(_descriptor: int) -> None:
        nonlocal done
        done += 1
        if done > at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(upload_journal, "sync_to_disk", sync)
    assert put(server, session, source) == ALL
    assert len(server.asked(PutOpen)) == 1 + (at > 0)


def test_a_journal_in_use_is_left_alone(
    server: Simulator, session: Session, source: Path, other: Session
) -> None:
    """Two processes put the same file: one continues the upload, the other begins its own."""
    cut(server, session, source)
    held = UploadJournals(session).find(session.account.file_id("file"))
    assert held is not None
    assert UploadJournals(session).find(session.account.file_id("file")) is None
    before = len(server.asked(PutOpen))
    Uploads(session).put(source, "file")
    assert len(server.asked(PutOpen)) == before + 1
    assert len(journals(session)) == 1
    held.close()
    assert put(server, session, source)[0] > 0
    assert len(server.asked(PutOpen)) == before + 1


def test_old_journals_are_removed(server: Simulator, session: Session, source: Path) -> None:
    cut(server, session, source)
    (journal,) = journals(session)
    old = time.time() - LIFETIME - 5
    os.utime(journal, (old, old))
    (journal.parent / ".left").write_bytes(b"")
    os.utime(journal.parent / ".left", (old, old))
    Uploads(session).put(source, "other")
    assert journals(session) == []


def test_an_error_of_the_server_ends_it(server: Simulator, session: Session, source: Path) -> None:
    def refuse(request: Request) -> Reply | None:
        if isinstance(request, Data) and request.offset == 2 * PIECE:
            return Error("not-allowed", "no")
        return None

    server.intercept = refuse
    with pytest.raises(Denied):
        Uploads(session).put(source, "file")
    assert journals(session) == []
    assert server.uploads == {}


def test_what_is_short_or_no_file_has_no_journal(
    server: Simulator, session: Session, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    short.write_bytes(os.urandom(SHORTEST - 1))
    seen: list[Path] = []

    def intercept(request: Request) -> Reply | None:
        if isinstance(request, Data):
            seen.extend(journals(session))
        return None

    server.intercept = intercept
    Uploads(session).put(short, "file")
    with (tmp_path / "short").open("rb") as stream:
        Uploads(session).put(stream, "file")
    assert seen == []


def test_keys_are_not_readable_in_a_journal(
    server: Simulator, session: Session, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bytes] = []

    def new_key() -> bytes:
        made.append(os.urandom(32))
        return made[-1]

    monkeypatch.setattr("sfsc.crypto.envelope.new_key", new_key)
    monkeypatch.setattr(upload_journal, "new_key", new_key)
    cut(server, session, source)
    (journal,) = journals(session)
    data = journal.read_bytes()
    assert len(made) >= 2
    assert not any(key in data for key in made)
