"""Bounds of the page, and the state of rotations."""

from __future__ import annotations

import re

import pytest

from protocol.log.auditlog import EntryDraft
from sfsd.report import page
from sfsd.report.page import Facts, Verdict, render
from sfsd.report.summary import AccountState, LogSummary
from tests.sfsd.log_entries import entry

NOW = 1_800_000_000
DAY = 86_400


def rendered(summary: LogSummary, **facts: object) -> str:
    known = {"root": "/srv", "server_id": "ab", "made": NOW, "offset": 0, "local": False}
    verdict = Verdict(entries=summary.entries)
    return render(Facts(summary=summary, verdict=verdict, **(known | facts)))  # type: ignore[arg-type]


def states(html: str) -> dict[str, str]:
    """Return what is said of each user's rotation."""
    section = html.split('<section id="rotations">')[1].split("</section>", maxsplit=1)[0]
    rows = re.findall(r"<bdi>(\w+)</bdi></th><td>(.*?)</td>", section, re.DOTALL)
    return {name: re.sub(r"<[^>]*>", "", cell) for name, cell in rows}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (AccountState(due=NOW + 1, expires=NOW + 2), "up to date"),
        (AccountState(due=NOW + 1, expires=NOW + 2, begun=True), "unfinished a rotation was begun"),
        (AccountState(due=NOW, expires=NOW + 2 * DAY), "due 2 days left"),
        (AccountState(due=NOW, expires=NOW + DAY, forced="theft"), "required theft"),
        (
            AccountState(due=NOW - 1, expires=NOW, forced="theft"),
            "overdue the user can only read until then",
        ),
        (AccountState(due=NOW - 1, expires=NOW, disabled=True), "disabled"),
    ],
)
def test_state_of_a_rotation(state: AccountState, said: str) -> None:
    summary = LogSummary(10, 0)
    state.enrolled = 1
    summary.accounts = {"alice": state, "invited": AccountState()}
    assert states(rendered(summary)) == {"alice": said}


def test_tables_are_bounded_but_numbers_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_TABLE", 3)
    summary = LogSummary(10, 0)
    for number in range(7):
        summary.add(entry(EntryDraft("upload", f"user{number}", file="0" * 32), number))
        name = f"user{number}"
        summary.accounts[name] = AccountState(enrolled=1, due=NOW - number, expires=NOW + DAY)
    html = rendered(summary)
    assert "<dt>rotations due</dt><dd>7</dd>" in html
    assert list(states(html)) == ["user6", "user5", "user4"]
    assert html.count("4 more users are not shown.") == 2


def test_an_empty_log() -> None:
    html = rendered(LogSummary(10, 0), storage_problem="no disk")
    assert "0 entries were verified" in html
    assert "No entries." in html
    assert "No user has enrolled." in html
    assert "no disk" in html
