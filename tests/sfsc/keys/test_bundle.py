"""The account's bundle: which key opens it, and every bundle that is refused."""

from __future__ import annotations

import hashlib
from typing import Annotated, ClassVar, cast

import pytest

from protocol.codec import encoding
from protocol.codec.fields import AtMost, Bytes32, Struct, UserName
from protocol.codec.values import changed
from protocol.log.tags import tag_commit
from protocol.records.records import Device, Statement
from protocol.records.signatures import SigningKey
from protocol.wire.messages.base import MAX_BUNDLE
from sfsc.crypto.wrap import PrivateKey, PublicKey
from sfsc.errors import BadRecord, KeyringError, LocalError, Tampered
from sfsc.keys.bundle import Bundle, SeenCheckpoint, open_bundle, seal_bundle
from sfsc.keys.keyring import MAX_PINS, GenerationKeys, Labels

SERVER = b"S" * 32
SIGN = SigningKey.from_seed(b"s" * 32)
WRAP = PrivateKey("x25519", b"w" * 32)
DEVICE = PrivateKey("xwing", b"d" * 32)
BUNDLE = Bundle(
    (GenerationKeys(1, SIGN.seed, "x25519", WRAP.encoded),),
    (b"n" * 32,),
    b"t" * 32,
    (("bob", b"B" * 32),),
    SeenCheckpoint(b"checkpoint", b"statement", b"g" * 64),
    ((b"D" * 16, "laptop"),),
)


def _sealed(bundle: Bundle = BUNDLE, n: int = 1, *recipients: PublicKey) -> bytes:
    return seal_bundle(
        bundle,
        server=SERVER,
        user="ann",
        n=n,
        recipients=recipients or (DEVICE.public, WRAP.public),
    )


def _statement(sealed: bytes, *, n: int = 1, server: bytes = SERVER) -> Statement:
    return Statement(
        server=server, user="ann", kind="user", n=n, generation=1, oldest=1,
        sign_pub=SIGN.public, wrap_alg="x25519", wrap_pub=WRAP.public.encoded,
        devices=(Device(b"D" * 16, b"S" * 32, DEVICE.public.encoded, "device"),), recovery=None,
        custodians=(), writers=(), voids=(),
        bundle_sha256=hashlib.sha256(sealed).digest(), created=1, due=2, expires=3,
        prev=b"" if n == 1 else bytes(32), reason="enrol",
        tag_commit=tag_commit(b"t" * 32),
    )  # fmt: skip


@pytest.mark.parametrize("key", [DEVICE, WRAP])
def test_bundle_opens_for_every_recipient(key: PrivateKey) -> None:
    sealed = _sealed()
    assert open_bundle(sealed, _statement(sealed), [key]) == BUNDLE
    assert open_bundle(sealed, _statement(sealed), [PrivateKey.generate("xwing"), key]) == BUNDLE


def test_bundle_with_many_pins() -> None:
    many = changed(BUNDLE, pins=tuple((f"user{n:05}", bytes(32)) for n in range(1250)))
    sealed = _sealed(many)
    assert open_bundle(sealed, _statement(sealed), [WRAP]) == many


def test_sealed_bundle_contains_no_plaintext() -> None:
    sealed = _sealed()
    for secret in (SIGN.seed, WRAP.encoded, b"n" * 32, b"B" * 32, b"checkpoint"):
        assert secret not in sealed


def test_bundle_does_not_open_with_another_key() -> None:
    sealed = _sealed()
    with pytest.raises(KeyringError):
        open_bundle(sealed, _statement(sealed), [PrivateKey.generate("xwing")])


def test_bundle_must_match_the_statements_hash() -> None:
    with pytest.raises(Tampered):
        open_bundle(_sealed(), _statement(_sealed()), [DEVICE])


def test_bundle_of_another_statement_or_server_is_refused() -> None:
    sealed = _sealed()
    for statement in (_statement(sealed, n=2), _statement(sealed, server=b"T" * 32)):
        with pytest.raises(Tampered):
            open_bundle(sealed, statement, [DEVICE])


@pytest.mark.parametrize(
    "bundle",
    [
        changed(BUNDLE, generations=()),
        changed(BUNDLE, generations=(GenerationKeys(2, SIGN.seed, "x25519", WRAP.encoded),)),
        changed(BUNDLE, generations=(GenerationKeys(1, b"t" * 32, "x25519", WRAP.encoded),)),
        changed(BUNDLE, generations=(GenerationKeys(1, SIGN.seed, "x25519", b"v" * 32),)),
        changed(BUNDLE, generations=(GenerationKeys(1, SIGN.seed, "xwing", DEVICE.encoded),)),
    ],
)
def test_bundle_without_the_statements_keys_is_refused(bundle: Bundle) -> None:
    sealed = _sealed(bundle)
    with pytest.raises(BadRecord):
        open_bundle(sealed, _statement(sealed), [DEVICE])


