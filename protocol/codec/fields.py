"""Frozen values with a wire form; building one checks the type and cap of every field.

A `Struct` is written as a msgpack array (messages and their parts; unknown trailing elements are
ignored) or as a map with exactly its keys (signed bodies). A field may have the types ``int``,
``str``, ``bool``, ``bytes``, ``Buffer`` (bulk), `Struct`, ``tuple[T, ...]``, ``tuple[A, B]``
of plain values, ``T | None``, and an ``Annotated`` form of these with the caps below. Each type
gives pieces of source text, which become part of functions compiled for a whole class.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, ClassVar, NamedTuple, Self, Union, get_args, get_origin

from protocol.codec.encoding import Buffer
from protocol.codec.errors import MessageError
from protocol.codec.names import check_file_id, check_principal, check_user_name
from protocol.codec.values import Source, Value, ValueType

Check = Callable[[Any], None]
WriteCheck = Callable[[Source, int, str], None]
"""Adds code to a source, at a block depth, that raises unless an expression's value is valid."""
WriteConvert = Callable[[Source, str], str]
"""Returns the expression that converts the value of an expression."""


class Cap(Value):
    """A cap that compiled code nearly always checks without a call. Calling it decides."""

    def __call__(self, value: Any) -> None:
        """Raise `MessageError` if `value` exceeds the cap."""
        raise NotImplementedError

    def holds(self, value: str, of: type, /) -> str:
        """Return an expression that is true only if the expression `value`, of type `of`, is valid.

        If it is false, calling the cap decides.
        """
        raise NotImplementedError


class Exactly(Cap):
    """Requires a length of exactly `size` bytes or tuple elements."""

    size: int

    def __call__(self, value: Any) -> None:
        if len(value) != self.size:
            raise _wrong_length(value, self.size)

    def holds(self, value: str, _of: type, /) -> str:
        return f"__len({value}) == {self.size:d}"


class AtMost(Cap):
    """Requires a length of at most `size` bytes (text counts as UTF-8) or tuple elements."""

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
        # Text that is not ASCII has more bytes than characters, or cannot be encoded.
        return f"{value}.isascii() and {short}" if of is str else short


class Between(Cap):
    """Requires an integer from `low` to `high`, both included."""

    low: int
    high: int

    def __call__(self, value: Any) -> None:
        if not self.low <= value <= self.high:
            raise MessageError(f"{value} is not between {self.low} and {self.high}")

    def holds(self, value: str, _of: type, /) -> str:
        return f"{self.low:d} <= {value} <= {self.high:d}"


class OneOf(Value):
    """Requires one of the listed texts."""

    values: tuple[str, ...]

    def __call__(self, value: Any) -> None:
        if value not in self.values:
            raise MessageError(f"not one of {', '.join(self.values)}")


def shortened(text: str) -> str:
    """Cut `text` at its end to the 512 bytes that a field of type `Text` holds."""
    return text.encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")


def empty_or_hash(value: Any) -> None:
    """Raise `MessageError` unless `value` is a SHA-256 (32 bytes), or empty."""
    if len(value) not in (0, 32):
        raise MessageError(f"a hash of {len(value)} bytes")


def empty_or_signature(value: Any) -> None:
    """Raise `MessageError` unless `value` is an Ed25519 signature (64 bytes), or empty."""
    if len(value) not in (0, 64):
        raise MessageError(f"a signature of {len(value)} bytes")


Bytes16 = Annotated[bytes, Exactly(16)]
Bytes32 = Annotated[bytes, Exactly(32)]
Signature = Annotated[bytes, Exactly(64)]
Possession = Annotated[bytes, empty_or_signature]
"""Signature by the recovery key that a statement introduces; empty if it introduces none."""
Previous = Annotated[bytes, empty_or_hash]
UserName = Annotated[str, check_user_name]
Principal = Annotated[str, check_principal]
FileId = Annotated[str, check_file_id]
Count = Annotated[int, Between(0, 2**53)]
"""A size, offset, number or time; at most 2^53, so that every JSON reader keeps it exact."""
Positive = Annotated[int, Between(1, 2**53)]
MAX_TEXT = 512
Text = Annotated[str, AtMost(MAX_TEXT)]


