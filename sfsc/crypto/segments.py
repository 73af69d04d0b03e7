"""Segment cipher: Tink's AES256_GCM_HKDF_1MB streaming AEAD, byte for byte.

A blob is ``0x28 ‖ salt[32] ‖ nonce_prefix[7] ‖ segments``. With S = 1,048,576, segment 0 ends at
offset S (the 40 header bytes count into it) and every other segment is S bytes long, tag included;
only the last may be shorter. So segment i, with the header before segment 0, is exactly the 1 MiB
*piece* i of the blob: what one message carries and one leaf of `segments_root` hashes. Segment i is
AES-256-GCM under HKDF(DEK, salt, associated data) with the nonce ``nonce_prefix ‖ u32be(i) ‖ (1 if
last else 0)`` and no associated data of its own.

Why it is safe: the nonce encodes position and end. Segments that are moved, dropped, repeated or
taken from another blob do not open; neither does a segment that was made, or is no longer, the
last. No plaintext leaves this module before its tag is checked.
"""

from __future__ import annotations

import hmac
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from protocol.codec.encoding import Buffer
from protocol.codec.merkle import leaf_hash
from protocol.codec.values import Value
from sfsc.crypto.primitives import TAG_SIZE, Aead, segment_key
from sfsc.errors import LocalError, Tampered

SEGMENT_SIZE: Final = 1024 * 1024
HEADER_SIZE: Final = 40
_SALT_SIZE: Final = 32
_PREFIX_SIZE: Final = 7
_MAX_SEGMENTS: Final = 2**32
Allocate = Callable[[int], bytearray | memoryview]
"""Allocate a writable buffer of at least the given number of bytes."""


