"""Opened versions: many replies are verified together, each on its own."""

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


def test_each_reply_gives_its_version(stored: Session) -> None:
    blobs = judged(stored, list(asked(stored)))
    assert [b"".join(blob.segments()) for blob in blobs if isinstance(blob, RemoteVersion)] == [
        name.encode() for name in NAMES
    ]
    assert judged(stored, []) == []


def test_a_failed_reply_does_not_affect_the_others(stored: Session) -> None:
    answers = list(asked(stored))
    first = answers[0][1]
    tampered: list[tuple[VersionRequest, Reply]] = list(answers)
    # A reply of another file; metadata of another version; no such file.
    tampered[1] = (answers[1][0], first)
    tampered[2] = (
        answers[2][0],
        changed(answers[2][1], view=changed(answers[2][1].view, metadata=first.view.metadata)),
    )
    tampered[3] = (answers[3][0], Error("not-found", "there is none"))
    kinds = [type(one) for one in judged(stored, tampered)]
    assert kinds == [RemoteVersion, BadRecord, Tampered, NotFound, RemoteVersion]


def test_a_known_file_that_the_server_denies(
    server: Simulator, stored: Session, other: Session
) -> None:
    """ "No such file" is believed only about a file that is not known, or was deleted."""
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


def test_a_version_under_another_name_is_rejected(stored: Session) -> None:
    """With two ids for one name, each reply must match its own request."""
    ((wanted, reply), *_) = list(asked(stored))
    (blob,) = judged(stored, [(changed(wanted, name="b"), reply)])
    assert isinstance(blob, Tampered)


def test_a_handle_of_a_lost_connection_is_replaced(server: Simulator, stored: Session) -> None:
    """A handle belongs to its connection, whenever its reply is verified."""
    wanted, reply = next(asked(stored))
    answer = VersionReply(stored, wanted, changed(reply, leaves=b"", data=b""))
    stored.reconnect()
    (blob,) = RemoteVersion.verify_batch([answer])
    assert isinstance(blob, RemoteVersion)
    before = len(server.requests)
    assert b"".join(blob.segments()) == b"a"
    assert server.requests[before:][0] == changed(wanted.message, version=1)
