"""Grouping of refusals, and the bounds on a flood of them."""

from __future__ import annotations

from sfsd.rules.refusal_log import NAMES, SOURCES, RefusalLog
from tests.sfsd.builders import Clock


def test_a_finished_minute_gives_one_entry_for_each_source() -> None:
    clock = Clock(60.0 * 1000 + 5)
    log = RefusalLog(clock)
    for user in ("ada", "bob", "ada"):
        log.note("192.0.2.1", user, "refused")
    log.note("192.0.2.1", "ada", "token")
    log.note("192.0.2.2", "ada", "refused")
    assert log.due() == []
    clock.now += 54.9
    assert log.due() == []
    clock.now += 0.1
    first, second = log.due()
    assert (first.op, first.actor) == ("refused", "server")
    assert first.detail == {
        "address": "192.0.2.1",
        "minute": "1970-01-01T16:40Z",
        "count": 4,
        "codes": {"refused": 3, "token": 1},
        "users": {"ada": 3, "bob": 1},
    }
    assert second.detail["address"] == "192.0.2.2"
    assert log.due() == []


def test_a_flood_gives_a_bounded_number_of_bounded_entries() -> None:
    clock = Clock(0.0)
    log = RefusalLog(clock)
    for source in range(1000):
        log.note(f"address {source}", "ada", "refused")
    for name in range(1000):
        log.note("address 0", f"user{name}", "refused")
    clock.now += 60
    drafts = log.due()
    assert len(drafts) == SOURCES + 1
    assert sum(draft.detail["count"] for draft in drafts) == 2000
    assert max(len(draft.detail["users"]) for draft in drafts) == NAMES + 1


def test_memory_is_bounded_if_drafts_are_not_fetched() -> None:
    clock = Clock(0.0)
    log = RefusalLog(clock)
    for _ in range(100):
        for source in range(SOURCES):
            log.note(f"address {source}", "ada", "refused")
        clock.now += 60
    assert len(log.due()) == SOURCES + 1


def test_due_returns_the_current_minute_at_shutdown() -> None:
    log = RefusalLog(Clock(30.0))
    log.note("192.0.2.1", "ada", "refused")
    assert len(log.due(all_of_them=True)) == 1
    assert log.due(all_of_them=True) == []
