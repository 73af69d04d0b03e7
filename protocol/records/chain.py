"""How one identity statement follows another (DESIGN section 4): rules that both sides hold to.

A statement is signed by its own key, and where that is a new one, by the key before it or by the
recovery key that was committed before. So nobody but who held one of these can continue a chain,
and who pinned its first statement needs nothing else.

A thief with the old key can continue it too. The committed recovery key, which he can neither have
nor replace, then undoes what he wrote: a statement of reason `recovery` names in `voids` the first
statement that does not stand, and none from that one up to itself does. It names one and not all,
since he who wrote them decides how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from protocol.codec.errors import ChainError, SignatureError
from protocol.records.records import Statement, record_hash
from protocol.records.signatures import Label, verify_signature

DEVICE: Final = "device"
RECOVERY_KEY: Final = "recovery-key"
FINISH: Final = "finish"
RECOVERY: Final = "recovery"
ROTATE: Final = "rotate"
COMPROMISED: Final = "compromised"
KEEPING: Final = frozenset({DEVICE, RECOVERY_KEY, FINISH})
"""Reasons of a statement that leaves generation, keys and term as they are."""
RENEWING: Final = frozenset({ROTATE, COMPROMISED, RECOVERY})
"""Reasons of one that begins the next generation."""
_KEPT: Final = ("generation", "sign_pub", "wrap_alg", "wrap_pub", "due", "expires")


def check_first(body: bytes, signatures: tuple[bytes, ...]) -> Statement:
    """The first statement of a chain. Whose it is, is the caller's to compare.

    Raises `ChainError`, `SignatureError`, `EncodingError` or `MessageError`.
    """
    statement = Statement.parse(body)
    _need(len(signatures) == 1, "a first statement has its own signature and no other")
    verify_signature(Label.STATEMENT, body, signatures[0], statement.sign_pub)
    _need((statement.n, statement.reason) == (1, "enrol"), "not a first statement")
    _need((statement.generation, statement.oldest) == (1, 1), "a first statement's generation is 1")
    _need(not statement.voids, "a first statement has nothing to void")
    return statement


def check_next(
    chain: Sequence[bytes], body: bytes, signatures: tuple[bytes, ...]
) -> tuple[Statement, tuple[bytes, ...]]:
    """(statement, public keys that signed it) of the one that follows `chain`, exact bytes in order
    from the first, all checked before.

    `signatures` has the own key's first; a second is that of the key or the recovery key before.
    Raises as `check_first`.
    """
    before = chain[-1]
    old, new = Statement.parse(before), Statement.parse(body)
    _need((new.server, new.user) == (old.server, old.user), "a statement of another chain")
    _need((new.n, new.prev) == (old.n + 1, record_hash(before)), "not the next statement")
    signers = _signers(old, new, body, signatures)
    by_recovery = old.recovery is not None and old.recovery.sign_pub in signers[1:]
    if new.reason in KEEPING:
        for name in _KEPT:
            _need(getattr(new, name) == getattr(old, name), f"{new.reason} changes {name}")
    else:
        _need(new.generation == old.generation + 1, f"{new.reason} begins the next generation")
        _need(new.sign_pub != old.sign_pub, f"{new.reason} brings a new key")
    _need(new.reason != "enrol", "only the first statement enrols")
    _need(new.reason != RECOVERY or by_recovery, "only the recovery key recovers")
    _need(not new.voids or new.reason == RECOVERY, "only a recovery voids")
    if old.recovery is not None and new.recovery != old.recovery:
        _need(by_recovery, "only the recovery key replaces itself")
    _need(
        new.oldest == (new.generation if new.reason == FINISH else _oldest(chain, old, new)),
        "only a finished rotation ends older generations, and only a recovery brings them back",
    )
    return new, signers


def voided(chain: Sequence[Statement]) -> frozenset[int]:
    """The numbers `n` of statements of a checked chain that a later recovery has undone. What a
    generation has signed that such a statement began counts for nothing, whoever vouches for it."""
    found: set[int] = set()
    for statement in chain:
        if statement.voids:
            found |= set(range(_first_undone(chain, statement), statement.n))
    return frozenset(found)


def standing(chain: Sequence[Statement]) -> tuple[list[Statement], list[Statement]]:
    """(those that stand, those that were voided), of a checked chain, each in order. A generation
    is voided where no statement that stands is of it."""
    undone = voided(chain)
    return (
        [one for one in chain if one.n not in undone],
        [one for one in chain if one.n in undone],
    )


def _oldest(chain: Sequence[bytes], old: Statement, new: Statement) -> int:
    """The lowest generation whose signatures count after `new`, which is no finish.

    Where a thief has finished a rotation, his generation is the lowest that counts. Undoing it must
    bring back those before, else nothing that the owner has ever signed would count: it is then
    what it was before the first statement undone.
    """
    if not new.voids:
        return old.oldest
    _need(len(new.voids) == 1, "a recovery names the first statement that it undoes")
    before = [Statement.parse(body) for body in chain]
    first = _first_undone(before, new)
    _need(first > 1, "the first statement cannot be undone: it is what others have pinned")
    # Two decisions of the recovery key would contradict each other otherwise, and what the earlier
    # one has voided would count again.
    _need(
        all(one.reason != RECOVERY for one in before[first - 1 :]),
        "what recovered cannot be undone",
    )
    return before[first - 2].oldest


def _first_undone(chain: Sequence[Statement], recovery: Statement) -> int:
    """The number of the statement that `recovery` names. It has a successor, whose `prev` is it."""
    for statement in (*chain, recovery):
        if statement.prev == recovery.voids[0] and statement.n <= recovery.n:
            return statement.n - 1
    raise ChainError("a recovery undoes a statement that is not of the chain")


def _signers(
    old: Statement, new: Statement, body: bytes, signatures: tuple[bytes, ...]
) -> tuple[bytes, ...]:
    """The keys whose signatures these are, all verified."""
    _need(1 <= len(signatures) <= 2, "a statement has one signature or two")
    verify_signature(Label.STATEMENT, body, signatures[0], new.sign_pub)
    if len(signatures) == 1:
        _need(new.sign_pub == old.sign_pub, "a new key is not signed by the one before it")
        return (new.sign_pub,)
    recovery = None if old.recovery is None else old.recovery.sign_pub
    # Of two candidates each is tried by itself: a signature does not say whose it is.
    for public in (old.sign_pub, recovery):
        if public is not None and _verifies(body, signatures[1], public):
            return new.sign_pub, public
    raise ChainError("a statement that neither the key before it nor the recovery key signed")


def _verifies(body: bytes, signature: bytes, public: bytes) -> bool:
    try:
        verify_signature(Label.STATEMENT, body, signature, public)
    except SignatureError:
        return False
    return True


def _need(holds: bool, rule: str) -> None:
    if not holds:
        raise ChainError(rule)
