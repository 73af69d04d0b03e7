"""Known msgpack encodings (msgpack specification), and all input that is refused."""

from __future__ import annotations

import tracemalloc
from typing import TypeAlias

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import encoding
from protocol.codec.errors import EncodingError

Plain: TypeAlias = "bool | int | str | bytes | list[Plain] | dict[str, Plain] | None"

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=50)
    | st.binary(max_size=50)
)
VALUES: st.SearchStrategy[Plain] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)
BULK_SIZES = (0, 1, 255, 256, encoding.VIEW_FROM - 9, 65535, 65536, 131072, 1024 * 1024)


@pytest.mark.parametrize(
    ("value", "packed"),
    [
        (None, "c0"),
        (False, "c2"),
        (True, "c3"),
        (0, "00"),
        (127, "7f"),
        (128, "cc80"),
        (256, "cd0100"),
        (2**32, "cf0000000100000000"),
        (2**64 - 1, "cfffffffffffffffff"),
        (-1, "ff"),
        (-33, "d0df"),
        (-(2**63), "d38000000000000000"),
        ("", "a0"),
        ("é", "a2c3a9"),
        ("a" * 32, "d920" + "61" * 32),
        (b"", "c400"),
        (b"\x00\xff", "c40200ff"),
        (b"a" * 256, "c50100" + "61" * 256),
        ([], "90"),
        ([1, [b"", None]], "920192c400c0"),
        ({}, "80"),
        ({"b": 1, "a": []}, "82a16201a16190"),
    ],
)
def test_bytes_of_values(value: object, packed: str) -> None:
    assert encoding.pack(value).hex() == packed
    assert encoding.unpack(bytes.fromhex(packed)) == value


@given(VALUES)
def test_round_trip(value: object) -> None:
    assert encoding.unpack(encoding.pack(value)) == value


REFUSED = {
    "nothing": "",
    "trailing byte": "c0c0",
    "two values": "01a0",
    "reserved byte": "c1",
    "cut integer": "cd01",
    "cut text": "a5616263",
    "cut bin": "c40561",
    "cut array": "9301",
    "cut map": "82a16101",
    "ext, no data": "c70005",
    "fixext 1": "d40100",
    "fixext 16": "d801" + "00" * 16,
    "ext 8": "c7030101 0203",
    "ext 32": "c9ffffffff01",
    "timestamp 32": "d6ff00000000",
    "timestamp 96": "c70cff" + "00" * 12,
    "text that is not UTF-8": "a2c328",
    "a lone surrogate": "a3eda080",
    "an overlong slash": "a2c0af",
    "an integer for a key": "810101",
    "bytes for a key": "81c40161 01",
    "None for a key": "81c001",
    "an array for a key": "819001",
    "a key twice": "82a16101a16101",
    "a key twice, deeper": "9181a16182a16201a16202",
}


@pytest.mark.parametrize("packed", REFUSED.values(), ids=REFUSED)
def test_refused(packed: str) -> None:
    data = bytes.fromhex(packed)
    with pytest.raises(EncodingError):
        encoding.unpack(data)
    with pytest.raises(EncodingError):
        encoding.unpack_message(memoryview(b"\x92\x01" + data))
    padded = b"\x93" + encoding.pack(bytes(encoding.VIEW_FROM)) + b"\x01" + data
    with pytest.raises(EncodingError):
        encoding.unpack_message(memoryview(padded))


HUGE = {
    "array 16": "dcffff",
    "array 32": "ddffffffff",
    "map 16": "deffff",
    "map 32": "dfffffffff",
    "text 16": "daffff",
    "text 32": "dbffffffff",
    "bin 16": "c5ffff",
    "bin 32": "c6ffffffff",
    "ext 32": "c9ffffffff01",
}


