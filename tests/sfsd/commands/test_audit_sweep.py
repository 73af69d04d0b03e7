"""Every kind of change to a log of 50 entries: `verify_links` names the first wrong entry.

By default the tests change one bit of a sample of bytes, and truncate to a sample of lengths.
SFS_AUDIT_SWEEP=full takes every bit of every byte, and every length (`make audit-sweep`).
"""

from __future__ import annotations

import itertools
import os
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

import pytest

from protocol.codec import merkle
from protocol.codec.errors import ProofError
from protocol.log import auditlog
from protocol.wire.messages.accounts import UserAdd
from sfsd.commands.operator_client import send_requests
from sfsd.errors import JournalDamagedError
from sfsd.log.verify import verify_links
from tests.sfsd.rewritten_log import rewritten

ENTRIES = 50
FULL = os.environ.get("SFS_AUDIT_SWEEP") == "full"
STRIDE = 1 if FULL else 97  # prime, so that over many lines every part of a line is changed


class ValidLog:
    """A root with a valid log, whose bytes tests replace and verify with `verify_links`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "logs" / "audit.jsonl"
        self.data = self.path.read_bytes()
        self.lines = self.data.splitlines()
        self.starts = list(itertools.accumulate([len(line) + 1 for line in self.lines], initial=0))

    def line_of(self, offset: int) -> int:
        return bisect_right(self.starts, offset) - 1

    def first_wrong(self, data: bytes | Iterable[bytes]) -> int | None:
        """Write these bytes or lines; return the seq of the first wrong entry, None if valid."""
        if not isinstance(data, bytes):
            data = b"".join(line + b"\n" for line in data)
        self.path.write_bytes(data)
        try:
            verify_links(self.root)
        except JournalDamagedError as exc:
            return exc.seq
        return None


@pytest.fixture
def valid(root: Path) -> ValidLog:
    names = [f"user{number:02}" for number in range(ENTRIES - 1)]
    send_requests(root, [UserAdd(name, bytes(32), 4_000_000_000, 0) for name in names])
    log = ValidLog(root)
    assert len(log.lines) == ENTRIES
    assert log.first_wrong(log.data) is None
    return log


@pytest.mark.timeout(0 if FULL else 120)
def test_every_byte(valid: ValidLog) -> None:
    for turn, offset in enumerate(range(0, len(valid.data), STRIDE)):
        for bit in range(8) if FULL else [turn % 8]:
            changed = bytearray(valid.data)
            changed[offset] ^= 1 << bit
            assert valid.first_wrong(bytes(changed)) == valid.line_of(offset), (offset, bit)


@pytest.mark.timeout(0 if FULL else 120)
def test_every_truncation(valid: ValidLog) -> None:
    edges = {start + by for start in valid.starts[1:] for by in (-2, -1, 0, 1)}
    lengths = edges | set(range(0, len(valid.data), STRIDE))
    for length in sorted(length for length in lengths if length < len(valid.data)):
        assert valid.first_wrong(valid.data[:length]) == valid.line_of(length), length


def test_dropped_doubled_inserted_and_rehashed_lines(valid: ValidLog) -> None:
    lines = valid.lines
    for at in range(ENTRIES):
        assert valid.first_wrong([*lines[:at], *lines[at + 1 :]]) == at
        assert valid.first_wrong([*lines[: at + 1], lines[at], *lines[at + 1 :]]) == at + 1
        forged = rewritten(lines, at, chain=False)
        assert valid.first_wrong([*lines[:at], forged[at], *lines[at:]]) == at
        assert valid.first_wrong([*lines[:at], b"", *lines[at:]]) == at
        assert valid.first_wrong(forged) == at


def test_every_swap_of_two_lines(valid: ValidLog) -> None:
    pairs = list(itertools.combinations(range(ENTRIES), 2))
    for one, other in pairs if FULL else [*pairs[::7], *zip(range(49), range(1, 50), strict=True)]:
        lines = list(valid.lines)
        lines[one], lines[other] = lines[other], lines[one]
        assert valid.first_wrong(lines) == one


def test_rewritten_tail(valid: ValidLog) -> None:
    """Every line chains. The daemon's tree shows the first changed entry; without it, only the
    checkpoint shows that the log was changed."""
    logs = [rewritten(valid.lines, at, chain=True) for at in range(ENTRIES)]
    assert [valid.first_wrong(log) for log in logs] == list(range(ENTRIES))
    (valid.root / "logs" / "tree" / "nodes").unlink()
    assert [valid.first_wrong(log) for log in logs] == [0] * ENTRIES


def test_rewritten_and_signed_again(valid: ValidLog) -> None:
    """The operator has the key, so only a client with an earlier checkpoint detects it."""
    old_root = merkle.root(_leaves(valid.lines))
    for at in range(ENTRIES):
        leaves = _leaves(rewritten(valid.lines, at, chain=True))
        leaves.append(merkle.leaf_hash(b"what came after"))

        def node(level: int, index: int, leaves: list[bytes] = leaves) -> bytes:
            return merkle.root(leaves[index << level : (index + 1) << level])

        proof = merkle.consistency_proof(ENTRIES, ENTRIES + 1, node)
        with pytest.raises(ProofError):
            merkle.verify_consistency(ENTRIES, old_root, len(leaves), merkle.root(leaves), proof)


def _leaves(lines: list[bytes]) -> list[bytes]:
    return [merkle.leaf_hash(auditlog.leaf_data(line)) for line in lines]
