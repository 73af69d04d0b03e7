"""Whose keys have come to their age: the log says so, once for each generation.

Nothing is blocked by it. What a user may do past `due` is decided when he asks (`accounts`), so a
daemon that stood still, or a log that was full, puts no block off.
"""

from __future__ import annotations

from protocol.codec.names import SERVER
from protocol.codec.values import changed
from protocol.log.auditlog import EntryDraft
from sfsd.rules.context import ServerContext
from sfsd.storage.change import Change, Write
from sfsd.storage.paths import account_path


def rotation_due_change(world: ServerContext, name: str) -> Change | None:
    """The entry that says it of `name`, where it is so and was not said. Raises `DamagedError`."""
    user = world.users.find(name)
    if user is None or user.account.value.disabled:
        return None
    head, account = user.chain.head, user.account.value
    if world.now < head.due or account.fell_due >= head.generation:
        return None
    draft = EntryDraft(
        op="rotation-due",
        actor=SERVER,
        owner=name,
        detail={"generation": head.generation, "due": head.due, "expires": head.expires},
        accounts=(name,),
    )
    told = changed(account, fell_due=head.generation)
    return Change(draft, user.expect, (Write(account_path(name), told.encode),))
