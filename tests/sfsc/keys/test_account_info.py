"""Public description of the account of a keyring."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.codec.values import changed
from protocol.records.invitation import parse_account_link
from sfsc.errors import KeyringMissing
from sfsc.keys.account_info import account_link, current_keys, describe_account
from sfsc.keys.home import unlock_home
from sfsc.keys.pgp_words import pgp_words
from tests.sfsc.simulator import Simulator


def test_describe_enrolled_account(server: Simulator, home: Path) -> None:
    keyring = unlock_home(home, None).contents
    me = describe_account(keyring)
    assert (me.user, me.address, me.server_id) == ("ada", server.address, server.log.server_id)
    assert (me.generation, me.key_type, me.fingerprint) == (1, "x25519", keyring.first)
    assert me.words == pgp_words(keyring.first)
    assert current_keys(keyring) is keyring.generations[-1]
    link = account_link(keyring)
    assert (link.user, link.first) == ("ada", keyring.first)
    assert parse_account_link(link.to_text()) == link


def test_unenrolled_keyring_is_refused(home: Path) -> None:
    new = changed(unlock_home(home, None).contents, generations=())
    for ask in (describe_account, current_keys):
        with pytest.raises(KeyringMissing):
            ask(new)
