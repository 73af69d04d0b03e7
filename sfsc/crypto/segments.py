"""The segment cipher: Tink's AES256_GCM_HKDF_1MB streaming AEAD, byte for byte.

A blob is ``0x28 ‖ salt[32] ‖ nonce_prefix[7] ‖ segments``. With S = 1,048,576, segment 0 ends at
offset S (the 40 header bytes count into it) and every other is S bytes long, tag included; only
the last may be shorter. So segment i, with the header ahead of segment 0, is exactly the 1 MiB
*piece* i of the blob: what one message carries and one leaf of `segments_root` hashes. Segment i
is AES-256-GCM under HKDF(DEK, salt, associated data) with the nonce
``nonce_prefix ‖ u32be(i) ‖ (1 if last else 0)`` and no associated data of its own.

Why it is safe: the nonce holds place and end, so segments that are moved, dropped, repeated or
taken from another blob do not open, nor does one that was made the last or is no longer the last.
No segment's plaintext leaves this module before its tag was checked.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from protocol.codec.encoding import Buffer
from protocol.codec.values import Value
from sfsc.crypto.primitives import TAG_SIZE, Aead, segment_key
from sfsc.errors import LocalError, Tampered

SEGMENT_SIZE: Final = 1024 * 1024
HEADER_SIZE: Final = 40
_SALT_SIZE: Final = 32
_PREFIX_SIZE: Final = 7
_MAX_SEGMENTS: Final = 2**32
Allocate = Callable[[int], bytearray | memoryview]
"""Memory of so many bytes or more, to be written to."""


class ByteSource(Protocol):
    """A binary file, pipe or socket file; short reads are fine, 0 is the end."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


