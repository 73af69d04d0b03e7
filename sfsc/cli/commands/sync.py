"""`sfsc sync` and `watch`: a folder of this machine and one of the store are made the same."""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

import sfsc
from protocol.codec.terminal_text import printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.cli.folder_options import (
    dry_run_option,
    exclude_options,
    limit_rate_option,
    patterns,
)
from sfsc.cli.outcomes import Outcomes
from sfsc.cli.owners import own_name, own_name_of, split_owner
from sfsc.cli.suggestions import by_direction, own_names, paths
from sfsc.errors import SfscError, UsageError
from sfsc.transfer.status import CONFLICT, DELETED, FETCHED, SKIPPED, STORED, UNCHANGED

if TYPE_CHECKING:
    from sfsc.files.sync import Synced
    from sfsc.store import Store

TOTALS = (STORED, FETCHED, DELETED, CONFLICT, UNCHANGED, SKIPPED)


@click.command()
@click.argument("source", metavar="DIR", shell_complete=by_direction(down=own_names, up=paths))
@click.argument(
    "target",
    required=False,
    metavar="[PREFIX]",
    shell_complete=by_direction(down=paths, up=own_names),
)
@click.option("--down", is_flag=True, help="Copy from PREFIX to DIR: `sync --down PREFIX DIR`.")
@click.option("--delete", is_flag=True, help="Delete in the target what was deleted in the source.")
@click.option("--checksum", is_flag=True, help="Compare contents, not times.")
@click.option("--links", is_flag=True, help="With --down: make the symbolic links that are stored.")
@exclude_options
@dry_run_option
@limit_rate_option
@click.pass_obj
def sync(
    context: Context,
    source: str,
    target: str | None,
    *,
    down: bool,
    delete: bool,
    checksum: bool,
    links: bool,
    exclude: tuple[str, ...],
    exclude_from: tuple[Path, ...],
    dry_run: bool,
    limit_rate: int | None,
) -> None:
    """Make PREFIX in the store hold what the folder DIR holds: DIR/x is PREFIX/x. PREFIX is the
    path of DIR by default, and `/` stands for the whole store. With --down the arguments are PREFIX
    DIR, and DIR is made to hold what PREFIX holds.

    Only what has changed is transferred. What both sides held last is remembered in the keyring's
    folder, nothing in DIR. A file that has changed in the target only stays as it is; run the other
    direction to copy it. If a file has changed on both sides, the one of the target is renamed to
    `NAME (conflict DATE TIME)`, and the one of the source takes its name.

    What was deleted in the source stays in the target, unless --delete is given and it has not
    changed there. In the store it goes to the trash.

    Patterns of --exclude and of files named .sfsignore leave out files on both sides.

    Example: sfsc sync --delete photos
    """
    if down and target is None:
        raise click.UsageError("--down needs PREFIX and DIR.")
    prefix, folder = (source, target) if down else (target, source)
    outcomes = Outcomes()
    excluded = patterns(exclude, exclude_from)
    with context.connect(limit_rate=limit_rate) as store:
        prefix = None if prefix is None else _own_prefix(store, prefix, down=down)
        for done in store.sync(
            Path(folder or ""),
            prefix,
            down=down,
            delete=delete,
            dry_run=dry_run,
            checksum=checksum,
            links=links,
            exclude=excluded,
            skip=outcomes,
        ):
            show(done, context, outcomes, dry_run=dry_run)
    outcomes.show_totals(*TOTALS)
    outcomes.check()


def _own_prefix(store: Store, prefix: str, *, down: bool) -> str:
    """Return the name of a folder of our own. Raises `UsageError` for one of another user."""
    owner, _ = split_owner(store, prefix)
    if owner is not None and down:
        hint = f"`sfsc get -r {prefix} -o DIR` fetches it, and later what has changed"
        raise UsageError(f"{prefix} is a folder of {owner}", hint)
    return own_name(store, prefix)


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("prefix", required=False, metavar="[PREFIX]", shell_complete=own_names)
@click.option("--delete", is_flag=True, help="Delete in the store what is deleted in DIR.")
@click.option("--checksum", is_flag=True, help="Compare contents, not times.")
@exclude_options
@limit_rate_option
@click.pass_obj
def watch(
    context: Context,
    folder: Path,
    prefix: str | None,
    *,
    delete: bool,
    checksum: bool,
    exclude: tuple[str, ...],
    exclude_from: tuple[Path, ...],
    limit_rate: int | None,
) -> None:
    """Do what `sync DIR PREFIX` does, now and whenever something in DIR changes, until the command
    is interrupted.

    A lost connection or a server that restarts does not end it: it tries again, after 1 to 60
    seconds. Nor does a full quota. After an interruption run it again; it stores what has changed
    meanwhile.

    Example: sfsc watch --delete photos
    """
    excluded = patterns(exclude, exclude_from)
    outcomes = RepeatedOutcomes()
    asked = terminal.passphrase_source()
    passphrase = None if asked is None else functools.cache(asked)
    if prefix is not None:
        prefix = own_name_of(lambda: sfsc.whoami(context.home, passphrase=passphrase).user, prefix)
    work = sfsc.watch(
        folder,
        prefix,
        home=context.home,
        passphrase=passphrase,
        delete=delete,
        checksum=checksum,
        exclude=excluded,
        limit_rate=limit_rate,
        skip=outcomes,
        trouble=_tell_trouble,
    )
    with contextlib.closing(work):
        for done in work:
            show(done, context, outcomes)
            sys.stdout.flush()


def _tell_trouble(error: SfscError, seconds: float) -> None:
    terminal.warn(f"{error.cause}; trying again in {seconds:g} s")


class RepeatedOutcomes(Outcomes):
    """Outcomes of work that is done again and again: the same failure is reported once."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[tuple[str, str]] = set()

    def __call__(self, what: str, error: SfscError) -> None:
        if (what, error.cause) not in self._told:
            self._told.add((what, error.cause))
            super().__call__(what, error)


def show(done: Synced, context: Context, outcomes: Outcomes, *, dry_run: bool = False) -> None:
    """Write what became of a file; of an unchanged one only with --json."""
    outcomes.add(done.status)
    if context.json:
        fields = terminal.fields_of(done)
        terminal.answer_json({key: value for key, value in fields.items() if value is not None})
        return
    name = printable(done.name)
    would = "would be " if dry_run else ""
    tell = terminal.answer if dry_run else terminal.note
    if done.status in (STORED, FETCHED, DELETED):
        version = "" if dry_run or done.status == DELETED else f"  version {done.version}"
        tell(f"{would}{done.status}  {name}{version}")
    elif done.status == CONFLICT:
        kept = printable(done.conflict_name or "")
        tell(f"conflict  {name}; the other one {would or 'is '}kept as {kept}")
    elif done.status == SKIPPED:
        terminal.warn(f"it was left as it is: {done.cause or ''}", item=done.name)
