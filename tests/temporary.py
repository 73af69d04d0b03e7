"""Places of the tests' files: in memory if there is room, else on the disk.

Each sync of a file takes some milliseconds on a disk, and a whole run makes tens of thousands. A
killed process loses nothing of what it wrote, whether that was to a disk or to memory. Tests of
direct I/O, and others that need a disk, use `disk_folder`, a
fixture too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOM = 4 << 30
"""Bytes that a whole run may need at once, with much to spare."""
_MEMORY = Path("/dev/shm")
_DISK = "SFS_TEST_DISK"
"""Environment variable by which worker processes know the place on the disk."""


def memory() -> Path | None:
    """Return a folder in memory, if there is one that this process may write."""
    return _MEMORY if os.access(_MEMORY, os.W_OK) else None


@contextmanager
def disk_folder() -> Iterator[Path]:
    """Make a folder on the disk for the time of a block."""
    with tempfile.TemporaryDirectory(prefix="sfs-test-", dir=os.environ.get(_DISK)) as folder:
        yield Path(folder)


def use_memory() -> None:
    """Make a folder in memory the place of temporary files, also in processes started from here.

    Changes nothing if TMPDIR is set, or if fewer than `ROOM` bytes are free.
    """
    found = None if os.environ.get("TMPDIR") else memory()
    if found is not None and _free(found) >= ROOM:
        os.environ[_DISK] = tempfile.gettempdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(found)


def _free(folder: Path) -> int:
    """Return the bytes that may be written to a folder in memory; 0 if that is unknown."""
    status = os.statvfs(folder)
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    return min(status.f_bavail * status.f_frsize, *available) if available else 0
