"""Becoming a user: fresh keys, a first identity statement, and an invitation's token.

The keyring is written, with the statement in it as pending, before anything is sent: whatever is
lost afterwards, a rerun sends the very same bytes and gets the very same answer. It is written only
once the server was judged, and removed where the server has refused the statement for good.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from protocol.codec.errors import MessageError
from protocol.codec.values import changed
from protocol.records.invitation import Invitation, parse_invitation
from protocol.records.records import Statement, enrol_proof_body, key_id, record_hash
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Error, Reply
from protocol.wire.messages import session as opening
from sfsc.crypto.primitives import PrivateKey, new_key
from sfsc.errors import LocalError, UsageError
from sfsc.keys.bundle import Bundle, seal_bundle
from sfsc.keys.home import keyring_path
from sfsc.keys.keyring import DeviceKey, GenerationKeys, Keyring, KeyringFile, PendingStatement
from sfsc.session.handshake import dial, key_lifetime
from sfsc.session.limits import Timeouts
from sfsc.session.server_errors import expect_reply
from sfsc.session.transport import Transport
from sfsc.trust.server_log import SentChange, ServerTrust
from sfsc.trust.state import open_client_state

if TYPE_CHECKING:
    from sfsc.keys.pem import PemKeys

_GENERATION: Final = 1


def invited_by(text: str) -> Invitation:
    """The invitation that `text` is. Raises `UsageError`, which does not repeat it."""
    try:
        return parse_invitation(text)
    except MessageError as exc:
        raise UsageError(str(exc), "paste the whole line that `sfsd user add` printed") from exc


def enrol_account(
    invitation: Invitation,
    home: Path,
    key_type: str,
    passphrase: str | None,
    brought: PemKeys | None = None,
    timeouts: Timeouts | None = None,
) -> Keyring:
    """Enrol with `invitation`; None as `passphrase` locks the keyring with nothing. `brought` are
    keys of one's own, in the place of fresh ones.

    Goes on where an earlier try was cut. Raises `LocalError` where `home` has an account already,
    `TokenRefused`, `WrongServer` and the other errors of a session.
    """
    begun = _begun(invitation, home, passphrase)
    # Before the server is called: making an RSA key may take longer than it waits for a login.
    wrapping = None if brought is None else brought.wrapping
    ready = begun or wrapping or PrivateKey.generate(key_type)
    transport = dial((invitation.address,), timeouts)
    try:
        trust = ServerTrust(invitation.pin)
        welcome = transport.welcome()
        server = trust.accept_welcome(welcome, transport.peer_spki_sha256)
        if isinstance(ready, KeyringFile):
            file = ready
        else:
            signing = SigningKey.generate()
            if brought is not None and brought.seed is not None:
                signing = SigningKey.from_seed(brought.seed)
            keyring = _fresh(invitation, signing, ready, welcome.limits)
            file = KeyringFile.create(keyring_path(home), keyring, passphrase)
        with open_client_state(home, file.contents) as state:
            state.remember_server_statement(server.n, welcome.statement, welcome.signature)
            reply = _send(transport, file.contents, invitation)
            if isinstance(reply, Error) and _is_final(reply, again=begun is not None):
                keyring_path(home).unlink()
            _accept(expect_reply(reply, opening.Session), trust, file)
            newest = trust.newest
            state.remember_checkpoint(newest.size, newest.root, newest.note)
    finally:
        transport.close()
    return file.contents


def _begun(invitation: Invitation, home: Path, passphrase: str | None) -> KeyringFile | None:
    """The keyring of an enrolment that was cut, None where there is none."""
    if not os.path.exists(keyring_path(home)):
        return None
    file = KeyringFile.unlock(keyring_path(home), passphrase)
    known = file.contents
    if known.pending is None or known.statements:
        raise LocalError(
            f"there is a keyring of {known.user} in {home} already",
            "use another --home for another account",
        )
    if (known.server_id, known.user) != (invitation.pin, invitation.user):
        raise LocalError(
            f"an enrolment of {known.user} was begun in {home}",
            "finish it with its own invitation, or use another --home",
        )
    return file


def _fresh(
    invitation: Invitation, signing: SigningKey, wrapping: PrivateKey, limits: opening.Limits
) -> Keyring:
    """All keys of a new account, and its first statement, pending."""
    device_key = PrivateKey.generate("xwing")
    device = DeviceKey(os.urandom(16), device_key.encoded)
    keys = GenerationKeys(_GENERATION, signing.seed, wrapping.alg, wrapping.encoded)
    name_keys = (new_key(),)
    bundle = seal_bundle(
        Bundle((keys,), name_keys, (), b""),
        server=invitation.pin,
        user=invitation.user,
        n=1,
        recipients=(device_key.public, wrapping.public),
    )
    now = int(time.time())
    due, expires = key_lifetime(limits, now)
    body = Statement(
        server=invitation.pin,
        user=invitation.user,
        n=1,
        generation=_GENERATION,
        oldest=_GENERATION,
        sign_pub=signing.public,
        wrap_alg=wrapping.alg,
        wrap_pub=wrapping.public.encoded,
        devices=((device.device_id, device_key.public.encoded),),
        recovery=None,
        voids=(),
        bundle_sha256=hashlib.sha256(bundle).digest(),
        created=now,
        due=due,
        expires=expires,
        prev=b"",
        reason="enrol",
    ).encode()
    return Keyring(
        server_id=invitation.pin,
        addresses=(invitation.address,),
        user=invitation.user,
        first=record_hash(body),
        statements=(),
        generations=(),
        name_keys=name_keys,
        device=device,
        pending=PendingStatement(body, (signing.sign(Label.STATEMENT, body),), bundle, keys),
        pins=(),
    )


def _is_final(error: Error, *, again: bool) -> bool:
    """Whether these keys can never be enrolled: the next invitation starts from nothing.

    A token that is refused `again` may have been used with this very statement, and the user been
    disabled since.
    """
    return error.code in _REFUSED and not (again and error.code == "token")


_REFUSED: Final = frozenset({"token", "refused", "denied", "not-allowed", "bad-request"})


def _send(transport: Transport, keyring: Keyring, invitation: Invitation) -> Reply:
    """The server's answer to the pending statement."""
    pending = _pending(keyring)
    proven = enrol_proof_body(
        welcome=transport.welcome_sha256, statement=record_hash(pending.statement)
    )
    message = opening.Enroll(
        version=opening.PROTOCOL_VERSION,
        user=keyring.user,
        statement=pending.statement,
        bundle=pending.bundle,
        signature=pending.signatures[0],
        proof=hmac.digest(invitation.token_sha256, proven, "sha256"),
    )
    return transport.call(message, transport.timeouts.opening)


def _accept(session: opening.Session, trust: ServerTrust, file: KeyringFile) -> None:
    """Check the proof that the pending statement is logged, and make its keys current."""
    user, pending = file.contents.user, _pending(file.contents)
    public = Statement.parse(pending.statement).sign_pub
    sent = SentChange(
        op="enrol",
        actor=user,
        owner=user,
        file=None,
        version=None,
        record=pending.statement,
        signatures={key_id("ed25519", public).hex(): pending.signatures[0]},
    )
    trust.accept_enrolment(session, sent)
    generations = () if pending.keys is None else (pending.keys,)
    file.save(
        changed(
            file.contents,
            statements=(pending.statement,),
            generations=generations,
            pending=None,
        )
    )


def _pending(keyring: Keyring) -> PendingStatement:
    if keyring.pending is None:
        raise LocalError("this keyring has no enrolment to finish")
    return keyring.pending
