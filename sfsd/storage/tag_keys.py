"""The secret tag keys of accounts, with which the log's entries are tagged (`protocol.log.tags`).

An account's key is in account.json, and once more in tag.key: nothing else has it, and entries that
lack their tags would look like a lie to its user. The first statement commits to the key, so a
wrong one is never used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress

from protocol.log.auditlog import EntryDraft
from protocol.log.tags import check_tag_key
from sfsd.errors import Absent, DamagedError
from sfsd.storage.json_files import parse_account, parse_statements
from sfsd.storage.paths import account_path, statements_path, tag_key_path
from sfsd.storage.store import DirectoryStore

_KEPT = 8192
"""Keys kept in memory, about 200 bytes each."""


class TagKeys:
    """Finds the tag keys of accounts. For the committer thread. A key is for life, so it is read
    once."""

    def __init__(self, store: DirectoryStore) -> None:
        self._store = store
        self._keys: OrderedDict[str, bytes] = OrderedDict()

    def for_draft(self, draft: EntryDraft) -> dict[str, bytes]:
        """Return the keys of the draft's accounts, without those who are not enrolled.

        An account whose key is damaged is left out too, so that others can continue, unless it is
        the actor. Raises `DamagedError`, StoreRefusedError.
        """
        found: dict[str, bytes] = {}
        for user in draft.accounts:
            try:
                key = draft.tag_keys.get(user) or self.find(user)
            except DamagedError:
                if user == draft.actor:
                    raise
                continue
            if key is not None:
                found[user] = key
        return found

    def find(self, user: str) -> bytes | None:
        """Return the 32-byte key of an enrolled user, None for another name. Raises
        `DamagedError`, StoreRefusedError."""
        known = self._keys.get(user)
        if known is not None:
            self._keys.move_to_end(user)
            return known
        path = statements_path(user)
        try:
            chain = parse_statements(path, self._store.read(path))
        except Absent:
            return None
        commit = chain[0].statement.tag_commit
        for key in self._stored(user):
            if check_tag_key(key, commit):
                self._keys[user] = key
                if len(self._keys) > _KEPT:
                    self._keys.popitem(last=False)
                return key
        raise DamagedError("the account's tag key is lost", path=account_path(user))

    def _stored(self, user: str) -> Iterator[bytes]:
        """Yield what is stored as the key."""
        path = account_path(user)
        with suppress(Absent, DamagedError):
            account = parse_account(path, self._store.read(path))
            if account.tag_key is not None:
                yield account.tag_key
        with suppress(Absent):
            yield self._store.read(tag_key_path(user))
