"""A user's own identity chain: its next statement, and the bundle that goes with the newest."""

from __future__ import annotations

import hashlib
import hmac

from protocol.messages import Done, Reply
from protocol.messages.rotation import GetBundle, NewStatement, SealedBundle
from sfsd.accounts import judge_next
from sfsd.changes import Change, Write
from sfsd.errors import Absent, DamagedError
from sfsd.layout import StoredStatement, bundle_path, encode_statements, statements_path
from sfsd.world import OWN_KEYS, STATEMENTS, Commit, Principal, World, draft, operation


@operation(NewStatement, access=STATEMENTS, logged="statement")
def new_statement(world: World, who: Principal, message: NewStatement) -> Reply | Commit[Reply]:
    """Compare-and-swap on the chain. A block on writing does not hold for it."""
    user = world.accounts.acting(who.user)
    links = user.chain.links
    if links[-1].body == message.statement:
        return Done(world.receipt(links[-1].seq, who))
    statement, sigs = judge_next(
        user.chain, message.statement, message.signatures, message.bundle, now=world.now
    )

    def chain(seq: int) -> bytes:
        added = StoredStatement(message.statement, message.signatures, seq, statement)
        return encode_statements((*links, added))

    entry = draft(
        who,
        "statement",
        owner=user.name,
        rec=message.statement,
        sigs=sigs,
        detail={"n": statement.n, "reason": statement.reason, "generation": statement.generation},
        accounts=(user.name,),
    )
    effects = (
        Write(statements_path(user.name), chain),
        Write(bundle_path(user.name), bytes(message.bundle)),
    )
    change = Change(entry, user.expect, effects)
    return Commit(change, lambda seq: Done(world.receipt(seq, who)))


@operation(GetBundle, access=OWN_KEYS)
def get_bundle(world: World, who: Principal, message: GetBundle) -> SealedBundle:  # noqa: ARG001
    user = world.accounts.acting(who.user)
    path = bundle_path(user.name)
    try:
        bundle = world.store.read(path)
    except Absent as exc:
        raise DamagedError("the bundle is not there", path=path) from exc
    digest = hashlib.sha256(bundle).digest()
    if not hmac.compare_digest(digest, user.chain.head.bundle_sha256):
        raise DamagedError("not the bundle of the newest statement", path=path)
    return SealedBundle(bundle)
