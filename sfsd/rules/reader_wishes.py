"""Decisions of readers about files that others share: files they left, owners they block.

Both are the reader's own decisions. They give nobody access, and an owner cannot undo them. Neither
keeps an owner from anything: a reader who wants no file needs no wrap of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sfsd.errors import DamagedError, Refused
from sfsd.rules.users import UserRegistry
from sfsd.state.inbox_index import InboxIndex


class ReaderWishes:
    """Answers from the readers' accounts and inboxes; nothing is cached here."""

    def __init__(self, users: UserRegistry, inboxes: InboxIndex, shared_files: int) -> None:
        """`shared_files` is how many files one owner can share with one reader."""
        self._users = users
        self._inboxes = inboxes
        self.shared_files = shared_files

    def takes(self, user: str, owner: str, file_id: str) -> bool:
        """Return whether the owner made `user` a reader of the file, and the user neither has left
        it nor blocks the owner. The grant may have ended. Raises `DamagedError`."""
        return self._inboxes.has(user, (owner, file_id)) and not self.blocks(user, owner)

    def has_left(self, user: str, owner: str, file_id: str) -> bool:
        """Return whether `user`, whom the file's last record names as a reader, has left it."""
        return not self._inboxes.has(user, (owner, file_id))

    def blocks(self, user: str, owner: str) -> bool:
        """Return whether `user` blocks `owner`. Raises `DamagedError`."""
        account = self._users.account(user)
        return account is not None and owner in account.value.blocked

    def check_new(self, owner: str, users: Sequence[str], *, moved: bool = False) -> None:
        """Check that the owner can make `users` readers of one more file.

        A file that has `moved` to another name is not offered to them again: a reader who blocks
        the owner must not keep the owner from a move. Raises `Refused` (share-refused) with the
        readers who cannot be added.
        """
        removed = tuple(user for user in users if self._is_removed(user))
        if removed:
            why = f"the operator has removed {', '.join(removed)}"
            raise Refused("share-refused", why, readers=removed)
        blocking = tuple(user for user in users if not moved and self._blocks_new(user, owner))
        if blocking:
            names = ", ".join(blocking)
            raise Refused("share-refused", f"{names} takes no files from you", readers=blocking)
        most = self.shared_files
        counts = ((user, self._inboxes.for_user(user).count_from(owner)) for user in users)
        full = tuple(user for user, count in counts if count >= most)
        if full:
            why = f"you already share {most} files with {', '.join(full)}"
            raise Refused("share-refused", why, readers=full)

    def _is_removed(self, user: str) -> bool:
        account = self._users.readable_account(user)
        return account is not None and account.removal > 0

    def _blocks_new(self, user: str, owner: str) -> bool:
        try:
            return self.blocks(user, owner)
        except DamagedError:
            return False  # one account's damage must not stop other users