class ByteSource(Protocol):
    """A binary file, pipe or socket file. Short reads are fine; 0 is the end."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


class Geometry(Value):
    """Layout of blobs for one segment size. All sizes and offsets are in bytes."""

    segment_size: int

    def capacity(self, index: int) -> int:
        """Return the plaintext size of a full segment `index`."""
        return self.segment_size - TAG_SIZE - (HEADER_SIZE if index == 0 else 0)

    def plaintext_offset(self, index: int) -> int:
        """Return the offset of segment `index` in the plaintext."""
        return 0 if index == 0 else self.capacity(0) + (index - 1) * self.capacity(1)

    def segment_at(self, offset: int) -> int:
        """Return the index of the segment that holds byte `offset` of the plaintext."""
        first = self.capacity(0)
        return 0 if offset < first else 1 + (offset - first) // self.capacity(1)

    def ciphertext_size(self, plaintext_size: int) -> int:
        """Return the blob size for a plaintext size; 56 for an empty plaintext."""
        segments = self.segment_at(max(0, plaintext_size - 1)) + 1
        return HEADER_SIZE + plaintext_size + segments * TAG_SIZE

    def segment_count(self, ciphertext_size: int) -> int:
        """Return the number of segments, and so of pieces, of a blob."""
        return -(-ciphertext_size // self.segment_size)

    def plaintext_size(self, ciphertext_size: int) -> int:
        """Return the plaintext size of a blob. Raises `Tampered` if no blob has this size."""
        size = ciphertext_size - HEADER_SIZE - self.segment_count(ciphertext_size) * TAG_SIZE
        if size < 0 or self.ciphertext_size(size) != ciphertext_size:
            raise Tampered(f"impossible size of an encrypted file: {ciphertext_size} bytes")
        return size


SEGMENTS_1MB: Final = Geometry(SEGMENT_SIZE)
ciphertext_size: Callable[[int], int] = SEGMENTS_1MB.ciphertext_size
plaintext_size: Callable[[int], int] = SEGMENTS_1MB.plaintext_size
segment_count: Callable[[int], int] = SEGMENTS_1MB.segment_count
segment_at: Callable[[int], int] = SEGMENTS_1MB.segment_at
plaintext_offset: Callable[[int], int] = SEGMENTS_1MB.plaintext_offset


class SegmentChanged(Exception):
    """A resumed blob has another segment than before: it must begin again, under a fresh key."""


class Encryptor:
    """Encrypts one plaintext, once, in order. `header` is the blob's first 40 bytes. The
    constructor draws salt and nonce prefix, and nothing resets them, so no segment is ever
    encrypted twice under one key; `resume` only makes the same segments again."""

    def __init__(
        self,
        dek: bytes,
        associated_data: bytes,
        geometry: Geometry = SEGMENTS_1MB,
        *,
        _random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        salt, self._prefix = _random(_SALT_SIZE), _random(_PREFIX_SIZE)
        self.header: bytes = bytes([HEADER_SIZE]) + salt + self._prefix
        self._aead = Aead(segment_key(dek, salt, associated_data))
        self._geometry = geometry
        self._index = 0
        self._ended = False
        self._made: Sequence[bytes] = ()

    @classmethod
    def resume(
        cls, dek: bytes, associated_data: bytes, header: bytes, leaves: Sequence[bytes]
    ) -> Encryptor:
        """Return an encryptor that begins again, for a blob with this 40-byte header of which the
        pieces with these leaf hashes (32 bytes each) may exist. `seal_segment` returns a piece in
        their place only if it has that hash: another one would reuse its nonce."""
        drawn = iter((header[1 : 1 + _SALT_SIZE], header[1 + _SALT_SIZE :]))
        made = cls(dek, associated_data, _random=lambda _size: next(drawn))
        made._made = tuple(leaves)
        return made

    @property
    def capacity(self) -> int:
        """Plaintext size of the next segment. Only the last segment may be shorter."""
        return self._geometry.capacity(self._index)

    def seal_segment(
        self, plaintext: Buffer, *, last: bool, allocate: Allocate = bytearray
    ) -> memoryview:
        """Return the next piece of the blob (at most S bytes); piece 0 starts with the header.

        The result is a view of a buffer from `allocate`. Raises `ValueError` if the caller violates
        the format: a segment after the last, a segment that is too long, a short segment that is
        not the last, or an empty segment after another. Raises `SegmentChanged` if a resumed blob
        has another piece here.
        """
        size = len(plaintext)
        if self._ended or size > self.capacity or (size < self.capacity and not last):
            raise ValueError("not the next segment of this blob")
        if size == 0 and self._index > 0:
            raise ValueError("an empty segment after a full one")
        if self._index >= _MAX_SEGMENTS:
            raise LocalError("a file of more than 2^32 segments cannot be encrypted")
        start = HEADER_SIZE if self._index == 0 else 0
        end = start + size + TAG_SIZE
        piece = memoryview(allocate(end))[:end]
        piece[:start] = self.header[:start]
        nonce = _nonce(self._prefix, self._index, last=last)
        self._aead.seal_into(nonce, plaintext, piece[start:])
        made = self._made[self._index] if self._index < len(self._made) else None
        if made is not None and not hmac.compare_digest(leaf_hash(piece), made):
            piece[:] = bytes(end)  # nobody must get a second piece under one nonce
            self._ended = True
            raise SegmentChanged
        self._index += 1
        self._ended = last
        return piece

    def plaintext_segments(
        self, source: ByteSource, allocate: Allocate = bytearray
    ) -> Iterator[tuple[memoryview, bool]]:
        """Yield the plaintext of each segment of `source` in order, and whether it is the last. The
        caller seals it now or later; buffers come from `allocate`, as for `seal_segment`. Reads one
        byte ahead, because only the end of `source` shows which segment is the last."""
        size, capacity = self._geometry.segment_size, self._geometry.capacity
        buffer = memoryview(allocate(size))
        filled = read_fully(source, buffer[: capacity(0) + 1])
        for index in itertools.count():
            size_limit = capacity(index)
            if filled <= size_limit:
                yield buffer[:filled], True
                return
            following = memoryview(allocate(size))
            following[0] = buffer[size_limit]
            yield buffer[:size_limit], False
            buffer = following
            filled = 1 + read_fully(source, buffer[1 : capacity(index + 1) + 1])


class Decryptor:
    """Opens the segments of one blob in any order. Threads may share it. `header` is the blob's
    first 40 bytes. `ciphertext_size` is the blob's *signed* size: it determines which segment is
    the last. Raises `Tampered` for an invalid header or size."""

    def __init__(
        self,
        dek: bytes,
        associated_data: bytes,
        header: Buffer,
        ciphertext_size: int,
        geometry: Geometry = SEGMENTS_1MB,
    ) -> None:
        self.header: bytes = bytes(header)
        if len(self.header) != HEADER_SIZE or self.header[0] != HEADER_SIZE:
            raise Tampered("the encrypted file does not begin with a header")
        self.ciphertext_size = ciphertext_size
        self.plaintext_size: int = geometry.plaintext_size(ciphertext_size)
        self.segment_count: int = geometry.segment_count(ciphertext_size)
        if self.segment_count > _MAX_SEGMENTS:
            raise Tampered(f"impossible size of an encrypted file: {ciphertext_size} bytes")
        salt = self.header[1 : 1 + _SALT_SIZE]
        self._prefix = self.header[1 + _SALT_SIZE :]
        self._aead = Aead(segment_key(dek, salt, associated_data))
        self._geometry = geometry

    def piece_size(self, index: int) -> int:
        """Return the size of piece `index`, tag (and for piece 0 the header) included."""
        start = index * self._geometry.segment_size
        return min(self._geometry.segment_size, self.ciphertext_size - start)

    def open_segment(self, index: int, piece: Buffer, allocate: Allocate = bytearray) -> memoryview:
        """Return the plaintext of segment `index`, given its whole piece (piece 0 with the header).
        The result is a view of a buffer from `allocate`. Raises `Tampered` if the piece is not, bit
        for bit, the one that was encrypted at this index."""
        if not 0 <= index < self.segment_count or len(piece) != self.piece_size(index):
            raise Tampered(f"segment {index} does not have its signed size: {len(piece)} bytes")
        start = HEADER_SIZE if index == 0 else 0
        view = memoryview(piece)
        if view[:start] != self.header[:start]:
            raise Tampered("the encrypted file's header has changed")
        size = len(piece) - start - TAG_SIZE
        plaintext = memoryview(allocate(size))[:size]
        nonce = _nonce(self._prefix, index, last=index == self.segment_count - 1)
        try:
            self._aead.open_into(nonce, view[start:], plaintext)
        except Tampered as exc:
            plaintext[:] = bytes(size)  # never expose the plaintext of a forged segment
            raise Tampered(f"segment {index} does not decrypt") from exc
        return plaintext


def open_small(dek: bytes, associated_data: bytes, blob: bytes) -> bytes:
    """Return the plaintext of a whole blob of one segment, as `Decryptor` does; of a longer one
    nothing opens. Raises `Tampered`."""
    if len(blob) < HEADER_SIZE + TAG_SIZE or blob[0] != HEADER_SIZE:
        raise Tampered("the encrypted file does not begin with a header")
    key = segment_key(dek, blob[1 : 1 + _SALT_SIZE], associated_data)
    nonce = _nonce(blob[1 + _SALT_SIZE : HEADER_SIZE], 0, last=True)
    try:
        return Aead(key).open(nonce, memoryview(blob)[HEADER_SIZE:])
    except Tampered as exc:
        raise Tampered("segment 0 does not decrypt") from exc


def _nonce(prefix: bytes, index: int, *, last: bool) -> bytes:
    return prefix + index.to_bytes(4) + (b"\x01" if last else b"\x00")


def read_fully(source: ByteSource, view: memoryview) -> int:
    """Read until `view` is full or `source` ends. Return the number of bytes read."""
    filled = 0
    while filled < len(view):
        count = source.readinto(view[filled:])
        if count is None:
            raise LocalError("cannot read from a non-blocking source")
        if count == 0:
            break
        filled += count
    return filled