class Geometry(Value):
    """Where the bytes are, for one segment size. Sizes and offsets in bytes."""

    segment_size: int

    def capacity(self, index: int) -> int:
        """Plaintext bytes of segment `index` when full."""
        return self.segment_size - TAG_SIZE - (HEADER_SIZE if index == 0 else 0)

    def plaintext_offset(self, index: int) -> int:
        """Where in the plaintext segment `index` begins."""
        return 0 if index == 0 else self.capacity(0) + (index - 1) * self.capacity(1)

    def segment_at(self, offset: int) -> int:
        """The segment that holds byte `offset` of the plaintext."""
        first = self.capacity(0)
        return 0 if offset < first else 1 + (offset - first) // self.capacity(1)

    def ciphertext_size(self, plaintext_size: int) -> int:
        """Bytes of the blob of a plaintext of that size; 56 for an empty one."""
        segments = self.segment_at(max(0, plaintext_size - 1)) + 1
        return HEADER_SIZE + plaintext_size + segments * TAG_SIZE

    def segment_count(self, ciphertext_size: int) -> int:
        """Segments, hence pieces, of a blob of that size."""
        return -(-ciphertext_size // self.segment_size)

    def plaintext_size(self, ciphertext_size: int) -> int:
        """The inverse of `ciphertext_size`. Raises `Tampered` for a size that no blob has."""
        size = ciphertext_size - HEADER_SIZE - self.segment_count(ciphertext_size) * TAG_SIZE
        if size < 0 or self.ciphertext_size(size) != ciphertext_size:
            raise Tampered(f"no encrypted file has {ciphertext_size} bytes")
        return size


SEGMENTS_1MB: Final = Geometry(SEGMENT_SIZE)
ciphertext_size = SEGMENTS_1MB.ciphertext_size
plaintext_size = SEGMENTS_1MB.plaintext_size
segment_count = SEGMENTS_1MB.segment_count
segment_at = SEGMENTS_1MB.segment_at
plaintext_offset = SEGMENTS_1MB.plaintext_offset


class Encryptor:
    """Encrypts one plaintext, once, in order. `header` is the 40 bytes the blob begins with.

    Building one draws salt and nonce prefix; there is no way to begin again under them, so that
    no segment is ever encrypted twice under one key.
    """

    def __init__(
        self,
        dek: bytes,
        associated_data: bytes,
        geometry: Geometry = SEGMENTS_1MB,
        *,
        _random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        salt, self._prefix = _random(_SALT_SIZE), _random(_PREFIX_SIZE)
        self.header = bytes([HEADER_SIZE]) + salt + self._prefix
        self._aead = Aead(segment_key(dek, salt, associated_data))
        self._geometry = geometry
        self._index = 0
        self._ended = False

    @property
    def capacity(self) -> int:
        """Plaintext bytes that the next segment takes; each but the last must be full."""
        return self._geometry.capacity(self._index)

    def seal_segment(
        self,
        plaintext: Buffer,
        *,
        last: bool,
        allocate: Allocate = bytearray,
    ) -> memoryview:
        """The next piece of the blob (≤ S bytes), piece 0 with the header ahead.

        `allocate(n)` gives a buffer of n bytes or more for it, which the result is a view of.
        Raises `ValueError` where the caller broke the format: a segment after the last, one too
        long, one short of full that is not the last, or an empty one behind another.
        """
        size = len(plaintext)
        if self._ended or size > self.capacity or (size < self.capacity and not last):
            raise ValueError("not the next segment of this blob")
        if size == 0 and self._index > 0:
            raise ValueError("an empty segment behind a full one")
        if self._index >= _MAX_SEGMENTS:
            raise LocalError("a file of more than 2^32 segments cannot be encrypted")
        start = HEADER_SIZE if self._index == 0 else 0
        end = start + size + TAG_SIZE
        piece = memoryview(allocate(end))[:end]
        piece[:start] = self.header[:start]
        nonce = _nonce(self._prefix, self._index, last=last)
        self._aead.seal_into(nonce, plaintext, piece[start:])
        self._index += 1
        self._ended = last
        return piece

    def plaintext_segments(
        self, source: ByteSource, allocate: Allocate = bytearray
    ) -> Iterator[tuple[memoryview, bool]]:
        """What each segment of what `source` holds is to be made of, in order, and whether it is
        the last: to be sealed as it comes or later. In memory that `allocate` gave, as for `seal`.

        Reads one byte ahead, since only the end of `source` tells which segment is the last.
        """
        size, capacity = self._geometry.segment_size, self._geometry.capacity
        buffer = memoryview(allocate(size))
        filled = _read_fully(source, buffer[: capacity(0) + 1])
        for index in itertools.count():
            room = capacity(index)
            if filled <= room:
                yield buffer[:filled], True
                return
            following = memoryview(allocate(size))
            following[0] = buffer[room]
            yield buffer[:room], False
            buffer = following
            filled = 1 + _read_fully(source, buffer[1 : capacity(index + 1) + 1])

    def encrypt_stream(self, source: ByteSource) -> Iterator[memoryview]:
        """All pieces of the blob of what `source` holds, in order."""
        for portion, last in self.plaintext_segments(source):
            yield self.seal_segment(portion, last=last)


class Decryptor:
    """Opens the segments of one blob in any order; several threads may share it.

    `header` is the blob's first 40 bytes. `ciphertext_size` is the blob's *signed* size: it says
    which segment is the last. Raises `Tampered` for a header or size that no blob has.
    """

    def __init__(
        self,
        dek: bytes,
        associated_data: bytes,
        header: Buffer,
        ciphertext_size: int,
        geometry: Geometry = SEGMENTS_1MB,
    ) -> None:
        self.header = bytes(header)
        if len(self.header) != HEADER_SIZE or self.header[0] != HEADER_SIZE:
            raise Tampered("the encrypted file does not begin with a header")
        self.ciphertext_size = ciphertext_size
        self.plaintext_size = geometry.plaintext_size(ciphertext_size)
        self.segment_count = geometry.segment_count(ciphertext_size)
        if self.segment_count > _MAX_SEGMENTS:
            raise Tampered(f"no encrypted file has {ciphertext_size} bytes")
        salt = self.header[1 : 1 + _SALT_SIZE]
        self._prefix = self.header[1 + _SALT_SIZE :]
        self._aead = Aead(segment_key(dek, salt, associated_data))
        self._geometry = geometry

    def piece_size(self, index: int) -> int:
        """Bytes of piece `index` of this blob, tag (and for piece 0 the header) included."""
        start = index * self._geometry.segment_size
        return min(self._geometry.segment_size, self.ciphertext_size - start)

    def open_segment(
        self,
        index: int,
        piece: Buffer,
        allocate: Allocate = bytearray,
    ) -> memoryview:
        """The plaintext of segment `index`, given its whole piece (piece 0 with the header).

        `allocate(n)` gives a buffer of n bytes or more, which the result is a view of. Raises
        `Tampered` when the piece is not, bit for bit, the one that was encrypted at this place.
        """
        if not 0 <= index < self.segment_count or len(piece) != self.piece_size(index):
            raise Tampered(f"segment {index} has {len(piece)} bytes, which is not what was signed")
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
            plaintext[:] = bytes(size)  # what a forged segment decrypts to is nobody's to see
            raise Tampered(f"segment {index} does not decrypt") from exc
        return plaintext

    def decrypt_stream(
        self, source: ByteSource, allocate: Allocate = bytearray
    ) -> Iterator[memoryview]:
        """All plaintext, a segment at a time, of the blob that `source` holds from its beginning.

        Raises `Tampered` as `open` does, and for a source that ends early or goes on behind the
        last segment: only a caller who got to the end of this iterator has the whole file.
        """
        buffer = memoryview(bytearray(self._geometry.segment_size))
        for index in range(self.segment_count):
            piece = buffer[: self.piece_size(index)]
            filled = _read_fully(source, piece)
            last = index == self.segment_count - 1
            if last and filled == len(piece) and _read_fully(source, memoryview(bytearray(1))):
                raise Tampered("bytes follow the last segment")
            yield self.open_segment(index, piece[:filled], allocate)


def _nonce(prefix: bytes, index: int, *, last: bool) -> bytes:
    return prefix + index.to_bytes(4) + (b"\x01" if last else b"\x00")


def _read_fully(source: ByteSource, view: memoryview) -> int:
    """Read until `view` is full or `source` ends; how many bytes were read."""
    filled = 0
    while filled < len(view):
        count = source.readinto(view[filled:])
        if count is None:
            raise LocalError("cannot read from a source that does not block")
        if count == 0:
            break
        filled += count
    return filled
