"""Rules of identity chains, each broken alone."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.codec.errors import ChainError, RemoteProtocolError, SignatureError
from protocol.codec.values import changed
from protocol.records.chain import check_first, check_next, introduces_recovery_key
from protocol.records.records import Device, RecoveryKey, Statement, Writer, record_hash
from protocol.records.signatures import Label, SigningKey

KEY, NEXT, CODE, OTHER_CODE, OTHER_KEY = (SigningKey.from_seed(bytes([n]) * 32) for n in range(5))
RECOVERY = RecoveryKey(CODE.public, b"x" * 1216)
OTHER_RECOVERY = RecoveryKey(OTHER_CODE.public, b"x" * 1216)
DEVICE = Device(b"d" * 16, b"D" * 32, b"x" * 1216, "device")
WRITER = Writer("camera", b"W" * 32, 9000)
FIRST = Statement(
    server=b"s" * 32,
    user="ada",
    kind="user",
    n=1,
    generation=1,
    oldest=1,
    sign_pub=KEY.public,
    wrap_alg="x25519",
    wrap_pub=b"w" * 32,
    devices=(),
    recovery=None,
    custodians=(),
    writers=(),
    voids=(),
    bundle_sha256=b"b" * 32,
    created=1000,
    due=2000,
    expires=3000,
    prev=b"",
    reason="enrol",
    tag_commit=bytes(32),
)
WITH_CODE = changed(FIRST, recovery=RECOVERY)


def signed(statement: Statement, *keys: SigningKey) -> tuple[bytes, tuple[bytes, ...]]:
    body = statement.encode()
    return body, tuple(key.sign(Label.STATEMENT, body) for key in keys)


def possession_of(statement: Statement, before: Statement | None = None) -> bytes:
    """Return the signature by the recovery key that `statement` introduces, if it introduces one of
    these tests' keys."""
    keys = {CODE.public: CODE, OTHER_CODE.public: OTHER_CODE}
    if statement.recovery is None or not introduces_recovery_key(before, statement):
        return b""
    return keys[statement.recovery.sign_pub].sign(Label.RECOVERY_POSSESSION, statement.encode())


