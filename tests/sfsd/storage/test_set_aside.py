"""Setting aside what the log names and no disk has any more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.codec.values import changed
from protocol.records.records import PURGE
from protocol.wire.messages.accounts import AccountsPage, UserList, UserQuota, UserShow
from protocol.wire.messages.downloads import OpenedVersion
from protocol.wire.messages.files import Stat, Stated
from protocol.wire.messages.sharing import BlockedOwners, BlockOwner, ListBlocked
from sfsd.errors import Refused
from sfsd.log.journal import Journal
from sfsd.storage.change import Write, digest_of
from sfsd.storage.crash_recovery import recover
from sfsd.storage.derive import LoggedState
from sfsd.storage.json_files import parse_sidecar
from sfsd.storage.paths import VersionPaths
from sfsd.storage.set_aside import lost_changes
from sfsd.storage.store import DirectoryStore
from tests.opens import open_one
from tests.sfsd.builders import (
    LOG_KEY,
    VERIFIER,
    Daemon,
    Person,
    check_tags,
    daemon,
    done,
    file_id,
    login,
    refused,
)
from tests.sfsd.store_model import stored

BAD, GOOD = file_id(1), file_id(2)
PATHS = VersionPaths.for_version("ada", BAD, 1)
CIPHERTEXT = b"c" * 56
BOB = b"t" * 32
"""The tag key of bob."""


def served_again(person: Person, running: Daemon) -> Person:
    """Let `person` use the daemon that was started again."""
    person.served = running
    person.who = person.log_in()
    return person


def unsettle(root: Path) -> None:
    """Let the next start compare every entry with the store, as after a crash before a settling."""
    (root / "staging" / "applied").write_bytes(b"0\n")


def users(root: Path) -> Path:
    return root / "store" / "users"


def content(person: Person, wanted: str, version: int = 0) -> bytes:
    opened = person.ask(open_one(person.name, wanted, version))
    assert isinstance(opened, OpenedVersion), opened
    return bytes(opened.data)


def damage(root: Path) -> set[str]:
    """Return the paths at which store and log differ."""
    journal = Journal(root / "logs", LOG_KEY, VERIFIER.name, reserve=4096)
    logged = LoggedState(-1)
    for seq in range(journal.size):
        logged.apply(journal.entry(seq))
    journal.close()
    expected = {path: digest for path, (digest, _) in logged.paths.items()}
    found = {path: digest_of(path, data) for path, data in stored(root).items()}
    return {path for path, _ in expected.items() ^ found.items()}


@pytest.fixture
def ada(tmp_path: Path) -> Person:
    """Return a user of a stopped root with the files `BAD` and `GOOD`."""
    with daemon(tmp_path) as running:
        ada = running.person("ada")
        running.person("bob", tag_key=BOB)
        ada.put(BAD, CIPHERTEXT)
        ada.put(GOOD, b"g" * 56)
    unsettle(tmp_path)
    return ada


@pytest.mark.parametrize(
    "gone", [(PATHS.ciphertext,), (PATHS.sidecar,), (PATHS.ciphertext, PATHS.sidecar)]
)
@pytest.mark.parametrize("changes", [False, True])
def test_one_version_is_lost_and_everything_else_is_served(
    ada: Person, tmp_path: Path, gone: tuple[str, ...], changes: bool
) -> None:
    for path in gone:
        if changes:
            (users(tmp_path) / path).write_bytes(b"damaged")
        else:
            (users(tmp_path) / path).unlink()
    with daemon(tmp_path) as running:
        served_again(ada, running)
        error = refused(ada.ask(open_one("ada", BAD, 0)), "damaged")
        assert "lost" in error.text
        shown = ada.ask(Stat("ada", BAD, 1))
        assert isinstance(shown, Stated)
        assert (shown.view.metadata, shown.view.wraps) == (b"", ())
        assert content(ada, GOOD) == b"g" * 56
        [entry] = running.entries("lost")
        assert (entry.actor, entry.owner, entry.file, entry.version) == ("server", "ada", BAD, 1)
        assert set(entry.accounts) == {"ada"}
        ada.put(BAD, b"again" * 20)
        assert content(ada, BAD) == b"again" * 20
    assert damage(tmp_path) == set()
    for path in gone if changes else ():
        if path == PATHS.ciphertext:
            assert (tmp_path / "stray" / path).read_bytes() == b"damaged"
    unsettle(tmp_path)
    with daemon(tmp_path) as running:
        served_again(ada, running)
        assert len(running.entries("lost")) == 1
        refused(ada.ask(open_one("ada", BAD, 1)), "damaged")


def test_a_lost_version_can_be_deleted_and_purged(ada: Person, tmp_path: Path) -> None:
    (users(tmp_path) / PATHS.ciphertext).unlink()
    with daemon(tmp_path) as running:
        served_again(ada, running)
        ada.delete(BAD)
        purge = ada.signed(ada.record(BAD, PURGE, purged=(1,), current=0))
        done(ada.ask(purge.change()))
        refused(ada.ask(open_one("ada", BAD, 1)), "not-found")
    assert damage(tmp_path) == set()


def _keep(raw: bytes) -> bytes:
    return raw


def _flip(raw: bytes) -> bytes:
    at = raw.index(b"metadata") + 12
    return raw[:at] + (b"A" if raw[at : at + 1] != b"A" else b"B") + raw[at + 1 :]


@pytest.mark.parametrize(("harm", "kept"), [(_keep, True), (_flip, False)])
def test_without_the_newest_sidecar_the_one_before_it_is_used_if_it_was_logged(
    ada: Person, tmp_path: Path, harm: Callable[[bytes], bytes], kept: bool
) -> None:
    before = (users(tmp_path) / PATHS.sidecar).read_bytes()
    with daemon(tmp_path) as running:
        served_again(ada, running).delete(BAD)
    unsettle(tmp_path)
    (users(tmp_path) / PATHS.sidecar).write_bytes(harm(before))
    with daemon(tmp_path) as running:
        served_again(ada, running)
        refused(ada.ask(open_one("ada", BAD, 0)), "not-found")  # it is deleted, as the record says
        if kept:
            assert content(ada, BAD, 1) == CIPHERTEXT
        else:
            refused(ada.ask(open_one("ada", BAD, 1)), "damaged")
        assert len(running.entries("lost")) == 1
        assert content(ada, GOOD) == b"g" * 56
    assert damage(tmp_path) == set()


def test_a_purged_version_whose_sidecar_is_gone_stays_purged(ada: Person, tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        served_again(ada, running).delete(BAD)
        done(ada.ask(ada.signed(ada.record(BAD, PURGE, purged=(1,), current=0)).change()))
    unsettle(tmp_path)
    (users(tmp_path) / PATHS.sidecar).unlink()
    with daemon(tmp_path) as running:
        served_again(ada, running)
        refused(ada.ask(open_one("ada", BAD, 1)), "not-found")
    assert damage(tmp_path) == set()


@pytest.mark.parametrize("name", ["account.json", "statements.json", "bundle", "tag.key"])
def test_a_file_of_an_account_does_not_stop_a_start(ada: Person, tmp_path: Path, name: str) -> None:
    with daemon(tmp_path) as running:
        done(running.ask(running.operator(), UserQuota("ada", 1 << 20)))
        served_again(ada, running)
        done(ada.ask(BlockOwner("bob", blocked=True)))
        done(ada.ask(BlockOwner("eve", blocked=False)))
    unsettle(tmp_path)
    (users(tmp_path) / "ada" / name).unlink()
    with daemon(tmp_path) as running:
        served_again(ada, running)
        assert content(ada, GOOD) == b"g" * 56
        assert ada.ask(ListBlocked()) == BlockedOwners(("bob",))
        shown = running.ask(running.operator(), UserShow("ada"))
        assert isinstance(shown, AccountsPage)
        assert shown.accounts[0].quota == 1 << 20
        listed = running.ask(running.operator(), UserList(""))
        assert isinstance(listed, AccountsPage)
        assert [one.user for one in listed.accounts] == ["ada", "bob"]
        assert len(running.entries("lost")) == (name not in ("statements.json", "tag.key"))
        check_tags(running, {"ada": ada.tag_key, "bob": BOB})
    assert damage(tmp_path) == set()


def test_an_account_whose_tag_key_is_lost_stops_its_user_only(ada: Person, tmp_path: Path) -> None:
    """Without the key its entries could not be tagged, which its user would take for a lie."""
    with daemon(tmp_path) as running:
        served_again(ada, running)
    unsettle(tmp_path)
    for name in ("account.json", "tag.key"):
        (users(tmp_path) / "ada" / name).unlink()
    with daemon(tmp_path) as running:
        with pytest.raises(Refused):
            running.open(login("ada", ada.key))
        assert all(not entry.accounts for entry in running.entries("lost"))
        running.person("dave")
        refused(running.ask(running.operator(), ada.invitation()), "conflict")


@pytest.mark.parametrize("part", ["nothing", "metadata", "leaves", "record", "wraps"])
def test_after_a_cut_only_the_content_of_the_logged_version_is_kept(
    ada: Person, tmp_path: Path, part: str
) -> None:
    """A lost entry has written the sidecar; beside that, `part` of it is not of this version."""
    store = DirectoryStore(tmp_path)
    known = parse_sidecar(PATHS.sidecar, store.read(PATHS.sidecar))
    of_good = VersionPaths.for_version("ada", GOOD, 1).sidecar
    other = parse_sidecar(of_good, store.read(of_good))
    stranger = changed(known.wraps[0], user="zoe", key_id=bytes(32))
    newer = {
        "nothing": known,
        "metadata": changed(known, metadata=b"x"),
        "leaves": changed(known, leaves=bytes(32)),
        "record": changed(known, content=other.content),
        "wraps": changed(known, wraps=(*known.wraps, stranger)),
    }[part]
    (users(tmp_path) / PATHS.sidecar).write_bytes(newer.encode(1000))
    journal = Journal(tmp_path / "logs", LOG_KEY, VERIFIER.name, reserve=4096)
    lost = recover(store, journal).lost
    for after_cut in (False, True):
        [change] = lost_changes(store, journal, lost, after_cut=after_cut)
        written = change.effects[-1]
        assert isinstance(written, Write)
        assert callable(written.data)
        made = parse_sidecar(PATHS.sidecar, written.data(7))
        kept = after_cut and part in ("nothing", "wraps")
        assert made.lost is not kept
        assert made.metadata == (known.metadata if kept else None)
        assert made.wraps == (known.wraps if kept else ())
        assert made.content == known.content
        (users(tmp_path) / PATHS.ciphertext).write_bytes(CIPHERTEXT)  # else it went to stray/
    journal.close()
