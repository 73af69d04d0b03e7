"""Exported receipts: C2SP tlog-proofs (https://c2sp.org/tlog-proof), which anyone can verify with
the log's public key."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from protocol.codec import merkle
from protocol.codec.errors import (
    CheckpointError,
    EncodingError,
    LogError,
    MessageError,
    ProofError,
    RemoteProtocolError,
)
from protocol.codec.values import Value, field
from protocol.log import tlogproof
from protocol.log.checkpoint import Verifier
from protocol.log.tlogproof import TlogProof
from protocol.records.records import CONTENT_OPS, FileRecord
from sfsc.crypto.segments import SEGMENT_SIZE
from sfsc.errors import BadReceipt, LocalError, UsageError
from sfsc.trust.server_log import log_keys
from sfsc.trust.state import read_server_statements

_EXPECTED: Final = "pass a file that `sfsc put --receipt` wrote"

OTHER_CONTENT: Final = (
    "compare with another copy, or with `sfsc cat`: one of them was changed, or it is another file"
)


class VerifiedProof(Value):
    """The content of a verified proof: entry `seq` of the log `origin`, which had `log_size`
    entries. `record` is the exact bytes of the signed record in it, None if it has none."""

    origin: str
    log_size: int
    seq: int
    time: str
    op: str
    actor: str
    owner: str | None
    file_id: str | None
    version: int | None
    record: bytes | None = field(default=None, repr=False)

    def content_record(self) -> FileRecord:
        """Return the record, which describes the content of a version. Raises `BadReceipt` if the
        entry has none of a content, or one of another file."""
        record = None
        with contextlib.suppress(EncodingError, MessageError):  # such as a statement
            record = None if self.record is None else FileRecord.parse(self.record)
        if record is None or record.op not in CONTENT_OPS:
            raise BadReceipt(f"the proof is of a {self.op}, which has no content", _EXPECTED)
        named = self.owner, self.file_id, self.version
        if (record.owner, record.file_id, record.version) != named:
            raise BadReceipt("the log entry is about another file than the record in it")
        return record

    def is_of_ciphertext(self, path: str | os.PathLike[str]) -> bool:
        """Return whether the file is the encrypted content, as it lies on the server, which the
        record names: this needs no key. Raises `BadReceipt` as `content_record`, and
        `LocalError`."""
        record = self.content_record()
        try:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size != record.ciphertext_size:
                    return False
                pieces = iter(lambda: file.read(SEGMENT_SIZE), b"")
                root = merkle.root([merkle.leaf_hash(piece) for piece in pieces])
        except OSError as exc:
            raise LocalError(f"cannot read {os.fspath(path)}: {exc.strerror}") from exc
        return root == record.segments_root


def verify_proof(data: bytes, verifiers: list[Verifier]) -> VerifiedProof:
    """Verify a tlog-proof with the first of `verifiers` that has the log's key.

    Raises `BadReceipt` for a file that is not a proof, or that proves nothing.
    """
    try:
        proof = TlogProof.parse(data)
    except ProofError as exc:
        raise BadReceipt(f"malformed proof: {exc}", _EXPECTED) from exc
    failure: Exception | None = None
    for verifier in verifiers:
        try:
            entry, signed = tlogproof.verify(proof, verifier)
        except CheckpointError as exc:
            failure = exc  # try the other keys: the log's key may have changed since
            continue
        except (LogError, ProofError) as exc:
            raise BadReceipt(f"invalid proof: {exc}") from exc
        return VerifiedProof(
            signed.origin,
            signed.size,
            entry.seq,
            entry.time,
            entry.op,
            entry.actor,
            entry.owner,
            entry.file,
            entry.version,
            entry.rec,
        )
    raise BadReceipt(f"no known log key has signed this: {failure}", "pass the key with --vkey")


def load_verifiers(state: Path) -> list[Verifier]:
    """Return all keys of the server's log that the state file at `state` knows, newest first.
    Raises `LocalError`."""
    return log_keys(*read_server_statements(state))


def parse_vkey(vkey: str) -> Verifier:
    """Return the verifier for a C2SP verification key. Raises `UsageError`."""
    try:
        return Verifier.parse(vkey.strip())
    except RemoteProtocolError as exc:
        raise UsageError(str(exc), "expected NAME+HASH+KEY") from exc
