"""Tells which files of a folder are left out, by patterns as in a ``.gitignore``.

Patterns are given for the whole folder, and stand in files named ``.sfsignore``, each of which
counts for the folder in which it is and for what is below. The last pattern that matches decides;
those of a deeper file come later, and those that were given last of all.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sfsc.errors import UnreadableSource, UsageError

if TYPE_CHECKING:  # slow to import, and few commands have patterns
    from pathspec import GitIgnoreSpec

IGNORE_FILE: Final = ".sfsignore"
MAX_IGNORE_FILE: Final = 1 << 20
"""Bytes of the longest file of patterns."""
_Level = tuple[str, "GitIgnoreSpec"]
"""A folder, "" or with a slash at its end, and the patterns for what is in it."""


class Filters:
    """Patterns of what is left out. Paths are relative to the top folder, with ``/`` between their
    parts, and end with a slash for folders."""

    def __init__(self, patterns: Iterable[str] = (), root: Path | None = None) -> None:
        """`patterns` are those given, in order. `root` is the folder whose ``.sfsignore`` files
        count, None if none do. Raises `UsageError` for a pattern that is malformed."""
        self._root = root
        self._folders: dict[str, tuple[_Level, ...] | None] = {}
        try:
            self._given = _compiled(patterns)
        except ValueError as exc:
            raise UsageError(str(exc), "patterns are those of a .gitignore") from exc

    def excludes(self, path: str) -> bool:
        """Return whether `path`, or a folder above it, is left out. Raises `UnreadableSource` if a
        ``.sfsignore`` file cannot be read."""
        levels = self._levels(_parent(path))
        return levels is None or self._matches(path, levels)

    def _levels(self, folder: str) -> tuple[_Level, ...] | None:
        """Return the patterns that stand in a folder and in those above, outermost first; None if
        the folder is left out."""
        if folder in self._folders:
            return self._folders[folder]
        above: tuple[_Level, ...] | None = ()
        if folder:
            above = self._levels(_parent(folder))
            if above is not None and self._matches(folder, above):
                above = None
        if above is not None and (own := self._read(folder)) is not None:
            above = (*above, (folder, own))
        self._folders[folder] = above
        return above

    def _matches(self, path: str, levels: tuple[_Level, ...]) -> bool:
        if self._given is not None:
            decided = self._given.check_file(path).include
            if decided is not None:
                return decided
        if path.endswith(f"/{IGNORE_FILE}") or path == IGNORE_FILE:
            return False  # it must be where the other files are
        for folder, spec in reversed(levels):
            decided = spec.check_file(path[len(folder) :]).include
            if decided is not None:
                return decided
        return False

    def _read(self, folder: str) -> GitIgnoreSpec | None:
        """Return the patterns that stand in a folder, None for none."""
        if self._root is None:
            return None
        path = self._root / folder / IGNORE_FILE
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return None
            with path.open(encoding="utf-8", errors="surrogateescape") as file:
                text = file.read(MAX_IGNORE_FILE + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            # Without its patterns, files would be stored that are to stay here.
            raise UnreadableSource(f"cannot read {path}: {exc.strerror}") from exc
        if len(text) > MAX_IGNORE_FILE:
            raise UnreadableSource(f"{path} has more than {MAX_IGNORE_FILE} characters")
        try:
            return _compiled(text.splitlines())
        except ValueError as exc:
            raise UnreadableSource(f"{path} is malformed: {exc}") from exc


def read_patterns(path: Path) -> list[str]:
    """Return the patterns of a file, one a line. Raises `UnreadableSource`."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError as exc:
        raise UnreadableSource(f"cannot read {path}: {exc.strerror}") from exc


def _compiled(patterns: Iterable[str]) -> GitIgnoreSpec | None:
    """Return the compiled patterns, None for none. Raises ValueError."""
    lines = [line for line in patterns if line.strip()]
    if not lines:
        return None
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(lines)


def _parent(path: str) -> str:
    """Return the folder of a path, with a slash at its end; "" for the top folder."""
    above, slash, _ = path.removesuffix("/").rpartition("/")
    return above + slash
