"""``OWNER:NAME`` on the command line: a file that another user shares.

Commands that read take it (`split_owner`); commands that change something refuse it (`own_name`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sfsc.errors import UsageError

if TYPE_CHECKING:
    from sfsc.store import Store

OWNER_AND_NAME: Final = re.compile(r"([a-z0-9][a-z0-9_-]{0,31}):(.*)", re.DOTALL)


def split_owner(store: Store, text: str) -> tuple[str | None, str]:
    """Split ``OWNER:NAME`` into (owner, name); owner None for a file of our own. A file of our own
    whose name contains a colon can be written with our own user name as OWNER."""
    matched = OWNER_AND_NAME.fullmatch(text)
    if matched is None:
        return None, text
    owner, name = matched[1], matched[2]
    return (None if owner == store.whoami().user else owner), name


def own_name(store: Store, text: str) -> str:
    """Return the name of a file of our own, which a command is about to change. Raises `UsageError`
    for ``OWNER:NAME``: only its owner changes a file."""
    owner, name = split_owner(store, text)
    if owner is not None:
        cause = f"{text} is a file of {owner}, and only {owner} can change it"
        hint = f"for a file of your own with this name, write {store.whoami().user}:{text}"
        raise UsageError(cause, hint)
    return name
