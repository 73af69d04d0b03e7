"""Looks for thousands of byte strings in whatever lies in a folder, in one pass over each file."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

BLOCK = 8
SHORTEST = 2 * BLOCK - 1
"""Bytes that a needle must have: then it covers one aligned block wherever it stands."""


def search(needles: Iterable[bytes], paths: Iterable[Path]) -> Iterator[tuple[bytes, Path]]:
    """Every needle that stands anywhere in one of the files, with that file.

    Raises `ValueError` for a needle below `SHORTEST` bytes: it could be missed.
    """
    by_block: dict[int, set[bytes]] = {}
    for needle in needles:
        if len(needle) < SHORTEST:
            raise ValueError(f"a needle of {len(needle)} bytes, {SHORTEST} are needed")
        for offset in range(BLOCK):
            block = int.from_bytes(needle[offset : offset + BLOCK], sys.byteorder)
            by_block.setdefault(block, set()).add(needle)
    wanted = frozenset(by_block)
    for path in paths:
        held = path.read_bytes()
        padded = memoryview(held + bytes(-len(held) % BLOCK)).cast("Q")
        candidates: set[bytes] = set()
        for block in wanted.intersection(padded):
            candidates |= by_block[block]
        for needle in candidates:
            if needle in held:
                yield needle, path


def forms(word: bytes) -> Iterator[bytes]:
    """`word`, its hex, and its base64 at any place in a text; those long enough to look for."""
    written = [word, word.hex().encode()]
    for lead in range(3):
        text = base64.b64encode(bytes(lead) + word)
        # The first and last characters mix with the neighbours' bits.
        written.append(text[4 if lead else 0 : len(text) - 4])
    yield from (form for form in written if len(form) >= SHORTEST)
