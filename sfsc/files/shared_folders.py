"""Shared folders: a file stored in one gets the folder's readers, on every device of the account.
They are listed in the account's settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from protocol.codec.values import changed
from protocol.records.records import ReaderEntry
from sfsc.errors import NotFound, UsageError
from sfsc.files.settings import MAX_FOLDERS, AccountSettings, Folder, Settings
from sfsc.library_log import log_warning

MAX_NEW_READERS: Final = 64
"""Maximum readers of a new file: its log entry names each."""


def readers_of(folders: Iterable[Folder], name: str, now: float) -> tuple[ReaderEntry, ...]:
    """Return the readers that these folders give to the file `name` at `now` (unix seconds):
    sorted, each once, with the longest grant."""
    found: dict[tuple[str, bytes], int] = {}
    for one in folders:
        if not one.holds(name) or (one.expires and now >= one.expires):
            continue
        before = found.get((one.user, one.first), one.expires)
        found[one.user, one.first] = 0 if 0 in (before, one.expires) else max(before, one.expires)
    return tuple(sorted((user, first, expires) for (user, first), expires in found.items()))


class SharedFolders:
    """The account's shared folders."""

    def __init__(self, settings: AccountSettings, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives unix seconds."""
        self._settings = settings
        self._clock = clock
        self._refusing: set[str] = set()

    def list_folders(self) -> tuple[Folder, ...]:
        """Return the present shared folders, by prefix and user."""
        return self._settings.read().folders

    def readers_of(self, name: str) -> tuple[ReaderEntry, ...]:
        """Return the readers of a new file of this name, without those who take no files."""
        folders = self._settings.recent().folders
        if not folders:
            return ()
        found = readers_of(folders, name, self._clock())
        return tuple(reader for reader in found if reader[0] not in self._refusing)

    def leave_out(self, users: Iterable[str], cause: str) -> None:
        """Leave these users out of new files in this session, with a warning: they take no files
        from us, which must not keep us from storing any. `cause` is the server's text."""
        for user in sorted(set(users) - self._refusing):
            self._refusing.add(user)
            hint = f"`sfsc unshare -r FOLDER {user}` ends this warning"
            log_warning(f"{user} is left out of new files", cause, hint)

    def share(self, folder: Folder) -> None:
        """Share a folder. Raises `UsageError` if there are too many."""
        self._change(folder, folder.prefix, folder.user)

    def unshare(self, prefix: str, user: str) -> None:
        """Stop sharing a folder. Raises `NotFound` if it is not shared with the user."""
        self._change(None, prefix, user)

    def _change(self, shared: Folder | None, prefix: str, user: str) -> None:
        """List `shared`, or no folder, in place of this one."""

        def change(settings: Settings) -> Settings:
            before = settings.folders
            kept = [one for one in before if (one.prefix, one.user) != (prefix, user)]
            if shared is None and len(kept) == len(before):
                raise NotFound(f"the folder is not shared with {user}", "see `sfsc share --list`")
            found = sorted(
                [*kept, *([] if shared is None else [shared])],
                key=lambda one: (one.prefix, one.user),
            )
            if len(found) > MAX_FOLDERS or len({one.user for one in found}) > MAX_NEW_READERS:
                raise UsageError(
                    f"at most {MAX_FOLDERS} folders can be shared, with {MAX_NEW_READERS} users",
                    "unshare some first",
                )
            return changed(settings, folders=tuple(found))

        self._settings.change(change)
