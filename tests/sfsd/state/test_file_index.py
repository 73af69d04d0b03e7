"""The file index: built from the log's table of paths, then updated by changes."""

from __future__ import annotations

import gc

import pytest

from protocol.records.records import FileRecord
from sfsd.errors import Absent, DamagedError
from sfsd.state import file_index
from sfsd.state.file_index import FileIndex
from tests.sfsd.builders import Daemon, Person, file_id

F = file_id(1)


def fresh(served: Daemon) -> FileIndex:
    return FileIndex(served.context.store, served.context.documents)


def test_a_scan_agrees_with_the_changes(served: Daemon, ada: Person) -> None:
    for number in (0, 255 << 120, 1, 255 << 120, 7):
        ada.put(file_id(number))
    kept, scanned = served.context.index.for_user("ada"), fresh(served).for_user("ada")
    expected = [(file_id(n), v) for n, v in ((0, 1), (1, 1), (7, 1), (255 << 120, 2))]
    for files in (kept, scanned):
        assert [(one, version) for one, version, _ in files.after("", 99)] == expected
        assert files.newest(file_id(255 << 120)) == 2
        assert files.newest(file_id(2)) == 0
    assert [seq > 0 for _, _, seq in kept.after("", 99)] == [True] * 4
    assert [seq for _, _, seq in scanned.after("", 99)] == [0] * 4
    assert [one for one, _, _ in kept.after(file_id(1), 1)] == [file_id(7)]


def test_a_version_whose_files_were_taken_away_is_damaged_and_not_absent(
    served: Daemon, ada: Person
) -> None:
    ada.put(F)
    ada.put(F)
    ada.put(file_id(2))
    users = served.context.store.users
    for path in users.glob(f"ada/files/*/{F}.2.*"):
        path.unlink()
    for path in users.glob(f"ada/files/*/{file_id(2)}.*"):
        path.unlink()
    files = fresh(served).for_user("ada")
    assert [(one, version) for one, version, _ in files.after("", 9)] == [(F, 2), (file_id(2), 1)]
    for place in ((F, 2), (file_id(2), 1)):
        with pytest.raises(DamagedError):
            files.sidecar(*place)
    assert files.sidecar(F, 1).value.content_record.version == 1
    with pytest.raises(Absent):
        files.sidecar(F, 3)


def test_a_rewritten_sidecar_counts_as_changed(served: Daemon, ada: Person) -> None:
    ada.put(F)
    ada.put(F)
    ada.put(file_id(2))
    files = served.context.index.for_user("ada")
    before = {one: seq for one, _, seq in files.after("", 99)}
    # An older version, the newest ones, and one that a later entry is known to have changed.
    files.note_rewritten(10**6, [(F, 1, 9)])
    assert {one: seq for one, _, seq in files.after("", 99)} == before
    files.note_rewritten(10**6, [(F, 2, 9), (file_id(2), 1, 9)])
    files.note_rewritten(10**6 - 1, [(F, 2, 9)])
    assert {one: seq for one, _, seq in files.after("", 99)} == dict.fromkeys(before, 10**6)
    assert [version for _, version, _ in files.after("", 99)] == [2, 1]


def test_foreign_names_in_the_folder_are_ignored(served: Daemon, ada: Person) -> None:
    ada.put(F)
    folder = served.context.store.users / "ada" / "files" / "00"
    for name in ("notes.txt", f"{F}.x.json", f".{F}.2.json.tmp"):
        (folder / name).write_bytes(b"")
    assert fresh(served).for_user("ada").newest(F) == 1


def test_content_ids_are_read_once_and_kept(served: Daemon, ada: Person) -> None:
    made = [ada.put(F).record.content_id for _ in range(3)]
    files = fresh(served).for_user("ada")
    assert list(files.content_ids(F).values()) == made
    newest = files.sidecar(F, 3).value
    files.note_written(newest, 3)
    assert list(files.content_ids(F).values()) == made


def test_a_damaged_version_counts_nothing_and_blocks_no_load(served: Daemon, ada: Person) -> None:
    ada.put(F, bytes(100))
    ada.put(file_id(2), bytes(200))
    path = served.context.store.users / "ada" / "files" / "00" / f"{F}.1.json"
    path.write_bytes(b"{}")
    files = fresh(served).for_user("ada")
    with pytest.raises(DamagedError):
        files.sidecar(F, 1)
    whole = sum(one.stat().st_size for one in path.parent.glob(f"{file_id(2)}.*"))
    assert (files.loaded_ledger().used, files.ledger.files) == (whole, 1)
    files.note_rewritten(10**6, [(F, 1, 9)])
    assert files.ledger.used == whole


def test_an_evicted_owner_lives_while_it_is_referenced(
    served: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_index, "USERS", 2)
    found = fresh(served)
    held = found.for_user("ada")
    for other in ("bob", "eve", "kim"):
        found.for_user(other)
    assert found.for_user("ada") is held
    held.ledger.reserve(5, 0)
    del held
    for other in ("bob", "eve", "kim"):
        found.for_user(other)
    gc.collect()
    assert found.for_user("ada").ledger.used == 0


def test_the_holding_of_a_version(served: Daemon, ada: Person) -> None:
    put = ada.put(F, bytes(77))
    sidecar = served.context.index.for_user("ada").sidecar(F, 1).value
    holding = file_index.holding_of(sidecar, 900)
    assert (holding.file_id, holding.version, holding.size) == (F, 1, 77)
    assert holding.beside == 900
    assert holding.content_id == FileRecord.parse(put.body).content_id
