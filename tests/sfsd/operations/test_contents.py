"""A content that takes an older one's place under a new key."""

from __future__ import annotations

import os
from typing import Any

import pytest

from protocol.messages.accounts import Usage, UsageAnswer
from protocol.messages.base import PIECE
from protocol.messages.downloads import GetOpen, Opened, Read
from protocol.messages.files import History, HistoryPage
from protocol.records import PURGE
from tests.sfsd.builders import (
    Daemon,
    Person,
    check_receipt,
    done,
    file_id,
    refused,
)

F = file_id(1)
LARGE = os.urandom(2 * PIECE + 12345)


def content(person: Person, version: int) -> bytes:
    opened = person.ask(GetOpen("ada", F, version))
    assert isinstance(opened, Opened), opened
    return bytes(opened.data)


def test_a_version_gets_new_bytes_and_stays_what_it_is(served: Daemon, ada: Person) -> None:
    old = [ada.put(F, b"1" * 60), ada.put(F, b"2" * 70)]
    for number, size in ((2, 90), (1, 80), (2, 100)):
        made = ada.anew(F, number, b"n" * size)
        entry = check_receipt(done(ada.ask(made.small())), made.body)
        ada.heads[F] = made.body
        assert (entry.op, entry.version) == ("reencrypt", number)
        assert content(ada, number) == b"n" * size
        # The same bytes again get the same receipt.
        assert check_receipt(done(ada.ask(made.small()))).seq == entry.seq
    history = ada.ask(History("ada", F, 1))
    assert isinstance(history, HistoryPage)
    assert [one.record for one in history.records][:2] == [one.body for one in old]
    assert len(history.records) == 5
    usage = ada.ask(Usage())
    assert isinstance(usage, UsageAnswer)
    assert usage.used == 180
    ada.put(F, b"3")
    assert content(ada, 0) == b"3"


def test_a_version_in_the_trash_and_a_large_one(served: Daemon, ada: Person) -> None:
    ada.put(F, b"1" * 60)
    ada.delete(F)
    large = os.urandom(3 * PIECE + 5)
    made = ada.anew(F, 1, large)
    upload = ada.upload(F, large)
    check_receipt(done(ada.ask(made.commit(upload))), made.body)
    ada.heads[F] = made.body
    refused(ada.ask(GetOpen("ada", F, 0)), "not-found")
    assert content(ada, 1) == large[: 256 * 1024]


def test_handles_on_the_old_bytes_are_closed(ada: Person) -> None:
    ada.put(F, b"1" * 60)
    opened = ada.ask(GetOpen("ada", F, 1))
    assert isinstance(opened, Opened)
    done(ada.ask(ada.anew(F, 1, b"n" * 60).small()))
    refused(ada.ask(Read(opened.handle, 0, 10)), "changed")


@pytest.mark.parametrize(
    ("code", "version", "changed"),
    [
        ("not-found", 7, {}),
        ("bad-request", 1, {"current": 1}),
        ("bad-request", 1, {"ciphertext_size": 9}),
        ("bad-request", 1, {"segments_root": bytes(32)}),
        ("stale-recipient", 1, {"wraps": ()}),
        ("conflict", 1, {"prev": bytes(32)}),
    ],
)
def test_what_is_not_the_version_anew(
    ada: Person, code: str, version: int, changed: dict[str, Any]
) -> None:
    ada.put(F, b"1" * 60)
    ada.put(F, b"2" * 60)
    refused(ada.ask(ada.anew(F, version, b"n" * 60, **changed).small()), code)
    assert content(ada, 1) == b"1" * 60


def test_a_content_id_of_another_version_is_refused(ada: Person) -> None:
    first = ada.put(F, b"1" * 60)
    ada.put(F, b"2" * 60)
    made = ada.anew(F, 2, b"n" * 60, content_id=first.record.content_id)
    refused(ada.ask(made.small()), "bad-request")


def test_a_purged_version_has_nothing_to_encrypt(ada: Person) -> None:
    ada.put(F, b"1" * 60)
    ada.put(F, b"2" * 60)
    purge = ada.signed(ada.record(F, PURGE, purged=(1,)))
    done(ada.ask(ada.took(purge).change()))
    refused(ada.ask(ada.anew(F, 1, b"n" * 60).small()), "not-found")
