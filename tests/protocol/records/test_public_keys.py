"""Keys that look like keys, from published lists, are refused; every real key is accepted."""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol.codec.errors import CheckpointError, PublicKeyError, SignatureError
from protocol.codec.values import changed
from protocol.log.checkpoint import Verifier
from protocol.records.chain import check_first
from protocol.records.public_keys import (
    check_signing_key,
    check_statement_keys,
    check_wrap_key,
)
from protocol.records.record_signatures import verify_record_signature
from protocol.records.records import Device, RecoveryKey, Statement, Writer
from protocol.records.signatures import Label, SigningKey, verify_note, verify_signature

P = 2**255 - 19

# All 8 points of small order and their 6 other encodings, as in libsodium's
# ge25519_has_small_order and table 6 of "Taming the Many EdDSAs" (eprint.iacr.org/2020/1244).
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
]
NOT_CANONICAL = [
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
]
# Points of low order, as in https://cr.yp.to/ecdh.html#validate and libsodium's
# crypto_scalarmult_curve25519, each also with bit 255 set, which RFC 7748 ignores.
LOW_ORDER_X25519 = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]

KEY = SigningKey.from_seed(bytes(32))
X25519 = X25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()
MLKEM = MLKEM768PrivateKey.from_seed_bytes(bytes(64)).public_key().public_bytes_raw()
XWING = MLKEM + X25519


@pytest.mark.parametrize("encoded", SMALL_ORDER + NOT_CANONICAL)
def test_ed25519_keys_of_small_order_or_another_encoding_are_refused(encoded: str) -> None:
    public = bytes.fromhex(encoded)
    with pytest.raises(PublicKeyError):
        check_signing_key(public)


def test_the_table_has_every_encoding_of_a_point_of_small_order() -> None:
    """The curve has 8 such points: (0, ±1), (±sqrt(-1), 0) and four of order 8. Each y below 19
    has a second form, y + p, and x = 0 has a sign that it should not have."""
    ys = {int.from_bytes(bytes.fromhex(one), "little") % 2**255 % P for one in SMALL_ORDER}
    forms = [
        (form | sign << 255).to_bytes(32, "little").hex()
        for y in ys
        for form in (y, y + P)
        for sign in (0, 1)
        if form < 2**255
    ]
    assert len(ys) == 5
    assert sorted(SMALL_ORDER + NOT_CANONICAL) == sorted(forms)
    assert all(order_divides_8(bytes.fromhex(one)) for one in SMALL_ORDER)
    assert not order_divides_8(KEY.public)


def test_ed25519_keys_whose_y_is_not_below_p_are_refused() -> None:
    for y in range(P, 2**255):
        for sign in (0, 1):
            with pytest.raises(PublicKeyError, match="not canonical"):
                check_signing_key((y | sign << 255).to_bytes(32, "little"))


@pytest.mark.parametrize("encoded", SMALL_ORDER + NOT_CANONICAL)
def test_whatever_reads_an_ed25519_key_refuses_one_of_small_order(encoded: str) -> None:
    """The signature is one that the library accepts with the key in its canonical form."""
    small, signature = bytes.fromhex(encoded), bytes.fromhex(SMALL_ORDER[0]) + bytes(32)
    for label in Label:
        with pytest.raises(SignatureError):
            verify_signature(label, b"body", signature, small)
    with pytest.raises(SignatureError):
        verify_record_signature(
            Label.RECORDS,
            signature + bytes.fromhex("00010000"),
            bytes(32),
            small,
            server=bytes(32),
            owner_first=bytes(32),
            generation=1,
        )
    with pytest.raises(CheckpointError):
        Verifier.parse(Verifier("log", small).vkey)
    for statement, first, possession in (
        (changed(PLAIN, sign_pub=small), signature, b""),
        (changed(PLAIN, recovery=RecoveryKey(small, XWING)), b"", signature),
    ):
        body = statement.encode()
        own = first or KEY.sign(Label.STATEMENT, body)
        with pytest.raises(SignatureError):
            check_first(body, (own,), possession)
    for statement in (
        changed(PLAIN, devices=(changed(DEVICE, sign_pub=small),)),
        changed(PLAIN, writers=(Writer("camera", small, 0),)),
    ):
        with pytest.raises(PublicKeyError):
            check_statement_keys(statement)


def test_a_signature_that_nobody_made_is_refused_with_its_key() -> None:
    """One fixed signature fits many messages: the library accepts it, so the key must not be."""
    identity = bytes.fromhex(SMALL_ORDER[0])
    signature = identity + bytes(32)
    Ed25519PublicKey.from_public_bytes(identity).verify(signature, b"any message")
    with pytest.raises(SignatureError, match="small order"):
        verify_note(b"any message", signature, identity)
    with pytest.raises(SignatureError, match="small order"):
        verify_signature(Label.LOGIN, b"any body", signature, identity)


def test_no_fixed_signature_fits_any_key_that_is_accepted() -> None:
    for encoded in SMALL_ORDER + NOT_CANONICAL:
        public = bytes.fromhex(encoded)
        for point in (public, bytes.fromhex(SMALL_ORDER[0])):
            for number in range(16):
                with pytest.raises(SignatureError):
                    verify_note(b"%d" % number, point + bytes(32), public)


def test_ed25519_points_that_are_not_on_the_curve_are_refused() -> None:
    refused = 0
    for y in range(2, 200):
        public = y.to_bytes(32, "little")
        try:
            check_signing_key(public)
        except PublicKeyError:
            refused += 1
            with pytest.raises(InvalidSignature):  # the library notices only when it verifies
                Ed25519PublicKey.from_public_bytes(public).verify(bytes(64), b"")
    assert 70 < refused < 130  # half of all y have no x


