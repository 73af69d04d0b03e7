"""Generates known answers for the client's cryptography: python tests/vectors/generate_crypto.py

All inputs are SHAKE-256 of a label, so that anyone can reproduce them. Random values that a
primitive draws itself (an RSA key, an HPKE encapsulation, a nonce) are drawn once and then kept
from the existing file; `test_crypto_vectors.py` opens them. All values are lower-case hex.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from protocol.log.tags import tag_commit
from protocol.records.records import BATCH_ID_SIZE, WRAP_ALGORITHMS, Statement, key_id
from protocol.records.signatures import SigningKey
from sfsc.crypto import primitives
from sfsc.crypto.envelope import ContentKey, Metadata, Recipient, WrapBatches
from sfsc.crypto.segments import Encryptor
from sfsc.crypto.wrap import PrivateKey
from sfsc.keys.bundle import Bundle, SeenCheckpoint, seal_bundle
from sfsc.keys.keyring import (
    DeviceKey,
    GenerationKeys,
    Keyring,
    KeyringFile,
    PendingStatement,
)
from sfsc.keys.recovery_code import RecoveryCode
from tests.protocol.wire_form import plain
from tests.sfsc.crypto.streams import encrypt_stream

PATH = Path(__file__).with_name("crypto.json")
Json = dict[str, Any]


def drawn(label: str, size: int) -> bytes:
    """Return deterministic bytes for `label`."""
    return hashlib.shake_256(b"sfs/v2/vectors/" + label.encode()).digest(size)


DEK = drawn("dek", 32)
CONTENT_ID = drawn("content_id", 16)
SERVER = drawn("server_id", 32)
OWNER_FIRST = drawn("owner first statement", 32)
NAMES = ("report.pdf", "docs/Übersicht 2024/☃.txt")
BLOB_SIZES = (0, 13, 1_048_520, 1_048_521, 3_000_000)
METADATA = Metadata("docs/report.pdf", 13, 1_700_000_000_123_456_789, 0o640)
PASSPHRASE = "correct horse"


def keyring() -> Keyring:
    keys = GenerationKeys(1, drawn("sign", 32), "xwing", drawn("xwing private", 32))
    later = GenerationKeys(2, drawn("sign 2", 32), "x25519", drawn("x25519 private", 32))
    return Keyring(
        server_id=SERVER,
        addresses=("nas.example:7373",),
        user="ann",
        first=OWNER_FIRST,
        statements=(drawn("statement", 300),),
        generations=(keys,),
        name_keys=(drawn("name_key", 32),),
        tag_key=drawn("tag_key", 32),
        device=DeviceKey(
            drawn("device_id", 16), drawn("device sign", 32), drawn("device private", 32)
        ),
        pending=PendingStatement(
            drawn("statement 2", 300), (drawn("s", 64),), drawn("bundle", 99), later
        ),
        pins=(("bob", drawn("bob", 32)),),
        labels=((drawn("device_id", 16), "laptop"),),
    )


def _derivations() -> Json:
    secret = primitives.argon2id(PASSPHRASE.encode(), drawn("salt", 16), passes=1, lanes=1, kib=64)
    key, check = primitives.keyring_keys(secret)
    salt = drawn("blob salt", 32)
    return {
        "dek": DEK.hex(),
        "metadata_key": primitives.metadata_key(DEK).hex(),
        "commitment": primitives.commitment(DEK).hex(),
        "content_id": CONTENT_ID.hex(),
        "segment_salt": salt.hex(),
        "segment_key": primitives.segment_key(DEK, salt, CONTENT_ID).hex(),
        "name_key": drawn("name_key", 32).hex(),
        "file_ids": {n: primitives.file_id(drawn("name_key", 32), n) for n in NAMES},
        "passphrase": PASSPHRASE,
        "argon2id_salt": drawn("salt", 16).hex(),
        "argon2id": secret.hex(),
        "keyring_key": key.hex(),
        "keyring_check": check.hex(),
        "bundle_info": primitives.bundle_info(SERVER, "ann", 7, drawn("key_id", 32)).hex(),
    }


def _blob(size: int) -> Json:
    """Return a blob vector from SHAKE-256 plaintext; blobs over 64 bytes appear as SHA-256."""
    encryptor = Encryptor(DEK, CONTENT_ID, _random=lambda n: drawn(f"blob random {n}", n))
    source = io.BytesIO(drawn("plaintext", size))
    blob = b"".join(encrypt_stream(encryptor, source))
    return {
        "plaintext_size": size,
        "header": blob[:40].hex(),
        "blob": blob.hex() if len(blob) <= 128 else None,
        "blob_size": len(blob),
        "blob_sha256": hashlib.sha256(blob).hexdigest(),
    }


def _private(alg: str, kept: Json) -> PrivateKey:
    if alg in ("xwing", "x25519"):
        return PrivateKey(alg, drawn(f"{alg} private", 32))
    if kept:
        return PrivateKey(alg, bytes.fromhex(kept["private"]))
    return PrivateKey.generate(alg)


def _wrap(alg: str, kept: Json) -> Json:
    private = _private(alg, kept)
    public = private.public
    if not kept:
        recipient = Recipient("ann", public)
        (wrap,) = WrapBatches(SERVER, OWNER_FIRST).wrap(ContentKey(CONTENT_ID, DEK), [recipient])
        kept = {"wrapped": wrap.wrapped.hex()}
    context = SERVER, OWNER_FIRST, bytes.fromhex(kept["wrapped"])[:BATCH_ID_SIZE], public.key_id
    return {
        "private": private.encoded.hex(),
        "public": public.encoded.hex(),
        "key_id": key_id(alg, public.encoded).hex(),
        "batch_info": primitives.wrap_batch_info(*context).hex(),
        "item_info": primitives.wrap_item_info(
            *context, CONTENT_ID, primitives.commitment(DEK)
        ).hex(),
        "wrapped": kept["wrapped"],
    }


def _keyring_file(passphrase: str | None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keyring"
        KeyringFile.create(path, keyring(), passphrase)
        return path.read_bytes().hex()


RECOVERY = RecoveryCode(drawn("recovery code", 32))
BUNDLE = Bundle(
    keyring().generations,
    keyring().name_keys,
    keyring().tag_key,
    keyring().pins,
    SeenCheckpoint(drawn("note", 50), drawn("server statement", 70), drawn("signature", 64)),
    keyring().labels,
)


def _bundle() -> str:
    code, own, known = RECOVERY.wrap_key.public, _private("xwing", {}).public, keyring()
    recipients = [own, code]
    sealed = seal_bundle(BUNDLE, server=SERVER, user=known.user, n=7, recipients=recipients)
    return sealed.hex()


def statement(sealed: str) -> Statement:
    """Return the unsigned statement of the bundle's owner."""
    (keys,), own = keyring().generations, _private("xwing", {}).public
    return Statement(
        server=SERVER,
        user=keyring().user,
        kind="user",
        n=7,
        generation=keys.generation,
        oldest=1,
        sign_pub=SigningKey.from_seed(keys.sign_seed).public,
        wrap_alg=own.alg,
        wrap_pub=own.encoded,
        devices=(),
        recovery=RECOVERY.public_keys,
        custodians=(),
        writers=(),
        voids=(),
        bundle_sha256=hashlib.sha256(bytes.fromhex(sealed)).digest(),
        created=1_700_000_000,
        due=1_700_000_001,
        expires=1_700_000_002,
        prev=drawn("statement before", 32),
        reason="recovery-key",
        tag_commit=tag_commit(keyring().tag_key),
    )


