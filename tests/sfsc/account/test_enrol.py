"""Enrolment: verified, and safe to retry."""

from __future__ import annotations

import hashlib
import hmac
import io
import os
from pathlib import Path
from typing import NoReturn

import pytest

import sfsc
from protocol.codec.values import changed
from protocol.records.records import (
    WRAP_ALGORITHMS,
    Statement,
    enrol_proof_body,
    key_id,
    record_hash,
)
from protocol.records.signatures import Label, verify_signature
from protocol.wire.messages import Error, Message, Reply, Request
from protocol.wire.messages.session import Enroll, Limits, Session
from sfsc.account.enrol import enrol_account, read_invitation
from sfsc.crypto.wrap import PrivateKey
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
from sfsc.trust.followed_log import LOG_START
from sfsc.trust.state import open_client_state
from sfsd.errors import Refused
from sfsd.net import dispatch
from tests import lying_server as lies
from tests.lying_server import LyingServer
from tests.sfsc.conftest import QUICK
from tests.sfsc.simulator import DropConnection, SimulatedLog, Simulator


def enrol(server: Simulator, home: Path, user: str = "ada", **how: str) -> Keyring:
    invitation = read_invitation(server.invitation(user))
    return enrol_account(invitation, home, how.get("key_type", "x25519"), None, timeouts=QUICK)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    return tmp_path / "fresh"


@pytest.mark.parametrize("key_type", WRAP_ALGORITHMS)
def test_new_user(server: Simulator, fresh: Path, key_type: str) -> None:
    keyring = enrol(server, fresh, key_type=key_type)
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
    with open_client_state(fresh, unlock_home(fresh, None)) as state:
        followed = state.followed()
        assert (followed.size, followed.statements) == (1, 1)
        assert followed.note == server.log.checkpoint(1)


def test_message_contains_no_secret(server: Simulator, fresh: Path) -> None:
    keyring = enrol(server, fresh)
    (message,) = server.asked(Enroll)
    statement = Statement.parse(message.statement)
    verify_signature(Label.STATEMENT, message.statement, message.signature, statement.sign_pub)
    assert keyring.current is not None
    # Both the device's key and the account's key open the bundle.
    for private in (
        PrivateKey("xwing", keyring.device.xwing_private),
        PrivateKey("x25519", keyring.current.wrap_private),
    ):
        bundle = open_bundle(bytes(message.bundle), statement, [private])
        assert (bundle.generations, bundle.name_keys) == (keyring.generations, keyring.name_keys)
        assert bundle.tag_key == keyring.tag_key
    assert statement.devices[0].device_id == keyring.device.device_id
    sent = message.statement + bytes(message.bundle) + message.signature + message.proof
    for secret in (
        server.token,
        *keyring.name_keys,
        keyring.tag_key,
        keyring.device.xwing_private[:32],
    ):
        assert secret not in sent


