"""Known msgpack encodings (msgpack specification), and all input that is refused."""

from __future__ import annotations

import tracemalloc
from typing import Annotated, ClassVar, TypeAlias

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import encoding
from protocol.codec.encoding import Buffer
from protocol.codec.errors import EncodingError, MessageError, RemoteProtocolError
from protocol.codec.fields import AtMost, Count, Struct, Text

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


@given(VALUES)
def test_another_codec_reads_and_writes_the_same_bytes(value: object) -> None:
    packed = encoding.pack(value)
    assert packed == msgpack.packb(value)
    assert msgpack.unpackb(packed) == value


class Numbers(Struct):
    value: int


class Flags(Struct):
    value: bool | None


class Texts(Struct):
    value: Text


class Bins(Struct):
    value: Annotated[bytes, AtMost(512)]


class Bulks(Struct):
    value: Annotated[Buffer, AtMost(512)]


class Arrays(Struct):
    value: Annotated[tuple[Count, ...], AtMost(1024)]


class Keyed(Struct):
    AS_MAP: ClassVar[bool] = True

    a: Annotated[tuple[Count, ...], AtMost(8)]


class Maps(Struct):
    value: Keyed


class Nested(Struct):
    value: Annotated[tuple[Maps, ...], AtMost(1024)]


CLASSES: tuple[type[Struct], ...] = (
    *(Numbers, Flags, Texts, Bins, Bulks, Arrays, Keyed, Maps, Nested),
)


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
    """By every class, alone and as its field."""
    data = bytes.fromhex(packed)
    for cls in CLASSES:
        for body in (data, b"\x91" + data, b"\x91\x91" + data, b"\x81\xa1a" + data):
            with pytest.raises((EncodingError, MessageError)):
                cls.parse(body)


def test_trailing_bytes_and_cut_values_are_malformed() -> None:
    body = Texts("text").encode()
    assert Texts.parse(body) == Texts("text")
    for wrong in (body + b"\xc0", body + b"\x00", *(body[:end] for end in range(len(body)))):
        with pytest.raises(EncodingError):
            encoding.unpack(wrong, Texts)


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
@pytest.mark.parametrize("cls", CLASSES)
def test_a_huge_declared_length_costs_nothing(packed: str, cls: type[Struct]) -> None:
    header = bytes.fromhex(packed)
    for body in (header, b"\x91" + header, b"\x91\x91" + header, b"\x81\xa1a" + header):
        assert _peak(cls, body) < 32 * 1024
        assert _peak(cls, body + bytes(100)) < 32 * 1024


@pytest.mark.parametrize(
    "header", [b"\x91", b"\xdc\x04\x00", b"\xdd\xff\xff\xff\xff", b"\x81\xa1a"]
)
@pytest.mark.parametrize("cls", CLASSES)
def test_nested_headers_use_bounded_memory(header: bytes, cls: type[Struct]) -> None:
    assert _peak(cls, header * 16_000) < 32 * 1024


def _peak(cls: type[Struct], body: bytes) -> int:
    """Return the peak number of bytes allocated while `body` is refused."""
    tracemalloc.start()
    try:
        with pytest.raises((EncodingError, MessageError)):
            encoding.unpack(body, cls)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_deep_nesting_cannot_be_encoded() -> None:
    value: list[object] = []
    for _ in range(100_000):  # Python 3.13 allows more than 5,000
        value = [value]
    with pytest.raises(EncodingError):
        encoding.pack(value)


def test_limit() -> None:
    body = Bins(bytes(97)).encode()
    assert len(body) == 100
    assert encoding.unpack(body, Bins, limit=100) == Bins(bytes(97))
    with pytest.raises(EncodingError):
        encoding.unpack(body, Bins, limit=99)


@pytest.mark.parametrize("value", [object(), 2**64, -(2**63) - 1, "\ud800", 1j])
def test_unencodable_values_raise_encoding_error(value: object) -> None:
    with pytest.raises(EncodingError):
        encoding.pack(value)


@given(st.lists(VALUES, max_size=6), st.sampled_from(BULK_SIZES))
def test_bulk_is_an_ordinary_last_bin(elements: list[object], size: int) -> None:
    bulk = bytes(size)
    pieces = encoding.pack_message(elements, bulk=bulk)
    assert pieces[-1] is bulk
    body = b"".join(pieces)
    assert body == msgpack.packb([*elements, bulk], use_bin_type=True)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 255, 65535])
def test_array_header(count: int) -> None:
    header = encoding.array_header(count)
    assert header == msgpack.packb([None] * count)[: len(header)]
    assert len(header) == (1 if count < 16 else 3)


@given(st.binary(max_size=300), st.sampled_from(CLASSES))
def test_any_bytes_decode_or_raise_remote_errors(data: bytes, cls: type[Struct]) -> None:
    try:
        found = cls.parse(data)
    except RemoteProtocolError:
        return
    assert found.encode() == data
