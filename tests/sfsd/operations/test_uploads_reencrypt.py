"""Reencryption: a new ciphertext under a new key replaces a version's content."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest

from protocol.records.records import PURGE, RESTORE
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.downloads import OpenedVersion, Read
from protocol.wire.messages.files import History, HistoryPage
from tests.opens import open_one
from tests.sfsd.builders import Daemon, Person, Version, check_receipt, done, file_id, refused

F = file_id(1)
LARGE = os.urandom(2 * PIECE + 12345)


def content(person: Person, version: int) -> bytes:
    opened = person.ask(open_one("ada", F, version))
    assert isinstance(opened, OpenedVersion), opened
    return bytes(opened.data)


def test_a_reencryption_replaces_only_the_bytes_of_a_version(served: Daemon, ada: Person) -> None:
    old = [ada.put(F, b"1" * 60), ada.put(F, b"2" * 70)]
    for number, size in ((2, 70), (1, 60), (2, 70)):
        made = ada.reencrypted(F, number, b"n" * size)
        entry = check_receipt(done(ada.ask(made.small())), made.body)
        ada.heads[F] = made.body
        assert (entry.op, entry.version) == ("reencrypt", number)
        assert content(ada, number) == b"n" * size
        # The same request again gets the same receipt.
        assert check_receipt(done(ada.ask(made.small()))).seq == entry.seq
    history = ada.ask(History("ada", F, 1))
    assert isinstance(history, HistoryPage)
    assert [one.record for one in history.records][:2] == [one.body for one in old]
    assert len(history.records) == 5
    assert ada.used() == ada.stored()
    ada.put(F, b"3")
    assert content(ada, 0) == b"3"


def test_a_large_deleted_version_can_be_reencrypted(served: Daemon, ada: Person) -> None:
    first = ada.version(F, LARGE)
    done(ada.ask(ada.took(first).commit(ada.upload(F, LARGE))))
    ada.delete(F)
    large = os.urandom(len(LARGE))
    made = ada.reencrypted(F, 1, large)
    upload = ada.upload(F, large)
    check_receipt(done(ada.ask(made.commit(upload))), made.body)
    ada.heads[F] = made.body
    refused(ada.ask(open_one("ada", F, 0)), "not-found")
    assert content(ada, 1) == large[: 256 * 1024]


def test_handles_on_the_old_bytes_give_changed(ada: Person) -> None:
    ada.put(F, b"1" * 60)
    opened = ada.ask(open_one("ada", F, 1))
    assert isinstance(opened, OpenedVersion)
    done(ada.ask(ada.reencrypted(F, 1, b"n" * 60).small()))
    refused(ada.ask(Read(opened.handle, 0, 10)), "changed")


@pytest.mark.parametrize(
    ("code", "version", "changed"),
    [
        ("not-found", 7, {}),
        ("bad-request", 1, {"current": 1}),
        ("bad-request", 1, {"ciphertext_size": 9}),
        ("bad-request", 2, {}),
        ("bad-request", 1, {"segments_root": bytes(32)}),
        ("stale-recipient", 1, {"wraps": ()}),
        ("conflict", 1, {"prev": bytes(32)}),
    ],
)
def test_an_invalid_reencryption_is_refused(
    ada: Person, code: str, version: int, changed: dict[str, Any]
) -> None:
    ada.put(F, b"1" * 60)
    ada.put(F, b"2" * 59)
    refused(ada.ask(ada.reencrypted(F, version, b"n" * 60, **changed).small()), code)
    assert content(ada, 1) == b"1" * 60


@pytest.mark.parametrize("large", [False, True])
def test_a_reencryption_must_keep_the_size(served: Daemon, *, large: bool) -> None:
    """A reencryption may exceed the quota, so the ciphertext must keep its size."""
    bob = served.person("bob", quota=10_000)
    bob.put(F, b"1" * 60)
    longer = bob.reencrypted(F, 1, b"n" * 900)
    asked = longer.commit(bob.upload(F, b"n" * 900)) if large else longer.small()
    refused(bob.ask(asked), "bad-request")
    # The upload can still be aborted, or committed correctly.
    assert bob.used() == bob.stored() + 900 * large


def restored(person: Person, version: int) -> Version:
    number = max(number for _, number in person.made) + 1
    source = person.made[F, version].record
    record = person.record(
        F,
        RESTORE,
        current=number,
        version=number,
        from_=(F, version),
        content_id=source.content_id,
        ciphertext_size=source.ciphertext_size,
        segments_root=source.segments_root,
        dek_commit=source.dek_commit,
        metadata_sha256=hashlib.sha256(b"m").digest(),
    )
    made = person.signed(record, b"m", (person.wrap(),))
    done(person.ask(made.change()))
    return person.took(made)


def test_a_shared_content_is_duplicated_up_to_twice_the_quota(served: Daemon) -> None:
    bob = served.person("bob", quota=100_000)
    bob.put(F, b"1" * 90_000)
    restored(bob, 1)
    restored(bob, 1)
    assert bob.used() == bob.stored() < 100_000
    # A rotation must not fail on the quota, so one more copy is allowed, but not further ones.
    for fill in (b"2", b"3"):
        made = bob.reencrypted(F, 1, fill * 90_000)
        done(bob.ask(made.small()))
        bob.heads[F] = made.body
        assert bob.used() == bob.stored() > 180_000
    stored = bob.stored()
    error = refused(bob.ask(bob.reencrypted(F, 2, b"4" * 90_000).small()), "quota")
    assert "twice the quota" in error.text
    assert bob.used() == bob.stored() == stored


@pytest.mark.parametrize("reencrypts", [False, True])
def test_concurrent_puts_cannot_share_a_content_id(served: Daemon, *, reencrypts: bool) -> None:
    """Contents with one id count once, so two puts of one group must not share an id."""
    bob = served.person("bob", quota=10_000)
    one = bob.put(F, b"1" * 60)
    other = file_id(2)
    if reencrypts:
        bob.put(other, b"2" * 60)
        second = bob.reencrypted(other, 1, b"3" * 60, content_id=one.record.content_id)
    else:
        second = bob.version(other, b"2" * 900, content_id=one.record.content_id)
    refused(bob.ask(second.small()), "bad-request")
    pair = [bob.version(file_id(n), b"4" * 400, content_id=b"i" * 16) for n in (3, 4)]
    replies = served.ask_all(bob.who, [version.small() for version in pair])
    assert sorted(type(reply).__name__ for reply in replies) == ["Done", "Error"]
    assert bob.used() == bob.stored()
    # The id is free once the content is purged, and after a put that failed.
    bob.delete(F)
    done(bob.ask(bob.signed(bob.record(F, PURGE, current=0, purged=(1,))).change()))
    done(bob.ask(bob.version(file_id(5), b"5" * 60, content_id=one.record.content_id).small()))


def test_a_reader_may_lack_a_wrap_of_an_older_version_only(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    readers = (("bob", bob.first_hash, 0),)
    for text in (b"1" * 60, b"2" * 60):
        ada.put(F, text, readers=readers, wraps=(ada.wrap(), bob.wrap()))
    refused(ada.ask(ada.reencrypted(F, 2, b"n" * 60).small()), "stale-recipient")
    done(ada.ask(ada.reencrypted(F, 1, b"n" * 60).small()))


def test_a_content_id_of_another_version_is_refused(ada: Person) -> None:
    first = ada.put(F, b"1" * 60)
    ada.put(F, b"2" * 60)
    made = ada.reencrypted(F, 2, b"n" * 60, content_id=first.record.content_id)
    refused(ada.ask(made.small()), "bad-request")


def test_a_purged_version_cannot_be_reencrypted(ada: Person) -> None:
    ada.put(F, b"1" * 60)
    ada.put(F, b"2" * 60)
    purge = ada.signed(ada.record(F, PURGE, purged=(1,)))
    done(ada.ask(ada.took(purge).change()))
    refused(ada.ask(ada.reencrypted(F, 1, b"n" * 60).small()), "not-found")
