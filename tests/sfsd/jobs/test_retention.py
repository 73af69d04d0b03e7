"""Retention of trash and versions; the tests set the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.records.records import PURGE
from protocol.wire.messages.files import Stat, Stated
from sfsd.jobs.scheduler import FIRST_PAUSE, PAUSE, JobScheduler
from sfsd.settings.config import Config, RetentionPolicy
from sfsd.settings.kinds import DAY
from tests.opens import open_one
from tests.sfsd.builders import Clock, Daemon, Person, daemon, done, file_id, refused
from tests.sfsd.operations.test_records import move, restored

F, G, H = file_id(1), file_id(2), file_id(3)


@contextmanager
def daemon_with_policy(
    root: Path, clock: Clock | None = None, *, days: int = 0, versions: int = 0
) -> Iterator[Daemon]:
    policy = Config(retention=RetentionPolicy(days, versions))
    with daemon(root, clock, config=policy) as served:
        yield served


def schedule(served: Daemon) -> JobScheduler:
    committer = served.context.committer
    return JobScheduler(served.context, lambda one: asyncio.wrap_future(committer.submit(one)))


def run(served: Daemon, planned: JobScheduler | None = None) -> int:
    return served.run((planned or schedule(served)).run())


def has_content(person: Person, wanted: str, version: int) -> bool:
    reply = person.ask(Stat(person.name, wanted, version))
    assert isinstance(reply, Stated), reply
    return bool(reply.view.metadata)


def test_old_trash_is_removed_and_its_records_stay(tmp_path: Path) -> None:
    with daemon_with_policy(tmp_path, days=30) as served:
        ada = served.person("ada")
        ada.put(F, b"1" * 100)
        ada.put(F, b"2" * 100)
        ada.put(G, b"living")
        ada.delete(F)
        served.clock.now += 30 * DAY - 60
        assert run(served) == 0
        served.clock.now += 120
        assert run(served) == 1
        assert [has_content(ada, F, version) for version in (1, 2)] == [False, False]
        assert has_content(ada, G, 1)
        assert ada.used() == ada.stored()
        (entry,) = served.entries("retention")
        assert (entry.actor, entry.owner, entry.file) == ("server", "ada", F)
        assert (entry.detail["purged"], entry.detail["why"]) == ([1, 2], "trash")
        assert list(entry.accounts) == ["ada"]
        refused(ada.ask(open_one("ada", F, 1)), "not-found")
        refused(ada.ask(restored(ada, 1).change()), "not-found")
        assert run(served) == 0
        ada.put(F, b"anew")
        # A later purge may name versions that are removed already.
        purge = ada.signed(ada.record(F, PURGE, purged=(1, 2)))
        done(ada.ask(ada.took(purge).change()))


def test_old_versions_are_removed(tmp_path: Path) -> None:
    with daemon_with_policy(tmp_path, versions=2) as served:
        ada = served.person("ada")
        for number in range(5):
            ada.put(F, bytes([number]) * 10)
        ada.put(G, b"one")
        assert run(served) == 1
        assert [has_content(ada, F, version) for version in range(1, 6)] == [False] * 3 + [True] * 2
        made = restored(ada, 4)
        done(ada.ask(ada.took(made).change()))
        assert run(served) == 1
        assert [has_content(ada, F, version) for version in range(4, 7)] == [False, True, True]
        assert served.entries("retention")[-1].detail == {
            **served.entries("retention")[-1].detail,
            "purged": [4],
            "why": "versions",
        }
        ada.delete(F)
        assert run(served) == 0


def test_old_id_of_a_moved_file_is_not_trash(tmp_path: Path) -> None:
    with daemon_with_policy(tmp_path, days=1) as served:
        ada = served.person("ada")
        ada.put(F, b"old")
        ada.put(F, b"new")
        made, gone = move(ada)
        done(ada.ask(ada.together(ada.took(made), ada.took(gone))))
        served.clock.now += 100 * DAY
        run(served)
        assert served.entries("retention") == []
        assert has_content(ada, F, 1)


def test_removal_survives_a_restart(tmp_path: Path) -> None:
    with daemon_with_policy(tmp_path, versions=1) as served:
        ada = served.person("ada")
        for number in range(3):
            ada.put(F, bytes([number]) * 10)
        assert run(served) == 1
    with daemon_with_policy(tmp_path, served.clock, versions=1) as served:
        ada.served = served
        ada.who = ada.log_in()
        assert [has_content(ada, F, version) for version in (1, 2, 3)] == [False, False, True]
        assert (run(served), ada.used()) == (0, ada.stored())


def test_jobs_run_once_a_day(tmp_path: Path) -> None:
    with daemon_with_policy(tmp_path, versions=1) as served:
        ada = served.person("ada")
        planned = schedule(served)
        assert (planned.pause(), planned.pause(), planned.pause()) == (FIRST_PAUSE, PAUSE, PAUSE)
        assert run(served, planned) == 0
        ada.put(F, b"1")
        ada.put(F, b"2")
        served.clock.now += DAY - 10
        assert run(served, planned) == 0
        served.clock.now += 20
        assert run(served, planned) == 1
        served.clock.now -= 400 * DAY  # a clock that is set back does not postpone the run
        ada.put(F, b"3")
        assert run(served, planned) == 1


def test_nothing_is_removed_without_a_policy(tmp_path: Path) -> None:
    with daemon_with_policy(tmp_path) as served:
        ada = served.person("ada")
        ada.put(F, b"1")
        ada.put(F, b"2")
        ada.delete(F)
        served.clock.now += 10_000 * DAY
        run(served)
        assert served.entries("retention") == []


def test_damaged_file_stops_no_other_file(tmp_path: Path) -> None:
    with daemon_with_policy(tmp_path, versions=1) as served:
        ada = served.person("ada")
        for wanted in (F, G):
            ada.put(wanted, b"1")
            ada.put(wanted, b"2")
        path = served.context.store.users / "ada" / "files" / "00" / f"{F}.1.json"
        path.write_bytes(path.read_bytes() + b" ")
        assert run(served) == 1
        assert not has_content(ada, G, 1)


def test_missing_sidecar_stops_no_other_account(tmp_path: Path) -> None:
    with daemon_with_policy(tmp_path, versions=1) as served:
        ada, bob = served.person("ada"), served.person("bob")
        for person in (ada, bob):
            person.put(F, b"1")
            person.put(F, b"2")
        (served.context.store.users / "ada" / "files" / "00" / f"{F}.1.json").unlink()
        assert run(served) == 1
        assert not has_content(bob, F, 1)


def test_many_versions_are_removed_in_several_changes(tmp_path: Path) -> None:
    with daemon_with_policy(tmp_path, versions=1) as served:
        ada = served.person("a" * 32)
        for number in range(300):
            ada.put(F, bytes([number % 256]))
        assert run(served) == 4
        purged = [entry.detail["purged"] for entry in served.entries("retention")]
        assert [number for some in purged for number in some] == list(range(1, 300))
        assert ada.used() == ada.stored()
        ada.delete(F)
    with daemon_with_policy(tmp_path, served.clock, days=1) as served:
        ada.served = served
        ada.who = ada.log_in()
        served.clock.now += 2 * DAY
        assert (run(served), ada.used()) == (1, ada.stored())
