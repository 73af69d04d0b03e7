"""File system with injected faults, and crashes at any call."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from sfsd.fs.files import Files


class Crash(BaseException):
    """End of the process: a BaseException, so that no error handler catches it."""


class FaultyFiles(Files):
    """File system whose calls fail as planned: `fail("write", "audit.jsonl")` fails one write.

    `times` plans several failures, `short` a write that takes that many bytes and succeeds. The
    changing call number `crash_at` raises `Crash` instead.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.crash_at: int | None = None
        self._faults: list[list[object]] = []
        self._names: dict[int, str] = {}

    def fail(
        self,
        call: str,
        name: str,
        code: int = errno.EIO,
        *,
        times: int = 1,
        short: int | None = None,
    ) -> None:
        self._faults.append([call, name, code, times, short])

    def heal(self) -> None:
        self._faults.clear()

    def _take(self, call: str, name: str) -> int | None:
        """Raise the planned error; return the bytes of a planned short write, otherwise None."""
        self.calls.append((call, name))
        if self.crash_at is not None and len(self.calls) > self.crash_at:
            raise Crash
        for fault in self._faults:
            planned, where, code, times, short = fault
            assert isinstance(code, int)
            assert isinstance(times, int)
            if planned == call and where == name and times > 0:
                fault[3] = times - 1
                if isinstance(short, int):
                    return short
                raise OSError(code, os.strerror(code))
        return None

    def open_new(self, path: Path | str) -> int:
        path = Path(path)
        handle = super().open_new(path)
        self._names[handle] = path.name
        return handle

    def open_append(self, path: Path) -> int:
        handle = super().open_append(path)
        self._names[handle] = path.name
        return handle

    def open_update(self, path: Path) -> int:
        handle = super().open_update(path)
        self._names[handle] = path.name
        return handle

    def write(self, handle: int, data: bytes | bytearray | memoryview) -> int:
        short = self._take("write", self._names[handle])
        return super().write(handle, data if short is None else data[:short])

    def truncate(self, handle: int, size: int) -> None:
        self._take("truncate", self._names[handle])
        super().truncate(handle, size)

    def sync(self, handle: int) -> None:
        self._take("sync", self._names.get(handle, "folder"))
        super().sync(handle)

    def sync_folder(self, folder: Path) -> None:
        if any(fault[0] == "sync_folder" for fault in self._faults):
            self._take("sync_folder", folder.name)
        super().sync_folder(folder)

    def sync_all(self, folder: int) -> bool:
        return False

    def sync_data(self, handle: int) -> None:
        self._take("sync_data", self._names[handle])
        super().sync_data(handle)

    def is_named(self, handle: int, path: Path) -> bool:
        if any(fault[0] == "is_named" for fault in self._faults):
            self._take("is_named", path.name)
        return super().is_named(handle, path)

    def replace(self, source: Path | str, target: Path | str) -> None:
        source, target = Path(source), Path(target)
        self._take("replace", target.name)
        super().replace(source, target)

    def remove(self, path: Path | str) -> None:
        path = Path(path)
        self._take("remove", path.name)
        super().remove(path)
