"""Log in, enrol, and ping.

A refusal reveals nothing: an unknown user, a disabled user, a wrong key and a wrong token give the
same reply after the same work.
"""

from __future__ import annotations

import hmac
import os
from typing import Final

from protocol.codec.errors import SignatureError
from protocol.codec.names import OPERATOR
from protocol.codec.values import changed
from protocol.log import checkpoint
from protocol.log.tags import check_tag_key
from protocol.records.records import (
    device_login_info,
    enrol_proof_body,
    login_body,
    record_hash,
)
from protocol.records.signatures import Label, SigningKey, verify_signature
from protocol.wire.messages import Receipt
from protocol.wire.messages.session import (
    PROTOCOL_VERSION,
    DeviceChallenge,
    DeviceHello,
    DeviceLogin,
    Enroll,
    Login,
    Ping,
    Pong,
    Session,
)
from sfsd.errors import Refused
from sfsd.rules.context import EVERYONE, Access, Commit, Principal, ServerContext, draft, operation
from sfsd.rules.device_keys import seal_to_device
from sfsd.rules.users import User, rotation_notice, signing_key_id, validate_first_statement
from sfsd.storage.change import Change, Write
from sfsd.storage.json_files import StoredStatement, encode_statements
from sfsd.storage.paths import account_path, bundle_path, statements_path, tag_key_path

OpenedSession = tuple[Principal, Session]

_NOBODY: Final = SigningKey.generate().public
"""Key to verify against if the user has none, so that the time taken reveals nothing."""


_CHALLENGE_KEY: Final = os.urandom(32)
"""Key of the secrets in device challenges, which therefore need no state between two messages."""


@operation(Ping, access=EVERYONE)
def ping(server: ServerContext, who: Principal, message: Ping) -> Pong:  # noqa: ARG001
    """Return the server's time in Unix seconds."""
    return Pong(server.now)


def log_in(
    server: ServerContext, message: Login, welcome: bytes, address: str
) -> OpenedSession | Commit[OpenedSession]:
    """Open a session by signature. Raises `Refused`, which never says what is wrong."""
    _check_version(message.version)
    public, access, user = _key_of(server, message)
    statement = server.identity.statement
    body = login_body(
        server=server.identity.server_id,
        spki=statement.tls_spki_sha256,
        welcome=welcome,
        version=message.version,
        user=message.user,
        generation=message.generation,
    )
    try:
        verify_signature(Label.LOGIN, body, message.signature, public or _NOBODY)
    except SignatureError as exc:
        raise _refused() from exc
    if public is None:
        raise _refused()
    who = Principal(message.user, message.generation, access, -1, 0, address)
    if server.failed is not None:
        # The login cannot be logged. The session may list files; changes and downloads are refused.
        return who, _session(server, who, user, message.known_size)
    detail = {"address": address, "generation": message.generation, "access": access.name.lower()}
    entry = draft(
        who,
        "login",
        rec=body,
        sigs={signing_key_id(public): message.signature},
        detail=detail,
        accounts=() if user is None else (user.name,),
    )

    def answer(seq: int) -> OpenedSession:
        who.session = seq
        return who, _session(server, who, user, message.known_size)

    expect = {} if user is None else user.expect
    return Commit(Change(entry, expect=expect), answer)


def challenge_device(
    server: ServerContext, message: DeviceHello, welcome: bytes
) -> DeviceChallenge:
    """Return a secret sealed to the device's key. An unknown user or device gets the same answer
    after the same work, sealed to a key that nobody has."""
    _check_version(message.version)
    user = _find_device_owner(server, message.user, message.device_id)
    public = None if user is None else dict(user.chain.head.devices)[message.device_id]
    info = device_login_info(
        server=server.identity.server_id,
        welcome=welcome,
        user=message.user,
        device=message.device_id,
    )
    secret = _device_secret(welcome, message.user, message.device_id)
    return DeviceChallenge(seal_to_device(public, secret, info))


def log_in_device(
    server: ServerContext, message: DeviceLogin, welcome: bytes, address: str
) -> OpenedSession | Commit[OpenedSession]:
    """Open a restricted session for a device that has opened its challenge. Raises `Refused`, which
    never says what is wrong."""
    _check_version(message.version)
    user = _find_device_owner(server, message.user, message.device_id)
    secret = _device_secret(welcome, message.user, message.device_id)
    if not hmac.compare_digest(secret, message.secret) or user is None:
        raise _refused()
    who = Principal(user.name, user.chain.head.generation, Access.RESTRICTED, -1, 0, address)
    if server.failed is not None:
        return who, _session(server, who, user, message.known_size)
    detail = {"address": address, "device": message.device_id.hex()}
    entry = draft(who, "device-login", detail=detail, accounts=(user.name,))

    def answer(seq: int) -> OpenedSession:
        who.session = seq
        return who, _session(server, who, user, message.known_size)

    return Commit(Change(entry, expect=user.expect), answer)


def _find_device_owner(server: ServerContext, name: str, device_id: bytes) -> User | None:
    """Return an active user who has this device at present."""
    user = server.users.find(name)
    if user is None or user.account.value.disabled:
        return None
    return user if device_id in dict(user.chain.head.devices) else None


