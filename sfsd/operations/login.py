"""Log in, enrol, and ping.

A refusal reveals nothing: an unknown user, a disabled user, a wrong key and a wrong token give the
same reply after the same work.
"""

from __future__ import annotations

import hmac
from typing import Final

from protocol.codec.errors import SignatureError
from protocol.codec.names import OPERATOR
from protocol.codec.values import Value, changed
from protocol.log import checkpoint
from protocol.log.tags import check_tag_key
from protocol.records.records import enrol_proof_body, login_body, record_hash
from protocol.records.signatures import Label, SigningKey, verify_signature
from protocol.wire.messages import Receipt
from protocol.wire.messages.session import (
    PROTOCOL_VERSION,
    Enroll,
    Login,
    Ping,
    Pong,
    Session,
)
from sfsd.errors import Refused
from sfsd.rules.context import (
    EVERYONE,
    Access,
    Principal,
    ServerContext,
    ServerIdentity,
    Transaction,
    draft,
    operation,
)
from sfsd.rules.users import (
    User,
    possession_detail,
    rotation_notice,
    signing_key_id,
    validate_first_statement,
)
from sfsd.storage.change import Change, Write
from sfsd.storage.json_files import StoredStatement, encode_statements
from sfsd.storage.paths import account_path, bundle_path, statements_path, tag_key_path

OpenedSession = tuple[Principal, Session]

_NOBODY: Final = SigningKey.generate().public
"""Key to verify against if the user has none, so that the time taken reveals nothing."""


@operation(Ping, access=EVERYONE)
def ping(server: ServerContext, who: Principal, message: Ping) -> Pong:  # noqa: ARG001
    """Return the server's time in Unix seconds."""
    return Pong(server.now)


def log_in(
    server: ServerContext, message: Login, welcome: bytes, address: str, identity: ServerIdentity
) -> OpenedSession | Transaction[OpenedSession]:
    """Open a session by signature, on a connection whose Welcome had that `identity`.

    Raises `Refused`, which never says what is wrong.
    """
    _check_version(message.version)
    key = _find_login_key(server, message)
    body = login_body(
        server=identity.server_id,
        spki=identity.spki_sha256,
        welcome=welcome,
        version=message.version,
        user=message.user,
        device_id=message.device_id,
        generation=message.generation,
    )
    public = _NOBODY if key is None else key.public
    try:
        verify_signature(Label.LOGIN, body, message.signature, public)
    except SignatureError as exc:
        raise _refused() from exc
    if key is None:
        raise _refused()
    if key.refusal:
        # The caller has proven whose key this is, so they are told.
        raise Refused("denied", key.refusal)
    user, access = key.user, key.access
    who = Principal(
        message.user, message.generation, access, -1, message.known_size, address, signer=public
    )
    if access is Access.MONITOR or server.failed is not None:
        # A monitor changes nothing, and asks so often that its logins would fill the log.
        # After a failure no login can be logged. The session may list files; changes and downloads
        # are refused.
        return who, _session(server, who, user)
    detail = {"address": address, "generation": message.generation, "access": access.name.lower()}
    if message.device_id is not None:
        detail["device"] = message.device_id.hex()
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
        receipt = server.receipt(seq, who) if access is Access.FULL else None
        return who, _session(server, who, user, receipt)

    expect = {} if user is None else user.expect
    return Transaction(Change(entry, expect=expect), answer)


