"""`sfsc put`, `get` and `cat`: encrypt and store files, fetch and decrypt them."""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from protocol.codec.names import fits_windows
from protocol.codec.terminal_text import counted, human_size, printable
from sfsc import local_files
from sfsc.cli import terminal
from sfsc.cli.commands import Context, check_is_no_folder, folder_hint
from sfsc.cli.commands.sharing import confirm_trust, trust_options
from sfsc.cli.folder_options import (
    check_folder_options,
    compare_options,
    dry_run_option,
    exclude_options,
    limit_rate_option,
    patterns,
)
from sfsc.cli.outcomes import Outcomes
from sfsc.cli.owners import own_name, split_owner
from sfsc.cli.suggestions import any_names, own_names, paths
from sfsc.errors import LocalError, NetworkError, SfscError, UsageError
from sfsc.local_files import check_new_file
from sfsc.transfer.status import FETCHED, SKIPPED, STORED, UNCHANGED

if TYPE_CHECKING:
    from sfsc.store import Store
    from sfsc.transfer.download import Got, Target
    from sfsc.transfer.upload import Put

_SHOWN_NAMES: Final = 5
"""Names that a warning lists."""


@click.command()
@click.argument("files", nargs=-1, metavar="FILE...", shell_complete=paths)
@click.option("-r", "--recursive", is_flag=True, help="Store folders too, with all their files.")
@click.option(
    "--name",
    shell_complete=own_names,
    help="Name in the store, for one FILE; required for `-` (stdin) and --command.",
)
@click.option(
    "--command",
    metavar="COMMAND",
    help="Store what COMMAND, a line for the shell, writes to its stdout, if it succeeds.",
)
@click.option(
    "--if-version",
    type=click.IntRange(min=0),
    metavar="N",
    help="Store one FILE only if its current version is N (0: no such file).",
)
@click.option(
    "--receipt",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Write the proof that one FILE is in the log (C2SP tlog-proof) to PATH.",
)
@click.option("--no-overwrite", is_flag=True, help="Store only under names that do not exist.")
@click.option(
    "--links/--no-links",
    default=True,
    help="With -r: store symbolic links as links (the default), or leave them out.",
)
@click.option(
    "--files-from",
    type=click.Path(allow_dash=True),
    metavar="FILE",
    help="Store the paths that FILE names too, one a line or each before a NUL; `-`: stdin.",
)
@click.option(
    "--pad/--no-pad",
    default=None,
    help="Hide the size of each file by up to 12 % of zero bytes, or not; the default is as in"
    " `sfsc settings`.",
)
@compare_options
@exclude_options
@dry_run_option
@limit_rate_option
@click.pass_obj
def put(
    context: Context,
    files: tuple[str, ...],
    *,
    recursive: bool,
    name: str | None,
    command: str | None,
    if_version: int | None,
    receipt: Path | None,
    no_overwrite: bool,
    links: bool,
    files_from: str | None,
    pad: bool | None,
    always: bool,
    checksum: bool,
    exclude: tuple[str, ...],
    exclude_from: tuple[Path, ...],
    dry_run: bool,
    limit_rate: int | None,
) -> None:
    """Encrypt each FILE and store it under its own path, or one FILE under --name.

    If the name exists, the file gets a new version. `-` reads stdin, of any length. A path that is
    absolute or leaves the current folder is stored under its last part. If --name ends with a
    slash, a file is stored in that folder, under its last part.

    If a crash or a lost network cuts the upload of a file of 8 MiB or more, the same command
    continues it within 24 hours, unless the file has changed.

    With -r, a FILE that is a folder is stored with everything in it, below its own path or --name:
    files, empty folders, symbolic links as links, and the modes and times of folders. Links in it
    are never followed; pipes and devices are left out. A file that cannot be read is reported, the
    others are stored, and the exit code is 1.

    With -r only files are stored that are new or have changed: whose size or time of the last
    change differs from what is stored, or with --checksum whose SHA-256 does. It is stored with
    each file of at most 64 MiB, and with --checksum also of larger ones. The last line counts
    stored, unchanged and skipped files; --json has a "status" for each. --dry-run stores nothing.

    Patterns of --exclude, and those in files named .sfsignore, are as in a .gitignore: they say
    what is left out of a folder, by its path below FILE. The .sfsignore files are stored.

    With --if-version or --no-overwrite, the command ends with exit code 6 at the first FILE whose
    name has another version. That FILE is not stored; the ones before it are.

    With --command no FILE is read: COMMAND is run, and its output is stored under --name while it
    runs. It becomes visible only if COMMAND ends with exit code 0; otherwise nothing is stored, the
    error names its exit code, and that of sfsc is 1. Of a pipeline the shell tells only whether its
    last command failed.

    Example: sfsc put -r photos

    Example: sfsc put --command 'pg_dump shop' --name db.sql
    """
    if command is not None:
        if files or recursive or files_from or exclude or exclude_from or dry_run:
            cause = "--command excludes FILE and the options for folders"
            raise UsageError(cause, "run `sfsc put --command 'COMMAND' --name NAME`")
        expected = _expected((), if_version, recursive=False, no_overwrite=no_overwrite)
        _put_command(context, command, name, expected, receipt, limit_rate, pad=pad)
        return
    files = _all_files(files, files_from)
    expected = _expected(files, if_version, recursive=recursive, no_overwrite=no_overwrite)
    _check_receipt(receipt, files, recursive=recursive)
    if name is not None and len(files) > 1:
        raise UsageError("--name is for one FILE", "leave it out, or store the files one by one")
    check_folder_options(exclude, exclude_from, recursive=recursive, dry_run=dry_run)
    excluded = patterns(exclude, exclude_from)
    compared = recursive and expected is None and receipt is None
    paths = [Path(file) for file in files if compared and file != "-"]
    items = list(_items([file for file in files if Path(file) not in paths], name))
    if dry_run and items:
        raise UsageError("--dry-run is for files and folders only", "leave out other options")
    _check_paths(paths)
    if len(files) > 1:
        _check_names(paths, items, excluded)
    outcomes = Outcomes()
    with context.connect(limit_rate=limit_rate) as store:
        if name is not None:
            name = own_name(store, name)
            items = [(source, name) for source, _ in items]
        if paths:
            found = store.put_tree(
                paths,
                name=name,
                skip=outcomes,
                links=links,
                always=always,
                checksum=checksum,
                exclude=excluded,
                dry_run=dry_run,
                pad=pad,
            )
            _show_tree(found, paths, outcomes, context, dry_run=dry_run)
        if expected is None and receipt is None:
            stored = store.put_many(items, checksum=checksum, pad=pad)
        else:
            # One by one: the server checks the expected version of each.
            stored = (
                store.put(file, name=as_name, expected=expected, pad=pad) for file, as_name in items
            )
        for done in stored:
            if receipt is not None:
                terminal.write_private(receipt, store.proof_of(done))
            _show_put(done, context, outcomes)
    if paths:
        outcomes.show_totals(STORED, UNCHANGED, SKIPPED)
    outcomes.check()


