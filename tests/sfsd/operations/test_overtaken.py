"""Changes that were decided on what another request has changed since: the committer refuses them,
and they are decided again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol.wire.messages import Request
from protocol.wire.messages.accounts import UserAccess
from protocol.wire.messages.rotation import Rewrapped
from sfsd.errors import Stale
from sfsd.operations.login import enrol
from sfsd.rules.context import OPERATIONS, Changeset, Transaction
from sfsd.storage.change import Change
from tests.sfsd.builders import ADDRESS, WELCOME, Daemon, Person, done, file_id
from tests.sfsd.operations.test_records import move
from tests.sfsd.operations.test_rotation import begun, onto, renewed, rewrapped, wraps

F, G = file_id(1), file_id(2)


def decided(served: Daemon, person: Person, request: Request) -> Change:
    """Return the change that a request decides on, without making it."""
    decision: object = OPERATIONS[type(request)].function(served.context, person.who, request)
    if isinstance(decision, Changeset):
        [decision] = decision.decide([0], lambda _lines: None)
    assert isinstance(decision, Transaction)
    return decision.change


def is_stale(served: Daemon, change: Change) -> bool:
    return isinstance(served.context.committer.submit(change).exception(10), Stale)


def disabled(served: Daemon, person: Person) -> None:
    done(served.ask(served.operator(), UserAccess(person.name, True, "stolen")))


def device_added(_served: Daemon, person: Person) -> None:
    done(person.ask(onto(person.first, person.key)))


def rotated(_served: Daemon, person: Person) -> None:
    done(person.ask(renewed(person)))


def rewrap_one(person: Person, wanted: str, version: int) -> None:
    """Replace the wrap of one version, which changes nothing else."""
    (item,) = [one for one in wraps(person) if (one.file_id, one.version) == (wanted, version)]
    reply = person.ask(person.rewrap(rewrapped(person, item)))
    assert isinstance(reply, Rewrapped)
    assert reply.receipt is not None


@pytest.mark.parametrize("overtake", [disabled, device_added, rotated])
def test_a_record_relies_on_the_owners_account(
    served: Daemon, ada: Person, overtake: Callable[[Daemon, Person], None]
) -> None:
    ada.put(F, b"1")
    change = decided(served, ada, ada.version(F, b"2").small())
    overtake(served, ada)
    assert is_stale(served, change)


@pytest.mark.parametrize("overtake", [None, disabled])
def test_an_enrolment_relies_on_the_invitation(
    served: Daemon, overtake: Callable[[Daemon, Person], None] | None
) -> None:
    bob = Person("bob", served)
    done(served.ask(served.operator(), bob.invitation()))
    change = enrol(served.context, bob.enroll(), WELCOME, ADDRESS).change
    if overtake is not None:
        overtake(served, bob)
    assert is_stale(served, change) is (overtake is not None)


@pytest.mark.parametrize("overtaken", [False, True])
def test_a_reencryption_relies_on_the_version_that_it_replaces(
    served: Daemon, ada: Person, *, overtaken: bool
) -> None:
    for text in (b"1" * 60, b"2" * 60):
        ada.put(F, text)
    begun(ada)
    change = decided(served, ada, ada.reencrypted(F, 1, b"n" * 60).small())
    if overtaken:
        rewrap_one(ada, F, 1)
    assert is_stale(served, change) is overtaken


@pytest.mark.parametrize("overtaken", [False, True])
def test_a_move_relies_on_the_versions_whose_wraps_it_removes(
    served: Daemon, ada: Person, *, overtaken: bool
) -> None:
    """The destination had a reader that the moved file does not have."""
    bob = served.person("bob")
    for text in (b"1", b"2"):
        readers = ((bob.name, bob.first_hash, 0),)
        ada.put(G, text, readers=readers, wraps=(ada.wrap(), bob.wrap()))
    ada.delete(G)
    ada.put(F, b"moves")
    begun(ada)
    change = decided(served, ada, ada.together(*move(ada)))
    if overtaken:
        rewrap_one(ada, G, 1)
    assert is_stale(served, change) is overtaken
