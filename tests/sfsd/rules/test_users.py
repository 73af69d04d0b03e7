"""Rules for a first statement, and users' signing keys."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol.codec.values import changed
from protocol.records.records import Device, RecoveryKey, Statement, Writer, record_hash
from protocol.records.signatures import Label, SigningKey
from sfsd.errors import Refused
from sfsd.rules.users import Chain, signing_key_id, validate_first_statement
from sfsd.settings.config import RotationPolicy
from sfsd.settings.kinds import DAY
from sfsd.storage.json_files import StoredStatement
from tests.sfsd.builders import SERVER_ID

KEY = SigningKey.from_seed(bytes(32))
BUNDLE = b"sealed bundle"
NOW = 1_800_000_000
POLICY = RotationPolicy(max_age=90 * DAY, grace=30 * DAY, jitter=10)
FIRST = Statement(
    server=SERVER_ID,
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
    bundle_sha256=hashlib.sha256(BUNDLE).digest(),
    created=NOW,
    due=NOW + 90 * DAY,
    expires=NOW + 120 * DAY,
    prev=b"",
    reason="enrol",
    tag_commit=bytes(32),
)
XWING = b"x" * 1216
IMPOSSIBLE = b"\xff" * 1184 + b"x" * 32
"""Fails the modulus check of ML-KEM."""
D, E, CODE = (SigningKey.from_seed(one * 32) for one in (b"d", b"e", b"c"))
DEVICE = Device(b"d" * 16, D.public, XWING, "device")


def judge(
    statement: Statement, policy: RotationPolicy = POLICY, code: SigningKey | None = None
) -> Statement:
    """Validate a first statement; `code` is the recovery key that it introduces."""
    body = statement.encode()
    return validate_first_statement(
        body,
        KEY.sign(Label.STATEMENT, body),
        BUNDLE,
        b"" if code is None else code.sign(Label.RECOVERY_POSSESSION, body),
        user="ada",
        server_id=SERVER_ID,
        policy=policy,
        now=NOW,
    )


def rsa_public(bits: int, exponent: int = 65537) -> bytes:
    key = rsa.generate_private_key(exponent, bits).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


RSA2048 = rsa_public(2048)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"devices": (DEVICE, changed(DEVICE, device_id=b"e" * 16, sign_pub=E.public))},
        {"wrap_alg": "xwing", "wrap_pub": XWING},
        {"wrap_alg": "rsa2048", "wrap_pub": RSA2048},
        {"created": NOW - DAY, "due": NOW, "expires": NOW},
        {"due": NOW + 99 * DAY, "expires": NOW + 129 * DAY},
        {"due": NOW + DAY, "expires": NOW + DAY},
    ],
)
def test_a_valid_statement_is_accepted(changes: dict[str, Any]) -> None:
    statement = changed(FIRST, **changes)
    assert judge(statement) == statement


@pytest.mark.parametrize(
    "changes",
    [
        {"server": bytes(32)},
        {"user": "bob"},
        {"n": 2, "prev": bytes(32)},
        {"generation": 2},
        {"generation": 2, "oldest": 2},
        {"reason": "rotate"},
        {"voids": (bytes(32),)},
        {"bundle_sha256": bytes(32)},
        {"wrap_pub": b"w" * 31},
        {"wrap_pub": bytes(32)},
        {"wrap_alg": "xwing", "wrap_pub": XWING[1:]},
        {"wrap_alg": "rsa3072", "wrap_pub": RSA2048},
        {"wrap_alg": "rsa2048", "wrap_pub": b"junk"},
        {"devices": (DEVICE, changed(DEVICE, sign_pub=E.public))},
        {"devices": (changed(DEVICE, xwing_pub=bytes(1216)),)},
        {"devices": (changed(DEVICE, xwing_pub=IMPOSSIBLE),)},
        {"devices": (changed(DEVICE, sign_pub=bytes(32)),)},
        {"writers": (Writer("w", bytes(32), 0),)},
        {"wrap_alg": "xwing", "wrap_pub": IMPOSSIBLE},
        {"recovery": RecoveryKey(CODE.public, b"short")},
        {"recovery": RecoveryKey(CODE.public, IMPOSSIBLE)},
        {"recovery": RecoveryKey(bytes(32), XWING)},
        {"created": NOW - DAY - 1},
        {"created": NOW + DAY + 1, "due": NOW + 80 * DAY, "expires": NOW + 90 * DAY},
        {"due": NOW, "expires": NOW + DAY},
        {"due": NOW + 99 * DAY + 1, "expires": NOW + 129 * DAY},
        {"expires": NOW + 90 * DAY - 1},
        {"expires": NOW + 120 * DAY + 1},
    ],
)
def test_a_statement_that_breaks_a_rule_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        judge(changed(FIRST, **changes))
    code = "clock" if abs(changes.get("created", NOW) - NOW) > DAY else "bad-request"
    assert caught.value.code == code


def test_a_first_statement_may_introduce_a_recovery_key_that_signs_it() -> None:
    statement = changed(FIRST, recovery=RecoveryKey(CODE.public, XWING))
    assert judge(statement, code=CODE) == statement
    for wrong, expected in ((None, "bad-request"), (KEY, "refused")):
        with pytest.raises(Refused) as caught:
            judge(statement, code=wrong)
        assert caught.value.code == expected
    with pytest.raises(Refused):
        judge(FIRST, code=CODE)


def test_no_policy_allows_more_than_two_years() -> None:
    policy = RotationPolicy(max_age=730 * DAY, grace=730 * DAY, jitter=50)
    end = NOW + 730 * DAY
    judge(changed(FIRST, due=end, expires=end), policy)
    with pytest.raises(Refused):
        judge(changed(FIRST, due=end, expires=end + 1), policy)
    with pytest.raises(Refused):
        judge(changed(FIRST, due=end + 1, expires=end + 1), policy)


def test_a_statement_must_be_signed_by_its_own_key() -> None:
    body = changed(FIRST, sign_pub=SigningKey.generate().public).encode()
    with pytest.raises(Refused) as caught:
        validate_first_statement(
            body,
            KEY.sign(Label.STATEMENT, body),
            BUNDLE,
            b"",
            user="ada",
            server_id=SERVER_ID,
            policy=POLICY,
            now=NOW,
        )
    assert caught.value.code == "refused"


def test_a_malformed_statement_is_refused() -> None:
    with pytest.raises(Refused):
        validate_first_statement(
            b"\x80", bytes(64), BUNDLE, b"", user="ada", server_id=SERVER_ID, policy=POLICY, now=NOW
        )


def test_signing_keys_omit_voided_generations() -> None:
    second = changed(FIRST, n=2, generation=2, sign_pub=b"2" * 32, prev=record_hash(FIRST.encode()))
    undone = record_hash(second.encode())
    voiding = changed(second, n=3, generation=3, sign_pub=b"3" * 32, voids=(undone,), prev=undone)
    links = tuple(
        StoredStatement(one.encode(), (), seq, one) for seq, one in enumerate((FIRST, second))
    )
    chain = Chain("ada", links)
    assert chain.signing_keys == {1: KEY.public, 2: b"2" * 32}
    longer = Chain("ada", (*links, StoredStatement(voiding.encode(), (), 2, voiding)))
    assert longer.signing_keys == {1: KEY.public, 3: b"3" * 32}
    # The second statement reuses the first one's wrapping key, whose wraps stay valid.
    assert longer.voided_keys() == (frozenset({2}), frozenset())
    assert longer.head == voiding
    assert longer.first_hash == record_hash(FIRST.encode())


def test_a_signing_key_id_is_its_hash() -> None:
    expected = hashlib.sha256(b"ed25519\0" + KEY.public).hexdigest()
    assert signing_key_id(KEY.public) == expected
