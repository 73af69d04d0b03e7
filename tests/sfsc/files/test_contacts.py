"""Other users: whose keys count, and until when."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import pytest

import sfsc
from sfsc.errors import WeakRecipient
from sfsc.files.contacts import Contacts
from sfsc.store import Store
from sfsc.trust.peer_state import PeerState
from tests.lying_server import LyingServer


@pytest.fixture
def home(lying_server: LyingServer) -> Path:
    for user in ("bob", "carol"):
        lying_server.enrol(user)
    return lying_server.enrol("ada")


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


def test_the_remembered_chain_of_another_user_is_forgotten(home: Path) -> None:
    """A name may have been shown as another user's before it was pinned."""
    with connect(home) as store:
        carol = store.person("carol")
        peers = PeerState(store._session.state)
        chain = peers.chain("carol")
        assert chain
        peers.remember_chain("bob", chain)
        bob = store.person("bob")
        assert bob.fingerprint != carol.fingerprint
        assert peers.chain("bob") not in ((), chain)
    with connect(home) as store:
        assert store.person("bob") == bob
        store.put(io.BytesIO(b"x"), name="a")
        store.share("a", "bob", trust_first_use=True)


def test_nothing_is_encrypted_to_a_key_from_the_second_it_expires(home: Path) -> None:
    with connect(home) as store:
        expires = store.person("bob").newest.expires
        for now, expired in ((expires - 1, False), (expires, True), (expires + 1, True)):
            contacts = Contacts(store._session, store._file, clock=partial(float, now))
            person = contacts.find("bob")
            named = (("bob", person.fingerprint, 0),)
            assert bool(contacts.recipients(named)) is not expired
            if not expired:
                assert contacts.recipient(person).user == "bob"
                continue
            with pytest.raises(WeakRecipient) as caught:
                contacts.recipient(person)
            assert "`sfsc doctor`" in caught.value.hint


def test_nothing_is_encrypted_for_a_reader_from_the_second_the_grant_ends(home: Path) -> None:
    with connect(home) as store:
        person = store.person("bob")
        for now, ended in ((999, False), (1000, True)):
            contacts = Contacts(store._session, store._file, clock=partial(float, now))
            named = (("bob", person.fingerprint, 1000),)
            assert [one.user for one in contacts.recipients(named)] == ([] if ended else ["bob"])
