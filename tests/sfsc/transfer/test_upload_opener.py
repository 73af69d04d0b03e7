"""Uploads of large files in a folder are opened before their turn, and nothing depends on it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.base import MAX_SMALL
from protocol.wire.messages.changes import Commit
from protocol.wire.messages.uploads import PutAbort, PutOpen
from sfsc.crypto.segments import ciphertext_size
from sfsc.errors import QuotaExceeded, SfscError
from sfsc.files.tree import Trees, walk_folder
from sfsc.session.session import Session
from sfsc.transfer.source import TreeItem
from sfsc.transfer.upload import Uploads
from tests.sfsc.simulator import Simulator
from tests.sfsc.storing import drop, fetched, once
from tests.waiting import until

LARGE = MAX_SMALL + 5
NAMES = ("a", "b-large", "c", "d", "e-large", "f")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(os.urandom(LARGE if "large" in name else 10))
    return folder


def items(tree: Path) -> list[TreeItem]:
    return list(walk_folder(tree, "", refuse))


def refuse(_what: str, error: SfscError) -> None:
    raise error


def stored(session: Session, tree: Path) -> None:
    """Put all files in order, and compare what is stored."""
    done = list(Trees(session).put([tree], "", refuse))
    assert [put.name for put in done] == sorted(path.name for path in tree.iterdir())
    for put in done:
        assert fetched(session, put.name) == (tree / put.name).read_bytes()


def kinds(server: Simulator) -> list[str]:
    """Return what was asked in order, one word for each file."""
    asked = list[str]()
    for one in server.requests:
        if isinstance(one, PutOpen):
            asked.append("open")
        elif isinstance(one, Commit):
            asked += ["large" if change.upload else "small" for change in one.changes]
    return asked


def test_the_next_large_upload_is_opened_ahead(
    server: Simulator, session: Session, tree: Path
) -> None:
    stored(session, tree)
    assert kinds(server) == [
        *("open", "small", "open", "large"),
        *("small", "small", "large", "small"),
    ]
    assert {one.size for one in server.asked(PutOpen)} == {ciphertext_size(LARGE)}
    assert server.asked(PutAbort) == []


def test_a_changed_file_gets_another_upload(
    server: Simulator, session: Session, tree: Path
) -> None:
    uploads = Uploads(session)
    sources = [(str(tree / name), name) for name in NAMES]
    uploads.announce(items(tree))
    (tree / "b-large").write_bytes(os.urandom(LARGE + 1))
    done = list(uploads.put_many(sources))
    assert [put.name for put in done] == list(NAMES)
    for name in NAMES:
        assert fetched(session, name) == (tree / name).read_bytes()
    # The upload opened for it is aborted, and that of the other file is opened ahead.
    assert [one.size - ciphertext_size(LARGE) for one in server.asked(PutOpen)] == [0, 0, 1]
    until(lambda: len(server.asked(PutAbort)) == 1)


def test_a_file_that_became_small_does_not_keep_an_upload(
    server: Simulator, session: Session, tree: Path
) -> None:
    uploads = Uploads(session)
    sources = [(str(tree / name), name) for name in NAMES]
    uploads.announce(items(tree))
    (tree / "b-large").write_bytes(b"")
    assert [put.name for put in uploads.put_many(sources)] == list(NAMES)
    assert len(server.asked(PutOpen)) == 2
    assert len(server.asked(PutAbort)) == 1
    assert server.uploads == {}


def test_an_announced_file_that_is_not_put_is_aborted(
    server: Simulator, session: Session, tree: Path
) -> None:
    uploads = Uploads(session)
    large = [one for one in items(tree) if one.name == "b-large"]
    uploads.announce(large)
    assert [put.name for put in uploads.put_many([(tree / "a", "a")])] == ["a"]
    until(lambda: len(server.asked(PutAbort)) == 1)
    uploads.announce(large)
    uploads.announce([])
    assert [put.version for put in uploads.put_many([(large[0], None)])] == [1]


@pytest.mark.parametrize("nth", [0, 1])
def test_a_connection_lost_during_the_opening(
    server: Simulator, session: Session, tree: Path, nth: int
) -> None:
    server.tamper = once(PutOpen, drop, nth)
    stored(session, tree)
    assert session.connections == 2


@pytest.mark.parametrize("nth", [0, 1])
def test_a_rejected_opening_is_repeated(
    server: Simulator, session: Session, tree: Path, nth: int
) -> None:
    server.tamper = once(PutOpen, lambda *_: Error("busy", "not now"), nth)
    stored(session, tree)
    assert len(server.asked(PutOpen)) == 3


def test_a_lasting_rejection_is_raised_in_its_turn(
    server: Simulator, session: Session, tree: Path
) -> None:
    def full(request: Request, reply: Reply) -> Reply:
        return Error("quota", "full") if isinstance(request, PutOpen) else reply

    server.tamper = full
    putting = Trees(session).put([tree], "", refuse)
    assert next(putting).name == "a"
    with pytest.raises(QuotaExceeded):
        next(putting)
