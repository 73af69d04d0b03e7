"""JSON that has one form: compact, in ASCII, with the members of each object in declared order.

It is for lines of the log and files of the store, whose bytes are hashed. Bytes are base64.
"""

from __future__ import annotations

import json
import re
from typing import Generic, NoReturn, TypeVar, dataclass_transform

import msgspec

_Object = TypeVar("_Object", bound="JsonObject")


@dataclass_transform()
class JsonObject(msgspec.Struct, omit_defaults=True):
    """Base of JSON objects whose fields are their members. A field with a default is left out while
    it has that value."""


class JsonDecoder(Generic[_Object]):
    """Decodes objects of one class. Members that the class does not know are ignored."""

    def __init__(self, kind: type[_Object]) -> None:
        self._decoder = msgspec.json.Decoder(kind, float_hook=_refuse)

    def decode(self, text: bytes) -> _Object:
        """Return the object. `text` may have another form than `encode` gives it: compare. Raises
        ValueError, or RecursionError for text that is nested too deep."""
        return self._decoder.decode(text)


def encode(value: object) -> bytes:
    """Return the JSON of a `JsonObject`, or of dicts, tuples, texts and integers. Raises TypeError
    for other values, and ValueError for text that has no UTF-8."""
    text = _ENCODER.encode(value)
    # ASCII without DEL, so that text of others changes no terminal that shows it.
    if not text.isascii() or b"\x7f" in text:
        text = _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text.decode()).encode()
    return text


def decode(text: bytes) -> object:
    """Return the value of any JSON without fractions. Raises as `JsonDecoder.decode`."""
    return _ANY.decode(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"not an integer: {text[:20]}")


_ENCODER = msgspec.json.Encoder()
_ANY = msgspec.json.Decoder(float_hook=_refuse)
_NOT_ASCII = re.compile(r"[\x7f-\U0010ffff]+")