class Struct(Value):
    """Base of all values with a wire form. Building one checks every field.

    The code that reads and writes a class is compiled at its first use, because thousands of small
    messages are parsed each second, and most programs use few of the classes.
    """

    AS_MAP: ClassVar[bool] = False
    """Whether this is written as a map, and not as an array, if it is part of another."""

    @classmethod
    def write_checks(cls, source: Source) -> None:
        """Add checks of all fields' types and caps; a failed check raises `MessageError`."""
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
        """Return the elements of the msgpack array for this value."""
        return _array_writer(type(self))(self)

    @classmethod
    def from_array(cls, elements: Any) -> Self:
        """Read the array form; unknown trailing elements are ignored. Raises `MessageError`."""
        if not isinstance(elements, list):
            raise MessageError(f"{cls.__name__}: not an array")
        if len(elements) < len(cls.__specs__):
            raise MessageError(f"{cls.__name__}: {len(elements)} elements of {field_count(cls)}")
        made: Self = _array_reader(cls)(cls, elements)
        return made

    def to_map(self) -> dict[str, Any]:
        """Return the msgpack map for this value, with keys in the order of the fields."""
        return _map_writer(type(self), type(self).__match_args__)(self)

    @classmethod
    def from_map(cls, value: Any) -> Self:
        """Read the map form. Raises `MessageError`, also for a missing or unknown key."""
        return cls.from_map_of(value, cls.__match_args__)

    def to_map_of(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Like `to_map`, but with only the fields `names`, given in field order."""
        return _map_writer(type(self), names)(self)

    @classmethod
    def from_map_of(cls, value: Any, names: tuple[str, ...]) -> Self:
        """Like `from_map`, but with only the fields `names`; the others get their defaults."""
        if not isinstance(value, dict):
            raise MessageError(f"{cls.__name__}: not a map")
        if value.keys() != _keys(names):
            raise MessageError(f"{cls.__name__}: not exactly the keys it has")
        made: Self = _map_reader(cls, names)(cls, value)
        return made


def field_count(cls: type[Struct]) -> int:
    """Return the number of elements in the array form of `cls`."""
    return len(cls.__specs__)


class Codec(NamedTuple):
    """Code to check, write and read values of one type; None if msgpack has the type itself."""

    check: WriteCheck
    to_wire: WriteConvert | None = None
    from_wire: WriteConvert | None = None


def codec_of(hint: Any, caps: tuple[Check, ...] = ()) -> Codec:
    """Return the codec of a type hint; `caps` are checked after the type. Raises TypeError."""
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
    if isinstance(hint, type) and issubclass(hint, Struct):
        return _compile_part(hint, caps)
    if hint in (bytes, int, str, bool):
        return Codec(_typed((hint,), caps))
    raise TypeError(f"a field cannot be of type {hint}")


def _typed(allowed: tuple[type, ...], caps: tuple[Check, ...]) -> WriteCheck:
    """Return a check of the exact type, not of isinstance: True is not the integer 1."""

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
    return MessageError(f"expected {expected.__name__}, got {type(value).__name__}")


def _compile_part(part: type[Struct], caps: tuple[Check, ...]) -> Codec:
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
        source.add(depth + 1, f"raise {source.bind(_wrong_length)}({value}, {len(parts):d})")
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
        raise MessageError(f"expected an array, got {type(value).__name__}")
    return value


def _wrong_length(value: Any, expected: int) -> MessageError:
    return MessageError(f"length {len(value)}, expected {expected}")


@cache
def _codecs(cls: type[Struct]) -> dict[str, Codec]:
    return {name: codec_of(hint) for name, hint in hints(cls).items()}


def hints(cls: type[Struct]) -> dict[str, Any]:
    """Return the fields' types like ``typing.get_type_hints`` with extras, in a twentieth of its
    time, which was most of the cost of a class at its first use."""
    return {
        name: _evaluated(hint, base.__module__) if isinstance(hint, str) else hint
        for base in reversed(cls.__mro__)
        if isinstance(base, ValueType)
        for name, hint in base.__annotations__.items()
        if name in cls.__specs__
    }


@cache
def _evaluated(hint: str, module: str) -> Any:
    """Evaluate an annotation of our own source; cached because the same few occur often."""
    return eval(hint, vars(sys.modules[module]))  # noqa: S307 - as get_type_hints does


@cache
def _keys(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(_key, names))


def _key(name: str) -> str:
    """Return the map key of a field: its name without the underscore after a reserved word."""
    return name.rstrip("_")


@cache
def _array_writer(cls: type[Struct]) -> Callable[[Struct], list[Any]]:
    source = Source()
    source.add(0, f"return [{', '.join(_written(source, cls))}]")
    return source.function(cls, "to_array", ["self"])


@cache
def _array_reader(cls: type[Struct]) -> Callable[[type[Struct], list[Any]], Any]:
    """Compile a reader for arrays that are long enough. Building the struct checks the values."""
    source = Source()
    places = [f"elements[{at}]" for at in range(field_count(cls))]
    source.add(0, f"return cls({', '.join(_read(source, cls, places))})")
    return source.function(cls, "from_array", ["cls", "elements"])


@cache
def _map_writer(cls: type[Struct], names: tuple[str, ...]) -> Callable[[Struct], dict[str, Any]]:
    source = Source()
    written = zip(cls.__specs__, _written(source, cls), strict=True)
    items = ", ".join(f"{_key(name)!r}: {value}" for name, value in written if name in names)
    source.add(0, f"return {{{items}}}")
    return source.function(cls, "to_map", ["self"])


@cache
def _map_reader(
    cls: type[Struct], names: tuple[str, ...]
) -> Callable[[type[Struct], dict[str, Any]], Any]:
    """Compile a reader for maps with exactly the keys. Building the struct checks the values."""
    source = Source()
    places = [f"value[{_key(name)!r}]" for name in cls.__specs__]
    read = zip(cls.__specs__, _read(source, cls, places), strict=True)
    fields = ", ".join(f"{name}={value}" for name, value in read if name in names)
    source.add(0, f"return cls({fields})")
    return source.function(cls, "from_map", ["cls", "value"])


def _written(source: Source, cls: type[Struct]) -> list[str]:
    """Return for each field the expression of its wire form."""
    codecs = [(codec.to_wire, f"self.{name}") for name, codec in _codecs(cls).items()]
    return [write(source, field) if write else field for write, field in codecs]


def _read(source: Source, cls: type[Struct], places: list[str]) -> list[str]:
    """Return for each field the expression that reads it from its expression in `places`."""
    codecs = zip(_codecs(cls).values(), places, strict=True)
    return [codec.from_wire(source, at) if codec.from_wire else at for codec, at in codecs]
