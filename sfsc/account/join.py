"""Open an account on another device with its recovery code, a backup, or its keys as PEM.

The chain is followed from the pinned first statement, and must name the key that joins. The bundle
must be the one that the newest statement names, and the log must extend the checkpoint that other
devices have seen. The new device then has the account's own key, which adds it to the account, and
logs in with its own key from there on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from protocol.codec.terminal_text import human_time
from protocol.codec.values import Value
from protocol.records.invitation import AccountLink
from protocol.records.records import ServerStatement, Statement
from protocol.wire.messages import session as opening
from protocol.wire.messages.log import LogCheckpoint, LogHead
from protocol.wire.messages.rotation import GetBundle, SealedBundle
from protocol.wire.messages.sharing import Identity, Lookup
from sfsc.account.devices import Devices
from sfsc.account.key_status import new_device
from sfsc.account.recover import find_last_bundle, refused_code, take_back_account
from sfsc.crypto.wrap import XWING, PrivateKey
from sfsc.errors import (
    BrokenChain,
    Denied,
    IntegrityError,
    KeyringError,
    LocalError,
    Rollback,
    TakenOver,
)
from sfsc.keys.bundle import Bundle, SeenCheckpoint, open_bundle
from sfsc.keys.home import check_no_keyring, keyring_path
from sfsc.keys.keyring import Keyring, KeyringFile
from sfsc.keys.recovery_code import RecoveryCode
from sfsc.session import evidence
from sfsc.session.handshake import LoginKey, build_login, dial
from sfsc.session.limits import Timeouts
from sfsc.session.pipeline import Skip
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session
from sfsc.session.transport import Transport
from sfsc.trust.identity_chain import fetch_newest_bundle, follow_chain
from sfsc.trust.server_log import REPORT, ServerTrust, TreeHead
from sfsc.trust.state import open_client_state


class AccountCredentials(Value):
    """Keys that open an account on a new device: `login` to log in, and the private key `opener`
    that opens the bundle. `code` is the recovery code that they are derived from, if any."""

    login: LoginKey
    opener: PrivateKey
    code: RecoveryCode | None = None

    @classmethod
    def from_backup(cls, keyring: Keyring) -> AccountCredentials:
        """Return the keys of the device that a backup is. Raises `LocalError` if the keyring was
        never enrolled."""
        current = keyring.current
        if current is None:
            raise LocalError("the backup contains no account")
        login = LoginKey.from_device(keyring.device, current.generation)
        return cls(login, PrivateKey(XWING, keyring.device.xwing_private))

    @classmethod
    def from_code(cls, code: RecoveryCode) -> AccountCredentials:
        """Return the keys of a recovery code."""
        return cls(LoginKey(None, 0, code.signing_key), code.wrap_key, code)

    def check_named(self, chain: tuple[bytes, ...], first: bytes) -> None:
        """Check that the account's statements name these keys: the newest one the device or the
        recovery key, and that of their generation an account's own keys. Else somebody leads us
        into an account of theirs. `first` is the pinned hash of the first statement. Raises
        `BrokenChain`."""
        head, login = Statement.parse(chain[-1]), self.login
        ours = login.key.public, self.opener.public.encoded
        if login.device_id is not None:
            device = head.find_device(login.device_id)
            named = [] if device is None else [(device.sign_pub, device.xwing_pub)]
        elif login.generation == 0:
            recovery = head.recovery
            named = [] if recovery is None else [(recovery.sign_pub, recovery.xwing_pub)]
        else:
            parsed = map(Statement.parse, chain)
            of_generation = (one for one in parsed if one.generation == login.generation)
            named = [(one.sign_pub, one.wrap_pub) for one in of_generation]
        if ours not in named:
            raise BrokenChain(
                "the account that the server shows does not name the key that joins it",
                REPORT,
                pinned=first.hex(),
            )


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
    answers = evidence.Answers()
    try:
        welcome, chain, bundle, seen = _open_account(link, credentials, timeouts, options, answers)
    except IntegrityError as exc:
        evidence.keep(home, f"server {link.pin.hex()}, user {link.user}", exc, answers)
        raise
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
        labels=bundle.labels,
    )
    file = KeyringFile.create(keyring_path(home), keyring, passphrase)
    with open_client_state(home, file) as state:
        number = ServerStatement.parse(welcome.statement).n
        state.remember_server_statement(number, welcome.statement, welcome.signature)
        if seen is not None:
            state.remember_seen(seen)
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
            with session.thread_guard:
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
    answers: evidence.Answers,
) -> tuple[opening.Welcome, tuple[bytes, ...], Bundle, SeenCheckpoint | None]:
    """Log in on a new connection. Return the server's greeting, the account's chain as exact bytes,
    its opened bundle, and the checkpoint in it. What the server says is added to `answers`."""
    transport = dial((link.address,), timeouts, answers)
    try:
        trust = ServerTrust(link.pin)
        welcome = transport.welcome()
        trust.accept_welcome(welcome, transport.peer_spki_sha256)
        sent = build_login(transport, link.pin, link.user, credentials.login, 0)
        reply = transport.call(sent.message, transport.timeouts.opening)
        try:
            session = expect_reply(reply, opening.Session)
        except Denied as exc:
            if credentials.code is None:
                raise
            raise refused_code() from exc
        head = trust.verify_note(session.checkpoint)
        chain, bundle = _read_account(transport, link, credentials, options)
        seen = _verify_seen(transport, trust, bundle.checkpoint, head)
    finally:
        transport.close()
    return welcome, chain, bundle, seen


def _read_account(
    transport: Transport,
    link: AccountLink,
    credentials: AccountCredentials,
    options: TakeBackOptions | None,
) -> tuple[tuple[bytes, ...], Bundle]:
    """Return the account's chain, as exact bytes, and its opened bundle. That the log has exactly
    this chain is checked by the first session that follows it."""

    def follow_on(known: tuple[bytes, ...]) -> tuple[bytes, ...]:
        def ask(message: Lookup) -> Identity:
            return expect_reply(transport.call(message), Identity)

        return follow_chain(ask, link.pin, link.user, link.first, known).chain

    def fetch(n: int = 0) -> bytes:
        return expect_reply(transport.call(GetBundle(n)), SealedBundle).bundle

    chain, sealed = fetch_newest_bundle(follow_on(()), follow_on, fetch)
    credentials.check_named(chain, link.first)
    if options is not None and credentials.code is not None:
        bundle = find_last_bundle(chain, fetch, credentials.code, options.first).bundle
    else:
        try:
            bundle = open_bundle(sealed, Statement.parse(chain[-1]), (credentials.opener,))
        except (KeyringError, IntegrityError) as exc:
            if credentials.code is None or not _is_named(sealed, chain):
                raise
            raise _taken_over(
                chain, find_last_bundle(chain, fetch, credentials.code).n + 1
            ) from exc
    return chain, bundle


def _verify_seen(
    transport: Transport, trust: ServerTrust, seen: SeenCheckpoint | None, head: TreeHead
) -> SeenCheckpoint | None:
    """Return the checkpoint that another device of the account has proven, by its bundle, if log
    and server have signed it. `head` is the log at login. Raises `Rollback` and `Fork` if the
    server shows an older statement of its own, or a shorter log."""
    if seen is None or (known := trust.find_seen(seen)) is None:
        return None
    trust.check_seen_statement(seen)
    if known.size > head.size:  # another device was busy since this one's login
        reply = expect_reply(transport.call(LogHead()), LogCheckpoint)
        head = trust.verify_note(reply.checkpoint)
    if known.size > head.size:
        raise Rollback(
            f"the server's log has {head.size} entries, fewer than {known.size} seen",
            REPORT,
            notes=(known.note, head.note),
        )
    return seen


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
