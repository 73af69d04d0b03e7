"""Rows that decide: only what the seal covers is read, however the file was changed."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfsc.errors import LocalError
from sfsc.trust.state import ClientState

ACCOUNT = bytes(32) + b"ada"
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
NAMES = st.sampled_from([f"{n:02x}" * 16 for n in range(8)])


def opened(path: Path, key: bytes = KEY) -> ClientState:
    return ClientState.open_database(path, ACCOUNT, key)


def run(path: Path, statement: str, *values: object) -> None:
    """Change the file as somebody else would."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        assert database.execute(statement, values).rowcount


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state.sqlite3"
    with opened(path) as state:
        state.vouched.put_many(("head", f"{n:032x}", bytes([n]) * 40) for n in range(100))
        state.vouched.put("log", "position", b"100")
    return path


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.lists(st.tuples(st.sampled_from(["head", "log"]), NAMES, st.binary(max_size=9))),
        max_size=8,
    ),
    again=st.booleans(),
)
def test_behaves_like_a_dictionary(
    tmp_path: Path, changes: list[list[tuple[str, str, bytes]]], again: bool
) -> None:
    path, model = tmp_path / "model.sqlite3", dict[tuple[str, str], bytes]()
    path.unlink(missing_ok=True)
    with opened(path) as one, opened(path) as two:
        for number, rows in enumerate(changes):
            (one, two)[number % 2].vouched.put_many(rows)
            model |= {(kind, key): value for kind, key, value in rows}
            for state in (one, two):
                for kind in ("head", "log"):
                    wanted = {key: value for (its, key), value in model.items() if its == kind}
                    assert dict(state.vouched.items(kind)) == wanted
                    keys = list(wanted)[:2]
                    assert state.vouched.get_many(kind, [*keys, "f" * 32]).keys() == set(keys)
        if again:
            one.vouched.remove("head")
            model = {name: value for name, value in model.items() if name[0] != "head"}
    with opened(path) as state:
        assert dict(state.vouched.items("head")) == {
            key: value for (kind, key), value in model.items() if kind == "head"
        }


def test_rows_are_kept_and_replaced(path: Path) -> None:
    with opened(path) as state:
        state.vouched.put("log", "position", b"101")
    with opened(path) as state:
        assert state.vouched.get("log", "position") == b"101"
        assert len(dict(state.vouched.items("head"))) == 100


@pytest.mark.parametrize(
    "change",
    [
        ("UPDATE vouched SET value = ? WHERE key = ?", b"x" * 40, f"{7:032x}"),
        ("DELETE FROM vouched WHERE key = ?", f"{7:032x}"),
        ("INSERT INTO vouched VALUES (3, 'head', 'new', x'00')",),
        ("UPDATE vouched SET bucket = bucket + 1 WHERE key = ?", f"{7:032x}"),
        ("UPDATE vouched SET bucket = 999 WHERE key = ?", f"{7:032x}"),
        ("UPDATE vouched SET kind = 'shared' WHERE key = ?", f"{7:032x}"),
        ("DELETE FROM vouched",),
        ("DELETE FROM meta WHERE key = 'vouched-sums'",),
        ("UPDATE meta SET value = zeroblob(4124) WHERE key = 'vouched-sums'",),
    ],
    ids=[
        "a value",
        "a row removed",
        "a row added",
        "another bucket",
        "no bucket",
        "another kind",
        "all rows removed",
        "no seal",
        "other sums",
    ],
)
def test_a_changed_file_counts_as_empty(
    path: Path, change: tuple[object, ...], caplog: pytest.LogCaptureFixture
) -> None:
    statement, *values = change
    run(path, str(statement), *values)
    with opened(path) as state:
        assert dict(state.vouched.items("head")) == {}
        assert state.vouched.get("log", "position") is None
        assert "changed by something else than sfsc" in caplog.text
        state.vouched.put("log", "position", b"1")
    with opened(path) as state:
        assert state.vouched.get("log", "position") == b"1"
    assert len(caplog.records) == 1


def test_rows_of_different_days_count_as_none(path: Path, tmp_path: Path) -> None:
    yesterday = tmp_path / "yesterday.sqlite3"
    with opened(path):
        pass
    shutil.copy(path, yesterday)
    with opened(path) as state:
        state.vouched.put("head", f"{7:032x}", b"today")
    with contextlib.closing(sqlite3.connect(yesterday)) as old:
        row = old.execute("SELECT * FROM vouched WHERE key = ?", (f"{7:032x}",)).fetchone()
    run(path, "INSERT OR REPLACE INTO vouched VALUES (?, ?, ?, ?)", *row)
    with opened(path) as state:
        assert state.vouched.get("head", f"{7:032x}") is None


def test_one_row_is_checked_by_its_bucket(path: Path) -> None:
    run(path, "UPDATE vouched SET value = x'00' WHERE key = ?", f"{7:032x}")
    with opened(path) as state:
        assert state.vouched.get("head", f"{7:032x}") is None
        assert dict(state.vouched.items("head")) == {}


def test_another_key_finds_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(path, OTHER_KEY) as state:
        assert dict(state.vouched.items("head")) == {}
    assert "changed by something else" in caplog.text


def test_rows_follow_the_key(path: Path) -> None:
    with opened(path) as state, opened(path) as other:
        assert other.vouched.get("log", "position") == b"100"
        state.change_key(OTHER_KEY)
        assert state.vouched.get("log", "position") == b"100"
        assert other.adopt_current_key(OTHER_KEY)
        assert len(dict(other.vouched.items("head"))) == 100
    with opened(path, OTHER_KEY) as state:
        assert len(dict(state.vouched.items("head"))) == 100


def test_an_undone_transaction_leaves_no_trace(path: Path) -> None:
    with opened(path) as state:
        with contextlib.suppress(LocalError), state.transaction():
            state.vouched.put("log", "position", b"200")
            raise LocalError("no")
        assert state.vouched.get("log", "position") == b"100"
        state.vouched.put("log", "other", b"1")
    with opened(path) as state:
        assert state.vouched.get("log", "position") == b"100"
        assert len(dict(state.vouched.items("head"))) == 100
