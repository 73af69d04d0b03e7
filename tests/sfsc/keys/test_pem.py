"""Keys as PEM, written here or by other programs."""

from __future__ import annotations

import base64
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from protocol.records.invitation import AccountLink
from sfsc.crypto.wrap import PrivateKey
from sfsc.errors import KeyringError, Tampered, UnsupportedKey, UsageError, WrongPassphrase
from sfsc.keys.pem import export_pem, is_encrypted, load_pem
from tests.sfsc.crypto.test_wrap import ED25519_OF_31_BYTES, UNKNOWN_ALGORITHM

LINK = AccountLink("files.example", 7373, "ada", b"p" * 32, b"f" * 32)
SEED = bytes(range(32))
BARE = NoEncryption()


def written(
    key: ed25519.Ed25519PrivateKey
    | x25519.X25519PrivateKey
    | rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey,
    how: PrivateFormat = PrivateFormat.PKCS8,
    lock: KeySerializationEncryption = BARE,
) -> bytes:
    return key.private_bytes(Encoding.PEM, how, lock)


@pytest.mark.parametrize("alg", ["x25519", "rsa2048", "rsa3072"])
@pytest.mark.parametrize("passphrase", [None, "secret", "pässwörd"])
def test_round_trip(alg: str, passphrase: str | None) -> None:
    key = PrivateKey.generate(alg)
    data = export_pem(LINK, 7, SEED, key, passphrase)
    assert is_encrypted(data) is (passphrase is not None)
    found = load_pem(data, passphrase)
    assert (found.seed, found.link, found.generation) == (SEED, LINK, 7)
    assert found.wrapping is not None
    assert (found.wrapping.alg, found.wrapping.public.key_id) == (alg, key.public.key_id)
    assert key.encoded not in data
    if passphrase is not None:
        for wrong in (None, "another", ""):
            with pytest.raises(WrongPassphrase):
                load_pem(data, wrong)


def test_non_utf8_environment_passphrase() -> None:
    """Bytes that are not UTF-8 arrive as surrogates."""
    data = export_pem(LINK, 1, SEED, PrivateKey.generate("x25519"), "p\udcff")
    assert load_pem(data, "p\udcff").seed == SEED
    with pytest.raises(WrongPassphrase):
        load_pem(data, "p")


@pytest.mark.parametrize("passphrase", ["", "\ud800", "é" * 512])
def test_empty_or_long_passphrases_are_refused(passphrase: str) -> None:
    with pytest.raises(UsageError):
        export_pem(LINK, 1, SEED, PrivateKey.generate("x25519"), passphrase)


def test_xwing_has_no_pem_form() -> None:
    with pytest.raises(UnsupportedKey):
        export_pem(LINK, 1, SEED, PrivateKey.generate("xwing"), None)


def test_keys_of_other_programs_in_any_order_and_form() -> None:
    signing = ed25519.Ed25519PrivateKey.generate()
    wrapping = rsa.generate_private_key(65537, 2048)
    old = written(wrapping, PrivateFormat.TraditionalOpenSSL)
    for data in (written(signing) + old, b"text\r\n" + old + b"between\n" + written(signing)):
        found = load_pem(data, None)
        assert found.seed == signing.private_bytes_raw()
        assert found.wrapping is not None
        assert (found.wrapping.alg, found.link, found.generation) == ("rsa2048", None, 1)
    alone = load_pem(written(x25519.X25519PrivateKey.generate()), None)
    assert (alone.seed, alone.wrapping is None) == (None, False)


def test_crlf_line_ends() -> None:
    data = export_pem(LINK, 3, SEED, PrivateKey.generate("x25519"), None).replace(b"\n", b"\r\n")
    found = load_pem(data, None)
    assert (found.seed, found.link, found.generation) == (SEED, LINK, 3)


def pem_of(der: bytes) -> bytes:
    text = base64.b64encode(der).decode()
    return f"-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n".encode()


