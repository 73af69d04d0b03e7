"""Entries that a filter selects, and the last ones, which are read from the end of the log."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from protocol.log import auditlog
from protocol.log.auditlog import LogEntry
from sfsd.errors import ConfigError, JournalDamagedError
from sfsd.log import query
from sfsd.log.query import EntryFilter, last_entries, read_entries
from tests.sfsd.journals import drafts, open_journal, set_after
from tests.sfsd.rewritten_log import rewritten

ENTRIES = 30


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("query")
    journal = open_journal(root / "logs")
    journal.append(drafts(ENTRIES))
    journal.mark_published()
    journal.close()
    return (root / "logs" / "audit.jsonl").read_bytes()


@pytest.fixture
def log(tmp_path: Path, written: bytes) -> Path:
    path = tmp_path / "logs" / "audit.jsonl"
    path.parent.mkdir()
    path.write_bytes(written)
    return path


def is_third(entry: LogEntry) -> bool:
    return entry.seq % 3 == 0


@pytest.mark.parametrize("block", [1, 7, 300, 1 << 20])
@pytest.mark.parametrize("torn", [b"", b"{", b"x" * 1000])
def test_last_entries_are_those_of_the_whole_log(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, torn: bytes
) -> None:
    monkeypatch.setattr(query, "_BLOCK", block)
    log.write_bytes(log.read_bytes() + torn)
    everything = list(read_entries(tmp_path))
    assert len(everything) == ENTRIES
    for count in (1, 2, 9, 10, 100):
        found, place = last_entries(tmp_path, is_third, count)
        assert found == [one for one in everything if is_third(one[0])][-count:]
        assert (place.seq, place.prev) == (ENTRIES, everything[-1][0].hash)
        assert list(read_entries(tmp_path, place)) == []


def test_no_more_than_needed_is_read(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "_BLOCK", 4096)
    data = log.read_bytes()
    log.write_bytes(b"\xff" * (len(data) - 8000) + data[-8000:])
    assert [entry.seq for entry, _ in last_entries(tmp_path, lambda _entry: True, 3)[0]] == [
        ENTRIES - 3,
        ENTRIES - 2,
        ENTRIES - 1,
    ]
    with pytest.raises(JournalDamagedError):
        last_entries(tmp_path, lambda _entry: True, ENTRIES)


def test_the_place_behind_the_last_entry_continues_it(log: Path, tmp_path: Path) -> None:
    """An atomic set of which only a part is there is left out, and read once it is whole."""
    data = log.read_bytes()
    lines = set_after(data.splitlines()[-1], ENTRIES, "upload", "alice")
    log.write_bytes(data + b"".join(line + b"\n" for line in lines[:2]))
    found, place = last_entries(tmp_path, lambda _entry: True, 1)
    assert found[0][0].seq == ENTRIES - 1

    def wait() -> None:
        log.write_bytes(data + b"".join(line + b"\n" for line in lines))

    following = islice(read_entries(tmp_path, place, wait=wait), 3)
    assert [line for _, line in following] == lines
    whole, _ = last_entries(tmp_path, lambda _entry: True, 4)
    assert [entry.seq for entry, _ in whole] == [ENTRIES - 1, ENTRIES, ENTRIES + 1, ENTRIES + 2]


def test_an_entry_that_does_not_follow_the_one_before_is_damage(log: Path, tmp_path: Path) -> None:
    lines = rewritten(log.read_bytes().splitlines(), 20, chain=False)
    log.write_bytes(b"".join(line + b"\n" for line in lines))
    for read in (
        lambda: list(read_entries(tmp_path)),
        lambda: last_entries(tmp_path, lambda _entry: True, 15),
    ):
        with pytest.raises(JournalDamagedError) as raised:
            read()
        assert raised.value.seq == 21


def test_a_line_without_end_is_damage(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "_BLOCK", 1 << 16)
    log.write_bytes(b"x" * 200_000 + b"\n")
    with pytest.raises(JournalDamagedError):
        last_entries(tmp_path, lambda _entry: True, 1)


def test_a_root_without_a_log(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        last_entries(tmp_path, lambda _entry: True, 1)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "audit.jsonl").touch()
    found, place = last_entries(tmp_path, lambda _entry: True, 1)
    assert (found, place) == ([], query.BEGINNING)


def test_a_filter_selects_by_everything_it_states(log: Path) -> None:
    entry = auditlog.parse(log.read_bytes().splitlines()[5])
    assert EntryFilter().matches(entry)
    assert EntryFilter("alice", None, ("delete", "upload"), entry.time).matches(entry)
    for other in (
        EntryFilter(user="bob"),
        EntryFilter(file="0" * 32),
        EntryFilter(ops=("delete",)),
        EntryFilter(since="2025-01-01T00:00:00.000Z"),
        EntryFilter(until=entry.time),
    ):
        assert not other.matches(entry)
