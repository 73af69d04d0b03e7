"""Plain immutable and mutable values: msgspec structs with secrets hidden in their repr.

A msgspec struct is created in a few microseconds and compiles nothing, so a program can have
hundreds of classes without a slow start. Values with a wire form are in `protocol.codec.fields`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar, dataclass_transform

import msgspec
from msgspec import NODEFAULT, structs

__all__ = ["Hidden", "Mutable", "Value", "ValueType", "as_dict", "changed", "field"]

_Value = TypeVar("_Value", bound="Value")


class Hidden(NamedTuple):
    """A field that is left out of the repr."""

    field: Any


def field(*, default: Any = NODEFAULT, default_factory: Any = NODEFAULT, repr: bool = True) -> Any:  # noqa: A002
    """Like ``dataclasses.field``, for the body of a `Value` or a `Mutable`."""
    stated: dict[str, Any] = {"default": default, "default_factory": default_factory}
    made = msgspec.field(**stated)
    return made if repr else Hidden(made)


class ValueType(msgspec.StructMeta):
    """Metaclass that notes the fields declared by ``field(repr=False)``."""

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any
    ) -> ValueType:
        if "__init__" in namespace or "__new__" in namespace:
            raise TypeError(f"{name}: the __init__ of a value is given by its fields")
        hidden = frozenset[str]().union(*(getattr(base, "__hidden__", ()) for base in bases))
        for key, stated in namespace.items():
            if type(stated) is Hidden:
                hidden |= {key}
                namespace[key] = stated.field
            elif type(stated).__module__ == "dataclasses":
                raise TypeError("use field() of protocol.codec.values, not that of dataclasses")
        namespace["__hidden__"] = hidden
        return super().__new__(mcs, name, bases, namespace, **options)


def _shown(self: Value | Mutable) -> list[tuple[str, Any]]:
    """Return the name and value of every field that is not hidden."""
    shown = [name for name in self.__struct_fields__ if name not in self.__hidden__]
    return [(name, getattr(self, name)) for name in shown]


def _repr(self: Value | Mutable) -> str:
    shown = ", ".join(f"{name}={value!r}" for name, value in _shown(self))
    return f"{type(self).__qualname__}({shown})"


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Value(msgspec.Struct, frozen=True, metaclass=ValueType):
    """Base of frozen values. Fields are the annotations of the class body, as in a dataclass.

    Two values are equal if they have the same class and equal fields. A ``field(repr=False)`` is
    left out of the repr. ``__post_init__`` checks a value, and what `changed` makes of it.
    """

    __hidden__: ClassVar[frozenset[str]]
    __repr__ = _repr
    __rich_repr__ = _shown

    def __replace__(self, /, **fields: Any) -> Self:
        """Return a checked copy with other `fields`. Raises TypeError for an unknown one."""
        made = structs.replace(self, **fields)
        check = getattr(made, "__post_init__", None)
        if check is not None:
            check()
        return made


@dataclass_transform(eq_default=False, field_specifiers=(field,))
class Mutable(msgspec.Struct, eq=False, metaclass=ValueType):
    """Base of classes like `Value` whose fields can be set; equal only to itself."""

    __hidden__: ClassVar[frozenset[str]]
    __repr__ = _repr
    __rich_repr__ = _shown


if TYPE_CHECKING:
    from dataclasses import replace as changed
else:

    def changed(value: _Value, /, **fields: object) -> _Value:
        """Like ``dataclasses.replace``, and type checkers check it in the same way."""
        return value.__replace__(**fields)


def as_dict(value: Value) -> dict[str, Any]:
    """Return the fields of a value, in order, by name."""
    return structs.asdict(value)
