"""A root has one owner at a time, and its log begins with what the server says it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.log.auditlog import EntryDraft
from protocol.records.records import ServerStatement
from protocol.records.signatures import SigningKey
from sfsd import server_keys
from sfsd.cli import main
from sfsd.datadir import STATEMENT_OP, lock_root, open_world
from sfsd.errors import ConfigError, JournalDamagedError, RecoveryError, RootBusyError
from sfsd.storage.change import Change


@pytest.fixture
def root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["init", "--root", str(tmp_path / "root")]) == 0
    capsys.readouterr()
    return tmp_path / "root"


def test_one_owner_at_a_time(root: Path) -> None:
    with lock_root(root):
        with pytest.raises(RootBusyError) as caught, lock_root(root):
            pass
        assert caught.value.hint
    with lock_root(root):
        assert (root / "run" / "lock").exists()


def test_no_folder_appears_where_there_is_no_root(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), lock_root(tmp_path / "nothing"):
        pass
    assert not (tmp_path / "nothing").exists()


def stated(root: Path) -> list[ServerStatement]:
    with lock_root(root), open_world(root) as world:
        entries = [world.journal.entry(seq) for seq in range(world.journal.size)]
    return [
        ServerStatement.parse(entry.rec)
        for entry in entries
        if entry.op == STATEMENT_OP and entry.rec is not None
    ]


def test_the_statement_is_logged_once(root: Path) -> None:
    first = stated(root)
    assert [statement.n for statement in first] == [1]
    assert stated(root) == first


def test_a_successor_is_logged_too(root: Path) -> None:
    stated(root)
    new_key(root)
    assert [statement.n for statement in stated(root)] == [1, 2]
    assert [statement.n for statement in stated(root)] == [1, 2]


def new_key(root: Path) -> None:
    """Another TLS key and certificate, taken from a root of its own."""
    other = root.with_name("other")
    server_keys.create(other, 1_800_000_000)
    for name in ("tls.key", "tls.crt"):
        (root / "keys" / name).write_bytes((other / name).read_bytes())


def test_a_log_of_another_key_is_refused(root: Path) -> None:
    stated(root)
    (root / "keys" / "log.key").write_text(SigningKey.generate().seed.hex())
    with lock_root(root), pytest.raises(ConfigError), open_world(root):
        pass


def test_a_log_that_is_damaged_where_a_statement_is_looked_for(root: Path) -> None:
    """A start takes on trust what lies before its mark, but for what it looks at."""
    stated(root)
    new_key(root)
    with lock_root(root), open_world(root) as world:
        world.committer.submit(Change(EntryDraft(op="start", actor="server"))).result()
    path = root / "logs" / "audit.jsonl"
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(b'"time":"2', b'"time":"1') + third)
    with lock_root(root), pytest.raises(JournalDamagedError), open_world(root):
        pass


def test_a_store_that_is_not_mounted(root: Path) -> None:
    """Else it would be served empty: whoever is invited then could take anyone's name."""
    stated(root)
    (root / "store").rename(root / "elsewhere")
    for _ in range(2):
        with pytest.raises(RecoveryError, match="store/users: not there") as caught:
            stated(root)
        assert caught.value.hint
        (root / "store").mkdir(exist_ok=True)  # what its disk is mounted on
    (root / "store").rmdir()
    (root / "elsewhere").rename(root / "store")
    assert stated(root)
