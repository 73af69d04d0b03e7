"""The daemon logs which users' keys are due, once a generation; the tests set the clock."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from protocol.wire.messages.accounts import UserAccess
from sfsd.errors import JournalRefusedError
from sfsd.jobs.scheduler import JobScheduler
from sfsd.settings.kinds import DAY
from tests.sfsd.builders import Daemon, Person, daemon, done
from tests.sfsd.faults import FaultyFiles
from tests.sfsd.operations.test_rotation import begun


def run(served: Daemon, days: float = 0) -> int:
    """Run a new scheduler, some days later."""
    served.clock.now += days * DAY
    committer = served.context.committer
    scheduler = JobScheduler(served.context, lambda one: asyncio.wrap_future(committer.submit(one)))
    return served.run(scheduler.run())


def logged(served: Daemon) -> list[tuple[str | None, object]]:
    return [(one.owner, one.detail["generation"]) for one in served.entries("rotation-due")]


def test_due_keys_are_logged_once_for_each_generation(served: Daemon, ada: Person) -> None:
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
    assert logged(served) == [("ada", 1)]
    run(served, days=20)
    assert logged(served) == [("ada", 1), ("ada", 2)]


def test_restart_does_not_log_it_again(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        served.person("ada")
        assert run(served, days=100) == 1
    with daemon(tmp_path, served.clock) as again:
        assert run(again, days=1) == 0
        assert logged(again) == [("ada", 1)]


def test_disabled_and_invited_users_are_skipped(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    done(served.ask(served.operator(), UserAccess("bob", disabled=True, reason="")))
    served.ask(served.operator(), Person("carol", served).invitation())
    assert run(served, days=100) == 1
    assert logged(served) == [("ada", 1)]
    done(served.ask(served.operator(), UserAccess("bob", disabled=False, reason="")))
    assert run(served) == 1
    assert logged(served) == [("ada", 1), ("bob", 1)]
    assert bob.first.due < served.clock.now


def test_damaged_account_stops_no_other(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        served.person("ada")
        served.person("bob")
    path = served.context.store.users / "ada" / "statements.json"
    path.write_bytes(path.read_bytes()[:-1])
    with daemon(tmp_path, served.clock) as again:
        assert run(again, days=100) == 1
        assert logged(again) == [("bob", 1)]


def test_jobs_run_once_a_day(served: Daemon, ada: Person) -> None:
    """The clock is checked often, the accounts once a day."""
    committer = served.context.committer
    scheduler = JobScheduler(served.context, lambda one: asyncio.wrap_future(committer.submit(one)))
    assert served.run(scheduler.run()) == 0
    served.clock.now = ada.first.due - 0.5 * DAY
    assert served.run(scheduler.run()) == 0
    served.clock.now += 0.9 * DAY
    assert served.run(scheduler.run()) == 0
    served.clock.now += 0.1 * DAY
    assert served.run(scheduler.run()) == 1


def test_a_failed_run_is_told_until_one_succeeds(tmp_path: Path) -> None:
    disk = FaultyFiles()
    with daemon(tmp_path, files=disk) as served:
        ada, committer = served.person("ada"), served.context.committer
        scheduler = JobScheduler(
            served.context, lambda one: asyncio.wrap_future(committer.submit(one))
        )
        served.clock.now = ada.first.due
        disk.fail("write", "audit.jsonl", errno.EIO)
        with pytest.raises(JournalRefusedError):
            served.run(scheduler.run())
        failed = served.context.metrics.failed_jobs
        log = served.context.root / "logs" / "audit.jsonl"
        why = f"the log could not be written: Input/output error: {log}"
        assert failed == {"retention": why}
        assert served.run(scheduler.run()) == 0
        assert failed
        served.clock.now += DAY
        assert served.run(scheduler.run()) == 1
        assert failed == {}
