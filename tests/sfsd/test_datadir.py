"""The lock of a root, and the statements of the server in its log."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from protocol.log.auditlog import LOST, EntryDraft
from protocol.records.records import ServerStatement
from protocol.records.signatures import SigningKey
from protocol.wire.messages.accounts import UserAdd
from sfsd import server_keys
from sfsd.cli import main
from sfsd.commands.operator_client import send_requests
from sfsd.datadir import STATEMENT_OP, lock_root, open_server_context
from sfsd.errors import ConfigError, JournalDamagedError, RecoveryError, RootBusyError
from sfsd.fs.files import Files
from sfsd.storage.change import Change


@pytest.fixture
def root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["init", "--root", str(tmp_path / "root")]) == 0
    capsys.readouterr()
    return tmp_path / "root"


def test_root_is_locked_by_one_process(root: Path) -> None:
    with lock_root(root):
        with pytest.raises(RootBusyError) as caught, lock_root(root):
            pass
        assert caught.value.cause == f"another command (pid {os.getpid()}) uses {root}"
        assert caught.value.hint
    with lock_root(root, to_serve=True):
        assert (root / "run" / "lock").exists()
        with pytest.raises(RootBusyError) as caught, lock_root(root):
            pass
        assert caught.value.cause == f"another daemon (pid {os.getpid()}) serves {root}"
        for stated in ("", "12", "12 cat", "x daemon", "12 daemon more", "\0" * 20, "é daemon"):
            (root / "run" / "pid").write_text(stated, "utf-8")
            with pytest.raises(RootBusyError) as caught, lock_root(root):
                pass
            assert caught.value.cause == f"another process uses {root}"
    assert not (root / "run" / "pid").exists()


def test_a_full_disk_does_not_keep_a_root_from_being_locked(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: Files, _path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Files, "replace_soon", full)
    with lock_root(root), pytest.raises(RootBusyError), lock_root(root):
        pass


def test_lock_makes_no_folder_outside_a_root(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), lock_root(tmp_path / "nothing"):
        pass
    assert not (tmp_path / "nothing").exists()


def logged_statements(root: Path) -> list[ServerStatement]:
    with lock_root(root), open_server_context(root) as context:
        entries = [context.journal.entry(seq) for seq in range(context.journal.size)]
    return [
        ServerStatement.parse(entry.rec)
        for entry in entries
        if entry.op == STATEMENT_OP and entry.rec is not None
    ]


def test_statement_is_logged_once(root: Path) -> None:
    first = logged_statements(root)
    assert [statement.n for statement in first] == [1]
    assert logged_statements(root) == first


def test_a_root_has_its_applied_mark_from_the_first_start(root: Path) -> None:
    """A full disk takes a new number in the file, but not a new file."""
    applied = root / "staging" / "applied"
    assert not applied.exists()
    with lock_root(root), open_server_context(root):
        assert applied.read_bytes() == b"0\n"


def test_successor_is_logged_too(root: Path) -> None:
    logged_statements(root)
    replace_tls_key(root)
    assert [statement.n for statement in logged_statements(root)] == [1, 2]
    assert [statement.n for statement in logged_statements(root)] == [1, 2]


def replace_tls_key(root: Path) -> None:
    """Install another TLS key and certificate, made in a root of their own."""
    other = root.with_name("other")
    server_keys.create(other, 1_800_000_000)
    for name in ("tls.key", "tls.crt"):
        (root / "keys" / name).write_bytes((other / name).read_bytes())


def test_log_of_another_key_is_refused(root: Path) -> None:
    logged_statements(root)
    (root / "keys" / "log.key").write_text(SigningKey.generate().seed.hex())
    with lock_root(root), pytest.raises(ConfigError), open_server_context(root):
        pass


def test_damaged_statement_entry_is_found_at_start(root: Path) -> None:
    """A start does not verify entries before its mark, except those that it reads."""
    logged_statements(root)
    replace_tls_key(root)
    with lock_root(root), open_server_context(root) as context:
        context.committer.submit(Change(EntryDraft(op="start", actor="server"))).result()
    path = root / "logs" / "audit.jsonl"
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(b'"time":"2', b'"time":"1') + third)
    with lock_root(root), pytest.raises(JournalDamagedError), open_server_context(root):
        pass


def test_unmounted_store_is_not_served(root: Path) -> None:
    """An empty store would let a newly invited user take any name."""
    logged_statements(root)
    (root / "store").rename(root / "elsewhere")
    for _ in range(2):
        with pytest.raises(RecoveryError, match="store/users: not there") as caught:
            logged_statements(root)
        assert caught.value.hint
        (root / "store").mkdir(exist_ok=True)  # the mount point
    (root / "store").rmdir()
    (root / "elsewhere").rename(root / "store")
    assert logged_statements(root)


class NoMemory(Files):
    """A system without the memory to open an account's settings."""

    def open_read(self, path: Path | str) -> int:
        if str(path).endswith("account.json"):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return super().open_read(path)


def test_nothing_is_set_aside_until_there_is_memory(root: Path) -> None:
    send_requests(root, [UserAdd("ada", bytes(32), 2_000_000_000, 0)])
    (root / "staging" / "applied").write_bytes(b"0\n")
    (root / "store" / "users" / "ada" / "account.json").unlink()
    with lock_root(root), open_server_context(root, files=NoMemory()) as context:
        assert context.failed is not None
        assert "setting lost files aside" in context.failed
        assert context.committer.awaits_room
        size = context.journal.size
    with lock_root(root), open_server_context(root) as context:
        assert (context.failed, context.journal.size) == (None, size + 1)
        assert context.journal.entry(size).op == LOST
        assert context.documents.account("ada") is not None


REPLACED = [
    "logs/checkpoint",
    "logs/reserve",
    *(f"logs/tree/{name}" for name in ("leaves", "mark", "nodes", "offsets", "paths")),
    "staging/.spare/000",
    "staging/applied",
    "store/users/.spare/000",
]
"""What follows from the rest of the root."""


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_files_that_can_be_made_again_never_refuse_a_start(root: Path) -> None:
    send_requests(root, [UserAdd("ada", bytes(32), 2_000_000_000, 0)])
    for name in REPLACED:
        path = root / name
        path.unlink()
        path.symlink_to(path.name)  # opening it fails: too many levels of symbolic links
    with lock_root(root), open_server_context(root) as context:
        assert context.failed is None
        context.journal.verify_before_mark()
        assert context.documents.account("ada") is not None
    assert [name for name in REPLACED if (root / name).is_symlink()] == []
    with lock_root(root), open_server_context(root) as context:
        context.journal.verify_before_mark()
        assert (context.failed, context.store.installer.applied) == (None, context.journal.size - 1)


class UnreadableCache(Files):
    """A disk that has lost the sectors of one file of the cached tree."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.handle: int | None = None

    def open_append(self, path: Path) -> int:
        handle = super().open_append(path)
        if path.name == self.name:
            self.handle = handle
        return handle

    def read_at(self, handle: int, length: int, offset: int) -> bytes:
        if handle == self.handle:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read_at(handle, length, offset)


@pytest.mark.parametrize("name", ["nodes", "offsets"])
def test_a_start_makes_a_cache_again_that_the_disk_cannot_read(
    root: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    size = len(logged_statements(root))
    with lock_root(root), open_server_context(root, files=UnreadableCache(name)) as context:
        assert (context.failed, context.journal.size) == (None, size)
    assert "logs/tree is made again from the log" in caplog.text
    assert len(logged_statements(root)) == size
