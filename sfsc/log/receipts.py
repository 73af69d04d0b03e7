"""Exported receipts: C2SP tlog-proofs (https://c2sp.org/tlog-proof), which anyone can verify with
the log's public key."""

from __future__ import annotations

from pathlib import Path

from protocol.codec.errors import CheckpointError, LogError, ProofError, RemoteProtocolError
from protocol.codec.values import Value
from protocol.log import tlogproof
from protocol.log.checkpoint import Verifier
from protocol.log.tlogproof import TlogProof
from sfsc.errors import BadReceipt, UsageError
from sfsc.trust.server_log import log_keys
from sfsc.trust.state import read_server_statements


class VerifiedProof(Value):
    """The content of a verified proof: entry `seq` of the log `origin`, which had `log_size`
    entries."""

    origin: str
    log_size: int
    seq: int
    time: str
    op: str
    actor: str
    owner: str | None
    file_id: str | None
    version: int | None


def verify_proof(data: bytes, verifiers: list[Verifier]) -> VerifiedProof:
    """Verify a tlog-proof with the first of `verifiers` that has the log's key.

    Raises `BadReceipt` for a file that is not a proof, or that proves nothing.
    """
    try:
        proof = TlogProof.parse(data)
    except ProofError as exc:
        hint = "pass a file that `sfsc put --receipt` wrote"
        raise BadReceipt(f"malformed proof: {exc}", hint) from exc
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
