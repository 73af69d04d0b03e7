"""The only msgpack calls: strict in both directions and capped on every axis.

Messages travel as one msgpack array. Where its last element is a large bin (file bytes), that
element is handed on as a view of the frame, so that bulk bytes are never copied in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgpack

from protocol.codec.errors import EncodingError

Buffer: TypeAlias = bytes | bytearray | memoryview

MAX_BODY = 1024 * 1024 + 4096
"""Bytes of the longest frame body; nothing longer is ever decoded."""
MAX_ELEMENTS = 1024
"""Elements of the longest array or map that comes from elsewhere. msgpack makes room for a declared
count at once, and nests up to 1,024 deep: so the worst body costs 8 MiB for a moment."""
MAX_STRING = 64 * 1024
"""Bytes of the longest text."""

VIEW_FROM = 32 * 1024
"""Bodies from this many bytes on give their last bin as a view; below, a copy is cheaper."""
_FEED = 64 * 1024

_MALFORMED = (ValueError, TypeError, UnicodeDecodeError, msgpack.UnpackException, RecursionError)


def pack(value: object) -> bytes:
    """`value` as msgpack: ints, bool, None, str, bytes, lists, tuples and str-keyed dicts of them.

    Raises `EncodingError` for a value msgpack cannot hold (a caller's mistake, but a typed one).
    """
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (ValueError, TypeError, OverflowError) as exc:
        raise EncodingError(f"cannot encode: {exc}") from exc
    return packed


def unpack(data: Buffer, *, limit: int = MAX_BODY, elements: int = MAX_ELEMENTS) -> object:
    """The one value that `data` (≤ `limit` bytes) holds, its arrays and maps of ≤ `elements` each.

    Raises `EncodingError` for anything else: trailing bytes, extension types, a map with a key that
    is not text or stands twice, text that is not UTF-8, or a length past a cap.
    """
    if len(data) > limit:
        raise EncodingError(f"{len(data)} bytes where at most {limit} are allowed")
    try:
        return msgpack.unpackb(data, **_strict(len(data), elements))
    except _MALFORMED as exc:
        raise EncodingError(f"not one strict msgpack value: {type(exc).__name__}") from exc


def pack_message(elements: Sequence[object], bulk: Buffer | None = None) -> list[Buffer]:
    """A frame body in pieces: an array of `elements` and, where given, `bulk` as its last bin.

    `bulk` is a piece of its own and not copied.
    """
    if bulk is None:
        return [pack(elements)]
    # An empty bin stands in for the bulk; its two bytes give way to the header of the real one.
    head = pack([*elements, b""])[:-2] + _bin_header(len(bulk))
    return [head, bulk]


def unpack_message(body: memoryview) -> list[object]:
    """The elements of a frame body; a last bin of a large body is a view into `body`.

    Raises `EncodingError` as `unpack` does, and where the value is not an array.
    """
    if len(body) < VIEW_FROM:
        value = unpack(body)
        if not isinstance(value, list):
            raise EncodingError("a message is not an array")
        return value
    if len(body) > MAX_BODY:
        raise EncodingError(f"a body of {len(body)} bytes")
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
    """The last element, which must end exactly where the body ends."""
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
    """Caps for a value of `size` bytes: a count these cannot hold is refused unallocated."""
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
        raise EncodingError("a map key stands twice")
    for key in found:
        if type(key) is not str:
            raise EncodingError("a map key is not text")
    return found


def _no_extension(_code: int, _data: bytes) -> object:
    raise EncodingError("an extension type")
