"""What counts as quota beside ciphertexts, what is refused for it, and what never is."""

from __future__ import annotations

from itertools import cycle, islice

import pytest

from protocol.codec.values import changed
from protocol.records.records import ACCESS, PURGE, ReaderEntry
from protocol.wire.messages import Done, Error
from protocol.wire.messages.base import MAX_METADATA, Wrap
from protocol.wire.messages.rotation import Rewrapped
from protocol.wire.messages.uploads import PutOpen, UploadState
from sfsd.state.uploads import ABANDONED
from tests.sfsd.builders import Daemon, Person, Result, Version, done, file_id, refused
from tests.sfsd.operations.test_rotation import begun, rewrapped, wraps

F, G = file_id(1), file_id(2)
QUOTA = 30_000


@pytest.fixture
def ada(served: Daemon) -> Person:
    return served.person("ada", quota=QUOTA)


@pytest.fixture
def readers(served: Daemon) -> list[Person]:
    return [served.person(name) for name in ("bob", "eve", "kim")]


def wrapped(*people: Person) -> tuple[Wrap, ...]:
    return tuple(one.wrap() for one in people)


def granted(ada: Person, wanted: str, *readers: Person, given: bool = True) -> Version:
    """Return a change of a file's readers, with wraps of its current version for them."""
    entries: list[ReaderEntry] = [(one.name, one.first_hash, 0) for one in readers]
    made = ada.signed(ada.record(wanted, ACCESS, readers=tuple(sorted(entries))))
    return changed(made, wraps=wrapped(*readers) if given else ())


def ask(ada: Person, made: Version) -> Result:
    """Ask for a put or a change of readers; return the reply."""
    current = made.record.current
    request = made.share({current: made.wraps}) if made.record.op == ACCESS else made.small()
    reply = ada.ask(request)
    if isinstance(reply, Done):
        ada.took(made)
    return reply


def test_readers_and_metadata_that_change_over_and_over_stay_below_the_quota(
    ada: Person, readers: list[Person]
) -> None:
    """All of them would add 150 KB."""
    ada.put(F)
    codes, shared_with = list[str](), list[Person]()
    for number in range(25):
        some = list(islice(cycle(readers), number, number + 1 + number % 3))
        access = ask(ada, granted(ada, F, *some))
        shared_with = some if isinstance(access, Done) else shared_with
        given = wrapped(ada, *shared_with)
        put = ask(ada, ada.version(F, b"c" * 56, metadata=bytes(MAX_METADATA), wraps=given))
        codes += [one.code if isinstance(one, Error) else "" for one in (access, put)]
        assert ada.used() == ada.stored() <= QUOTA
    assert set(codes[:6]) == {""}
    assert set(codes) == {"", "quota"}


def full(ada: Person, size: int = 0) -> None:
    """Leave no byte of the quota."""
    ada.served.set_quota(ada.name, ada.stored() + size)


def test_what_makes_room_or_takes_access_away_is_never_refused_for_the_quota(
    served: Daemon, ada: Person, readers: list[Person]
) -> None:
    bob, eve, _ = readers
    for wanted in (F, G):
        ada.put(wanted, b"c" * 56)
        done(ask(ada, granted(ada, wanted, bob, eve)))
    ada.put(F, b"n" * 5000, readers=ada.record(F, ACCESS).readers, wraps=wrapped(ada, bob, eve))
    served.set_quota("ada", 1)
    done(ask(ada, granted(ada, F, bob, given=False)))
    done(ask(ada, granted(ada, F)))
    ada.delete(F)
    before = ada.stored()
    purge = ada.signed(ada.record(F, PURGE, purged=(1, 2)))
    done(ada.ask(ada.took(purge).change()))
    assert ada.used() == ada.stored() < before - 5000


