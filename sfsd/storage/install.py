"""Files put in place, and made durable there afterwards.

A group's bytes are durable in the stage before its entries are logged, so putting them in place
syncs nothing: a crash before `sync` costs a reinstallation from the stage. Only when all that was
put in place up to some entry has been synced, with the folders that hold it, does staging/applied
say so; what it says may be believed after any failure.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

from sfsd.errors import RecoveryError
from sfsd.fs.descriptors import SyncGuard
from sfsd.fs.files import Files
from sfsd.storage.prepare import InstallStep

SYNCFS_MIN_FILES = 16
"""Files from which on one sync of the file system costs less than one of each."""
_APPLIED = re.compile(rb"[0-9]{1,16}\n")


class Installer:
    """The folder `users`, as changes see it. One thread installs, one syncs."""

    def __init__(self, files: Files, syncs: SyncGuard, *, users: Path, staging: Path) -> None:
        """Raises OSError, or `RecoveryError` if staging/applied is not what this wrote."""
        self._files = files
        self._syncs = syncs
        self._users = users
        self._users_text = str(users)
        self._staging = staging
        self._lock = threading.Lock()
        self._grown: set[str] = set()  # folders that got a folder since the last sync
        self._top: int | None = None
        if sys.platform == "linux":
            # Open from the beginning: what could not be written is told to who was there before.
            self._top = os.open(users, os.O_RDONLY | os.O_DIRECTORY)
            weakref.finalize(self, os.close, self._top)
        self.applied = self._read_applied()
        """Every entry up to this seq is durable in place; -1 for none."""

    def install(self, step: InstallStep) -> None:
        """Old or new under the path, never a mixture; where there was nothing, a part of the new
        may be seen until it is done. Not synced. Raises OSError."""
        try:
            self._install(step)
        except FileNotFoundError:
            self._make_folder_of(step.path)
            self._install(step)

    def _install(self, step: InstallStep) -> None:
        # A str, not a Path: building a Path would cost more than writing the file.
        target = f"{self._users_text}/{step.path}"
        if step.digest is None:
            self._files.remove(target)
            return
        if step.blob is not None:
            temporary = self.remove_temporary(step.path)
            self._files.link_or_copy(self._staging / f"{step.blob}.ct", temporary)
            self._files.replace(temporary, target)
            # If both were names of one file already, rename(2) did nothing and left the temporary.
            self._files.remove(temporary)
            return
        if not step.replaces:
            with contextlib.suppress(FileExistsError):
                self._files.write_new(target, step.data)
                return
        self._files.replace_staged(target, step.data)

    def remove_temporary(self, path: str) -> Path:
        """The name under which `path` is made before it is put in place; nothing is there now."""
        temporary = self._files.temporary(self._users / path)
        self._files.remove(temporary)
        return temporary

    def sync(self, steps: Iterable[InstallStep], *, ancestors: bool = False) -> None:
        """Make what `install` did durable. Raises StoreFailedError or OSError.

        `ancestors` for what an earlier process did: which folders it made is not known.
        """
        latest = {step.path: step for step in steps}
        with self._lock:
            folders, self._grown = self._grown, set()
        if len(latest) >= SYNCFS_MIN_FILES and self._top is not None and self._syncs.all(self._top):
            return
        targets = [self._users / step.path for step in latest.values() if step.digest is not None]
        for target in targets:
            # All on their way to the disk first: the syncs then find little to wait for.
            self._with_file(target, lambda handle: self._files.start_writing_back(handle, 0, 0))
        for target in targets:
            self._with_file(target, self._syncs.file)
        for folder in {path.rpartition("/")[0] for path in latest}:
            folders.update(_up_from(folder) if ancestors else [folder])
        for folder in sorted(folders, reverse=True):
            if (self._users / folder).is_dir():  # it may be that all it ever held was removed
                self._syncs.folder(self._users / folder)

    def write_applied(self, seq: int) -> None:
        """State durably that every entry up to `seq` is durable in place.

        Raises StoreFailedError, or OSError for what is not a sync.
        """
        path = self._staging / "applied"
        temporary = self._files.temporary(path)
        self._files.remove(temporary)
        handle = self._files.open_new(temporary)
        try:
            self._files.write_all(handle, f"{seq}\n".encode())
            self._syncs.file(handle)
        finally:
            self._files.close(handle)
        self._files.replace(temporary, path)
        self._syncs.folder(self._staging)
        self.applied = seq

    def _with_file(self, target: Path, do: Callable[[int], None]) -> None:
        try:
            handle = self._files.open_update(target)
        except FileNotFoundError:
            return  # a later group removed it, and that removal is settled with that group
        try:
            do(handle)
        finally:
            self._files.close(handle)

    def _make_folder_of(self, path: str) -> None:
        folder = path.rpartition("/")[0]
        self._files.make_folder(self._users / folder)
        with self._lock:
            self._grown.update(_up_from(folder))

    def _read_applied(self) -> int:
        try:
            text = (self._staging / "applied").read_bytes()
        except FileNotFoundError:
            return -1
        if not _APPLIED.fullmatch(text):
            raise RecoveryError("not a seq", path="staging/applied")
        return int(text)


def _up_from(folder: str) -> list[str]:
    """`folder` and those above it, up to "", which is users/."""
    parts = folder.split("/") if folder else []
    return ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]
