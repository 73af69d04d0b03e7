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


def test_damaged_remembered_statements(session: Session, home: Path) -> None:
    path = state_path(home)
    (verifier,) = load_verifiers(path)
    assert verifier.vkey == session.trust.log_vkey
    session.state.close()
    for change in (
        "UPDATE server_statement SET statement = x'80'",
        "DELETE FROM meta WHERE key = 'account'",
    ):
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(change)
        with pytest.raises(LocalError):
            load_verifiers(path)
