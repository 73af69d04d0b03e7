"""`sfsc restore`, `prune`, `purge` and `du`: old versions and trash, of one file or of many."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from protocol.codec.quantities import parse_count
from protocol.codec.terminal_text import counted, human_size, printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context, check_is_no_folder, folder_hint, name_table
from sfsc.cli.folder_options import Quantity
from sfsc.cli.owners import own_name, split_owner
from sfsc.cli.suggestions import any_names, own_names, past_names
from sfsc.cli.times import before_age, parse_moment
from sfsc.errors import UsageError

if TYPE_CHECKING:
    from sfsc.files.purge import Purged
    from sfsc.files.restore import Restored
    from sfsc.trust.file_records import Entry


def show_deleted(context: Context, prefix: str, *, long: bool) -> None:
    """List the deleted files whose names start with `prefix`."""
    unreadable = terminal.Failures()
    with context.connect() as store, name_table(context, "deleted", long=long) as rows:
        prefix = own_name(store, prefix)
        for one in store.trash(prefix, skip=unreadable):
            about = (one.version, human_size(one.size), context.time(one.deleted))
            rows.add(one, *(about if long else ()), one.name)
    unreadable.check()


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=past_names)
@click.option("-r", "--recursive", is_flag=True, help="Restore the folder NAME (`/`: everything).")
@click.option(
    "--at",
    metavar="TIME",
    help="With -r: the folder as it was then: 12h, 30d or 4w ago, a day, or 2027-01-31T12:00:00Z.",
)
@click.option(
    "--version",
    type=click.IntRange(min=1),
    help="The version of one NAME to restore; by default the last one before the deletion.",
)
@click.pass_obj
def restore(
    context: Context,
    names: tuple[str, ...],
    *,
    recursive: bool,
    at: str | None,
    version: int | None,
) -> None:
    """Make an old content of each NAME its newest version. Nothing is sent or encrypted again.

    Without --version a deleted NAME gets back what it held last. `sfsc ls --deleted` lists what
    was deleted.

    With -r every deleted file in the folder NAME is brought back. With -r --at TIME the folder
    becomes what it was then: changed files get the version of that time, files that did not exist
    yet are deleted. What is there now stays as older versions and trash. A day means its end
    (UTC). Times are those of the machines that stored the versions: see `sfsc history`.

    A NAME that fails is reported, the others are restored.

    Example: sfsc restore -r photos --at 2d
    """
    if at is not None and not recursive:
        raise UsageError("--at needs -r", "`sfsc restore NAME --version N` restores one file")
    if version is not None and (recursive or len(names) > 1):
        raise UsageError("--version is for one file", "restore the files one by one")
    when = None if at is None else parse_moment(at, time.time())
    if not recursive:
        check_is_no_folder(names)
    failures = terminal.Failures()
    with context.connect() as store:
        names = tuple(own_name(store, name) for name in names)
        if recursive:
            for name in names:
                with failures.of_one(name, names):
                    found = store.restore_tree(name, at=when, skip=failures)
                    if not _show_restored(found, context):
                        terminal.note(f"nothing to restore in {printable(name)}")
        elif len(names) > 1:
            _show_restored(store.restore_many(names, skip=failures), context)
        else:
            entry = store.restore(names[0], version=version)
            _show_entry(entry, context)
    failures.check()


def _show_restored(found: Iterable[Restored], context: Context) -> int:
    count = 0
    for one in found:
        count += 1
        size = human_size(one.size)
        what = f"version {one.version}, {size}" if one.version else "deleted: it was stored later"
        context.confirm(one, f"{printable(one.name)}  {what}")
    return count


def _show_entry(entry: Entry, context: Context) -> None:
    shown = {**terminal.fields_of(entry), "status": "restored"}
    size = human_size(entry.size)
    context.confirm(shown, f"{printable(entry.name)}  version {entry.version}, {size}")


@click.command()
@click.argument("prefix", metavar="NAME", shell_complete=own_names)
@click.option(
    "--keep",
    type=Quantity(parse_count, least=1),
    required=True,
    metavar="N",
    help="Number of versions to keep of each file.",
)
@click.option("-r", "--recursive", is_flag=True, help="All files in the folder NAME (`/`: all).")
@click.pass_obj
def prune(context: Context, prefix: str, *, keep: int, recursive: bool) -> None:
    """Permanently remove the content of all but the newest N versions of NAME.

    With -r of every file in the folder NAME, deleted or not. The current version always stays; so
    does the record of every version.

    Example: sfsc prune -r photos --keep 3
    """
    if not recursive:
        check_is_no_folder([prefix])
    failures = terminal.Failures()
    with context.connect() as store:
        prefix = own_name(store, prefix)
        if recursive:
            _show_purged(store.prune_tree(prefix, keep=keep, skip=failures), context)
        else:
            with folder_hint(store, prefix):
                versions = store.prune(prefix, keep=keep)
            show_pruned(prefix, versions, context)
    failures.check()


def _show_purged(found: Iterable[Purged], context: Context) -> None:
    """Report files of which contents were removed, and how many."""
    files = versions = 0
    for one in found:
        show_pruned(one.name, one.versions, context)
        files += 1
        versions += len(one.versions)
    what = f"{counted(versions, 'version')} of {counted(files, 'file')}"
    terminal.note(f"removed the content of {what}")


def show_pruned(name: str, versions: Sequence[int], context: Context) -> None:
    """Report a file of which the content of versions was removed."""
    shown = {"name": name, "purged": list(versions)}
    what = counted(len(versions), "version")
    context.confirm(shown, f"removed the content of {what} of {printable(name)}")


@click.command()
@click.option("--trash", is_flag=True, help="Remove the deleted files. Needed.")
@click.option("--older-than", metavar="AGE", help="Only files deleted before: 12h, 30d or 4w ago.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def purge(context: Context, *, trash: bool, older_than: str | None, yes: bool) -> None:
    """Permanently remove the content of all deleted files. They cannot be restored afterwards.

    `sfsc ls --deleted` lists them. The command says how many there are, and asks; without a
    terminal it needs --yes. `sfsc rm --purge NAME` removes one file, `sfsc prune` old versions.

    Example: sfsc purge --trash --older-than 30d
    """
    if not trash:
        raise UsageError("say what to purge: --trash", "for one file use `sfsc rm --purge NAME`")
    before = None if older_than is None else before_age(older_than, time.time())
    terminal.require_terminal(yes=yes)
    failures = terminal.Failures()
    with context.connect() as store:
        found = store.trash(skip=failures)
        found = [one for one in found if before is None or one.deleted < before]
        if not found:
            terminal.note("the trash is empty" if before is None else "nothing is that old")
        else:
            size = human_size(sum(one.size for one in found))
            what = f"{counted(len(found), 'deleted file')}, {size} in their last versions"
            terminal.require_yes(f"Permanently remove {what}?", yes=yes)
            _show_purged(store.purge_trash(before=before, skip=failures), context)
    failures.check()


@click.command()
@click.argument("prefix", default="", shell_complete=any_names)
@click.pass_obj
def du(context: Context, prefix: str) -> None:
    """Show the space that your files take: current versions, older versions, and trash.

    PREFIX is a file, or a folder with everything in it; without it, all files count. Sizes are
    those of the contents; --json shows them in bytes. A content that several versions share counts
    once. What the server stores beside each version is in `sfsc status`.

    OWNER:PREFIX counts what OWNER shares with you, and only the current versions.

    Example: sfsc du photos
    """
    failures = terminal.Failures()
    with context.connect() as store:
        owner, name = split_owner(store, prefix)
        space = store.du(name, owner=owner, skip=failures)
    shown = {"prefix": prefix, **terminal.fields_of(space), "total": space.total}
    if context.json:
        terminal.answer_json(shown)
    else:
        with context.table("space", "size", "files", right=("size", "files")) as rows:
            rows.add({}, "live", human_size(space.live), space.files)
            rows.add({}, "versions", human_size(space.versions), None)
            rows.add({}, "trash", human_size(space.trash), space.deleted)
            rows.add({}, "total", human_size(space.total), None)
    failures.check()
