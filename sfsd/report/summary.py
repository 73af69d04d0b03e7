"""Sums over the entries of a log, in memory that does not grow with the log.

Entries are untrusted where the log is damaged or was rewritten: names and addresses can be any
text, and as many as there are lines. So each table has a bound, and what exceeds it is counted
together.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from protocol.codec.errors import MessageError
from protocol.codec.names import check_user_name
from protocol.codec.values import Mutable, field
from protocol.log.auditlog import IDENTITY_OPS, LogEntry
from protocol.records.chain import RENEWING
from sfsd.log.descriptions import REFUSED, attempts, operation_of, statement_of, time_of

OTHERS: Final = "(others)"
"""Stands for the names beyond a bound; no user has this name."""
_NAMES: Final = 5_000
_ADDRESSES: Final = 1_000
_OPERATIONS: Final = 200
_LONGEST: Final = 200
"""Characters of a name that are kept."""
_SMALL: Final = 20
"""Codes and users that are counted for one address."""
_ACCOUNTS: Final = 50_000
_HOUR: Final = 3600
WIDTHS: Final = tuple(
    hours * _HOUR for hours in (1, 6, 24, 7 * 24, 28 * 24, 364 * 24, 3640 * 24, 36400 * 24)
)
"""Widths of the bars of the chart in seconds: an hour to 100 years, so that any times fit."""
_BARS: Final = 110
"""Most bars of the chart."""


class Activity(Mutable):
    """Entries of one user or address: their number by kind, and the time of the last one."""

    kinds: Counter[str] = field(default_factory=Counter)
    last: int = 0


class Refusals(Mutable):
    """Refused requests from one address: their number by code and by user, and the last time."""

    count: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    users: Counter[str] = field(default_factory=Counter)
    last: int = 0


class AccountState(Mutable):
    """State of an account, as the log has it. Times are Unix seconds, 0 for none. `forced` is the
    reason of a rotation that the operator requires. `begun` says that a rotation is not
    finished."""

    quota: int = 0
    disabled: bool = False
    enrolled: int = 0
    generation: int = 0
    due: int = 0
    expires: int = 0
    rotated: int = 0
    rotations: int = 0
    begun: bool = False
    forced: str | None = None


class Histogram:
    """Numbers of entries over time, by kind. Bars become wider as the time that they span grows."""

    def __init__(self, offset: int) -> None:
        """Bars of a day begin at midnight of the zone that is `offset` seconds ahead of UTC."""
        self.width = WIDTHS[0]
        self.bars: dict[int, Counter[str]] = {}
        """Number of each kind, by the number of the bar."""
        self._offset = offset

    def add(self, moment: int, kind: str) -> None:
        """Count an entry at `moment`, in Unix seconds."""
        bar = (moment + self._offset) // self.width
        if bar not in self.bars:
            self.bars[bar] = Counter()
            while max(self.bars) - min(self.bars) >= _BARS and self.width != WIDTHS[-1]:
                self._widen()
            bar = (moment + self._offset) // self.width
        self.bars[bar][kind] += 1

    def _widen(self) -> None:
        wider = WIDTHS[WIDTHS.index(self.width) + 1]
        merged: dict[int, Counter[str]] = {}
        for bar, counts in self.bars.items():
            merged.setdefault(bar * self.width // wider, Counter()).update(counts)
        self.width, self.bars = wider, merged

    def begins(self, bar: int) -> int:
        """Return the time at which a bar begins, in Unix seconds."""
        return bar * self.width - self._offset


class LogSummary:
    """Adds up entries. Accounts are as the whole log leaves them; the rest counts only entries that
    `is_shown` selects."""

    def __init__(
        self, rows: int, offset: int, is_shown: Callable[[LogEntry], bool] = lambda _entry: True
    ) -> None:
        """Keep the last `rows` entries. `offset` is that of `Histogram`."""
        self.rows: deque[LogEntry] = deque(maxlen=rows)
        self.entries = 0
        self.shown = 0
        self.refused = 0
        """Refused requests, not entries."""
        self.kinds: Counter[str] = Counter()
        self.operations: dict[str, Activity] = {}
        self.users: dict[str, Activity] = {}
        self.addresses: dict[str, Refusals] = {}
        self.accounts: dict[str, AccountState] = {}
        self.finished = 0
        """Rotations that were finished."""
        self.histogram = Histogram(offset)
        self._is_shown = is_shown

    def add(self, entry: LogEntry) -> None:
        """Add the next entry of the log."""
        self.entries += 1
        moment = time_of(entry) or 0
        if entry.op in _ACCOUNT_OPS:
            self._update_account(entry, moment)
        if not self._is_shown(entry):
            return
        self.shown += 1
        self.rows.append(entry)
        kind = operation_of(entry).kind
        self.kinds[kind] += 1
        self.histogram.add(moment, kind)
        self.finished += entry.op == "rotate-finish"
        for table, key, bound in (
            (self.operations, entry.op, _OPERATIONS),
            (self.users, entry.actor, _NAMES),
        ):
            activity = _bounded(table, key, bound, Activity)
            activity.kinds[kind] += 1
            activity.last = max(activity.last, moment)
        if kind == REFUSED:
            self._add_refusals(entry, moment)

    def _add_refusals(self, entry: LogEntry, moment: int) -> None:
        detail, count = entry.detail, attempts(entry)
        self.refused += count
        address = detail.get("address")
        stated = address if isinstance(address, str) else "?"
        found = _bounded(self.addresses, stated, _ADDRESSES, Refusals)
        found.count += count
        found.last = max(found.last, moment)
        for counter, members in ((found.codes, "codes"), (found.users, "users")):
            for name, number in _numbers(detail.get(members)):
                known = name in counter or len(counter) < _SMALL
                counter[name if known else OTHERS] += number

    def _update_account(self, entry: LogEntry, moment: int) -> None:
        account = self._account(entry.owner)
        if account is None:
            return
        detail = entry.detail
        match entry.op:
            case "user-add" | "user-quota":
                quota = detail.get("quota")
                account.quota = quota if type(quota) is int else 0
            case "user-access":
                account.disabled = detail.get("disabled") is True
            case "user-remove":
                account.disabled = True
            case "rotate-force":
                reason = detail.get("reason")
                account.forced = reason if isinstance(reason, str) else ""
            case "enrol":
                account.enrolled = account.rotated = moment
            case "rotate-begin":
                account.begun, account.rotated = True, moment
            case "rotate-finish":
                account.begun = False
                account.rotations += 1
        if entry.op in IDENTITY_OPS and (statement := statement_of(entry)) is not None:
            account.generation = statement.generation
            account.due, account.expires = statement.due, statement.expires
            if statement.reason in RENEWING:
                account.forced = None

    def _account(self, name: str | None) -> AccountState | None:
        """Return the account of a user, None for a name that no user can have."""
        if name is None:
            return None
        try:
            check_user_name(name)
        except MessageError:
            return None
        account: AccountState = _bounded(self.accounts, name, _ACCOUNTS, AccountState)
        return account


_ACCOUNT_OPS: Final = IDENTITY_OPS | {
    "user-add",
    "user-quota",
    "user-access",
    "user-remove",
    "rotate-force",
}


def _bounded(table: dict[str, Any], key: str, bound: int, make: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Return the value of `key`, made if it is missing; beyond `bound` keys that of the others."""
    key = key[:_LONGEST]
    found = table.get(key)
    if found is None:
        found = table.setdefault(key if len(table) < bound else OTHERS, make())
    return found


def _numbers(value: object) -> list[tuple[str, int]]:
    """Return the pairs of a map of numbers, an empty list for any other value."""
    if not isinstance(value, dict):
        return []
    return [(name[:_LONGEST], one) for name, one in value.items() if type(one) is int and one > 0]
