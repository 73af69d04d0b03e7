"""Restores a backup to a new root, and compares it with its log.

A copy of the whole root, made while no daemon ran, is restored in the same way.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from protocol.buffers.file_status import exists, is_file, is_folder
from protocol.codec.values import Value
from protocol.log import auditlog
from sfsd.errors import CommandError
from sfsd.fs.files import Files
from sfsd.log.verify import complete_lines
from sfsd.storage.backup import (
    SETTINGS,
    SourceError,
    copy_file,
    left_over,
    syncing,
    whole_backups,
)
from sfsd.storage.fsck import Finding, Fsck

_LEFT_OUT: Final = frozenset({"run", "logs/tree", "logs/reserve", "stray"})
"""Paths that a restored root does not need; a start makes the first three."""


class RestoreResult(Value):
    """A restored root: the `backup` that was copied, its entries, its files below store/users,
    the `time` of the last entry as the log has it, and the differences from the log."""

    backup: str
    entries: int
    files: int
    time: str
    damaged: tuple[Finding, ...]


def find_backup(folder: Path) -> Path:
    """Return the backup that `folder` is, or the newest one in it. Raises `CommandError` if there
    is none."""
    if is_file(folder / SETTINGS):
        return folder
    names = whole_backups(folder) if is_folder(folder) else []
    if not names:
        raise CommandError(
            f"no backup in {folder}",
            "name a folder that `sfsd backup` filled, or one backup in it",
            exit_code=CommandError.NOT_FOUND,
        )
    return folder / names[-1]


def restore(folder: Path, root: Path) -> RestoreResult:
    """Copy a backup to the new root `root`, and compare it with its log. `folder` is as in
    `find_backup`. Links in the backup are not followed. The settings are copied last: before,
    `root` is no root.

    Raises `CommandError` if `root` is not empty, `JournalDamagedError`, `ConfigError`, OSError.
    """
    source, new = find_backup(folder).resolve(), root.resolve()
    if source in (new, *new.parents) or new in source.parents:
        raise CommandError(
            "the new root and the backup are in each other", "name another folder", exit_code=2
        )
    if exists(root) and (not is_folder(root) or any(root.iterdir())):
        raise CommandError(
            f"{root.absolute()} is not empty",
            "name a new folder, or remove what is in it",
            exit_code=6,
        )
    Files().make_folder(root)
    files = Files.below(root)
    with syncing(files, root):
        links = [
            Finding("link", name, None, repaired=False, text="it is not a file; it was left out")
            for name in _copy_tree(files, source, root)
        ]
        check = Fsck(root, read_data=True)
        damaged = left_over(check)
    _copy_settings(files, source, root)
    entries, last = _last_entry(root)
    return RestoreResult(
        backup=str(source),
        entries=entries,
        files=check.checked,
        time=last,
        damaged=(*links, *damaged),
    )


def _copy_settings(files: Files, source: Path, root: Path) -> None:
    temporary = files.temporary(root / SETTINGS)
    try:
        copy_file(files, source / SETTINGS, temporary, SETTINGS)
    except SourceError as exc:
        raise CommandError(
            f"{SETTINGS}: {exc}", "see what is in the backup", exit_code=CommandError.DAMAGED
        ) from exc
    with files.closing(files.open_update(temporary)) as handle:
        files.sync(handle)
    files.replace(temporary, root / SETTINGS)
    files.sync_folder(root)


def _copy_tree(files: Files, source: Path, root: Path) -> Iterator[str]:
    """Copy what a root needs but for its settings; yield the names of what is no file or folder."""
    for folder, folders, names in os.walk(source, onerror=_fail):
        inside = Path(folder).relative_to(source)
        for name in sorted(folders):
            path = (inside / name).as_posix()
            if (Path(folder) / name).is_symlink():
                yield path
                folders.remove(name)
            elif path in _LEFT_OUT or name == ".spare":
                folders.remove(name)
            else:
                files.make_folder(root / path)
        for name in names:
            path = (inside / name).as_posix()
            if path in _LEFT_OUT or path == SETTINGS:
                continue
            try:
                copy_file(files, Path(folder) / name, root / path, "")
            except SourceError:
                yield path


def _fail(exc: OSError) -> None:
    raise exc


def _last_entry(root: Path) -> tuple[int, str]:
    """Return (number of entries, time of the last one) of a verified log."""
    last = deque(complete_lines(root), maxlen=1)
    if not last:
        return 0, ""
    entry = auditlog.parse(last[0])
    return entry.seq + 1, entry.time
