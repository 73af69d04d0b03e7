"""Validation of public keys, done once where a key enters: in a statement, a login, a vkey, a file.

A key that nobody can use, or that many signatures fit, looks like any other bytes:

- An Ed25519 point of small order (RFC 8032 section 5.1.7 does not refuse it) accepts one fixed
  signature for many messages. A non-canonical encoding gives one point two names.
- An X25519 point of low order makes the shared secret zero (RFC 7748 section 6.1), so that nobody
  can encrypt to the key.
- A coefficient of an ML-KEM key that is not below q fails the modulus check (FIPS 203 section 7.2),
  so that encapsulation refuses the key.
- An RSA key of another size, exponent or encoding than the algorithm's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from protocol.codec.errors import PublicKeyError
from protocol.records.records import RSA_BITS, WRAP_SIZES, Device, Statement

_P: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _P) % _P
"""The constant d of edwards25519 (RFC 8032 section 5.1)."""
_WITHOUT_SIGN: Final = 2**255 - 1
_ORDER_8_U: Final = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
_LOW_ORDER_U: Final = frozenset({0, 1, _P - 1, *_ORDER_8_U})
"""u of the points of curve25519 and its twist whose order divides 8."""
_ORDER_8_Y: Final = 2707385501144840649318225287225658788936804267575313519463743609750303402022
"""y of one of the points of order 8 of edwards25519; the other y is its negative."""
_SMALL_ORDER_Y: Final = frozenset({0, 1, _P - 1, _ORDER_8_Y, _P - _ORDER_8_Y})
"""y of the points of edwards25519 whose order divides 8."""
_MLKEM_Q: Final = 3329
_MLKEM_COEFFICIENTS: Final = 1152
"""Bytes of 768 coefficients of 12 bits; the 32-byte seed of the matrix follows."""
_RSA_EXPONENT: Final = 65537


def check_signing_key(public: bytes) -> None:
    """Check an Ed25519 public key (32 bytes). Raises `PublicKeyError` unless it is the canonical
    encoding of a point of edwards25519 whose order is not small."""
    _need(len(public) == 32, "an Ed25519 public key has 32 bytes")
    y = int.from_bytes(public, "little") & _WITHOUT_SIGN
    _need(y < _P, "the Ed25519 public key is not canonical")
    _need(y not in _SMALL_ORDER_Y, "the Ed25519 public key has a small order")
    # x² = (y² - 1) / (d·y² + 1) has a root if numerator times denominator is a square. It is not 0,
    # because that y has a small order, so either sign of x is canonical.
    square = y * y % _P
    euler = pow((square - 1) * (_D * square + 1), (_P - 1) // 2, _P)
    _need(euler == 1, "the Ed25519 public key is no point of the curve")


@lru_cache(1024)
def check_wrap_key(algorithm: str, public: bytes) -> None:
    """Check a public key of one of `WRAP_ALGORITHMS`, encoded as `sfsc.crypto.wrap` says. Results
    are cached: the same few readers' keys are used again and again.

    Raises `PublicKeyError` if nobody could encrypt to it, or if it is not its key's only encoding.
    """
    sizes = WRAP_SIZES.get(algorithm)
    _need(sizes is not None and len(public) == sizes.public, f"not an {algorithm} public key")
    if algorithm in RSA_BITS:
        _check_rsa(algorithm, public)
        return
    if algorithm == "xwing":
        _need(_is_below_q(public[:_MLKEM_COEFFICIENTS]), "the ML-KEM-768 key fails its check")
    u = int.from_bytes(public[-32:], "little") & _WITHOUT_SIGN
    _need(u % _P not in _LOW_ORDER_U, "the X25519 public key has a low order")


def check_device_keys(device: Device) -> None:
    """Check both public keys of a device. Raises `PublicKeyError`."""
    check_signing_key(device.sign_pub)
    check_wrap_key("xwing", device.xwing_pub)


def check_statement_keys(statement: Statement) -> None:
    """Check every public key in an identity statement. Raises `PublicKeyError`."""
    check_signing_key(statement.sign_pub)
    check_wrap_key(statement.wrap_alg, statement.wrap_pub)
    for device in statement.devices:
        check_device_keys(device)
    for writer in statement.writers:
        check_signing_key(writer.sign_pub)
    if statement.recovery is not None:
        check_signing_key(statement.recovery.sign_pub)
        check_wrap_key("xwing", statement.recovery.xwing_pub)


def _is_below_q(packed: bytes) -> bool:
    """Tell whether every 12-bit coefficient is below q: two lie in three bytes, low bits first."""
    triples = zip(packed[0::3], packed[1::3], packed[2::3], strict=True)
    return all(
        (low | (middle & 15) << 8) < _MLKEM_Q and (middle >> 4 | high << 4) < _MLKEM_Q
        for low, middle, high in triples
    )


def _check_rsa(algorithm: str, public: bytes) -> None:
    # Slow to import, and hardly any account has such a key.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_der_public_key,
    )

    wrong = f"not an {algorithm} public key"
    try:
        key = load_der_public_key(public)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise PublicKeyError(wrong) from exc
    if not isinstance(key, RSAPublicKey) or key.key_size != RSA_BITS[algorithm]:
        raise PublicKeyError(wrong)
    exponent = key.public_numbers().e
    _need(exponent == _RSA_EXPONENT, f"an RSA key with an exponent other than {_RSA_EXPONENT}")
    canonical = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    _need(canonical == public, f"not canonical DER of an {algorithm} public key")


def _need(holds: bool, rule: str) -> None:
    if not holds:
        raise PublicKeyError(rule)