def enrol(
    server: ServerContext, message: Enroll, welcome: bytes, address: str
) -> Transaction[OpenedSession]:
    """Store a new user's first statement, authorised by the token of an invitation.

    Raises `Refused`: `token` without the reason, or the rule that the statement breaks. A used
    token opens nothing, because it is hardly secret: a client that lost the answer to its statement
    logs in with the device that it names.
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
    if account.used_by is not None or server.now >= account.token_expires:
        raise _invalid_token()
    statement = validate_first_statement(
        message.statement,
        message.signature,
        message.bundle,
        message.possession,
        user=name,
        server_id=server.identity.server_id,
        policy=server.config.rotation,
        now=server.now,
    )
    if not check_tag_key(message.tag_key, statement.tag_commit):
        raise Refused("bad-request", "the statement commits to another tag key")
    public = statement.sign_pub
    who = Principal(name, statement.generation, Access.FULL, -1, 0, address, signer=public)
    used = changed(account, used_by=statement_hash, tag_key=message.tag_key)
    entry = draft(
        who,
        "enrol",
        owner=name,
        rec=message.statement,
        sigs={signing_key_id(public): message.signature},
        detail={
            "generation": statement.generation,
            "wrap_alg": statement.wrap_alg,
            **possession_detail(message.possession),
        },
        accounts=(name,),
        identity=(statement_hash, 1),
        tag_keys={name: message.tag_key},
    )

    def chain(seq: int) -> bytes:
        signatures = (message.signature,)
        link = StoredStatement(message.statement, signatures, seq, statement, message.possession)
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
        return who, _session(server, who, server.users.find(name), receipt)

    return Transaction(change, answer)


_OPERATORS: Final = {1: Access.OPERATOR, 0: Access.MONITOR}
"""The access of the operator's key, by the generation that the login names."""


class _LoginKey(Value):
    """The public key that must have signed a login, and what the login is good for. `user` is None
    for the operator. `refusal` is why the operator lets this key open nothing, or empty."""

    public: bytes
    access: Access
    user: User | None
    refusal: str = ""


def _find_login_key(server: ServerContext, message: Login) -> _LoginKey | None:
    """Return the key that must have signed, None if the user has no such key.

    Only keys of the newest statement log in: a device that it no longer names has ended, and so has
    the signing key of an older generation.
    """
    device_id, generation = message.device_id, message.generation
    if message.user == OPERATOR:
        access = _OPERATORS.get(generation) if device_id is None else None
        key = server.identity.operator_public
        return None if access is None else _LoginKey(key, access, None)
    user = server.users.find(message.user)
    if user is None:
        return None
    found = _find_user_key(user, message)
    return None if found is None else changed(found, refusal=_refusal(user, found.access))


def _refusal(user: User, access: Access) -> str:
    """Return why the operator lets no key, or only the recovery key, open a session; or ""."""
    account = user.account.value
    if account.removal:
        return "the operator has removed your account"
    if account.disabled:
        return "the operator has disabled your account"
    if account.revoked >= user.chain.head.n and access is not Access.RECOVERY:
        return "the operator has revoked your devices; your recovery code takes the account back"
    return ""


def _find_user_key(user: User, message: Login) -> _LoginKey | None:
    device_id, generation = message.device_id, message.generation
    head = user.chain.head
    if device_id is not None:
        device = head.find_device(device_id)
        if device is None or generation == 0:
            return None
        access = Access.FULL if generation == head.generation else Access.RESTRICTED
        return _LoginKey(device.sign_pub, access, user)
    if generation == 0:
        recovery = head.recovery
        return None if recovery is None else _LoginKey(recovery.sign_pub, Access.RECOVERY, user)
    if generation != head.generation:
        return None
    return _LoginKey(head.sign_pub, Access.JOINING, user)


def _session(
    server: ServerContext,
    who: Principal,
    user: User | None,
    receipt: Receipt | None = None,
) -> Session:
    """Return the reply. Without a receipt, the session is shown leaves from the checkpoint on."""
    note = server.journal.checkpoint() if receipt is None else receipt.checkpoint
    if receipt is None:
        who.known_size = checkpoint.read(note).size
    notice = None if user is None else rotation_notice(user, server.now, who.generation)
    return Session(note, receipt, notice, server.now)


def _check_version(version: int) -> None:
    if version != PROTOCOL_VERSION:
        raise Refused("bad-request", f"this server supports protocol version {PROTOCOL_VERSION}")


def _invalid_token() -> Refused:
    return Refused("token", "the invitation is unknown, used, expired or not for this user")


def _refused() -> Refused:
    return Refused("refused", "the server does not accept this user with this key")
