"""The state of a client only moves forward, in whatever order its processes write."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from protocol.codec.values import changed
from protocol.records.records import FileRecord, record_hash
from sfsc.errors import LocalError
from sfsc.keys.home import unlock_home
from sfsc.keys.keyring import KeyringFile
from sfsc.trust.file_records import Entry, KnownRevision
from sfsc.trust.followed_log import (
    LOG_START,
    LogChanges,
    LoggedHead,
    LoggedVersion,
    LogPosition,
    SignedLeave,
    VersionFacts,
)
from sfsc.trust.state import ClientState, KnownFile, LoggedFile, open_client_state, state_path
from tests.vectors import protocol_examples as examples

ACCOUNT = bytes(32) + b"ada"
KEY = b"k" * 32
ENTRY = Entry("name", examples.FILE_ID, 1, 1, 5, 96, 9, None, 9)
PACKED = ENTRY.pack()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "state.sqlite3"


def opened(path: Path, account: bytes = ACCOUNT, key: bytes = KEY) -> ClientState:
    return ClientState.open_database(path, account, key)


def known(rev: int, file_id: str = "a" * 32, mark: str = "") -> KnownFile:
    record = f"record {rev}{mark}".encode()
    return KnownFile(file_id, rev, record.ljust(32, b"."), record, version=rev)


def position(size: int) -> LogPosition:
    peaks = tuple(bytes([size]) * 32 for _ in range(size.bit_count()))
    return LogPosition(size, size, 1, 1, peaks, b"note %d" % size)


def follow(state: ClientState, size: int) -> None:
    """Remember that the log was followed to `size`, and a file that has changed there."""
    head = LoggedHead(size, bytes([size]) * 32, size - 1, 1, b"c" * 32)
    state.save_followed(position(size), LogChanges({"b" * 32: head}, {}, []), {b"c" * 32: size})


def vouched(rev: int, file_id: str = "a" * 32) -> KnownRevision:
    return KnownRevision(rev, known(rev, file_id).hash, verified=True)


def test_new_state_is_empty(path: Path) -> None:
    with opened(path) as state:
        assert state.followed() == LOG_START
        assert state.server_statements() == []
        assert state.file("a" * 32) is None
        assert list(state.entries()) == []


def test_state_is_persistent(path: Path) -> None:
    with opened(path) as state:
        follow(state, 7)
        state.remember_server_statement(2, b"statement", b"signature")
        state.remember_file(known(3), b"entry")
    with opened(path) as state:
        assert state.followed() == position(7)
        assert state.contacts() == {b"c" * 32: 7}
        assert state.logged_heads() == {"b" * 32: LoggedHead(7, b"\x07" * 32, 6, 1, b"c" * 32)}
        assert state.server_statements() == [(b"statement", b"signature")]
        assert state.file("a" * 32) == known(3)
        assert state.known_revisions(["a" * 32, "b" * 32]) == {"a" * 32: vouched(3), "b" * 32: None}
        assert state.known_revisions([]) == {}
        assert state.files(["b" * 32, "a" * 32]) == {"b" * 32: None, "a" * 32: known(3)}
        assert list(state.entries()) == [("a" * 32, b"entry")]


def test_a_position_is_not_saved_without_what_was_known_before_it(path: Path) -> None:
    """Somebody has removed the rows since this session began at 7 entries."""
    with opened(path) as state:
        follow(state, 7)
        state.reset_log()
        state.save_followed(position(9), LogChanges({}, {}, []), {}, start=7)
        assert state.followed() == LOG_START
        state.save_followed(position(9), LogChanges({}, {}, []), {}, start=0)
        assert state.followed() == position(9)


def test_versions_keep_their_times_when_they_are_encrypted_again(path: Path) -> None:
    file, first = "b" * 32, VersionFacts(10, 20, 56, b"1" * 16, 1)
    head = LoggedHead(5, b"h" * 32, 6, 2, b"c" * 32, VersionFacts(30, 0, 57, b"2" * 16, 1))
    again = VersionFacts(size=56, content_id=b"3" * 16, generation=2)
    made = [LoggedVersion(b"v" * 32, b"l" * 32, first), LoggedVersion(b"w" * 32, b"", again)]
    with opened(path) as state:
        for size, version in enumerate(made, 7):
            changes = LogChanges({file: head}, {(file, 1): version}, [], removed=frozenset())
            state.save_followed(position(size), changes, {})
        gone = LogChanges({}, {}, [], removed=frozenset({(file, 1)}))
        state.save_followed(position(9), gone, {})
    with opened(path) as state:
        older = {1: VersionFacts(10, 20, 56, b"3" * 16, 2)}
        assert state.logged_file(file) == LoggedFile(head, older, frozenset({1}))
        assert state.logged_files() == {file: state.logged_file(file)}
        state.reset_log()
        assert state.logged_files() == {}


def test_state_only_moves_forward(path: Path) -> None:
    with opened(path) as early, opened(path) as late:
        for state, step in ((late, 9), (early, 4)):
            follow(state, step)
            state.remember_server_statement(step, b"statement %d" % step, b"")
            state.remember_file(known(step), b"entry %d" % step)
        for state in (late, early):
            assert state.followed() == position(9)
            assert state.server_statements()[-1] == (b"statement 9", b"")
            assert state.file("a" * 32) == known(9)
            assert list(state.entries()) == [("a" * 32, b"entry 9")]


def test_remember_files_is_atomic(path: Path) -> None:
    first, second = known(2), known(5, "b" * 32)
    with opened(path) as state:
        state.remember_file(known(3), b"newer")
        state.remember_files([])
        state.remember_files([(first, b"older"), (second, None)])
        assert state.files(["a" * 32, "b" * 32]) == {"a" * 32: known(3), "b" * 32: second}
        assert list(state.entries()) == [("a" * 32, b"newer")]
        wrong = changed(second, file_id="c" * 32, record=cast(bytes, None))
        with pytest.raises(LocalError):
            state.remember_files([(known(1, "d" * 32), None), (wrong, None)])
        assert state.file("d" * 32) is None


def test_known_server_statement_is_not_replaced(path: Path) -> None:
    with opened(path) as state:
        state.remember_server_statement(1, b"first", b"")
        state.remember_server_statement(1, b"another", b"")
        assert state.server_statements() == [(b"first", b"")]


def test_cached_entry_belongs_to_one_record(path: Path) -> None:
    with opened(path) as state:
        state.remember_file(known(1), b"entry")
        assert list(state.cached_entries()) == [("a" * 32, known(1).hash, b"entry")]
        state.remember_file(known(2), None)
        assert list(state.entries()) == []
        assert state.last_entry("a" * 32) == b"entry"
        state.remember_file(known(2), b"entry 2")
        assert list(state.cached_entries()) == [("a" * 32, known(2).hash, b"entry 2")]


def test_cached_entry_survives_the_same_record_without_entry(path: Path) -> None:
    """It was requested before the listing that brought the entry, and no other will bring it."""
    with opened(path) as state:
        state.remember_file(known(1), b"entry")
        state.remember_file(known(1), None)
        assert list(state.entries()) == [("a" * 32, b"entry")]
        state.remember_file(known(1, mark="!"), None)
        assert list(state.entries()) == []


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        (changed(examples.ACCESS, rev=2), True),
        (changed(examples.PURGE, rev=2, current=1, content=bytes(32)), True),
        (changed(examples.REENCRYPT, rev=2), False),
        (changed(examples.DELETE, rev=2), False),
        (changed(examples.ACCESS, rev=3), False),
    ],
    ids=lambda value: value.op if isinstance(value, FileRecord) else None,
)
def test_an_entry_stays_with_a_record_that_makes_no_content(
    path: Path, change: FileRecord, *, stays: bool
) -> None:
    put = examples.PUT
    prev = record_hash(b"put" if change.rev == 2 else b"unknown")
    made = changed(change, file_id=put.file_id, prev=prev)
    with opened(path) as state:
        state.remember_file(KnownFile.from_record(put, b"put", 1), PACKED)
        state.remember_changes([(made, b"change", 1)])
        expected = put.file_id, record_hash(b"change"), changed(ENTRY, revision=2).pack()
        assert list(state.cached_entries()) == ([expected] if stays else [])
        assert state.file(put.file_id) == KnownFile.from_record(made, b"change", 1)


def test_names_are_not_readable_on_disk(path: Path) -> None:
    secret = b"the name of a file that nobody should read"
    with opened(path) as state:
        state.remember_file(known(1), secret)
        # While it is open, what was written may still be in the -wal file beside it.
        stored = b"".join(file.read_bytes() for file in path.parent.iterdir())
        assert known(1).record in stored
        assert secret not in stored
        assert secret[:8] not in stored


def test_an_entry_moved_to_another_file_does_not_open(path: Path) -> None:
    with opened(path) as state:
        state.remember_file(known(1, "a" * 32), b"entry a")
        state.remember_file(known(1, "b" * 32), b"entry b")
    with sqlite3.connect(path) as database:
        database.execute(
            "UPDATE file SET entry = (SELECT entry FROM file WHERE file_id = ?)", ("b" * 32,)
        )
    database.close()
    with opened(path) as state, pytest.raises(LocalError):
        list(state.entries())


def test_another_key_forgets_only_cached_data(path: Path) -> None:
    with opened(path) as state:
        state.remember_file(known(1), b"entry")
    with opened(path, key=b"K" * 32) as state:
        assert list(state.entries()) == []
        assert state.file(known(1).file_id) == known(1)
        state.remember_file(known(1), b"anew")
    with opened(path, key=b"K" * 32) as state:
        assert [entry for _, entry in state.entries()] == [b"anew"]


def test_change_key_keeps_cached_data(path: Path) -> None:
    with opened(path) as state:
        state.remember_file(known(1), b"entry")
        state.change_key(b"K" * 32)
        assert [entry for _, entry in state.entries()] == [b"entry"]
    with opened(path, key=b"K" * 32) as state:
        assert [entry for _, entry in state.entries()] == [b"entry"]


def test_page_size_of_new_and_old_files(path: Path) -> None:
    def pages() -> tuple[int, int]:
        database = sqlite3.connect(path)
        (size,), (count,) = (
            database.execute(f"PRAGMA {name}").fetchone() for name in ("page_size", "page_count")
        )
        database.close()
        return size, size * count

    with opened(path) as state:
        empty = pages()[1]
        for number in range(256):
            ids = f"{number:032x}"
            body = bytes(650)
            state.remember_file(KnownFile(ids, 1, bytes(32), body, 1), bytes(250))
    assert pages()[0] == 4096
    assert pages()[1] - empty < 256 * 1600
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA page_size = 1024")
        database.execute("VACUUM")
    database.close()
    with opened(path) as state:
        state.remember_file(known(1), b"entry")
    assert pages()[0] == 1024
    with opened(path) as state:
        assert state.file("a" * 32) == known(1)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE file SET hash = zeroblob(32)",
        "UPDATE file SET vouched = NULL",
        "UPDATE file SET vouched = zeroblob(16)",
        "UPDATE file SET vouched = substr(vouched, 1, 15)",
        "UPDATE file SET vouched = zeroblob(0)",
        "UPDATE file SET (hash, vouched) = (SELECT hash, vouched FROM file ORDER BY file_id DESC)",
    ],
)
def test_verification_macs_need_the_key(path: Path, change: str) -> None:
    other = "b" * 32
    with opened(path) as state:
        state.remember_files([(known(1), b"entry"), (known(1, other, "other"), None)])
        assert state.known_revisions(["a" * 32]) == {"a" * 32: vouched(1)}
    with sqlite3.connect(path) as database:
        database.execute(change)
    database.close()
    with opened(path) as state:
        revision = state.known_revisions(["a" * 32])["a" * 32]
        assert revision is not None
        assert not revision.verified
        # Once verified again, it is marked again.
        state.remember_file(known(1), None)
        assert state.known_revisions(["a" * 32]) == {"a" * 32: vouched(1)}


def test_another_key_invalidates_verification_macs(path: Path) -> None:
    """Even for a key set by `change_key`: a holder of the old key may have made any MAC."""
    with opened(path) as state:
        state.remember_file(known(1), None)
        state.change_key(b"K" * 32)
        assert state.known_revisions(["a" * 32]) == {"a" * 32: known(1).revision}
        state.remember_file(known(1), None)
    with opened(path, key=b"K" * 32) as state:
        assert state.known_revisions(["a" * 32]) == {"a" * 32: vouched(1)}
    with opened(path, key=b"2" * 32) as state:
        assert state.known_revisions(["a" * 32]) == {"a" * 32: known(1).revision}


def test_new_key_already_adopted_by_another_process(path: Path) -> None:
    """It found the key in the keyring, and the state still under the old key."""
    with opened(path) as state:
        state.remember_file(known(1), b"entry")
        with opened(path, key=b"K" * 32) as other:
            other.remember_file(known(2), b"newer")
            state.change_key(b"K" * 32)
            assert list(other.entries()) == list(state.entries()) == [("a" * 32, b"newer")]


def test_another_process_has_changed_the_key(path: Path) -> None:
    """What is cached under the old key does not open, and does not block the rest."""
    first, second = "a" * 32, "b" * 32
    with opened(path) as late:
        with opened(path) as state:
            state.remember_file(known(1), b"entry")
            state.change_key(b"K" * 32)
        late.remember_files([(known(1), b"older"), (known(1, second), b"entry")])
        assert late.file(second) == known(1, second)
        with pytest.raises(LocalError, match="another process"):
            list(late.entries())
        with opened(path, key=b"K" * 32) as state:
            assert list(state.entries()) == [(first, b"entry")]
            assert state.file(second) == known(1, second)
        # Once it has the key, it goes on.
        assert not late.adopt_current_key(b"2" * 32)
        assert late.adopt_current_key(b"K" * 32)
        late.remember_file(known(1, second), b"entry")
        assert dict(late.entries()) == {first: b"entry", second: b"entry"}
        assert late.known_revisions([second]) == {second: vouched(1, second)}


def test_another_account_is_refused(path: Path) -> None:
    opened(path).close()
    with pytest.raises(LocalError):
        opened(path, bytes(32) + b"eve")


@pytest.mark.parametrize("version", [1, 4, 99])
def test_another_schema_is_refused(path: Path, version: int) -> None:
    opened(path).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {version}")
    database.close()
    with pytest.raises(LocalError):
        opened(path)


@pytest.mark.parametrize("stored", [b"not a database" * 100, b"SQLite format 3\0" + bytes(4096)])
def test_a_damaged_file_is_a_local_error(path: Path, stored: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(stored)
    with pytest.raises(LocalError) as caught:
        opened(path)
    assert str(path) in caught.value.cause


def test_a_folder_that_cannot_be_made_is_a_local_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LocalError):
        opened(tmp_path / "file" / "state.sqlite3")


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_only_the_owner_may_read_it(path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(path) as state:
            state.remember_file(known(1), b"entry")
            modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
            assert modes == {0o600}
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_transaction_is_atomic(path: Path) -> None:
    def half(state: ClientState) -> None:
        with state.transaction():
            state.remember_file(known(1), b"entry")
            state.remember_server_rotation(4)
            raise KeyboardInterrupt

    with opened(path) as state:
        with pytest.raises(KeyboardInterrupt):
            half(state)
        assert (state.file("a" * 32), state.last_server_rotation()) == (None, 0)
        with state.transaction():
            state.remember_file(known(1), b"entry")
        assert state.file("a" * 32) == known(1)


@pytest.mark.skipif(os.name == "nt", reason="no such limit")
def test_full_disk_is_a_local_error(path: Path) -> None:
    import resource

    many = [(known(1, f"{number:032x}"), bytes(1000)) for number in range(9000)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with opened(path) as state:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
            with pytest.raises(LocalError, match=r"disk I/O error|full$"):
                state.remember_files(many)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        state.remember_files(many[:1])
        assert state.file(many[0][0].file_id) == many[0][0]


WRITER = """
import sys
from pathlib import Path
from typing import cast
from sfsc.trust.followed_log import LogChanges, LogPosition
from sfsc.trust.state import ClientState, KnownFile
path, number = Path(sys.argv[1]), int(sys.argv[2])
with ClientState.open_database(path, bytes(32) + b"ada", b"k" * 32) as state:
    for step in range(60):
        size = step * 4 + number
        with state.transaction():
            peaks = (bytes(32),) * size.bit_count()
            state.save_followed(LogPosition(size, 0, 0, 0, peaks, b""), LogChanges({}, {}, []), {})
            known = KnownFile("a" * 32, size, bytes(32), b"r", size)
            state.remember_file(known, b"entry %d" % size)
