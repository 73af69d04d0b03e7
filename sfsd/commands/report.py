"""`sfsd report`: write a page that shows the log and the store."""

from __future__ import annotations

import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from protocol.codec.terminal_text import counted
from protocol.records.records import ServerStatement, server_id
from sfsd import server_keys
from sfsd.commands import answer, answer_json, json_option, root_option, utc_option
from sfsd.commands.entry_times import period, since_option, until_option
from sfsd.errors import CheckpointDamagedError, CommandError, ConfigError, JournalDamagedError
from sfsd.fs.files import Files
from sfsd.log.journal import log_warnings
from sfsd.log.query import EntryFilter, read_entries
from sfsd.log.verify import verify_log

if TYPE_CHECKING:
    from sfsd.report.page import Verdict
    from sfsd.report.storage import UserStorage
    from sfsd.report.summary import LogSummary

STDOUT = Path("-")
_MAX_ROWS = 50_000
"""Most entries on a page. A browser needs about a second for as many."""


@click.command()
@root_option
@json_option
@click.option(
    "--html",
    "target",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="File to write, which is replaced if it exists; - is stdout.",
)
@click.option(
    "--rows",
    default=2000,
    show_default=True,
    type=click.IntRange(0, _MAX_ROWS),
    help="Entries of the log that the page lists, the newest ones.",
)
@since_option
@until_option
@utc_option
def command(
    root: Path,
    as_json: bool,
    target: Path,
    rows: int,
    since: str | None,
    until: str | None,
    utc: bool,
) -> None:
    """Write a page for a browser that shows the log and the store.

    The page says whether the log is intact, and shows activity over time, by user and by operation,
    refused attempts, rotations, storage, and the newest entries with a filter. It is one file that
    needs no network. The whole log is verified while it is read, with --since and --until too.
    Works on a copy of a root that cannot be written, and beside a daemon.

    Only you can read the file (mode 0600). The exit code is 5 if the log is damaged; the page is
    written all the same, and says so.

    Example: sfsd report --html report.html --since 30d
    """
    from sfsd.report.page import Facts, render
    from sfsd.report.summary import LogSummary

    first, last = period(since, until, utc=utc)
    made = time.time()
    offset = 0 if utc else _zone_offset()
    summary = LogSummary(rows, offset, EntryFilter(since=first, until=last).matches)
    statement = ServerStatement.parse(server_keys.read_server_statement(root / "keys")[0])
    verdict = _verify(root, summary)
    storage, problem = _read_storage(root)
    facts = Facts(
        root=str(root.resolve()),
        server_id=server_id(statement.server_pub).hex(),
        made=int(made),
        offset=offset,
        local=not utc,
        verdict=verdict,
        summary=summary,
        period=" ".join(
            f"{word} {text}" for word, text in (("since", since), ("until", until)) if text
        ),
        storage=storage,
        storage_problem=problem,
        disk_free=_disk_free(root),
        warnings=tuple(log_warnings(root / "logs")),
    )
    page = render(facts)
    if target == STDOUT:
        click.echo(page, nl=False)
    else:
        _write(target, page)
        _report(target, verdict, as_json=as_json)
    if verdict.damage:
        raise CommandError(
            f"the log is damaged: {verdict.damage}", verdict.hint, exit_code=CommandError.DAMAGED
        )


def _write(target: Path, page: str) -> None:
    """Write the page to a file that only this account can read. Raises `CommandError`."""
    try:
        Files().replace_durable(target, page.encode())
    except OSError as exc:
        raise CommandError(
            f"cannot write {target.absolute()}: {exc.strerror}",
            "name a file in a folder that this account can write, or use `--html - > FILE`",
            exit_code=CommandError.exit_code,
        ) from exc


def _report(target: Path, verdict: Verdict, *, as_json: bool) -> None:
    if as_json:
        answer_json(
            {
                "file": str(target.resolve()),
                "entries": verdict.entries,
                "intact": not verdict.damage,
                "first_wrong": verdict.first_wrong,
            }
        )
    else:
        answer(f"{target.resolve()}: {counted(verdict.entries, 'entry', 'entries')}")


def _zone_offset() -> int:
    offset = datetime.now().astimezone().utcoffset()
    return 0 if offset is None else int(offset.total_seconds())


def _verify(root: Path, summary: LogSummary) -> Verdict:
    """Verify the log, and add up its entries on the way. Raises `ConfigError` if it cannot be
    read."""
    from sfsd.report.page import Verdict

    try:
        try:
            found = verify_log(root, summary.add)
        except CheckpointDamagedError:
            # Nothing says what the log should be. Its entries may still fit together.
            for entry, _ in read_entries(root):
                summary.add(entry)
            raise
    except JournalDamagedError as exc:
        return Verdict(
            entries=summary.entries, damage=exc.cause, hint=exc.hint or "", first_wrong=exc.seq
        )
    return Verdict(entries=found.entries, signed=found.signed, root=found.root.hex())


def _read_storage(root: Path) -> tuple[tuple[UserStorage, ...], str]:
    """Return what the users store, or why that is unknown."""
    from sfsd.report.storage import storage_by_user

    try:
        return tuple(storage_by_user(root)), ""
    except ConfigError as exc:
        return (), exc.cause


def _disk_free(root: Path) -> int | None:
    try:
        return shutil.disk_usage(root / "store").free
    except OSError:
        return None
