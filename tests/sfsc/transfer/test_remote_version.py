"""Files that are opened: many answers judged together, each by itself."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from protocol.codec.values import changed
from protocol.wire.messages import Error, Reply
from protocol.wire.messages.downloads import Opened
from sfsc.errors import BadRecord, NotFound, Rollback, SfscError, Tampered
from sfsc.files.listing import Files
from sfsc.session.session import Session
from sfsc.transfer.remote_version import RemoteVersion, VersionReply, VersionRequest
from sfsc.transfer.upload import Uploads
from tests.sfsc.simulator import Simulator

NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture
def stored(session: Session) -> Session:
    for name in NAMES:
        Uploads(session).put(io.BytesIO(name.encode()), name)
    return session


def asked(session: Session) -> Iterator[tuple[VersionRequest, Opened]]:
    for name in NAMES:
        wanted = VersionRequest.build(session, session.account.file_id(name), 0, name=name)
        reply = session.ask(wanted.message)
        assert isinstance(reply, Opened)
        yield wanted, reply


def judged(
    session: Session, answers: list[tuple[VersionRequest, Reply]]
) -> list[RemoteVersion | SfscError]:
    return RemoteVersion.verify_batch(
        [VersionReply(session, wanted, reply) for wanted, reply in answers]
    )


def test_each_gives_its_own(stored: Session) -> None:
    blobs = judged(stored, list(asked(stored)))
    assert [b"".join(blob.segments()) for blob in blobs if isinstance(blob, RemoteVersion)] == [
        name.encode() for name in NAMES
    ]
    assert judged(stored, []) == []


def test_one_that_fails_in_a_step_fails_alone(stored: Session) -> None:
    answers = list(asked(stored))
    first = answers[0][1]
    tampered: list[tuple[VersionRequest, Reply]] = list(answers)
    # Of another file; with metadata of another version; not there at all.
    tampered[1] = (answers[1][0], first)
    tampered[2] = (
        answers[2][0],
        changed(answers[2][1], view=changed(answers[2][1].view, metadata=first.view.metadata)),
    )
    tampered[3] = (answers[3][0], Error("not-found", "there is none"))
    kinds = [type(one) for one in judged(stored, tampered)]
    assert kinds == [RemoteVersion, BadRecord, Tampered, NotFound, RemoteVersion]


def test_a_file_that_the_server_no_longer_knows(
    server: Simulator, stored: Session, other: Session
) -> None:
    """That there is none is believed of one that is not known, or was deleted."""
    Files(stored).rm("b")
    Files(other).rm("c")
    for name in ("b", "c", "never"):
        with pytest.raises(NotFound):
            RemoteVersion.open_own(stored, name, 0)
    with pytest.raises(NotFound):
        RemoteVersion.open_own(stored, "a", 2)
    del server.files[stored.account.file_id("a")]
    with pytest.raises(Rollback):
        RemoteVersion.open_own(stored, "a", 0)


def test_another_name_than_the_one_asked_for(stored: Session) -> None:
    """Of two ids of one name, as while files are renamed, each answer says what it is the answer
    to."""
    ((wanted, reply), *_) = list(asked(stored))
    (blob,) = judged(stored, [(changed(wanted, name="b"), reply)])
    assert isinstance(blob, Tampered)


def test_what_was_answered_before_a_connection_was_lost_is_asked_for_again(
    server: Simulator, stored: Session
) -> None:
    """A handle is of its connection, whenever its answer is judged."""
    wanted, reply = next(asked(stored))
    answer = VersionReply(stored, wanted, changed(reply, leaves=b"", data=b""))
    stored.reconnect()
    (blob,) = RemoteVersion.verify_batch([answer])
    assert isinstance(blob, RemoteVersion)
    before = len(server.requests)
    assert b"".join(blob.segments()) == b"a"
    assert server.requests[before:][0] == changed(wanted.message, version=1)
