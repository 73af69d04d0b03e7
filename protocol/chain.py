"""How one identity statement follows another (DESIGN section 4): rules that both sides hold to.

A statement is signed by its own key, and where that is a new one, by the key before it or by the
recovery key that was committed before. So nobody but who held one of these can continue a chain,
and who pinned its first statement needs nothing else.
"""

from __future__ import annotations

from typing import Final

from protocol.errors import ChainError, SignatureError
from protocol.records import Statement, record_hash
from protocol.signatures import Label, verify

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
    verify(Label.STATEMENT, body, signatures[0], statement.sign_pub)
    _need((statement.n, statement.reason) == (1, "enrol"), "not a first statement")
    _need((statement.generation, statement.oldest) == (1, 1), "a first statement's generation is 1")
    _need(not statement.voids, "a first statement has nothing to void")
    return statement


def check_next(
    before: bytes, body: bytes, signatures: tuple[bytes, ...]
) -> tuple[Statement, tuple[bytes, ...]]:
    """(statement, public keys that signed it) of the one after `before`; both are exact bytes.

    `signatures` has the own key's first; a second is that of the key or the recovery key before.
    Raises as `check_first`.
    """
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
    _need(not new.voids or by_recovery, "only the recovery key voids")
    if old.recovery is not None and new.recovery != old.recovery:
        _need(by_recovery, "only the recovery key replaces itself")
    _need(
        new.oldest == (new.generation if new.reason == FINISH else old.oldest),
        "only a finished rotation ends older generations",
    )
    return new, signers


def _signers(
    old: Statement, new: Statement, body: bytes, signatures: tuple[bytes, ...]
) -> tuple[bytes, ...]:
    """The keys whose signatures these are, all verified."""
    _need(1 <= len(signatures) <= 2, "a statement has one signature or two")
    verify(Label.STATEMENT, body, signatures[0], new.sign_pub)
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
        verify(Label.STATEMENT, body, signature, public)
    except SignatureError:
        return False
    return True


def _need(holds: bool, rule: str) -> None:
    if not holds:
        raise ChainError(rule)
