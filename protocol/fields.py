"""Frozen dataclasses that state their wire form: every field's type and cap is checked when built.

A `Struct` is written as a msgpack array (messages and their parts; unknown trailing elements are
ignored) or as a map with exactly its keys (signed bodies). Types a field may have: ``int``,
``str``, ``bool``, ``bytes``, ``Buffer`` (bulk), another `Struct`, ``tuple[T, ...]``,
``tuple[A, B]``, ``T | None``, and an ``Annotated`` form of these with the caps below.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

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
        for field in _plan(type(self)):
            try:
                field.check(getattr(self, field.name))
            except MessageError as exc:
                raise MessageError(f"{type(self).__name__}.{field.name}: {exc}") from None

    def to_array(self) -> list[Any]:
        """The elements of the msgpack array that stands for this."""
        return [field.to_wire(getattr(self, field.name)) for field in _plan(type(self))]

    @classmethod
    def from_array(cls, elements: Any) -> Self:
        """The inverse; unknown trailing elements are ignored. Raises `MessageError`."""
        plan = _plan(cls)
        if not isinstance(elements, list):
            raise MessageError(f"{cls.__name__}: not an array")
        if len(elements) < len(plan):
            raise MessageError(f"{cls.__name__}: {len(elements)} elements of {len(plan)}")
        values = [field.from_wire(e) for field, e in zip(plan, elements, strict=False)]
        return cls(*values)

    def to_map(self) -> dict[str, Any]:
        """The msgpack map that stands for this, its keys in the order of the fields."""
        return {field.key: field.to_wire(getattr(self, field.name)) for field in _plan(type(self))}

    @classmethod
    def from_map(cls, value: Any) -> Self:
        """The inverse; a missing or unknown key is refused. Raises `MessageError`."""
        plan = _plan(cls)
        if not isinstance(value, dict):
            raise MessageError(f"{cls.__name__}: not a map")
        if value.keys() != {field.key for field in plan}:
            raise MessageError(f"{cls.__name__}: not exactly the keys it has")
        return cls(**{field.name: field.from_wire(value[field.key]) for field in plan})


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    name: str
    check: Check
    to_wire: Convert
    from_wire: Convert

    @property
    def key(self) -> str:
        """The key in a map: a name that Python reserves carries an underscore here only."""
        return self.name.rstrip("_")


_PLANS: dict[type[Struct], tuple[_Field, ...]] = {}


def _plan(cls: type[Struct]) -> tuple[_Field, ...]:
    """Compiled at first use, not at import: most programs use few of the messages."""
    plan = _PLANS.get(cls)
    if plan is None:
        hints = get_type_hints(cls, include_extras=True)
        plan = tuple(_Field(f.name, *_compile(hints[f.name])) for f in dataclasses.fields(cls))
        _PLANS[cls] = plan
    return plan


def field_count(cls: type[Struct]) -> int:
    """How many elements the array form of `cls` has."""
    return len(_plan(cls))


def _same(value: Any) -> Any:
    return value


def _compile(hint: Any) -> tuple[Check, Convert, Convert]:
    origin = get_origin(hint)
    if origin is Annotated:
        return _compile_annotated(hint)
    if hint == Buffer:
        return _typed(bytes, bytearray, memoryview), _same, _same
    if origin in (Union, types.UnionType):
        return _compile_optional(hint)
    if origin is tuple:
        return _compile_tuple(get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Struct):
        if hint.AS_MAP:
            return _typed(hint), _struct_to_map, hint.from_map
        return _typed(hint), _struct_to_array, hint.from_array
    if hint is bytes:
        return _typed(bytes), _same, _to_bytes
    if hint in (int, str, bool):
        return _typed(hint), _same, _same
    raise TypeError(f"a field cannot be of type {hint}")


def _struct_to_array(value: Struct) -> list[Any]:
    return value.to_array()


def _struct_to_map(value: Struct) -> dict[str, Any]:
    return value.to_map()


def _to_bytes(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def _typed(*allowed: type) -> Check:
    def check(value: Any) -> None:
        # `type() in`, not isinstance: True is not the integer 1 here.
        if type(value) not in allowed:
            raise MessageError(f"{type(value).__name__} where {allowed[0].__name__} belongs")

    return check


def _compile_annotated(hint: Any) -> tuple[Check, Convert, Convert]:
    base, *extras = get_args(hint)
    check_base, to_wire, from_wire = _compile(base)
    caps = [extra for extra in extras if callable(extra)]

    def check(value: Any) -> None:
        check_base(value)
        for cap in caps:
            cap(value)

    return check, to_wire, from_wire


def _compile_optional(hint: Any) -> tuple[Check, Convert, Convert]:
    inner = [arg for arg in get_args(hint) if arg is not type(None)]
    if len(inner) != 1:
        raise TypeError(f"a field cannot be of type {hint}")
    check_inner, to_wire, from_wire = _compile(inner[0])

    def check(value: Any) -> None:
        if value is not None:
            check_inner(value)

    return (
        check,
        lambda value: None if value is None else to_wire(value),
        lambda value: None if value is None else from_wire(value),
    )


def _compile_tuple(args: tuple[Any, ...]) -> tuple[Check, Convert, Convert]:
    is_tuple = _typed(tuple)
    if len(args) == 2 and args[1] is Ellipsis:
        check_item, to_wire, from_wire = _compile(args[0])

        def check(value: Any) -> None:
            is_tuple(value)
            for item in value:
                check_item(item)

        return (
            check,
            lambda value: [to_wire(item) for item in value],
            lambda value: tuple(from_wire(item) for item in _listed(value)),
        )
    parts = [_compile(arg) for arg in args]

    def check_parts(value: Any) -> None:
        is_tuple(value)
        Exactly(len(parts))(value)
        for part, item in zip(parts, value, strict=True):
            part[0](item)

    def from_parts(value: Any) -> tuple[Any, ...]:
        Exactly(len(parts))(_listed(value))
        return tuple(part[2](item) for part, item in zip(parts, value, strict=True))

    return (
        check_parts,
        lambda value: [part[1](item) for part, item in zip(parts, value, strict=True)],
        from_parts,
    )


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise MessageError(f"{type(value).__name__} where an array belongs")
    return value
