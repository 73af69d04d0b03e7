"""What is shared with each user, by the notes in his inbox; in memory for those who were last here.

A note says only that an owner once made him a reader of a file. Whether he still may read it, the
file's last record says (`visibility`).
"""

from __future__ import annotations

import bisect
from typing import Final

from sfsd.errors import Refused
from sfsd.state.load_once import LoadOnce
from sfsd.state.user_cache import UserCache
from sfsd.storage.paths import inbox_folder, parse_inbox_name
from sfsd.storage.store import DirectoryStore

USERS: Final = 256
"""Users whose notes are kept in memory; 200 bytes a note."""
MAX_FROM_ONE: Final = 10_000
"""Files that one owner can share with one user: nobody can fill another's inbox, nor the disk's
table of files with empty ones."""
_SCAN: Final = 4096
Note = tuple[str, str]
"""(owner, file_id)"""


class UserInbox(LoadOnce):
    """One user's notes. Safe on several threads."""

    def __init__(self, user: str, store: DirectoryStore) -> None:
        super().__init__()
        self._user = user
        self._store = store
        self._notes: list[Note] = []

    def after(self, note: Note, limit: int) -> list[Note]:
        """Up to `limit` notes behind `note`, in order."""
        self._load(self._scan, self._enter)
        with self._lock:
            start = bisect.bisect_right(self._notes, note)
            return self._notes[start : start + limit]

    def check_room(self, owner: str) -> None:
        """Raise `Refused` where `owner` has filled his part of it."""
        self._load(self._scan, self._enter)
        with self._lock:
            first = bisect.bisect_left(self._notes, (owner, ""))
            last = bisect.bisect_right(self._notes, (owner, "g"))  # past every hexadecimal id
        if last - first >= MAX_FROM_ONE:
            raise Refused("quota", f"{self._user} has {MAX_FROM_ONE} files of yours already")

    def note_changed(self, note: Note, *, present: bool) -> None:
        """A note was written, or removed."""

        def change() -> None:
            place = bisect.bisect_left(self._notes, note)
            there = self._notes[place : place + 1] == [note]
            if present and not there:
                self._notes.insert(place, note)
            elif there and not present:
                del self._notes[place]

        self._note(change)

    def _scan(self) -> list[Note]:
        found: list[Note] = []
        folder, after = inbox_folder(self._user), ""
        while page := self._store.children(folder, after, _SCAN):
            found += [note for name in page if (note := parse_inbox_name(name)) is not None]
            after = page[-1]
        return sorted(found)

    def _enter(self, found: list[Note]) -> None:
        self._notes = found


class InboxIndex(UserCache[UserInbox]):
    """The `UserInbox` of every user."""

    def __init__(self, store: DirectoryStore) -> None:
        super().__init__()
        self._store = store

    def _make(self, user: str) -> UserInbox:
        return UserInbox(user, self._store)

    def _most(self) -> int:
        return USERS
