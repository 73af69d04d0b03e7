"""Synchronises a folder whenever something in it changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, TypeVar

from sfsc.closing import Closing
from sfsc.errors import (
    ConflictError,
    LocalError,
    NetworkError,
    QuotaExceeded,
    SfscError,
    SyncRunning,
)
from sfsc.files.sync import Synced
from sfsc.transfer.status import UNCHANGED

Trouble = Callable[[SfscError, float], None]
"""Called with an error after which the work is tried again, and the seconds until then."""
_Store = TypeVar("_Store")
_TEMPORARY: Final = (NetworkError, QuotaExceeded, ConflictError, SyncRunning)
_LONGEST_PAUSE: Final = 60.0
_RESCAN: Final = 600.0
"""Seconds after which the folder is examined even if no change was reported: a system may lose
reports when there are very many."""
_TICK: Final = 200
"""Milliseconds between looks at the event that ends the thread."""


class FolderChanges(Closing):
    """Waits for changes in a folder, by what the system reports on a thread: a signal reaches the
    main thread, which waits for the thread only."""

    def __init__(self, folder: Path) -> None:
        """Return once changes are noted. Raises `LocalError`."""
        self._folder = folder
        self._changed = threading.Event()
        self._started = threading.Event()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sfsc-watch", daemon=True)
        self._thread.start()
        self._started.wait()
        self._check()

    def wait(self, seconds: float) -> None:
        """Wait until something has changed since the last call, for some seconds at most. Raises
        `LocalError`."""
        self._changed.wait(seconds)
        self._changed.clear()
        self._check()

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        from watchfiles import watch  # slow to import

        try:
            found = watch(
                self._folder,
                watch_filter=None,
                stop_event=self._stop,
                rust_timeout=_TICK,
                yield_on_timeout=True,
                ignore_permission_denied=True,
            )
            for changes in found:
                self._started.set()
                if changes:
                    self._changed.set()
        except (OSError, RuntimeError) as exc:
            self._failure = exc
        finally:
            self._started.set()
            self._changed.set()

    def _check(self) -> None:
        if self._failure is not None:
            cause = f"cannot watch {self._folder}: {self._failure}"
            raise LocalError(cause, "see docs/guide.md about limits of the system")


def watch_folder(
    connect: Callable[[], AbstractContextManager[_Store]],
    folder: Path,
    sync: Callable[[_Store], Iterator[Synced]],
    trouble: Trouble,
    pause: Callable[[float], None] = time.sleep,
) -> Generator[Synced]:
    """Call `sync` on a new connection at first, and whenever something in `folder` has changed;
    yield its results, without unchanged files. After an error that may pass, call `trouble`,
    `pause`, and try again. Raises other errors, and `LocalError` if the folder cannot be
    watched."""
    with FolderChanges(folder) as changes:
        seconds = 0.0
        while True:
            try:
                with connect() as store:
                    yield from (one for one in sync(store) if one.status != UNCHANGED)
            except _TEMPORARY as exc:
                seconds = min(_LONGEST_PAUSE, max(1.0, 2 * seconds))
                trouble(exc, seconds)
                pause(seconds)
                continue
            seconds = 0.0
            changes.wait(_RESCAN)