def _put_command(
    context: Context,
    command: str,
    name: str | None,
    expected: int | None,
    receipt: Path | None,
    limit_rate: int | None,
    *,
    pad: bool | None,
) -> None:
    """Store the output of a command, which is started only once the server is there."""
    if name is None:
        raise UsageError("the output of a command has no name", "use --name NAME")
    _check_receipt(receipt, (command,), recursive=False)
    with context.connect(limit_rate=limit_rate) as store:
        done = store.put_command(command, own_name(store, name), expected=expected, pad=pad)
        if receipt is not None:
            terminal.write_private(receipt, store.proof_of(done))
        _show_put(done, context, Outcomes())


def _check_receipt(receipt: Path | None, files: Sequence[str], *, recursive: bool) -> None:
    """Check that --receipt is for one file, and can be written: an error after the upload would
    look as if the file was not stored. Raises `UsageError` and `LocalError`."""
    if receipt is None:
        return
    if len(files) != 1 or (recursive and local_files.is_folder(files[0])):
        raise UsageError("--receipt is for one file", "store the files one by one")
    if str(receipt) != "-":
        check_new_file(receipt, "use another --receipt PATH")


def _check_paths(paths: Sequence[Path]) -> None:
    """Check before anything is sent that all paths are files or folders. Raises `LocalError`."""
    for path in paths:
        if not local_files.is_folder(path) and not local_files.is_file(path):
            raise no_file(str(path))


