"""Whether the daemon is well: the same answer for `sfsd status --check` and for /healthz."""

from __future__ import annotations

from concurrent.futures import TimeoutError as ProofTimeout
from pathlib import Path
from typing import Final

from protocol.codec.terminal_text import counted, human_duration, human_size
from protocol.codec.values import Value
from sfsd.errors import JournalError, SfsdError
from sfsd.rules.context import ServerContext

PROOF_SECONDS: Final = 5.0
"""The longest wait for a proof that the daemon can write."""


def find_problems(server: ServerContext) -> list[str]:
    """Return why the daemon is not well, one line each; [] if it is. Waits for the disk.

    It is well if it can write, has signed what it has logged, has room, and no job failed, within
    the bounds of ``[health]``.
    """
    found = [*_storage_problems(server), *_checkpoint_problems(server), *_room_problems(server)]
    found += [f"{job}: {why}" for job, why in sorted(dict(server.metrics.failed_jobs).items())]
    found += [
        f"the account of {user} is damaged: `sfsd fsck` shows more"
        for user in server.documents.damaged_accounts()
    ]
    found += [
        f"damaged file: store/users/{path} (entry {one.seq}): {one.text}"
        for path, one in server.scrub.damaged.items()
    ]
    return found


def _storage_problems(server: ServerContext) -> list[str]:
    if server.failed is not None:
        return [f"storage failure: {server.failed}"]
    try:
        server.committer.prove_writing().result(PROOF_SECONDS)
    except ProofTimeout:
        return [f"cannot write: the disk has not answered for {PROOF_SECONDS:.0f} seconds"]
    except SfsdError as exc:
        return [f"cannot write: {exc}"]
    return []


def _checkpoint_problems(server: ServerContext) -> list[str]:
    """Entries without a checkpoint are a problem once they are old; an idle log has none."""
    signed, size = server.journal.stored_size, server.journal.size
    if signed >= size:
        return []
    try:
        age = max(0, server.now - int(server.logged_at(signed)))
    except JournalError as exc:
        return [f"the log cannot be read: {exc}"]
    if age <= server.config.health.checkpoint_age:
        return []
    left = counted(size - signed, "entry", "entries")
    return [f"the last checkpoint lacks {left}, the first of which is {human_duration(age)} old"]


def _room_problems(server: ServerContext) -> list[str]:
    return [problem for disk in disk_rooms(server) for problem in disk.problems]


class DiskRoom(Value):
    """Room on the disk of a folder of the root: free bytes, and files that can be created (None: no
    limit), both -1 if the disk cannot be examined. `problems` says what is below the bounds of
    ``[health]``."""

    folder: str
    free: int
    files: int | None
    problems: list[str]


def disk_rooms(server: ServerContext) -> list[DiskRoom]:
    """Return the room on each disk of the root. Waits for the disks."""
    return [_disk_room(server, folder) for folder in server.disks]


def _disk_room(server: ServerContext, folder: Path) -> DiskRoom:
    bounds, files, found = server.config.health, server.store.files, list[str]()
    name = folder.relative_to(server.root).as_posix()
    try:
        free, left = files.free(folder), files.free_files(folder)
    except OSError as exc:
        return DiskRoom(name, -1, -1, [f"the disk of {name}/ cannot be examined: {exc.strerror}"])
    if free < bounds.free_space:
        least = human_size(bounds.free_space)
        found.append(f"{human_size(free)} free on the disk of {name}/, less than {least}")
    if left is not None and left < bounds.free_files:
        found.append(
            f"room for {counted(left, 'file')} on the disk of {name}/, "
            f"fewer than {bounds.free_files:,}"
        )
    return DiskRoom(name, free, left, found)
