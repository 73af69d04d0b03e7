"""Encryption and decryption of whole blobs, for tests: the client works on single segments."""

from __future__ import annotations

from collections.abc import Iterator

from sfsc.crypto.segments import (
    Allocate,
    ByteSource,
    Decryptor,
    Encryptor,
    read_fully,
)
from sfsc.errors import Tampered


def encrypt_stream(encryptor: Encryptor, source: ByteSource) -> Iterator[memoryview]:
    """Yield all pieces of the blob of `source`, in order."""
    for portion, last in encryptor.plaintext_segments(source):
        yield encryptor.seal_segment(portion, last=last)


def decrypt_stream(
    decryptor: Decryptor, source: ByteSource, allocate: Allocate = bytearray
) -> Iterator[memoryview]:
    """Yield the plaintext of the blob in `source`, one segment at a time, from its beginning.
    Raises `Tampered` as `open_segment` does, and if `source` continues after the last segment."""
    buffer = memoryview(bytearray(max(map(decryptor.piece_size, range(decryptor.segment_count)))))
    for index in range(decryptor.segment_count):
        piece = buffer[: decryptor.piece_size(index)]
        filled = read_fully(source, piece)
        last = index == decryptor.segment_count - 1
        if last and filled == len(piece) and read_fully(source, memoryview(bytearray(1))):
            raise Tampered("bytes follow the last segment")
        yield decryptor.open_segment(index, piece[:filled], allocate)
