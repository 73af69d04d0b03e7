"""Padding: how much, and that it reads as zero bytes behind the source."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfsc.crypto.padding import Padded, padded_size

SIZES = st.integers(0, 2**48)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 0),
        (1, 1),
        (7, 7),
        (8, 8),
        (9, 10),
        (100, 104),
        (1000, 1024),
        (1025, 1088),
        (65_537, 67_584),
        (1_000_000, 1_015_808),
        (2**20, 2**20),
        (2**20 + 1, 2**20 + 2**15),
        (10**9, 1_006_632_960),
    ],
)
def test_sizes(size: int, expected: int) -> None:
    assert padded_size(size) == expected


@given(SIZES)
def test_a_padded_size_is_little_larger_and_tells_little(size: int) -> None:
    padded = padded_size(size)
    assert size <= padded <= size * 1.12
    assert padded_size(padded) == padded
    assert padded_size(size + 1) >= padded
    if size:
        assert padded <= 2 ** (size - 1).bit_length() or size == padded
        significant = len(f"{padded:b}".rstrip("0"))
        exponent = padded.bit_length() - 1
        assert significant <= 1 + exponent.bit_length()


@given(st.binary(max_size=3000), st.lists(st.integers(1, 2000), max_size=50))
def test_a_padded_source_is_the_source_and_zero_bytes(content: bytes, reads: list[int]) -> None:
    source, found = Padded(io.BytesIO(content)), bytearray()
    assert source.readinto(memoryview(bytearray())) == 0
    for size in [*reads, *[500] * 12]:
        buffer = memoryview(bytearray(b"\xff" * size))
        count = source.readinto(buffer)
        assert count is not None
        found += buffer[:count]
    assert found == content.ljust(padded_size(len(content)), b"\0")


def test_a_stated_size_counts_source_and_padding() -> None:
    source, buffer = Padded(io.BytesIO(b"abc"), 5), memoryview(bytearray(9))
    assert [source.readinto(buffer) for _ in range(3)] == [3, 2, 0]
    assert source.source_size == 3
    longer = Padded(io.BytesIO(b"abc"), 2)
    assert [longer.readinto(buffer) for _ in range(2)] == [3, 0]
