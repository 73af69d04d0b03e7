"""Statements that a recovery can undo, in a chain that a thief has extended."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.codec.errors import ChainError, SignatureError
from protocol.records.chain import check_next, introduces_recovery_key, split_voided, voided
from protocol.records.records import Device, RecoveryKey, Statement, record_hash
from protocol.records.signatures import Label, SigningKey
from tests.protocol.records.test_chain import CODE, FIRST, KEY, RECOVERY, following

THIEF, OWNER, AGAIN, LATER = (SigningKey.from_seed(bytes([n]) * 32) for n in range(10, 14))


class Chain:
    """An identity chain; `add` verifies each statement as server and clients do."""

    def __init__(self) -> None:
        self.bodies = [FIRST.encode()]
        self.add({"reason": "recovery-key", "recovery": RECOVERY}, KEY)

    @property
    def statements(self) -> list[Statement]:
        return [Statement.parse(body) for body in self.bodies]

    @property
    def head(self) -> Statement:
        return self.statements[-1]

    def hash_of(self, n: int) -> bytes:
        return record_hash(self.bodies[n - 1])

    def check(self, changed: dict[str, Any], *keys: SigningKey) -> bytes:
        body = following(self.head, **{"voids": (), **changed}).encode()
        signatures = tuple(key.sign(Label.STATEMENT, body) for key in keys)
        check_next(self.bodies, body, signatures, self.possession(body))
        return body

    def possession(self, body: bytes) -> bytes:
        """Return the signature by the recovery key that a statement introduces, if any."""
        statement, known = Statement.parse(body), {key.public: key for key in (CODE, THIEF, AGAIN)}
        if statement.recovery is None or not introduces_recovery_key(self.head, statement):
            return b""
        return known[statement.recovery.sign_pub].sign(Label.RECOVERY_POSSESSION, body)

    def add(self, changed: dict[str, Any], *keys: SigningKey) -> None:
        self.bodies.append(self.check(changed, *keys))

    def renewed(self, key: SigningKey, reason: str = "rotate", **changed: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "generation": self.head.generation + 1,
            "sign_pub": key.public,
            "wrap_pub": key.public,
            "reason": reason,
        }
        return fields | changed

    def recovery(self, first: int, oldest: int, key: SigningKey = OWNER) -> dict[str, Any]:
        return self.renewed(key, "recovery", voids=(self.hash_of(first),), oldest=oldest)


@pytest.fixture
def extended() -> Chain:
    """1 enrol, 2 recovery-key; by the thief: 3 device, 4 rotate, 5 finish, 6 device."""
    chain = Chain()
    chain.add({"devices": (Device(b"t" * 16, b"T" * 32, b"x" * 1216, "device"),)}, KEY)
    chain.add(chain.renewed(THIEF), THIEF, KEY)
    chain.add({"reason": "finish", "oldest": 2}, THIEF)
    chain.add({"devices": ()}, THIEF)
    return chain


def test_a_recovery_voids_all_statements_from_the_named_one_on(extended: Chain) -> None:
    extended.add(extended.recovery(first=4, oldest=1), OWNER, CODE)
    assert voided(extended.statements) == {4, 5, 6}
    stand, undone = split_voided(extended.statements)
    assert [one.n for one in stand] == [1, 2, 3, 7]
    assert [one.generation for one in undone] == [2, 2, 2]
    # The chain continues, and void statements stay void.
    extended.add({"reason": "finish", "oldest": 3}, OWNER)
    extended.add(extended.renewed(LATER), LATER, OWNER)
    assert voided(extended.statements) == {4, 5, 6}


def test_voiding_a_finish_restores_the_oldest_generation(extended: Chain) -> None:
    for oldest in (2, 3):
        with pytest.raises(ChainError):
            extended.check(extended.recovery(first=4, oldest=oldest), OWNER, CODE)
    # The thief's finish counts unless it is voided.
    with pytest.raises(ChainError):
        extended.check(extended.recovery(first=6, oldest=1), OWNER, CODE)
    extended.check(extended.recovery(first=6, oldest=2), OWNER, CODE)
    extended.check(extended.renewed(OWNER, "recovery"), OWNER, CODE)


@pytest.mark.parametrize("reason", ["rotate", "compromised", "device", "recovery-key"])
def test_only_recoveries_may_void(extended: Chain, reason: str) -> None:
    changed: dict[str, Any] = {"reason": reason, "voids": (extended.hash_of(4),), "oldest": 1}
    if reason in ("rotate", "compromised"):
        changed = extended.renewed(OWNER, **changed)
    for keys in ((OWNER, CODE), (OWNER, THIEF), (THIEF, CODE), (THIEF, THIEF)):
        with pytest.raises((ChainError, SignatureError)):
            extended.check(changed, *keys)


def test_voiding_requires_the_recovery_key(extended: Chain) -> None:
    for second in (THIEF, KEY, OWNER):
        with pytest.raises(ChainError):
            extended.check(extended.recovery(first=4, oldest=1), OWNER, second)
    with pytest.raises(ChainError):
        extended.check({"reason": "finish", "oldest": 1}, THIEF)


def test_statements_that_cannot_be_voided(extended: Chain) -> None:
    for oldest in (1, 2):  # the other rules allow one or the other
        undoing = extended.recovery(first=1, oldest=oldest)
        with pytest.raises(ChainError, match="the first statement cannot be undone"):
            extended.check(undoing, OWNER, CODE)
    wrong: list[tuple[bytes, ...]] = [
        (bytes(32),),
        (extended.hash_of(4), extended.hash_of(5)),
    ]
    for voids in wrong:
        with pytest.raises(ChainError):
            extended.check(extended.renewed(OWNER, "recovery", voids=voids, oldest=1), OWNER, CODE)
    extended.add(extended.recovery(first=4, oldest=1), OWNER, CODE)
    # A recovery cannot void an earlier recovery or a statement before it.
    for first in (3, 4, 7):
        for oldest in (1, 2):
            again = extended.recovery(first, oldest=oldest, key=AGAIN)
            with pytest.raises(ChainError, match="a recovery cannot be undone"):
                extended.check(again, AGAIN, CODE)


def test_a_second_theft_can_be_undone(extended: Chain) -> None:
    extended.add(extended.recovery(first=4, oldest=1), OWNER, CODE)
    extended.add(extended.renewed(LATER), LATER, OWNER)
    extended.add(extended.recovery(first=8, oldest=1, key=AGAIN), AGAIN, CODE)
    assert voided(extended.statements) == {4, 5, 6, 8}


def test_the_thief_cannot_change_the_recovery_key(extended: Chain) -> None:
    other = RecoveryKey(THIEF.public, b"t" * 1216)
    for recovery in (other, None):
        for keys in ((THIEF,), (THIEF, THIEF)):
            with pytest.raises(ChainError):
                extended.check({"reason": "recovery-key", "recovery": recovery}, *keys)
    # The owner may replace the recovery key in the same recovery.
    changed = extended.recovery(first=4, oldest=1) | {"recovery": RecoveryKey(AGAIN.public, b"n")}
    extended.check(changed, OWNER, CODE)
