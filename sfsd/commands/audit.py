"""`sfsd audit`: read and verify the log from its files, with or without a running daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, cast

import click

from protocol.codec.errors import LogError
from protocol.codec.terminal_text import counted
from protocol.codec.values import Value
from protocol.log import auditlog
from protocol.log.auditlog import LogEntry
from protocol.wire.messages.log import LogCheckpoint, LogHead
from sfsd.commands import answer, answer_json, json_option, operator_client, root_option
from sfsd.datadir import lock_root
from sfsd.errors import CommandError, ConfigError, JournalDamagedError, RootBusyError
from sfsd.log.path_table import NAME, TABLE_HINT, TableComparison
from sfsd.log.verify import complete_lines, verify_links, verify_log

_ROTATION: Final = frozenset({"enrol", "rotate-force", "rotate-begin", "rewrap", "rotate-finish"})
_STEP_DETAILS: Final = ("generation", "reason", "files")
_DETAILS: Final = ("address", "count", "codes", "users", "reason")


@click.group()
def command() -> None:
    """Read and verify the log.

    Example: sfsd audit verify
    """


def _entry_time(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """Convert a date or time (ISO 8601, default UTC) to the form in entries; a click callback."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise click.BadParameter("not like 2026-11-24 or 2026-11-24T09:30:00Z") from exc
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Filter(Value):
    """Selects entries; None or an empty tuple selects all."""

    user: str | None
    file: str | None
    ops: tuple[str, ...]
    since: str | None
    until: str | None

    def matches(self, entry: LogEntry) -> bool:
        return (
            (self.user is None or self.user in (entry.actor, entry.owner, *entry.accounts))
            and (self.file is None or any(self.file == file for file, _ in entry.versions))
            and (not self.ops or entry.op in self.ops)
            and (self.since is None or self.since <= entry.time)
            and (self.until is None or entry.time < self.until)
        )


@command.command()
@root_option
@click.option("--json", "as_json", is_flag=True, help="Print the lines of the log unchanged.")
@click.option("--user", metavar="USER", help="Only entries by USER or about USER.")
@click.option("--file", "file_id", metavar="ID", help="Only entries about this file id.")
@click.option("--op", "ops", metavar="OP", multiple=True, help="Only this op (repeatable).")
@click.option(
    "--since", metavar="TIME", callback=_entry_time, help="Only from this time on (ISO 8601, UTC)."
)
@click.option("--until", metavar="TIME", callback=_entry_time, help="Only before this time.")
@click.option("--follow", is_flag=True, help="Print new entries too, until interrupted.")
def log(
    root: Path,
    as_json: bool,
    user: str | None,
    file_id: str | None,
    ops: tuple[str, ...],
    since: str | None,
    until: str | None,
    follow: bool,
) -> None:
    """Print the log, one entry a line: time, user and operation.

    Example: sfsd audit log --user alice --since 2026-11-24
    """
    wanted = _Filter(user, file_id, ops, since, until)
    for entry, line in _entries(root, follow=follow):
        if not wanted.matches(entry):
            continue
        if as_json:
            click.echo(line)
        else:
            answer(_format(entry))


@command.command("checkpoint")
@root_option
def checkpoint_(root: Path) -> None:
    """Print the signed checkpoint of the log, for others to keep and compare.

    Example: sfsd audit checkpoint > checkpoint.txt
    """
    head = cast(LogCheckpoint, operator_client.send_requests(root, [LogHead()])[0])
    click.echo(head.checkpoint, nl=False)


def _format(entry: LogEntry) -> str:
    what = entry.owner or ""
    if entry.versions:
        files = [file + (f" v{version}" if version else "") for file, version in entry.versions]
        what += ":" + ", ".join(files)
    # Of the other details, operators need most who was refused, and from where.
    details = {key: entry.detail[key] for key in _DETAILS if key in entry.detail}
    text = " ".join(f"{key}={json.dumps(value)}" for key, value in details.items())
    return f"{entry.seq:>8} {entry.time} {entry.op:<16} {entry.actor:<12} {what} {text}".rstrip()


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
    table, not_compared, differs = _compare_table(root, found.entries)
    if as_json:
        answer_json(
            {
                "entries": found.entries,
                "signed": found.signed,
                "root": found.root.hex(),
                "table": table,
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
        elif table:
            answer(f"the table of newest files is that of {counted(table, 'entry', 'entries')}")
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
        with lock_root(root):  # so that no daemon starts meanwhile
            table = TableComparison(root / "logs" / "tree")
    except RootBusyError:
        return None, "a daemon uses it", None
    except (OSError, ConfigError) as exc:
        why = exc.cause if isinstance(exc, ConfigError) else f"no lock: {exc.strerror}"
        return None, why, None
    if not table.size:
        return 0, "there is none, and a start makes it", None
    return table.size, None, table.compare(complete_lines(root), entries)


@command.command()
@root_option
@json_option
@click.argument("user")
def rotation(root: Path, as_json: bool, user: str) -> None:
    """Show every step of USER's rotations, and whether the last one is finished.

    `sfsd audit log --json --user USER` shows the entries with the signed statements.

    Example: sfsd audit rotation alice
    """
    steps = [entry for entry, _ in _entries(root) if entry.owner == user and entry.op in _ROTATION]
    if not steps:
        raise CommandError(
            f"no enrolled user {user} in the log", "`sfsd user list` shows all users", exit_code=3
        )
    wrapped = 0
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
            text = " ".join(f"{key}={json.dumps(value)}" for key, value in details.items())
            answer(f"{entry.seq:>8} {entry.time} {entry.op:<16} {text}".rstrip())
    begun = [entry.op for entry in steps if entry.op in ("rotate-begin", "rotate-finish")]
    if begun and begun[-1] == "rotate-begin" and not as_json:
        answer(f"not finished: {counted(wrapped, 'version')} wrapped so far")


def _entries(root: Path, *, follow: bool = False) -> Iterator[tuple[LogEntry, bytes]]:
    """Yield each entry and its line."""
    for seq, line in enumerate(complete_lines(root, follow=follow)):
        try:
            yield auditlog.parse(line, seq=seq), line
        except LogError as exc:
            raise JournalDamagedError.from_log_error(exc) from exc
