"""A user's own identity chain and its rotation.

A rotation begins with a statement of the next generation; from there on writes need the new keys.
Then the user's client makes every wrap anew, a batch at a time, and endorses his records; when none
of an older generation is left, a second statement says that older ones count no more.
"""

from __future__ import annotations

from typing import Final

from protocol.codec import merkle
from protocol.codec.base64text import to_text
from protocol.codec.errors import RemoteProtocolError, SignatureError
from protocol.codec.values import changed
from protocol.records.chain import DEVICE, FINISH, KEEPING, RECOVERY, RECOVERY_KEY, RENEWING
from protocol.records.records import RotationFinish, wrap_leaf
from protocol.records.signatures import Label, verify_signature
from protocol.wire.messages import Done, Reply
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.rotation import (
    GetBundle,
    NewStatement,
    RotateBegin,
    RotateFinish,
    SealedBundle,
)
from sfsd.config import DAY
from sfsd.errors import Refused, require
from sfsd.operations.wraps import Keys, is_stale, own_wrap, wraps_of
from sfsd.rules import bundles
from sfsd.rules.context import (
    OWN_KEYS,
    STATEMENTS,
    USER,
    Access,
    Commit,
    Principal,
    ServerContext,
    draft,
    operation,
)
from sfsd.rules.users import User, validate_next_statement
from sfsd.storage.change import Change, Effect, Write
from sfsd.storage.json_files import StoredStatement, encode_statements
from sfsd.storage.paths import account_path, bundle_path, statements_path

PER_RECOVERY: Final = 5
"""Of recoveries an account may make so many times fewer than of rotations. Who is robbed more often
than that needs the operator, who can set `limits.rotations` higher."""


@operation(NewStatement, access=STATEMENTS, logged="statement", weight=PIECE)
def new_statement(
    server: ServerContext, who: Principal, message: NewStatement
) -> Reply | Commit[Reply]:
    """Compare-and-swap on the chain. A block on writing does not hold for it."""
    return _continue(server, who, message, "statement", frozenset({DEVICE, RECOVERY_KEY}))


@operation(RotateBegin, access=STATEMENTS, logged="rotate-begin", weight=PIECE)
def rotate_begin(
    server: ServerContext, who: Principal, message: RotateBegin
) -> Reply | Commit[Reply]:
    """From its acknowledgement on every record must be signed by the new generation."""
    return _continue(server, who, message, "rotate-begin", RENEWING)


@operation(RotateFinish, access=USER, logged="rotate-finish", slow=True, weight=PIECE)
def rotate_finish(
    server: ServerContext, who: Principal, message: RotateFinish
) -> Reply | Commit[Reply]:
    """Granted when nothing of an older generation is left; looked at anew here."""
    user = server.users.require_active(who.user)
    if user.chain.links[-1].body == message.statement:
        return Done(server.receipt(user.chain.links[-1].seq, who))
    finish = _finish_of(user, message)
    leaves: list[bytes] = []
    keys = Keys.of(user)
    for item in wraps_of(server, user.name, known=True):
        wrap = own_wrap(item.document.value, user.name)
        if is_stale(item, wrap, keys):
            raise Refused("conflict", "something of an older generation is left")
        if wrap is not None and wrap.key_id == keys.key_id:
            leaf = wrap_leaf(item.owner, item.file_id, item.version, wrap.wrapped)
            leaves.append(merkle.leaf_hash(leaf))
    if (finish.files, finish.root) != (len(leaves), merkle.root(leaves)):
        raise Refused("conflict", "the store has other wraps by now")
    detail = {
        "finish": to_text(message.finish),
        "finish_sig": to_text(message.finish_signature),
        "files": finish.files,
    }
    return _continue(server, who, message, "rotate-finish", frozenset({FINISH}), detail)


def _finish_of(user: User, message: RotateFinish) -> RotationFinish:
    head = user.chain.head
    try:
        verify_signature(
            Label.ROTATION_FINISH, message.finish, message.finish_signature, head.sign_pub
        )
        finish = RotationFinish.parse(message.finish)
    except SignatureError as exc:
        raise Refused("refused", "the finish is not signed by the current key") from exc
    except RemoteProtocolError as exc:
        raise Refused("bad-request", f"not a finish: {exc}") from exc
    require(finish.generation == head.generation, "a finish of another generation")
    return finish


