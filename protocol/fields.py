"""Frozen values that state their wire form: every field's type and cap is checked when built.

A `Struct` is written as a msgpack array (messages and their parts; unknown trailing elements are
ignored) or as a map with exactly its keys (signed bodies). Types a field may have: ``int``,
``str``, ``bool``, ``bytes``, ``Buffer`` (bulk), another `Struct`, ``tuple[T, ...]``,
``tuple[A, B]`` of plain values, ``T | None``, and an ``Annotated`` form of these with the caps
below.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import cache
from typing import (
    Annotated,
    Any,
    ClassVar,
    NamedTuple,
    Self,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from protocol.encoding import Buffer
from protocol.errors import MessageError
from protocol.names import check_file_id, check_principal, check_user_name
from protocol.values import Source, Value

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


class Exactly(Cap):
    """A length of exactly `size` (bytes, or elements of a tuple)."""

    size: int

    def __call__(self, value: Any) -> None:
        if len(value) != self.size:
            raise MessageError(f"length {len(value)}, not {self.size}")

    def holds(self, value: str, _of: type, /) -> str:
        return f"__len({value}) == {self.size:d}"


class AtMost(Cap):
    """A length of at most `size` (bytes of text or binary, or elements of a tuple)."""

    size: int

    def __call__(self, value: Any) -> None:
        try:
            length = len(value.encode()) if isinstance(value, str) else len(value)
        except UnicodeEncodeError as exc:
            raise MessageError("text that is not valid Unicode") from exc
        if length > self.size:
            raise MessageError(f"length {length}, at most {self.size} allowed")

    def holds(self, value: str, of: type, /) -> str:
        short = f"__len({value}) <= {self.size:d}"
        # Other text than ASCII has more bytes than characters, or none at all.
        return f"{value}.isascii() and {short}" if of is str else short


class Between(Cap):
    """An integer from `low` to `high`, both included."""

    low: int
    high: int

    def __call__(self, value: Any) -> None:
        if not self.low <= value <= self.high:
            raise MessageError(f"{value} is not between {self.low} and {self.high}")

    def holds(self, value: str, _of: type, /) -> str:
        return f"{self.low:d} <= {value} <= {self.high:d}"


class OneOf(Value):
    """One of the values listed."""

    values: tuple[str, ...]

    def __call__(self, value: Any) -> None:
        if value not in self.values:
            raise MessageError(f"not one of {', '.join(self.values)}")


def empty_or_hash(value: Any) -> None:
    """A SHA-256, or nothing where there is nothing before."""
    if len(value) not in (0, 32):
        raise MessageError(f"a hash of {len(value)} bytes")


Bytes16 = Annotated[bytes, Exactly(16)]
Bytes32 = Annotated[bytes, Exactly(32)]
Signature = Annotated[bytes, Exactly(64)]
Previous = Annotated[bytes, empty_or_hash]
UserName = Annotated[str, check_user_name]
Principal = Annotated[str, check_principal]
FileId = Annotated[str, check_file_id]
Count = Annotated[int, Between(0, 2**53)]
"""A size, offset, number or time. Below 2^53, so that JSON readers of any kind keep it exact."""
Positive = Annotated[int, Between(1, 2**53)]
Text = Annotated[str, AtMost(512)]


class Struct(Value):
    """Base of all values with a wire form. Building one checks every field.

    What is done with every message is compiled for its class when it is first done: small ones are
    parsed by the thousand a second, and most programs use few of the classes.
    """

    AS_MAP: ClassVar[bool] = False
    """Whether this is written as a map where it is part of another."""

    @classmethod
    def write_checks(cls, source: Source) -> None:
        """Every field is of its type and keeps its caps, else `MessageError` says which is not."""
        if not cls.__specs__:
            return
        source.add(0, "try:")
        for name, codec in _codecs(cls).items():
            source.add(1, f"__at = {name!r}")
            codec.check(source, 1, name)
        error = source.bind(MessageError)
        source.add(0, f"except {error} as __exc:")
        source.add(1, f"raise {error}(f'{cls.__name__}.{{__at}}: {{__exc}}') from None")

    def to_array(self) -> list[Any]:
        """The elements of the msgpack array that stands for this."""
        return _array_writer(type(self))(self)

    @classmethod
    def from_array(cls, elements: Any) -> Self:
        """The inverse; unknown trailing elements are ignored. Raises `MessageError`."""
        if not isinstance(elements, list):
            raise MessageError(f"{cls.__name__}: not an array")
        if len(elements) < len(cls.__specs__):
            raise MessageError(f"{cls.__name__}: {len(elements)} elements of {field_count(cls)}")
        made: Self = _array_reader(cls)(cls, elements)
        return made

    def to_map(self) -> dict[str, Any]:
        """The msgpack map that stands for this, its keys in the order of the fields."""
        return _map_writer(type(self))(self)

    @classmethod
    def from_map(cls, value: Any) -> Self:
        """The inverse; a missing or unknown key is refused. Raises `MessageError`."""
        if not isinstance(value, dict):
            raise MessageError(f"{cls.__name__}: not a map")
        if value.keys() != _keys(cls):
            raise MessageError(f"{cls.__name__}: not exactly the keys it has")
        made: Self = _map_reader(cls)(cls, value)
        return made


class _Codec(NamedTuple):
    """How values of one type are checked, written and read. None: they are what msgpack has."""

    check: WriteCheck
    to_wire: WriteConvert | None = None
    from_wire: WriteConvert | None = None


def field_count(cls: type[Struct]) -> int:
    """How many elements the array form of `cls` has."""
    return len(cls.__specs__)


@cache
def _codecs(cls: type[Struct]) -> dict[str, _Codec]:
    hints = get_type_hints(cls, include_extras=True)
    return {name: _compile(hints[name]) for name in cls.__specs__}


@cache
def _keys(cls: type[Struct]) -> frozenset[str]:
    return frozenset(map(_key, cls.__specs__))


def _key(name: str) -> str:
    """The key in a map: a name that Python reserves carries an underscore in Python only."""
    return name.rstrip("_")


@cache
def _array_writer(cls: type[Struct]) -> Callable[[Struct], list[Any]]:
    source = Source()
    source.add(0, f"return [{', '.join(_written(source, cls))}]")
    return source.function(cls, "to_array", ["self"])


@cache
def _array_reader(cls: type[Struct]) -> Callable[[type[Struct], list[Any]], Any]:
    """Of an array that is long enough. Building the struct checks what was read."""
    source = Source()
    places = [f"elements[{at}]" for at in range(field_count(cls))]
    source.add(0, f"return cls({', '.join(_read(source, cls, places))})")
    return source.function(cls, "from_array", ["cls", "elements"])


@cache
def _map_writer(cls: type[Struct]) -> Callable[[Struct], dict[str, Any]]:
    source = Source()
    written = zip(cls.__specs__, _written(source, cls), strict=True)
    items = ", ".join(f"{_key(name)!r}: {value}" for name, value in written)
    source.add(0, f"return {{{items}}}")
    return source.function(cls, "to_map", ["self"])


@cache
def _map_reader(cls: type[Struct]) -> Callable[[type[Struct], dict[str, Any]], Any]:
    """Of a map with exactly the keys. Building the struct checks what was read."""
    source = Source()
    places = [f"value[{_key(name)!r}]" for name in cls.__specs__]
    source.add(0, f"return cls({', '.join(_read(source, cls, places))})")
    return source.function(cls, "from_map", ["cls", "value"])


def _written(source: Source, cls: type[Struct]) -> list[str]:
    """For each field the expression of its wire form."""
    codecs = [(codec.to_wire, f"self.{name}") for name, codec in _codecs(cls).items()]
    return [write(source, field) if write else field for write, field in codecs]


def _read(source: Source, cls: type[Struct], places: list[str]) -> list[str]:
    """For each field the expression of its value, whose wire form stands in its place."""
    codecs = zip(_codecs(cls).values(), places, strict=True)
    return [codec.from_wire(source, at) if codec.from_wire else at for codec, at in codecs]


def _compile(hint: Any, caps: tuple[Check, ...] = ()) -> _Codec:
    """`caps` are checked of a value that has the type."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *extras = get_args(hint)
        return _compile(base, (*caps, *(extra for extra in extras if callable(extra))))
    if hint == Buffer:
        return _Codec(_typed((bytes, bytearray, memoryview), caps))
    if origin in (Union, types.UnionType):
        return _compile_optional(hint, caps)
    if origin is tuple:
        return _compile_tuple(get_args(hint), caps)
    if isinstance(hint, type) and issubclass(hint, Struct):
        return _compile_part(hint, caps)
    if hint in (bytes, int, str, bool):
        return _Codec(_typed((hint,), caps))
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


