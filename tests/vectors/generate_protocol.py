"""Writes protocol.json beside this file: the exact bytes of version 2, for other implementations.

The content comes from `protocol_examples`. Run ``python tests/vectors/generate_protocol.py``; a
test generates it again and compares.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from protocol.codec.encoding import Buffer
from protocol.codec.fields import Struct
from protocol.log import auditlog
from protocol.records import records
from protocol.records.signatures import Label
from protocol.wire.frames import encode_frame
from protocol.wire.messages import Message, encode
from tests.vectors import protocol_examples as examples

PATH = Path(__file__).with_name("protocol.json")


def plain(value: object) -> object:
    """Return a field's value for JSON: bytes as hex, parts as objects."""
    if isinstance(value, Struct):
        names = value.__struct_fields__
        return {name.rstrip("_"): plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return bytes(value).hex() if isinstance(value, Buffer) else value


def _record_vector(name: str) -> dict[str, object]:
    record, label, signer = examples.RECORDS[name]
    body, signature = examples.signed(name)
    return {
        "name": name,
        "type": type(record).__name__,
        "fields": {key: plain(_value(record, key)) for key in record.__struct_encode_fields__},
        "body": body.hex(),
        "sha256": records.record_hash(body).hex(),
        "label": label.value.decode(),
        "signer": signer,
        "signature": signature.hex(),
    }


def _value(record: records.SignedStruct, key: str) -> object:
    return getattr(record, "from_" if key == "from" else key)


def _frame_vector(request_id: int, message: Message) -> dict[str, object]:
    return {
        "message": type(message).__name__,
        "type": message.TYPE,
        "request_id": request_id,
        "fields": plain(message),
        "frame": b"".join(encode_frame(encode(request_id, message))).hex(),
    }


def vectors() -> dict[str, object]:
    """Return the content of the file; bytes are lower-case hex."""
    public = {
        "x25519": examples.X25519,
        "xwing": examples.XWING,
        "rsa2048": examples.fill("an RSA SPKI", 294),
    }
    return {
        "signers": {
            name: {"seed": key.seed.hex(), "public": key.public.hex()}
            for name, key in examples.SIGNERS.items()
        },
        "server_id": {
            "public": examples.SIGNERS["server"].public.hex(),
            "server_id": examples.SERVER_ID.hex(),
        },
        "key_ids": [
            {"algorithm": alg, "public": key.hex(), "key_id": records.key_id(alg, key).hex()}
            for alg, key in public.items()
        ],
        "records": [_record_vector(name) for name in examples.RECORDS],
        "owner_first": examples.FIRST_HASH.hex(),
        "endorsement": {
            "records_sha256": [digest.hex() for digest in examples.ENDORSED_HASHES],
            "label": Label.ENDORSEMENTS.value.decode(),
            "signer": "alice 2",
            "generation": 2,
            "body": examples.ENDORSEMENT.signed_body(
                examples.SERVER_ID, examples.FIRST_HASH, 2
            ).hex(),
            "packed": examples.ENDORSED.signatures[1].signature.hex(),
        },
        "login": {
            "server_id": examples.SERVER_ID.hex(),
            "tls_spki_sha256": examples.SPKI.hex(),
            "welcome_sha256": examples.WELCOME_SHA256.hex(),
            "version": 1,
            "user": "alice",
            "device_id": examples.fill("laptop", 16).hex(),
            "generation": 1,
            "body": examples.LOGIN_BODY.hex(),
            "label": Label.LOGIN.value.decode(),
            "signer": "laptop",
            "signature": examples.LOGIN_SIGNATURE.hex(),
        },
        "recovery possession": {
            "statement_sha256": examples.FIRST_HASH.hex(),
            "label": Label.RECOVERY_POSSESSION.value.decode(),
            "signer": "recovery",
            "signature": examples.POSSESSION.hex(),
        },
        "enrol": {
            "token": examples.TOKEN.hex(),
            "welcome_sha256": examples.WELCOME_SHA256.hex(),
            "statement_sha256": examples.FIRST_HASH.hex(),
            "body": examples.PROOF_BODY.hex(),
            "proof": examples.PROOF.hex(),
        },
        "log": {
            "vkey": examples.LOG_KEY.vkey,
            "lines": [line.decode() for line in examples.LOG],
            "leaf_data": [auditlog.leaf_data(line).hex() for line in examples.LOG],
            "root": examples.ROOT.hex(),
            "checkpoint": examples.CHECKPOINT.decode(),
            "consistency_from_3": plain(examples.CONSISTENCY),
            "inclusion_of_3": plain(examples.INCLUSION),
        },
        "frames": [_frame_vector(request_id, message) for request_id, message in examples.MESSAGES],
    }


def text() -> str:
    return json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8", newline="\n")
