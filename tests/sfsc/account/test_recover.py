"""Which statements a recovery code undoes, also if the server withholds bundles."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from protocol.codec.values import changed
from protocol.records.records import Statement, record_hash
from protocol.records.signatures import SigningKey
from protocol.wire.messages.rotation import SealedBundle
from sfsc.account.devices import Devices
from sfsc.account.recover import KEPT_SECONDS, AccountRecovery, find_last_bundle, summarize_chain
from sfsc.crypto.wrap import PrivateKey
from sfsc.errors import KeyringError, NotFound, Rollback, SfscError, Tampered, UsageError
from sfsc.keys.bundle import Bundle, seal_bundle
from sfsc.keys.keyring import GenerationKeys, KeyringFile
from sfsc.keys.recovery_code import RecoveryCode
from sfsc.session.session import Session
from tests.sfsc.trust.test_file_records import (
    OTHER,
    SERVER,
    SIGNING,
    TAG_KEY,
    WRAPPING,
    keyring,
    statement,
)

CODE = RecoveryCode(b"c" * 32)
NOW = 1_800_000_000
KEYS = (GenerationKeys(1, SIGNING.seed, "x25519", WRAPPING.encoded),)


class Account:
    """A chain of `good` statements whose bundles the code opens, followed by `bad` ones."""

    def __init__(self, good: int, bad: int, age: int = 60) -> None:
        self.bodies: list[bytes] = []
        self.bundles: dict[int, bytes] = {}
        for n in range(1, good + bad + 1):
            self.add(n, CODE.wrap_key if n <= good else WRAPPING, NOW - age)

    def add(
        self,
        n: int,
        recipient: PrivateKey,
        created: int,
        reason: str = "device",
        keys: tuple[GenerationKeys, ...] = KEYS,
    ) -> None:
        sealed = seal_bundle(
            Bundle(keys, (b"n" * 32,), TAG_KEY, (), None),
            server=SERVER,
            user="ada",
            n=n,
            recipients=[recipient.public],
        )
        prev = record_hash(self.bodies[-1]) if self.bodies else b""
        digest = hashlib.sha256(sealed).digest()
        first = Statement.parse(statement(bundle_sha256=digest, created=created, n=n, prev=prev))
        generation, signing = keys[-1].generation, SigningKey.from_seed(keys[-1].sign_seed)
        made = changed(
            first,
            reason="enrol" if n == 1 else reason,
            generation=generation,
            sign_pub=signing.public,
            recovery=CODE.public_keys,
        )
        self.bodies.append(made.encode())
        self.bundles[n] = sealed

    def fetch(self, n: int) -> bytes:
        if n not in self.bundles:
            raise NotFound("that bundle is not kept")
        return self.bundles[n]

    def last_opened(self, first: int | None = None) -> int:
        return find_last_bundle(tuple(self.bodies), self.fetch, CODE, first, NOW).n


def test_last_bundle_that_the_code_opens() -> None:
    assert Account(3, 0).last_opened() == 3
    assert Account(3, 4).last_opened() == 3
    assert Account(3, 4).last_opened(first=3) == 2
    with pytest.raises(KeyringError):
        Account(0, 3).last_opened()


@pytest.mark.parametrize("n", [3, 4, 5])
def test_withheld_bundle(n: int) -> None:
    """Otherwise valid statements would be undone."""
    account = Account(4, 1)
    del account.bundles[n]
    if n == 3:
        assert account.last_opened() == 4  # it is not requested
        return
    with pytest.raises(Rollback):
        account.last_opened()
    # A user who names the statement has checked the chain.
    assert account.last_opened(first=5) == (4 if n == 5 else 3)


def test_replaced_bundle() -> None:
    account = Account(4, 1)
    account.bundles[5] = account.bundles[4]
    with pytest.raises(Tampered):
        account.last_opened()


def test_old_bundle_may_be_missing() -> None:
    account = Account(2, 3, age=KEPT_SECONDS + 1)
    del account.bundles[4]
    assert account.last_opened() == 2
    del account.bundles[5]  # the newest bundle is always stored
    with pytest.raises(Rollback):
        account.last_opened()


def test_backdated_statement_does_not_excuse_a_withheld_bundle() -> None:
    """A server that helps the attacker could otherwise withhold an earlier bundle."""
    account = Account(3, 0)
    account.add(4, WRAPPING, 0)
    del account.bundles[3]
    with pytest.raises(Rollback):
        account.last_opened()


def test_bundles_of_a_long_chain_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfsc.account.recover.KEPT_MOST", 6)
    account = Account(2, 5)
    del account.bundles[5]
    assert account.last_opened() == 2


@pytest.mark.parametrize("first", [1, 7, 100])
def test_statement_numbers_out_of_range(first: int) -> None:
    with pytest.raises(UsageError):
        Account(3, 2).last_opened(first)


def test_earlier_recovery_cannot_be_undone() -> None:
    account = Account(2, 2)
    account.add(5, CODE.wrap_key, NOW, "recovery")
    account.add(6, WRAPPING, NOW)
    assert account.last_opened() == 5
    assert account.last_opened(first=6) == 5
    with pytest.raises(UsageError):
        account.last_opened(first=5)


def test_own_keys_win_over_a_forged_bundle() -> None:
    """An attacker who begins a generation can replace the earlier keys in its bundle."""
    account, machine = Account(1, 0), keyring()
    forged = GenerationKeys(2, OTHER.seed, "x25519", WRAPPING.encoded)
    bad = (changed(KEYS[0], wrap_private=b"?" * 32), forged)
    account.add(2, CODE.wrap_key, NOW, "rotate", bad)
    chain = tuple(account.bodies)
    session = cast(Session, SimpleNamespace(call=lambda asked, _: reply_bundle(account, asked.n)))
    file = cast(KeyringFile, SimpleNamespace(contents=machine))
    devices = cast(Devices, SimpleNamespace(follow=lambda _: chain))
    _, first, found = AccountRecovery(session, file, devices, CODE, lambda: NOW).plan()
    assert (first, found.generations) == (None, (KEYS[0], forged))


def reply_bundle(account: Account, n: int) -> SealedBundle:
    return SealedBundle(account.fetch(n))


def test_summary_marks_statements_to_undo() -> None:
    shown = summarize_chain(tuple(Account(2, 2).bodies), 3)
    assert [(one.n, one.undone) for one in shown] == [(1, False), (2, False), (3, True), (4, True)]
    assert not any(one.undone for one in summarize_chain(tuple(Account(2, 2).bodies), None))


def test_other_errors_are_raised() -> None:
    class Failed(SfscError):
        pass

    def fetch(_n: int) -> bytes:
        raise Failed("no")

    ask: Callable[[int], bytes] = fetch
    with pytest.raises(Failed):
        find_last_bundle(tuple(Account(2, 1).bodies), ask, CODE, None, NOW)
