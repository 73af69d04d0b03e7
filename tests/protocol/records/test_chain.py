"""Rules of identity chains, each broken alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocol.codec.errors import ChainError, RemoteProtocolError, SignatureError
from protocol.records.chain import check_first, check_next
from protocol.records.records import RecoveryKey, Statement, record_hash
from protocol.records.signatures import Label, SigningKey

KEY, NEXT, CODE, OTHER_CODE, OTHER_KEY = (SigningKey.from_seed(bytes([n]) * 32) for n in range(5))
RECOVERY = RecoveryKey(CODE.public, b"x" * 1216)
OTHER_RECOVERY = RecoveryKey(OTHER_CODE.public, b"x" * 1216)
DEVICE = (b"d" * 16, b"x" * 1216)
FIRST = Statement(
    server=b"s" * 32,
    user="ada",
    n=1,
    generation=1,
    oldest=1,
    sign_pub=KEY.public,
    wrap_alg="x25519",
    wrap_pub=b"w" * 32,
    devices=(),
    recovery=None,
    voids=(),
    bundle_sha256=b"b" * 32,
    created=1000,
    due=2000,
    expires=3000,
    prev=b"",
    reason="enrol",
    tag_commit=bytes(32),
)
WITH_CODE = replace(FIRST, recovery=RECOVERY)


def signed(statement: Statement, *keys: SigningKey) -> tuple[bytes, tuple[bytes, ...]]:
    body = statement.encode()
    return body, tuple(key.sign(Label.STATEMENT, body) for key in keys)


def following(before: Statement, **changed: Any) -> Statement:
    fields: dict[str, Any] = {"n": before.n + 1, "prev": record_hash(before.encode())}
    fields |= {"reason": "device", "created": 1500}
    return replace(before, **(fields | changed))


RENEWED: dict[str, Any] = {
    "generation": 2,
    "sign_pub": NEXT.public,
    "wrap_pub": b"v" * 32,
    "due": 5000,
    "expires": 6000,
}


def test_a_valid_first_statement() -> None:
    assert check_first(*signed(FIRST, KEY)) == FIRST


@pytest.mark.parametrize(
    ("changed", "keys", "error"),
    [
        ({}, (OTHER_KEY,), SignatureError),
        ({}, (), ChainError),
        ({}, (KEY, KEY), ChainError),
        ({"reason": "device"}, (KEY,), ChainError),
        ({"generation": 2}, (KEY,), ChainError),
        ({"n": 2, "prev": bytes(32)}, (KEY,), ChainError),
        ({"voids": (bytes(32),)}, (KEY,), ChainError),
    ],
)
def test_invalid_first_statements(
    changed: dict[str, Any], keys: tuple[SigningKey, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        check_first(*signed(replace(FIRST, **changed), *keys))


GOOD: dict[str, tuple[Statement, dict[str, Any], tuple[SigningKey, ...]]] = {
    "a device": (FIRST, {"devices": (DEVICE,)}, (KEY,)),
    "a device, signed twice": (FIRST, {"devices": (DEVICE,)}, (KEY, KEY)),
    "a first recovery key": (FIRST, {"reason": "recovery-key", "recovery": RECOVERY}, (KEY,)),
    "another recovery key": (
        WITH_CODE,
        {"reason": "recovery-key", "recovery": OTHER_RECOVERY},
        (KEY, CODE),
    ),
    "recovery key removed": (
        WITH_CODE,
        {"reason": "recovery-key", "recovery": None},
        (KEY, CODE),
    ),
    "a rotation": (FIRST, {"reason": "rotate", **RENEWED}, (NEXT, KEY)),
    "a rotation by the recovery key": (WITH_CODE, {"reason": "rotate", **RENEWED}, (NEXT, CODE)),
    "a recovery": (WITH_CODE, {"reason": "recovery", **RENEWED}, (NEXT, CODE)),
    "a finish": (
        replace(FIRST, generation=3, n=5, prev=bytes(32), reason="rotate"),
        {"reason": "finish", "oldest": 3},
        (KEY,),
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_valid_next_statements(case: str) -> None:
    before, changed, keys = GOOD[case]
    statement = following(before, **changed)
    checked, signers = check_next([before.encode()], *signed(statement, *keys))
    assert checked == statement
    assert signers == tuple(key.public for key in keys)


BAD: dict[str, tuple[Statement, dict[str, Any], tuple[SigningKey, ...]]] = {
    "not signed": (FIRST, {}, ()),
    "three signatures": (FIRST, {}, (KEY, KEY, KEY)),
    "signed by an unrelated key": (FIRST, {}, (OTHER_KEY,)),
    "an unrelated second signature": (FIRST, {}, (KEY, OTHER_KEY)),
    "a recovery key that was never committed": (FIRST, {}, (KEY, CODE)),
    "of another server": (FIRST, {"server": bytes(32)}, (KEY,)),
    "of another user": (FIRST, {"user": "eve"}, (KEY,)),
    "a skipped number": (FIRST, {"n": 3}, (KEY,)),
    "after another statement": (FIRST, {"prev": bytes(32)}, (KEY,)),
    "a second enrolment": (FIRST, {"reason": "enrol", **RENEWED}, (NEXT, KEY)),
    "a device with a new key": (FIRST, {"sign_pub": NEXT.public}, (NEXT, KEY)),
    "a device with a new wrap key": (FIRST, {"wrap_pub": b"v" * 32}, (KEY,)),
    "a device in a new generation": (FIRST, {"generation": 2}, (KEY,)),
    "a device with a longer term": (FIRST, {"expires": 4000}, (KEY,)),
    "a device that ends generations": (
        replace(FIRST, generation=2),
        {"oldest": 2},
        (KEY,),
    ),
    "a rotation signed by the new key alone": (FIRST, {"reason": "rotate", **RENEWED}, (NEXT,)),
    "a rotation by an unrelated key": (
        FIRST,
        {"reason": "rotate", **RENEWED},
        (NEXT, OTHER_KEY),
    ),
    "a rotation to the same key": (
        FIRST,
        {"reason": "rotate", **RENEWED, "sign_pub": KEY.public},
        (KEY, KEY),
    ),
    "a rotation that skips a generation": (
        FIRST,
        {"reason": "rotate", **RENEWED, "generation": 3},
        (NEXT, KEY),
    ),
    "a rotation that ends generations": (
        FIRST,
        {"reason": "rotate", **RENEWED, "oldest": 2},
        (NEXT, KEY),
    ),
    "a thief replaces the code": (
        WITH_CODE,
        {"reason": "recovery-key", "recovery": OTHER_RECOVERY},
        (KEY,),
    ),
    "a thief removes the code": (WITH_CODE, {"recovery": None}, (KEY, KEY)),
    "a thief replaces the code while rotating": (
        WITH_CODE,
        {"reason": "rotate", "recovery": OTHER_RECOVERY, **RENEWED},
        (NEXT, KEY),
    ),
    "the new code signs for itself": (
        WITH_CODE,
        {"reason": "recovery-key", "recovery": OTHER_RECOVERY},
        (KEY, OTHER_CODE),
    ),
    "a recovery without the code": (WITH_CODE, {"reason": "recovery", **RENEWED}, (NEXT, KEY)),
    "voids without the code": (
        WITH_CODE,
        {"reason": "rotate", "voids": (bytes(32),), **RENEWED},
        (NEXT, KEY),
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_the_tag_key_is_for_life(case: str) -> None:
    """Not even a recovery may change it: what is tagged with another key would be hidden."""
    before, changed, keys = GOOD[case]
    chain = [before.encode()]
    changed = {**changed, "tag_commit": b"t" * 32}
    with pytest.raises(ChainError):
        check_next(chain, *signed(following(before, **changed), *keys))


@pytest.mark.parametrize("case", BAD)
def test_invalid_next_statements(case: str) -> None:
    before, changed, keys = BAD[case]
    with pytest.raises((ChainError, SignatureError)):
        check_next([before.encode()], *signed(following(before, **changed), *keys))


def test_malformed_statements() -> None:
    for body in (b"", b"\x80", b"x" * 100):
        with pytest.raises(RemoteProtocolError):
            check_first(body, (bytes(64),))
        with pytest.raises(RemoteProtocolError):
            check_next([FIRST.encode()], body, (bytes(64),))


def test_prev_covers_the_exact_bytes() -> None:
    body, signatures = signed(following(FIRST), KEY)
    other = replace(FIRST, created=1001).encode()
    with pytest.raises(ChainError):
        check_next([other], body, signatures)