def _check_names(
    paths: Sequence[Path],
    items: Sequence[tuple[Path | BinaryIO, str | None]],
    exclude: Sequence[str],
) -> None:
    """Check before anything is sent that no two sources have one name: the second would become a
    newer version of the first, and hide it. Raises `UsageError`."""
    from sfsc.files.tree import names_below
    from sfsc.transfer.source import name_for

    files = ((str(source), name_for(source, name)) for source, name in items)
    known: dict[str, str] = {}
    for path, name in itertools.chain(names_below(paths, None, exclude), files):
        if (other := known.setdefault(name, path)) is not path:
            cause = f"{other} and {path} would both be stored as {name}"
            raise UsageError(cause, "store them one by one, each with its own --name")


def _show_tree(
    found: Iterator[Put],
    paths: Sequence[Path],
    outcomes: Outcomes,
    context: Context,
    *,
    dry_run: bool,
) -> None:
    """Store what `found` yields. Report on stderr if there are no files, and names that Windows
    cannot hold."""
    count = 0
    not_on_windows: list[str] = []
    for done in found:
        _show_put(done, context, outcomes, dry_run=dry_run)
        count += 1
        if done.status == STORED and not all(
            map(fits_windows, done.name.removesuffix("/").split("/"))
        ):
            not_on_windows.append(done.name)
    if not count:
        what = ", ".join(str(path) for path in paths)
        terminal.warn(f"{what} has no files; nothing was stored")
    if not_on_windows:
        shown = ", ".join(f'"{one}"' for one in not_on_windows[:_SHOWN_NAMES])
        more = "" if len(not_on_windows) <= _SHOWN_NAMES else ", …"
        what = counted(len(not_on_windows), "name")
        terminal.warn(f"Windows cannot hold {what}: {shown}{more}")


def _expected(
    files: tuple[str, ...], if_version: int | None, *, recursive: bool, no_overwrite: bool
) -> int | None:
    """Return the version that must be current for a file to be stored; None for any."""
    if no_overwrite and if_version is not None:
        raise UsageError("--no-overwrite and --if-version exclude each other", "use one of them")
    if if_version is not None and len(files) > 1:
        raise UsageError("--if-version is for one file", "store the files one by one")
    expected = 0 if no_overwrite else if_version
    if recursive and expected is not None and any(map(local_files.is_folder, files)):
        cause = "a folder takes no --if-version or --no-overwrite"
        raise UsageError(cause, "store the folder without it; unchanged files are left out")
    return expected


def _items(files: Sequence[str], name: str | None) -> Iterator[tuple[Path | BinaryIO, str | None]]:
    """Yield each file, or stdin for `-`, with the name to store it under (None: its path)."""
    for file in files:
        if file == "-":
            if name is None:
                raise UsageError("stdin has no name", "use --name NAME")
            yield sys.stdin.buffer, name
        else:
            path = Path(file)
            # Checked before anything is sent: if the fifth file is missing, none is stored.
            if not local_files.is_file(path):
                raise no_file(file)
            yield path, name


def no_file(file: str) -> LocalError:
    """Return the error for the path `file`, which is not a regular file."""
    if local_files.is_folder(file):
        return LocalError(f"{file} is a folder", "use -r to store it with its files")
    if local_files.exists(file):
        hint = "pipe its content: `… | sfsc put - --name NAME`"
        return LocalError(f"{file} is neither a file nor a folder", hint)
    if local_files.is_link(file):
        return LocalError(f"{file} is a broken link")
    return LocalError(f"no such file: {file}")


def _all_files(files: tuple[str, ...], files_from: str | None) -> tuple[str, ...]:
    """Return the FILEs, and those that a file names. Raises `click.UsageError` if none is given,
    and `LocalError`."""
    if files_from is not None:
        return files + tuple(_read_paths(files_from))
    if not files:
        raise click.UsageError("Missing argument 'FILE...'.")
    return files


