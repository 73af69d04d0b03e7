"""A log of 50 entries changed in every way there is: `verify_links` names the first wrong entry.

By default one bit of a sample of bytes and a sample of lengths; SFS_AUDIT_SWEEP=full takes every
bit of every byte, and every length (`make audit-sweep`).
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
from tests.sfsd.rewriting import rewritten

ENTRIES = 50
FULL = os.environ.get("SFS_AUDIT_SWEEP") == "full"
STRIDE = 1 if FULL else 97  # prime: over the lines, it meets every part of one


class Sound:
    """A root with a sound log, and what `verify_links` says once other bytes stand in its place."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "logs" / "audit.jsonl"
        self.data = self.path.read_bytes()
        self.lines = self.data.splitlines()
        self.starts = list(itertools.accumulate([len(line) + 1 for line in self.lines], initial=0))

    def line_of(self, offset: int) -> int:
        return bisect_right(self.starts, offset) - 1

    def wrong(self, data: bytes | Iterable[bytes]) -> int | None:
        """The seq that is named for these bytes or lines, None where they are found sound."""
        if not isinstance(data, bytes):
            data = b"".join(line + b"\n" for line in data)
        self.path.write_bytes(data)
        try:
            verify_links(self.root)
        except JournalDamagedError as exc:
            return exc.seq
        return None


@pytest.fixture
def sound(root: Path) -> Sound:
    names = [f"user{number:02}" for number in range(ENTRIES - 1)]
    send_requests(root, [UserAdd(name, bytes(32), 4_000_000_000, 0) for name in names])
    log = Sound(root)
    assert len(log.lines) == ENTRIES
    assert log.wrong(log.data) is None
    return log


@pytest.mark.timeout(0 if FULL else 120)
def test_every_byte(sound: Sound) -> None:
    for turn, offset in enumerate(range(0, len(sound.data), STRIDE)):
        for bit in range(8) if FULL else [turn % 8]:
            changed = bytearray(sound.data)
            changed[offset] ^= 1 << bit
            assert sound.wrong(bytes(changed)) == sound.line_of(offset), (offset, bit)


@pytest.mark.timeout(0 if FULL else 120)
def test_every_truncation(sound: Sound) -> None:
    edges = {start + by for start in sound.starts[1:] for by in (-2, -1, 0, 1)}
    lengths = edges | set(range(0, len(sound.data), STRIDE))
    for length in sorted(length for length in lengths if length < len(sound.data)):
        assert sound.wrong(sound.data[:length]) == sound.line_of(length), length


def test_a_line_dropped_doubled_inserted_or_hashed_anew(sound: Sound) -> None:
    lines = sound.lines
    for at in range(ENTRIES):
        assert sound.wrong([*lines[:at], *lines[at + 1 :]]) == at
        assert sound.wrong([*lines[: at + 1], lines[at], *lines[at + 1 :]]) == at + 1
        forged = rewritten(lines, at, chain=False)
        assert sound.wrong([*lines[:at], forged[at], *lines[at:]]) == at
        assert sound.wrong([*lines[:at], b"", *lines[at:]]) == at
        assert sound.wrong(forged) == at


def test_every_two_lines_exchanged(sound: Sound) -> None:
    pairs = list(itertools.combinations(range(ENTRIES), 2))
    for one, other in pairs if FULL else [*pairs[::7], *zip(range(49), range(1, 50), strict=True)]:
        lines = list(sound.lines)
        lines[one], lines[other] = lines[other], lines[one]
        assert sound.wrong(lines) == one


def test_rewritten_from_any_entry_on(sound: Sound) -> None:
    """Every line chains. The daemon's tree says from where on; without it, the checkpoint says
    that it is not what was signed."""
    logs = [rewritten(sound.lines, at, chain=True) for at in range(ENTRIES)]
    assert [sound.wrong(log) for log in logs] == list(range(ENTRIES))
    (sound.root / "logs" / "tree" / "nodes").unlink()
    assert [sound.wrong(log) for log in logs] == [0] * ENTRIES


def test_rewritten_and_signed_anew(sound: Sound) -> None:
    """The operator has the key, so only one who saw an earlier checkpoint can tell; he does."""
    old_root = merkle.root(_leaves(sound.lines))
    for at in range(ENTRIES):
        leaves = _leaves(rewritten(sound.lines, at, chain=True))
        leaves.append(merkle.leaf_hash(b"what came after"))

        def node(level: int, index: int, leaves: list[bytes] = leaves) -> bytes:
            return merkle.root(leaves[index << level : (index + 1) << level])

        proof = merkle.consistency_proof(ENTRIES, ENTRIES + 1, node)
        with pytest.raises(ProofError):
            merkle.verify_consistency(ENTRIES, old_root, len(leaves), merkle.root(leaves), proof)


def _leaves(lines: list[bytes]) -> list[bytes]:
    return [merkle.leaf_hash(auditlog.line_hash(line)) for line in lines]
