"""Damaged versions: what still works beside them, and giving them up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from protocol.log.auditlog import LOST
from protocol.records.records import ACCESS, PURGE, FileRecord
from protocol.wire.messages.base import DamagedVersion
from protocol.wire.messages.files import GiveUp, History, HistoryPage, List, Listing, Stat, Stated
from protocol.wire.messages.sharing import Inbox, InboxPage
from sfsd.storage.paths import VersionPaths
from tests.opens import open_one
from tests.sfsd.builders import Daemon, Person, Version, daemon, done, file_id, refused

F, G = file_id(1), file_id(2)


def stored(root: Path, version: int, wanted: str = F) -> Path:
    return root / "store/users" / VersionPaths.for_version("ada", wanted, version).sidecar


HOW = pytest.mark.parametrize(
    "how",
    [
        "flipped",
        "missing",
        pytest.param(
            "unreadable",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="links need rights there"),
        ),
    ],
)


def damage(path: Path, how: str) -> None:
    if how != "flipped":
        path.unlink()
        if how == "unreadable":
            path.symlink_to(path.name)  # opening it fails: too many levels of symbolic links
        return
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def reopened(person: Person, served: Daemon) -> Person:
    """Return the user with a session on a daemon that was started again."""
    person.served = served
    person.who = person.log_in()
    return person


def listed(person: Person, since: int = 0) -> Listing:
    reply = person.ask(List("", 256, since))
    assert isinstance(reply, Listing), reply
    return reply


def shared(owner: Person, version: Version, reader: Person) -> None:
    record = owner.record(
        version.record.file_id, ACCESS, readers=((reader.name, reader.first_hash, 0),)
    )
    made = owner.signed(record)
    number = version.record.version or 0
    done(owner.ask(made.share({number: [reader.wrap()]})))
    owner.took(made)


@HOW
def test_a_damaged_newest_sidecar_is_named_beside_the_others(tmp_path: Path, how: str) -> None:
    with daemon(tmp_path) as served:
        ada, bob = served.person("ada"), served.person("bob")
        for name in (F, G):
            shared(ada, ada.put(name), bob)
    damage(stored(tmp_path, 1), how)
    with daemon(tmp_path) as served:
        ada, bob = reopened(ada, served), reopened(bob, served)
        eve = served.person("eve")
        place = DamagedVersion("ada", F, 1)
        for since in (0, served.context.journal.size):  # whatever the caller has seen
            page = listed(ada, since)
            assert page.damaged == (place,)
            assert len(page.views) == (not since)
        inbox = bob.ask(Inbox("", 256, 0))
        assert isinstance(inbox, InboxPage)
        assert inbox.damaged == (place,)
        assert [one.file_id for one in inbox.files] == [G]
        for who in (ada, bob):
            assert refused(who.ask(Stat("ada", F, 0)), "damaged").damaged == place
            assert refused(who.ask(open_one("ada", F, 0)), "damaged").damaged == place
        assert refused(eve.ask(Stat("ada", F, 0)), "not-found").damaged is None


def test_pages_with_damaged_files_end(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        ada, bob = served.person("ada"), served.person("bob")
        for number in range(1, 7):
            shared(ada, ada.put(file_id(number)), bob)
    for number in (1, 2, 3, 6):
        damage(stored(tmp_path, 1, file_id(number)), "flipped")
    with daemon(tmp_path) as served:
        ada, bob = reopened(ada, served), reopened(bob, served)
        after, found = "", list[str]()
        while True:
            page = ada.ask(List(after, 2, 0))
            assert isinstance(page, Listing)
            found += [one.file_id for one in page.damaged]
            found += [FileRecord.parse(view.content.record).file_id for view in page.views]
            assert len(page.damaged) + len(page.views) <= 2
            after = page.next
            if not after:
                break
        assert sorted(found) == [file_id(number) for number in range(1, 7)]
        after, found = "", []
        while True:
            inbox = bob.ask(Inbox(after, 2, 0))
            assert isinstance(inbox, InboxPage)
            found += [one.file_id for one in inbox.damaged]
            found += [one.file_id for one in inbox.files]
            after = inbox.next
            if not after:
                break
        assert sorted(found) == [file_id(number) for number in range(1, 7)]


@HOW
def test_a_damaged_old_version_blocks_no_other(tmp_path: Path, how: str) -> None:
    with daemon(tmp_path) as served:
        ada, bob = served.person("ada"), served.person("bob")
        first, second = ada.put(F, b"1" * 56), ada.put(F, b"2" * 56)
    damage(stored(tmp_path, 1), how)
    with daemon(tmp_path) as served:
        ada, bob = reopened(ada, served), reopened(bob, served)
        assert listed(ada).damaged == ()
        page = ada.ask(History("ada", F, 1))
        assert isinstance(page, HistoryPage)
        assert [one.record for one in page.records] == [first.body, second.body]
        third = ada.put(F, b"3" * 56)
        shared(ada, third, bob)
        used = ada.version(F, b"4" * 56, content_id=first.record.content_id)
        refused(ada.ask(used.small()), "bad-request")
        assert refused(ada.ask(Stat("ada", F, 1)), "damaged").damaged == DamagedVersion("ada", F, 1)
        purge = ada.signed(ada.record(F, PURGE, purged=(1,)))
        done(ada.ask(purge.change()))
        ada.took(purge)
        reply = ada.ask(Stat("ada", F, 1))
        assert isinstance(reply, Stated)
        assert reply.view.content.record == first.body
        assert not reply.view.metadata


@HOW
def test_a_damaged_version_is_given_up(tmp_path: Path, how: str) -> None:
    with daemon(tmp_path) as served:
        ada, bob = served.person("ada"), served.person("bob")
        ada.put(F, b"1" * 56)
        second = ada.put(F, b"2" * 56)
        shared(ada, second, bob)
    damage(stored(tmp_path, 2), how)
    with daemon(tmp_path) as served:
        ada, bob = reopened(ada, served), reopened(bob, served)
        refused(ada.ask(GiveUp(F, 1)), "conflict")
        refused(ada.ask(GiveUp(F, 3)), "not-found")
        refused(bob.ask(GiveUp(F, 2)), "not-found")
        done(ada.ask(GiveUp(F, 2)))
        (entry,) = served.entries(LOST)
        assert (entry.actor, entry.owner, entry.file, entry.version) == ("ada", "ada", F, 2)
        assert list(entry.accounts) == ["ada"]
        reply = ada.ask(Stat("ada", F, 0))
        assert isinstance(reply, Stated)
        assert reply.view.content.record == second.body
        assert reply.view.head is not None
        assert reply.view.head.record == ada.heads[F]
        assert (reply.view.metadata, reply.view.wraps) == (b"", ())
        assert listed(ada).damaged == ()
        refused(ada.ask(open_one("ada", F, 2)), "damaged")
        refused(ada.ask(GiveUp(F, 2)), "conflict")
        ada.put(F, b"3" * 56, wraps=(ada.wrap(), bob.wrap()))  # the readers are still known
    assert not stored(tmp_path, 2).with_suffix(".ct").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("how", ["missing", "unreadable"])
def test_a_version_without_its_ciphertext_can_be_given_up(tmp_path: Path, how: str) -> None:
    with daemon(tmp_path) as served:
        ada = served.person("ada")
        ada.put(F)
    damage(stored(tmp_path, 1).with_suffix(".ct"), how)
    with daemon(tmp_path) as served:
        ada = reopened(ada, served)
        place = DamagedVersion("ada", F, 1)
        assert refused(ada.ask(open_one("ada", F, 0)), "damaged").damaged == place
        done(ada.ask(GiveUp(F, 1)))
        assert not stored(tmp_path, 1).with_suffix(".ct").exists()


def test_a_lost_newest_version_is_listed_whatever_the_caller_has_seen(served: Daemon) -> None:
    ada = served.person("ada")
    for name in (F, G):
        ada.put(name)
    damage(stored(served.context.root, 1), "missing")
    done(ada.ask(GiveUp(F, 1)))
    for _ in range(2):
        (view,) = listed(ada, served.context.journal.size).views
        assert (FileRecord.parse(view.content.record).file_id, view.metadata) == (F, b"")
    ada.put(F)
    assert listed(ada, served.context.journal.size) == Listing((), "")
