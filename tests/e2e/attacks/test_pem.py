"""Somebody who can change a file of exported keys, but not open it, names another account in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sfsc
from protocol.records.records import Statement
from sfsc.account import devices
from sfsc.crypto.wrap import PublicKey
from sfsc.errors import BrokenChain, Tampered
from sfsd.operations import login
from tests.lying_server import LyingServer

SECRET = "only ada knows this"


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[LyingServer]:
    with LyingServer(tmp_path / "theirs") as server:
        yield server


def account_of_theirs(
    theirs: LyingServer, ada: Statement, tmp_path: Path, patch: pytest.MonkeyPatch
) -> str:
    """Make an account "ada" on the attacker's server, whose bundle the victim's key opens and whose
    login takes the victim's signature. Return its link."""
    home = theirs.enrol("ada", tmp_path / "mallory", key_type="x25519")
    real = devices.bundle_recipients
    victim = PublicKey(ada.wrap_alg, ada.wrap_pub)
    with sfsc.connect(home, auto_rotate=False) as store:
        with patch.context() as sealing:
            sealing.setattr(devices, "bundle_recipients", lambda one: [*real(one), victim])
            store.set_recovery(sfsc.new_recovery_code())
        link = store.link
    patch.setattr(login, "verify_signature", lambda *_signed: None)
    return link


def test_the_account_in_a_key_file_cannot_be_exchanged(
    lying_server: LyingServer, theirs: LyingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = lying_server.enrol("ada", key_type="x25519")
    pem = sfsc.export_pem(home, pem_passphrase=SECRET)
    with sfsc.connect(home, auto_rotate=False) as store:
        ada = Statement.parse(store._file.contents.statements[0])
    link = account_of_theirs(theirs, ada, tmp_path, monkeypatch)
    edited = re.sub(rb"sfs://\S+", link.encode(), pem)
    assert edited != pem
    size = theirs.journal.size
    elsewhere = tmp_path / "new machine"
    with pytest.raises(Tampered) as caught:
        sfsc.import_pem(edited, home=elsewhere, pem_passphrase=SECRET, no_passphrase=True)
    assert caught.value.exit_code == 5
    assert theirs.journal.size == size  # not even a login
    assert not elsewhere.exists()
    sfsc.import_pem(pem, home=elsewhere, pem_passphrase=SECRET, no_passphrase=True)


def test_an_account_that_does_not_name_the_joining_key_is_refused(
    lying_server: LyingServer, theirs: LyingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The victim is given the attacker's link, by another way than the file."""
    home = lying_server.enrol("ada", key_type="x25519")
    pem = sfsc.export_pem(home, pem_passphrase=SECRET)
    with sfsc.connect(home, auto_rotate=False) as store:
        ada = Statement.parse(store._file.contents.statements[0])
    link = account_of_theirs(theirs, ada, tmp_path, monkeypatch)
    elsewhere = tmp_path / "new machine"
    with pytest.raises(BrokenChain, match="does not name the key") as caught:
        sfsc.import_pem(
            pem, account=link, home=elsewhere, pem_passphrase=SECRET, no_passphrase=True
        )
    assert caught.value.exit_code == 5
    assert not (elsewhere / "keyring").exists()
