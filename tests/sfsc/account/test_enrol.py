"""Becoming a user: once, proven, and safe to repeat."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.records.records import (
    WRAP_ALGORITHMS,
    Statement,
    enrol_proof_body,
    key_id,
    record_hash,
)
from protocol.records.signatures import Label, verify_signature
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.session import Enroll, Limits, Session
from sfsc.account.enrol import enrol_account, read_invitation
from sfsc.crypto.primitives import PrivateKey
from sfsc.errors import (
    BadReceipt,
    KeyringError,
    LocalError,
    NetworkError,
    ProtocolFailure,
    TokenRefused,
    Unreachable,
    UsageError,
    WrongServer,
)
from sfsc.keys.bundle import open_bundle
from sfsc.keys.home import unlock_home
from sfsc.keys.keyring import Keyring
from sfsc.session.handshake import DAY
from sfsc.trust.state import open_client_state
from tests.sfsc.conftest import QUICK
from tests.sfsc.simulator import DropConnection, SimulatedLog, Simulator


def become(server: Simulator, home: Path, user: str = "ada", **how: str) -> Keyring:
    invitation = read_invitation(server.invitation(user))
    return enrol_account(invitation, home, how.get("key_type", "x25519"), None, timeouts=QUICK)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    return tmp_path / "fresh"


@pytest.mark.parametrize("key_type", WRAP_ALGORITHMS)
def test_a_new_user(server: Simulator, fresh: Path, key_type: str) -> None:
    keyring = become(server, fresh, key_type=key_type)
    assert keyring == unlock_home(fresh, None).contents
    (body,) = keyring.statements
    statement = Statement.parse(body)
    assert body == server.statement
    assert (statement.user, statement.n, statement.generation, statement.reason) == (
        "ada",
        1,
        1,
        "enrol",
    )
    assert (keyring.first, keyring.pending) == (record_hash(body), None)
    assert keyring.addresses == (server.address,)
    assert keyring.current is not None
    private = PrivateKey(key_type, keyring.current.wrap_private)
    assert statement.key_id == key_id(key_type, private.public.encoded)
    with open_client_state(fresh, keyring) as state:
        assert state.checkpoint() == (1, server.log.root(1), server.log.checkpoint(1))


def test_what_is_sent(server: Simulator, fresh: Path) -> None:
    keyring = become(server, fresh)
    (message,) = server.asked(Enroll)
    statement = Statement.parse(message.statement)
    verify_signature(Label.STATEMENT, message.statement, message.signature, statement.sign_pub)
    assert keyring.current is not None
    # The bundle opens with the device's key and with the account's own, and holds what is needed.
    for private in (
        PrivateKey("xwing", keyring.device.xwing_private),
        PrivateKey("x25519", keyring.current.wrap_private),
    ):
        bundle = open_bundle(bytes(message.bundle), statement, [private])
        assert (bundle.generations, bundle.name_keys) == (keyring.generations, keyring.name_keys)
    assert statement.devices[0][0] == keyring.device.device_id
    sent = message.statement + bytes(message.bundle) + message.signature + message.proof
    for secret in (server.token, *keyring.name_keys, keyring.device.xwing_private[:32]):
        assert secret not in sent


def test_the_token_is_proven_and_bound_to_the_welcome(server: Simulator, fresh: Path) -> None:
    become(server, fresh)
    (message,) = server.asked(Enroll)
    key = hashlib.sha256(server.token).digest()
    statement = record_hash(message.statement)
    unbound = enrol_proof_body(welcome=bytes(32), statement=statement)
    assert message.proof != hmac.digest(key, unbound, "sha256")
    assert len(message.proof) == 32


@pytest.mark.parametrize(
    "limits",
    [
        Limits(0, 90 * DAY, 30 * DAY, 10),
        Limits(0, 90 * DAY, 30 * DAY, 0),
        Limits(0, 60, 60, 50),
        Limits(0, 100_000 * DAY, 100_000 * DAY, 100),
        Limits(0, 0, 0, 0),
    ],
    ids=str,
)
def test_the_keys_have_a_term(server: Simulator, fresh: Path, limits: Limits) -> None:
    server.welcome = lambda welcome: replace(welcome, limits=limits)
    statement = Statement.parse(become(server, fresh).statements[0])
    due = statement.due - statement.created
    expires = statement.expires - statement.created
    assert DAY <= due <= expires <= 730 * DAY
    assert due <= max(DAY, limits.max_age)
    assert due >= min(730 * DAY, limits.max_age * (100 - limits.jitter) // 100)


def test_a_server_that_is_not_the_pinned_one_learns_nothing(server: Simulator, fresh: Path) -> None:
    invitation = read_invitation(server.invitation("ada"))
    server.log = SimulatedLog()
    with pytest.raises(WrongServer):
        enrol_account(invitation, fresh, "x25519", None, timeouts=QUICK)
    assert server.requests == []
    assert not (fresh / "keyring").exists()


def test_nobody_there(server: Simulator, fresh: Path) -> None:
    invitation = replace(read_invitation(server.invitation("ada")), port=1)
    with pytest.raises(Unreachable):
        enrol_account(invitation, fresh, "x25519", None, timeouts=QUICK)
    assert not (fresh / "keyring").exists()


@pytest.mark.parametrize("text", ["", "sfs://", "https://example.org/ada?pin=00&token=11"])
def test_what_is_no_invitation(text: str) -> None:
    with pytest.raises(UsageError):
        read_invitation(text)


def test_a_malformed_invitation_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        read_invitation("sfs://host:1/ada?pin=00&token=verysecret")
    assert "verysecret" not in caught.value.cause
    assert "verysecret" not in (caught.value.hint or "")


# --- again


def test_a_lost_answer_is_asked_for_again(server: Simulator, fresh: Path) -> None:
    def lose(_request: Request, _reply: Reply) -> Reply:
        raise DropConnection

    server.tamper = lose
    with pytest.raises(NetworkError):
        become(server, fresh)
    # The server has the statement, so the keys must be here.
    kept = unlock_home(fresh, None).contents
    assert kept.pending is not None
    assert kept.pending.statement == server.statement
    assert kept.current is None
    server.tamper = lambda _request, reply: reply
    keyring = become(server, fresh)
    assert keyring.statements == (server.statement,)
    sent = server.asked(Enroll)
    assert sent[0].statement == sent[1].statement
    assert sent[0].bundle == sent[1].bundle
    assert sent[0].proof != sent[1].proof, "bound to each welcome"


def test_a_used_token_leaves_nothing(server: Simulator, fresh: Path) -> None:
    become(server, fresh)
    thief = fresh.with_name("thief")
    with pytest.raises(TokenRefused):
        become(server, thief)
    assert not (thief / "keyring").exists()
    # Nothing stands in the way of another invitation.
    server.statement = b""
    become(server, thief)


def test_a_refused_statement_leaves_nothing(server: Simulator, fresh: Path) -> None:
    server.intercept = lambda _request: Error("bad-request", "check the clock")
    with pytest.raises(ProtocolFailure):
        become(server, fresh)
    assert not (fresh / "keyring").exists()


@pytest.mark.parametrize("code", ["busy", "unavailable", "shutting-down"])
def test_a_server_that_cannot_answer_now(server: Simulator, fresh: Path, code: str) -> None:
    server.intercept = lambda _request: Error(code, "later")
    with pytest.raises(Unreachable):
        become(server, fresh)
    kept = unlock_home(fresh, None).contents
    server.intercept = lambda _request: None
    assert become(server, fresh).first == kept.first


def test_a_token_refused_the_second_time_keeps_the_keys(server: Simulator, fresh: Path) -> None:
    """The first time it may have been accepted, and the user been disabled since."""
    server.intercept = lambda _request: Error("busy", "later")
    with pytest.raises(Unreachable):
        become(server, fresh)
    server.intercept = lambda _request: Error("token", "no")
    with pytest.raises(TokenRefused):
        become(server, fresh)
    assert unlock_home(fresh, None).contents.pending is not None


def test_a_home_that_is_taken(server: Simulator, fresh: Path) -> None:
    become(server, fresh)
    stored = (fresh / "keyring").read_bytes()
    with pytest.raises(LocalError):
        become(server, fresh)
    assert (fresh / "keyring").read_bytes() == stored


def test_an_enrolment_of_another_that_was_begun(server: Simulator, fresh: Path) -> None:
    server.intercept = lambda _request: Error("busy", "later")
    with pytest.raises(Unreachable):
        become(server, fresh)
    server.intercept = lambda _request: None
    with pytest.raises(LocalError):
        become(server, fresh, "eve")


# --- lies


@pytest.mark.parametrize("lie", ["none", "another's"])
def test_an_enrolment_that_the_log_does_not_prove(server: Simulator, fresh: Path, lie: str) -> None:
    def unproven(_request: Request, reply: Reply) -> Reply:
        if not isinstance(reply, Session) or reply.receipt is None:
            return reply
        if lie == "none":
            return replace(reply, receipt=None)
        return replace(reply, receipt=replace(reply.receipt, line=server.log.lines[0][:-70]))

    server.tamper = unproven
    with pytest.raises(BadReceipt):
        become(server, fresh)
    assert unlock_home(fresh, None).contents.current is None
    with open_client_state(fresh, unlock_home(fresh, None).contents) as state:
        assert state.checkpoint() is None


def test_a_passphrase_locks_the_keys(server: Simulator, fresh: Path) -> None:
    enrol_account(
        read_invitation(server.invitation("ada")), fresh, "x25519", "secret", timeouts=QUICK
    )
    assert unlock_home(fresh, "secret").contents.user == "ada"
    with pytest.raises(KeyringError):
        unlock_home(fresh, "wrong")
