"""Evidence of a lie is stored completely, and a failure to store it hides nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from protocol.wire.messages import Done, Error
from protocol.wire.messages.base import Receipt
from protocol.wire.messages.files import Stat
from protocol.wire.messages.log import LogLeavesPage
from protocol.wire.messages.session import Enroll
from protocol.wire.messages.uploads import Data
from sfsc.errors import Damaged, Distrusted, Fork, IntegrityError, LocalError
from sfsc.session import evidence
from sfsc.session.evidence import Answers
from sfsc.session.session import Session
from sfsc.trust.state import EVIDENCE
from tests.sfsc.simulator import Simulator


def fork(known: bytes = b"known\n", shown: bytes = b"shown \xff\n") -> Fork:
    return Fork("what", notes=(known, shown))


def test_evidence_of_a_fork_is_written_once(tmp_path: Path) -> None:
    path = evidence.place(tmp_path, fork())
    evidence.save(path, "about", fork(), Answers())
    text = path.read_text()
    assert "known\n" in text
    assert "shown \\xff\n" in text
    evidence.save(path, "otherwise", fork(), Answers())
    assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]
    assert evidence.place(tmp_path, fork(b"shown \xff\n", b"known\n")) != path


@pytest.mark.skipif(os.name == "nt", reason="no such limit")
def test_evidence_is_written_atomically(tmp_path: Path) -> None:
    import resource

    path = evidence.place(tmp_path, fork())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(LocalError):
            evidence.save(path, "about", fork(), Answers())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(path.parent.iterdir()) == []
    evidence.save(path, "about", fork(), Answers())
    assert path.exists()


def test_a_failure_to_write_evidence(server: Simulator, session: Session, home: Path) -> None:
    """The fork is the error that is reported, and nothing more is signed."""
    (home / EVIDENCE).write_bytes(b"in the way")
    session.close()
    server.log = server.log.fork(1)
    server.log.fill(5)
    with pytest.raises(Fork) as caught:
        session.connect()
    assert "cannot write the evidence" in caught.value.hint
    with pytest.raises(Distrusted):
        session.check_trusted()


def test_a_full_folder_of_answers_still_takes_a_fork(tmp_path: Path) -> None:
    found = [IntegrityError("a lie") for _ in range(evidence.MAX_FILES + 1)]
    for one in found:
        evidence.keep(tmp_path, "about", one, Answers())
    assert found[-2].evidence is not None
    assert found[-1].evidence is None
    assert "full of evidence" in found[-1].hint
    evidence.keep(tmp_path, "about", forked := fork(), Answers())
    assert forked.evidence is not None
    assert len(list((tmp_path / EVIDENCE).iterdir())) == evidence.MAX_FILES + 1


def test_no_evidence_is_kept_of_what_is_no_lie(tmp_path: Path) -> None:
    found = Damaged("lost bytes")
    evidence.keep(tmp_path, "about", found, Answers())
    assert found.evidence is None
    assert not (tmp_path / EVIDENCE).exists()


def test_answers_are_bounded_and_the_newest_is_always_there() -> None:
    answers = Answers()
    for number in range(10_000):
        answers.add(Stat("ada", f"{number:032x}", 0), Error("not-found", "x"), 1000)
    names = [name for name, _ in answers.newest()]
    assert 1000 < len(names) < 1100
    assert f"{9_999:032x}" in names[0]
    answers.add(None, LogLeavesPage(bytes(5 << 20 >> 3)), 5 << 20)
    assert [name for name, _ in answers.newest()] == ["LogLeavesPage"]


def test_a_file_of_evidence_is_bounded(tmp_path: Path) -> None:
    found = IntegrityError("a lie")
    found.proofs = (("a large thing", bytes(evidence.MAX_SHOWN + 7)),)
    answers = Answers()
    answers.add(None, Done(Receipt(b"line", b"note", 0, b"")), 100)
    evidence.keep(tmp_path, "about", found, answers)
    text = Path(str(found.evidence)).read_text()
    assert len(text) < 2 * evidence.MAX_SHOWN
    assert f"and more: {evidence.MAX_SHOWN + 7} bytes" in text


def test_requests_are_named_without_contents_and_secrets() -> None:
    answers = Answers()
    tag_key, proof = b"T" * 32, b"P" * 32
    enroll = Enroll(2, "ada", b"statement", b"bundle", bytes(64), proof, tag_key)
    answers.add(enroll, Error("token", "used"), 10)
    answers.add(Data, Error("quota", "full\x1b[2J"), 10)
    (data, _), (asked, _) = answers.newest()
    assert data == "Error, the answer to Data"
    assert "Enroll(" in asked
    assert "T" * 16 not in asked
    assert "P" * 16 not in asked