def _recovery(kept: Json) -> Json:
    sealed = kept.get("bundle") or _bundle()
    return {
        "code": RECOVERY.text,
        "public": RECOVERY.public_keys.sign_pub.hex(),
        "xwing_key_id": RECOVERY.wrap_key.public.key_id.hex(),
        "statement": statement(sealed).encode().hex(),
        "bundle": sealed,
    }


def generate(kept: Json) -> Json:
    """Return the content of the file; `kept` is the existing one, or empty."""
    files = kept.get("keyring_files", {})
    return {
        "server_id": SERVER.hex(),
        "owner_first": OWNER_FIRST.hex(),
        "derivations": _derivations(),
        "blobs": [_blob(size) for size in BLOB_SIZES],
        "wraps": {alg: _wrap(alg, kept.get("wraps", {}).get(alg, {})) for alg in WRAP_ALGORITHMS},
        "metadata": {
            "map": plain(METADATA),
            "sealed": kept["metadata"]["sealed"]
            if "metadata" in kept
            else ContentKey(CONTENT_ID, DEK).seal_metadata(METADATA).hex(),
        },
        "keyring_files": {
            "passphrase": files.get("passphrase") or _keyring_file(PASSPHRASE),
            "no_passphrase": files.get("no_passphrase") or _keyring_file(None),
        },
        "recovery": _recovery(kept.get("recovery", {})),
    }


if __name__ == "__main__":
    before = json.loads(PATH.read_text("utf-8")) if PATH.exists() else {}
    text = json.dumps(generate(before), indent=1, ensure_ascii=False)
    PATH.write_text(text + "\n", encoding="utf-8")
