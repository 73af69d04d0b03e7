"""Retention of the sealed key bundles of superseded statements.

A thief of an account's key can seal the newest bundle for their own devices only. The recovery code
still opens the bundle before it, and the owner recovers the account with that code alone. An older
bundle holds only private keys older than the newest, for the same devices, so nothing that is
wrapped for the newest key opens with it.

If there are more than `KEPT_MOST`, those that were the newest for the shortest time are removed
first: an attacker who floods the chain removes their own bundles.
"""

from __future__ import annotations

import hashlib
from typing import Final

from protocol.codec.names import SERVER
from protocol.log.auditlog import RETENTION, EntryDraft
from sfsd.errors import Absent, DamagedError, Refused
from sfsd.rules.context import ServerContext
from sfsd.rules.users import Chain
from sfsd.settings.kinds import DAY
from sfsd.storage.change import Change, Effect, Remove, Write
from sfsd.storage.paths import bundle_path, kept_bundle_path, parse_kept_bundle, statements_path

KEPT_DAYS: Final = 30
"""Days that a bundle is kept after its successor was logged."""
KEPT_MOST: Final = 256
"""Bundles kept for one account. Each has at most 64 KiB, typically 5 KiB."""


def read_bundle(server: ServerContext, chain: Chain, n: int) -> bytes:
    """Return the bundle of statement `n`. Raises `Refused` if it is not kept, `DamagedError`."""
    newest = n == chain.head.n
    if not 0 < n <= chain.head.n:
        raise Refused("not-found", f"the chain has no statement {n}")
    path = bundle_path(chain.user) if newest else kept_bundle_path(chain.user, n)
    if not newest and server.documents.latest(path) is None:
        raise Refused("not-found", f"the bundle of statement {n} is no longer kept")
    try:
        bundle = server.store.read(path)
    except Absent as exc:
        raise DamagedError("missing bundle", path=path) from exc
    if hashlib.sha256(bundle).digest() != chain.links[n - 1].statement.bundle_sha256:
        raise DamagedError("the bundle does not match its statement", path=path)
    return bundle


def keep_newest_bundle(server: ServerContext, chain: Chain) -> list[Effect]:
    """Return the effects that keep the newest bundle when a new statement supersedes it.

    A damaged bundle is dropped, because it must not stop a rotation.
    """
    user, n = chain.user, chain.head.n
    try:
        bundle = read_bundle(server, chain, n)
    except DamagedError:
        return []
    kept = [*_kept(server, user), n]
    gone: set[int] = set()
    if (surplus := len(kept) - KEPT_MOST) > 0:
        gone |= set(sorted(kept, key=lambda one: _seconds_newest(server, chain, one))[:surplus])
    effects: list[Effect] = [Remove(kept_bundle_path(user, one)) for one in sorted(gone - {n})]
    if n not in gone:
        effects.append(Write(kept_bundle_path(user, n), bundle))
    return effects


def remove_expired_bundles(server: ServerContext, owner: str) -> Change | None:
    """Return a change that removes the owner's bundles past `KEPT_DAYS`, None if there are none."""
    found = server.users.chain(owner)
    if found is None:
        return None
    chain, digest = found
    gone = [
        n
        for n in _kept(server, owner)
        if n >= chain.head.n or server.now - _logged_at(server, chain, n + 1) >= KEPT_DAYS * DAY
    ]
    if not gone:
        return None
    draft = EntryDraft(
        op=RETENTION,
        actor=SERVER,
        owner=owner,
        detail={"bundles": gone, "why": "bundles"},
        accounts=(owner,),
    )
    # If the chain has grown since, a different set of bundles is kept.
    expect = {statements_path(owner): digest}
    return Change(draft, expect, tuple(Remove(kept_bundle_path(owner, n)) for n in gone))


def bundle_paths(server: ServerContext, user: str) -> list[str]:
    """Return the paths of all bundles of an account."""
    newest = bundle_path(user)
    kept = [kept_bundle_path(user, n) for n in _kept(server, user)]
    return [*kept, *([] if server.documents.latest(newest) is None else [newest])]


def _kept(server: ServerContext, user: str) -> list[int]:
    """Return the numbers of the statements whose bundles are kept, in order."""
    names = (
        path.rpartition("/")[2] for path, _ in server.documents.latest_below(f"{user}/bundle.")
    )
    return sorted(n for name in names if (n := parse_kept_bundle(name)) is not None)


def _seconds_newest(server: ServerContext, chain: Chain, n: int) -> float:
    """Return for how many seconds the bundle of statement `n` was the newest."""
    end = server.now if n == chain.head.n else _logged_at(server, chain, n + 1)
    return end - _logged_at(server, chain, n)


def _logged_at(server: ServerContext, chain: Chain, n: int) -> float:
    return server.logged_at(chain.links[n - 1].seq)
