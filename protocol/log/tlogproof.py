"""Self-contained proofs: a log line, its inclusion proof and a signed checkpoint, as text.

The format is C2SP tlog-proof (c2sp.org/tlog-proof)::

    c2sp.org/tlog-proof@v1
    extra BASE64            the line of the log, without newline
    index SEQ
    BASE64                  the inclusion proof, one 32-byte hash a line, leaf to root

    CHECKPOINT              the signed note (see `checkpoint`)

The file does not hold the leaf, because the leaf's data follows from the line. So one file shows
what happened and, with only the log's verification key, proves that the log holds it. A proof has
one form; any other spelling is refused, even if it means the same.
"""

from __future__ import annotations

from protocol.codec import merkle
from protocol.codec.base64text import from_text, to_text
from protocol.codec.errors import ProofError
from protocol.codec.values import Value
from protocol.log import auditlog, checkpoint
from protocol.log.auditlog import LogEntry
from protocol.log.checkpoint import Checkpoint, Verifier, is_size

MAX_TLOG_PROOF = 256 * 1024
"""Longest proof in bytes; the longest line in base64, the longest path and note fit in."""
_HEADER = "c2sp.org/tlog-proof@v1"
_INDEX = "index "
_EXTRA = "extra "


class TlogProof(Value):
    """Unverified content of a proof file: `path` proves `line` at leaf `index` of signed `note`."""

    index: int
    line: bytes
    path: tuple[bytes, ...]
    note: bytes

    def encode(self) -> bytes:
        """Return the bytes of the file (UTF-8)."""
        head = [_HEADER, _EXTRA + to_text(self.line), f"index {self.index}"]
        return "\n".join([*head, *map(to_text, self.path), "", ""]).encode() + self.note

    @classmethod
    def parse(cls, data: bytes) -> TlogProof:
        """Parse the bytes made by `encode`. Raises `ProofError` for any other bytes.

        `line` and `note` stay unchecked until `verify`.
        """
        if len(data) > MAX_TLOG_PROOF:
            raise ProofError(f"proof has {len(data)} bytes, at most {MAX_TLOG_PROOF} allowed")
        head, separator, note = data.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError as exc:
            raise ProofError("the proof is not text") from exc
        if not separator or lines[0] != _HEADER:
            raise ProofError(f"not a {_HEADER} file")
        if len(lines) < 3 or not lines[1].startswith(_EXTRA):
            raise ProofError("the proof has no log line")
        index = lines[2].removeprefix(_INDEX)
        if index == lines[2] or not is_size(index):
            raise ProofError("the proof has no index")
        try:
            line, *path = map(from_text, (lines[1].removeprefix(_EXTRA), *lines[3:]))
        except ValueError as exc:
            raise ProofError("bad base64 in a proof") from exc
        return cls(int(index), line, tuple(path), note)


def verify(proof: TlogProof, verifier: Verifier) -> tuple[LogEntry, Checkpoint]:
    """Verify a proof; return the entry and the checkpoint of `verifier`'s log that holds it.

    Raises `CheckpointError` if the log's key did not sign the checkpoint, `LogError` if the line is
    malformed or has another index, and `ProofError` if the log does not hold it.
    """
    signed = checkpoint.verify(proof.note, verifier)
    entry = auditlog.parse(proof.line, seq=proof.index)
    leaf = merkle.leaf_hash(entry.leaf_data)
    merkle.verify_inclusion(leaf, proof.index, signed.size, proof.path, signed.root)
    return entry, signed
