"""Frozen values that state their wire form: every field's type and cap is checked when built.

A `Struct` is written as a msgpack array (messages and their parts; unknown trailing elements are
ignored) or as a map with exactly its keys (signed bodies). Types a field may have: ``int``,
``str``, ``bool``, ``bytes``, ``Buffer`` (bulk), another `Struct`, ``tuple[T, ...]``,
``tuple[A, B]`` of plain values, ``T | None``, and an ``Annotated`` form of these with the caps
below.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Self

from protocol.codec.codecs import Cap, Codec, Wired, codec_of, wrong_length
from protocol.codec.errors import MessageError
from protocol.codec.names import check_file_id, check_principal, check_user_name
from protocol.codec.values import Source, Value, ValueType


class Exactly(Cap):
    """A length of exactly `size` (bytes, or elements of a tuple)."""

    size: int

    def __call__(self, value: Any) -> None:
        if len(value) != self.size:
            raise wrong_length(value, self.size)

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


def shortened(text: str) -> str:
    """`text`, less what a field of type `Text` has no room for at its end."""
    return text.encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")


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
MAX_TEXT = 512
Text = Annotated[str, AtMost(MAX_TEXT)]


class Struct(Wired):
    """Base of all values with a wire form. Building one checks every field.

    What is done with every message is compiled for its class when it is first done: small ones are
    parsed by the thousand a second, and most programs use few of the classes.
    """

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
        return _map_writer(type(self), type(self).__match_args__)(self)

    @classmethod
    def from_map(cls, value: Any) -> Self:
        """The inverse; a missing or unknown key is refused. Raises `MessageError`."""
        return cls.from_map_of(value, cls.__match_args__)

    def to_map_of(self, names: tuple[str, ...]) -> dict[str, Any]:
        """As `to_map`, with the fields `names` only, which stand there in their order."""
        return _map_writer(type(self), names)(self)

    @classmethod
    def from_map_of(cls, value: Any, names: tuple[str, ...]) -> Self:
        """The inverse; the other fields have their defaults. Raises as `from_map`."""
        if not isinstance(value, dict):
            raise MessageError(f"{cls.__name__}: not a map")
        if value.keys() != _keys(names):
            raise MessageError(f"{cls.__name__}: not exactly the keys it has")
        made: Self = _map_reader(cls, names)(cls, value)
        return made


def field_count(cls: type[Struct]) -> int:
    """How many elements the array form of `cls` has."""
    return len(cls.__specs__)


@cache
def _codecs(cls: type[Struct]) -> dict[str, Codec]:
    return {name: codec_of(hint) for name, hint in hints(cls).items()}


def hints(cls: type[Struct]) -> dict[str, Any]:
    """The types of the fields, as ``typing.get_type_hints`` gives them with extras, at a twentieth
    of its time: that was most of what a class cost when it was first used."""
    return {
        name: _evaluated(hint, base.__module__) if isinstance(hint, str) else hint
        for base in reversed(cls.__mro__)
        if isinstance(base, ValueType)
        for name, hint in base.__annotations__.items()
        if name in cls.__specs__
    }


@cache
def _evaluated(hint: str, module: str) -> Any:
    """What an annotation in our own source stands for; the same few stand there again and again."""
    return eval(hint, vars(sys.modules[module]))  # noqa: S307 - as get_type_hints does


@cache
def _keys(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(_key, names))


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
    """Of a map with exactly the keys. Building the struct checks what was read."""
    source = Source()
    places = [f"value[{_key(name)!r}]" for name in cls.__specs__]
    read = zip(cls.__specs__, _read(source, cls, places), strict=True)
    fields = ", ".join(f"{name}={value}" for name, value in read if name in names)
    source.add(0, f"return cls({fields})")
    return source.function(cls, "from_map", ["cls", "value"])


def _written(source: Source, cls: type[Struct]) -> list[str]:
    """For each field the expression of its wire form."""
    codecs = [(codec.to_wire, f"self.{name}") for name, codec in _codecs(cls).items()]
    return [write(source, field) if write else field for write, field in codecs]


def _read(source: Source, cls: type[Struct], places: list[str]) -> list[str]:
    """For each field the expression of its value, whose wire form stands in its place."""
    codecs = zip(_codecs(cls).values(), places, strict=True)
    return [codec.from_wire(source, at) if codec.from_wire else at for codec, at in codecs]
