"""Frozen dataclasses that state their wire form: every field's type and cap is checked when built.

A `Struct` is written as a msgpack array (messages and their parts; unknown trailing elements are
ignored) or as a map with exactly its keys (signed bodies). Types a field may have: ``int``,
``str``, ``bool``, ``bytes``, ``Buffer`` (bulk), another `Struct`, ``tuple[T, ...]``,
``tuple[A, B]`` of plain values, ``T | None``, and an ``Annotated`` form of these with the caps
below.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
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

Check = Callable[[Any], None]
Convert = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Exactly:
    """A length of exactly `size` (bytes, or elements of a tuple)."""

    size: int

    def __call__(self, value: Any) -> None:
        if len(value) != self.size:
            raise MessageError(f"length {len(value)}, not {self.size}")


@dataclasses.dataclass(frozen=True, slots=True)
class AtMost:
    """A length of at most `size` (bytes of text or binary, or elements of a tuple)."""

    size: int

    def __call__(self, value: Any) -> None:
        try:
            length = len(value.encode()) if isinstance(value, str) else len(value)
        except UnicodeEncodeError as exc:
            raise MessageError("text that is not valid Unicode") from exc
        if length > self.size:
            raise MessageError(f"length {length}, at most {self.size} allowed")


@dataclasses.dataclass(frozen=True, slots=True)
class Between:
    """An integer from `low` to `high`, both included."""

    low: int
    high: int

    def __call__(self, value: Any) -> None:
        if not self.low <= value <= self.high:
            raise MessageError(f"{value} is not between {self.low} and {self.high}")


@dataclasses.dataclass(frozen=True, slots=True)
class OneOf:
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


class Struct:
    """Base of all frozen dataclasses with a wire form. Building one checks every field."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    AS_MAP: ClassVar[bool] = False
    """Whether this is written as a map where it is part of another."""

    def __post_init__(self) -> None:
        for name, check in _plan(type(self)).checks:
            try:
                check(getattr(self, name))
            except MessageError as exc:
                raise MessageError(f"{type(self).__name__}.{name}: {exc}") from None

    def to_array(self) -> list[Any]:
        """The elements of the msgpack array that stands for this."""
        return _plan(type(self)).write(self)

    @classmethod
    def from_array(cls, elements: Any) -> Self:
        """The inverse; unknown trailing elements are ignored. Raises `MessageError`."""
        plan = _plan(cls)
        if not isinstance(elements, list):
            raise MessageError(f"{cls.__name__}: not an array")
        if len(elements) < len(plan.names):
            raise MessageError(f"{cls.__name__}: {len(elements)} elements of {len(plan.names)}")
        return cls(*plan.read(elements[: len(plan.names)]))

    def to_map(self) -> dict[str, Any]:
        """The msgpack map that stands for this, its keys in the order of the fields."""
        plan = _plan(type(self))
        return dict(zip(plan.keys, plan.write(self), strict=True))

    @classmethod
    def from_map(cls, value: Any) -> Self:
        """The inverse; a missing or unknown key is refused. Raises `MessageError`."""
        plan = _plan(cls)
        if not isinstance(value, dict):
            raise MessageError(f"{cls.__name__}: not a map")
        if value.keys() != plan.key_set:
            raise MessageError(f"{cls.__name__}: not exactly the keys it has")
        return cls(*plan.read([value[key] for key in plan.keys]))


class _Codec(NamedTuple):
    """How values of one type are checked, written and read. None: they are what msgpack has."""

    check: Check
    to_wire: Convert | None = None
    from_wire: Convert | None = None


class _Plan:
    """What a class declares, made ready once: small records are parsed by the thousand a second."""

    __slots__ = ("_from_wire", "_to_wire", "checks", "key_set", "keys", "names")

    def __init__(self, cls: type[Struct]) -> None:
        hints = get_type_hints(cls, include_extras=True)
        self.names = tuple(field.name for field in dataclasses.fields(cls))
        codecs = [_compile(hints[name]) for name in self.names]
        # The key in a map: a name that Python reserves carries an underscore in Python only.
        self.keys = tuple(name.rstrip("_") for name in self.names)
        self.key_set = frozenset(self.keys)
        self.checks = [(name, codec.check) for name, codec in zip(self.names, codecs, strict=True)]
        self._to_wire = [(at, c.to_wire) for at, c in enumerate(codecs) if c.to_wire]
        self._from_wire = [(at, c.from_wire) for at, c in enumerate(codecs) if c.from_wire]

    def write(self, struct: Struct) -> list[Any]:
        """The wire form of each field, in order."""
        values = [getattr(struct, name) for name in self.names]
        for at, convert in self._to_wire:
            values[at] = convert(values[at])
        return values

    def read(self, values: list[Any]) -> list[Any]:
        """The inverse, in place and unchecked but for the shape of arrays."""
        for at, convert in self._from_wire:
            values[at] = convert(values[at])
        return values


