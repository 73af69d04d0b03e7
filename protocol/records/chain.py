"""Rules for identity chains: how one statement may follow another. Server and clients check them.

A statement is signed by its own key. If that key is new, the key before it or the recovery key
committed earlier signs too. So only a holder of one of these keys can extend a chain, and a reader
who pinned its first statement needs nothing else to verify it.

A thief with the old key can extend the chain too, but can neither use nor replace the committed
recovery key. A statement of reason `recovery` undoes what the thief wrote: its `voids` names the
first void statement, and all from that one up to the recovery are void. It names one and not all,
because the thief decides how many there are.

A statement that introduces a recovery key has a signature by that key, its *possession*. So an
account is never committed to a recovery key that nobody has, or that somebody else has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from protocol.codec.errors import ChainError, SignatureError
from protocol.records.records import (
    COMPROMISED,
    DEVICE,
    ENROL,
    FINISH,
    INVITE,
    RECOVERY,
    RECOVERY_KEY,
    ROTATE,
    USER_ACCOUNT,
    Statement,
    record_hash,
)
from protocol.records.signatures import Label, verify_signature

KEEPING: Final = frozenset({DEVICE, RECOVERY_KEY, FINISH})
"""Reasons of statements that keep generation, keys and expiry."""
RENEWING: Final = frozenset({ROTATE, COMPROMISED, RECOVERY})
"""Reasons of statements that begin the next generation."""
_KEPT: Final = ("generation", "sign_pub", "wrap_alg", "wrap_pub", "due", "expires")


def check_first(body: bytes, signatures: tuple[bytes, ...], possession: bytes = b"") -> Statement:
    """Verify and return the first statement of a chain. The caller compares user and server.

    `possession` is the signature by the recovery key that the statement introduces, 64 bytes, or
    empty. Raises `ChainError`, `SignatureError`, `EncodingError` or `MessageError`.
    """
    statement = Statement.parse(body)
    _need(len(signatures) == 1, "a first statement has exactly one signature, its own")
    verify_signature(Label.STATEMENT, body, signatures[0], statement.sign_pub)
    _need((statement.n, statement.reason) == (1, ENROL), "not a first statement")
    _need((statement.generation, statement.oldest) == (1, 1), "a first statement's generation is 1")
    _need(not statement.voids, "a first statement voids nothing")
    _check_possession(None, statement, body, possession)
    _check_account(statement)
    _check_signing_keys((), statement)
    return statement


def check_next(
    chain: Sequence[bytes],
    body: bytes,
    signatures: tuple[bytes, ...],
    possession: bytes = b"",
) -> tuple[Statement, tuple[bytes, ...]]:
    """Verify the statement that follows `chain`; return (statement, public keys that signed it).

    `chain` holds the exact bytes of all earlier statements in order, already verified. The first
    of `signatures` is by the statement's own key, the second by the previous key or the previous
    recovery key; `possession` is as in `check_first`. Raises like `check_first`.
    """
    before = chain[-1]
    old, new = Statement.parse(before), Statement.parse(body)
    same = (new.server, new.user, new.kind) == (old.server, old.user, old.kind)
    _need(same, "the statement is of another chain")
    _need((new.n, new.prev) == (old.n + 1, record_hash(before)), "not the next statement")
    _need(new.tag_commit == old.tag_commit, "an account keeps its tag key for life")
    signers = _signers(old, new, body, signatures)
    by_recovery = old.recovery is not None and old.recovery.sign_pub in signers[1:]
    if new.reason in KEEPING:
        for name in _KEPT:
            _need(getattr(new, name) == getattr(old, name), f"{new.reason} changes {name}")
        same_code = new.reason == RECOVERY_KEY or new.recovery == old.recovery
        _need(same_code, f"{new.reason} changes the recovery key")
    else:
        _need(new.generation == old.generation + 1, f"{new.reason} begins the next generation")
        _need(new.sign_pub != old.sign_pub, f"{new.reason} brings a new key")
    _need(new.reason != ENROL, "only the first statement enrols")
    _need(new.reason != RECOVERY or by_recovery, "only the recovery key recovers")
    _need(not new.voids or new.reason == RECOVERY, "only a recovery voids")
    if old.recovery is not None and new.recovery != old.recovery:
        _need(by_recovery, "only the recovery key replaces itself")
    _need(
        new.oldest == (new.generation if new.reason == FINISH else _oldest(chain, old, new)),
        "only a finished rotation ends older generations, and only a recovery brings them back",
    )
    _check_possession(old, new, body, possession)
    _check_account(new)
    _check_signing_keys(chain, new)
    return new, signers


def introduces_recovery_key(old: Statement | None, new: Statement) -> bool:
    """Return whether `new`, which follows `old` (None: nothing), names another recovery key. It
    then needs a signature by that key."""
    return new.recovery is not None and (old is None or new.recovery != old.recovery)


def _check_possession(
    old: Statement | None, new: Statement, body: bytes, possession: bytes
) -> None:
    if new.recovery is not None and introduces_recovery_key(old, new):
        _need(bool(possession), "the new recovery key has not signed the statement")
        verify_signature(Label.RECOVERY_POSSESSION, body, possession, new.recovery.sign_pub)
    else:
        _need(not possession, "only a new recovery key proves its possession")


def _check_account(statement: Statement) -> None:
    """Check what a statement of a user's account may name. Accounts of another kind are refused."""
    _need(statement.kind == USER_ACCOUNT, "this account is not a user's")
    _need(not statement.custodians, "a user's account has no custodians")
    _need(
        all(
            one.kind != INVITE and not one.member and not one.member_signature
            for one in statement.devices
        ),
        "a device of a user's account has no member",
    )
    ids = {one.device_id for one in statement.devices}
    _need(len(ids) == len(statement.devices), "two devices have one id")
    names = {one.name for one in statement.writers}
    _need(len(names) == len(statement.writers), "two writers have one name")