class AnyNameKeys(Struct):
    """A `Bundle` with any number of name keys."""

    AS_MAP: ClassVar[bool] = True

    generations: Annotated[tuple[GenerationKeys, ...], AtMost(9)]
    name_keys: Annotated[tuple[Bytes32, ...], AtMost(9)]
    tag_key: Bytes32
    pins: Annotated[tuple[tuple[UserName, Bytes32], ...], AtMost(9)]
    checkpoint: SeenCheckpoint | None
    labels: Labels


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_bundle_has_one_name_key(count: int) -> None:
    keys = tuple(bytes([number]) * 32 for number in range(count))
    known = BUNDLE.tag_key, BUNDLE.pins, BUNDLE.checkpoint, BUNDLE.labels
    loose = AnyNameKeys(BUNDLE.generations, keys, *known)
    sealed = _sealed(cast(Bundle, loose))
    if count == 1:
        assert open_bundle(sealed, _statement(sealed), [DEVICE]).name_keys == keys
        return
    with pytest.raises(BadRecord):
        open_bundle(sealed, _statement(sealed), [DEVICE])


@pytest.mark.parametrize("sealed", [b"", b"\xc1", encoding.pack({"keys": [], "more": b""})])
def test_malformed_bundle_is_refused(sealed: bytes) -> None:
    with pytest.raises(BadRecord):
        open_bundle(sealed, _statement(sealed), [DEVICE])


def _with_pins(count: int) -> Bundle:
    return changed(BUNDLE, pins=tuple((f"user{number}", bytes(32)) for number in range(count)))


def test_a_large_bundle_fits_a_message() -> None:
    assert MAX_BUNDLE * 0.9 < len(_sealed(_with_pins(1400))) <= MAX_BUNDLE


@pytest.mark.parametrize("pins", [1400, 1450, 1460, 1480, 2500, MAX_PINS])
@pytest.mark.parametrize("devices", [1, 17])
def test_pins_beyond_the_limit_are_dropped(pins: int, devices: int) -> None:
    """Otherwise a user with many contacts could not rotate keys any more."""
    bundle = _with_pins(pins)
    sealed = _sealed(bundle, 1, *([DEVICE.public] * devices), WRAP.public)
    found = open_bundle(sealed, _statement(sealed), [WRAP])
    assert found.pins == bundle.pins[: len(found.pins)]
    assert changed(found, pins=()) == changed(bundle, pins=())
    assert len(found.pins) == pins or MAX_BUNDLE - 50 < len(sealed) <= MAX_BUNDLE


def test_a_bundle_is_filled_to_its_last_bytes() -> None:
    """Eight bytes are kept for headers that become longer; nothing else is dropped."""

    def with_note(size: int) -> Bundle:
        return changed(_with_pins(1440), checkpoint=SeenCheckpoint(bytes(size), b"s", b"g" * 64))

    room = 300 + MAX_BUNDLE - len(_sealed(with_note(300)))
    for size in range(room - 8, room + 10):
        bundle = with_note(size)
        sealed = _sealed(bundle)
        assert len(sealed) <= MAX_BUNDLE
        found = open_bundle(sealed, _statement(sealed), [WRAP])
        dropped = len(bundle.pins) - len(found.pins)
        assert dropped <= (size > room - 8)


def test_oversized_bundle_is_a_local_error() -> None:
    large = (GenerationKeys(1, SIGN.seed, "rsa4096", bytes(4096)),) * 20
    with pytest.raises(LocalError):
        _sealed(changed(BUNDLE, generations=large))


@pytest.mark.parametrize("wrong", [b"u" * 32, bytes(32)])
def test_a_bundle_with_another_tag_key_is_refused(wrong: bytes) -> None:
    """Such a bundle would hide all own entries from the machine that joins with it."""
    sealed = _sealed(changed(BUNDLE, tag_key=wrong))
    with pytest.raises(BadRecord):
        open_bundle(sealed, _statement(sealed), [DEVICE])


def test_a_key_that_the_statement_does_not_name_opens_nothing() -> None:
    """Public keys are public: anybody can seal a bundle to the key of somebody else."""
    victim = PrivateKey.generate("x25519")
    sealed = _sealed(BUNDLE, 1, DEVICE.public, WRAP.public, victim.public)
    with pytest.raises(BadRecord):
        open_bundle(sealed, _statement(sealed), [victim])
    assert open_bundle(sealed, _statement(sealed), [DEVICE]) == BUNDLE
