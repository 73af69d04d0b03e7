"""Wraps of expired readers are removed; the tests set the clock."""

from __future__ import annotations

import pytest

from protocol.wire.messages.downloads import OpenedVersion
from sfsd.rules import removal
from sfsd.settings.kinds import DAY
from tests.opens import open_one
from tests.sfsd.builders import Daemon, file_id
from tests.sfsd.jobs.test_retention import run
from tests.sfsd.operations.test_sharing import reader, shared, wrap_owners

F = file_id(1)


def test_wraps_are_removed_at_expiry(served: Daemon) -> None:
    ada, bob, cat = (served.person(name) for name in ("ada", "bob", "cat"))
    until = int(served.clock.now) + DAY
    for content in (b"1", b"2"):
        ada.put(F, content)
    shared(ada, reader(bob, until), wraps={1: [bob.wrap()], 2: [bob.wrap()]})
    shared(ada, reader(bob, until), reader(cat), wraps={2: [cat.wrap()]})
    served.clock.now = until - 1
    assert run(served) == 0
    served.clock.now = until
    assert run(served) == 1
    assert wrap_owners(served, "ada", 1) == {"ada"}
    assert wrap_owners(served, "ada", 2) == {"ada", "cat"}
    assert run(served) == 0
    (entry,) = served.entries("retention")
    assert (entry.actor, entry.owner, set(entry.accounts)) == ("server", "ada", {"ada", "bob"})
    assert isinstance(cat.ask(open_one("ada", F, 0)), OpenedVersion)
    # Sharing the file again gives access again.
    shared(ada, reader(bob), reader(cat), wraps={2: [bob.wrap()]})
    assert isinstance(bob.ask(open_one("ada", F, 0)), OpenedVersion)
    assert run(served) == 0


def test_many_versions_take_several_runs(served: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "MAX_READER_VERSIONS", 1)
    ada, bob = served.person("ada"), served.person("bob")
    until = int(served.clock.now) + DAY
    for content in (b"1", b"2"):
        ada.put(F, content)
    shared(ada, reader(bob, until), wraps={1: [bob.wrap()], 2: [bob.wrap()]})
    served.clock.now = until
    assert [run(served), run(served), run(served)] == [1, 1, 0]
    assert wrap_owners(served, "ada", 1) == wrap_owners(served, "ada", 2) == {"ada"}


def test_missing_sidecar_stops_no_other_version_or_file(served: Daemon) -> None:
    ada, cat, bob = (served.person(name) for name in ("ada", "cat", "bob"))
    until = int(served.clock.now) + DAY
    for owner in (ada, cat):
        for content in (b"1", b"2"):
            owner.put(F, content)
        shared(owner, reader(bob, until), wraps={2: [bob.wrap()]})
    (served.context.store.users / "ada" / "files" / "00" / f"{F}.1.json").unlink()
    served.clock.now = until
    assert run(served) == 2
    assert wrap_owners(served, "ada", 2) == {"ada"}
    assert wrap_owners(served, "cat", 2) == {"cat"}
