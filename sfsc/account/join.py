"""Open an account on another device with its recovery code, a backup, or its keys as PEM.

The chain is followed from the pinned first statement. The bundle must be the one that the newest
statement names, and the log must extend the checkpoint that other devices have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from protocol.codec.terminal_text import human_time
from protocol.codec.values import Value
from protocol.records.invitation import AccountLink
from protocol.records.records import ServerStatement, Statement
from protocol.records.signatures import SigningKey
from protocol.wire.messages import session as opening
from protocol.wire.messages.log import CONSISTENCY, LogProof
from protocol.wire.messages.rotation import GetBundle, SealedBundle
from protocol.wire.messages.sharing import Identity, Lookup
from sfsc.account.devices import Devices
from sfsc.account.key_status import new_device
from sfsc.account.recover import find_last_bundle, take_back_account
from sfsc.crypto.wrap import XWING, PrivateKey
from sfsc.errors import Denied, IntegrityError, KeyringError, LocalError, TakenOver
from sfsc.keys.bundle import Bundle, open_bundle
from sfsc.keys.home import check_no_keyring, keyring_path
from sfsc.keys.keyring import DeviceKey, Keyring, KeyringFile
from sfsc.keys.recovery_code import RecoveryCode
from sfsc.session.handshake import build_login, dial, log_in_with_device
from sfsc.session.limits import Timeouts
from sfsc.session.pipeline import Skip
from sfsc.session.server_errors import expect_proof, expect_reply
from sfsc.session.session import Session
from sfsc.session.transport import Transport
from sfsc.trust.identity_chain import fetch_newest_bundle, follow_chain
from sfsc.trust.server_log import ServerTrust
from sfsc.trust.state import open_client_state


class AccountCredentials(Value):
    """Keys that open an account on a new device: the signing key of `generation` (0: the recovery
    key) to log in, and private `keys` of which one opens the bundle. `device` logs in if the server
    does not know the signing key, because it was restored from a backup."""

    generation: int
    signing: SigningKey
    keys: Sequence[PrivateKey]
    code: RecoveryCode | None = None
    device: DeviceKey | None = None

    @classmethod
    def from_keyring(cls, keyring: Keyring) -> AccountCredentials:
        """Return the credentials in the keyring of a backup. Raises `LocalError` if it was never
        enrolled."""
        current = keyring.current
        if current is None:
            raise LocalError("the backup contains no account")
        device = PrivateKey(XWING, keyring.device.xwing_private)
        own = [PrivateKey(one.wrap_alg, one.wrap_private) for one in keyring.generations]
        signing = SigningKey.from_seed(current.sign_seed)
        return cls(current.generation, signing, (device, *own), device=keyring.device)


def join_account(
    link: AccountLink,
    credentials: AccountCredentials,
    home: Path,
    passphrase: str | None,
    timeouts: Timeouts | None = None,
    options: TakeBackOptions | None = None,
) -> KeyringFile:
    """Write a keyring of the account `link` to `home` with a new device key, and add the device.

    If this is interrupted, the next login adds the device. `options` is for an account
    that an attacker controls; if that is interrupted, `sfsc rotate --recovery` continues.

    Raises `LocalError` if `home` has a keyring, `TakenOver` if the newest bundle is not sealed for
    the recovery code, `Denied`, `IntegrityError`, ….
    """
    check_no_keyring(home)
    try:
        welcome, trust, chain, bundle = _open_account(link, credentials, timeouts, options)
    except Denied:
        if credentials.device is None:
            raise
        welcome, trust, chain, bundle = _open_account(
            link, credentials, timeouts, options, device=credentials.device
        )
    keyring = Keyring(
        server_id=link.pin,
        addresses=(link.address,),
        user=link.user,
        first=link.first,
        statements=chain,
        generations=bundle.generations,
        name_keys=bundle.name_keys,
        tag_key=bundle.tag_key,
        device=new_device(),
        pending=None,
        pins=bundle.pins,
    )
    file = KeyringFile.create(keyring_path(home), keyring, passphrase)
    with open_client_state(home, file.contents) as state:
        number = ServerStatement.parse(welcome.statement).n
        state.remember_server_statement(number, welcome.statement, welcome.signature)
        newest = trust.newest
        state.remember_checkpoint(newest.size, newest.root, newest.note)
        if options is not None and credentials.code is not None:
            on_destroyed, first = options.on_destroyed, options.first
            take_back_account(
                file,
                state,
                credentials.code,
                first=first,
                timeouts=timeouts,
                on_destroyed=on_destroyed,
            )
            return file
        session = Session(file.contents, state, timeouts)
        try:
            session.connect()
            Devices(session, file).finish_pending()
        finally:
            session.close()
    return file


class TakeBackOptions(Value):
    """Statements from number `first` on are undone (None: from the first not sealed for the code).
    `on_destroyed` is called for each destroyed version."""

    first: int | None = None
    on_destroyed: Skip | None = None


def _open_account(
    link: AccountLink,
    credentials: AccountCredentials,
    timeouts: Timeouts | None,
    options: TakeBackOptions | None,
    *,
    device: DeviceKey | None = None,
) -> tuple[opening.Welcome, ServerTrust, tuple[bytes, ...], Bundle]:
    """Log in on a new connection, with the key of `device` if it is given. Return the server's
    greeting, the trust in its log, the account's chain as exact bytes, and its opened bundle."""
    transport = dial((link.address,), timeouts)
    try:
        trust = ServerTrust(link.pin)
        welcome = transport.welcome()
        trust.accept_welcome(welcome, transport.peer_spki_sha256)
        if device is not None:
            reply = log_in_with_device(transport, link.pin, link.user, device, 0)
        else:
            message, _ = build_login(
                transport, link.pin, link.user, credentials.generation, credentials.signing, 0
            )
            reply = transport.call(message, transport.timeouts.opening)
        trust.accept_session(expect_reply(reply, opening.Session))
        chain, bundle = _read_account(transport, trust, link, credentials, options)
    finally:
        transport.close()
    return welcome, trust, chain, bundle


