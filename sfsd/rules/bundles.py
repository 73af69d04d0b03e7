"""Bundles of statements that have a successor, kept for a time.

Who has stolen an account's key can seal its newest bundle for himself alone. What the one before
held, the recovery code still opens: with that and nothing else the owner takes the account back.
Each holds older private keys only than the newest, for the same devices, so nothing that is wrapped
for the newest opens with it.

Of more than `KEPT_MOST` those go first that were the newest for the shortest time: who floods the
chain drives out his own.
"""

from __future__ import annotations

import hashlib
from typing import Final

from protocol.codec.names import SERVER
from protocol.log.auditlog import EntryDraft
from sfsd.config import DAY
from sfsd.errors import Absent, DamagedError, Refused
from sfsd.rules.context import World
from sfsd.rules.users import Chain
from sfsd.storage.change import Change, Effect, Remove, Write
from sfsd.storage.paths import bundle_path, kept_bundle_path, parse_kept_bundle, statements_path

KEPT_DAYS: Final = 30
"""Since its successor was logged."""
KEPT_MOST: Final = 256
"""Of one account; of at most 64 KiB each, mostly of 5."""


def read(world: World, chain: Chain, n: int) -> bytes:
    """The bundle of statement `n`. Raises `Refused` where it is not kept, and `DamagedError`."""
    newest = n == chain.head.n
    if not 0 < n <= chain.head.n:
        raise Refused("not-found", f"the chain has no statement {n}")
    path = bundle_path(chain.user) if newest else kept_bundle_path(chain.user, n)
    try:
        bundle = world.store.read(path)
    except Absent as exc:
        if not newest:
            raise Refused("not-found", "that bundle is not kept") from exc
        raise DamagedError("the bundle is not there", path=path) from exc
    if hashlib.sha256(bundle).digest() != chain.links[n - 1].statement.bundle_sha256:
        raise DamagedError("not the bundle of its statement", path=path)
    return bundle


def keeping(world: World, chain: Chain) -> list[Effect]:
    """What is done with the newest bundle, and with those kept before, when another takes its
    place. One that is damaged is not worth keeping, and must not stop a rotation."""
    user, n = chain.user, chain.head.n
    try:
        bundle = read(world, chain, n)
    except DamagedError:
        return []
    kept = [*_kept(world, user), n]
    gone: set[int] = set()
    if (surplus := len(kept) - KEPT_MOST) > 0:
        gone |= set(sorted(kept, key=lambda one: _in_force(world, chain, one))[:surplus])
    effects: list[Effect] = [Remove(kept_bundle_path(user, one)) for one in sorted(gone - {n})]
    if n not in gone:
        effects.append(Write(kept_bundle_path(user, n), bundle))
    return effects


def expired(world: World, owner: str) -> Change | None:
    """The removal of those of `owner` that were kept long enough; None where there are none."""
    found = world.accounts.chain(owner)
    if found is None:
        return None
    chain, digest = found
    gone = [
        n
        for n in _kept(world, owner)
        if n >= chain.head.n or world.now - _logged(world, chain, n + 1) >= KEPT_DAYS * DAY
    ]
    if not gone:
        return None
    draft = EntryDraft(
        op="retention",
        actor=SERVER,
        owner=owner,
        detail={"bundles": gone, "why": "bundles"},
        accounts=(owner,),
    )
    # Of a chain that has grown since, others are kept.
    expect = {statements_path(owner): digest}
    return Change(draft, expect, tuple(Remove(kept_bundle_path(owner, n)) for n in gone))


def _kept(world: World, user: str) -> list[int]:
    names = world.store.children(user)
    return sorted(n for name in names if (n := parse_kept_bundle(name)) is not None)


def _in_force(world: World, chain: Chain, n: int) -> float:
    """Seconds for which the bundle of `n` was the newest."""
    end = world.now if n == chain.head.n else _logged(world, chain, n + 1)
    return end - _logged(world, chain, n)


def _logged(world: World, chain: Chain, n: int) -> float:
    return world.logged(chain.links[n - 1].seq)
