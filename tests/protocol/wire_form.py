"""The msgpack form of a value as plain lists and maps, by a codec that the product does not use."""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack

from protocol.codec import encoding
from protocol.codec.fields import Struct

AnyStruct = TypeVar("AnyStruct", bound=Struct)


def plain(value: Struct) -> Any:  # noqa: ANN401 - has no type before it is checked
    """Return the decoded form of a value."""
    return msgpack.unpackb(encoding.pack(value))


def unpacked(body: bytes | memoryview) -> Any:  # noqa: ANN401
    """Decode any msgpack value."""
    return msgpack.unpackb(body)


def parsed(cls: type[AnyStruct], form: object) -> AnyStruct:
    """Parse a form that may be wrong. Raises `RemoteProtocolError`."""
    return cls.parse(msgpack.packb(form))
