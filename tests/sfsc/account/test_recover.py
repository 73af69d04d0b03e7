"""Which statements a recovery code undoes: what a thief has sealed for himself, and what a server
that keeps bundles back would have us believe."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from protocol.records.records import Statement, record_hash
from protocol.records.signatures import SigningKey
from protocol.wire.messages.rotation import SealedBundle
from sfsc.account.devices import Devices
from sfsc.account.recover import KEPT_SECONDS, AccountRecovery, find_last_bundle, summarize_chain
from sfsc.crypto.primitives import PrivateKey
from sfsc.errors import KeyringError, NotFound, Rollback, SfscError, Tampered, UsageError
from sfsc.keys.bundle import Bundle, seal_bundle
from sfsc.keys.keyring import GenerationKeys, KeyringFile
from sfsc.keys.recovery_code import RecoveryCode
from sfsc.session.session import Session
from tests.sfsc.trust.test_file_records import OTHER, SERVER, SIGNING, WRAPPING, keyring, statement

CODE = RecoveryCode(b"c" * 32)
NOW = 1_800_000_000
KEYS = (GenerationKeys(1, SIGNING.seed, "x25519", WRAPPING.encoded),)


class Account:
    """A chain of `good` statements whose bundles the code opens, then `bad` ones."""

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
            Bundle(keys, (b"n" * 32,), (), b""),
            server=SERVER,
            user="ada",
            n=n,
            recipients=[recipient.public],
        )
        prev = record_hash(self.bodies[-1]) if self.bodies else b""
        digest = hashlib.sha256(sealed).digest()
        first = Statement.parse(statement(bundle_sha256=digest, created=created, n=n, prev=prev))
        generation, signing = keys[-1].generation, SigningKey.from_seed(keys[-1].sign_seed)
        made = replace(
            first,
            reason="enrol" if n == 1 else reason,
            generation=generation,
            sign_pub=signing.public,
        )
        self.bodies.append(made.encode())
        self.bundles[n] = sealed

    def fetch(self, n: int) -> bytes:
        if n not in self.bundles:
            raise NotFound("that bundle is not kept")
        return self.bundles[n]

    def opened(self, first: int | None = None) -> int:
        return find_last_bundle(tuple(self.bodies), self.fetch, CODE, first, NOW).n


def test_the_last_that_the_code_opens() -> None:
    assert Account(3, 0).opened() == 3
    assert Account(3, 4).opened() == 3
    assert Account(3, 4).opened(first=3) == 2
    with pytest.raises(KeyringError):
        Account(0, 3).opened()


@pytest.mark.parametrize("n", [3, 4, 5])
def test_a_server_that_keeps_a_bundle_back(n: int) -> None:
    """Else it would have us undo what was no thief's."""
    account = Account(4, 1)
    del account.bundles[n]
    if n == 3:
        assert account.opened() == 4  # it is not asked for
        return
    with pytest.raises(Rollback):
        account.opened()
    # Who names the statement has looked himself.
    assert account.opened(first=5) == (4 if n == 5 else 3)


def test_a_server_that_shows_another_bundle() -> None:
    account = Account(4, 1)
    account.bundles[5] = account.bundles[4]
    with pytest.raises(Tampered):
        account.opened()


def test_what_was_kept_long_enough_may_be_gone() -> None:
    account = Account(2, 3, age=KEPT_SECONDS + 1)
    del account.bundles[4]
    assert account.opened() == 2
    del account.bundles[5]  # the newest is there for as long as the account is
    with pytest.raises(Rollback):
        account.opened()


def test_a_thief_who_says_that_his_statement_is_old() -> None:
    """With a server that is on his side: it would be free to keep back what is before it."""
    account = Account(3, 0)
    account.add(4, WRAPPING, 0)
    del account.bundles[3]
    with pytest.raises(Rollback):
        account.opened()


def test_of_many_the_server_may_have_dropped_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfsc.account.recover.KEPT_MOST", 6)
    account = Account(2, 5)
    del account.bundles[5]
    assert account.opened() == 2


@pytest.mark.parametrize("first", [1, 7, 100])
def test_numbers_that_name_nothing_to_undo(first: int) -> None:
    with pytest.raises(UsageError):
        Account(3, 2).opened(first)


def test_what_an_earlier_recovery_has_decided_stays() -> None:
    account = Account(2, 2)
    account.add(5, CODE.wrap_key, NOW, "recovery")
    account.add(6, WRAPPING, NOW)
    assert account.opened() == 5
    assert account.opened(first=6) == 5
    with pytest.raises(UsageError):
        account.opened(first=5)


def test_a_bundle_that_misleads_takes_no_key_from_a_machine() -> None:
    """A thief who begins a generation can put what he likes in the place of the keys before it."""
    account, machine = Account(1, 0), keyring()
    his = GenerationKeys(2, OTHER.seed, "x25519", WRAPPING.encoded)
    bad = (replace(KEYS[0], wrap_private=b"?" * 32), his)
    account.add(2, CODE.wrap_key, NOW, "rotate", bad)
    chain = tuple(account.bodies)
    session = cast(Session, SimpleNamespace(call=lambda asked, _: answer(account, asked.n)))
    file = cast(KeyringFile, SimpleNamespace(contents=machine))
    devices = cast(Devices, SimpleNamespace(follow=lambda _: chain))
    _, first, found = AccountRecovery(session, file, devices, CODE, lambda: NOW).plan()
    assert (first, found.generations) == (None, (KEYS[0], his))


def answer(account: Account, n: int) -> SealedBundle:
    return SealedBundle(account.fetch(n))


def test_a_person_is_shown_what_would_be_undone() -> None:
    shown = summarize_chain(tuple(Account(2, 2).bodies), 3)
    assert [(one.n, one.undone) for one in shown] == [(1, False), (2, False), (3, True), (4, True)]
    assert not any(one.undone for one in summarize_chain(tuple(Account(2, 2).bodies), None))


def test_a_server_that_fails_is_not_one_that_has_nothing() -> None:
    class Failed(SfscError):
        pass

    def fetch(_n: int) -> bytes:
        raise Failed("no")

    ask: Callable[[int], bytes] = fetch
    with pytest.raises(Failed):
        find_last_bundle(tuple(Account(2, 1).bodies), ask, CODE, None, NOW)
