"""Makes the page of a report from what was read.

Every text that is shown is untrusted: reasons and addresses come from users, and after an attack on
the log names do too. Each is made printable, shortened and isolated from the text around it; jinja2
escapes it. A policy in the page (Content-Security-Policy) lets the browser run and apply nothing
but the one script and the one style of this package, and load nothing at all.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from importlib import resources
from typing import Any, Final

import jinja2
from markupsafe import Markup

from protocol import VERSION
from protocol.codec.terminal_text import counted, human_size, human_time, printable
from protocol.codec.values import Value, field
from sfsd.log.descriptions import KINDS, OPERATIONS, describe, operation_of, shown_time
from sfsd.report import chart
from sfsd.report.storage import UserStorage
from sfsd.report.summary import OTHERS, AccountState, LogSummary

_NAME: Final = 64
"""Characters of a name that are shown; a user name has at most 32."""
_TEXT: Final = 300
"""Characters that are shown of what an entry did."""
_TABLE: Final = 200
"""Rows of each table, but for that of the entries; those that are left out are counted."""
_DAY: Final = 86_400
_OVERDUE, _REQUIRED, _DUE = 0, 1, 2
"""Urgencies of rotations; those of less urgent states are higher numbers."""


class Verdict(Value):
    """Whether the log is intact. `entries` were read, of which the checkpoint covers `signed`, with
    the root `root` (hex). If `damage` is not empty, it says what is wrong, `hint` what to do, and
    `first_wrong` is the first entry that is not verified."""

    entries: int
    signed: int = 0
    root: str = ""
    damage: str = ""
    hint: str = ""
    first_wrong: int | None = None


class Facts(Value):
    """All that a page shows. `made` is its time and `offset` its zone, both in seconds; `local`
    says that times are shown in this machine's zone. `period` says which entries are counted, if
    not all. `storage_problem` says why there is no `storage`."""

    root: str
    server_id: str
    made: int
    offset: int
    local: bool
    verdict: Verdict
    summary: LogSummary
    period: str = ""
    storage: tuple[UserStorage, ...] = ()
    storage_problem: str = ""
    disk_free: int | None = None
    warnings: tuple[str, ...] = field(default=())


def render(facts: Facts) -> str:
    """Return the page as HTML."""
    style, script = _resource("page.css"), _resource("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}';"
        " base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(name=_name, text=_text, number=_number, size=human_size)
    template = environment.from_string(_resource("page.html"))
    return template.render(
        policy=policy,
        # Both are of this package, and have no closing tag in them.
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        version=VERSION,
        facts=facts,
        verdict=facts.verdict,
        summary=facts.summary,
        when=lambda seconds: human_time(seconds, local=facts.local) if seconds else "never",
        chart=chart.draw(facts.summary.histogram, facts.offset),
        series={name: heading for name, (heading, _) in chart.SERIES.items()},
        chart_height=chart.HEIGHT,
        chart_step=chart.STEP,
        kinds=KINDS,
        users=_users(facts),
        operations=_operations(facts),
        addresses=_addresses(facts),
        rotations=_rotations(facts),
        storage=_storage(facts),
        entries=_entries(facts),
        zone=_zone(facts.offset),
    )


def _zone(offset: int) -> str:
    """Return ``UTC`` or ``UTC+05:30``."""
    minutes = abs(offset) // 60
    sign = "-" if offset < 0 else "+"
    return f"UTC{sign}{minutes // 60:02}:{minutes % 60:02}" if offset else "UTC"


def _resource(name: str) -> str:
    return resources.files("sfsd.report").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """Return what a policy calls an inline script or style by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _name(text: str) -> Markup:
    return _isolated(text, _NAME)


def _text(text: str) -> Markup:
    return _isolated(text, _TEXT)


def _isolated(text: str, longest: int) -> Markup:
    """Return a text that changes nothing around it, also if it runs from right to left."""
    shown = printable(text[: longest + 1])
    if len(shown) > longest:
        shown = f"{shown[:longest]}…"
    return Markup("<bdi>{}</bdi>").format(shown)


def _number(number: int) -> str:
    return f"{number:,}"


