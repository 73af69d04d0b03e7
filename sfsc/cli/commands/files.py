"""`sfsc ls`, `stat`, `rm`, `mv` and `history`: what is stored, and its versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from protocol.codec.terminal_text import counted, human_size, printable
from protocol.codec.values import Mutable
from sfsc.cli import terminal
from sfsc.cli.commands import Context, check_is_no_folder, folder_hint, name_table
from sfsc.cli.commands.sharing import list_inbox, show_inbox
from sfsc.cli.commands.trash import show_deleted
from sfsc.cli.owners import own_name, split_owner
from sfsc.cli.suggestions import any_names, own_names, past_names
from sfsc.errors import NetworkError, NotFound, SfscError, UsageError

if TYPE_CHECKING:
    from sfsc.files.history import Revision
    from sfsc.files.inbox import Shared
    from sfsc.session.pipeline import Skip
    from sfsc.store import Store
    from sfsc.trust.file_records import Entry


@click.command()
@click.argument("prefix", default="", shell_complete=any_names)
@click.option("-l", "--long", is_flag=True, help="Show version, size and time too.")
@click.option("-R", "--recursive", is_flag=True, help="List the files in folders too.")
@click.option("--shared", is_flag=True, help="List what others share with you, as OWNER:NAME.")
@click.option("--deleted", is_flag=True, help="List deleted files, also those in folders.")
@click.pass_obj
def ls(
    context: Context, prefix: str, *, long: bool, recursive: bool, shared: bool, deleted: bool
) -> None:
    """List your files whose names start with PREFIX, by name; without PREFIX, all.

    A folder is one line that ends with a slash; `sfsc ls FOLDER/` lists what is in it, and ends
    with exit code 3 if there is no such folder. With -R only empty folders have a line. Files that
    the server has damaged or lost are named on stderr, and the exit code is 5.

    OWNER:PREFIX lists what OWNER shares with you, as --shared does for everybody.

    --deleted lists what `sfsc restore` can bring back; with -l, the last version, its size, and
    when it was deleted.

    Example: sfsc ls -l photos/
    """
    if deleted and shared:
        raise UsageError("--deleted and --shared exclude each other", "use one of them")
    if deleted:
        show_deleted(context, prefix, long=long)
        return
    if shared:
        show_inbox(context, prefix, long=long)
        return
    empty = True
    with context.connect() as store:
        owner, prefix = split_owner(store, prefix)
        if owner is not None:
            list_inbox(store, context, f"{owner}:{prefix}", long=long)
            return
        unreadable = terminal.Failures()
        found = store.ls(prefix, skip=unreadable)
        with name_table(context, "modified", long=long) as rows:
            for item in found if recursive else _level(found, prefix):
                empty = False
                if item.name == prefix and prefix.endswith("/") and not recursive:
                    continue  # the empty folder that is listed
                if not long:
                    rows.add(item, item.name)
                    continue
                version, target = None, None
                if not isinstance(item, _Folder):
                    version, target = item.version, item.target
                name = item.name if target is None else f"{item.name} -> {target}"
                rows.add(item, version, human_size(item.size), context.time(item.mtime), name)
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
@click.argument("name", shell_complete=any_names)
@click.pass_obj
def stat(context: Context, name: str) -> None:
    """Show the version, sizes, times, id and readers of NAME, all verified. OWNER:NAME is a file
    that OWNER shares with you.

    Example: sfsc stat report.pdf
    """
    check_is_no_folder([name])
    with context.connect() as store, folder_hint(store, name):
        owner, name = split_owner(store, name)
        if owner is not None:
            _show_shared_file(store.stat_shared(owner, name), context)
            return
        entry, readers = store.stat(name), store.readers(name)
    shared = [{"user": one.user, "expires": one.expires} for one in readers]
    context.answer(
        {**terminal.fields_of(entry), "readers": shared},
        f"name        {printable(entry.name)}",
        f"version     {entry.version} (revision {entry.revision})",
        f"size        {counted(entry.size, 'byte')}, {entry.ciphertext_size} encrypted",
        f"modified    {context.time(entry.mtime)}",
        f"stored      {context.time(entry.created)}",
        f"file id     {entry.file_id}",
        *(f"shared      with {one.user}{context.until(one.expires)}" for one in readers),
    )


def _show_shared_file(one: Shared, context: Context) -> None:
    entry = one.entry
    shown = {"owner": one.owner, "expires": one.expires, "verified": one.verified}
    unverified = "" if one.verified else ", unverified"
    context.answer(
        {**shown, **terminal.fields_of(entry)},
        f"name        {one.owner}:{printable(entry.name)}",
        f"version     {entry.version} (revision {entry.revision})",
        f"size        {counted(entry.size, 'byte')}, {entry.ciphertext_size} encrypted",
        f"modified    {context.time(entry.mtime)}",
        f"stored      {context.time(entry.created)}",
        f"file id     {entry.file_id}",
        f"shared      by {one.owner}{unverified}{context.until(one.expires)}",
    )


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=own_names)
@click.option(
    "-r", "--recursive", is_flag=True, help="Delete all files in the folder NAME (`/`: all)."
)
@click.option("--purge", is_flag=True, help="Also remove the content of every version permanently.")
@click.option(
    "--damaged",
    is_flag=True,
    help="With --purge: remove only what is damaged on the server; NAME may be a file id.",
)
@click.option("--yes", is_flag=True, help="Do not ask before everything is deleted.")
@click.pass_obj
def rm(
    context: Context,
    names: tuple[str, ...],
    *,
    recursive: bool,
    purge: bool,
    damaged: bool,
    yes: bool,
) -> None:
    """Delete each NAME. A signed record of the deletion stays; the versions stay as trash.

    A NAME that fails is reported, the others are deleted, and the exit code is that of the failure.

    With --purge the content of all versions is removed too, even if NAME was deleted before. Only
    the record that the file existed stays.

    `sfsc rm -r /` deletes everything. It asks first; without a terminal it needs --yes.

    With --purge --damaged only the versions are removed whose bytes the server has lost. If that is
    the current version, NAME is deleted; `sfsc restore` brings an older version back. Ask the
    operator first whether a backup has them: they cannot be restored afterwards.

    Example: sfsc rm notes.txt
    """
    if damaged and (recursive or not purge):
        raise UsageError("--damaged needs --purge, and excludes -r", "see `sfsc rm --help`")
    if not recursive:
        check_is_no_folder(names)
    elif "" in [name.strip("/") for name in names]:
        more = " and permanently remove the content of all versions" if purge else ""
        terminal.require_yes(f"Delete every file{more}?", yes=yes)
    # A damaged file must not start a rotation that it may hinder.
    with context.connect(auto_rotate=None if not damaged else False) as store:
        names = tuple(own_name(store, name) for name in names)
        failures = terminal.Failures()
        if damaged:
            _give_up_damaged(store, names, failures, context)
        elif recursive:
            for name in names:
                with failures.of_one(name, names):
                    _remove_folder(store, name, failures, context, purge=purge)
        elif len(names) == 1:
            with folder_hint(store, names[0]):
                _remove(store, names, None, context, purge=purge)
        else:
            _remove(store, names, failures, context, purge=purge)
        failures.check()


def _give_up_damaged(
    store: Store, names: tuple[str, ...], failures: terminal.Failures, context: Context
) -> None:
    for name in names:
        try:
            removed = store.give_up_damaged(name)
        except NetworkError:
            raise
        except SfscError as exc:
            if len(names) == 1:
                raise
            failures(name, exc)
            continue
        which = ", ".join(map(str, removed))
        context.confirm(
            {"name": name, "purged": removed},
            f"removed damaged content of {printable(name)}: version {which}",
        )


def _remove_folder(
    store: Store, name: str, failures: terminal.Failures, context: Context, *, purge: bool
) -> None:
    if purge:
        for one in store.purge_tree(name, skip=failures):
            _show_removed(one.name, one.versions, context)
    else:
        for entry in store.rm_tree(name, skip=failures):
            _show_removed(entry.name, None, context)


def _remove(
    store: Store, names: tuple[str, ...], skip: Skip | None, context: Context, *, purge: bool
) -> None:
    if purge:
        for one in store.purge_many(names, skip=skip):
            _show_removed(one.name, one.versions, context)
    else:
        for name in store.rm_many(names, skip=skip):
            _show_removed(name, None, context)


def _show_removed(name: str, purged: tuple[int, ...] | None, context: Context) -> None:
    """Report a deleted file, and the versions whose content was removed."""
    text = f"deleted {printable(name)}"
    shown: dict[str, object] = {"name": name, "deleted": True}
    if purged is not None:
        text += f" and the content of {counted(len(purged), 'version')}"
        shown["purged"] = list(purged)
    context.confirm(shown, text)


@click.command()
@click.argument(
    "names", nargs=-1, required=True, metavar="NAME... NEW_NAME", shell_complete=own_names
)
@click.pass_obj
def mv(context: Context, names: tuple[str, ...]) -> None:
    """Rename the file or folder NAME to NEW_NAME. No content is sent again.

    If NEW_NAME is a folder or ends with a slash, or there are several NAMEs, they are moved into
    it. A slash at the end of NAME says that the folder is meant; it must be there if a file and a
    folder have this name.

    If the new name of a file exists, that file is not renamed and the exit code is 6. Older
    versions stay under the old name: see `sfsc history NAME`.

    Example: sfsc mv draft.txt report.txt
    """
    *sources, target = names
    if not sources:
        raise UsageError("NEW_NAME is missing", "see `sfsc mv --help`")
    failures = terminal.Failures()
    with context.connect() as store:
        *sources, target = (own_name(store, name) for name in names)
        for one in store.mv_many(sources, target, skip=failures):
            shown = {**terminal.fields_of(one.entry), "before": one.before}
            before, after = printable(one.before), printable(one.entry.name)
            context.confirm(shown, f"renamed {before} to {after}")
    failures.check()


@click.command()
@click.argument("name", shell_complete=past_names)
@click.pass_obj
def history(context: Context, name: str) -> None:
    """Show every record of NAME, deleted or not, oldest first. All of them are verified.
    OWNER:NAME is a file that OWNER shares with you.

    `sfsc get NAME --version N` fetches a version, `sfsc restore` makes it the current one, `sfsc
    prune` removes the content of old ones. What a file held before it was renamed is in the history
    of its old name. If the server has damaged the newest version, the records come from the log,
    and the exit code is 5.

    Example: sfsc history report.pdf
    """
    check_is_no_folder([name])
    with context.connect() as store:
        owner, name = split_owner(store, name)
        if owner is not None:
            _show_history(store.shared_history(owner, name), context)
            return
        damaged = terminal.Failures()
        _show_history(store.history(name, skip=damaged), context)
        damaged.check()


def _show_history(found: Iterable[Revision], context: Context) -> None:
    headers = ("revision", "time", "change", "version", "size", "about")
    with context.table(*headers, right=("revision", "version", "size")) as rows:
        for one in found:
            # A file that was moved to one of which only the id is known.
            change = one.op if one.moved is None else "moved"
            about = [] if one.restored is None else [f"from version {one.restored}"]
            if one.version is not None and not one.kept:
                about.append("content removed")
            if one.purged:
                plural = "s" * (len(one.purged) != 1)
                about.append(f"version{plural} {', '.join(map(str, one.purged))}")
            if one.voided:
                about.append("by a stolen key, undone")
            size = None if one.size is None else human_size(one.size)
            when = context.time(one.created)
            rows.add(one, one.revision, when, change, one.version, size, "; ".join(about))
