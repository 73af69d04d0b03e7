"""Logins with keys that have ended, and a recovery key that is half of somebody else."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

import sfsc
from protocol.codec.base64text import from_text
from protocol.codec.values import changed
from protocol.log import auditlog
from protocol.log.auditlog import LogEntry
from protocol.records.records import RECOVERY_KEY, RecoveryKey
from protocol.records.signatures import Label
from protocol.wire.messages.accounts import Usage, UsageAnswer
from sfsc.account.key_status import new_device
from sfsc.crypto.wrap import XWING, PrivateKey
from sfsc.errors import BadRecord, BrokenChain, Denied, NetworkError
from sfsc.keys.keyring import KeyringFile
from sfsc.keys.recovery_code import RecoveryCode
from tests.lying_server import LyingServer


def logged(server: LyingServer, op: str) -> list[LogEntry]:
    """Return ada's entries of the log with this op."""
    lines = enumerate(server.journal.lines())
    entries = [auditlog.parse(line, seq=seq) for seq, line in lines]
    return [one for one in entries if (one.op, one.actor) == (op, "ada")]


def join(home: Path, name: str) -> Path:
    """Return the home of another device of the account."""
    with sfsc.connect(home, auto_rotate=False) as store:
        store.backup(home.with_name(f"{name}.keys"), no_passphrase=True)
    joined = home.with_name(name)
    sfsc.restore(home.with_name(f"{name}.keys"), home=joined, no_passphrase=True)
    return joined


def test_a_dropped_device_is_refused_at_once(lying_server: LyingServer) -> None:
    """Its open session ends, and neither its own key nor the account's key that it has log in."""
    home = lying_server.enrol("ada")
    lost = join(home, "lost")
    device = KeyringFile.unlock(lost / "keyring", None).contents.device
    with sfsc.connect(lost, auto_rotate=False) as stolen:
        stolen.put(io.BytesIO(b"1"), name="plan")
        with sfsc.connect(home, auto_rotate=False) as store:
            store.rotate(drop_device=device.device_id)
            with pytest.raises(NetworkError):
                stolen._session.transport.call(Usage())
            with pytest.raises(Denied) as caught:
                stolen.put(io.BytesIO(b"2"), name="plan")
            assert caught.value.exit_code == 4
            assert store.stat("plan").version == 1
    with pytest.raises(Denied):
        sfsc.connect(lost)
    devices = [one.detail.get("device") for one in logged(lying_server, "login")]
    assert devices.count(device.device_id.hex()) == 2  # when it joined, and when it was stolen


def test_a_device_that_was_replaced_without_a_rotation_joins_again(
    lying_server: LyingServer,
) -> None:
    """Somebody with the account's key may do that, so it must not lock the owner out."""
    home = lying_server.enrol("ada")
    copy = KeyringFile.unlock(lying_server.copied(home, "copy") / "keyring", None)
    copy.save(changed(copy.contents, device=new_device(copy.contents.device.device_id)))
    with sfsc.connect(home, auto_rotate=False) as store:
        with sfsc.connect(copy.path.parent, auto_rotate=False) as thief:
            assert thief.put(io.BytesIO(b"1"), name="plan").version == 1
        assert store.put(io.BytesIO(b"2"), name="plan").version == 2
        store.rotate(compromised=True)
    with pytest.raises(Denied):
        sfsc.connect(copy.path.parent)
    with sfsc.connect(home) as store:
        assert store.open("plan").read() == b"2"


def test_a_login_by_the_account_key_cannot_read_files(lying_server: LyingServer) -> None:
    home = lying_server.enrol("ada")
    copy = KeyringFile.unlock(lying_server.copied(home, "copy") / "keyring", None)
    copy.save(changed(copy.contents, device=new_device()))
    with sfsc.connect(copy.path.parent, auto_rotate=False) as store:
        session = store._session
        assert isinstance(session.call(Usage(), UsageAnswer), UsageAnswer)  # it has joined
    access = [one.detail["access"] for one in logged(lying_server, "login")]
    assert access == ["joining", "full"]


@pytest.fixture
def half(lying_server: LyingServer) -> tuple[Path, str, str]:
    """An account whose statement names the signing key of a recovery code and somebody else's
    wrapping key. Return (home, account link, code)."""
    home, code = lying_server.enrol("ada"), RecoveryCode.generate()
    keys = RecoveryKey(code.signing_key.public, PrivateKey.generate(XWING).public.encoded)
    with sfsc.connect(home, auto_rotate=False) as store:
        store._devices._publish(
            RECOVERY_KEY, lambda _head: {"recovery": keys}, None, code.signing_key
        )
        link = store.link
    return home, link, code.text


def test_a_recovery_key_whose_wrapping_half_differs_joins_nothing(
    half: tuple[Path, str, str], tmp_path: Path
) -> None:
    home, link, code = half
    with pytest.raises(BrokenChain) as caught:
        sfsc.recover(link, code, home=tmp_path / "new", no_passphrase=True)
    assert caught.value.exit_code == 5
    assert not (tmp_path / "new" / "keyring").exists()
    with pytest.raises(BadRecord):
        sfsc.take_back(code, home=home)


def test_a_recovery_key_that_did_not_sign_is_refused(lying_server: LyingServer) -> None:
    """The daemon refuses a statement with somebody else's signature for the new recovery key."""
    home, code = lying_server.enrol("ada"), RecoveryCode.generate()
    with sfsc.connect(home, auto_rotate=False) as store:
        for signer in (None, RecoveryCode.generate().signing_key):
            with pytest.raises((Denied, NetworkError)):
                store._devices._publish(
                    RECOVERY_KEY, lambda _head: {"recovery": code.public_keys}, None, signer
                )
        assert not store.has_recovery()
        store.set_recovery(code.text)
        assert store.has_recovery()
    (entry,) = logged(lying_server, "statement")
    possession = code.signing_key.sign(Label.RECOVERY_POSSESSION, entry.rec or b"")
    assert from_text(entry.detail["possession"]) == possession