def _check_signing_keys(chain: Sequence[bytes], new: Statement) -> None:
    """Check that each signing key has one purpose, so that a login says what it is good for."""
    keys = new.signing_keys
    _need(len(set(keys)) == len(keys), "a signing key has two purposes")
    if new.writers:
        earlier = [Statement.parse(body) for body in chain]
        others = {key for one in earlier for key in _keys_of_account(one)}
        _need(
            others.isdisjoint(one.sign_pub for one in new.writers),
            "a writer has a key that the account or a device had",
        )


def _keys_of_account(statement: Statement) -> list[bytes]:
    """Return the signing keys of a statement, without those of its writers."""
    keys = statement.signing_keys
    return keys[: len(keys) - len(statement.writers)]


def voided(chain: Sequence[Statement]) -> frozenset[int]:
    """Return the numbers `n` of the statements of a verified chain that a later recovery voided.

    Signatures by a generation that a void statement began never count, endorsed or not.
    """
    found: set[int] = set()
    for statement in chain:
        if statement.voids:
            found |= set(range(_first_undone(chain, statement), statement.n))
    return frozenset(found)


def split_voided(chain: Sequence[Statement]) -> tuple[list[Statement], list[Statement]]:
    """Split a verified chain into (valid statements, void statements), each in order.

    A generation is void if no valid statement has it.
    """
    undone = voided(chain)
    return (
        [one for one in chain if one.n not in undone],
        [one for one in chain if one.n in undone],
    )


def _oldest(chain: Sequence[bytes], old: Statement, new: Statement) -> int:
    """Return the lowest generation whose signatures count after `new`, whose reason is not FINISH.

    If a thief finished a rotation, only the thief's generation counts. Undoing that must restore
    the value before the first void statement; else nothing that the owner ever signed would count.
    """
    if not new.voids:
        return old.oldest
    _need(len(new.voids) == 1, "a recovery names the first statement that it undoes")
    before = [Statement.parse(body) for body in chain]
    first = _first_undone(before, new)
    _need(first > 1, "the first statement cannot be undone: others have pinned it")
    # Otherwise two decisions of the recovery key would contradict each other, and statements that
    # the earlier one voided would count again.
    _need(
        all(one.reason != RECOVERY for one in before[first - 1 :]),
        "a recovery cannot be undone",
    )
    return before[first - 2].oldest


def _first_undone(chain: Sequence[Statement], recovery: Statement) -> int:
    """Return the number of the statement named by `recovery`: the `prev` of its successor."""
    for statement in (*chain, recovery):
        if statement.prev == recovery.voids[0] and statement.n <= recovery.n:
            return statement.n - 1
    raise ChainError("a recovery undoes a statement that is not in the chain")


def _signers(
    old: Statement, new: Statement, body: bytes, signatures: tuple[bytes, ...]
) -> tuple[bytes, ...]:
    """Verify the signatures and return the public keys that made them."""
    _need(1 <= len(signatures) <= 2, "a statement has one or two signatures")
    verify_signature(Label.STATEMENT, body, signatures[0], new.sign_pub)
    if len(signatures) == 1:
        _need(new.sign_pub == old.sign_pub, "a new key is not signed by the previous one")
        return (new.sign_pub,)
    recovery = None if old.recovery is None else old.recovery.sign_pub
    # A signature does not name its key, so try both candidates.
    for public in (old.sign_pub, recovery):
        if public is not None and _verifies(body, signatures[1], public):
            return new.sign_pub, public
    raise ChainError("neither the previous key nor the recovery key signed the statement")


def _verifies(body: bytes, signature: bytes, public: bytes) -> bool:
    try:
        verify_signature(Label.STATEMENT, body, signature, public)
    except SignatureError:
        return False
    return True


def _need(holds: bool, rule: str) -> None:
    if not holds:
        raise ChainError(rule)
