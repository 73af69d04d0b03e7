"""`sfsd audit`: the log, read and verified from the files alone, beside a running daemon or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, cast

import click

from protocol.codec.errors import LogError
from protocol.codec.values import Value
from protocol.log import auditlog
from protocol.log.auditlog import LogEntry
from protocol.wire.messages.log import LogCheckpoint, LogHead
from sfsd.commands import answer, answer_json, json_option, operator_client, root_option
from sfsd.errors import CommandError, JournalDamagedError
from sfsd.log.verify import complete_lines, verify_links, verify_log

_STEPS: Final = frozenset({"enrol", "rotate-force", "rotate-begin", "rewrap", "rotate-finish"})
_STEP_FACTS: Final = ("generation", "reason", "files")
_FACTS: Final = ("address", "count", "codes", "users", "reason")


@click.group()
def command() -> None:
    """Read the log, and verify it."""


def _moment(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """A date or time in ISO 8601, UTC unless it says otherwise, as entries write theirs."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise click.BadParameter("not like 2026-11-24 or 2026-11-24T09:30:00Z") from exc
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Filter(Value):
    """Which entries are wanted; None or nothing for all."""

    user: str | None
    file: str | None
    ops: tuple[str, ...]
    since: str | None
    until: str | None

    def wants(self, entry: LogEntry) -> bool:
        return (
            (self.user is None or self.user in (entry.actor, entry.owner, *entry.accounts))
            and (self.file is None or self.file == entry.file)
            and (not self.ops or entry.op in self.ops)
            and (self.since is None or self.since <= entry.time)
            and (self.until is None or entry.time < self.until)
        )


@command.command()
@root_option
@click.option("--json", "as_json", is_flag=True, help="The lines as they are.")
@click.option("--user", metavar="USER", help="Only what USER did, owns or is concerned by.")
@click.option("--file", "file_id", metavar="ID", help="Only what was done to this file id.")
@click.option("--op", "ops", metavar="OP", multiple=True, help="Only this kind (repeatable).")
@click.option(
    "--since", metavar="TIME", callback=_moment, help="Only from this time on (ISO 8601, UTC)."
)
@click.option("--until", metavar="TIME", callback=_moment, help="Only before this time.")
@click.option("--follow", is_flag=True, help="Go on with what is appended, until interrupted.")
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
    """Print the log, one entry a line: when, who, what."""
    wanted = _Filter(user, file_id, ops, since, until)
    for entry, line in _entries(root, follow=follow):
        if not wanted.wants(entry):
            continue
        if as_json:
            click.echo(line)
        else:
            answer(_shown(entry))


@command.command("checkpoint")
@root_option
def checkpoint_(root: Path) -> None:
    """Print the signed note of the log's present size, for others to keep and compare."""
    head = cast(LogCheckpoint, operator_client.ask(root, [LogHead()])[0])
    click.echo(head.checkpoint, nl=False)


def _shown(entry: LogEntry) -> str:
    what = entry.owner or ""
    if entry.file:
        what += f":{entry.file}" + (f" v{entry.version}" if entry.version else "")
    # Of what an entry says besides, people want who was refused and from where.
    facts = {key: entry.detail[key] for key in _FACTS if key in entry.detail}
    said = " ".join(f"{key}={json.dumps(value)}" for key, value in facts.items())
    return f"{entry.seq:>8} {entry.time} {entry.op:<16} {entry.actor:<12} {what} {said}".rstrip()


@command.command()
@root_option
@json_option
@click.option("--strict", is_flag=True, help="Check the spelling of every line too; slower.")
def verify(root: Path, as_json: bool, *, strict: bool) -> None:
    """Check every line: its hash, the chain, the tree, and the signed checkpoint.

    Ends with exit code 5 and the first entry that is wrong.
    """
    found = verify_log(root) if strict else verify_links(root)
    if as_json:
        answer_json({"entries": found.entries, "signed": found.signed, "root": found.root.hex()})
        return
    answer(f"{found.entries} entries chain, {found.signed} of them under the signed checkpoint")
    answer(f"root {found.root.hex()}")


@command.command()
@root_option
@json_option
@click.argument("user")
def rotation(root: Path, as_json: bool, user: str) -> None:
    """Show every step of USER's rotations, and whether the last is finished.

    The signed statements are in the entries: `sfsd audit log --json --user USER`.
    """
    steps = [entry for entry, _ in _entries(root) if entry.owner == user and entry.op in _STEPS]
    if not steps:
        raise CommandError(
            f"no enrolled user {user} in the log", "`sfsd user list` shows all users", exit_code=3
        )
    wrapped = 0
    for entry in steps:
        if entry.op == "rewrap":
            wrapped += int(entry.detail.get("count", 0))
            continue
        facts: dict[str, object] = {
            key: entry.detail[key] for key in _STEP_FACTS if key in entry.detail
        }
        if entry.op == "rotate-finish":
            facts["wrapped"], wrapped = wrapped, 0
        if as_json:
            answer_json({"seq": entry.seq, "time": entry.time, "op": entry.op, **facts})
        else:
            said = " ".join(f"{key}={json.dumps(value)}" for key, value in facts.items())
            answer(f"{entry.seq:>8} {entry.time} {entry.op:<16} {said}".rstrip())
    begun = [entry.op for entry in steps if entry.op in ("rotate-begin", "rotate-finish")]
    if begun and begun[-1] == "rotate-begin" and not as_json:
        answer(f"not finished: {wrapped} versions wrapped so far")


def _entries(root: Path, *, follow: bool = False) -> Iterator[tuple[LogEntry, bytes]]:
    """Every entry and its line."""
    for seq, line in enumerate(complete_lines(root, follow=follow)):
        try:
            yield auditlog.parse(line, seq=seq), line
        except LogError as exc:
            raise JournalDamagedError.from_log_error(exc) from exc
