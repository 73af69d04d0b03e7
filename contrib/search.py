"""Search files for thousands of byte strings, in one pass over each file."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

BLOCK = 8
SHORTEST = 2 * BLOCK - 1
"""Minimum length of a needle in bytes: it then covers an aligned block at any position."""


def search(needles: Iterable[bytes], paths: Iterable[Path]) -> Iterator[tuple[bytes, Path]]:
    """Yield every needle that occurs in one of the files, together with that file.

    Raises `ValueError` for a needle of less than `SHORTEST` bytes: it could be missed.
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
    """Yield `word`, its hex, and its base64 at any offset, if long enough to search for."""
    written = [word, word.hex().encode()]
    for lead in range(3):
        text = base64.b64encode(bytes(lead) + word)
        # The first and last characters also encode bits of the bytes next to the word.
        written.append(text[4 if lead else 0 : len(text) - 4])
    yield from (form for form in written if len(form) >= SHORTEST)
