"""Known frames, received in pieces of any size; bad lengths are refused before allocation."""

from __future__ import annotations

import ctypes
import time
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.buffers.pool import PAGE
from protocol.codec.encoding import MAX_BODY, VIEW_FROM, Buffer
from protocol.codec.errors import FrameError, LocalProtocolError
from protocol.wire.frames import (
    MAX_OPENING_BODY,
    SCRATCH,
    TLS_RECORD,
    FrameReader,
    encode_frame,
    split_for_tls_records,
)

EDGES = (1, 2, VIEW_FROM - 1, VIEW_FROM, VIEW_FROM + 1, SCRATCH - 4, SCRATCH, SCRATCH + 1, MAX_BODY)


def feed(reader: FrameReader, data: bytes, chunks: Iterable[int]) -> list[bytes]:
    """Return the bodies in `data`, received in `chunks` of given sizes and then at once."""
    found: list[bytes] = []
    sizes = iter(chunks)
    at = 0
    while at < len(data):
        buffer = reader.get_buffer()
        assert len(buffer) > 0
        n = min(next(sizes, len(data)), len(buffer), len(data) - at)
        buffer[:n] = data[at : at + n]
        at += n
        reader.buffer_updated(n)
        while (body := reader.next_body()) is not None:
            found.append(bytes(body))
    return found


def framed(bodies: Iterable[bytes]) -> bytes:
    return b"".join(len(body).to_bytes(4, "big") + body for body in bodies)


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.mark.parametrize(
    ("body", "on_the_wire"),
    [
        ([b"\xc0"], "00000001c0"),
        ([b"\x93\x15\x07", b"\xc0"], "00000004931507c0"),
        ([b"a" * 256], "00000100" + "61" * 256),
    ],
)
def test_bytes_of_frames(body: list[bytes], on_the_wire: str) -> None:
    pieces = encode_frame([*body])
    assert b"".join(pieces).hex() == on_the_wire
    assert pieces[1:] == body[1:]
    assert feed(FrameReader(1024), bytes.fromhex(on_the_wire), []) == [b"".join(body)]


def test_bulk_is_not_copied_when_framed() -> None:
    bulk = bytes(100)
    assert encode_frame([b"\x91", bulk])[-1] is bulk


@pytest.mark.parametrize("size", [0, 101])
def test_sending_a_body_past_the_limit_is_refused(size: int) -> None:
    with pytest.raises(LocalProtocolError):
        encode_frame([bytes(size)], limit=100)
    assert len(encode_frame([bytes(100)], limit=100)[0]) == 104


@pytest.mark.parametrize("size", EDGES)
def test_edges(size: int) -> None:
    bodies = [b"before", pattern(size), b"after", pattern(size)]
    for chunks in ([], [3], [SCRATCH] * 100, [size + 4 + 10 + 1], [size + 4 + 10 - 1]):
        assert feed(FrameReader(MAX_BODY), framed(bodies), chunks) == bodies


def test_byte_by_byte() -> None:
    bodies = [pattern(size) for size in (1, 70, 1, VIEW_FROM, 5, 9000, VIEW_FROM - 1, 2)]
    data = framed(bodies)
    assert feed(FrameReader(MAX_BODY), data, [1] * len(data)) == bodies


@given(
    st.lists(st.integers(1, 300) | st.sampled_from(EDGES[:-1]), max_size=12),
    st.lists(st.integers(1, 400) | st.integers(1, 2 * SCRATCH), max_size=60),
)
def test_any_chunks_give_the_same_bodies(sizes: list[int], chunks: list[int]) -> None:
    bodies = [pattern(size) for size in sizes]
    assert feed(FrameReader(MAX_BODY), framed(bodies), chunks) == bodies


def test_large_bodies_are_received_without_copies() -> None:
    reader = FrameReader(MAX_BODY)
    data = framed([pattern(MAX_BODY)])
    reader.get_buffer()[:10] = data[:10]
    reader.buffer_updated(10)
    assert reader.next_body() is None
    rest = reader.get_buffer()
    assert len(rest) == len(data) - 10
    rest[:] = data[10:]
    reader.buffer_updated(len(rest))
    body = reader.next_body()
    assert body is not None
    assert not body.readonly
    assert body == data[4:]
    feed(reader, framed([bytes(MAX_BODY), bytes(100)]), [])
    assert body == data[4:]