def _read_account(
    transport: Transport,
    trust: ServerTrust,
    link: AccountLink,
    credentials: AccountCredentials,
    options: TakeBackOptions | None,
) -> tuple[tuple[bytes, ...], Bundle]:
    """Return the account's chain, as exact bytes, and its opened bundle."""

    def follow_on(known: tuple[bytes, ...]) -> tuple[bytes, ...]:
        def ask(message: Lookup) -> Identity:
            return expect_reply(transport.call(message), Identity)

        return follow_chain(ask, trust, link.user, link.first, known)

    def fetch(n: int = 0) -> bytes:
        return expect_reply(transport.call(GetBundle(n)), SealedBundle).bundle

    chain, sealed = fetch_newest_bundle(follow_on(()), follow_on, fetch)
    if options is not None and credentials.code is not None:
        bundle = find_last_bundle(chain, fetch, credentials.code, options.first).bundle
    else:
        try:
            bundle = open_bundle(sealed, Statement.parse(chain[-1]), credentials.keys)
        except (KeyringError, IntegrityError) as exc:
            if credentials.code is None or not _is_named(sealed, chain):
                raise
            raise _taken_over(
                chain, find_last_bundle(chain, fetch, credentials.code).n + 1
            ) from exc
    # A log older than the one that this account has seen on another device is a rollback.
    if bundle.checkpoint:
        trust.check_older_checkpoint(bundle.checkpoint, lambda gap: _proof(transport, gap))
    trust.close_gaps([_proof(transport, gap) for gap in trust.consistency_gaps()])
    return chain, bundle


def _is_named(sealed: bytes, chain: tuple[bytes, ...]) -> bool:
    """Return whether the newest statement names this bundle: then its signer made the bundle."""
    return hashlib.sha256(sealed).digest() == Statement.parse(chain[-1]).bundle_sha256


def _taken_over(chain: tuple[bytes, ...], first: int) -> TakenOver:
    signed = Statement.parse(chain[first - 1])
    when = human_time(signed.created)
    return TakenOver(
        f"the account's keys are sealed without its recovery code since statement {first} "
        f"({signed.reason}, {when}): somebody else has used them",
        first=first,
    )


def _proof(transport: Transport, gap: tuple[int, int]) -> tuple[bytes, ...]:
    return expect_proof(transport.call(LogProof(CONSISTENCY, *gap)))
