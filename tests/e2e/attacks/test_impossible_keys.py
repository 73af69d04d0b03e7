"""A user, or a thief, publishes a key that nobody can encrypt to, so that others get stuck.

The daemon refuses such a key. The client goes on even if a hostile daemon took it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import sfsc
from protocol.codec.values import changed
from protocol.records.records import DEVICE, ROTATE, Device, Statement
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Done, Error, Reply
from protocol.wire.messages.rotation import NewStatement, RotateBegin
from sfsc.account.devices import next_statement
from sfsc.crypto.wrap import PrivateKey
from sfsc.keys.account_info import current_keys
from sfsc.store import Store
from sfsd.rules import users
from tests.lying_server import LyingServer

BUNDLE = b"a bundle that nobody can open"
DEVICE_ID = b"E" * 16


SMALL_ORDER = b"\x01" + bytes(31)
"""The neutral element of edwards25519: an Ed25519 key that accepts one signature of anything. The
same bytes are an X25519 key of low order."""
NOT_CANONICAL = (2**255 - 16).to_bytes(32, "little")
"""A second encoding of the point whose y is 3: y + p, which is below 2^255."""


def no_mlkem_key() -> bytes:
    """Return the bytes of an X-Wing key whose ML-KEM part fails the modulus check."""
    return b"\xff" * 1184 + PrivateKey.generate("x25519").public.encoded


def low_order_key() -> bytes:
    """Return the bytes of an X-Wing key whose X25519 part has a low order."""
    return PrivateKey.generate("xwing").public.encoded[:1184] + SMALL_ORDER


WRAP_KEYS: dict[str, Callable[[], tuple[str, bytes]]] = {
    "ML-KEM": lambda: ("xwing", no_mlkem_key()),
    "X25519 in X-Wing": lambda: ("xwing", low_order_key()),
    "X25519": lambda: ("x25519", SMALL_ORDER),
}
"""Wrapping keys of a user that nobody can encrypt to: (algorithm, public key)."""
DEVICE_KEYS: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "ML-KEM": lambda: (SigningKey.generate().public, no_mlkem_key()),
    "X25519": lambda: (SigningKey.generate().public, low_order_key()),
    "small order": lambda: (SMALL_ORDER, PrivateKey.generate("xwing").public.encoded),
    "not canonical": lambda: (NOT_CANONICAL, PrivateKey.generate("xwing").public.encoded),
}
"""Keys of a device: (Ed25519, X-Wing), of which one cannot be used."""
wrap_keys = pytest.mark.parametrize("kind", WRAP_KEYS)
device_keys = pytest.mark.parametrize("kind", DEVICE_KEYS)


@contextmanager
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the daemon take any key, as a hostile one would."""
    with monkeypatch.context() as patch:
        patch.setattr(users, "check_statement_keys", lambda _statement: None)
        yield


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


def rotate_to_impossible_key(home: Path, kind: str) -> Reply:
    """Begin a generation with such a key, by a client of the user's own making."""
    algorithm, public = WRAP_KEYS[kind]()
    with connect(home) as store:
        keyring = store._file.contents
        signing, old = SigningKey.generate(), SigningKey.from_seed(current_keys(keyring).sign_seed)
        draft = next_statement(keyring.statements[-1], ROTATE, int(time.time()))
        body = changed(
            draft,
            generation=draft.generation + 1,
            sign_pub=signing.public,
            wrap_alg=algorithm,
            wrap_pub=public,
            bundle_sha256=hashlib.sha256(BUNDLE).digest(),
        ).encode()
        signatures = tuple(key.sign(Label.STATEMENT, body) for key in (signing, old))
        return store._session.transport.call(RotateBegin(body, signatures, BUNDLE))


def add_impossible_device(home: Path, kind: str) -> Reply:
    """Add a device with such a key to the account, by a thief's client with a copied keyring."""
    signing, wrapping = DEVICE_KEYS[kind]()
    with connect(home) as store:
        pending = store._devices.build_statement(
            next_statement(store._file.contents.statements[-1], DEVICE, int(time.time())),
            store._file.contents.generations,
            (store._session.record_signer().key,),
        )
        draft = Statement.parse(pending.statement)
        devices = (*draft.devices, Device(DEVICE_ID, signing, wrapping, "device"))
        body = changed(draft, devices=devices).encode()
        signature = store._session.record_signer().key.sign(Label.STATEMENT, body)
        return store._session.transport.call(NewStatement(body, (signature,), pending.bundle))


def test_the_daemon_refuses_a_statement_with_a_key_that_nobody_can_use(
    lying_server: LyingServer,
) -> None:
    home = lying_server.enrol("bob")
    replies = [rotate_to_impossible_key(home, kind) for kind in WRAP_KEYS]
    replies += [add_impossible_device(home, kind) for kind in DEVICE_KEYS]
    for reply in replies:
        assert isinstance(reply, Error), reply
        assert reply.code == "bad-request"
        assert "invalid statement" in reply.text


@wrap_keys
def test_a_reader_with_an_impossible_key_is_left_out_of_the_owners_changes(
    lying_server: LyingServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    ada, bob = lying_server.enrol("ada"), lying_server.enrol("bob")
    carol = lying_server.enrol("carol")
    with connect(ada) as store:
        store.put(io.BytesIO(b"1"), name="team/plan")
        for user in ("bob", "carol"):
            list(store.share_tree("team", user, trust_first_use=True))
    with unchecked(monkeypatch):
        assert isinstance(rotate_to_impossible_key(bob, kind), Done)
    with caplog.at_level(logging.WARNING), connect(ada) as store:
        assert store.put(io.BytesIO(b"2"), name="team/plan").version == 2
        assert store.put(io.BytesIO(b"1"), name="team/new").version == 1
        store.mv("team/new", "team/newer")
        store.restore("team/plan", version=1)
        assert store.rotate().generation == 2
        assert store.put(io.BytesIO(b"3"), name="team/plan").version == 4
        assert store.rotate(compromised=True).generation == 3
    assert [one.getMessage() for one in caplog.records if "bob is left out" in one.getMessage()]
    with connect(carol) as store:
        into = io.BytesIO()
        store.get_shared("ada", "team/plan", into, trust_first_use=True)
        assert into.getvalue() == b"3"
    with connect(ada) as store:
        list(store.unshare_tree("team", "bob"))
        assert store.put(io.BytesIO(b"4"), name="team/plan").version == 5


@device_keys
def test_a_device_with_an_impossible_key_is_dropped_by_the_next_statement(
    lying_server: LyingServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    ada = lying_server.enrol("ada")
    with connect(ada) as store:
        store.put(io.BytesIO(b"1"), name="a")
    with unchecked(monkeypatch):
        assert isinstance(add_impossible_device(lying_server.copied(ada, "thief"), kind), Done)
    with caplog.at_level(logging.WARNING), connect(ada) as store:
        assert DEVICE_ID in {one.device_id for one in store.devices()}
        assert store.rotate(compromised=True).generation == 2
        assert DEVICE_ID not in {one.device_id for one in store.devices()}
        store.set_recovery(sfsc.new_recovery_code())
        into = io.BytesIO()
        store.get("a", into)
        assert into.getvalue() == b"1"
    assert f"the device {DEVICE_ID.hex()} is dropped" in caplog.text
