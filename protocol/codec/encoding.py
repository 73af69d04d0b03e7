"""All msgpack calls: strict in both directions, with a cap on every size and count.

Values are decoded straight into declared classes (`protocol.codec.fields`). A declared length or
count is compared with the cap of its field before memory is allocated for it, and nothing nests
deeper than the declaration. A value without a declared class cannot be decoded.

A message is one msgpack array. If its last element is bulk (file bytes), it is a view of the frame,
so that bulk bytes are never copied in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias, TypeVar

import msgspec.msgpack
from msgspec import DecodeError, MsgspecError, ValidationError

from protocol.codec.errors import EncodingError, MessageError

Buffer: TypeAlias = bytes | bytearray | memoryview
_Decoded = TypeVar("_Decoded", bound=msgspec.Struct)

MAX_BODY = 1024 * 1024 + 4096
"""Longest frame body in bytes; nothing longer is decoded."""

VIEW_FROM = 32 * 1024
"""Smallest body in bytes whose bulk is a view of it; below, a copy is cheaper."""

_encode = msgspec.msgpack.Encoder().encode


def pack(value: object) -> bytes:
    """Encode ints, bool, None, str, bytes, structs, and lists, tuples and str-keyed dicts of them.

    Every number, text and length has its shortest form. Raises `EncodingError` for a value that
    msgpack cannot hold.
    """
    try:
        return _encode(value)
    except (MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as exc:
        raise EncodingError(f"cannot encode: {exc}") from exc


def unpack(data: Buffer, cls: type[_Decoded], *, limit: int = MAX_BODY) -> _Decoded:
    """Decode exactly one value of the class `cls` from at most `limit` bytes.

    Raises `EncodingError` for malformed or trailing bytes and text that is not UTF-8, and
    `MessageError` for another type, a length past a cap, or a missing or unknown field.
    """
    if len(data) > limit:
        raise EncodingError(f"{len(data)} bytes, at most {limit} allowed")
    try:
        found: _Decoded = _decoder(cls).decode(data)
    except ValidationError as exc:
        raise refusal(cls, exc) from None
    except (DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise EncodingError(f"not one strict msgpack value: {type(exc).__name__}") from None
    return found


@cache
def _decoder(cls: type[_Decoded]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(cls)


def refusal(cls: type[msgspec.Struct], error: ValidationError) -> MessageError:
    """Return the error for a value that `cls` refuses, without any text of the peer.

    msgspec quotes unknown keys and choices. So only texts that begin in a known way are used.
    """
    text, _, place = str(error).partition(" - at `")
    if not text.startswith(("Expected `", "Object missing required field `")):
        unknown = text.startswith("Object contains unknown field ")
        text, place = ("an unknown field", "") if unknown else ("not an allowed value", place)
    place = place.rstrip("`").removeprefix("$")
    if place.startswith("["):
        at, _, rest = place[1:].partition("]")
        place = f".{cls.__struct_fields__[int(at)]}{rest}"
    return MessageError(f"{cls.__name__}{place}: {text[0].lower()}{text[1:]}")


def pack_message(elements: Sequence[object], bulk: Buffer | None = None) -> list[Buffer]:
    """Encode a frame body: an array of `elements` and, if given, `bulk` as its last bin.

    Return its pieces in order. `bulk` is the last piece and is not copied.
    """
    if bulk is None:
        return [pack(elements)]
    # An empty bin stands in for the bulk; its two bytes give way to the header of the real one.
    head = pack([*elements, b""])[:-2] + _bin_header(len(bulk))
    return [head, bulk]


def array_start(data: Buffer, count: int) -> bytes:
    """Return the array of the first `count` integers of an array, without reading any further.

    If `data` ends before, the result is as incomplete. Raises `MessageError` if it is no array of
    65,535 elements or less, or does not begin with `count` integers.
    """
    first = data[0] if data else 0
    if first & 0xF0 == 0x90:
        elements, at = first & 0x0F, 1
    elif first == 0xDC:
        elements, at = int.from_bytes(data[1:3]), 3
    else:
        raise MessageError("not an array of 65,535 elements or less")
    if elements < count:
        raise MessageError(f"an array of {elements} elements, expected at least {count}")
    end = at
    for _ in range(count):
        if end >= len(data):
            break
        if 0x80 <= data[end] < 0xE0 and data[end] not in _INT_SIZES:
            raise MessageError("expected an integer")
        end += _INT_SIZES.get(data[end], 1)
    return array_header(count) + data[at:end]


_INT_SIZES = dict(zip((*range(0xCC, 0xD0), *range(0xD0, 0xD4)), (2, 3, 5, 9) * 2, strict=True))
"""Bytes of a msgpack integer by its first byte, if there are several."""


def array_header(count: int) -> bytes:
    """Return the header of an array of `count` elements, at most 2^16 - 1: one or three bytes."""
    return bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2)


def _bin_header(length: int) -> bytes:
    if length < 1 << 8:
        return b"\xc4" + length.to_bytes(1)
    if length < 1 << 16:
        return b"\xc5" + length.to_bytes(2)
    return b"\xc6" + length.to_bytes(4)