def following(before: Statement, **changes: Any) -> Statement:
    fields: dict[str, Any] = {"n": before.n + 1, "prev": record_hash(before.encode())}
    fields |= {"reason": "device", "created": 1500}
    return changed(before, **(fields | changes))


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
    ("changes", "keys", "error"),
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
    changes: dict[str, Any], keys: tuple[SigningKey, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        check_first(*signed(changed(FIRST, **changes), *keys))


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
    "a backup": (FIRST, {"devices": (changed(DEVICE, kind="backup"),)}, (KEY,)),
    "a writer": (FIRST, {"writers": (WRITER,)}, (KEY,)),
    "a finish": (
        changed(FIRST, generation=3, n=5, prev=bytes(32), reason="rotate"),
        {"reason": "finish", "oldest": 3},
        (KEY,),
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_valid_next_statements(case: str) -> None:
    before, changes, keys = GOOD[case]
    statement = following(before, **changes)
    possession = possession_of(statement, before)
    checked, signers = check_next([before.encode()], *signed(statement, *keys), possession)
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
        changed(FIRST, generation=2),
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
    "a device that brings a recovery key": (
        FIRST,
        {"devices": (DEVICE,), "recovery": RECOVERY},
        (KEY,),
    ),
    "a finish that replaces the recovery key": (
        changed(WITH_CODE, generation=3, n=5, prev=bytes(32), reason="rotate"),
        {"reason": "finish", "oldest": 3, "recovery": OTHER_RECOVERY},
        (KEY, CODE),
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
    "an account of another kind": (FIRST, {"kind": "space"}, (KEY,)),
    "a custodian": (FIRST, {"custodians": (bytes(32),)}, (KEY,)),
    "an invite": (FIRST, {"devices": (changed(DEVICE, kind="invite"),)}, (KEY,)),
    "a member": (FIRST, {"devices": (changed(DEVICE, member=bytes(32)),)}, (KEY,)),
    "a member's signature": (
        FIRST,
        {"devices": (changed(DEVICE, member_signature=bytes(64)),)},
        (KEY,),
    ),
    "a device twice": (FIRST, {"devices": (DEVICE, changed(DEVICE, sign_pub=b"E" * 32))}, (KEY,)),
    "a key of two devices": (
        FIRST,
        {"devices": (DEVICE, changed(DEVICE, device_id=b"e" * 16))},
        (KEY,),
    ),
    "a device with the account's key": (
        FIRST,
        {"devices": (changed(DEVICE, sign_pub=KEY.public),)},
        (KEY,),
    ),
    "a device with the recovery key": (
        WITH_CODE,
        {"devices": (changed(DEVICE, sign_pub=CODE.public),)},
        (KEY,),
    ),
    "a writer twice": (
        FIRST,
        {"writers": (WRITER, changed(WRITER, sign_pub=b"V" * 32))},
        (KEY,),
    ),
    "a writer with a device's key": (
        FIRST,
        {"devices": (DEVICE,), "writers": (changed(WRITER, sign_pub=DEVICE.sign_pub),)},
        (KEY,),
    ),
    "a writer with a key that a device had": (
        changed(FIRST, devices=(DEVICE,)),
        {"devices": (), "writers": (changed(WRITER, sign_pub=DEVICE.sign_pub),)},
        (KEY,),
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
    before, changes, keys = GOOD[case]
    chain = [before.encode()]
    changes = {**changes, "tag_commit": b"t" * 32}
    with pytest.raises(ChainError):
        check_next(chain, *signed(following(before, **changes), *keys))


@pytest.mark.parametrize("case", BAD)
def test_invalid_next_statements(case: str) -> None:
    before, changes, keys = BAD[case]
    statement = following(before, **changes)
    with pytest.raises((ChainError, SignatureError)):
        check_next([before.encode()], *signed(statement, *keys), possession_of(statement, before))


SPACE = changed(FIRST, kind="space")


@pytest.mark.parametrize(
    "wrong", [SPACE, changed(FIRST, custodians=(bytes(32),)), changed(SPACE, recovery=RECOVERY)]
)
def test_first_statements_of_spaces_are_refused(wrong: Statement) -> None:
    with pytest.raises(ChainError):
        check_first(*signed(wrong, KEY), possession_of(wrong))


def test_a_new_recovery_key_signs_the_statement_that_introduces_it() -> None:
    assert check_first(*signed(WITH_CODE, KEY), possession_of(WITH_CODE)) == WITH_CODE
    wrongs = (
        b"",
        OTHER_CODE.sign(Label.RECOVERY_POSSESSION, WITH_CODE.encode()),
        CODE.sign(Label.STATEMENT, WITH_CODE.encode()),
        CODE.sign(Label.RECOVERY_POSSESSION, changed(WITH_CODE, created=1001).encode()),
    )
    for wrong in wrongs:
        with pytest.raises((ChainError, SignatureError)):
            check_first(*signed(WITH_CODE, KEY), wrong)
    later = following(FIRST, reason="recovery-key", recovery=RECOVERY)
    for wrong in wrongs:
        with pytest.raises((ChainError, SignatureError)):
            check_next([FIRST.encode()], *signed(later, KEY), wrong)


def test_another_wrapping_key_is_another_recovery_key() -> None:
    """Whoever replaces only the half that opens bundles needs both signatures too."""
    half = changed(RECOVERY, xwing_pub=b"y" * 1216)
    changes = following(WITH_CODE, reason="recovery-key", recovery=half)
    before = [WITH_CODE.encode()]
    possession = possession_of(changes, WITH_CODE)
    with pytest.raises(ChainError):
        check_next(before, *signed(changes, KEY), possession)
    with pytest.raises(ChainError):
        check_next(before, *signed(changes, KEY, CODE))
    check_next(before, *signed(changes, KEY, CODE), possession)


def test_a_statement_without_a_new_recovery_key_has_no_possession() -> None:
    for before in (FIRST, WITH_CODE):
        statement = following(before, devices=(DEVICE,))
        possession = CODE.sign(Label.RECOVERY_POSSESSION, statement.encode())
        with pytest.raises(ChainError):
            check_next([before.encode()], *signed(statement, KEY), possession)
    with pytest.raises(ChainError):
        check_first(*signed(FIRST, KEY), CODE.sign(Label.RECOVERY_POSSESSION, FIRST.encode()))


def test_malformed_statements() -> None:
    for body in (b"", b"\x80", b"x" * 100):
        with pytest.raises(RemoteProtocolError):
            check_first(body, (bytes(64),))
        with pytest.raises(RemoteProtocolError):
            check_next([FIRST.encode()], body, (bytes(64),))


def test_prev_covers_the_exact_bytes() -> None:
    body, signatures = signed(following(FIRST), KEY)
    other = changed(FIRST, created=1001).encode()
    with pytest.raises(ChainError):
        check_next([other], body, signatures)
