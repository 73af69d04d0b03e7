"""Two machines of one user on a server that shows them two logs: the first file exposes it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.log import LogHead, LogProof
from sfsc.errors import BadReceipt, Distrusted, Fork, IntegrityError, Rollback
from sfsc.files.tree import Trees
from sfsc.log import seen_checkpoints as seen_module
from sfsc.log.seen_checkpoints import SeenCheckpoints
from sfsc.session.session import Session
from sfsc.transfer.download import Downloads
from sfsc.transfer.remote_version import RemoteVersion
from sfsc.transfer.upload import Uploads
from tests.sfsc.simulator import Simulator
from tests.sfsc.storing import drop, once


def put(session: Session, name: str, content: bytes = b"content") -> None:
    Uploads(session).put(io.BytesIO(content), name)


def get(session: Session, name: str) -> bytes:
    target = io.BytesIO()
    Downloads(session).get(name, target)
    return target.getvalue()


def test_one_log_for_both(server: Simulator, session: Session, other: Session) -> None:
    for number in range(5):
        put(session, f"{number}")
        put(other, f"other {number}")
    for number in range(5):
        assert get(other, f"{number}") == b"content"
        assert get(session, f"other {number}") == b"content"
    # A verified checkpoint is not verified again.
    seen = SeenCheckpoints(other)
    for number in range(5):
        seen.add(RemoteVersion.open_own(other, f"{number}", 0).file)
    seen.verify()
    asked = len(server.asked(LogProof))
    for number in range(5):
        seen.add(RemoteVersion.open_own(other, f"{number}", 0).file)
    seen.verify()
    assert len(server.asked(LogProof)) == asked


def test_a_signer_who_saw_a_later_checkpoint(
    server: Simulator, session: Session, other: Session
) -> None:
    """The signer's checkpoint is later than our login, so the present checkpoint is fetched
    first."""
    for number in range(3):
        put(session, f"{number}")
    before = len(server.asked(LogHead))
    assert get(other, "2") == b"content"
    assert len(server.asked(LogHead)) == before + 1
    assert other.trust.newest.size == server.log.size


def test_a_connection_lost_during_verification(
    server: Simulator, session: Session, other: Session
) -> None:
    """The next login finds a longer log than the proofs were requested for, which is not a fork."""
    seen = SeenCheckpoints(other)
    for number in range(3):
        put(session, f"{number}")
    other.reconnect()
    for number in range(3):
        seen.add(RemoteVersion.open_own(other, f"{number}", 0).file)
    server.tamper = once(LogProof, drop, 1)
    seen.verify()
    assert other.connections == 3
    assert other.state.distrust_evidence() is None


def test_many_checkpoints_are_verified_in_batches(
    server: Simulator,
    session: Session,
    other: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seen_module, "_MANY", 4)
    for number in range(50):
        put(session, f"d/{number:02}")
    server.requests.clear()
    asked = list[int]()
    for _ in Trees(other).get("d", tmp_path / "out", lambda _what, _why: None):
        asked.append(len(server.asked(LogProof)))
    assert 0 < asked[25] <= asked[-1] < len(server.asked(LogProof))
    assert len(list((tmp_path / "out" / "d").iterdir())) == 50


@pytest.mark.parametrize("longer", [0, 3, 30])
def test_a_split_view_is_detected(
    server: Simulator, session: Session, other: Session, longer: int
) -> None:
    """The log that `session` saw is replaced by a fork before `other` logs in. The files are
    genuine, but the fork does not have the checkpoint that their signer quotes."""
    other.close()
    put(session, "before")
    at = server.log.size
    put(session, "a")
    put(session, "a", b"again")
    twin = server.log.fork(at)
    twin.fill(1 + longer)
    server.log = twin
    # The files are unchanged; only the log differs.
    other.connect()
    with pytest.raises((Fork, Rollback)):
        get(other, "a")


def test_evidence_is_kept_and_nothing_more_is_signed(
    server: Simulator, session: Session, other: Session, home: Path
) -> None:
    put(session, "a")
    at = server.log.size
    for number in range(3):
        put(session, f"{number}")
    put(session, "a", b"again")
    other.close()
    server.log = server.log.fork(at)
    server.log.fill(20)
    other.connect()
    with pytest.raises(Fork) as caught:
        get(other, "a")
    assert caught.value.evidence is not None
    text = Path(caught.value.evidence).read_text()
    assert "ada signed that the log had" in text
    assert "— sfs/" in text
    with pytest.raises(Distrusted):
        other.check_trusted()
    with pytest.raises(IntegrityError):
        put(other, "b")


def test_a_server_that_declines_the_consistency_proof(
    server: Simulator, session: Session, other: Session
) -> None:
    put(session, "a")
    put(session, "b")
    put(other, "c")

    def hook(request: Request) -> Reply | None:
        return Error("bad-request", "no") if isinstance(request, LogProof) else None

    server.intercept = hook
    with pytest.raises(BadReceipt):
        get(other, "b")