@pytest.mark.parametrize(
    ("header", "limit"),
    [
        ("00000000", MAX_BODY),
        ("00004001", MAX_OPENING_BODY),
        ("00101001", MAX_BODY),
        ("ffffffff", MAX_BODY),
        ("80000000", MAX_BODY),
        ("16030102", MAX_BODY),  # the beginning of a TLS handshake
        ("47455420", MAX_BODY),  # "GET "
    ],
)
def test_a_bad_length_is_refused_before_anything_is_allocated(header: str, limit: int) -> None:
    reader = FrameReader(limit)
    reader.get_buffer()  # a scratch buffer, which the first reader allocates for all
    tracemalloc.start()
    try:
        for at, byte in enumerate(bytes.fromhex(header)):
            reader.get_buffer()[0] = byte
            reader.buffer_updated(1)
            if at < 3:
                assert reader.next_body() is None
        with pytest.raises(FrameError):
            reader.next_body()
        assert tracemalloc.get_traced_memory()[1] < 4096
    finally:
        tracemalloc.stop()


def test_a_new_limit_applies_to_the_next_header() -> None:
    reader = FrameReader(10)
    data = framed([bytes(10), bytes(11)])
    reader.get_buffer()[: len(data)] = data
    reader.buffer_updated(len(data))
    assert reader.next_body() == memoryview(bytes(10))
    reader.limit = 11
    assert reader.next_body() == memoryview(bytes(11))
    with pytest.raises(FrameError):
        feed(reader, framed([bytes(12)]), [])


def test_reading_takes_linear_time() -> None:
    def seconds(size: int) -> float:
        data = framed([pattern(size)])
        started = time.process_time()
        reader = FrameReader(MAX_BODY)
        for byte in data:
            reader.get_buffer()[0] = byte
            reader.buffer_updated(1)
            reader.next_body()
        return (time.process_time() - started) / size

    # Time per byte; in a quadratic reader the sizes would differ by their factor, 32.
    assert seconds(16 * VIEW_FROM) < 8 * min(seconds(VIEW_FROM // 2) for _ in range(3))


@pytest.mark.parametrize("head", [0, 5, TLS_RECORD - 1, TLS_RECORD, TLS_RECORD + 1])
@pytest.mark.parametrize("bulk", [None, 0, 1, TLS_RECORD, 3 * TLS_RECORD + 7])
def test_the_head_shares_a_tls_record_with_the_next_bytes(head: int, bulk: int | None) -> None:
    pieces: list[Buffer] = [bytes(head)]
    if bulk is not None:
        pieces.append(b"b" * bulk)
    first, *rest = split_for_tls_records(pieces)
    assert b"".join((first, *rest)) == b"".join(pieces)
    assert len(first) == max(head, min(TLS_RECORD, head + (bulk or 0)))
    assert all(rest)
    if rest:
        assert rest[0].obj is pieces[1]


def test_long_bodies_end_at_a_page_boundary() -> None:
    bulk = 1 << 20
    for head in (1, 30, 47, 4096):
        reader = FrameReader(MAX_BODY)
        reader.get_buffer()[:4] = (head + bulk).to_bytes(4, "big")
        reader.buffer_updated(4)
        assert reader.next_body() is None
        body = reader.get_buffer()
        assert len(body) == head + bulk
        assert ctypes.addressof(ctypes.c_char.from_buffer(body[head:])) % PAGE == 0


def test_long_bodies_do_not_change_while_a_view_exists() -> None:
    reader = FrameReader(MAX_BODY)
    kept = []
    for number in range(40):
        data = bytes([number]) * (MAX_BODY - number)
        at = 0
        framed_data = framed([data])
        while at < len(framed_data):
            buffer = reader.get_buffer()
            n = min(len(buffer), len(framed_data) - at)
            buffer[:n] = framed_data[at : at + n]
            reader.buffer_updated(n)
            at += n
            if (body := reader.next_body()) is not None and number % 3 == 0:
                kept.append((number, body[-5:]))
            del body
    assert [bytes(end) for _, end in kept] == [bytes([number]) * 5 for number, _ in kept]
    assert len(kept) == 14


def test_readers_without_bytes_of_a_frame_hold_no_buffer() -> None:
    tracemalloc.start()
    try:
        readers = [FrameReader(MAX_BODY) for _ in range(200)]
        for reader in readers:
            frame = framed([b"body"])
            reader.get_buffer()[: len(frame)] = frame
            reader.buffer_updated(len(frame))
            body = reader.next_body()
            assert body is not None
            assert bytes(body) == b"body"
            assert reader.next_body() is None
        assert tracemalloc.get_traced_memory()[0] < 20 * SCRATCH
    finally:
        tracemalloc.stop()
