"""Somebody who can write the home folder, but knows no passphrase, changes what lies there."""

from __future__ import annotations

import contextlib
import io
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import sfsc
from protocol.codec.values import changed
from protocol.records.records import FileRecord
from protocol.wire.messages import Error, Message, Reply
from protocol.wire.messages.files import Stat, Stated
from sfsc.account import rotate
from sfsc.errors import SfscError
from sfsc.store import Store
from tests.changes import SentChange, first_change, is_small
from tests.harness import PASSPHRASE, run
from tests.lying_server import LyingServer


def test_an_unlocked_keyring_in_the_place_of_a_locked_one_is_refused(tmp_path: Path) -> None:
    """The attacker's account, on the attacker's server, would receive what the user stores."""
    with LyingServer(tmp_path / "ours") as ours, LyingServer(tmp_path / "theirs") as theirs:
        home = ours.enrol("ada", tmp_path / "home", passphrase=PASSPHRASE)
        variables = {"SFSC_HOME": str(home), "SFSC_PASSPHRASE": PASSPHRASE}
        run("sfsc", ("put", "-", "--name", "a"), variables, stdin=b"1").expect(0)
        theirs_home = theirs.enrol("ada", tmp_path / "their home")
        os.replace(theirs_home / "keyring", home / "keyring")
        for path in home.glob("state.sqlite3*"):
            path.unlink()
        size = theirs.journal.size
        refused = run("sfsc", ("put", "-", "--name", "secret"), variables, stdin=b"new secret")
        refused.expect(8)
        assert "has no passphrase, but one is given" in refused.stderr
        assert "replaced the file" in refused.stderr
        assert theirs.journal.size == size  # not even a login
        assert not list((theirs.root / "store").rglob("*.ct"))


# --- rows of the state


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


Row = tuple[Any, ...]
Rows = dict[tuple[str, Row], Row]


def rows_of(home: Path) -> Rows:
    """Return {(table, primary key): all columns} of the state's rows that decide."""
    database = sqlite3.connect(home / "state.sqlite3")
    try:
        found: Rows = {}
        for table, key in (("meta", 1), ("vouched", 3)):
            for row in database.execute(f"SELECT * FROM {table}"):
                found[table, tuple(row[:key])] = tuple(row)
    finally:
        database.close()
    return found


def write_rows(home: Path, wanted: Rows) -> None:
    """Make the state hold exactly these rows, as somebody without any key can."""
    database = sqlite3.connect(home / "state.sqlite3")
    try:
        with database:
            for table in ("meta", "vouched"):
                database.execute(f"DELETE FROM {table}")
            for (table, _), row in wanted.items():
                marks = ", ".join("?" * len(row))
                database.execute(f"INSERT INTO {table} VALUES ({marks})", row)
    finally:
        database.close()


def test_rows_of_different_days_hide_no_unshare(lying_server: LyingServer) -> None:
    """The server helps: it shows the file as it was before bob was dropped."""
    ada = lying_server.enrol("ada", key_type="x25519")
    lying_server.enrol("bob", key_type="x25519")
    with connect(ada) as store:
        store.put(io.BytesIO(b"1"), name="plan")
        store.share("plan", "bob", trust_first_use=True)
    second = lying_server.copied(ada, "second")
    kept: list[Stated] = []

    def keep(_who: object, _request: Message, reply: Message) -> Message:
        kept.extend([reply] if isinstance(reply, Stated) else [])
        return reply

    with connect(second) as store:
        lying_server.tamper = keep
        store.stat("plan")
    lying_server.honest()
    before = rows_of(second)
    with connect(ada) as store:
        store.unshare("plan", "bob")
    with connect(second) as store:
        store.stat("plan")
    after = rows_of(second)
    differing = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    assert len(differing) > 2
    sent: list[SentChange] = []

    def lie(_who: object, request: Message) -> Reply | None:
        view = changed(kept[0].view, at=lying_server.journal.size)
        if isinstance(request, Stat):
            return Stated(view)
        if is_small(request) and FileRecord.parse(first_change(request).record).rev == 1:
            # A machine that knows nothing of the file: nobody else reads this version.
            return Error("conflict", "the file has changed", view)
        if is_small(request):
            sent.append(first_change(request))
            return Error("unavailable", "nothing was done")
        return None

    for base, other in ((before, after), (after, before)):
        for key in differing:
            mixed = {name: row for name, row in base.items() if name != key}
            if key in other:
                mixed[key] = other[key]
            write_rows(second, mixed)
            lying_server.intercept = lie
            with pytest.raises(SfscError), connect(second) as store:
                store.put(io.BytesIO(b"not for bob"), name="plan")
            # A change that builds on the unshare is right; it is not done, and so it is no success.
            assert {wrap.user for one in sent for wrap in one.wraps} <= {"ada"}, key
    lying_server.honest()
    with connect(second) as store:  # an honest server is believed, whatever was lost of the state
        assert store.put(io.BytesIO(b"2"), name="plan").version == 2
        assert store.readers("plan") == []


def test_an_edited_state_leaves_no_content_under_a_stolen_key(lying_server: LyingServer) -> None:
    """`rotate --compromised` is interrupted, and its list of files is emptied or changed."""
    ada = lying_server.enrol("ada", key_type="x25519")
    with connect(ada) as store:
        store.put(io.BytesIO(b"1"), name="a")
        old = store.export_dek("a").dek
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rotate.Rotation, "_finish_all", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.rotate(compromised=True)
    begun = rows_of(ada)
    for edit in (_without_vouched, _with_other_values):
        write_rows(ada, edit(begun))
    with connect(ada) as store:
        assert store.rotate().generation == 2
        assert store.export_dek("a").dek != old


def _interrupted(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt


def _without_vouched(rows: Rows) -> Rows:
    return {key: row for key, row in rows.items() if key[0] != "vouched"}


def _with_other_values(rows: Rows) -> Rows:
    return {
        key: (*row[:-1], bytes(len(row[-1]))) if key[0] == "vouched" else row
        for key, row in rows.items()
    }


def test_an_edited_cache_neither_hides_a_file_nor_shows_an_old_one(
    lying_server: LyingServer,
) -> None:
    """The server is honest. The rows of the cache are not what decides which files there are."""
    ada = lying_server.enrol("ada")
    with connect(ada) as store:
        for name in ("changed", "deleted"):
            store.put(io.BytesIO(b"1"), name=name)
        old = {one.name: one.file_id for one in store.ls()}
    before = entries_of(ada)
    with connect(ada) as store:
        store.put(io.BytesIO(b"22"), name="changed")
        store.put(io.BytesIO(b"3"), name="hidden")
        store.rm("deleted")
        shown = list(store.ls())
    assert [(one.name, one.version) for one in shown] == [("changed", 2), ("hidden", 1)]
    with contextlib.closing(sqlite3.connect(ada / "state.sqlite3")) as database, database:
        database.execute("UPDATE file SET entry = NULL, deleted = 1")
        for file_id in old.values():
            edit = "UPDATE file SET entry = ?, deleted = 0 WHERE file_id = ?"
            database.execute(edit, (before[file_id], file_id))
    assert set(entries_of(ada).values()) == {*before.values(), None}
    with connect(ada) as store:
        assert list(store.ls()) == shown


def entries_of(home: Path) -> dict[str, bytes | None]:
    """Return the sealed listing entries in the state, by file_id."""
    with contextlib.closing(sqlite3.connect(home / "state.sqlite3")) as database:
        return dict(database.execute("SELECT file_id, entry FROM file"))
