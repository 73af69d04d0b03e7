"""The segment cipher: sizes at every edge, both directions with Tink, and a table of tampering."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.wire.messages.base import PIECE
from sfsc.crypto import segments
from sfsc.crypto.segments import (
    HEADER_SIZE,
    SEGMENT_SIZE,
    SEGMENTS_1MB,
    Decryptor,
    Encryptor,
    Geometry,
    open_small,
)
from sfsc.errors import LocalError, Tampered
from tests.sfsc.crypto.streams import decrypt_stream, encrypt_stream

DEK = bytes(range(32))
CONTENT = b"content-id-is-16"
KIB4 = Geometry(4096)
"""Tink's AES256_GCM_HKDF_4KB: the same format, so that many segments are cheap to test."""
TINY = Geometry(64)
S = SEGMENT_SIZE
EDGES = (0, 1, S - 57, S - 56, S - 55, S, 2 * S - 72, 2 * S - 71, 5 * 2**20 + 7)


def _plaintext(size: int) -> bytes:
    return hashlib.shake_128(b"plaintext").digest(size)


def _encrypt(plaintext: bytes, geometry: Geometry = SEGMENTS_1MB) -> bytes:
    return b"".join(encrypt_stream(Encryptor(DEK, CONTENT, geometry), io.BytesIO(plaintext)))


def _decrypt(
    blob: bytes, geometry: Geometry = SEGMENTS_1MB, dek: bytes = DEK, content: bytes = CONTENT
) -> bytes:
    decryptor = Decryptor(dek, content, blob[:HEADER_SIZE], len(blob), geometry)
    return b"".join(decrypt_stream(decryptor, io.BytesIO(blob)))


