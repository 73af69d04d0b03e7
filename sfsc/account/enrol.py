"""Enrolment: create the keys and the first identity statement, and redeem an invitation's token.

The keyring is written, with the statement as pending, before anything is sent: a retry sends the
same bytes. It is written only after the server's identity was verified, and
removed, with the local state, if the server rejects the statement permanently.

A token works once. If it was used up by an attempt whose answer was lost, the retry logs in with
the device that the statement names.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from protocol.codec.errors import MessageError
from protocol.codec.values import changed
from protocol.log.tags import tag_commit
from protocol.records.invitation import Invitation, parse_invitation
from protocol.records.records import (
    USER_ACCOUNT,
    Statement,
    enrol_proof_body,
    key_id,
    record_hash,
)
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Error, Reply
from protocol.wire.messages import session as opening
from sfsc.account.key_status import default_label, new_device, public_device
from sfsc.crypto.primitives import new_key
from sfsc.crypto.wrap import XWING, PrivateKey, PublicKey
from sfsc.errors import BadReceipt, Denied, IntegrityError, LocalError, UsageError
from sfsc.keys.bundle import Bundle, seal_bundle
from sfsc.keys.home import keyring_path
from sfsc.keys.keyring import GenerationKeys, Keyring, KeyringFile, PendingStatement
from sfsc.local_files import exists
from sfsc.session import evidence
from sfsc.session.follow import follow_log
from sfsc.session.handshake import dial, key_lifetime
from sfsc.session.limits import Timeouts
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session
from sfsc.session.transport import Transport
from sfsc.trust.followed_log import FollowedLog
from sfsc.trust.server_log import SentChange, ServerTrust, TreeHead
from sfsc.trust.state import ClientState, open_client_state, state_path

if TYPE_CHECKING:
    from sfsc.keys.pem import PemKeys


def read_invitation(text: str) -> Invitation:
    """Parse an invitation. Raises `UsageError`, whose text does not repeat the secret token."""
    try:
        return parse_invitation(text)
    except MessageError as exc:
        raise UsageError(str(exc), "paste the whole line that `sfsd user add` printed") from exc


def check_server(invitation: Invitation, timeouts: Timeouts | None = None) -> None:
    """Connect to the server of an invitation, and end the connection. Raises `NetworkError`, and
    `WrongServer` and other `IntegrityError`s unless it is the pinned one."""
    transport = dial((invitation.address,), timeouts)
    try:
        ServerTrust(invitation.pin).accept_welcome(transport.welcome(), transport.peer_spki_sha256)
    finally:
        transport.close()


def enrol_account(
    invitation: Invitation,
    home: Path,
    key_type: str,
    passphrase: str | None,
    imported_keys: PemKeys | None = None,
    timeouts: Timeouts | None = None,
) -> Keyring:
    """Enrol with `invitation`. Without a `passphrase` the keyring is not encrypted; `imported_keys`
    replace fresh keys. Continues an interrupted attempt, also one that used the invitation up.
    Raises `LocalError` if `home` already has an account, `TokenRefused`, `WrongServer` and other
    session errors."""
    unfinished = _load_unfinished(invitation, home, passphrase)
    # Before connecting: generating an RSA key may take longer than the login timeout.
    wrapping = None if imported_keys is None else imported_keys.wrapping
    ready = unfinished or wrapping or PrivateKey.generate(key_type)
    answers = evidence.Answers()
    transport = dial((invitation.address,), timeouts, answers)
    try:
        trust = ServerTrust(invitation.pin)
        welcome = transport.welcome()
        server = trust.accept_welcome(welcome, transport.peer_spki_sha256)
        if isinstance(ready, KeyringFile):
            file = ready
        else:
            signing = SigningKey.generate()
            if imported_keys is not None and imported_keys.seed is not None:
                signing = SigningKey.from_seed(imported_keys.seed)
            keyring = _new_keyring(invitation, signing, ready, welcome.limits)
            file = KeyringFile.create(keyring_path(home), keyring, passphrase)
        pending = file.contents.pending
        if pending is None:
            raise LocalError("the keyring has no enrolment to finish")
        # What another account left here stays; a state that opens belongs to this attempt.
        removable_state = not exists(state_path(home))
        useless = unfinished is None  # until the statement is sent
        try:
            with open_client_state(home, file) as state:
                removable_state = True
                state.remember_server_statement(server.n, welcome.statement, welcome.signature)
                useless = False
                reply = _send(transport, pending, invitation, file.contents.tag_key)
                if (
                    unfinished is not None
                    and isinstance(reply, Error)
                    and reply.code == "token"
                    and _logs_in(_accepted(file.contents, pending), pending, state, timeouts)
                ):
                    _accept(file, pending)
                    return file.contents
                useless = isinstance(reply, Error) and _is_final(
                    reply, again=unfinished is not None
                )
                session = expect_reply(reply, opening.Session)
                head = _verify(session, trust, file.contents, pending)
                _follow(transport, head, file.contents, pending, state)
                _accept(file, pending)
        finally:
            if useless:
                _remove_attempt(home, with_state=removable_state)
    except IntegrityError as exc:
        about = f"server {invitation.pin.hex()}, user {invitation.user}"
        evidence.keep(home, about, exc, answers)
        raise
    finally:
        transport.close()
    return file.contents


def _remove_attempt(home: Path, *, with_state: bool) -> None:
    """Remove the keys that can never be enrolled, and the state that is bound to them: it would
    reject the keys of the next invitation."""
    keyring_path(home).unlink()
    if with_state:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{state_path(home)}{suffix}").unlink(missing_ok=True)


def _load_unfinished(
    invitation: Invitation, home: Path, passphrase: str | None
) -> KeyringFile | None:
    """Return the keyring of an interrupted enrolment, or None."""
    if not exists(keyring_path(home)):
        return None
    file = KeyringFile.unlock(keyring_path(home), passphrase)
    known = file.contents
    if known.pending is None or known.statements:
        raise LocalError(
            f"{home} already has a keyring of {known.user}",
            "use another --home for another account",
        )
    if (known.server_id, known.user) != (invitation.pin, invitation.user):
        raise LocalError(
            f"{home} has an unfinished enrolment of {known.user}",
            "finish it with its own invitation, or use another --home",
        )
    return file


def _new_keyring(
    invitation: Invitation, signing: SigningKey, wrapping: PrivateKey, limits: opening.Limits
) -> Keyring:
    """Create all keys of a new account, and its first statement as pending."""
    device = new_device()
    public = public_device(device)
    keys = GenerationKeys(1, signing.seed, wrapping.alg, wrapping.encoded)
    name_keys, tag_key = (new_key(),), new_key()
    labels = ((device.device_id, default_label()),)
    bundle = seal_bundle(
        Bundle((keys,), name_keys, tag_key, (), None, labels),
        server=invitation.pin,
        user=invitation.user,
        n=1,
        recipients=(PublicKey(XWING, public.xwing_pub), wrapping.public),
    )
    now = int(time.time())
    due, expires = key_lifetime(limits, now)
    body = Statement(
        server=invitation.pin,
        user=invitation.user,
        kind=USER_ACCOUNT,
        n=1,
        generation=1,
        oldest=1,
        sign_pub=signing.public,
        wrap_alg=wrapping.alg,
        wrap_pub=wrapping.public.encoded,
        devices=(public,),
        recovery=None,
        custodians=(),
        writers=(),
        voids=(),
        bundle_sha256=hashlib.sha256(bundle).digest(),
        created=now,
        due=due,
        expires=expires,
        prev=b"",
        reason="enrol",
        tag_commit=tag_commit(tag_key),
    ).encode()
    return Keyring(
        server_id=invitation.pin,
        addresses=(invitation.address,),
        user=invitation.user,
        first=record_hash(body),
        statements=(),
        generations=(),
        name_keys=name_keys,
        tag_key=tag_key,
        device=device,
        pending=PendingStatement(body, (signing.sign(Label.STATEMENT, body),), bundle, keys),
        pins=(),
        labels=labels,
    )


def _is_final(error: Error, *, again: bool) -> bool:
    """Return whether these keys can never be enrolled, so that the next invitation starts afresh.
    If a token is rejected on a retry (`again`), this statement may have redeemed it before the user
    was disabled."""
    return error.code in _REFUSED and not (again and error.code == "token")


_REFUSED: Final = frozenset({"token", "refused", "denied", "not-allowed", "bad-request"})


def _send(
    transport: Transport, pending: PendingStatement, invitation: Invitation, tag_key: bytes
) -> Reply:
    """Send the pending statement and return the reply."""
    proven = enrol_proof_body(
        welcome=transport.welcome_sha256, statement=record_hash(pending.statement)
    )
    message = opening.Enroll(
        version=opening.PROTOCOL_VERSION,
        user=invitation.user,
        statement=pending.statement,
        bundle=pending.bundle,
        signature=pending.signatures[0],
        proof=hmac.digest(invitation.token_sha256, proven, "sha256"),
        tag_key=tag_key,
    )
    return transport.call(message, transport.timeouts.opening)


def _verify(
    session: opening.Session, trust: ServerTrust, keyring: Keyring, pending: PendingStatement
) -> TreeHead:
    """Return the signed checkpoint of the log that has the pending statement. Raises `BadReceipt`
    if the server does not show its entry."""
    if session.receipt is None:
        raise BadReceipt("the server does not show the entry of the enrolment")
    user, public = keyring.user, Statement.parse(pending.statement).sign_pub
    sent = SentChange(
        op="enrol",
        actor=user,
        owner=user,
        file=None,
        version=None,
        record=pending.statement,
        signatures={key_id("ed25519", public).hex(): pending.signatures[0]},
    )
    return trust.verify_receipt(session.receipt, sent)[1]


def _follow(
    transport: Transport,
    head: TreeHead,
    keyring: Keyring,
    pending: PendingStatement,
    state: ClientState,
) -> None:
    """Follow the log to the enrolment, which must be in it. Raises as `follow_log`."""
    log = FollowedLog(
        keyring.server_id, keyring.user, record_hash(pending.statement), keyring.tag_key
    )
    follow_log(transport, log, head)
    if log.statements.get(1) != pending.statement:
        raise BadReceipt("the log does not have the enrolment, which the server has confirmed")
    state.save_followed(log.position(head.note), log.take_changes(), log.contacts())


def _logs_in(
    keyring: Keyring, pending: PendingStatement, state: ClientState, timeouts: Timeouts | None
) -> bool:
    """Return whether the account exists with the pending statement: then the device that it names
    can log in. `keyring` has the statement as accepted. Raises as `Session.connect`, but for a
    refused login, and `BadReceipt` if the log has another first statement."""
    session = Session(keyring, state, timeouts)
    try:
        session.connect()
        shown = session.is_restricted or session.log.statements.get(1) == pending.statement
        if not shown:
            raise BadReceipt("the log does not have the enrolment of the account that it shows")
    except Denied:
        return False
    finally:
        session.close()
    return True


def _accepted(keyring: Keyring, pending: PendingStatement) -> Keyring:
    """Return the keyring with the keys of the pending statement as the current ones."""
    generations = () if pending.keys is None else (pending.keys,)
    return changed(keyring, statements=(pending.statement,), generations=generations, pending=None)


def _accept(file: KeyringFile, pending: PendingStatement) -> None:
    """Make the keys of the pending statement current."""
    file.save(_accepted(file.contents, pending))
