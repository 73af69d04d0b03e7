"""The longest legal value of every request, derived from its declared fields.

A field type or limit that this does not know fails loudly, as it does in `protocol.codec.fields`.
"""

from __future__ import annotations

import types
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from msgspec import Meta

from protocol.codec.encoding import Buffer
from protocol.codec.fields import OneOf, Struct, empty_or_signature
from protocol.codec.names import check_file_id, check_principal, check_user_name

AnyStruct = TypeVar("AnyStruct", bound=Struct)


def largest(cls: type[AnyStruct], *, most_bytes: int) -> AnyStruct:
    """Return a value with the most elements that its fields allow, and nothing left out.

    Byte strings have their greatest length, but at most `most_bytes`, as far as the class allows.
    """
    return cls(*(_largest(hint, (), most_bytes) for hint in cls.__declared__.values()))


def _largest(hint: Any, extras: tuple[Any, ...], most_bytes: int) -> Any:  # noqa: ANN401
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _largest(args[0], (*extras, *args[1:]), most_bytes)
    if origin in (Union, types.UnionType) and hint != Buffer:
        (inner,) = (arg for arg in args if arg is not type(None))
        return _largest(inner, extras, most_bytes)
    if isinstance(hint, type) and issubclass(hint, Struct):
        return largest(hint, most_bytes=most_bytes)
    if hint is bool:
        return True
    caps = [extra for extra in extras if isinstance(extra, Meta)]
    if hint is int:
        return max(int(cap.le) for cap in caps if cap.le is not None)
    if origin is tuple and args[1:] != (Ellipsis,):
        return tuple(_largest(arg, (), most_bytes) for arg in args)
    if hint is str:
        return _text(extras, caps)
    most = min(cap.max_length for cap in caps if cap.max_length is not None)
    if origin is tuple:
        return (_largest(args[0], (), most_bytes),) * most
    assert hint in (bytes, Buffer)
    least = max(cap.min_length or 0 for cap in caps)
    return bytes(most if empty_or_signature in extras else max(least, min(most, most_bytes)))


def _text(extras: tuple[Any, ...], caps: list[Meta]) -> str:
    for extra in extras:
        if isinstance(extra, OneOf):
            return max(extra.values, key=len)
    most = min(cap.max_length for cap in caps if cap.max_length is not None)
    if check_file_id in extras:
        return "f" * most
    if check_user_name in extras or check_principal in extras:
        return "a" * most
    assert not any(callable(extra) for extra in extras)
    # Two bytes a letter: the slower of the two ways in which its size is found.
    return "é" * (most // 2)