def _read_paths(file: str) -> list[str]:
    """Return the paths that a file names, or stdin for `-`. Raises `LocalError`."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as exc:
        raise LocalError(f"cannot read {file}: {exc.strerror}") from exc
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    return [os.fsdecode(line) for line in lines if line]


def _show_put(done: Put, context: Context, outcomes: Outcomes, *, dry_run: bool = False) -> None:
    outcomes.add(done.status)
    if context.json:
        shown = {"name": done.name, "file_id": done.file_id, "version": done.version}
        terminal.answer_json({**shown, "size": done.size, "status": done.status})
    elif done.status == STORED:
        about = "would be stored" if dry_run else f"version {done.version}"
        tell = terminal.answer if dry_run else terminal.note
        tell(f"{printable(done.name)}  {about}, {human_size(done.size)}")
    if done.unstable:
        terminal.warn_unstable(done.name)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=any_names)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    shell_complete=paths,
    help="File or folder to write to; `-`: stdout.",
)
@click.option(
    "-r", "--recursive", is_flag=True, help="Fetch every file in the folder NAME (`/`: all)."
)
@click.option("--version", type=click.IntRange(min=1), help="Fetch an older version.")
@click.option("--links", is_flag=True, help="With -r: make the symbolic links that are stored.")
@compare_options
@click.option("--no-overwrite", is_flag=True, help="Leave files that exist as they are.")
@click.option(
    "--newer", is_flag=True, help="Replace a file only if the stored one was changed later."
)
@exclude_options
@dry_run_option
@limit_rate_option
@trust_options
@click.pass_obj
def get(
    context: Context,
    names: tuple[str, ...],
    output: str | None,
    *,
    recursive: bool,
    links: bool,
    version: int | None,
    always: bool,
    checksum: bool,
    no_overwrite: bool,
    newer: bool,
    exclude: tuple[str, ...],
    exclude_from: tuple[Path, ...],
    dry_run: bool,
    limit_rate: int | None,
    file_id: str | None,
    trust_first_use: bool,
) -> None:
    """Fetch NAME and write it to -o PATH, by default to its last part in the current folder.
    OWNER:NAME is a file that OWNER shares with you.

    Several NAMEs are written into the folder PATH, each to its last part; what has not changed is
    not fetched, as with -r. A NAME that fails is reported, the others are fetched, and the exit
    code is that of the failure.

    The file appears whole and verified, or not at all. Stdout receives only verified bytes, but a
    later part may still turn out to be damaged: check the exit code.

    If PATH is a folder or ends with a slash, the file is written into it; a missing folder is
    created.

    With -r the folder NAME is written below -o PATH, by default below the current folder. Existing
    files are replaced; links are not followed. New folders are for their owner only (mode 0700);
    those that were stored by `put -r` get their mode and time at the end. Symbolic links are made
    only with --links, and otherwise named.

    With -r a file that has not changed is not fetched: whose size and time of the last change are
    those of the stored file, or with --checksum whose SHA-256 is. The last line counts fetched,
    unchanged and skipped files; --json has a "status" for each.

    --no-overwrite leaves every file that exists: it is skipped, and if it is the only NAME
    the exit code is 6.
    --newer skips files that were changed here later than the stored ones.

    --exclude leaves out what matches a pattern, as in a .gitignore; --dry-run fetches nothing.

    Example: sfsc get report.pdf -o copy.pdf
    """
    check_folder_options(exclude, exclude_from, recursive=recursive, dry_run=dry_run)
    if recursive and (version is not None or output == "-"):
        raise UsageError("-r excludes --version and `-o -`", "leave one of them out")
    if not recursive:
        _check_files(names, output, one_only=version is not None or file_id is not None)
    excluded, overwrite = patterns(exclude, exclude_from), not no_overwrite
    with context.connect(limit_rate=limit_rate, to_stdout=output == "-") as store:
        fetch = functools.partial(
            _fetch, store, first_use=trust_first_use, overwrite=overwrite, newer=newer
        )
        if not recursive and len(names) == 1:
            owner, name = split_owner(store, names[0])
            target = sys.stdout.buffer if output == "-" else output
            got = fetch(owner, name, target, version, file_id)
            if output != "-":
                _show_got(got, context)
            return
        outcomes, folder = Outcomes(), Path(output or ".")
        if recursive:
            get_tree = functools.partial(
                store.get_tree,
                target=folder,
                skip=outcomes,
                links=links,
                always=always,
                checksum=checksum,
                overwrite=overwrite,
                newer=newer,
                exclude=excluded,
                dry_run=dry_run,
            )
            found = _fetch_folders(store, names, get_tree, outcomes, first_use=trust_first_use)
        else:
            get_many = functools.partial(
                store.get_many,
                skip=outcomes,
                always=always,
                checksum=checksum,
                overwrite=overwrite,
                newer=newer,
            )
            found = _fetch_files(store, names, folder, get_many, fetch, outcomes)
        for got in found:
            outcomes.add(got.status)
            if got.status == FETCHED or context.json:
                _show_got(got, context, dry_run=dry_run)
        outcomes.show_totals(FETCHED, UNCHANGED, SKIPPED)
    outcomes.check()


def _check_files(names: tuple[str, ...], output: str | None, *, one_only: bool) -> None:
    """Check names to fetch without -r. Raises `UsageError`."""
    if len(names) > 1 and one_only:
        raise UsageError("--version and --id are for one NAME", "fetch the files one by one")
    if len(names) > 1 and output == "-":
        raise UsageError("`-o -` is for one NAME", "`sfsc cat` writes several to stdout")
    check_is_no_folder(names)


def _fetch_folders(
    store: Store,
    names: Sequence[str],
    get_tree: Callable[..., Iterator[Got]],
    failures: terminal.Failures,
    *,
    first_use: bool,
) -> Iterator[Got]:
    """Fetch folders, our own or shared with us, by `Store.get_tree`."""
    for each in names:
        owner, name = split_owner(store, each)

        def get(trust: bool, name: str = name, owner: str | None = owner) -> Iterator[Got]:
            return get_tree(name, owner=owner, trust_first_use=trust)

        with failures.of_one(each, names):
            yield from confirm_trust(get, first_use=first_use)


def _fetch_files(
    store: Store,
    names: Sequence[str],
    folder: Path,
    get_many: Callable[..., Iterator[Got]],
    fetch: Callable[..., Got],
    failures: terminal.Failures,
) -> Iterator[Got]:
    """Fetch files into `folder`: our own by `Store.get_many`, those shared with us by `_fetch`."""
    own = list[str]()
    for each in names:
        owner, name = split_owner(store, each)
        if owner is None:
            own.append(name)
            continue
        try:
            yield fetch(owner, name, f"{folder}{os.sep}", None, None)
        except NetworkError:
            raise
        except SfscError as exc:
            failures(each, exc)
    if own:
        yield from get_many(own, folder)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=any_names)
@click.option("--version", type=click.IntRange(min=1), help="Fetch an older version of one NAME.")
@trust_options
@click.pass_obj
def cat(
    context: Context,
    names: tuple[str, ...],
    *,
    version: int | None,
    file_id: str | None,
    trust_first_use: bool,
) -> None:
    """Fetch and decrypt each NAME and write it to stdout, one after the other. OWNER:NAME is a
    file that OWNER shares with you.

    Only verified bytes are written, but a later part may still turn out to be damaged: check the
    exit code. The command ends at the first NAME that cannot be fetched.

    Example: sfsc cat notes.txt
    """
    if version is not None and len(names) > 1:
        raise click.UsageError("--version is for one NAME")
    check_is_no_folder(names)
    with context.connect(to_stdout=True) as store:
        for each in names:
            owner, name = split_owner(store, each)
            target = sys.stdout.buffer
            _fetch(store, owner, name, target, version, file_id, first_use=trust_first_use)


def _fetch(
    store: Store,
    owner: str | None,
    name: str,
    target: Target | None,
    version: int | None,
    file_id: str | None,
    *,
    first_use: bool,
    overwrite: bool = True,
    newer: bool = False,
) -> Got:
    """Fetch our file `name`, or the one that `owner` shares, to `target`."""
    with terminal.stdout_errors():
        if owner is None:
            with folder_hint(store, name):
                return store.get(name, target, version=version, overwrite=overwrite, newer=newer)
        return confirm_trust(
            lambda trust: store.get_shared(
                owner,
                name,
                target,
                version=version,
                file_id=file_id,
                trust_first_use=trust,
                overwrite=overwrite,
                newer=newer,
            ),
            first_use=first_use,
        )


def _show_got(got: Got, context: Context, *, dry_run: bool = False) -> None:
    path = got.location or ""
    shown = {"name": got.name, "version": got.version, "size": got.size, "path": path}
    size = human_size(got.size)
    about = "would be fetched" if dry_run else f"version {got.version}"
    what = f"{printable(path)}  {about}, {size}"
    if got.status == SKIPPED:
        what = f"{printable(path)} is not older; it was left as it is"
    shown["status"] = got.status
    (context.answer if dry_run else context.confirm)(shown, what)
