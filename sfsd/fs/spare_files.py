"""Files that are allocated in advance, for small writes that must succeed on a full disk.

Removing a reserve on a full disk gives its space to the fastest program, which may be another one.
A spare file is overwritten in place and then renamed, which needs neither a block nor an inode.
Where a file system allocates blocks only when it writes them (Btrfs, ZFS), this may still fail.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable
from pathlib import Path

from protocol.buffers.file_status import is_file
from sfsd.fs.files import FULL_DISK, Files


class SpareFiles:
    """At most `count` files of `size` bytes in `folder`, which must be on the file system of what
    is written with them. Safe on several threads."""

    def __init__(self, folder: Path, files: Files, *, count: int, size: int) -> None:
        """Use the spare files of an earlier process; create none."""
        self._folder = folder
        self._files = files
        self._size = size
        self._paths = [folder / f"{number:03}" for number in range(count)]
        self._lock = threading.Lock()
        self._unused = [path for path in self._paths if self._is_whole(path)]

    def _is_whole(self, path: Path) -> bool:
        try:
            return is_file(path) and path.stat().st_size == self._size
        except OSError:
            return False  # `refill` replaces it

    def _missing(self) -> list[Path]:
        """Return the paths of spare files that were used; the caller holds the lock."""
        return [path for path in self._paths if path not in self._unused]

    def refill(self) -> None:
        """Create the missing files while twice their space is free; on a full disk do nothing."""
        with self._lock:
            missing = self._missing()
            if not missing:
                return
            try:
                self._files.make_folder(self._folder)
                if self._files.free(self._folder) < 2 * len(missing) * self._size:
                    return
            except OSError:
                return
            for path in missing:
                try:
                    self._files.remove(path)  # of another size: a crash came while it was used
                    with self._files.closing(self._files.open_new(path)) as handle:
                        self._files.allocate(handle, self._size)
                except OSError:
                    continue  # the next call tries again
                if self._is_whole(path):
                    self._unused.append(path)

    def can_hold(self, sizes: Iterable[int]) -> bool:
        """Return whether files of these many bytes can be written now, all of them."""
        wanted = list(sizes)
        with self._lock:
            return len(wanted) <= len(self._unused) and max(wanted, default=0) <= self._size

    def write(self, path: Path, data: bytes, *, whole: bool = False) -> bool:
        """Replace `path` by `data`: old or new content, never a mixture; not synced. Return False
        if no spare file can. `whole` keeps the rest of the spare file behind the data, for
        `give_back`. Raises OSError for other failures than a full disk."""
        with self._lock:
            if not self._unused or len(data) > self._size:
                return False
            spare = self._unused.pop()
            # The lock is held until the file has its new name: `give_back` and `refill` take the
            # names that are missing.
            try:
                with self._files.closing(self._files.open_update(spare)) as handle:
                    self._files.write_all_at(handle, data, 0)
                    if not whole:
                        self._files.truncate(handle, len(data))
                self._files.replace(spare, path)
            except OSError as exc:
                if exc.errno in FULL_DISK or exc.errno == errno.EXDEV:
                    return False
                raise
        return True

    def give_back(self, path: Path) -> bool:
        """Make a file that was written with `whole`, and is not needed any more, a spare file
        again. Return False if it is not one, or nothing is missing. Raises OSError."""
        with self._lock:
            missing = self._missing()
            if not missing or not self._is_whole(path):
                return False
            self._files.replace(path, missing[0])
            self._unused.append(missing[0])
            return True