def _compile_part(part: type[Struct], caps: tuple[Check, ...]) -> _Codec:
    form = "map" if part.AS_MAP else "array"
    return _Codec(
        _typed((part,), caps),
        lambda _, value: f"{value}.to_{form}()",
        lambda source, value: f"{source.bind(part)}.from_{form}({value})",
    )


def _compile_optional(hint: Any, caps: tuple[Check, ...]) -> _Codec:
    inner = [arg for arg in get_args(hint) if arg is not type(None)]
    if len(inner) != 1:
        raise TypeError(f"a field cannot be of type {hint}")
    codec = _compile(inner[0], caps)

    def check(source: Source, depth: int, value: str) -> None:
        source.add(depth, f"if {value} is not None:")
        codec.check(source, depth + 1, value)

    return _Codec(check, _unless_none(codec.to_wire), _unless_none(codec.from_wire))


def _unless_none(convert: WriteConvert | None) -> WriteConvert | None:
    if convert is None:
        return None
    return lambda source, value: f"None if {value} is None else {convert(source, value)}"


def _compile_tuple(args: tuple[Any, ...], caps: tuple[Check, ...]) -> _Codec:
    if len(args) == 2 and args[1] is Ellipsis:
        return _compile_many(_compile(args[0]), _typed((tuple,), caps))
    parts = [_compile(arg) for arg in args]
    is_tuple = _typed((tuple,), (*caps, Exactly(len(parts))))

    def check(source: Source, depth: int, value: str) -> None:
        is_tuple(source, depth, value)
        for at, part in enumerate(parts):
            part.check(source, depth, f"{value}[{at}]")

    if any(part.to_wire or part.from_wire for part in parts):
        raise TypeError(f"a pair may hold plain values only, not {args}")
    return _Codec(check, _to_list, _to_tuple)


def _compile_many(item: _Codec, is_tuple: WriteCheck) -> _Codec:
    item_to_wire, item_from_wire = item.to_wire, item.from_wire

    def check(source: Source, depth: int, value: str) -> None:
        is_tuple(source, depth, value)
        source.add(depth, f"for __item{depth} in {value}:")
        item.check(source, depth + 1, f"__item{depth}")

    if item_to_wire is None or item_from_wire is None:
        return _Codec(check, _to_list, _to_tuple)
    return _Codec(
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
