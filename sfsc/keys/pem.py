"""Export and import of an account's keys as PEM, for other programs and for a safe.

The format is PKCS#8 (RFC 5958, RFC 7468) of the Ed25519 signing key and of the RSA or X25519 wrap
key, encrypted or not. Text before the keys, which PEM readers skip, names the account::

    sfs account: LINK
    sfs generation: NUMBER
    sfs mac: 64 hex digits

The mac is HMAC-SHA256(HKDF(Ed25519 seed, "sfs/v2/pem"), account line with its newline ‖
u32be(generation) ‖ public signing key ‖ public wrap key). It is checked before anything else is
done: somebody who can change the file but not open it must not choose the account that is joined.

An X-Wing key has no PKCS#8 form that other programs read; back up such an account by
`sfsc key backup` or a recovery code. Loads the serialization of `cryptography`, which no other
command needs.
"""

from __future__ import annotations

import hmac
import re
from typing import Final

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)

from protocol.codec.errors import MessageError
from protocol.codec.values import Value, field
from protocol.records.invitation import AccountLink, parse_account_link
from protocol.records.records import RSA_BITS
from protocol.records.signatures import SigningKey
from sfsc.crypto.primitives import pem_key
from sfsc.crypto.wrap import PrivateKey
from sfsc.errors import Tampered, UnsupportedKey, UsageError, WrongPassphrase
from sfsc.keys.keyring import passphrase_bytes

MAX_PEM: Final = 64 * 1024
MAX_SECRET: Final = 1023
"""Maximum length in bytes of a passphrase that OpenSSL reads."""
_BLOCK: Final = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----\r?\n[A-Za-z0-9+/=\r\n:, -]+?-----END \1-----"
)
_ABOUT: Final = re.compile(
    rb"^sfs account: (sfs://\S+)\r?\nsfs generation: ([1-9][0-9]{0,8})\r?\n"
    rb"sfs mac: ([0-9a-f]{64})\r?\n"
)
_ANY_LINK: Final = re.compile(rb"sfs://|^sfs ", re.MULTILINE)
_RSA: Final = {bits: alg for alg, bits in RSA_BITS.items()}


_EXPORT_HINT: Final = "use the file as `sfsc key export` wrote it"


class PemKeys(Value):
    """Contents of a PEM file: an Ed25519 `seed`, a wrap key, the account link (each may be None),
    and the `generation` of the keys."""

    seed: bytes | None = field(repr=False)
    wrapping: PrivateKey | None
    link: AccountLink | None
    generation: int


def export_pem(
    link: AccountLink, generation: int, seed: bytes, wrapping: PrivateKey, passphrase: str | None
) -> bytes:
    """Return the PEM file of an account, unencrypted if `passphrase` is None. Raises
    `UnsupportedKey` for an X-Wing key, `UsageError` for a passphrase that is empty or too long."""
    if wrapping.alg == "xwing":
        raise UnsupportedKey("an xwing key has no PEM form", "use `sfsc key backup` instead")
    if wrapping.alg == "x25519":
        private: X25519PrivateKey | RSAPrivateKey
        private = X25519PrivateKey.from_private_bytes(wrapping.encoded)
    else:
        loaded = load_der_private_key(wrapping.encoded, None)
        if not isinstance(loaded, RSAPrivateKey):
            raise UnsupportedKey(f"not an {wrapping.alg} key")
        private = loaded
    lock: KeySerializationEncryption = NoEncryption()
    if passphrase is not None:
        secret = passphrase_bytes(passphrase)
        if len(secret) > MAX_SECRET:
            raise UsageError(f"a PEM key's passphrase has at most {MAX_SECRET} bytes")
        lock = BestAvailableEncryption(secret)
    signing = Ed25519PrivateKey.from_private_bytes(seed)
    blocks = (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock) for key in (signing, private)
    )
    account = link.to_text()
    mac = _mac(account, generation, seed, wrapping)
    about = f"sfs account: {account}\nsfs generation: {generation}\nsfs mac: {mac.hex()}\n"
    return about.encode() + b"".join(blocks)


