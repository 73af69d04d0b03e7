"""The code reproduces protocol.json, whose content is consistent and verifies."""

from __future__ import annotations

import hashlib
import hmac
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from protocol.codec import merkle
from protocol.codec.errors import ChainError, SignatureError
from protocol.log import auditlog, checkpoint
from protocol.records import records
from protocol.records.chain import check_first
from protocol.records.record_signatures import unpack_signature
from protocol.records.signatures import Label, SigningKey, verify_signature
from protocol.wire.frames import FrameReader
from protocol.wire.messages import decode, registered
from sfsc.trust.follower import LogFollower
from tests.protocol.wire_form import plain
from tests.vectors import protocol_examples

HERE = Path(__file__).parent
GENERATOR = runpy.run_path(str(HERE / "generate_protocol.py"))
TEXT = (HERE / "protocol.json").read_text("utf-8")
VECTORS: dict[str, Any] = json.loads(TEXT)
SIGNERS = {name: bytes.fromhex(key["public"]) for name, key in VECTORS["signers"].items()}
FRAMES = VECTORS["frames"]


def test_generation_reproduces_the_file() -> None:
    assert GENERATOR["text"]() == TEXT


def test_signers() -> None:
    for key in VECTORS["signers"].values():
        assert SigningKey.from_seed(bytes.fromhex(key["seed"])).public.hex() == key["public"]


def test_every_message_has_a_frame() -> None:
    assert {frame["type"] for frame in FRAMES} == set(registered())


@pytest.mark.parametrize("vector", FRAMES, ids=lambda vector: vector["message"])
def test_frames_parse(vector: dict[str, Any]) -> None:
    on_the_wire = bytes.fromhex(vector["frame"])
    reader = FrameReader(len(on_the_wire) - 4)
    reader.get_buffer()[: len(on_the_wire)] = on_the_wire
    reader.buffer_updated(len(on_the_wire))
    body = reader.next_body()
    assert body is not None
    request_id, message = decode(body)
    assert request_id == vector["request_id"]
    assert type(message) is registered()[vector["type"]]
    assert type(message).__name__ == vector["message"]
    assert GENERATOR["plain"](message) == vector["fields"]


@pytest.mark.parametrize("vector", VECTORS["records"], ids=lambda vector: vector["name"])
def test_records_parse_and_verify(vector: dict[str, Any]) -> None:
    body, signature = bytes.fromhex(vector["body"]), bytes.fromhex(vector["signature"])
    cls: type[records.SignedStruct] = getattr(records, vector["type"])
    record = cls.parse(body)
    assert record.encode() == body
    assert list(plain(record)) == list(vector["fields"])
    assert records.record_hash(body).hex() == vector["sha256"]
    label, signer = Label(vector["label"].encode()), SIGNERS[vector["signer"]]
    if isinstance(record, records.FileRecord):
        digest = records.record_hash(body)
        body, signature = unpack_signature(
            signature,
            digest,
            server=record.server,
            owner_first=bytes.fromhex(VECTORS["owner_first"]),
            generation=record.generation,
        )
    verify_signature(label, body, signature, signer)
    with pytest.raises(SignatureError):
        verify_signature(Label.LOGIN, body, signature, signer)


def test_key_ids() -> None:
    stated = VECTORS["server_id"]
    public = bytes.fromhex(stated["public"])
    assert hashlib.sha256(b"sfs/v2/server\0" + public).hexdigest() == stated["server_id"]
    for key in VECTORS["key_ids"]:
        named = key["algorithm"].encode() + b"\0" + bytes.fromhex(key["public"])
        assert hashlib.sha256(named).hexdigest() == key["key_id"]


def test_login_signature_covers_the_welcome() -> None:
    login = VECTORS["login"]
    welcome = bytes.fromhex(next(f["frame"] for f in FRAMES if f["message"] == "Welcome"))
    assert hashlib.sha256(welcome[4:]).hexdigest() == login["welcome_sha256"]
    body = bytes.fromhex(login["body"])
    signed = b"sfs/v2/login\0" + body
    sent = next(f["fields"] for f in FRAMES if f["message"] == "Login")
    assert sent["signature"] == login["signature"]
    verify_signature(Label.LOGIN, body, bytes.fromhex(sent["signature"]), SIGNERS["laptop"])
    key = SigningKey.from_seed(bytes.fromhex(VECTORS["signers"]["laptop"]["seed"]))
    assert key.sign_note(signed).hex() == login["signature"]


def test_possession_of_a_recovery_key() -> None:
    """The first statement introduces it, so the chain's rules need this signature."""
    stated = next(one for one in VECTORS["records"] if one["name"] == "first statement")
    body, signatures = bytes.fromhex(stated["body"]), (bytes.fromhex(stated["signature"]),)
    proof = VECTORS["recovery possession"]
    assert hashlib.sha256(body).hexdigest() == proof["statement_sha256"]
    assert proof["label"] == "sfs/v2/recovery-possession"
    possession = bytes.fromhex(proof["signature"])
    assert check_first(body, signatures, possession).recovery is not None
    for wrong in (b"", signatures[0], possession[::-1]):
        with pytest.raises((ChainError, SignatureError)):
            check_first(body, signatures, wrong)


def test_enrolment_proof() -> None:
    enrol = VECTORS["enrol"]
    key = hashlib.sha256(bytes.fromhex(enrol["token"])).digest()
    body = b"sfs/v2/enroll\0" + bytes.fromhex(enrol["welcome_sha256"] + enrol["statement_sha256"])
    assert body.hex() == enrol["body"]
    assert hmac.digest(key, body, "sha256").hex() == enrol["proof"]
    sent = next(f["fields"] for f in FRAMES if f["message"] == "Enroll")
    assert sent["proof"] == enrol["proof"]
    assert enrol["token"] not in json.dumps(FRAMES)


def test_endorsement() -> None:
    endorsed = VECTORS["endorsement"]
    body, signature = unpack_signature(
        bytes.fromhex(endorsed["packed"]),
        bytes.fromhex(endorsed["records_sha256"][0]),
        server=bytes.fromhex(VECTORS["server_id"]["server_id"]),
        owner_first=bytes.fromhex(VECTORS["owner_first"]),
        generation=endorsed["generation"],
    )
    assert body.hex() == endorsed["body"]
    verify_signature(Label.ENDORSEMENTS, body, signature, SIGNERS[endorsed["signer"]])


def test_the_log_chains_and_its_receipt_verifies() -> None:
    log = VECTORS["log"]
    lines = [line.encode() for line in log["lines"]]
    entries = list(auditlog.verify_chain(lines))
    assert [entry.leaf_data.hex() for entry in entries] == log["leaf_data"]
    verifier = checkpoint.Verifier.parse(log["vkey"])
    known = checkpoint.verify(log["checkpoint"].encode(), verifier)
    assert (known.size, known.root.hex()) == (len(lines), log["root"])
    leaves = [merkle.leaf_hash(entry.leaf_data) for entry in entries]
    assert merkle.root(leaves) == known.root
    inclusion, consistency = protocol_examples.INCLUSION, protocol_examples.CONSISTENCY
    merkle.verify_inclusion(leaves[3], 3, known.size, inclusion, known.root)
    merkle.verify_consistency(3, merkle.root(leaves[:3]), known.size, known.root, consistency)
    receipt = protocol_examples.RECEIPT
    shown = LogFollower(3, merkle.Frontier.load(3, protocol_examples.node).peaks)
    shown.feed(receipt.first, receipt.leaves)
    shown.check_root(known.size, known.root)