_PLANS: dict[type[Struct], _Plan] = {}


def _plan(cls: type[Struct]) -> _Plan:
    """Compiled at first use, not at import: most programs use few of the messages."""
    plan = _PLANS.get(cls)
    if plan is None:
        plan = _PLANS[cls] = _Plan(cls)
    return plan


def field_count(cls: type[Struct]) -> int:
    """How many elements the array form of `cls` has."""
    return len(_plan(cls).names)


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
        if hint.AS_MAP:
            return _Codec(_typed((hint,), caps), _struct_to_map, hint.from_map)
        return _Codec(_typed((hint,), caps), _struct_to_array, hint.from_array)
    if hint in (bytes, int, str, bool):
        return _Codec(_typed((hint,), caps))
    raise TypeError(f"a field cannot be of type {hint}")


def _struct_to_array(value: Struct) -> list[Any]:
    return value.to_array()


def _struct_to_map(value: Struct) -> dict[str, Any]:
    return value.to_map()


def _typed(allowed: tuple[type, ...], caps: tuple[Check, ...]) -> Check:
    """Compares the types themselves, not isinstance: True is not the integer 1 here."""

    def check(value: Any) -> None:
        if type(value) not in allowed:
            raise _wrong_type(value, allowed)
        for cap in caps:
            cap(value)

    def check_with_one_cap(value: Any) -> None:
        if type(value) not in allowed:
            raise _wrong_type(value, allowed)
        only_cap(value)

    if len(caps) != 1:
        return check
    (only_cap,) = caps  # as nearly every field has: a loop around it would cost as much as it
    return check_with_one_cap


def _wrong_type(value: Any, allowed: tuple[type, ...]) -> MessageError:
    return MessageError(f"{type(value).__name__} where {allowed[0].__name__} belongs")


def _compile_optional(hint: Any, caps: tuple[Check, ...]) -> _Codec:
    inner = [arg for arg in get_args(hint) if arg is not type(None)]
    if len(inner) != 1:
        raise TypeError(f"a field cannot be of type {hint}")
    codec = _compile(inner[0], caps)

    def check(value: Any) -> None:
        if value is not None:
            codec.check(value)

    return _Codec(check, _unless_none(codec.to_wire), _unless_none(codec.from_wire))


def _unless_none(convert: Convert | None) -> Convert | None:
    if convert is None:
        return None
    return lambda value: None if value is None else convert(value)


def _compile_tuple(args: tuple[Any, ...], caps: tuple[Check, ...]) -> _Codec:
    if len(args) == 2 and args[1] is Ellipsis:
        return _compile_many(_compile(args[0]), _typed((tuple,), caps))
    parts = [_compile(arg) for arg in args]
    is_tuple = _typed((tuple,), (*caps, Exactly(len(parts))))
    checks = [part.check for part in parts]

    def check(value: Any) -> None:
        is_tuple(value)
        for check_item, item in zip(checks, value, strict=True):
            check_item(item)

    if any(part.to_wire or part.from_wire for part in parts):
        raise TypeError(f"a pair may hold plain values only, not {args}")
    return _Codec(check, list, _to_tuple)


def _to_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(_listed(value))


def _compile_many(item: _Codec, is_tuple: Check) -> _Codec:
    check_item, item_to_wire, item_from_wire = item

    def check(value: Any) -> None:
        is_tuple(value)
        for one in value:
            check_item(one)

    if item_to_wire is None or item_from_wire is None:
        return _Codec(check, list, _to_tuple)
    return _Codec(
        check,
        lambda value: [item_to_wire(one) for one in value],
        lambda value: tuple([item_from_wire(one) for one in _listed(value)]),
    )


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise MessageError(f"{type(value).__name__} where an array belongs")
    return value