def _mac(account: str, generation: int, seed: bytes, wrapping: PrivateKey) -> bytes:
    """Return the MAC, 32 bytes, that binds the text of a PEM file to its keys."""
    public = SigningKey.from_seed(seed).public + wrapping.public.encoded
    text = f"sfs account: {account}\n".encode() + generation.to_bytes(4) + public
    return hmac.digest(pem_key(seed), text, "sha256")


def is_encrypted(data: bytes) -> bool:
    """Return whether loading the file needs a passphrase."""
    return b"ENCRYPTED" in data


def load_pem(data: bytes, passphrase: str | None) -> PemKeys:
    """Load the keys of a PEM file: at most one Ed25519 key, and one RSA or X25519 key. Raises
    `WrongPassphrase`, `Tampered` if the text in front of the keys was changed, and
    `UnsupportedKey` for other content. RSA numbers are checked, because the key may come from an
    untrusted source."""
    blocks = [found.group(0) for found in _BLOCK.finditer(data)] if len(data) <= MAX_PEM else []
    if not blocks:
        raise UnsupportedKey("no PEM private key in this file", "it should begin -----BEGIN")
    seed: bytes | None = None
    wrapping: PrivateKey | None = None
    for block in blocks:
        key = _load(block, passphrase)
        if isinstance(key, Ed25519PrivateKey) and seed is None:
            seed = key.private_bytes_raw()
        elif isinstance(key, X25519PrivateKey) and wrapping is None:
            wrapping = PrivateKey("x25519", key.private_bytes_raw())
        elif isinstance(key, RSAPrivateKey) and wrapping is None:
            wrapping = _rsa(key)
        else:
            raise UnsupportedKey(
                "this file holds an extra or unusable key", "keep one Ed25519, one RSA or X25519"
            )
    return PemKeys(seed, wrapping, *_read_about(data[: data.find(b"-----BEGIN")], seed, wrapping))


def _load(block: bytes, passphrase: str | None) -> object:
    secret = passphrase_bytes(passphrase) if passphrase and is_encrypted(block) else None
    try:
        return load_pem_private_key(block, secret)
    except TypeError as exc:
        raise WrongPassphrase("the PEM key is locked with a passphrase") from exc
    except (ValueError, InternalError) as exc:  # InternalError: an Ed25519 key of a wrong length
        if is_encrypted(block):
            raise WrongPassphrase("the passphrase does not unlock the PEM key") from exc
        raise UnsupportedKey("this PEM key is malformed") from exc
    except UnsupportedAlgorithm as exc:
        raise UnsupportedKey("a PEM key of an unknown kind") from exc


def _rsa(key: RSAPrivateKey) -> PrivateKey:
    alg = _RSA.get(key.key_size)
    if alg is None or key.public_key().public_numbers().e != 65537:
        cause = f"unsupported RSA key of {key.key_size} bits"
        raise UnsupportedKey(cause, "use 2048, 3072 or 4096 bits, e = 65537")
    return PrivateKey(alg, key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


def _read_about(
    text: bytes, seed: bytes | None, wrapping: PrivateKey | None
) -> tuple[AccountLink | None, int]:
    """Return (account link, generation) of the text in front of the keys, (None, 1) if it names no
    account. Raises `Tampered` if it is not what was exported with these keys."""
    if _ANY_LINK.search(text) is None:
        return None, 1  # from another program
    found = _ABOUT.search(text)
    if found is None or seed is None or wrapping is None:
        raise Tampered("the account lines in this file were changed", _EXPORT_HINT)
    try:
        account = found.group(1).decode("ascii")
        link = parse_account_link(account)
    except (MessageError, UnicodeDecodeError) as exc:
        raise Tampered("the account link in this file is malformed", _EXPORT_HINT) from exc
    generation = int(found.group(2))
    mac = _mac(account, generation, seed, wrapping)
    if not hmac.compare_digest(mac, bytes.fromhex(found.group(3).decode("ascii"))):
        raise Tampered("the account lines in this file were changed", _EXPORT_HINT)
    return link, generation