def refused() -> dict[str, bytes]:
    pair = [written(x25519.X25519PrivateKey.generate()) for _ in range(2)]
    return {
        "nothing": b"",
        "text": b"hello",
        "too long": b"x" * 70_000 + pair[0],
        "two wrap keys": b"".join(pair),
        "two signing keys": written(ed25519.Ed25519PrivateKey.generate()) * 2,
        "a kind of no use": written(ec.generate_private_key(ec.SECP256R1())),
        "too small": written(rsa.generate_private_key(65537, 1024)),
        "an odd exponent": written(rsa.generate_private_key(3, 2048)),
        "an Ed25519 key of 31 bytes": pem_of(ED25519_OF_31_BYTES),
        "an unknown algorithm": pem_of(UNKNOWN_ALGORITHM),
        "cut": pair[0][:-40] + pair[0][-26:],
    }


@pytest.mark.parametrize("case", sorted(refused()))
def test_files_without_usable_keys_are_refused(case: str) -> None:
    with pytest.raises(UnsupportedKey):
        load_pem(refused()[case], None)


EXPORTED = export_pem(LINK, 7, SEED, PrivateKey("x25519", bytes(range(1, 33))), None)


def test_the_mac_covers_account_generation_and_both_public_keys() -> None:
    account, generation, mac, *_ = EXPORTED.split(b"\n")
    assert generation == b"sfs generation: 7"
    wrapping = x25519.X25519PrivateKey.from_private_bytes(bytes(range(1, 33))).public_key()
    key = HKDF(SHA256(), 32, None, b"sfs/v2/pem").derive(SEED)
    signing = ed25519.Ed25519PrivateKey.from_private_bytes(SEED).public_key()
    covered = account + b"\n" + (7).to_bytes(4) + signing.public_bytes_raw()
    covered += wrapping.public_bytes_raw()
    assert mac == b"sfs mac: " + hmac.digest(key, covered, "sha256").hex().encode()


def edited() -> dict[str, bytes]:
    """Return exports whose text somebody has changed, who cannot open the keys."""
    account, generation, mac, rest = EXPORTED.split(b"\n", 3)
    signing, wrapping = rest[: rest.index(b"-----BEGIN", 1)], rest[rest.index(b"-----BEGIN", 1) :]
    other = AccountLink("evil.example", 7373, "ada", b"p" * 32, b"f" * 32).to_text().encode()
    foreign = written(x25519.X25519PrivateKey.generate())

    def lines(*parts: bytes) -> bytes:
        return b"\n".join(parts)

    return {
        "another server": lines(b"sfs account: " + other, generation, mac, rest),
        "another pin": EXPORTED.replace(b"p".hex().encode() * 32, b"q".hex().encode() * 32),
        "another user": EXPORTED.replace(b"/ada", b"/eve"),
        "another chain": EXPORTED.replace(b"f".hex().encode() * 32, b"e".hex().encode() * 32),
        "another generation": lines(account, b"sfs generation: 6", mac, rest),
        "another mac": lines(account, generation, b"sfs mac: " + b"0" * 64, rest),
        "no mac": lines(account, generation, rest),
        "no generation": lines(account, mac, rest),
        "no account": lines(generation, mac, rest),
        "account alone": lines(account, rest),
        "another account first": lines(b"sfs account: " + other, account, generation, mac, rest),
        "a malformed account": lines(b"sfs account: sfs://nonsense", generation, mac, rest),
        "a link that was added": lines(other, rest),
        "another wrap key": lines(account, generation, mac, signing + foreign),
        "no signing key": lines(account, generation, mac, wrapping),
    }


@pytest.mark.parametrize("case", sorted(edited()))
def test_changed_text_in_front_of_the_keys_is_refused(case: str) -> None:
    data = edited()[case]
    assert data != EXPORTED
    with pytest.raises(Tampered):
        load_pem(data, None)


@given(st.binary(max_size=300))
def test_any_content_raises_only_our_errors(body: bytes) -> None:
    with pytest.raises(KeyringError):
        load_pem(b"-----BEGIN PRIVATE KEY-----\n" + body + b"-----END PRIVATE KEY-----\n", None)


def test_encrypted_key_of_another_program() -> None:
    lock = BestAvailableEncryption(b"secret")
    data = written(rsa.generate_private_key(65537, 2048), PrivateFormat.TraditionalOpenSSL, lock)
    assert load_pem(data, "secret").wrapping is not None
    with pytest.raises(WrongPassphrase):
        load_pem(data, "another")
