"""State about other users only moves forward."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.records.records import Statement
from sfsc.errors import LocalError
from sfsc.trust.peer_state import KnownSharedFile, PeerState
from sfsc.trust.state import ClientState
from tests.vectors import protocol_examples

ACCOUNT = bytes(32) + b"ada"
CHAIN = (protocol_examples.FIRST.encode(), protocol_examples.SECOND.encode())
FILE = "f" * 32


def opened(path: Path, key: bytes = b"k" * 32) -> ClientState:
    return ClientState.open_database(path / "state.sqlite3", ACCOUNT, key)


def known(rev: int, entry: bytes | None = None, mark: bytes = b"") -> KnownSharedFile:
    return KnownSharedFile("bob", FILE, rev, (b"%d" % rev + mark).ljust(32, b"."), entry)


def test_a_chain_grows(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        remembered = PeerState(state)
        assert remembered.chain("alice") == ()
        remembered.remember_chain("alice", CHAIN[:1])
        remembered.remember_chain("alice", CHAIN)
        remembered.remember_chain("alice", CHAIN[:1])
    with opened(tmp_path) as state:
        remembered = PeerState(state)
        assert remembered.chain("alice") == CHAIN
        assert [Statement.parse(body).n for body in remembered.chain("alice")] == [1, 2]
        assert remembered.chain("bob") == ()
        remembered.forget_chain("alice")
        assert remembered.chain("alice") == ()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE statement SET body = (SELECT body FROM statement WHERE n = 1) WHERE n = 2",
        "DELETE FROM statement WHERE n = 2",
        "INSERT INTO statement SELECT user, 3, body FROM statement WHERE n = 2",
        "UPDATE statement SET user = 'bob'",
        "UPDATE statement SET user = 'bob'; UPDATE meta SET key = 'chain:bob' WHERE key LIKE '%:%'",
        "DELETE FROM meta WHERE key = 'chain:alice'",
        "UPDATE meta SET value = zeroblob(16) WHERE key = 'chain:alice'",
    ],
)
def test_chain_written_without_the_key_is_ignored(tmp_path: Path, change: str) -> None:
    """A stored chain is not verified again: files would be encrypted to an attacker's key."""
    with opened(tmp_path) as state:
        PeerState(state).remember_chain("alice", CHAIN)
        for one in change.split("; "):
            state.execute(one, ())
        for user in ("alice", "bob"):
            assert PeerState(state).chain(user) == ()
        PeerState(state).remember_chain("alice", CHAIN)
        assert PeerState(state).chain("alice") == CHAIN


def test_chain_under_another_key_is_verified_again(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        PeerState(state).remember_chain("alice", CHAIN)
        state.change_key(b"K" * 32)
        assert PeerState(state).chain("alice") == ()


def test_diverging_chains_of_two_processes_are_not_mixed(tmp_path: Path) -> None:
    """A mixture would be a chain that nobody signed."""
    with opened(tmp_path) as state:
        PeerState(state).remember_chain("alice", CHAIN)
        PeerState(state).remember_chain("alice", (CHAIN[0], b"another", b"third"))
        assert PeerState(state).chain("alice") == CHAIN


def test_another_process_has_changed_the_key(tmp_path: Path) -> None:
    """What is cached under the old key does not open, and does not block the rest."""
    with opened(tmp_path) as late:
        with opened(tmp_path) as state:
            state.change_key(b"K" * 32)
            PeerState(late).remember_file(known(1, b"entry"))
            assert list(PeerState(state).shared_files()) == [known(1)]
        with pytest.raises(LocalError, match="another process"):
            PeerState(late).remember_received_size(5)


def test_revisions_only_grow(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        remembered = PeerState(state)
        assert list(remembered.shared_files()) == []
        remembered.remember_file(known(2, b"entry"))
        remembered.remember_file(known(1, b"older"))
        assert list(remembered.shared_files()) == [known(2, b"entry")]
        # Stored without a listing entry: the cached entry still belongs to this record.
        remembered.remember_file(known(2))
        assert list(remembered.shared_files()) == [known(2, b"entry")]
        # It does not belong to a newer record.
        remembered.remember_file(known(3))
        assert list(remembered.shared_files()) == [known(3)]
        other = "e" * 32
        assert remembered.known_revisions("bob", (FILE, other)) == {
            FILE: known(3).revision,
            other: None,
        }
        assert remembered.known_revisions("carol", (FILE,)) == {FILE: None}
        assert remembered.known_revisions("bob", ()) == {}


def test_names_of_shared_files_are_encrypted_and_bound_to_the_owner(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        PeerState(state).remember_file(known(1, b"a secret name"))
        state.execute("UPDATE shared SET owner = 'eve'", ())
        with pytest.raises(LocalError):
            list(PeerState(state).shared_files())
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"a secret name" not in stored


def test_received_size_only_grows(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        remembered = PeerState(state)
        assert remembered.received_size() == 0
        remembered.remember_received_size(9)
        remembered.remember_received_size(5)
        assert remembered.received_size() == 9
        remembered.remember_file(known(1))
        state.reset_log()
        assert (remembered.received_size(), list(remembered.shared_files())) == (0, [])