def _continue(
    server: ServerContext,
    who: Principal,
    message: NewStatement | RotateBegin | RotateFinish,
    op: str,
    reasons: frozenset[str],
    detail: dict[str, object] | None = None,
) -> Reply | Commit[Reply]:
    """The next statement onto the user's chain, with its bundle."""
    user = server.users.require_active(who.user)
    links = user.chain.links
    if links[-1].body == message.statement:
        return Done(server.receipt(links[-1].seq, who))
    statement, sigs = validate_next_statement(
        user.chain,
        message.statement,
        message.signatures,
        message.bundle,
        reasons=reasons,
        policy=server.config.rotation,
        now=server.now,
    )

    _check_not_too_often(server, user, statement.reason)

    def chain(seq: int) -> bytes:
        added = StoredStatement(message.statement, message.signatures, seq, statement)
        return encode_statements((*links, added))

    about = {"n": statement.n, "reason": statement.reason, "generation": statement.generation}
    entry = draft(
        who,
        op,
        owner=user.name,
        rec=message.statement,
        sigs=sigs,
        detail={**about, **(detail or {})},
        accounts=(user.name,),
    )
    effects: list[Effect] = [
        Write(statements_path(user.name), chain),
        Write(bundle_path(user.name), bytes(message.bundle)),
        *bundles.keep_newest_bundle(server, user.chain),
    ]
    if statement.reason in RENEWING and user.account.value.forced is not None:
        released = changed(user.account.value, forced=None)
        effects.append(Write(account_path(user.name), released.encode))
    change = Change(entry, user.expect, tuple(effects))
    return Commit(change, lambda seq: Done(server.receipt(seq, who)))


def _check_not_too_often(server: ServerContext, user: User, reason: str) -> None:
    """Raise `Refused` where too many such statements came in the time for which earlier bundles are
    kept: of rotations `limits.rotations`, twice as many that keep the keys, a fifth of recoveries.

    All of a chain is written anew with each, by the thread that makes everybody's changes, so none
    may be long because nothing bounds it. By default rotations are fewer than signatures: a thief
    who rotates on and on does not push out the owner's last endorsement before it can be recovered.
    Whatever he used up, a recovery gives back, of which only the owner has the key.
    """
    head, most, days = user.chain.head, server.config.limits.rotations, bundles.KEPT_DAYS
    if reason == FINISH:
        # So there are no more of these than of rotations.
        require(head.oldest < head.generation, "no older generation counts any more")
    elif reason == RECOVERY:
        recoveries = max(1, most // PER_RECOVERY)
        if _lately(server, user, frozenset({RECOVERY}), since_recovery=False) >= recoveries:
            why = f"{recoveries} recoveries within {days} days"
            raise Refused("denied", f"{why}; the operator may set limits.rotations higher")
    elif reason in RENEWING:
        if (begun := _lately(server, user, RENEWING)) >= most:
            raise Refused("denied", f"{begun} rotations within {days} days; wait, or recover")
    elif (added := _lately(server, user, KEEPING - {FINISH})) >= 2 * most:
        raise Refused("denied", f"{added} statements within {days} days; wait, or recover")


def _lately(
    server: ServerContext, user: User, reasons: frozenset[str], *, since_recovery: bool = True
) -> int:
    """How many of the chain's statements are of these reasons, of those of the last days."""
    since, found = server.now - bundles.KEPT_DAYS * DAY, 0
    for link in reversed(user.chain.links):
        recovers = link.statement.reason == RECOVERY
        if (recovers and since_recovery) or server.logged_at(link.seq) < since:
            break
        found += link.statement.reason in reasons
    return found


@operation(GetBundle, access=OWN_KEYS)
def get_bundle(server: ServerContext, who: Principal, message: GetBundle) -> SealedBundle:
    if message.n and who.access is not Access.RECOVERY:
        raise Refused("not-allowed", "only the recovery key is given earlier bundles")
    with server.store.publishing_paused():
        chain = server.users.require_active(who.user).chain
        return SealedBundle(bundles.read_bundle(server, chain, message.n or chain.head.n))
