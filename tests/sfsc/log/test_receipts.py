"""Remembered log keys. The end-to-end tests verify proofs with them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sfsc.errors import LocalError
from sfsc.log.receipts import load_verifiers
from sfsc.session.session import Session
from sfsc.trust.state import state_path
from tests.sfsc.simulator import SimulatedLog, Simulator


def test_only_statements_that_the_server_signed_have_a_log_key(
    server: Simulator, session: Session, home: Path
) -> None:
    path = state_path(home)
    (verifier,) = load_verifiers(path)
    assert verifier.vkey == session.trust.log_vkey
    session.state.close()
    body, signature = SimulatedLog().statement(2)
    forged, _ = server.log.statement(3)
    for row in ((2, body, signature), (3, forged, bytes(64)), (4, b"\x80", bytes(64))):
        change(path, "INSERT INTO server_statement VALUES (?, ?, ?)", *row)
    assert load_verifiers(path) == [verifier]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE server_statement SET statement = 'text'",
        "UPDATE server_statement SET signature = 7",
        "UPDATE meta SET value = 'text' WHERE key = 'account'",
        "DELETE FROM meta WHERE key = 'account'",
    ],
)
def test_a_damaged_state_has_no_log_key(session: Session, home: Path, statement: str) -> None:
    session.state.close()
    change(state_path(home), statement)
    with pytest.raises(LocalError):
        load_verifiers(state_path(home))


def change(path: Path, statement: str, *values: int | bytes) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement, values)