class _Rows(Value):
    """Rows of a table, and how many were left out. `urgent` and `due` count rows of rotations, also
    those that were left out."""

    shown: list[dict[str, Any]]
    left_out: int
    urgent: int = 0
    due: int = 0


def _cut(rows: list[dict[str, Any]], urgent: int = 0, due: int = 0) -> _Rows:
    return _Rows(rows[:_TABLE], max(0, len(rows) - _TABLE), urgent, due)


def _users(facts: Facts) -> _Rows:
    rows = [
        {
            "user": name,
            "total": activity.kinds.total(),
            "counts": [
                sum(activity.kinds[kind] for kind in kinds) for _, kinds in chart.SERIES.values()
            ],
            "last": activity.last,
        }
        for name, activity in facts.summary.users.items()
    ]
    return _cut(sorted(rows, key=lambda row: (-row["total"], row["user"])))


def _operations(facts: Facts) -> _Rows:
    rows = [
        {
            "operation": op,
            "meaning": OPERATIONS[op].meaning if op in OPERATIONS else "",
            "total": activity.kinds.total(),
            "last": activity.last,
        }
        for op, activity in facts.summary.operations.items()
    ]
    return _cut(sorted(rows, key=lambda row: (-row["total"], row["operation"])))


def _addresses(facts: Facts) -> _Rows:
    rows = [
        {
            "address": address,
            "count": found.count,
            "codes": _listed(found.codes),
            "users": _listed(found.users),
            "last": found.last,
        }
        for address, found in facts.summary.addresses.items()
    ]
    return _cut(sorted(rows, key=lambda row: (-row["count"], row["address"])))


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counter.most_common())


def _rotations(facts: Facts) -> _Rows:
    rows: list[dict[str, Any]] = []
    for name, account in facts.summary.accounts.items():
        if account.enrolled and name != OTHERS:
            urgency, state, detail = _rotation_state(account, facts.made)
            rows.append(
                {
                    "user": name,
                    "urgency": urgency,
                    "state": state,
                    "detail": detail,
                    "generation": account.generation,
                    "rotated": account.rotated,
                    "rotations": account.rotations,
                    "due": account.due,
                }
            )
    urgent = sum(row["urgency"] <= _REQUIRED for row in rows)
    due = sum(row["urgency"] <= _DUE for row in rows)
    shown = sorted(rows, key=lambda row: (row["urgency"], row["due"], row["user"]))
    return _cut(shown, urgent, due)


def _rotation_state(account: AccountState, now: int) -> tuple[int, str, str]:
    """Return the urgency (0 is the most urgent), the state and its reason."""
    if account.disabled:
        return 5, "disabled", ""
    if account.expires <= now:
        return _OVERDUE, "overdue", "the user can only read until then"
    if account.forced is not None:
        return _REQUIRED, "required", account.forced
    if account.due <= now:
        left = counted((account.expires - now) // _DAY, "day")
        return _DUE, "due", f"{left} left"
    if account.begun:
        return 3, "unfinished", "a rotation was begun"
    return 4, "up to date", ""


def _storage(facts: Facts) -> _Rows:
    rows = []
    most = max((one.size for one in facts.storage), default=0)
    for one in facts.storage:
        account = facts.summary.accounts.get(one.user, AccountState())
        scale = account.quota or most
        rows.append(
            {
                "user": one.user,
                "versions": one.versions,
                "size": one.size,
                "unreadable": one.unreadable,
                "quota": account.quota,
                "percent": 100 * one.size // account.quota if account.quota > 0 else None,
                "bar": min(100, round(100 * one.size / scale, 1)) if scale > 0 else 0,
            }
        )
    return _cut(sorted(rows, key=lambda row: (-row["size"], row["user"])))


def _entries(facts: Facts) -> list[dict[str, Any]]:
    wrong = facts.verdict.first_wrong
    return [
        {
            "seq": entry.seq,
            "time": shown_time(entry, local=facts.local),
            "user": entry.actor,
            "operation": entry.op,
            "kind": operation_of(entry).kind,
            "what": describe(entry, local=facts.local),
            "verified": wrong is None or entry.seq < wrong,
        }
        for entry in reversed(facts.summary.rows)
    ]