"""


def test_many_processes_write_at_once(path: Path) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)])
        for number in range(4)
    ]
    assert [process.wait(60) for process in running] == [0] * 4
    with opened(path) as state:
        assert state.followed().size == 239
        assert list(state.entries()) == [("a" * 32, b"entry 239")]


# --- a disk that is full or read-only


@pytest.fixture
def keyring(home: Path) -> KeyringFile:
    return unlock_home(home, None)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    folder = tmp_path / "fresh"
    folder.mkdir()
    return folder


def full(_path: object) -> SimpleNamespace:
    return SimpleNamespace(free=0)


def test_a_copy_knows_what_the_file_knows(
    fresh: Path,
    keyring: KeyringFile,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also what is only in the write-ahead log, of a process that is running or was killed."""
    with open_client_state(fresh, keyring) as state:
        follow(state, 7)
        monkeypatch.setattr(shutil, "disk_usage", full)
        with open_client_state(fresh, keyring, must_be_saved=False) as copy:
            assert not copy.saved
            assert copy.followed() == position(7)
            follow(copy, 9)
            assert copy.followed() == position(9)
            with pytest.raises(LocalError):
                copy.reset_log()
        assert state.followed() == position(7)
    assert "rollback protection is reduced" in caplog.text
    assert str(fresh) in caplog.text