def test_every_generated_ed25519_key_is_accepted() -> None:
    for _ in range(200):
        check_signing_key(Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    for size in (0, 31, 33):
        with pytest.raises(PublicKeyError):
            check_signing_key(bytes([9]) * size)


@pytest.mark.parametrize("encoded", LOW_ORDER_X25519)
@pytest.mark.parametrize("high_bit", [0, 0x80])
def test_x25519_keys_of_low_order_are_refused(encoded: str, high_bit: int) -> None:
    public = bytes.fromhex(encoded)
    public = public[:31] + bytes([public[31] | high_bit])
    for algorithm, key in (("x25519", public), ("xwing", MLKEM + public)):
        with pytest.raises(PublicKeyError):
            check_wrap_key(algorithm, key)
    with pytest.raises(ValueError):
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(public))


def test_small_x25519_points_are_refused_exactly_if_the_exchange_fails() -> None:
    private = X25519PrivateKey.generate()
    for u in (*range(2, 40), *range(P - 20, P - 1), *range(P + 2, 2**255)):
        public = u.to_bytes(32, "little")
        check_wrap_key("x25519", public)
        private.exchange(X25519PublicKey.from_public_bytes(public))


@pytest.mark.parametrize("place", [0, 1, 2, 255, 256, 511, 766, 767])
def test_an_mlkem_key_with_a_coefficient_that_is_not_below_q_is_refused(place: int) -> None:
    for value, fine in ((3328, True), (3329, False), (4095, False)):
        packed = int.from_bytes(MLKEM[:1152], "little")
        packed = packed & ~(0xFFF << 12 * place) | value << 12 * place
        key = packed.to_bytes(1152, "little") + MLKEM[1152:]
        if fine:
            check_wrap_key("xwing", key + X25519)
            MLKEM768PublicKey.from_public_bytes(key)
            continue
        with pytest.raises(PublicKeyError):
            check_wrap_key("xwing", key + X25519)
        with pytest.raises(ValueError):
            MLKEM768PublicKey.from_public_bytes(key)


def test_generated_keys_of_every_kind_are_accepted() -> None:
    for _ in range(20):
        x25519 = X25519PrivateKey.generate().public_key().public_bytes_raw()
        mlkem = MLKEM768PrivateKey.generate().public_key().public_bytes_raw()
        check_wrap_key("x25519", x25519)
        check_wrap_key("xwing", mlkem + x25519)


def order_divides_8(public: bytes) -> bool:
    """Double a point of edwards25519 three times (RFC 8032 section 5.1.4, in affine form)."""
    d = -121665 * pow(121666, -1, P) % P
    y = int.from_bytes(public, "little") % 2**255 % P
    square = (y * y - 1) * pow(d * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert (x * x - square) % P == 0, "no point of the curve"
    for _ in range(3):
        k = d * x * x * y * y % P
        x, y = 2 * x * y * pow(1 + k, -1, P) % P, (y * y + x * x) * pow(1 - k, -1, P) % P
    return (x, y) == (0, 1)


def rsa_public(bits: int, exponent: int = 65537) -> bytes:
    key = rsa.generate_private_key(exponent, bits).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_a_wrapping_key_must_match_its_algorithm() -> None:
    small = rsa_public(2048)
    check_wrap_key("rsa2048", small)
    check_wrap_key("rsa3072", rsa_public(3072))
    wrong = [
        ("rsa2048", rsa_public(3072)),
        ("rsa3072", small),
        ("rsa2048", rsa_public(2048, exponent=3)),
        ("rsa2048", small + b"\0"),
        ("rsa2048", b"\x30" * len(small)),
        ("rsa2048", b"\x30" * 601),
        ("x25519", small),
        ("xwing", X25519),
        ("rot13", b"w" * 32),
    ]
    for algorithm, public in wrong:
        with pytest.raises(PublicKeyError):
            check_wrap_key(algorithm, public)


DEVICE = Device(bytes(16), KEY.public, XWING, "device")
STATEMENT = Statement(
    server=bytes(32),
    user="ada",
    kind="user",
    n=1,
    generation=1,
    oldest=1,
    sign_pub=KEY.public,
    wrap_alg="xwing",
    wrap_pub=XWING,
    devices=(DEVICE,),
    recovery=RecoveryKey(KEY.public, XWING),
    custodians=(),
    writers=(Writer("camera", KEY.public, 0),),
    voids=(),
    bundle_sha256=bytes(32),
    created=1,
    due=2,
    expires=3,
    prev=b"",
    reason="enrol",
    tag_commit=bytes(32),
)
PLAIN = changed(STATEMENT, devices=(), recovery=None, writers=())


def test_every_key_of_a_statement_is_checked() -> None:
    check_statement_keys(STATEMENT)
    check_statement_keys(changed(STATEMENT, recovery=None, devices=()))
    impossible, small = b"\xff" * 1184 + X25519, bytes.fromhex(SMALL_ORDER[0])
    for changes in (
        changed(STATEMENT, sign_pub=small),
        changed(STATEMENT, wrap_pub=impossible),
        changed(STATEMENT, wrap_alg="x25519", wrap_pub=bytes(32)),
        changed(STATEMENT, devices=(DEVICE, changed(DEVICE, xwing_pub=impossible))),
        changed(STATEMENT, devices=(DEVICE, changed(DEVICE, sign_pub=small))),
        changed(STATEMENT, writers=(Writer("camera", small, 0),)),
        changed(STATEMENT, recovery=RecoveryKey(small, XWING)),
        changed(STATEMENT, recovery=RecoveryKey(KEY.public, impossible)),
    ):
        with pytest.raises(PublicKeyError):
            check_statement_keys(changes)
