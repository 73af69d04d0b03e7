"""Which file or folder an argument names, with or without a slash at its end."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise

from sfsc.errors import NotFound, UsageError


class NameTree:
    """Sorted names of files, seen as a tree of folders."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def has_file(self, name: str) -> bool:
        """Return whether there is a file of exactly this name."""
        at = bisect_left(self._names, name)
        return at < len(self._names) and self._names[at] == name

    def files_in(self, folder: str) -> Sequence[str]:
        """Return the files in a folder ("": all), named with or without a slash at the end."""
        top = folder.rstrip("/")
        prefix = f"{top}/" if top else ""
        start = bisect_left(self._names, prefix)
        end = start
        while end < len(self._names) and self._names[end].startswith(prefix):
            end += 1
        return self._names[start:end]

    def has_folder(self, name: str) -> bool:
        """Return whether a file is in this folder."""
        top = name.rstrip("/")
        at = bisect_left(self._names, f"{top}/")
        return not top or (at < len(self._names) and self._names[at].startswith(f"{top}/"))

    def is_folder(self, name: str) -> bool:
        """Return whether an argument means a folder. A slash at its end says so. Raises `NotFound`
        if there is neither, and `UsageError` if it does not say which of both is meant, or there is
        no such folder."""
        is_file, is_folder = self.has_file(name), self.has_folder(name)
        if name.endswith("/"):
            if not is_folder and self.has_file(name.rstrip("/")):
                raise UsageError(f"{name.rstrip('/')} is a file", "write it without the slash")
            is_file = False
        if is_file and is_folder:
            raise both_kinds(name)
        if not is_file and not is_folder:
            raise NotFound(f"no such file or folder: {name}", "run `sfsc ls` to see what is stored")
        return is_folder


def full_folders(names: Iterable[str]) -> set[str]:
    """Return the names of folders, with a slash at the end, in which there is something. What a
    command does to such a folder is not reported."""
    found = pairwise(sorted(names))
    return {name for name, after in found if name.endswith("/") and after.startswith(name)}


def both_kinds(name: str) -> UsageError:
    """Return the error for a name that a file and a folder have."""
    hint = f"write {name}/ for the folder; to name the file, rename the folder first"
    return UsageError(f"{name} is a file and a folder", hint)
