"""The daemon logs whose keys fell due: once a generation, by an injected clock."""

from __future__ import annotations

import asyncio
from pathlib import Path

from protocol.wire.messages.accounts import UserAccess
from sfsd.config import DAY
from sfsd.jobs.scheduler import Schedule
from tests.sfsd.builders import Daemon, Person, daemon, done
from tests.sfsd.operations.test_rotation import begun


def run(served: Daemon, days: float = 0) -> int:
    """A run of a schedule that has just begun, some days later."""
    served.clock.now += days * DAY
    committer = served.world.committer
    planned = Schedule(served.world, lambda one: asyncio.wrap_future(committer.submit(one)))
    return served.run(planned.run())


def told(served: Daemon) -> list[tuple[str | None, object]]:
    return [(one.owner, one.detail["generation"]) for one in served.entries("rotation-due")]


def test_who_fell_due_is_logged_once_for_each_generation(served: Daemon, ada: Person) -> None:
    served.clock.now = ada.first.due - 1
    assert run(served) == 0
    served.clock.now = ada.first.due
    assert run(served) == 1
    (entry,) = served.entries("rotation-due")
    assert (entry.actor, entry.owner, list(entry.accounts)) == ("server", "ada", ["ada"])
    assert entry.detail["due"] == ada.first.due
    for _ in range(3):
        assert run(served, days=1) == 0
    begun(ada)
    run(served, days=80)
    assert told(served) == [("ada", 1)]
    run(served, days=20)
    assert told(served) == [("ada", 1), ("ada", 2)]


def test_a_restart_does_not_say_it_again(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        served.person("ada")
        assert run(served, days=100) == 1
    with daemon(tmp_path, served.clock) as again:
        assert run(again, days=1) == 0
        assert told(again) == [("ada", 1)]


def test_only_those_who_are_due_and_there(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    done(served.ask(served.operator(), UserAccess("bob", disabled=True, reason="")))
    served.ask(served.operator(), Person("carol", served).invitation())
    assert run(served, days=100) == 1
    assert told(served) == [("ada", 1)]
    done(served.ask(served.operator(), UserAccess("bob", disabled=False, reason="")))
    assert run(served) == 1
    assert told(served) == [("ada", 1), ("bob", 1)]
    assert bob.first.due < served.clock.now


def test_a_damaged_account_does_not_keep_the_others_from_it(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        served.person("ada")
        served.person("bob")
    path = served.world.store.users / "ada" / "statements.json"
    path.write_bytes(path.read_bytes()[:-1])
    with daemon(tmp_path, served.clock) as again:
        assert run(again, days=100) == 1
        assert told(again) == [("bob", 1)]


def test_a_run_a_day(served: Daemon, ada: Person) -> None:
    """The clock is looked at often, and the accounts once a day."""
    committer = served.world.committer
    planned = Schedule(served.world, lambda one: asyncio.wrap_future(committer.submit(one)))
    assert served.run(planned.run()) == 0
    served.clock.now = ada.first.due - 0.5 * DAY
    assert served.run(planned.run()) == 0
    served.clock.now += 0.9 * DAY
    assert served.run(planned.run()) == 0
    served.clock.now += 0.1 * DAY
    assert served.run(planned.run()) == 1