@pytest.mark.parametrize("packed", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("padding", [0, 40_000])
def test_a_huge_declared_length_costs_nothing(packed: str, padding: int) -> None:
    body = b"\x92" + encoding.pack(bytes(padding)) + bytes.fromhex(packed)
    assert _peak(body) < 8 * padding + 32 * 1024
    assert _peak(bytes.fromhex(packed)) < 32 * 1024


def test_nested_arrays_use_bounded_memory() -> None:
    declared = encoding.MAX_ELEMENTS
    header = b"\xdc" + declared.to_bytes(2, "big")
    assert _peak(header * 1024 + bytes(declared)) < 10 * 1024 * 1024
    assert _peak(b"\x91" * 16_000) < 1024 * 1024
    assert _peak(b"\x81\xa1a" * 5_000) < 1024 * 1024


def _peak(body: bytes) -> int:
    """Return the peak number of bytes allocated while `body` is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(EncodingError):
            encoding.unpack_message(memoryview(body))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_deep_nesting_is_refused_both_ways() -> None:
    with pytest.raises(EncodingError):
        encoding.unpack(b"\x91" * 5000 + b"\xc0")
    value: list[object] = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(EncodingError):
        encoding.pack(value)


def test_caps() -> None:
    longest = "a" * encoding.MAX_STRING
    assert encoding.unpack(encoding.pack(longest)) == longest
    most = [0] * encoding.MAX_ELEMENTS
    assert encoding.unpack(encoding.pack(most)) == most
    keys = {str(n): n for n in range(encoding.MAX_ELEMENTS)}
    assert encoding.unpack(encoding.pack(keys)) == keys
    for value in (longest + "a", [*most, 0], {**keys, "one more": 0}):
        with pytest.raises(EncodingError):
            encoding.unpack(encoding.pack(value))
        with pytest.raises(EncodingError):
            encoding.unpack_message(memoryview(encoding.pack([value, bytes(40_000)])))
    with pytest.raises(EncodingError):
        encoding.unpack_message(memoryview(encoding.pack([*most, bytes(40_000)])))


def test_caller_may_raise_the_element_limit() -> None:
    many = [0] * 3000
    assert encoding.unpack(encoding.pack(many), elements=3000) == many
    with pytest.raises(EncodingError):
        encoding.unpack(encoding.pack(many), elements=2999)


def test_limit() -> None:
    body = encoding.pack(bytes(98))
    assert encoding.unpack(body, limit=100) == bytes(98)
    with pytest.raises(EncodingError):
        encoding.unpack(body, limit=99)
    with pytest.raises(EncodingError):
        encoding.unpack_message(memoryview(encoding.pack([bytes(encoding.MAX_BODY)])))


@pytest.mark.parametrize("value", [object(), 2**64, -(2**63) - 1, {1, 2}, "\ud800", 1j])
def test_unencodable_values_raise_encoding_error(value: object) -> None:
    with pytest.raises(EncodingError):
        encoding.pack(value)


@given(st.lists(VALUES, max_size=6), st.sampled_from(BULK_SIZES), st.data())
def test_bulk_is_an_ordinary_last_bin(
    elements: list[object], size: int, data: st.DataObject
) -> None:
    bulk = bytes(size)
    pieces = encoding.pack_message(elements, bulk=bulk)
    assert pieces[-1] is bulk
    body = b"".join(pieces)
    assert body == msgpack.packb([*elements, bulk], use_bin_type=True)
    if len(body) > encoding.MAX_BODY:
        return
    assert encoding.unpack_message(memoryview(body)) == [*elements, bulk]
    longer_or_shorter = data.draw(st.sampled_from([body + b"\0", body[:-1]]))
    with pytest.raises(EncodingError):
        encoding.unpack_message(memoryview(longer_or_shorter))


def test_large_bulk_is_a_view_and_small_bulk_a_copy() -> None:
    for size, is_view in ((100, False), (encoding.VIEW_FROM, True), (1024 * 1024, True)):
        received = bytearray(b"".join(encoding.pack_message([1, "a"], bulk=bytes(size))))
        bulk = encoding.unpack_message(memoryview(received))[-1]
        assert isinstance(bulk, memoryview if is_view else bytes)
        received[-1] = 7
        assert (bulk[-1] == 7) is is_view


@given(st.lists(st.integers(9_000, 30_000).map(bytes) | VALUES, min_size=1, max_size=12))
def test_long_elements_before_the_bulk(elements: list[object]) -> None:
    """Elements may span the pieces in which a large body is fed to msgpack."""
    elements = [bytes(encoding.VIEW_FROM), *elements]
    assert encoding.unpack_message(memoryview(encoding.pack(elements))) == elements


@pytest.mark.parametrize("lie", [-1, 1, 17, 255])
def test_bulk_length_must_match_the_body(lie: int) -> None:
    for size in (60, 60_000, 100_000):
        head, bulk = encoding.pack_message([1], bulk=bytes(size))
        width = {60: 1, 60_000: 2, 100_000: 4}[size]
        lied = (size + lie) % 256**width
        body = head[: len(head) - width] + lied.to_bytes(width, "big") + bytes(bulk)
        with pytest.raises(EncodingError):
            encoding.unpack_message(memoryview(body))


@pytest.mark.parametrize("value", [1, "a", b"a" * 40_000, {"a": 1}, None])
def test_a_message_must_be_an_array(value: object) -> None:
    with pytest.raises(EncodingError):
        encoding.unpack_message(memoryview(encoding.pack(value)))


def test_an_empty_array_in_a_large_body() -> None:
    with pytest.raises(EncodingError):
        encoding.unpack_message(memoryview(b"\x90" + bytes(encoding.VIEW_FROM)))


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_decode_or_raise_encoding_error(data: bytes, is_long: bool) -> None:
    body = b"\x92" + encoding.pack(bytes(encoding.VIEW_FROM)) + data if is_long else data
    for parse in (encoding.unpack, encoding.unpack_message):
        try:
            parse(memoryview(body))
        except EncodingError:
            continue
