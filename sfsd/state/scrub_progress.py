"""How far the scrub has come and what damage it has found, kept in run/scrub.json.

The file is replaced as a whole. It is a note of what was read, which nothing else relies on: if it
is missing or malformed, the next pass begins at the first file.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from protocol.codec.values import Value
from sfsd.fs.files import Files

NAME: Final = "scrub.json"
MAX_DAMAGED: Final = 10_000
"""Damaged files that are kept; about 250 bytes each."""
_MAX_SIZE: Final = 8 << 20
_log = logging.getLogger(__name__)


class DamagedFile(Value):
    """A file that was not what entry `seq` wrote when pass number `found` read it. `kind` is
    missing, unreadable or changed, `text` says it in words."""

    kind: str
    text: str
    seq: int
    found: int


class ScrubProgress:
    """Progress of the scrub of one root. One thread changes it, any thread reads.

    Times are in Unix seconds. While a pass runs, `began` is its begin and `after` the last path
    that it has read; otherwise `began` is 0.
    """

    def __init__(self, folder: Path, files: Files) -> None:
        """Read the file in `folder`, if there is one."""
        self._path = folder / NAME
        self._files = files
        self._lock = threading.Lock()
        self._wake: Callable[[], None] = lambda: None
        self.is_wanted = False
        """Whether the operator asks for a pass now."""
        self.number = 0
        self.began = 0
        self.after = ""
        self.files = 0
        self.bytes = 0
        self.last_began = 0
        self.last_finished = 0
        self.last_files = 0
        """Files that the last whole pass has read; `last_bytes` is how many bytes."""
        self.last_bytes = 0
        self._damaged: dict[str, DamagedFile] = {}
        self._read()

    @property
    def damaged(self) -> dict[str, DamagedFile]:
        """The damaged files, by its path below store/users, in order."""
        with self._lock:
            return dict(sorted(self._damaged.items()))

    def want(self) -> None:
        """Ask for a pass now. Any thread."""
        self.is_wanted = True
        self._wake()

    def on_want(self, wake: Callable[[], None]) -> None:
        """Have `wake` called whenever a pass is asked for."""
        self._wake = wake

    def begin(self, now: int) -> None:
        """Begin a pass."""
        self.number += 1
        self.began, self.after, self.files, self.bytes = now, "", 0, 0

    def note_examined(self, path: str) -> None:
        """Count a file, and record that the pass has come to it."""
        self.after = path
        self.files += 1

    def note_damage(self, path: str, kind: str, text: str, seq: int) -> bool:
        """Record a damaged file. Return False if this pass has recorded it already."""
        new = DamagedFile(kind, text, seq, self.number)
        with self._lock:
            before = self._damaged.get(path)
            if before is not None or len(self._damaged) < MAX_DAMAGED:
                self._damaged[path] = new
        return before != new

    def note_right(self, path: str) -> None:
        """Record that a file is what the log says, or is not to exist any more."""
        if path in self._damaged:
            with self._lock:
                del self._damaged[path]

    def finish(self, now: int) -> None:
        """End the pass. What it did not find damaged is not damaged, or not there, any more."""
        with self._lock:
            self._damaged = {
                path: one for path, one in self._damaged.items() if one.found == self.number
            }
        self.last_began, self.last_finished = self.began, now
        self.last_files, self.last_bytes = self.files, self.bytes
        self.began, self.after = 0, ""

    def save(self) -> None:
        """Replace the file. A failure costs a pass that begins again after a restart."""
        state: dict[str, Any] = {name: getattr(self, name) for name in _NUMBERS}
        state["after"] = self.after
        state["damaged"] = {
            path: [one.kind, one.text, one.seq, one.found] for path, one in self.damaged.items()
        }
        try:
            self._files.make_folder(self._path.parent)
            self._files.replace_soon(self._path, json.dumps(state).encode())
        except OSError as exc:
            _log.warning("%s not written: %s", self._path, exc.strerror)

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                raw = file.read(_MAX_SIZE + 1)
        except FileNotFoundError:
            return
        except OSError as exc:
            _log.warning("%s cannot be read: %s", self._path, exc.strerror)
            return
        try:
            self._take(json.loads(raw))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            # Power loss may leave zeros: the file is replaced without a sync.
            _log.warning("%s is malformed: the scrub begins again", self._path)

    def _take(self, state: dict[str, Any]) -> None:
        numbers = {name: _number(state[name]) for name in _NUMBERS}
        after = _text(state["after"])
        damaged = {
            _text(path): DamagedFile(_text(kind), _text(text), _number(seq), _number(found))
            for path, (kind, text, seq, found) in state["damaged"].items()
        }
        for name, value in numbers.items():
            setattr(self, name, value)
        self.after, self._damaged = after, damaged


_NUMBERS: Final = (
    "number",
    "began",
    "files",
    "bytes",
    "last_began",
    "last_finished",
    "last_files",
    "last_bytes",
)


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise ValueError("not a count")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value
