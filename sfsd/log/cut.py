"""Cuts a log whose end is lost or damaged, so that its root can be served again.

What clients have seen of the lost end cannot be brought back, and they notice that it is missing.
So only the operator decides this, and names the number of entries that stay. logs/cut-pending
exists from before anything is changed until the store fits the shorter log; meanwhile nothing else
opens the root, and the same command continues. What is cut is kept as logs/cut-N.jsonl, and the
checkpoint that covered it as logs/cut-N.checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Final

from protocol.codec.errors import LogError
from protocol.log import auditlog
from sfsd.errors import CheckpointDamagedError, CommandError, RecoveryError, cut_hint
from sfsd.fs.files import Files
from sfsd.log.replay import advance_counts
from sfsd.log.tree import stored_mark
from sfsd.log.verify import complete_lines, signed_checkpoint

_PENDING: Final = "cut-pending"
_CHUNK: Final = 1 << 20
_CUT: Final = re.compile(r"cut-([1-9][0-9]{0,15})\.jsonl")


def begin_cut(root: Path, count: int, applied: int, files: Files) -> None:
    """Cut the log of `root` after its first `count` entries. The store does not fit it then: the
    caller makes it fit and calls `finish_cut`. `applied` is the last entry whose changes are in
    place, -1 if unknown; the caller holds the root's lock.

    Raises `CommandError` unless the log is damaged or ends at exactly that entry, and OSError.
    """
    folder = root / "logs"
    if pending_cut(folder) is None:
        end = _check_damage(root, count, applied)
        _copy_from(folder / "audit.jsonl", end, folder / f"cut-{count}.jsonl", files)
        with contextlib.suppress(FileNotFoundError):
            note = (folder / "checkpoint").read_bytes()
            files.replace_durable(folder / f"cut-{count}.checkpoint", note)
        files.replace_durable(folder / _PENDING, b"%d\n" % count)
    elif pending_cut(folder) != count:
        raise CommandError(*_interrupted(folder), exit_code=CommandError.DAMAGED)
    # From here on everything may be repeated, also after entries were appended by a first attempt.
    for name in ("checkpoint", "tree/mark"):
        files.remove(folder / name)
    files.sync_folder(folder / "tree")
    end = _valid_part(root, count)[1]
    with files.closing(files.open_append(folder / "audit.jsonl")) as handle:
        files.truncate(handle, end)
        files.sync(handle)
    files.remove(root / "staging" / "applied")
    files.sync_folder(root / "staging")


def finish_cut(root: Path, files: Files) -> None:
    """Note that the store fits the log that was cut. Raises OSError."""
    files.remove(root / "logs" / _PENDING)
    files.sync_folder(root / "logs")


def pending_cut(folder: Path) -> int | None:
    """Return the number of entries that an unfinished cut of the log in `folder` keeps, or None.
    Raises `RecoveryError` if that cannot be read."""
    try:
        return int((folder / _PENDING).read_text("ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise RecoveryError(
            "not a number",
            path=f"logs/{_PENDING}",
            hint="write the N of the newest logs/cut-N.jsonl into it",
        ) from exc


def check_no_cut(folder: Path) -> None:
    """Raise `RecoveryError` if a cut of the log in `folder` was not finished."""
    if pending_cut(folder) is not None:
        cause, hint = _interrupted(folder)
        raise RecoveryError(cause, path="logs/audit.jsonl", hint=hint)


def past_cuts(folder: Path) -> list[str]:
    """Return the names of the files in `folder` that hold what was cut from its log."""
    return sorted(name for name in os.listdir(folder) if _CUT.fullmatch(name))


def _interrupted(folder: Path) -> tuple[str, str]:
    count = pending_cut(folder)
    return f"cutting it to {count} entries was interrupted", f"run `sfsd fsck --cut-log {count}`"


def _copy_from(source: Path, start: int, target: Path, files: Files) -> None:
    """Copy a file from byte `start` on, durably but for the folder."""
    files.remove(target)
    with source.open("rb") as log, files.closing(files.open_new(target)) as handle:
        log.seek(start)
        while part := log.read(_CHUNK):
            files.write_all(handle, part)
        files.sync(handle)


def _check_damage(root: Path, count: int, applied: int) -> int:
    """Return at which byte the first `count` entries end, if the log must have more of them."""
    folder = root / "logs"
    try:
        signed = signed_checkpoint(root).size
    except CheckpointDamagedError:
        signed = 0
    mark = stored_mark(folder / "tree")
    wanted = max(signed, applied + 1, 0 if mark is None else mark.size)
    valid, end = _valid_part(root)
    if valid >= wanted:
        raise CommandError(
            "the end of the log is not missing",
            "`sfsd fsck` names what is damaged",
            exit_code=2,
        )
    if valid != count or not count:
        raise CommandError(
            f"the log has {valid} valid entries of {wanted}, not {count}",
            cut_hint(valid),
            exit_code=2,
        )
    return end


def _valid_part(root: Path, most: int | None = None) -> tuple[int, int]:
    """Return how many entries are valid up to the first one that is not, `most` at most, and at
    which byte they end. The entries of an atomic set that is not whole are not valid."""
    size, end, last = 0, 0, auditlog.GENESIS
    whole = size, end
    sets = auditlog.SetCheck()
    counts: dict[str, int] = {}
    for line in complete_lines(root):
        if size == most:
            break
        try:
            entry = next(auditlog.verify_chain([line], first=size, prev=last))
            sets.add(entry)
            advance_counts(counts, entry)
        except LogError:
            break
        size, end, last = size + 1, end + len(line) + 1, entry.hash
        if sets.open is None:
            whole = size, end
    return whole
