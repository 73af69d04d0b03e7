"""An account on another machine: opened with its recovery code, a backup or its keys as PEM.

The chain is followed from the pinned first statement, the bundle is the one that its newest names,
and the log must continue the checkpoint that the account has seen elsewhere.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from protocol.codec.terminal_text import human_time
from protocol.codec.values import Value
from protocol.records.invitation import AccountLink
from protocol.records.records import Statement
from protocol.records.signatures import SigningKey
from protocol.wire.messages import session as opening
from protocol.wire.messages.log import CONSISTENCY, LogProof
from protocol.wire.messages.rotation import GetBundle, SealedBundle
from protocol.wire.messages.sharing import Identity, Lookup
from sfsc.account.devices import Devices
from sfsc.account.recover import last_opened, take_back_account
from sfsc.crypto.primitives import XWING, PrivateKey
from sfsc.errors import IntegrityError, KeyringError, LocalError, TakenOver
from sfsc.keys.bundle import Bundle, open_bundle
from sfsc.keys.home import check_no_keyring, keyring_path
from sfsc.keys.keyring import DeviceKey, Keyring, KeyringFile
from sfsc.keys.recovery_code import RecoveryCode
from sfsc.session.handshake import build_login, dial
from sfsc.session.limits import Timeouts
from sfsc.session.pipeline import Skip
from sfsc.session.server_errors import expect_proof, expect_reply
from sfsc.session.session import Session
from sfsc.session.transport import Transport
from sfsc.trust.identity_chain import fetch_newest_bundle, follow_chain
from sfsc.trust.server_log import ServerTrust
from sfsc.trust.state import open_client_state


class Opener(Value):
    """What opens an account elsewhere: the key to log in with, of `generation` (0: the recovery
    key), and private keys of which the bundle is sealed to one."""

    generation: int
    signing: SigningKey
    keys: Sequence[PrivateKey]
    code: RecoveryCode | None = None

    @classmethod
    def of_code(cls, code: RecoveryCode) -> Opener:
        return cls(0, code.signing_key, (code.wrap_key,), code)

    @classmethod
    def of_keyring(cls, keyring: Keyring) -> Opener:
        """Raises `LocalError` for one that was never enrolled."""
        current = keyring.current
        if current is None:
            raise LocalError("this backup holds no account")
        device = PrivateKey(XWING, keyring.device.xwing_private)
        own = [PrivateKey(one.wrap_alg, one.wrap_private) for one in keyring.generations]
        return cls(current.generation, SigningKey.from_seed(current.sign_seed), (device, *own))


def adopt(
    link: AccountLink,
    opener: Opener,
    home: Path,
    passphrase: str | None,
    timeouts: Timeouts | None = None,
    taking: TakingBack | None = None,
) -> KeyringFile:
    """Write a keyring of the account `link` to `home`, with a device key of this machine's own, and
    have it join. Where that is cut, the next login does it. `taking` is for an account that
    somebody else has taken over; where that is cut, `sfsc rotate --recovery` goes on.

    Raises `LocalError` where `home` has a keyring, `TakenOver` where the newest bundle is not
    sealed for the recovery code, `Denied`, `IntegrityError`, ….
    """
    check_no_keyring(home)
    transport = dial((link.address,), timeouts)
    try:
        trust = ServerTrust(link.pin)
        welcome = transport.welcome()
        server = trust.accept_welcome(welcome, transport.peer_spki_sha256)
        opened = _Opened.log_in(transport, trust, link, opener, taking)
    finally:
        transport.close()
    file = KeyringFile.create(keyring_path(home), opened.keyring(link), passphrase)
    with open_client_state(home, file.contents) as state:
        state.remember_server_statement(server.n, welcome.statement, welcome.signature)
        newest = trust.newest
        state.remember_checkpoint(newest.size, newest.root, newest.note)
        if taking is not None and opener.code is not None:
            told, first = taking.told, taking.first
            take_back_account(file, state, opener.code, first=first, timeouts=timeouts, told=told)
            return file
        session = Session(file.contents, state, timeouts)
        try:
            session.connect()
            Devices(session, file).settle()
        finally:
            session.close()
    return file


class TakingBack(Value):
    """All from statement `first` on is undone (None: from the first that was sealed without the
    code); `told` hears of what was destroyed."""

    first: int | None = None
    told: Skip | None = None


class _Opened(Value):
    """An account's chain, exact bytes, and its open bundle."""

    chain: tuple[bytes, ...]
    bundle: Bundle

    @classmethod
    def log_in(
        cls,
        transport: Transport,
        trust: ServerTrust,
        link: AccountLink,
        opener: Opener,
        taking: TakingBack | None,
    ) -> _Opened:
        message, _ = build_login(
            transport, link.pin, link.user, opener.generation, opener.signing, 0
        )
        reply = transport.call(message, transport.timeouts.opening)
        trust.accept_session(expect_reply(reply, opening.Session))

        def follow_on(known: tuple[bytes, ...]) -> tuple[bytes, ...]:
            def ask(message: Lookup) -> Identity:
                return expect_reply(transport.call(message), Identity)

            return follow_chain(ask, trust, link.user, link.first, known)

        def fetch(n: int = 0) -> bytes:
            return expect_reply(transport.call(GetBundle(n)), SealedBundle).bundle

        chain, sealed = fetch_newest_bundle(follow_on(()), follow_on, fetch)
        if taking is not None and opener.code is not None:
            bundle = last_opened(chain, fetch, opener.code, taking.first).bundle
        else:
            try:
                bundle = open_bundle(sealed, Statement.parse(chain[-1]), opener.keys)
            except (KeyringError, IntegrityError) as exc:
                if opener.code is None or not _is_named(sealed, chain):
                    raise
                raise _taken_over(chain, last_opened(chain, fetch, opener.code).n + 1) from exc
        # A log that is older than the one that this account has seen elsewhere is a rollback.
        if bundle.checkpoint:
            trust.check_older_checkpoint(bundle.checkpoint, lambda gap: _proof(transport, gap))
        trust.close_gaps([_proof(transport, gap) for gap in trust.consistency_gaps()])
        return cls(chain, bundle)

    def keyring(self, link: AccountLink) -> Keyring:
        device = DeviceKey(os.urandom(16), PrivateKey.generate(XWING).encoded)
        return Keyring(
            server_id=link.pin,
            addresses=(link.address,),
            user=link.user,
            first=link.first,
            statements=self.chain,
            generations=self.bundle.generations,
            name_keys=self.bundle.name_keys,
            device=device,
            pending=None,
            pins=self.bundle.pins,
        )


def _is_named(sealed: bytes, chain: tuple[bytes, ...]) -> bool:
    """Whether it is the bundle that the newest statement names, and so who signed that made it."""
    return hashlib.sha256(sealed).digest() == Statement.parse(chain[-1]).bundle_sha256


def _taken_over(chain: tuple[bytes, ...], first: int) -> TakenOver:
    signed = Statement.parse(chain[first - 1])
    when = human_time(signed.created)
    return TakenOver(
        f"the account's keys are sealed without its recovery code since statement {first} "
        f"({signed.reason}, {when}): somebody else has signed with them",
        first=first,
    )


def _proof(transport: Transport, gap: tuple[int, int]) -> tuple[bytes, ...]:
    return expect_proof(transport.call(LogProof(CONSISTENCY, *gap)))
