"""Proofs that travel alone: a log line, its inclusion proof and the signed checkpoint, as text.

The form is C2SP's (c2sp.org/tlog-proof)::

    c2sp.org/tlog-proof@v1
    extra BASE64            the line of the log, without newline
    index SEQ
    BASE64                  the inclusion proof, one 32-byte hash a line, leaf to root

    CHECKPOINT              the signed note (see `checkpoint`)

The leaf is not in the file: it follows from the line, whose hash is the leaf's data. So one file
says what happened, and with the log's verification key alone proves that the log holds it. A proof
has one form; anything else is refused, though it may mean the same.
"""

from __future__ import annotations

from protocol.codec import merkle
from protocol.codec.base64text import from_text, to_text
from protocol.codec.errors import ProofError
from protocol.codec.values import Value
from protocol.log import auditlog, checkpoint
from protocol.log.auditlog import LogEntry
from protocol.log.checkpoint import Checkpoint, Verifier, is_size

MAX_TLOG_PROOF = 128 * 1024
"""Bytes of the longest proof: the longest line in base64, the longest path and note, with room."""
_HEADER = "c2sp.org/tlog-proof@v1"
_INDEX = "index "
_EXTRA = "extra "


class TlogProof(Value):
    """What a file says, unverified: leaf `index` is the log `line`, by `path`, in signed `note`."""

    index: int
    line: bytes
    path: tuple[bytes, ...]
    note: bytes

    def encode(self) -> bytes:
        """The file. UTF-8."""
        head = [_HEADER, _EXTRA + to_text(self.line), f"index {self.index}"]
        return "\n".join([*head, *map(to_text, self.path), "", ""]).encode() + self.note

    @classmethod
    def parse(cls, data: bytes) -> TlogProof:
        """The inverse of `encode`. Raises `ProofError` for any other bytes.

        `line` and `note` are taken as they stand: `verify` judges them.
        """
        if len(data) > MAX_TLOG_PROOF:
            raise ProofError(f"a proof of {len(data)} bytes; {MAX_TLOG_PROOF} are allowed")
        head, separator, note = data.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError as exc:
            raise ProofError("a proof that is not text") from exc
        if not separator or lines[0] != _HEADER:
            raise ProofError(f"not a file of the form {_HEADER}")
        if len(lines) < 3 or not lines[1].startswith(_EXTRA):
            raise ProofError("a proof without the line of the log")
        index = lines[2].removeprefix(_INDEX)
        if index == lines[2] or not is_size(index):
            raise ProofError("a proof without the index of its line")
        path = tuple(map(_decode, lines[3:]))
        return cls(int(index), _decode(lines[1].removeprefix(_EXTRA)), path, note)


def verify(proof: TlogProof, verifier: Verifier) -> tuple[LogEntry, Checkpoint]:
    """The entry, and the checkpoint of `verifier`'s log that holds it.

    Raises `CheckpointError` for a checkpoint that the log's key did not sign, `LogError` for a line
    that is none or is another than the index says, `ProofError` where the log does not hold it.
    """
    signed = checkpoint.verify(proof.note, verifier)
    entry = auditlog.parse(proof.line, seq=proof.index)
    leaf = merkle.leaf_hash(entry.hash)
    merkle.verify_inclusion(leaf, proof.index, signed.size, proof.path, signed.root)
    return entry, signed


def _decode(text: str) -> bytes:
    try:
        return from_text(text)
    except ValueError as exc:
        raise ProofError("a proof with bad base64") from exc
