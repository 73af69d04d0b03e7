"""Somebody else has put values of any type into the client's state: a typed error, no traceback."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sfsc.errors import LocalError
from sfsc.trust.followed_log import (
    LogChanges,
    LoggedHead,
    LoggedVersion,
    LogPosition,
    StatementLeaf,
)
from sfsc.trust.follower import FoundLeaf
from sfsc.trust.peer_state import KnownSharedFile, PeerState
from sfsc.trust.state import ClientState, KnownFile

ACCOUNT, KEY = bytes(32) + b"ada", b"k" * 32
FILE, DELETED, FIRST = "a" * 32, "d" * 32, b"f" * 32
POSITION = LogPosition(1, 1, 1, 1, (b"p" * 32,), b"note")
VALUES = (None, 7, -(2**63), 1.5, "text", b"", b"\xff" * 40)

LOOSER = (
    (" NOT NULL", ""),
    (" TEXT", ""),
    (" BLOB", ""),
    (" INTEGER,", ","),
    (" INTEGER DEFAULT", " DEFAULT"),
)
"""What is replaced in the definitions of the tables."""


def opened(path: Path) -> ClientState:
    return ClientState.open_database(path, ACCOUNT, KEY)


def fill(state: ClientState) -> None:
    """Store a row of each kind in each table."""
    peers, leaf = PeerState(state), StatementLeaf(FIRST, 1, FoundLeaf(1, 0, b"l" * 48))
    head, version = LoggedHead(1, b"h" * 32, 0, 2, b"c" * 32), LoggedVersion(b"v" * 32, b"")
    changes = LogChanges({FILE: head}, {(FILE, 1): version}, [leaf])
    state.save_followed(POSITION, changes, {FIRST: 1})
    state.remember_server_statement(1, b"statement", b"signature")
    state.distrust("evidence.txt")
    state.remember_reencrypt_choice(2, frozenset([FILE]))
    state.remember_server_rotation(3)
    state.remember_failed_rotation(4)
    state.remember_file(KnownFile(FILE, 1, b"h" * 32, b"record", 1), b"entry")
    state.remember_file(KnownFile(DELETED, 2, b"d" * 32, b"record", 1, deleted=True), None)
    peers.remember_chain("bob", (b"first", b"second"))
    peers.remember_file(KnownSharedFile("bob", FILE, 1, b"h" * 32, b"entry"))
    peers.remember_received_size(1)


USES: tuple[Callable[[ClientState], object], ...] = (
    ClientState.followed,
    ClientState.contacts,
    ClientState.logged_heads,
    ClientState.must_pass,
    ClientState.server_statements,
    ClientState.distrust_evidence,
    ClientState.last_server_rotation,
    ClientState.last_failed_rotation,
    ClientState.deleted_files,
    lambda state: state.is_current,
    lambda state: list(state.entries()),
    lambda state: state.statement_leaf(FIRST, 1),
    lambda state: state.logged_heads([FILE]),
    lambda state: state.logged_versions([(FILE, 1)], state.logged_heads([FILE])),
    lambda state: state.reencrypt_choice(2),
    lambda state: state.file(FILE),
    lambda state: state.verified_file(FILE),
    lambda state: state.known_revisions([FILE, DELETED]),
    lambda state: state.last_entry(FILE),
    lambda state: PeerState(state).chain("bob"),
    lambda state: PeerState(state).known_revisions("bob", [FILE]),
    lambda state: list(PeerState(state).shared_files()),
    lambda state: PeerState(state).received_size(),
    lambda state: state.drop_entry(FILE),
    fill,
    lambda state: PeerState(state).forget_chain("bob"),
    lambda state: state.change_key(b"n" * 32),
    ClientState.reset_log,
)
"""Everything that reads the state, then what changes it."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state in which somebody has removed the types and constraints of the columns."""
    path = tmp_path_factory.mktemp("filled") / "state.sqlite3"
    with opened(path) as state:
        fill(state)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA writable_schema = ON")
        for removed, left in LOOSER:
            database.execute("UPDATE sqlite_master SET sql = replace(sql, ?, ?)", (removed, left))
    return path


def columns(path: Path) -> list[tuple[str, str, str]]:
    """Return (table, column, key): each column of each table, and each row of `meta` by its key."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        found = [
            (table, column, "")
            for (table,) in names
            for _, column, *_ in database.execute(f"PRAGMA table_info({table})")
        ]
        keys = database.execute("SELECT key FROM meta").fetchall()
        return [*found, *(("meta", "value", key) for (key,) in keys)]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_of_any_type_end_in_a_typed_error(
    filled: Path, tmp_path: Path, value: object
) -> None:
    path, refused = tmp_path / "state.sqlite3", set[tuple[str, str]]()
    for table, column, key in columns(filled):
        shutil.copy(filled, path)
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            which = f" WHERE key = '{key}'" if key else ""
            # A primary key keeps its form.
            with contextlib.suppress(sqlite3.IntegrityError):
                statement = f"UPDATE OR REPLACE {table} SET {column} = ?{which}"
                database.execute(statement, (value,))
        for failed in used(path):
            assert str(path) in failed.cause
            refused.add((table, column))
    if type(value) is not bytes:
        assert len(refused) > 8


def used(path: Path) -> Iterator[LocalError]:
    """Yield the typed error of each use of the state that has one."""
    try:
        state = opened(path)
    except LocalError as exc:
        yield exc
        return
    with state:
        for use in USES:
            try:
                use(state)
            except LocalError as exc:
                yield exc
