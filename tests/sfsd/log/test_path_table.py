"""The table of newest entries follows the log, and is made again if anybody else changed it."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from protocol.log.auditlog import EntryDraft
from protocol.records.signatures import SigningKey
from sfsd.errors import JournalDamagedError
from sfsd.log import path_table
from sfsd.log.journal import Journal
from sfsd.log.path_table import LatestEntry, TableComparison, TableUnreadableError
from tests.sfsd.faults import FaultyFiles
from tests.sfsd.journals import ORIGIN, SmallJournal, open_journal

OLD, NEW = b"o" * 32, b"n" * 32
PATH = "ada/files/00/0.1.json"


def write(journal: Journal, path: str, digest: bytes | None) -> None:
    told = {path: None if digest is None else digest.hex()}
    journal.append([EntryDraft(op="upload", actor="ada", detail={"paths": told})])


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


@pytest.fixture
def remade() -> Iterator[list[str]]:
    """Return why the table was made again."""
    told: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.ERROR:
                told.append(record.getMessage().removeprefix("logs/tree/paths is made again"))

    handler = Handler()
    path_table._log.addHandler(handler)
    yield told
    path_table._log.removeHandler(handler)


def closed(logs: Path) -> Path:
    """Return the table of a closed journal, in which PATH was written twice."""
    journal = open_journal(logs)
    write(journal, PATH, OLD)
    write(journal, "ada/account.json", OLD)
    write(journal, "ada/files/00/1.1.json", OLD)
    journal.close()
    shutil.copy(logs / "tree/paths", logs / "yesterday")
    journal = open_journal(logs)
    write(journal, PATH, NEW)
    write(journal, "ada/files/00/1.1.json", None)
    journal.close()
    return logs / "tree/paths"


def check_newest(journal: Journal) -> None:
    assert journal.latest.size == journal.size == 5
    assert journal.latest.get(PATH) == LatestEntry(3, NEW)
    assert journal.latest.get("ada/account.json") == LatestEntry(1, OLD)
    assert journal.latest.get("ada/files/00/1.1.json") is None
    assert journal.latest.below("ada/files/") == [(PATH, 3)]
    assert journal.latest.users() == ["ada"]


@pytest.mark.parametrize("saved_every", [1, 7, 10**6])
def test_the_table_is_what_the_log_says(
    logs: Path, monkeypatch: pytest.MonkeyPatch, saved_every: int
) -> None:
    monkeypatch.setattr(path_table, "_SAVE_EVERY", saved_every)
    random, expected = Random(5), dict[str, LatestEntry]()
    journal = open_journal(logs)
    for turn in range(300):
        user = random.choice(["ada", "bob", "ad"])
        path = random.choice(
            [f"{user}/account.json", *(f"{user}/files/00/{n}.1.json" for n in range(9))]
        )
        digest = random.choice([None, bytes([turn % 256]) * 32])
        write(journal, path, digest)
        journal.save_mark()
        expected.pop(path, None)
        if digest is not None:
            expected[path] = LatestEntry(turn, digest)
        if turn % 50 == 49:
            if turn % 100 == 99:
                journal.close()
            else:  # killed
                journal.latest._database.close()
                journal._close_files()
            journal = open_journal(logs)
        for user in ("ada", "bob", "ad"):
            files = {p: e.seq for p, e in expected.items() if p.startswith(f"{user}/files/")}
            assert dict(journal.latest.below(f"{user}/files/")) == files
        accounts = {path for path in expected if path.endswith("/account.json")}
        assert {f"{user}/account.json" for user in journal.latest.users()} == accounts
        assert {path: journal.latest.get(path) for path in expected} == expected
    journal.close()
    found = TableComparison(logs / "tree")
    assert found.size == 300
    assert found._rows == {path: (one.seq, one.digest) for path, one in expected.items()}
    assert found.compare((logs / "audit.jsonl").read_bytes().splitlines(), 300) is None


def test_ciphertext_and_leaf_hashes_are_left_out(logs: Path) -> None:
    journal = open_journal(logs)
    for path in ("ada/files/00/0.1.ct", "ada/files/00/0.1.leaves"):
        write(journal, path, NEW)
        assert journal.latest.get(path) is None
    journal.close()


def test_a_table_of_yesterday_is_brought_up_to_date(logs: Path, remade: list[str]) -> None:
    table = closed(logs)
    shutil.copy(logs / "yesterday", table)
    journal = open_journal(logs)
    check_newest(journal)
    assert not remade
    journal.close()


STATEMENTS = [
    f"UPDATE paths SET seq = 0, digest = x'{OLD.hex()}' WHERE path = '{PATH}'",
    f"DELETE FROM paths WHERE path = '{PATH}'",
    "DELETE FROM paths",
    "UPDATE paths SET digest = 'text'",
    (
        f"INSERT INTO paths SELECT bucket, 'ada/files/00/1.1.json', 2, x'{OLD.hex()}' FROM paths"
        f" WHERE path = '{PATH}'"
    ),
    "INSERT INTO paths SELECT bucket, CAST(x'ff' AS TEXT), 2, digest FROM paths",
    "UPDATE mark SET sealed = zeroblob(length(sealed))",
    "UPDATE mark SET sealed = x''",
    "UPDATE mark SET size = size - 1",
    "UPDATE mark SET size = -1",
    "UPDATE mark SET root = 'text'",
    "DELETE FROM mark",
    "INSERT INTO mark SELECT * FROM mark",
    "DROP TABLE paths",
    "CREATE VIEW other AS SELECT * FROM paths",
    "CREATE TRIGGER other AFTER INSERT ON mark BEGIN DELETE FROM paths; END",
]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_changed_table_is_made_again(logs: Path, remade: list[str], statement: str) -> None:
    with closing(sqlite3.connect(closed(logs))) as database, database:
        database.execute(statement)
    journal = open_journal(logs)
    check_newest(journal)
    assert len(remade) == 1
    journal.close()
    journal = open_journal(logs)
    check_newest(journal)
    assert len(remade) == 1
    journal.close()


@pytest.mark.parametrize("content", [None, b"", b"no database" * 999])
def test_a_missing_or_unreadable_table_is_made_again(
    logs: Path, remade: list[str], content: bytes | None
) -> None:
    table = closed(logs)
    table.unlink()
    if content is not None:
        table.write_bytes(content)
    journal = open_journal(logs)
    check_newest(journal)
    assert len(remade) == 1
    journal.close()


def test_rows_of_a_bucket_are_verified_again_after_an_hour(logs: Path, remade: list[str]) -> None:
    closed(logs)
    journal = open_journal(logs)
    check_newest(journal)
    journal.latest._recent.clear()
    journal.latest._database.execute("UPDATE paths SET seq = 0")
    journal.latest._checked = dict.fromkeys(journal.latest._checked, 0.0)
    check_newest(journal)
    assert len(remade) == 1
    journal.close()


def test_a_row_that_somebody_else_changed_is_not_replaced_unseen(
    logs: Path, remade: list[str]
) -> None:
    closed(logs)
    journal = open_journal(logs)
    journal.latest._database.execute("UPDATE paths SET seq = 0, digest = ?", (OLD,))
    write(journal, PATH, OLD)
    journal.latest.save(force=True)
    journal.close()
    journal = open_journal(logs)
    assert journal.latest.get(PATH) == LatestEntry(5, OLD)
    assert journal.latest.get("ada/account.json") == LatestEntry(1, OLD)
    journal.close()


def test_a_new_log_key_makes_the_table_again(logs: Path, remade: list[str]) -> None:
    closed(logs)
    (logs / "checkpoint").unlink()
    journal = SmallJournal(logs, SigningKey.generate(), ORIGIN, reserve=4096)
    check_newest(journal)
    assert len(remade) == 1
    journal.close()


def test_a_disk_that_takes_no_table_has_it_in_memory(logs: Path) -> None:
    closed(logs).unlink()

    class Full(FaultyFiles):
        def open_append(self, path: Path) -> int:
            if path.name == "paths":
                raise OSError(28, "No space left on device")
            return super().open_append(path)

    journal = open_journal(logs, Full())
    check_newest(journal)
    write(journal, PATH, OLD)
    journal.close()
    assert not (logs / "tree/paths").exists()
    journal = open_journal(logs)
    assert journal.latest.get(PATH) == LatestEntry(5, OLD)
    journal.close()


def test_an_entry_that_is_not_in_place_stays_out_until_the_next_start(logs: Path) -> None:
    closed(logs)
    journal = open_journal(logs)
    Journal.append(journal, [EntryDraft(op="upload", actor="ada", detail={"paths": {PATH: None}})])
    assert journal.latest.size == 5
    assert journal.latest.get(PATH) == LatestEntry(3, NEW)
    journal.close()
    assert TableComparison(logs / "tree").size == 5
    journal = open_journal(logs)
    assert journal.latest.get(PATH) is None
    journal.close()


def test_a_line_that_is_not_of_the_log_makes_no_table(logs: Path) -> None:
    table = closed(logs)
    whole = (logs / "audit.jsonl").read_bytes()
    # A byte of the first digest: the line of the mark is the last one.
    (logs / "audit.jsonl").write_bytes(whole.replace(OLD.hex().encode(), b"0" * 64, 1))
    open_journal(logs).close()  # verified in the background
    table.unlink()
    with pytest.raises(JournalDamagedError) as caught:
        open_journal(logs)
    assert caught.value.seq == 0


def test_the_empty_file_of_an_interrupted_start_is_no_table(tmp_path: Path) -> None:
    assert TableComparison(tmp_path).size == 0
    table = tmp_path / "paths"
    table.touch()
    assert TableComparison(tmp_path).size == 0
    table.write_bytes(b"no table")
    with pytest.raises(TableUnreadableError):
        TableComparison(tmp_path)