def test_only_a_state_that_need_not_be_saved_is_a_copy(
    fresh: Path, keyring: KeyringFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_arguments: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with open_client_state(fresh, keyring, must_be_saved=False) as state:
        assert state.saved
    monkeypatch.setattr(os, "open", read_only)
    with open_client_state(fresh, keyring, must_be_saved=False) as state:
        assert not state.saved
    with pytest.raises(LocalError):
        open_client_state(fresh, keyring)


def test_a_file_that_cannot_be_read_is_never_left_out(
    fresh: Path, keyring: KeyringFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a server could roll back without being noticed."""
    monkeypatch.setattr(shutil, "disk_usage", full)
    with open_client_state(fresh, keyring, must_be_saved=False) as state:
        assert state.followed() == LOG_START  # there is no file
    state_path(fresh).write_bytes(b"damaged" * 1000)
    with pytest.raises(LocalError):
        open_client_state(fresh, keyring, must_be_saved=False)


def test_readers_who_have_left_are_remembered_with_the_position(path: Path) -> None:
    leave = SignedLeave(b"a leave record", b"s" * 64)
    with opened(path) as state:
        assert state.left_readers() == ()
        state.save_followed(position(3), LogChanges({}, {}, [], (leave,)), {})
        state.save_followed(position(4), LogChanges({}, {}, []), {})
        state.save_followed(position(2), LogChanges({}, {}, [], ()), {})
    with opened(path) as state:
        assert state.left_readers() == (leave,)
        state.reset_log()
        assert state.left_readers() == ()


@pytest.mark.parametrize("chosen", [None, frozenset({"a" * 32}), frozenset({"a" * 32, "b" * 32})])
def test_files_chosen_for_a_rotation_belong_to_its_generation(
    path: Path, chosen: frozenset[str] | None
) -> None:
    with opened(path) as state:
        assert not any(map(state.has_reencrypt_choice, range(1, 4)))
        state.remember_reencrypt_choice(2, chosen)
    with opened(path) as state:
        assert [state.has_reencrypt_choice(n) for n in range(1, 4)] == [False, True, False]
        assert state.reencrypt_choice(2) == chosen
        assert state.reencrypt_choice(3) is None
        state.remember_reencrypt_choice(3, None)
        assert (state.has_reencrypt_choice(2), state.reencrypt_choice(3)) == (False, None)
