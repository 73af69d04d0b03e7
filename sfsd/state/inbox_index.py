"""Index of the files shared with each user, from the notes that the log put into the user's inbox.

A note says that an owner made the user a reader of a file, and that the user has not left it.
Whether the user still may read it is decided by the file's last record too (`sfsd.rules.access`).
"""

from __future__ import annotations

import bisect
from typing import Final

from sfsd.state.documents import Documents
from sfsd.state.load_once import LoadOnce
from sfsd.state.user_cache import UserCache
from sfsd.storage.paths import inbox_folder, inbox_path, parse_inbox_name

USERS: Final = 256
"""Users whose notes are kept in memory; 200 bytes a note."""
Note = tuple[str, str]
"""(owner, file_id)"""


class UserInbox(LoadOnce):
    """One user's notes. Safe on several threads."""

    def __init__(self, user: str, documents: Documents) -> None:
        super().__init__()
        self._user = user
        self._documents = documents
        self._notes: list[Note] = []

    def after(self, note: Note, limit: int) -> list[Note]:
        """Return up to `limit` notes past `note`, in order."""
        self._load(self._scan, self._enter)
        with self._lock:
            start = bisect.bisect_right(self._notes, note)
            return self._notes[start : start + limit]

    def count_from(self, owner: str) -> int:
        """Return how many notes the owner has put here."""
        self._load(self._scan, self._enter)
        with self._lock:
            first = bisect.bisect_left(self._notes, (owner, ""))
            last = bisect.bisect_right(self._notes, (owner, "g"))  # past every hexadecimal id
        return last - first

    def note_changed(self, note: Note, *, present: bool) -> None:
        """Record that a note was written or removed."""

        def change() -> None:
            place = bisect.bisect_left(self._notes, note)
            there = self._notes[place : place + 1] == [note]
            if present and not there:
                self._notes.insert(place, note)
            elif there and not present:
                del self._notes[place]

        self._note(change)

    def _scan(self) -> list[Note]:
        paths = self._documents.latest_below(f"{inbox_folder(self._user)}/")
        names = (path.rpartition("/")[2] for path, _ in paths)
        return sorted(note for name in names if (note := parse_inbox_name(name)) is not None)

    def _enter(self, found: list[Note]) -> None:
        self._notes = found


class InboxIndex(UserCache[UserInbox]):
    """LRU cache of each user's `UserInbox`."""

    def __init__(self, documents: Documents) -> None:
        super().__init__(lambda user: UserInbox(user, documents), USERS)
        self._documents = documents

    def has(self, user: str, note: Note) -> bool:
        """Return whether the note is in the user's inbox, without loading that. Raises
        `JournalError`."""
        return self._documents.is_logged(inbox_path(user, *note))