def test_each_reader_that_is_added_takes_quota(ada: Person, readers: list[Person]) -> None:
    bob, eve, kim = readers
    ada.put(F)
    done(ask(ada, granted(ada, F, bob, eve)))
    full(ada)
    # Two readers are exchanged for another one: the sidecar gets shorter.
    done(ask(ada, granted(ada, F, kim)))
    full(ada)
    refused(ask(ada, granted(ada, F, kim, bob)), "quota")
    assert ada.used() == ada.stored()


def test_an_older_version_that_is_given_to_a_reader_takes_quota(
    ada: Person, readers: list[Person]
) -> None:
    ada.put(F)
    ada.put(F)
    done(ask(ada, granted(ada, F, readers[0])))
    full(ada)
    same = granted(ada, F, readers[0])
    refused(ada.ask(same.share({1: [readers[0].wrap()]})), "quota")
    done(ada.ask(same.share()))
    assert ada.used() == ada.stored()


def test_changes_that_are_made_together_share_what_is_left(
    ada: Person, readers: list[Person]
) -> None:
    names = [file_id(number) for number in range(1, 9)]
    for wanted in names:
        ada.put(wanted, b"c" * 56)
    one = ada.stored()
    done(ask(ada, granted(ada, names[0], *readers)))
    added = ada.stored() - one
    full(ada, 3 * added + added // 2)
    asked = [granted(ada, wanted, *readers) for wanted in names[1:]]
    replies = ada.served.ask_all(ada.who, [one.share({1: one.wraps}) for one in asked])
    codes = [reply.code if isinstance(reply, Error) else "" for reply in replies]
    assert sorted(codes) == ["", "", "", *["quota"] * 4]
    assert ada.used() == ada.stored()


def test_wraps_that_others_renew_count_for_the_owner_and_are_never_refused(
    ada: Person, readers: list[Person]
) -> None:
    bob = readers[0]
    ada.put(F)
    done(ask(ada, granted(ada, F, bob)))
    full(ada)
    stored = ada.stored()
    begun(bob)
    (item,) = wraps(bob)
    assert item.wrap is not None
    # Bob's wrap does not open, so bob's client removes it.
    removed = rewrapped(bob, item, wrap=None, endorsed=())
    assert isinstance(bob.ask(bob.rewrap(removed)), Rewrapped)
    assert ada.used() == ada.stored() < stored
    stored = ada.stored()
    begun(ada)
    renewed = [rewrapped(ada, one) for one in wraps(ada)]
    reply = ada.ask(ada.rewrap(*renewed))
    assert isinstance(reply, Rewrapped)
    assert reply.left == ()
    assert ada.used() == ada.stored() > stored  # endorsements were added


def test_an_abandoned_upload_gives_way_to_any_change(ada: Person, readers: list[Person]) -> None:
    ada.put(F)
    state = ada.ask(PutOpen("ada", G, 5000))
    assert isinstance(state, UploadState)
    full(ada, 5000)
    ada.who.ended = True
    ada.who = ada.log_in()
    reply = refused(ask(ada, granted(ada, F, *readers)), "quota")
    assert "5,000 are reserved for uploads" in reply.text
    ada.served.clock.now += ABANDONED + 1
    done(ask(ada, granted(ada, F, *readers)))
    assert ada.used() == ada.stored()


def test_a_content_that_has_no_room_for_its_sidecar_is_kept_for_a_retry(ada: Person) -> None:
    ada.put(F)
    upload = ada.upload(G, bytes(5000))
    full(ada, 5000)
    made = ada.version(G, bytes(5000))
    text = refused(ada.ask(made.commit(upload)), "quota").text
    assert "more bytes" in text
    assert "twice" not in text
    ada.delete(F)
    purge = ada.signed(ada.record(F, PURGE, current=0, purged=(1,)))
    done(ada.ask(ada.took(purge).change()))
    ada.served.set_quota("ada", ada.stored() + 5000 + 2000)  # what is reserved counts once
    done(ada.ask(made.commit(upload)))
    assert ada.used() == ada.stored()