def test_token_proof_is_bound_to_the_welcome(server: Simulator, fresh: Path) -> None:
    enrol(server, fresh)
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
def test_key_lifetimes(server: Simulator, fresh: Path, limits: Limits) -> None:
    server.welcome = lambda welcome: changed(welcome, limits=limits)
    statement = Statement.parse(enrol(server, fresh).statements[0])
    due = statement.due - statement.created
    expires = statement.expires - statement.created
    assert DAY <= due <= expires <= 730 * DAY
    assert due <= max(DAY, limits.max_age)
    assert due >= min(730 * DAY, limits.max_age * (100 - limits.jitter) // 100)


def test_unpinned_server_gets_no_request(server: Simulator, fresh: Path) -> None:
    invitation = read_invitation(server.invitation("ada"))
    server.log = SimulatedLog()
    with pytest.raises(WrongServer):
        enrol_account(invitation, fresh, "x25519", None, timeouts=QUICK)
    assert server.requests == []
    assert not (fresh / "keyring").exists()


def test_unreachable_server(server: Simulator, fresh: Path) -> None:
    invitation = changed(read_invitation(server.invitation("ada")), port=1)
    with pytest.raises(Unreachable):
        enrol_account(invitation, fresh, "x25519", None, timeouts=QUICK)
    assert not (fresh / "keyring").exists()


@pytest.mark.parametrize("text", ["", "sfs://", "https://example.org/ada?pin=00&token=11"])
def test_malformed_invitations(text: str) -> None:
    with pytest.raises(UsageError):
        read_invitation(text)


def test_error_does_not_repeat_a_malformed_invitation() -> None:
    with pytest.raises(UsageError) as caught:
        read_invitation("sfs://host:1/ada?pin=00&token=verysecret")
    assert "verysecret" not in caught.value.cause
    assert "verysecret" not in (caught.value.hint or "")


# --- again


def test_retry_after_a_lost_reply(server: Simulator, fresh: Path) -> None:
    def drop_reply(_request: Request, _reply: Reply) -> Reply:
        raise DropConnection

    server.tamper = drop_reply
    with pytest.raises(NetworkError):
        enrol(server, fresh)
    # The server has the statement, so the keys must be here.
    kept = unlock_home(fresh, None).contents
    assert kept.pending is not None
    assert kept.pending.statement == server.statement
    assert kept.current is None
    server.tamper = lambda _request, reply: reply
    keyring = enrol(server, fresh)
    assert keyring.statements == (server.statement,)
    sent = server.asked(Enroll)
    assert sent[0].statement == sent[1].statement
    assert sent[0].bundle == sent[1].bundle
    assert sent[0].proof != sent[1].proof, "bound to each welcome"


def test_used_token_leaves_no_keyring(server: Simulator, fresh: Path) -> None:
    enrol(server, fresh)
    thief = fresh.with_name("thief")
    with pytest.raises(TokenRefused):
        enrol(server, thief)
    assert os.listdir(thief) == [".keyring.lock"]
    # Another invitation works, of another user too.
    server.statement = b""
    assert enrol(server, thief, "bob").user == "bob"


def test_rejected_statement_leaves_no_keyring(server: Simulator, fresh: Path) -> None:
    server.intercept = lambda _request: Error("bad-request", "check the clock")
    with pytest.raises(ProtocolFailure):
        enrol(server, fresh)
    assert os.listdir(fresh) == [".keyring.lock"]


def test_state_of_another_account_stays(server: Simulator, fresh: Path) -> None:
    enrol(server, fresh)
    (fresh / "keyring").unlink()
    stored = (fresh / "state.sqlite3").read_bytes()
    server.statement = b""
    with pytest.raises(LocalError):
        enrol(server, fresh, "bob")
    assert not (fresh / "keyring").exists()
    assert (fresh / "state.sqlite3").read_bytes() == stored


@pytest.mark.parametrize("code", ["busy", "unavailable", "shutting-down"])
def test_unavailable_server_keeps_the_keys(server: Simulator, fresh: Path, code: str) -> None:
    server.intercept = lambda _request: Error(code, "later")
    with pytest.raises(Unreachable):
        enrol(server, fresh)
    kept = unlock_home(fresh, None).contents
    server.intercept = lambda _request: None
    assert enrol(server, fresh).first == kept.first


def test_token_rejected_on_retry_keeps_the_keys(server: Simulator, fresh: Path) -> None:
    """The first attempt may have been accepted before the user was disabled."""
    server.intercept = lambda _request: Error("busy", "later")
    with pytest.raises(Unreachable):
        enrol(server, fresh)
    server.intercept = lambda _request: Error("token", "no")
    with pytest.raises(TokenRefused):
        enrol(server, fresh)
    assert unlock_home(fresh, None).contents.pending is not None


def test_home_with_an_account(server: Simulator, fresh: Path) -> None:
    enrol(server, fresh)
    stored = (fresh / "keyring").read_bytes()
    with pytest.raises(LocalError):
        enrol(server, fresh)
    assert (fresh / "keyring").read_bytes() == stored


def test_unfinished_enrolment_of_another_user(server: Simulator, fresh: Path) -> None:
    server.intercept = lambda _request: Error("busy", "later")
    with pytest.raises(Unreachable):
        enrol(server, fresh)
    server.intercept = lambda _request: None
    with pytest.raises(LocalError):
        enrol(server, fresh, "eve")


# --- lies


@pytest.mark.parametrize("lie", ["none", "another's"])
def test_enrolment_without_a_valid_receipt(server: Simulator, fresh: Path, lie: str) -> None:
    def unproven(_request: Request, reply: Reply) -> Reply:
        if not isinstance(reply, Session) or reply.receipt is None:
            return reply
        if lie == "none":
            return changed(reply, receipt=None)
        return changed(reply, receipt=changed(reply.receipt, line=server.log.lines[0][:-70]))

    server.tamper = unproven
    with pytest.raises(BadReceipt):
        enrol(server, fresh)
    assert unlock_home(fresh, None).contents.current is None
    with open_client_state(fresh, unlock_home(fresh, None)) as state:
        assert state.followed() == LOG_START


def test_passphrase_locks_the_keys(server: Simulator, fresh: Path) -> None:
    enrol_account(
        read_invitation(server.invitation("ada")), fresh, "x25519", "secret", timeouts=QUICK
    )
    assert unlock_home(fresh, "secret").contents.user == "ada"
    with pytest.raises(KeyringError):
        unlock_home(fresh, "wrong")


# --- a used invitation


def test_account_is_found_after_its_invitation_was_used_up(lying_server: LyingServer) -> None:
    """The answer to the enrolment was lost, and the user runs the command again."""
    invitation = lying_server.invite("ada")
    home = lying_server.root.with_name("home-ada")

    def drop_reply(_who: object, request: Message, reply: Message) -> Message:
        if isinstance(request, Enroll):
            raise lies.DropConnection
        return reply

    lying_server.tamper = drop_reply
    with pytest.raises(NetworkError):
        sfsc.enrol(invitation, home=home, no_passphrase=True)
    lying_server.honest()
    kept = unlock_home(home, None).contents
    assert kept.pending is not None
    assert sfsc.enrol(invitation, home=home, no_passphrase=True).user == "ada"
    after = unlock_home(home, None).contents
    assert (after.pending, after.statements) == (None, (kept.pending.statement,))
    with sfsc.connect(home) as store:
        store.put(io.BytesIO(b"1"), name="a")


def busy(*_args: object) -> NoReturn:
    raise Refused("busy", "later")


def test_used_invitation_opens_nothing_for_another(
    lying_server: LyingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thief has keys of their own, which never were the account's."""
    invitation = lying_server.invite("ada")
    thief = lying_server.root.with_name("home-thief")
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "enrol", busy)
        with pytest.raises(Unreachable):
            sfsc.enrol(invitation, home=thief, no_passphrase=True)
    sfsc.enrol(invitation, home=lying_server.root.with_name("home-ada"), no_passphrase=True)
    with pytest.raises(TokenRefused):
        sfsc.enrol(invitation, home=thief, no_passphrase=True)
    assert unlock_home(thief, None).contents.pending is not None
