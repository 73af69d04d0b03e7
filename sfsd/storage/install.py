"""Installs files in place, and makes them durable there afterwards.

A group's bytes are durable in the stage before its entries are logged, so installing them syncs
nothing: a crash before `sync` costs another installation from the stage. staging/applied names an
entry only when everything installed up to it has been synced, with the folders that hold it. So it
is correct after any failure.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from protocol.buffers.file_status import exists, is_folder
from sfsd.errors import SfsdError
from sfsd.fs.descriptors import SyncGuard
from sfsd.fs.files import FULL_DISK, Files, is_damage
from sfsd.fs.spare_files import SpareFiles
from sfsd.storage.prepare import InstallStep

SYNCFS_MIN_FILES = 16
"""The number of files from which one sync of the file system costs less than one of each."""
SPARES = 64
"""Small files that a full disk can still replace in the store."""
SPARE_SIZE = 16 * 1024
"""Bytes; a sidecar with one reader has 3 KiB."""
_APPLIED = re.compile(rb"[0-9]{1,16}\n")


class Installer:
    """The folder `users`, as changes see it. One thread installs, one syncs."""

    def __init__(self, files: Files, syncs: SyncGuard, *, users: Path, staging: Path) -> None:
        """Read staging/applied. Raises OSError."""
        self.spares = SpareFiles(users / ".spare", files, count=SPARES, size=SPARE_SIZE)
        self._files = files
        self._syncs = syncs
        self._users = users
        self._users_text = str(users)
        self._staging = staging
        self._renamed: set[str] = set()
        self._lock = threading.Lock()
        self._grown: set[str] = set()  # folders in which a folder was created since the last sync
        self._top: int | None = None
        if sys.platform == "linux":
            # Opened at the start: a write failure is reported to descriptors that were open before
            # it.
            self._top = os.open(users, os.O_RDONLY | os.O_DIRECTORY)
            weakref.finalize(self, os.close, self._top)
        self.applied = self._read_applied()
        """Every entry up to this seq is durable in place; -1 for none."""

    def install(self, step: InstallStep) -> None:
        """Install a step: old or new content under the path, never a mixture. Not synced. A new
        file may be seen incomplete until this returns. Raises OSError."""
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
            self._install_blob(step.blob, Path(target))
            return
        if not step.replaces:
            with contextlib.suppress(FileExistsError):
                self._files.write_new(target, step.data)
                return
        try:
            self._files.replace_staged(target, step.data)
        except OSError as exc:
            if exc.errno not in FULL_DISK or not self.spares.write(Path(target), step.data):
                raise

    def _install_blob(self, blob: str, target: Path) -> None:
        if blob in self._renamed:
            return
        for folder in upload_folders(self._users, self._staging):
            source = folder / f"{blob}.ct"
            if exists(source):
                self._files.link_or_rename(source, target)
                if not exists(source):
                    self._renamed.add(blob)  # a repeated installation finds it in place
                return
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))

    def remove_temporary(self, path: str) -> Path:
        """Remove and return the path under which `path` is written before it is renamed."""
        temporary = self._files.temporary(self._users / path)
        self._files.remove(temporary)
        return temporary

    def sync(self, steps: Iterable[InstallStep], *, ancestors: bool = False) -> None:
        """Make installed steps durable. Raises StoreFailedError or OSError. `ancestors` is for
        steps of an earlier process, whose new folders are unknown."""
        latest = {step.path: step for step in steps}
        with self._lock:
            folders, self._grown = self._grown, set()
        try:
            self._sync(latest, set(folders), ancestors=ancestors)
        except (OSError, SfsdError):
            with self._lock:
                self._grown |= folders  # the next attempt syncs them
            raise

    def _sync(
        self, latest: Mapping[str, InstallStep], folders: set[str], *, ancestors: bool
    ) -> None:
        if len(latest) >= SYNCFS_MIN_FILES and self._top is not None and self._syncs.all(self._top):
            return
        targets = [self._users / step.path for step in latest.values() if step.digest is not None]
        for target in targets:
            # Start writing all of them back first: the syncs then have little to wait for.
            self._with_file(target, lambda handle: self._files.start_writing_back(handle, 0, 0))
        for target in targets:
            self._with_file(target, self._syncs.file)
        for folder in {path.rpartition("/")[0] for path in latest}:
            folders.update(_up_from(folder) if ancestors else [folder])
        for folder in sorted(folders, reverse=True):
            if is_folder(self._users / folder):  # all that it held may have been removed
                self._syncs.folder(self._users / folder)

    def write_applied(self, seq: int) -> None:
        """Record durably that every entry up to `seq` is durable in place. Raises StoreFailedError,
        or OSError for failures other than a sync."""
        path = self._staging / "applied"
        temporary = self._files.temporary(path)
        text = f"{seq}\n".encode()
        try:
            self._files.remove(temporary)
            with self._files.closing(self._files.open_new(temporary)) as handle:
                self._files.write_all(handle, text)
                self._syncs.file(handle)
            self._files.replace(temporary, path)
        except OSError as exc:
            if exc.errno not in FULL_DISK or not exists(path):
                raise
            # In place: the text never gets shorter, and fits into one sector. Should the disk
            # tear it nevertheless, the next start compares the whole store.
            self._files.remove(temporary)
            with self._files.closing(self._files.open_update(path)) as handle:
                self._files.write_all_at(handle, text, 0)
                self._syncs.file(handle)
        self._syncs.folder(self._staging)
        self.applied = seq

    def _with_file(self, target: Path, do: Callable[[int], None]) -> None:
        try:
            handle = self._files.open_update(target)
        except FileNotFoundError:
            return  # a later group removed it, and that removal is settled with that group
        with self._files.closing(handle):
            do(handle)

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
        except OSError as exc:
            if not is_damage(exc):
                raise
            return -1
        if not _APPLIED.fullmatch(text):
            return -1  # damaged: a start compares the whole store with the log
        return int(text)


def upload_folders(users: Path, staging: Path) -> tuple[Path, Path]:
    """Return the two folders that may hold staged ciphertexts. The second is used if staging/ is on
    another file system than the store: bytes must not be copied there after they are logged, when a
    full disk could not be undone any more."""
    return staging, users / ".staging"


def _up_from(folder: str) -> list[str]:
    """Return `folder` and its ancestors, up to "", which is users/."""
    parts = folder.split("/") if folder else []
    return ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]
