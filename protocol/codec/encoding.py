"""All msgpack calls: strict in both directions, with a cap on every size and count.

A message is one msgpack array. If its last element is a large bin (file bytes), that element is
returned as a view of the frame, so that bulk bytes are never copied in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgpack

from protocol.codec.errors import EncodingError

Buffer: TypeAlias = bytes | bytearray | memoryview

MAX_BODY = 1024 * 1024 + 4096
"""Longest frame body in bytes; nothing longer is decoded."""
MAX_ELEMENTS = 1024
"""Most elements of an array or map that is received. msgpack allocates a declared count at once and
nests up to 1,024 deep, so the worst body takes 8 MiB for a moment."""
MAX_STRING = 64 * 1024
"""Longest text in bytes."""

VIEW_FROM = 32 * 1024
"""Smallest body in bytes whose last bin is returned as a view; below, a copy is cheaper."""
_FEED = 64 * 1024

_MALFORMED = (ValueError, TypeError, UnicodeDecodeError, msgpack.UnpackException, RecursionError)


def pack(value: object) -> bytes:
    """Encode ints, bool, None, str, bytes, and lists, tuples and str-keyed dicts of them.

    Raises `EncodingError` for a value that msgpack cannot hold.
    """
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (ValueError, TypeError, OverflowError) as exc:
        raise EncodingError(f"cannot encode: {exc}") from exc
    return packed


def unpack(data: Buffer, *, limit: int = MAX_BODY, elements: int = MAX_ELEMENTS) -> object:
    """Decode exactly one value of at most `limit` bytes, with at most `elements` per array or map.

    Raises `EncodingError` for anything else: trailing bytes, extension types, a map key that is not
    text or occurs twice, text that is not UTF-8, or a length past a cap.
    """
    if len(data) > limit:
        raise EncodingError(f"{len(data)} bytes, at most {limit} allowed")
    try:
        return msgpack.unpackb(data, **_strict(len(data), elements))
    except _MALFORMED as exc:
        raise EncodingError(f"not one strict msgpack value: {type(exc).__name__}") from exc


def pack_message(elements: Sequence[object], bulk: Buffer | None = None) -> list[Buffer]:
    """Encode a frame body: an array of `elements` and, if given, `bulk` as its last bin.

    Return its pieces in order. `bulk` is the last piece and is not copied.
    """
    if bulk is None:
        return [pack(elements)]
    # An empty bin stands in for the bulk; its two bytes give way to the header of the real one.
    head = pack([*elements, b""])[:-2] + _bin_header(len(bulk))
    return [head, bulk]


def unpack_message(body: memoryview) -> list[object]:
    """Decode the elements of a frame body; the last bin of a large body is a view into `body`.

    Raises `EncodingError` like `unpack`, and if the value is not an array.
    """
    if len(body) < VIEW_FROM:
        value = unpack(body)
        if not isinstance(value, list):
            raise EncodingError("a message is not an array")
        return value
    if len(body) > MAX_BODY:
        raise EncodingError(f"a body of {len(body)} bytes, at most {MAX_BODY} allowed")
    return _unpack_split(body)


def _unpack_split(body: memoryview) -> list[object]:
    unpacker = msgpack.Unpacker(max_buffer_size=len(body), **_strict(len(body), MAX_ELEMENTS))
    fed = _FEED
    unpacker.feed(body[:fed])
    elements: list[object] = []
    try:
        count = unpacker.read_array_header()
        if not 0 < count <= MAX_ELEMENTS:
            raise EncodingError(f"an array of {count} elements in {len(body)} bytes")
        while len(elements) < count - 1:
            try:
                elements.append(unpacker.unpack())
            except msgpack.OutOfData:
                if fed >= len(body):
                    raise
                unpacker.feed(body[fed : fed + _FEED])
                fed += _FEED
        elements.append(_last(body[unpacker.tell() :]))
    except _MALFORMED as exc:
        raise EncodingError(f"not one strict msgpack value: {type(exc).__name__}") from exc
    return elements


def _last(rest: memoryview) -> object:
    """Decode the last element, which must end exactly where the body ends."""
    header = {0xC4: 2, 0xC5: 3, 0xC6: 5}.get(rest[0]) if len(rest) else None
    if header is None:
        return unpack(rest)
    if int.from_bytes(rest[1:header], "big") != len(rest) - header:
        raise EncodingError("bulk bytes do not end with the body")
    return rest[header:]


def _bin_header(length: int) -> bytes:
    if length < 1 << 8:
        return b"\xc4" + length.to_bytes(1, "big")
    if length < 1 << 16:
        return b"\xc5" + length.to_bytes(2, "big")
    return b"\xc6" + length.to_bytes(4, "big")


def _strict(size: int, elements: int) -> dict[str, object]:
    """Return decoder options for `size` bytes; a count too large for them is never allocated."""
    return {
        "raw": False,
        "strict_map_key": True,
        "use_list": True,
        "object_pairs_hook": _unique,
        "ext_hook": _no_extension,
        "max_str_len": min(size, MAX_STRING),
        "max_bin_len": size,
        "max_array_len": min(size, elements),
        "max_map_len": min(size, elements),
        "max_ext_len": 0,
    }


def _unique(pairs: list[tuple[object, object]]) -> dict[object, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise EncodingError("a map key occurs twice")
    for key in found:
        if type(key) is not str:
            raise EncodingError("a map key is not text")
    return found


def _no_extension(_code: int, _data: bytes) -> object:
    raise EncodingError("an extension type")