def _device_secret(welcome: bytes, user: str, device_id: bytes) -> bytes:
    return hmac.digest(_CHALLENGE_KEY, welcome + device_id + user.encode(), "sha256")


def enrol(
    server: ServerContext, message: Enroll, welcome: bytes, address: str
) -> OpenedSession | Commit[OpenedSession]:
    """Store a new user's first statement, authorised by the token of an invitation.

    Raises `Refused`: `token` without the reason, or the rule that the statement breaks. If the same
    statement is sent again, its receipt is returned with a restricted session: it needs only the
    token, and a used token is hardly secret.
    """
    _check_version(message.version)
    name = message.user
    statement_hash = record_hash(message.statement)
    document = server.users.account(name)
    token = None if document is None else document.value.token_sha256
    body = enrol_proof_body(welcome=welcome, statement=statement_hash)
    proof = hmac.digest(token or bytes(32), body, "sha256")
    proven = hmac.compare_digest(proof, message.proof)
    if document is None or token is None or not proven or document.value.disabled:
        raise _invalid_token()
    account = document.value
    if account.used_by is not None:
        return _enrol_again(server, message, statement_hash, address)
    if server.now >= account.token_expires:
        raise _invalid_token()
    statement = validate_first_statement(
        message.statement,
        message.signature,
        message.bundle,
        user=name,
        server_id=server.identity.server_id,
        policy=server.config.rotation,
        now=server.now,
    )
    if not check_tag_key(message.tag_key, statement.tag_commit):
        raise Refused("bad-request", "the statement commits to another tag key")
    who = Principal(name, statement.generation, Access.FULL, -1, 0, address)
    used = changed(account, used_by=statement_hash, tag_key=message.tag_key)
    entry = draft(
        who,
        "enrol",
        owner=name,
        rec=message.statement,
        sigs={signing_key_id(statement.sign_pub): message.signature},
        detail={"generation": statement.generation, "wrap_alg": statement.wrap_alg},
        accounts=(name,),
        identity=(statement_hash, 1),
        tag_keys={name: message.tag_key},
    )

    def chain(seq: int) -> bytes:
        link = StoredStatement(message.statement, (message.signature,), seq, statement)
        return encode_statements([link])

    change = Change(
        entry,
        {
            account_path(name): document.digest,
            **dict.fromkeys((statements_path(name), bundle_path(name), tag_key_path(name))),
        },
        (
            Write(account_path(name), used.encode),
            Write(tag_key_path(name), message.tag_key),
            Write(statements_path(name), chain),
            Write(bundle_path(name), bytes(message.bundle)),
        ),
    )

    def answer(seq: int) -> OpenedSession:
        who.session = seq
        receipt = server.receipt(seq, who)
        return who, _session(server, who, server.users.find(name), 0, receipt)

    return Commit(change, answer)


def _enrol_again(
    server: ServerContext, message: Enroll, statement_hash: bytes, address: str
) -> Commit[OpenedSession]:
    """Return the receipt of a statement that an earlier request stored, if it is the same one."""
    user = server.users.find(message.user)
    if user is None or user.chain.first_hash != statement_hash:
        raise _invalid_token()
    who = Principal(message.user, 1, Access.RESTRICTED, -1, 0, address)
    entry = draft(who, "enrol-again", owner=message.user, accounts=(message.user,))

    def answer(seq: int) -> OpenedSession:
        who.session = seq
        receipt = server.receipt(user.chain.links[0].seq, who)
        return who, _session(server, who, user, 0, receipt)

    return Commit(Change(entry, expect=user.expect), answer)


def _key_of(server: ServerContext, message: Login) -> tuple[bytes | None, Access, User | None]:
    """Return the public key that must have signed (None: no such key), its access, and the user."""
    if message.user == OPERATOR:
        key = server.identity.operator_public if message.generation == 1 else None
        return key, Access.OPERATOR, None
    user = server.users.find(message.user)
    if user is None or user.account.value.disabled:
        return None, Access.RESTRICTED, None
    head = user.chain.head
    if message.generation == 0:
        recovery = None if head.recovery is None else head.recovery.sign_pub
        return recovery, Access.RECOVERY, user
    access = Access.FULL if message.generation == head.generation else Access.RESTRICTED
    return user.chain.signing_keys.get(message.generation), access, user


def _session(
    server: ServerContext,
    who: Principal,
    user: User | None,
    known_size: int,
    receipt: Receipt | None = None,
) -> Session:
    """Return the reply, and set the size from which the session's receipts prove consistency.

    A client that has seen a longer log gets no proof, and so detects that the log was truncated.
    """
    note = server.journal.checkpoint() if receipt is None else receipt.checkpoint
    size = checkpoint.read(note).size
    who.known_size = size
    consistency = server.journal.prove_consistency(known_size, size) if known_size <= size else ()
    notice = None if user is None else rotation_notice(user, server.now, who.generation)
    return Session(note, consistency, receipt, notice, server.now)


def _check_version(version: int) -> None:
    if version != PROTOCOL_VERSION:
        raise Refused("bad-request", f"this server supports protocol version {PROTOCOL_VERSION}")


def _invalid_token() -> Refused:
    return Refused("token", "the invitation is unknown, used, expired or not for this user")


def _refused() -> Refused:
    return Refused("refused", "the server does not accept this user with this key")
