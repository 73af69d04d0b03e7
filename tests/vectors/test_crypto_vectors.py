"""The code reproduces the checked-in known answers and opens their sealed data."""

from __future__ import annotations

import io
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from protocol.codec.values import changed
from protocol.records.records import WRAP_ALGORITHMS, FileRecord, Statement
from protocol.wire.messages.base import Wrap
from sfsc.crypto.envelope import (
    ContentKey,
    Metadata,
    RecordAuthor,
    content_record,
    open_wraps,
)
from sfsc.crypto.segments import ciphertext_size
from sfsc.crypto.wrap import PrivateKey
from sfsc.keys.bundle import open_bundle
from sfsc.keys.keyring import KeyringFile
from sfsc.keys.recovery_code import RecoveryCode
from tests.protocol.wire_form import parsed
from tests.sfsc.crypto.streams import decrypt_stream

HERE = Path(__file__).parent
GENERATOR = runpy.run_path(str(HERE / "generate_crypto.py"))
VECTORS: dict[str, Any] = json.loads((HERE / "crypto.json").read_text("utf-8"))
KEY = ContentKey(
    bytes.fromhex(VECTORS["derivations"]["content_id"]),
    bytes.fromhex(VECTORS["derivations"]["dek"]),
)


def test_derived_values_are_reproduced() -> None:
    assert GENERATOR["generate"](VECTORS) == VECTORS


@pytest.mark.parametrize("alg", WRAP_ALGORITHMS)
def test_wraps_open(alg: str) -> None:
    case = VECTORS["wraps"][alg]
    private = PrivateKey(alg, bytes.fromhex(case["private"]))
    wrap = Wrap("ann", private.public.key_id, alg, bytes.fromhex(case["wrapped"]))
    first = bytes.fromhex(VECTORS["owner_first"])
    record = changed(_record(b"", 0), server=bytes.fromhex(VECTORS["server_id"]))
    assert open_wraps(record, first, (wrap,), {wrap.key_id: private}) == KEY


@pytest.mark.parametrize("case", [c for c in VECTORS["blobs"] if c["blob"] is not None])
def test_blobs_open(case: dict[str, Any]) -> None:
    blob = bytes.fromhex(case["blob"])
    opened = b"".join(decrypt_stream(KEY.decryptor(blob[:40], len(blob)), io.BytesIO(blob)))
    assert opened == GENERATOR["drawn"]("plaintext", case["plaintext_size"])


def test_metadata_opens() -> None:
    sealed = bytes.fromhex(VECTORS["metadata"]["sealed"])
    expected = parsed(Metadata, VECTORS["metadata"]["map"])
    assert KEY.open_metadata(_record(sealed, expected.size), sealed) == expected


def _record(metadata: bytes, size: int) -> FileRecord:
    return content_record(
        RecordAuthor(bytes(32), "ann", "ann", 1),
        KEY,
        file_id="0" * 32,
        head=None,
        version=1,
        ciphertext_size=ciphertext_size(size),
        segments_root=bytes(32),
        metadata=metadata,
        readers=(),
        seen=(1, bytes(32)),
        created=1,
    )


@pytest.mark.parametrize("kind", ["passphrase", "no_passphrase"])
def test_keyring_files_open(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "keyring"
    path.write_bytes(bytes.fromhex(VECTORS["keyring_files"][kind]))
    passphrase = VECTORS["derivations"]["passphrase"] if kind == "passphrase" else None
    assert KeyringFile.unlock(path, passphrase).contents == GENERATOR["keyring"]()


@pytest.mark.parametrize("by", ["code", "own key"])
def test_the_bundle_opens(by: str) -> None:
    """The recovery code opens the bundle, and so do the keys of an older keyring."""
    case = VECTORS["recovery"]
    code = RecoveryCode.parse(case["code"])
    own = PrivateKey("xwing", bytes.fromhex(VECTORS["wraps"]["xwing"]["private"]))
    statement = Statement.parse(bytes.fromhex(case["statement"]))
    assert code.public_keys == statement.recovery
    sealed = bytes.fromhex(case["bundle"])
    found = open_bundle(sealed, statement, [code.wrap_key if by == "code" else own])
    assert found == GENERATOR["BUNDLE"]
