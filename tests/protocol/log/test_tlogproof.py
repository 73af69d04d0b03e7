from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import merkle
from protocol.codec.errors import CheckpointError, LogError, ProofError
from protocol.codec.values import changed
from protocol.log import auditlog, checkpoint, tlogproof
from protocol.log.auditlog import EntryDraft
from protocol.log.checkpoint import Checkpoint, Verifier
from protocol.log.tlogproof import TlogProof
from protocol.records.signatures import SigningKey

KEY = SigningKey.from_seed(bytes(range(32)))
ORIGIN = checkpoint.origin_of(b"\xab" * 32)
LOG = Verifier(ORIGIN, KEY.public)
TIME = "2026-11-25T01:02:03.004Z"


def written(count: int) -> tuple[list[bytes], list[bytes]]:
    """Return (lines, entry hashes) of a log of `count` entries."""
    lines: list[bytes] = []
    hashes = [auditlog.GENESIS]
    for seq in range(count):
        draft = EntryDraft("put", "alice", "alice", f"{seq:032x}", 1)
        line, digest = auditlog.encode(
            draft,
            seq=seq,
            time=TIME,
            salt=bytes(16),
            detail={},
            accounts={"alice": seq},
            tags=[seq.to_bytes(16)] * (seq % 3 > 0),
            prev=hashes[-1],
        )
        lines.append(line)
        hashes.append(digest)
    return lines, hashes[1:]


LINES, HASHES = written(21)


def proof_of(seq: int, size: int) -> TlogProof:
    leaves = [merkle.leaf_hash(auditlog.leaf_data(line)) for line in LINES[:size]]

    def read(level: int, index: int) -> bytes:
        return merkle.root(leaves[index << level : (index + 1) << level])

    note = checkpoint.sign(KEY, ORIGIN, size, merkle.root(leaves))
    return TlogProof(seq, LINES[seq], merkle.inclusion_proof(seq, size, read), note)


PROOF = proof_of(5, 21)
FILE = PROOF.encode()


@pytest.mark.parametrize("size", [1, 2, 3, 8, 21])
def test_every_entry_has_a_valid_proof_file(size: int) -> None:
    for seq in range(size):
        entry, signed = tlogproof.verify(TlogProof.parse(proof_of(seq, size).encode()), LOG)
        assert (entry.seq, entry.file, entry.hash) == (seq, f"{seq:032x}", HASHES[seq])
        assert (signed.origin, signed.size) == (ORIGIN, size)


def test_the_format_matches_c2sp() -> None:
    lines = FILE.decode().split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert lines[1] == "extra " + base64.b64encode(LINES[5]).decode()
    assert lines[2] == "index 5"
    end = 3 + len(PROOF.path)
    assert [base64.b64decode(line) for line in lines[3:end]] == list(PROOF.path)
    assert lines[end] == ""
    assert "\n".join(lines[end + 1 :]).encode() == PROOF.note


@given(
    st.integers(0, 10**16 - 1),
    st.binary(max_size=200),
    st.lists(st.binary(min_size=32, max_size=32), max_size=8).map(tuple),
    st.binary(max_size=200),
)
def test_round_trip(index: int, line: bytes, path: tuple[bytes, ...], note: bytes) -> None:
    proof = TlogProof(index, line, path, note)
    assert TlogProof.parse(proof.encode()) == proof


@given(st.binary(max_size=300))
def test_parsed_proofs_encode_to_the_same_bytes(data: bytes) -> None:
    for candidate in (data, FILE[: len(data)] + data):
        try:
            proof = TlogProof.parse(candidate)
        except ProofError:
            continue
        assert proof.encode() == candidate


def test_every_flipped_byte_is_refused() -> None:
    for at in range(len(FILE)):
        changes = bytearray(FILE)
        changes[at] ^= 1
        with pytest.raises((ProofError, LogError, CheckpointError)):
            tlogproof.verify(TlogProof.parse(bytes(changes)), LOG)


def test_every_truncation_is_refused() -> None:
    for length in range(len(FILE)):
        with pytest.raises((ProofError, LogError, CheckpointError)):
            tlogproof.verify(TlogProof.parse(FILE[:length]), LOG)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        FILE.replace(b"@v1", b"@v2"),
        FILE.replace(b"\n", b"\r\n"),
        FILE.replace(b"extra ", b"extra"),
        FILE.replace(b"index 5", b"index 05"),
        FILE.replace(b"index 5", b"index -5"),
        FILE.replace(b"index 5", b"index " + b"9" * 17),
        FILE.replace(b"index 5\n", b""),
        FILE.replace(b"index 5", b"index 5\n*"),
        FILE.replace(b"\n\n", b"\n"),
        FILE.replace(b"c2sp", "ć2sp".encode()),
        FILE + b"x" * tlogproof.MAX_TLOG_PROOF,
    ],
)
def test_malformed_proofs_are_refused(data: bytes) -> None:
    with pytest.raises(ProofError):
        TlogProof.parse(data)


OTHER_KEY = SigningKey.from_seed(bytes(32))
FORGED = checkpoint.sign(OTHER_KEY, ORIGIN, 21, bytes(32))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda: changed(PROOF, note=FORGED), CheckpointError),
        (lambda: changed(PROOF, note=proof_of(5, 20).note), ProofError),
        (lambda: changed(PROOF, index=6), LogError),
        (lambda: changed(PROOF, line=LINES[6]), LogError),
        (lambda: changed(PROOF, line=LINES[6], index=6), ProofError),
        (lambda: changed(PROOF, line=PROOF.line.replace(b"alice", b"mallo")), LogError),
        (lambda: changed(PROOF, path=PROOF.path[:-1]), ProofError),
        (lambda: changed(PROOF, path=PROOF.path[::-1]), ProofError),
        (lambda: changed(PROOF, path=(*PROOF.path, bytes(32))), ProofError),
        (lambda: changed(PROOF, path=(PROOF.path[0][:31], *PROOF.path[1:])), ProofError),
    ],
)
def test_wrong_content_is_refused(change: Callable[[], TlogProof], error: type[Exception]) -> None:
    with pytest.raises(error):
        tlogproof.verify(TlogProof.parse(change().encode()), LOG)


def test_the_key_of_another_log_is_refused() -> None:
    with pytest.raises(CheckpointError):
        tlogproof.verify(PROOF, Verifier(ORIGIN, OTHER_KEY.public))
    assert tlogproof.verify(PROOF, LOG)[1] == Checkpoint(
        ORIGIN, 21, merkle.root(map(merkle.leaf_hash, map(auditlog.leaf_data, LINES)))
    )


def test_a_proof_with_a_cosigned_checkpoint_verifies() -> None:
    cosignatures = [
        f"— witness{number}.example.org/w {base64.b64encode(bytes(2432)).decode()}\n".encode()
        for number in range(37)
    ]
    data = changed(PROOF, note=PROOF.note + b"".join(cosignatures)).encode()
    assert len(data) > 100_000
    entry, signed = tlogproof.verify(TlogProof.parse(data), LOG)
    assert (entry.seq, signed.size) == (5, 21)
