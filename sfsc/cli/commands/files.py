"""`sfsc ls`, `stat`, `rm`, `mv`, `history` and `restore`: what is stored, and its versions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from protocol.codec.terminal_text import counted, human_time, printable
from protocol.codec.values import Mutable
from sfsc.cli import terminal
from sfsc.cli.commands import Context, folder_hint
from sfsc.cli.commands.sharing import show_inbox
from sfsc.errors import NotFound, UsageError

if TYPE_CHECKING:
    from sfsc.files.history import Revision
    from sfsc.trust.file_records import Entry


@click.command()
@click.argument("prefix", default="")
@click.option("-l", "--long", is_flag=True, help="Show version, size and time too.")
@click.option("-R", "--recursive", is_flag=True, help="List the files in folders too.")
@click.option("--shared", is_flag=True, help="List what others share with you, as OWNER:NAME.")
@click.pass_obj
def ls(context: Context, prefix: str, *, long: bool, recursive: bool, shared: bool) -> None:
    """List your files whose names start with PREFIX, by name; without PREFIX, all.

    A folder is one line that ends with a slash; `sfsc ls FOLDER/` lists what is in it, and ends
    with exit code 3 if there is no such folder. With -R only empty folders have a line. Files that
    the server has damaged or lost are named on stderr, and the exit code is 5.

    Example: sfsc ls -l photos/
    """
    if shared:
        show_inbox(context, prefix, long=long)
        return
    empty = True
    with context.connect() as store:
        unreadable = terminal.Failures()
        found = store.ls(prefix, skip=unreadable)
        for item in found if recursive else _level(found, prefix):
            empty = False
            if item.name == prefix and prefix.endswith("/") and not recursive:
                continue  # the empty folder that is listed
            line = printable(item.name)
            if long:
                version = ""
                if not isinstance(item, _Folder):
                    version = str(item.version)
                    line += "" if item.target is None else f" -> {printable(item.target)}"
                size, modified = terminal.human_size(item.size), human_time(item.mtime)
                line = f"{version:>4}  {size:>11}  {modified}  {line}"
            context.answer(item, line)
        unreadable.check()
    if empty and prefix.endswith("/"):
        raise NotFound(f"there is no file in {prefix}", "run `sfsc ls` to see what is stored")


class _Folder(Mutable):
    """Summary of the files and links in a folder: total `size` in bytes, newest `mtime` in Unix
    seconds."""

    name: str
    files: int = 0
    size: int = 0
    mtime: int = 0


def _level(entries: Iterable[Entry], prefix: str) -> Iterator[Entry | _Folder]:
    """Yield, by name, the files with no slash after the prefix, and a folder for the others."""
    folder: _Folder | None = None
    for entry in entries:
        inside = entry.name.find("/", len(prefix))
        name = entry.name[: inside + 1] if inside >= 0 else None
        if folder is not None and name != folder.name:
            yield folder
            folder = None
        if name is None:
            yield entry
        else:
            folder = folder or _Folder(name)
            folder.files += entry.kind != "folder"
            folder.size += entry.size
            folder.mtime = max(folder.mtime, entry.mtime)
    if folder is not None:
        yield folder


@click.command()
@click.argument("name")
@click.pass_obj
def stat(context: Context, name: str) -> None:
    """Show the version, sizes, times, id and readers of NAME, all verified.

    Example: sfsc stat report.pdf
    """
    with context.connect() as store, folder_hint(store, name):
        entry, readers = store.stat(name), store.readers(name)
    shared = [{"user": one.user, "expires": one.expires} for one in readers]
    context.answer(
        {**terminal.fields_of(entry), "readers": shared},
        f"name        {printable(entry.name)}",
        f"version     {entry.version} (revision {entry.revision})",
        f"size        {counted(entry.size, 'byte')}, {entry.ciphertext_size} encrypted",
        f"modified    {human_time(entry.mtime)}",
        f"stored      {human_time(entry.created)}",
        f"file id     {entry.file_id}",
        *(f"shared      with {one.user}{terminal.until(one.expires)}" for one in readers),
    )


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-r", "--recursive", is_flag=True, help="Delete all files in the folder NAME.")
@click.option("--purge", is_flag=True, help="Also remove the content of every version permanently.")
@click.option(
    "--damaged",
    is_flag=True,
    help="With --purge: remove only what is damaged on the server; NAME may be a file id.",
)
@click.pass_obj
def rm(
    context: Context, names: tuple[str, ...], *, recursive: bool, purge: bool, damaged: bool
) -> None:
    """Delete each NAME. A signed record of the deletion stays; the versions stay as trash.

    With --purge the content of all versions is removed too, even if NAME was deleted before. Only
    the record that the file existed stays.

    With --purge --damaged only the versions are removed whose bytes the server has lost. If that is
    the current version, NAME is deleted; `sfsc restore` brings an older version back. Ask the
    operator first whether a backup has them: they cannot be restored afterwards.

    Example: sfsc rm notes.txt
    """
    if recursive and purge:
        raise UsageError("-r and --purge exclude each other", "purge the files one by one")
    if damaged and not purge:
        raise UsageError("--damaged needs --purge", "run `sfsc rm --purge --damaged NAME`")
    # A damaged file must not start a rotation that it may hinder.
    with context.connect(auto_rotate=None if not damaged else False) as store:
        unreadable = terminal.Failures()
        for name in names:
            if damaged:
                removed = store.give_up_damaged(name)
                which = ", ".join(map(str, removed))
                context.confirm(
                    {"name": name, "purged": removed},
                    f"removed damaged content of {printable(name)}: version {which}",
                )
                continue
            if purge:
                with contextlib.suppress(NotFound):  # already deleted; if never stored, purge fails
                    store.rm(name)
                with folder_hint(store, name):
                    purged = store.purge(name)
                text = f"deleted {printable(name)} and the content of"
                shown = {"name": name, "deleted": True, "purged": purged}
                context.confirm(shown, f"{text} {counted(len(purged), 'version')}")
                continue
            if recursive:
                tree = store.rm_tree(name, skip=unreadable)
            else:
                with folder_hint(store, name):
                    tree = iter((store.rm(name),))
            for entry in tree:
                shown = {"name": entry.name, "deleted": True}
                context.confirm(shown, f"deleted {printable(entry.name)}")
        unreadable.check()


@click.command()
@click.argument("name")
@click.argument("new_name")
@click.pass_obj
def mv(context: Context, name: str, new_name: str) -> None:
    """Rename the file NAME to NEW_NAME. No content is sent again.

    If NEW_NAME exists, nothing is changed and the exit code is 6. Older versions stay under the old
    name: see `sfsc history NAME`.

    Example: sfsc mv draft.txt report.txt
    """
    with context.connect() as store, folder_hint(store, name):
        entry = store.mv(name, new_name)
    context.confirm(entry, f"renamed {printable(name)} to {printable(entry.name)}")


@click.command()
@click.argument("name")
@click.option(
    "--prune",
    type=click.IntRange(min=1),
    metavar="KEEP",
    help="First remove the content of all but the newest KEEP versions, permanently.",
)
@click.pass_obj
def history(context: Context, name: str, prune: int | None) -> None:
    """Show every record of NAME, deleted or not, oldest first. All of them are verified.

    `sfsc get NAME --version N` fetches a version, `sfsc restore` makes it the current one. What a
    file held before it was renamed is in the history of its old name. If the server has damaged the
    newest version, the records come from the log, and the exit code is 5.

    Example: sfsc history report.pdf
    """
    with context.connect() as store:
        if prune is not None:
            removed = len(store.prune(name, keep=prune))
            terminal.say(f"removed the content of {counted(removed, 'version')}")
        damaged = terminal.Failures()
        for one in store.history(name, skip=damaged):
            context.answer(one, _revision_line(one))
        damaged.check()


def _revision_line(one: Revision) -> str:
    when = human_time(one.created)
    undone = "  (by a stolen key, undone)" if one.voided else ""
    if one.version is None or one.size is None:
        plural = "s" * (len(one.purged) != 1)
        about = f"version{plural} {', '.join(map(str, one.purged))}" if one.purged else ""
        op = one.op if one.moved is None else "moved"  # to a file of which only the id is known
        return f"{one.revision:>4}  {when}  {op:<8} {about}".rstrip() + undone
    origin = "" if one.restored is None else f"  from version {one.restored}"
    gone = "" if one.kept else "  (content removed)"
    about = f"version {one.version}, {terminal.human_size(one.size)}{origin}{gone}{undone}"
    return f"{one.revision:>4}  {when}  {one.op:<8} {about}"


@click.command()
@click.argument("name")
@click.option(
    "--version",
    type=click.IntRange(min=1),
    help="The version to restore; by default the last one before the deletion.",
)
@click.pass_obj
def restore(context: Context, name: str, version: int | None) -> None:
    """Make an old content of NAME its newest version. Nothing is sent or encrypted again.

    Without --version a deleted NAME gets back what it held last.

    Example: sfsc restore report.pdf --version 1
    """
    with context.connect() as store:
        entry = store.restore(name, version=version)
    size = terminal.human_size(entry.size)
    context.answer(entry, f"{printable(entry.name)}  version {entry.version}, {size}")
