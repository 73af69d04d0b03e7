"""Evidence of a split view is stored completely, and a failure to store it hides nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from sfsc.errors import Distrusted, Fork, LocalError
from sfsc.session import fork_evidence
from sfsc.session.session import Session
from sfsc.trust.state import EVIDENCE
from tests.sfsc.simulator import Simulator

NOTES = (b"known\n", b"shown \xff\n")


def test_evidence_is_written_once(tmp_path: Path) -> None:
    path = fork_evidence.place(tmp_path, NOTES)
    fork_evidence.save(path, "about", "what", NOTES)
    text = path.read_text()
    assert "known\n" in text
    assert "shown \\xff\n" in text
    fork_evidence.save(path, "about", "otherwise", NOTES)
    assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]
    assert fork_evidence.place(tmp_path, NOTES[::-1]) != path


@pytest.mark.skipif(os.name == "nt", reason="no such limit")
def test_evidence_is_written_atomically(tmp_path: Path) -> None:
    import resource

    path = fork_evidence.place(tmp_path, NOTES)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(LocalError):
            fork_evidence.save(path, "about", "what", NOTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(path.parent.iterdir()) == []
    fork_evidence.save(path, "about", "what", NOTES)
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
