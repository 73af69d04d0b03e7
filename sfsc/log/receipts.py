"""Receipts that travel: a C2SP tlog-proof checked anywhere, with the log's public key alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from protocol.codec.errors import CheckpointError, LogError, ProofError, RemoteProtocolError
from protocol.codec.values import Value
from protocol.log import tlogproof
from protocol.log.checkpoint import Verifier, origin_of
from protocol.log.tlogproof import TlogProof
from protocol.records.records import ServerStatement, server_id
from sfsc.errors import BadReceipt, LocalError, UsageError
from sfsc.trust.state import read_server_statements


class Proven(Value):
    """What a proof says, verified: entry `seq` of the log `origin`, of `log_size` entries then."""

    origin: str
    log_size: int
    seq: int
    time: str
    op: str
    actor: str
    owner: str | None
    file_id: str | None
    version: int | None


def check(data: bytes, verifiers: list[Verifier]) -> Proven:
    """Verify a tlog-proof by the first of `verifiers` whose log it is of.

    Raises `BadReceipt` for a file that is none, or proves nothing.
    """
    try:
        proof = TlogProof.parse(data)
    except ProofError as exc:
        raise BadReceipt(f"this is no proof: {exc}", "it should be a `put --receipt`") from exc
    failure: Exception | None = None
    for verifier in verifiers:
        try:
            entry, signed = tlogproof.verify(proof, verifier)
        except CheckpointError as exc:
            failure = exc  # perhaps by another key: the log's may have changed since
            continue
        except (LogError, ProofError) as exc:
            raise BadReceipt(f"the proof does not hold: {exc}") from exc
        return Proven(
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
    raise BadReceipt(f"no known key of a log has signed this: {failure}", "see --vkey")


def known_verifiers(state: Path) -> list[Verifier]:
    """The keys of the server's log that the state file at `state` has ever seen, newest first.
    Raises `LocalError`."""
    pin, bodies = read_server_statements(state)
    try:
        return verifiers_in(pin, bodies)
    except RemoteProtocolError as exc:
        raise LocalError(f"{state} is damaged: {exc}") from exc


def verifiers_in(pin: bytes, bodies: Iterable[bytes]) -> list[Verifier]:
    """The keys of the server's log that these statements name, in their order.

    They were kept by this user; each must still be of the server that is pinned. Raises
    RemoteProtocolError.
    """
    statements = [ServerStatement.parse(body) for body in bodies]
    ours = [one for one in statements if server_id(one.server_pub) == pin]
    found = [Verifier.parse(one.log_vkey) for one in ours]
    return [one for one in found if one.name == origin_of(pin)]


def verifier_of(vkey: str) -> Verifier:
    """Raises `UsageError` for text that is no C2SP verification key."""
    try:
        return Verifier.parse(vkey.strip())
    except RemoteProtocolError as exc:
        raise UsageError(str(exc), "it looks like NAME+HASH+KEY") from exc