class ShortReads(io.RawIOBase):
    """A source that returns at most `step` bytes at a time, as a pipe may."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = io.BytesIO(data)
        self._step = step

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        return self._data.readinto(buffer[: self._step])


class NonBlockingSource(io.RawIOBase):
    def readinto(self, buffer: memoryview, /) -> None:  # type: ignore[override]
        return None


def test_segment_size_is_the_protocols_piece_size() -> None:
    assert SEGMENT_SIZE == PIECE


@pytest.mark.parametrize("size", EDGES)
def test_round_trip_at_the_edges(size: int) -> None:
    plaintext = _plaintext(size)
    pieces = [bytes(p) for p in encrypt_stream(Encryptor(DEK, CONTENT), io.BytesIO(plaintext))]
    blob = b"".join(pieces)
    assert {len(piece) for piece in pieces[:-1]} <= {S}
    assert len(blob) == segments.ciphertext_size(size)
    assert len(pieces) == segments.segment_count(len(blob))
    assert segments.plaintext_size(len(blob)) == size
    assert _decrypt(blob) == plaintext


@pytest.mark.parametrize(
    ("plaintext_size", "ciphertext_size", "count"),
    [
        (0, 56, 1),
        (1, 57, 1),
        (S - 56, S, 1),
        (S - 55, S + 17, 2),
        (2 * S - 72, 2 * S, 2),
        (2 * S - 71, 2 * S + 17, 3),
        (10**12, 10**12 + 40 + 16 * 953_689, 953_689),
    ],
)
def test_sizes(plaintext_size: int, ciphertext_size: int, count: int) -> None:
    assert segments.ciphertext_size(plaintext_size) == ciphertext_size
    assert segments.plaintext_size(ciphertext_size) == plaintext_size
    assert segments.segment_count(ciphertext_size) == count


@pytest.mark.parametrize("size", [0, 1, 40, 55, S + 1, S + 15, S + 16, 2 * S + 16])
def test_invalid_blob_sizes_are_refused(size: int) -> None:
    with pytest.raises(Tampered):
        segments.plaintext_size(size)


@given(size=st.integers(0, 2**45))
def test_sizes_are_inverse(size: int) -> None:
    assert segments.plaintext_size(segments.ciphertext_size(size)) == size


@given(offset=st.integers(0, 2**45))
def test_segment_of_an_offset(offset: int) -> None:
    index = segments.segment_at(offset)
    assert segments.plaintext_offset(index) <= offset < segments.plaintext_offset(index + 1)


@given(plaintext=st.binary(max_size=400), step=st.integers(1, 100))
def test_round_trip_from_short_reads(plaintext: bytes, step: int) -> None:
    blob = b"".join(encrypt_stream(Encryptor(DEK, CONTENT, TINY), ShortReads(plaintext, step)))
    assert len(blob) == TINY.ciphertext_size(len(plaintext))
    decryptor = Decryptor(DEK, CONTENT, blob[:HEADER_SIZE], len(blob), TINY)
    assert b"".join(decrypt_stream(decryptor, ShortReads(blob, step))) == plaintext


@given(plaintext=st.binary(min_size=1, max_size=400), data=st.data())
def test_random_access(plaintext: bytes, data: st.DataObject) -> None:
    blob = _encrypt(plaintext, TINY)
    decryptor = Decryptor(DEK, CONTENT, blob[:HEADER_SIZE], len(blob), TINY)
    offset = data.draw(st.integers(0, len(plaintext) - 1))
    index = TINY.segment_at(offset)
    piece = blob[index * 64 : (index + 1) * 64]
    assert decryptor.piece_size(index) == len(piece)
    inside = offset - TINY.plaintext_offset(index)
    assert decryptor.open_segment(index, piece)[inside] == plaintext[offset]


@given(plaintext=st.binary(max_size=200), bit=st.integers(0))
def test_every_flipped_bit_is_detected(plaintext: bytes, bit: int) -> None:
    blob = bytearray(_encrypt(plaintext, TINY))
    bit %= len(blob) * 8
    blob[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Tampered):
        _decrypt(bytes(blob), TINY)


@given(plaintext=st.binary(max_size=200), data=st.data())
def test_every_truncation_is_detected(plaintext: bytes, data: st.DataObject) -> None:
    blob = _encrypt(plaintext, TINY)
    cut = blob[: data.draw(st.integers(0, len(blob) - 1))]
    with pytest.raises(Tampered):
        _decrypt(cut, TINY)
    decryptor = Decryptor(DEK, CONTENT, blob[:HEADER_SIZE], len(blob), TINY)
    with pytest.raises(Tampered):
        list(decrypt_stream(decryptor, io.BytesIO(cut)))


def _swap(blob: bytes) -> bytes:
    return blob[:64] + blob[128:192] + blob[64:128] + blob[192:]


TAMPERINGS: dict[str, Callable[[bytes], bytes]] = {
    "one byte more": lambda blob: blob + b"\0",
    "an empty segment more": lambda blob: blob + bytes(16),
    "a segment more": lambda blob: blob + blob[192:],
    "the last segment away": lambda blob: blob[:192],
    "a middle segment away": lambda blob: blob[:64] + blob[128:],
    "two segments swapped": _swap,
    "a segment twice": lambda blob: blob[:128] + blob[64:128] + blob[192:],
    "another salt": lambda blob: blob[:1] + bytes(32) + blob[33:],
    "another nonce prefix": lambda blob: blob[:33] + bytes(7) + blob[40:],
    "another header length": lambda blob: b"\x29" + blob[1:],
    "the header alone": lambda blob: blob[:40],
    "nothing": lambda blob: b"",
    "header of another blob": lambda blob: _encrypt(_plaintext(152), TINY)[:40] + blob[40:],
    "tail of another blob": lambda blob: blob[:64] + _encrypt(_plaintext(152), TINY)[64:],
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_with_a_blob_whose_last_segment_is_full(name: str) -> None:
    plaintext = _plaintext(8 + 3 * 48)
    blob = _encrypt(plaintext, TINY)
    assert len(blob) == 256
    assert _decrypt(blob, TINY) == plaintext
    changed = TAMPERINGS[name](blob)
    assert changed != blob
    with pytest.raises(Tampered):
        _decrypt(changed, TINY)
    decryptor = Decryptor(DEK, CONTENT, blob[:HEADER_SIZE], len(blob), TINY)
    with pytest.raises(Tampered):
        list(decrypt_stream(decryptor, io.BytesIO(changed)))


@pytest.mark.parametrize("size", [0, 1, 999, SEGMENTS_1MB.capacity(0)])
def test_a_whole_small_blob(size: int) -> None:
    """It opens as with a decryptor; changed in any part, longer, shorter or of another content, not
    at all."""
    blob = _encrypt(_plaintext(size))
    assert open_small(DEK, CONTENT, blob) == _plaintext(size)
    places = (0, 1, 33, HEADER_SIZE, len(blob) - 1)
    changed = [blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :] for at in places]
    for false in (*changed, blob[:-1], blob + b"\0", blob[: HEADER_SIZE + 1], b""):
        with pytest.raises(Tampered):
            open_small(DEK, CONTENT, false)
    for dek, content in ((CONTENT * 2, CONTENT), (DEK, DEK[:16])):
        with pytest.raises(Tampered):
            open_small(dek, content, blob)


def test_a_segment_that_is_not_the_last_is_no_small_blob() -> None:
    blob = _encrypt(_plaintext(SEGMENTS_1MB.capacity(0) + 1))
    with pytest.raises(Tampered):
        open_small(DEK, CONTENT, blob[:SEGMENT_SIZE])


def test_another_key_or_content_id_does_not_open() -> None:
    blob = _encrypt(b"secret", TINY)
    with pytest.raises(Tampered):
        _decrypt(blob, TINY, dek=bytes(32))
    with pytest.raises(Tampered):
        _decrypt(blob, TINY, content=b"content-id-is-17")


def test_forged_segment_is_wiped() -> None:
    plaintext = _plaintext(8 + 48 + 48)
    blob = bytearray(_encrypt(plaintext, TINY))
    blob[64 + 47] ^= 1  # the last plaintext byte of segment 1
    decryptor = Decryptor(DEK, CONTENT, blob[:HEADER_SIZE], len(blob), TINY)
    buffers: list[bytearray] = []

    def allocate(size: int) -> bytearray:
        buffers.append(bytearray(b"\xaa" * size))
        return buffers[-1]

    opened = decrypt_stream(decryptor, io.BytesIO(blob), allocate)
    assert next(opened) == plaintext[:8]
    with pytest.raises(Tampered):
        next(opened)
    assert buffers == [plaintext[:8], bytes(48)]


@pytest.mark.parametrize("index", [-1, 2, 2**32])
def test_segment_index_out_of_range(index: int) -> None:
    blob = _encrypt(bytes(20), TINY)
    decryptor = Decryptor(DEK, CONTENT, blob[:HEADER_SIZE], len(blob), TINY)
    with pytest.raises(Tampered):
        decryptor.open_segment(index, blob[64:])


def test_more_than_2_to_32_segments_are_refused() -> None:
    with pytest.raises(Tampered):
        Decryptor(DEK, CONTENT, b"\x28" + bytes(39), 64 * (2**32 + 1), TINY)


def test_blobs_of_one_plaintext_differ() -> None:
    assert _encrypt(b"same", TINY) != _encrypt(b"same", TINY)


def test_caller_errors_are_value_errors() -> None:
    encryptor = Encryptor(DEK, CONTENT, TINY)
    for plaintext, last in ((bytes(9), False), (bytes(9), True), (bytes(7), False)):
        with pytest.raises(ValueError):
            encryptor.seal_segment(plaintext, last=last)
    encryptor.seal_segment(bytes(8), last=False)
    with pytest.raises(ValueError):
        encryptor.seal_segment(b"", last=True)
    encryptor.seal_segment(bytes(48), last=True)
    with pytest.raises(ValueError):
        encryptor.seal_segment(b"", last=True)


def test_pieces_use_the_callers_buffers() -> None:
    pool = [bytearray(100) for _ in range(6)]
    encryptor = Encryptor(DEK, CONTENT, TINY)
    portions = list(encryptor.plaintext_segments(io.BytesIO(bytes(60)), lambda _: pool.pop()))
    views = [
        encryptor.seal_segment(portion, last=last, allocate=lambda _: pool.pop())
        for portion, last in portions
    ]
    assert _decrypt(b"".join(views), TINY) == bytes(60)
    assert not pool


@pytest.mark.parametrize("size", [0, 8, 9, 56, 57, 60])
def test_plaintext_segments_read_one_byte_ahead(size: int) -> None:
    source = io.BytesIO(bytes(range(size)))
    portions, ends = list[bytes](), list[bool]()
    for portion, last in Encryptor(DEK, CONTENT, TINY).plaintext_segments(source):
        portions.append(bytes(portion))
        ends.append(last)
        assert source.tell() == min(size, len(b"".join(portions)) + 1)
    assert b"".join(portions) == bytes(range(size))
    assert ends == [False] * (len(ends) - 1) + [True]


def test_nonblocking_source_is_refused() -> None:
    with pytest.raises(LocalError):
        list(encrypt_stream(Encryptor(DEK, CONTENT), NonBlockingSource()))


class KeptBytesIO(io.BytesIO):
    """A buffer whose contents stay readable after close."""

    kept = b""

    def close(self) -> None:
        if not self.closed:
            self.kept = self.getvalue()
        super().close()


def _tink(segment_size: int) -> Any:  # noqa: ANN401  # Tink has no types
    """Google's streaming AEAD under our DEK; the test is skipped if Tink has no wheel."""
    pytest.importorskip("tink")
    from tink import (  # type: ignore[import-untyped]
        proto_keyset_format,
        secret_key_access,
        streaming_aead,
    )
    from tink.proto import (  # type: ignore[import-untyped]
        aes_gcm_hkdf_streaming_pb2,
        common_pb2,
        tink_pb2,
    )

    streaming_aead.register()
    key = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(key_value=DEK)
    key.params.ciphertext_segment_size = segment_size
    key.params.derived_key_size = 32
    key.params.hkdf_hash_type = common_pb2.SHA256
    keyset = tink_pb2.Keyset(primary_key_id=1)
    entry = keyset.key.add(key_id=1, status=tink_pb2.ENABLED, output_prefix_type=tink_pb2.RAW)
    entry.key_data.type_url = "type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey"
    entry.key_data.value = key.SerializeToString()
    entry.key_data.key_material_type = tink_pb2.KeyData.SYMMETRIC
    handle = proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    return handle.primitive(streaming_aead.StreamingAead)


@pytest.mark.parametrize(
    ("geometry", "size"),
    [(SEGMENTS_1MB, size) for size in EDGES]
    + [(KIB4, size) for size in (0, 4039, 4040, 4041, 8120, 8121, 50_000)],
)
def test_tink_both_ways(geometry: Geometry, size: int) -> None:
    """Tink opens our blobs, and we open Tink's."""
    tink = _tink(geometry.segment_size)
    plaintext = _plaintext(size)
    blob = _encrypt(plaintext, geometry)
    with tink.new_decrypting_stream(io.BytesIO(blob), CONTENT) as opened:
        assert opened.read() == plaintext
    theirs = KeptBytesIO()
    with tink.new_encrypting_stream(theirs, CONTENT) as sealing:
        sealing.write(plaintext)
    assert _decrypt(theirs.kept, geometry) == plaintext
