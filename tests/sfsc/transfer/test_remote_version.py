"""Opened versions: many replies are verified together, each on its own."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence

import pytest

from protocol.codec.values import changed
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.downloads import Opened, OpenedVersion, OpenResult
from sfsc.crypto.segments import Encryptor
from sfsc.errors import BadRecord, NotFound, ProtocolFailure, Rollback, SfscError, Tampered
from sfsc.files.listing import Files
from sfsc.session.session import Session
from sfsc.transfer.remote_version import RemoteVersion, VersionRequest
from sfsc.transfer.upload import Uploads
from tests.opens import only_result, open_one, result_of
from tests.sfsc.simulator import Simulator

NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture
def stored(session: Session) -> Session:
    for name in NAMES:
        Uploads(session).put(io.BytesIO(name.encode()), name)
    return session


def asked(session: Session) -> Iterator[tuple[VersionRequest, OpenedVersion]]:
    for name in NAMES:
        wanted = VersionRequest.build(session, session.account.file_id(name), 0, name=name)
        one = only_result(session.ask(wanted.message))
        assert isinstance(one, OpenedVersion)
        yield wanted, one


def verified(
    session: Session, results: Sequence[tuple[VersionRequest, OpenedVersion | Error]]
) -> list[RemoteVersion | SfscError]:
    return RemoteVersion.verify_batch(
        session, [RemoteVersion(session, wanted, result_of(one)) for wanted, one in results]
    )


def test_each_reply_gives_its_version(stored: Session) -> None:
    versions = verified(stored, list(asked(stored)))
    assert [
        b"".join(version.segments()) for version in versions if isinstance(version, RemoteVersion)
    ] == [name.encode() for name in NAMES]
    assert verified(stored, []) == []


def test_a_failed_reply_does_not_affect_the_others(stored: Session) -> None:
    replies = list(asked(stored))
    first = replies[0][1]
    tampered: list[tuple[VersionRequest, OpenedVersion | Error]] = list(replies)
    # A reply of another file; metadata of another version; no such file, although the log has it.
    tampered[1] = (replies[1][0], first)
    tampered[2] = (
        replies[2][0],
        changed(replies[2][1], view=changed(replies[2][1].view, metadata=first.view.metadata)),
    )
    tampered[3] = (replies[3][0], Error("not-found", "there is none"))
    kinds = [type(one) for one in verified(stored, tampered)]
    assert kinds == [RemoteVersion, BadRecord, Tampered, Rollback, RemoteVersion]


@pytest.mark.parametrize("size", [5, 3_000_000])
def test_content_that_a_reader_has_forged_with_the_server_is_rejected(
    server: Simulator, session: Session, size: int
) -> None:
    """A reader knows the key of a file. With the server they can encrypt other content under it,
    and hash its pieces. Only the owner's record tells that it is not the content."""
    Uploads(session).put(io.BytesIO(bytes(size)), "a")
    stored = server.files[session.account.file_id("a")].versions[1]
    file = RemoteVersion.open_own(session, "a", 0).file
    key = session.account.open_content_key(file)
    encryptor = Encryptor(key.dek, key.content_id)
    pieces = encryptor.plaintext_segments(io.BytesIO(b"F" * size))
    forged = b"".join(encryptor.seal_segment(view, last=last) for view, last in pieces)
    assert len(forged) == len(stored.blob)
    stored.blob = forged
    with pytest.raises(Tampered):
        list(RemoteVersion.open_own(session, "a", 0).segments())


def test_a_known_file_that_the_server_denies(
    server: Simulator, stored: Session, other: Session
) -> None:
    """The server may deny only files that are not known, or were deleted."""
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
    (version,) = verified(stored, [(changed(wanted, name="b"), reply)])
    assert isinstance(version, Tampered)


def test_a_handle_of_a_lost_connection_is_replaced(server: Simulator, stored: Session) -> None:
    """A handle belongs to its connection, whenever its reply is verified."""
    wanted, reply = next(asked(stored))
    opened = RemoteVersion(stored, wanted, result_of(changed(reply, leaves=b"", data=b"")))
    stored.reconnect()
    (version,) = RemoteVersion.verify_batch(stored, [opened])
    assert isinstance(version, RemoteVersion)
    before = len(server.requests)
    assert b"".join(version.segments()) == b"a"
    assert server.requests[before:][0] == open_one(stored.account.user, wanted.file_id, 1)


@pytest.mark.parametrize(
    ("results", "kind"),
    [
        (lambda _true: (), ProtocolFailure),
        (lambda true: true * 2, ProtocolFailure),
        (lambda _true: (OpenResult(None, None),), ProtocolFailure),
    ],
    ids=["none", "too many", "neither opened nor refused"],
)
def test_results_for_other_targets_than_requested_are_refused(
    server: Simulator,
    stored: Session,
    results: Callable[[tuple[OpenResult, ...]], tuple[OpenResult, ...]],
    kind: type[SfscError],
) -> None:
    def tamper(_request: Request, reply: Reply) -> Reply:
        return Opened(results(reply.results)) if isinstance(reply, Opened) else reply

    server.tamper = tamper
    with pytest.raises(kind):
        RemoteVersion.open_own(stored, "a", 0)
