"""``OWNER:NAME`` on the command line: a file that another user shares.

Commands that read take it (`split_owner`); commands that change something refuse it (`own_name`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sfsc.errors import UsageError

if TYPE_CHECKING:
    from sfsc.store import Store

OWNER_AND_NAME: Final = re.compile(r"([a-z0-9][a-z0-9_-]{0,31}):(.*)", re.DOTALL)


def split_owner(store: Store, text: str) -> tuple[str | None, str]:
    """Split ``OWNER:NAME`` into (owner, name); owner None for a file of our own. A file of our own
    whose name contains a colon can be written with our own user name as OWNER."""
    return _split(text, lambda: store.whoami().user)


def _split(text: str, user: Callable[[], str]) -> tuple[str | None, str]:
    matched = OWNER_AND_NAME.fullmatch(text)
    if matched is None:
        return None, text
    owner, name = matched[1], matched[2]
    return (None if owner == user() else owner), name


def own_name(store: Store, text: str) -> str:
    """Return the name of a file of our own, which a command is about to change. Raises `UsageError`
    for ``OWNER:NAME``: only its owner changes a file."""
    return own_name_of(lambda: store.whoami().user, text)


def own_name_of(user: Callable[[], str], text: str) -> str:
    """Like `own_name`, without a store. `user` returns our user name, and is called only if the
    text has an owner."""
    owner, name = _split(text, user)
    if owner is not None:
        cause = f"{text} is a file of {owner}, and only {owner} can change it"
        hint = f"for a file of your own with this name, write {user()}:{text}"
        raise UsageError(cause, hint)
    return name
