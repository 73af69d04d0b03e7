"""`sfsd audit`: read and verify the log from its files, with or without a running daemon."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, cast

import click

from protocol.codec.errors import MessageError
from protocol.codec.names import check_file_id, check_principal
from protocol.codec.terminal_text import counted
from protocol.log.auditlog import LogEntry
from protocol.wire.messages.log import LogCheckpoint, LogHead
from sfsd.commands import (
    answer,
    answer_json,
    json_option,
    operator_client,
    parse_with,
    root_option,
    table,
    user_name,
    utc_option,
)
from sfsd.commands.entry_times import period, since_option, until_option
from sfsd.datadir import lock_root_to_read
from sfsd.errors import CommandError, ConfigError, RootBusyError
from sfsd.log.descriptions import OPERATIONS, describe, shown_time
from sfsd.log.export import FORMATS, export
from sfsd.log.path_table import NAME, TABLE_HINT, TableComparison
from sfsd.log.query import BEGINNING, EntryFilter, last_entries, read_entries
from sfsd.log.verify import complete_lines, verify_links, verify_log

_ROTATION: Final = frozenset({"enrol", "rotate-force", "rotate-begin", "rewrap", "rotate-finish"})
_STEP_DETAILS: Final = ("generation", "reason", "files")
_MAX_TAIL: Final = 100_000
"""Most entries of ``--tail``: they are held in memory, each with about 2 KB."""
_NAMES: Final = 10_000
"""User names of the log that are remembered for a hint."""
_POLL_SECONDS: Final = 0.25
"""Seconds between reads of a log that is followed."""


@click.group()
def command() -> None:
    """Read and verify the log.

    Example: sfsd audit verify
    """


class _Selection:
    """The entries that a command shows. Knows whether the user that it asks for is in the log."""

    def __init__(self, wanted: EntryFilter, *, utc: bool) -> None:
        self.local = not utc
        """Whether times are shown in this machine's time zone."""
        self._wanted = wanted
        self._names: set[str] = set()
        self._any = False

    def matches(self, entry: LogEntry) -> bool:
        """Return whether the entry is to be shown."""
        if len(self._names) < _NAMES:
            self._names.update(entry.accounts, (entry.actor, entry.owner or entry.actor))
        matched = self._wanted.matches(entry)
        self._any |= matched
        return matched

    def check_found(self) -> None:
        """Raise `CommandError` if entries of a user were wanted, and the log that was read has no
        such user."""
        user = self._wanted.user
        if user is not None and not self._any and user not in self._names:
            hint = _meant(user, self._names) or "`sfsd user list` shows all users"
            raise CommandError(f"no user {user} in the log", hint, exit_code=CommandError.NOT_FOUND)


