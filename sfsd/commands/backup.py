"""`sfsd backup`: copy the root while it is served."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click
from filelock import FileLock, Timeout

from protocol.buffers.file_status import is_file, is_folder
from protocol.codec.terminal_text import counted, human_size
from protocol.codec.values import as_dict
from sfsd.commands import answer, answer_json, json_option, root_option
from sfsd.commands.fsck import describe
from sfsd.datadir import NOT_WRITABLE, lock_root, open_server_context
from sfsd.errors import CommandError, RootBusyError
from sfsd.fs.files import Files
from sfsd.settings.config import Config
from sfsd.storage.backup import LOCK, Backup, BackupResult, remove_leftovers, remove_old


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@root_option
@json_option
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="Afterwards remove all but the newest N backups in DIR. The default removes none.",
)
@click.option(
    "--read-data",
    is_flag=True,
    help="Read every file of the root, also those that have not changed since the last backup.",
)
def command(folder: Path, root: Path, as_json: bool, *, keep: int | None, read_data: bool) -> None:
    """Copy the root to a new folder in DIR, also while the daemon serves it.

    DIR/TIME is a whole root, as it was at one entry of the log, with the server's keys: protect it
    as you protect the root. What has not changed since the last backup in DIR is linked to it. Each
    copied file is compared with the log. A file of the root that is damaged is named and left out,
    everything else is copied, and the exit code is 5; --keep removes nothing then.

    A backup that is interrupted leaves nothing that looks like one. `sfsd restore` makes a root of
    a backup.

    Example: sfsd backup /backup/sfsd --keep 14
    """
    Config.load(root)  # fails before a folder is made
    _check_target(folder, root)
    _bring_up_to_date(root)
    Files.below(folder.parent).make_folder(folder)
    with _locked(folder):
        remove_leftovers(folder)
        made = Backup(root, folder, read_data=read_data).run()
        removed = remove_old(folder, keep) if keep and not made.damaged else []
    if as_json:
        answer_json(as_dict(made) | _as_json(made, removed))
    else:
        _show(made, removed)
    if made.damaged:
        raise CommandError(
            f"{counted(len(made.damaged), 'damaged file')} in {root.absolute()}; see above",
            "keep the older backups; copy the files from one of them, see `sfsd fsck --help`",
            exit_code=CommandError.DAMAGED,
        )


def _as_json(made: BackupResult, removed: list[str]) -> dict[str, object]:
    return {"damaged": [as_dict(one) for one in made.damaged], "removed": removed}


def _show(made: BackupResult, removed: list[str]) -> None:
    answer(f"backup   {made.path}")
    answer(f"log      {counted(made.entries, 'entry', 'entries')}")
    answer(f"files    {made.files}, of which {made.copied} were copied ({human_size(made.size)})")
    if removed:
        answer(f"removed  {', '.join(removed)}")
    for one in made.damaged:
        answer(describe(one))


def _check_target(folder: Path, root: Path) -> None:
    """Refuse a folder that cannot hold backups of `root`. Raises `CommandError`."""
    if not is_folder(folder.parent):
        raise CommandError(
            f"no such folder: {folder.parent}",
            "is its disk mounted? Only the last folder of DIR is made",
            exit_code=CommandError.NOT_FOUND,
        )
    inside, whole = folder.resolve(), root.resolve()
    if whole in (inside, *inside.parents):
        raise CommandError(
            f"{folder} is inside the root", "name a folder on another disk", exit_code=2
        )


def _bring_up_to_date(root: Path) -> None:
    """If no daemon serves the root, install what a crash left, as a start does. A root that this
    account cannot change is copied as it is."""
    if not is_file(root / "keys" / "log.key"):
        return
    try:
        with lock_root(root), open_server_context(root):
            pass
    except RootBusyError:
        pass
    except OSError as exc:
        if exc.errno not in NOT_WRITABLE:
            raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    files = Files.below(folder)
    files.close(files.open_append(folder / LOCK))  # so that it gets the owner of `folder`
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as exc:
        raise CommandError(
            f"another backup to {folder} is being made", "wait until it is done", exit_code=6
        ) from exc
    try:
        yield
    finally:
        lock.release()
