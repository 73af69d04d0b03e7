"""Padding that hides the exact size of a content.

Source: Padmé of Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication
with PURBs" (PoPETs 2019). A size of L bytes is rounded up so that its last bits are zero: all but
log2(log2 L) + 1 of the bits after the first one. So a size reveals O(log log L) bits, and a
content grows by less than 12 %, by less the larger it is.
"""

from __future__ import annotations

from sfsc.crypto.segments import ByteSource


def padded_size(size: int) -> int:
    """Return the size in bytes, at least `size`, of a content of `size` bytes with its padding. It
    never exceeds the next power of two."""
    exponent = max(size.bit_length() - 1, 0)
    mask = (1 << (exponent - exponent.bit_length())) - 1 if exponent else 0
    return (size + mask) & ~mask


class Padded:
    """A source (`ByteSource`) and the zero bytes after it."""

    def __init__(self, source: ByteSource, size: int | None = None) -> None:
        """`size` is that of source and padding together in bytes, by default `padded_size` of what
        the source has."""
        self._source = source
        self._size = size
        self._read = 0
        self._ended = False
        self.source_size = 0
        """Bytes that the source has had so far."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Read into `buffer`; return the number of bytes, 0 at the end, None as the source does."""
        if not self._ended:
            count = self._source.readinto(buffer)
            if count is None:
                return None
            self._read += count
            self.source_size += count
            if count or not len(buffer):
                return count
            self._ended = True
            if self._size is None:
                self._size = padded_size(self._read)
        count = max(0, min(len(buffer), (self._size or 0) - self._read))
        buffer[:count] = bytes(count)
        self._read += count
        return count