def _meant(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the most similar known word, or an empty text."""
    from difflib import get_close_matches  # hardly any command needs it

    similar = get_close_matches(word, known, 1)
    return f"did you mean {similar[0]}?" if similar else ""


def _known_operations(
    _context: click.Context, _option: click.Parameter, ops: tuple[str, ...]
) -> tuple[str, ...]:
    """Refuse an operation that no entry can have; a click callback."""
    for op in ops:
        if op not in OPERATIONS:
            hint = _meant(op, OPERATIONS) or f"known are: {', '.join(OPERATIONS)}"
            raise click.BadParameter(f"no such operation: {op}; {hint}")
    return ops


@parse_with
def _actor(name: str) -> str:
    try:
        check_principal(name)
    except MessageError as exc:
        names = "a user name has a to z, 0 to 9, - and _, at most 32 of them"
        raise ConfigError(str(exc), names) from exc
    return name


@parse_with
def _file_id(file_id: str) -> str:
    try:
        check_file_id(file_id)
    except MessageError as exc:
        raise ConfigError(str(exc), "`sfsd audit log` shows the ids of files") from exc
    return file_id


def _selects(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that select entries to a command; they are passed as one `_Selection`."""

    @functools.wraps(function)
    def run(
        *,
        user: str | None,
        file_id: str | None,
        ops: tuple[str, ...],
        since: str | None,
        until: str | None,
        utc: bool,
        **others: object,
    ) -> None:
        first, last = period(since, until, utc=utc)
        wanted = EntryFilter(user, file_id, ops, first, last)
        function(selection=_Selection(wanted, utc=utc), **others)

    for option in (
        utc_option,
        until_option,
        since_option,
        click.option(
            "--op",
            "ops",
            metavar="OP",
            multiple=True,
            callback=_known_operations,
            help="Only this operation (repeatable).",
        ),
        click.option(
            "--file", "file_id", metavar="ID", callback=_file_id, help="Only about this file id."
        ),
        click.option("--user", metavar="USER", callback=_actor, help="Only by USER or about USER."),
    ):
        run = option(run)
    return run


@command.command()
@root_option
@click.option("--json", "as_json", is_flag=True, help="Print the lines of the log unchanged.")
@_selects
@click.option(
    "--tail", metavar="N", type=click.IntRange(1, _MAX_TAIL), help="Only the last N of them."
)
@click.option("--follow", is_flag=True, help="Print new entries too, until interrupted.")
def log(root: Path, as_json: bool, selection: _Selection, tail: int | None, follow: bool) -> None:
    """Show who did what, and when: one entry a line.

    On a terminal this is a table, in a pipe columns separated by tabs: number, time, user,
    operation, and what was done.

    Example: sfsd audit log --user alice --since 7d --tail 20
    """
    place, found = BEGINNING, list[tuple[LogEntry, bytes]]()
    if tail is not None:
        found, place = last_entries(root, selection.matches, tail)
    entries = _Entries(as_json=as_json, local=selection.local)
    with entries.table:
        for entry, line in found:
            entries.show(entry, line)
        if tail is None or follow:
            for entry, line in read_entries(root, place, wait=entries.wait if follow else None):
                if selection.matches(entry):
                    entries.show(entry, line)
    selection.check_found()


class _Entries:
    """Shows entries as a table, or with `as_json` as the lines of the log, unchanged."""

    def __init__(self, *, as_json: bool, local: bool) -> None:
        self._as_json = as_json
        self._local = local
        self.table = table("entry", "time", "user", "operation", "what", right=("entry",))

    def show(self, entry: LogEntry, line: bytes) -> None:
        """Show one entry, whose line of the log is `line`."""
        if self._as_json:
            click.echo(line)
            return
        when = shown_time(entry, local=self._local)
        what = describe(entry, local=self._local)
        self.table.add(entry.seq, when, entry.actor, entry.op, what)

    def wait(self) -> None:
        """Write the rows that were kept, and return after a moment."""
        self.table.close()
        time.sleep(_POLL_SECONDS)


@command.command("export")
@root_option
@click.option(
    "--format",
    "format_name",
    required=True,
    type=click.Choice(list(FORMATS)),
    help="JSON lines, CSV, or ArcSight's Common Event Format.",
)
@_selects
def export_(root: Path, format_name: str, selection: _Selection) -> None:
    """Print entries for another program; docs/log.md lists the fields.

    Times are in UTC. Every entry is checked against the one before while it is read. The exit code
    is 5 if one does not fit: what was printed up to there is valid.

    Example: sfsd audit export --format csv --since 2026-11-01 > november.csv
    """
    selected = (entry for entry, _ in read_entries(root) if selection.matches(entry))
    for line in export(selected, format_name):
        click.echo(line, nl=False)
    selection.check_found()


@command.command("checkpoint")
@root_option
def checkpoint_(root: Path) -> None:
    """Print the signed checkpoint of the log, for others to keep and compare.

    Example: sfsd audit checkpoint > checkpoint.txt
    """
    head = cast(LogCheckpoint, operator_client.send_requests(root, [LogHead()])[0])
    click.echo(head.checkpoint, nl=False)


@command.command()
@root_option
@json_option
@click.option("--strict", is_flag=True, help="Check the canonical form of every line too; slower.")
def verify(root: Path, as_json: bool, *, strict: bool) -> None:
    """Check the hash of every line, the chain, the tree, and the signed checkpoint.

    Without a running daemon, the table of newest files (logs/tree/paths) is compared with the log
    too; a daemon checks it while it runs. Exit code 5 and the first wrong entry if the log or the
    table is damaged.

    Example: sfsd audit verify --strict
    """
    found = verify_log(root) if strict else verify_links(root)
    compared, not_compared, differs = _compare_table(root, found.entries)
    if as_json:
        answer_json(
            {
                "entries": found.entries,
                "signed": found.signed,
                "root": found.root.hex(),
                "table": compared,
            }
        )
    else:
        answer(
            f"{counted(found.entries, 'entry', 'entries')} verified,"
            f" {found.signed} of them under the signed checkpoint"
        )
        answer(f"root {found.root.hex()}")
        if not_compared is not None:
            answer(f"the table of newest files was not compared: {not_compared}")
        elif compared:
            answer(f"the table of newest files is that of {counted(compared, 'entry', 'entries')}")
    if differs is not None:
        raise CommandError(
            f"{NAME}: the table of newest files differs from the log, first for entry {differs}",
            TABLE_HINT,
            exit_code=CommandError.DAMAGED,
        )


def _compare_table(root: Path, entries: int) -> tuple[int | None, str | None, int | None]:
    """Compare the table of newest files with the verified log of `entries` entries. Return (size
    of the log that it follows, why it was not compared, first entry that differs), each None if it
    does not apply. Raises `TableUnreadableError`."""
    try:
        with lock_root_to_read(root):  # so that no daemon starts meanwhile
            newest = TableComparison(root / "logs" / "tree")
    except RootBusyError:
        return None, "a daemon uses it", None
    except (OSError, ConfigError) as exc:
        why = exc.cause if isinstance(exc, ConfigError) else f"no lock: {exc.strerror}"
        return None, why, None
    if not newest.size:
        return 0, "there is none, and a start makes it", None
    return newest.size, None, newest.compare(complete_lines(root), entries)


@command.command()
@root_option
@json_option
@click.argument("user", callback=user_name)
@utc_option
def rotation(root: Path, as_json: bool, user: str, utc: bool) -> None:
    """Show every step of USER's rotations, and whether the last one is finished.

    `sfsd audit log --json --user USER` shows the entries with the signed statements.

    Example: sfsd audit rotation alice
    """
    steps = [
        entry for entry, _ in read_entries(root) if entry.owner == user and entry.op in _ROTATION
    ]
    if not steps:
        raise CommandError(
            f"no enrolled user {user} in the log", "`sfsd user list` shows all users", exit_code=3
        )
    wrapped = 0
    rows = table("entry", "time", "operation", "what", right=("entry",))
    for entry in steps:
        if entry.op == "rewrap":
            wrapped += int(entry.detail.get("count", 0))
            continue
        details: dict[str, object] = {
            key: entry.detail[key] for key in _STEP_DETAILS if key in entry.detail
        }
        if entry.op == "rotate-finish":
            details["wrapped"], wrapped = wrapped, 0
        if as_json:
            answer_json({"seq": entry.seq, "time": entry.time, "op": entry.op, **details})
        else:
            what = describe(entry, local=not utc)
            rows.add(entry.seq, shown_time(entry, local=not utc), entry.op, what)
    rows.close()
    begun = [entry.op for entry in steps if entry.op in ("rotate-begin", "rotate-finish")]
    if begun and begun[-1] == "rotate-begin" and not as_json:
        answer(f"not finished: {counted(wrapped, 'version')} wrapped so far")
