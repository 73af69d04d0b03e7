"""How values of a declared type are checked, written to msgpack and read from it: the code for it.

Used by `protocol.codec.fields` alone, which lists the types that a field may have. Each type gives
pieces of source text, which become part of functions that are compiled for a whole class.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple, Union, get_args, get_origin

from protocol.codec.encoding import Buffer
from protocol.codec.errors import MessageError
from protocol.codec.values import Source, Value

Check = Callable[[Any], None]
WriteCheck = Callable[[Source, int, str], None]
"""Adds to a source, so many blocks deep, what raises unless the value of an expression is right."""
WriteConvert = Callable[[Source, str], str]
"""The expression that converts the value of an expression."""


class Cap(Value):
    """A cap that is checked without a call in nearly all cases. Calling it decides."""

    def __call__(self, value: Any) -> None:
        raise NotImplementedError

    def holds(self, value: str, of: type, /) -> str:
        """An expression that is true only where this accepts the value of the expression `value`,
        whose type is `of`. Where it is false, calling decides."""
        raise NotImplementedError


class Wired(Value):
    """What may be part of another: it has a wire form of its own."""

    AS_MAP: ClassVar[bool] = False
    """Whether this is written as a map where it is part of another, else as an array."""


class Codec(NamedTuple):
    """How values of one type are checked, written and read. None: they are what msgpack has."""

    check: WriteCheck
    to_wire: WriteConvert | None = None
    from_wire: WriteConvert | None = None


def codec_of(hint: Any, caps: tuple[Check, ...] = ()) -> Codec:
    """`caps` are checked of a value that has the type."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *extras = get_args(hint)
        return codec_of(base, (*caps, *(extra for extra in extras if callable(extra))))
    if hint == Buffer:
        return Codec(_typed((bytes, bytearray, memoryview), caps))
    if origin in (Union, types.UnionType):
        return _compile_optional(hint, caps)
    if origin is tuple:
        return _compile_tuple(get_args(hint), caps)
    if isinstance(hint, type) and issubclass(hint, Wired):
        return _compile_part(hint, caps)
    if hint in (bytes, int, str, bool):
        return Codec(_typed((hint,), caps))
    raise TypeError(f"a field cannot be of type {hint}")


def _typed(allowed: tuple[type, ...], caps: tuple[Check, ...]) -> WriteCheck:
    """Compares the types themselves, not isinstance: True is not the integer 1 here."""

    def check(source: Source, depth: int, value: str) -> None:
        expected = source.bind(allowed[0])
        wrong = f"is not {expected}" if len(allowed) == 1 else f"not in {source.bind(allowed)}"
        source.add(depth, f"if __type({value}) {wrong}:")
        source.add(depth + 1, f"raise {source.bind(_wrong_type)}({value}, {expected})")
        for cap in caps:
            if isinstance(cap, Cap):
                source.add(depth, f"if not ({cap.holds(value, allowed[0])}):")
                source.add(depth + 1, f"{source.bind(cap)}({value})")
            else:
                source.add(depth, f"{source.bind(cap)}({value})")

    return check


def _wrong_type(value: Any, expected: type) -> MessageError:
    return MessageError(f"{type(value).__name__} where {expected.__name__} belongs")


def _compile_part(part: type[Wired], caps: tuple[Check, ...]) -> Codec:
    form = "map" if part.AS_MAP else "array"
    return Codec(
        _typed((part,), caps),
        lambda _, value: f"{value}.to_{form}()",
        lambda source, value: f"{source.bind(part)}.from_{form}({value})",
    )


def _compile_optional(hint: Any, caps: tuple[Check, ...]) -> Codec:
    inner = [arg for arg in get_args(hint) if arg is not type(None)]
    if len(inner) != 1:
        raise TypeError(f"a field cannot be of type {hint}")
    codec = codec_of(inner[0], caps)

    def check(source: Source, depth: int, value: str) -> None:
        source.add(depth, f"if {value} is not None:")
        codec.check(source, depth + 1, value)

    return Codec(check, _unless_none(codec.to_wire), _unless_none(codec.from_wire))


def _unless_none(convert: WriteConvert | None) -> WriteConvert | None:
    if convert is None:
        return None
    return lambda source, value: f"None if {value} is None else {convert(source, value)}"


def _compile_tuple(args: tuple[Any, ...], caps: tuple[Check, ...]) -> Codec:
    if len(args) == 2 and args[1] is Ellipsis:
        return _compile_many(codec_of(args[0]), _typed((tuple,), caps))
    parts = [codec_of(arg) for arg in args]
    is_tuple = _typed((tuple,), caps)

    def check(source: Source, depth: int, value: str) -> None:
        is_tuple(source, depth, value)
        source.add(depth, f"if __len({value}) != {len(parts):d}:")
        source.add(depth + 1, f"raise {source.bind(wrong_length)}({value}, {len(parts):d})")
        for at, part in enumerate(parts):
            part.check(source, depth, f"{value}[{at}]")

    if any(part.to_wire or part.from_wire for part in parts):
        raise TypeError(f"a pair may hold plain values only, not {args}")
    return Codec(check, _to_list, _to_tuple)


def _compile_many(item: Codec, is_tuple: WriteCheck) -> Codec:
    item_to_wire, item_from_wire = item.to_wire, item.from_wire

    def check(source: Source, depth: int, value: str) -> None:
        is_tuple(source, depth, value)
        source.add(depth, f"for __item{depth} in {value}:")
        item.check(source, depth + 1, f"__item{depth}")

    if item_to_wire is None or item_from_wire is None:
        return Codec(check, _to_list, _to_tuple)
    return Codec(
        check,
        lambda source, value: f"[{item_to_wire(source, '__one')} for __one in {value}]",
        lambda source, value: (
            f"{source.bind(tuple)}([{item_from_wire(source, '__one')}"
            f" for __one in {source.bind(_listed)}({value})])"
        ),
    )


def _to_list(source: Source, value: str) -> str:
    return f"{source.bind(list)}({value})"


def _to_tuple(source: Source, value: str) -> str:
    return f"{source.bind(tuple)}({source.bind(_listed)}({value}))"


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise MessageError(f"{type(value).__name__} where an array belongs")
    return value


def wrong_length(value: Any, expected: int) -> MessageError:
    return MessageError(f"length {len(value)}, not {expected}")
