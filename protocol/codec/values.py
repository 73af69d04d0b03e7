"""Frozen values, made once each and compiled at first use: what a dataclass is, at a start's price.

A frozen dataclass with slots costs over a millisecond at import: five functions are compiled for
it, and then the class is made anew for its slots. A program that handles one command uses a tenth
of its classes. So a `Value` is made as any class is, and its ``__init__`` is compiled when the
first one is built.

Source text is generated here, and it is safe: all that varies in it are names of classes and
fields, which Python itself took for identifiers in our own modules, and whole numbers. Defaults,
types and checks are never written into the text but bound to names.

The library's module is loaded by whoever asks for what only it has: with what it loads itself it
is a tenth of what a client takes to start.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast, dataclass_transform

if TYPE_CHECKING:
    import dataclasses

__all__ = ["Mutable", "Source", "Value", "ValueType", "changed", "contents", "field"]

_MANY = 3
"""Fields from which on `_open` is worth it."""
_Value = TypeVar("_Value", bound="Value")
_ABSENT: Any = object()
"""Where nothing was stated."""


class Source:
    """The text of one function, and what the names in it are bound to.

    All names but those of fields begin with two underscores. A field's cannot: Python mangles such
    a name in a class body. So neither ever stands for the other.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._bound: dict[str, object] = {"__type": type, "__len": len}

    def bind(self, value: object) -> str:
        """A name for `value` in the text, the same one for the same object."""
        for name, bound in self._bound.items():
            if bound is value:
                return name
        name = f"__{len(self._bound)}"
        self._bound[name] = value
        return name

    def add(self, depth: int, line: str) -> None:
        """`line` as the next one of the function's body, `depth` blocks deep in it."""
        self.lines.append("    " * (depth + 1) + line)

    def function(self, cls: type, name: str, parameters: Iterable[str]) -> Callable[..., Any]:
        """The function, as if it stood in the body of `cls`."""
        text = "\n".join([f"def {name}({', '.join(parameters)}):", *self.lines])
        where = f"<{cls.__module__}.{cls.__qualname__}>"
        exec(compile(text, where, "exec"), self._bound)  # noqa: S102 (see above: our own names)
        made: Callable[..., Any] = self._bound[name]  # type: ignore[assignment]
        made.__qualname__ = f"{cls.__qualname__}.{name}"
        made.__module__ = cls.__module__
        return made


class Spec:
    """What is known of a field beside its type."""

    __slots__ = ("default", "factory", "shown")

    def __init__(self, default: Any, factory: Any, *, shown: bool) -> None:
        self.default = default
        self.factory = factory
        self.shown = shown


_PLAIN = Spec(_ABSENT, _ABSENT, shown=True)


def field(*, default: Any = _ABSENT, default_factory: Any = _ABSENT, repr: bool = True) -> Any:  # noqa: A002
    """As ``dataclasses.field``, for the body of a `Value` or a `Mutable`."""
    return Spec(default, default_factory, shown=repr)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class ValueType(type):
    """Gives a class a slot for each annotation in its body that is not a ClassVar."""

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any
    ) -> ValueType:
        if "__init__" in namespace:
            raise TypeError(f"{name}: a value's __init__ is made, not written")
        specs: dict[str, Spec] = {}
        for base in bases:
            specs |= getattr(base, "__specs__", {})
        own = [
            field
            for field, hint in namespace.get("__annotations__", {}).items()
            if not str(hint).removeprefix("typing.").startswith("ClassVar")
        ]
        for field in own:
            specs[field] = _spec(namespace.pop(field)) if field in namespace else _PLAIN
        namespace["__slots__"] = (*namespace.get("__slots__", ()), *own)
        namespace["__specs__"] = specs
        namespace["__match_args__"] = tuple(specs)
        namespace["__init__"] = _first_init
        return super().__new__(mcs, name, bases, namespace, **options)


def _spec(stated: Any) -> Spec:
    """What a class body gives a field: a default, or ``field(…)``."""
    if isinstance(stated, Spec):
        return stated
    if type(stated).__module__ == "dataclasses":
        raise TypeError("a field of a value is stated by the field() of this module")
    return Spec(stated, _ABSENT, shown=True)


def _first_init(self: Value | Mutable, *args: Any, **keywords: Any) -> None:
    """Stands in every class until the first is built. Two threads may compile the same."""
    cls = type(self)
    cls.__init__ = _compiled_init(cls)  # type: ignore[method-assign]
    cls.__init__(self, *args, **keywords)


def _compiled_init(cls: type[Value | Mutable]) -> Callable[..., None]:
    """``__init__`` of `cls`: its checks, then every slot set, then ``__post_init__``.

    Slots are set past ``__setattr__``, which refuses: by ``object.__setattr__``, or where they are
    more than a few, while the value is of a class that lets them be set (`_open`).
    """
    source = Source()
    parameters = ["self"]
    for name, spec in cls.__specs__.items():
        if spec.factory is not _ABSENT:
            absent = source.bind(_ABSENT)
            parameters.append(f"{name}={absent}")
            source.add(0, f"if {name} is {absent}:")
            source.add(1, f"{name} = {source.bind(spec.factory)}()")
        elif spec.default is not _ABSENT:
            parameters.append(f"{name}={source.bind(spec.default)}")
        else:
            parameters.append(name)
    if issubclass(cls, Value):
        cls.write_checks(source)
    plain = [f"self.{name} = {name}" for name in cls.__specs__]
    if not issubclass(cls, Value):
        lines = plain
    elif len(plain) < _MANY:
        setter = source.bind(object.__setattr__)
        lines = [f"{setter}(self, {name!r}, {name})" for name in cls.__specs__]
    else:
        setter = source.bind(object.__setattr__)
        opened = f"{setter}(self, '__class__', {source.bind(_open(cls))})"
        lines = [opened, *plain, f"self.__class__ = {source.bind(cls)}"]
    for line in lines:
        source.add(0, line)
    if hasattr(cls, "__post_init__"):
        source.add(0, "self.__post_init__()")
    if not source.lines:
        source.add(0, "pass")
    return source.function(cls, "__init__", parameters)


def _open(cls: type[Value]) -> type[Value]:
    """What a value of `cls` is while its ``__init__`` sets its slots, which nobody else sees: the
    same, but that lets them be set. Python does that in a tenth of the time of a call for each, and
    takes two calls to change the class: so it is worth it from `_MANY` fields on."""
    body = {
        "__slots__": (),
        "__setattr__": object.__setattr__,
        "__delattr__": object.__delattr__,
        "__module__": cls.__module__,
    }
    made: type[Value] = cast(Any, type.__new__)(ValueType, cls.__name__, (cls,), body)
    return made


class _Fields:
    """`Value.__dataclass_fields__`, made when asked for: by replace, fields and asdict."""

    def __init__(self) -> None:
        self._made: dict[type, dict[str, dataclasses.Field[Any]]] = {}

    def __get__(self, _: Value | None, cls: type[Value]) -> Mapping[str, dataclasses.Field[Any]]:
        import dataclasses

        found = self._made.get(cls)
        if found is None:
            specs = cls.__specs__.items()
            stated = [(name, Any, _as_the_library_has_it(spec)) for name, spec in specs]
            # Nothing is compiled for this twin; it is made for the fields that the library makes.
            twin: Any = dataclasses.make_dataclass(
                cls.__name__, stated, init=False, repr=False, eq=False, namespace={"__doc__": ""}
            )
            found = self._made[cls] = twin.__dataclass_fields__
        return found


def _as_the_library_has_it(spec: Spec) -> Any:
    import dataclasses

    if spec.factory is not _ABSENT:
        return dataclasses.field(default_factory=spec.factory, repr=spec.shown)
    if spec.default is not _ABSENT:
        return dataclasses.field(default=spec.default, repr=spec.shown)
    return dataclasses.field(repr=spec.shown)


class Value(metaclass=ValueType):
    """Base of frozen values. Fields are the annotations of the class body, as in a dataclass.

    Equal are two of the same class with equal fields. ``dataclasses.replace``, ``fields`` and
    ``asdict`` work; what is stated as ``field(repr=False)`` does not show.
    """

    __specs__: ClassVar[dict[str, Spec]]
    __match_args__: ClassVar[tuple[str, ...]]
    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    else:
        __dataclass_fields__ = _Fields()

    @classmethod
    def write_checks(cls, source: Source) -> None:
        """Add to ``__init__`` what refuses wrong values; here nothing."""

    def __setattr__(self, name: str, value: object) -> None:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return contents(self) == contents(other)

    def __hash__(self) -> int:
        return hash(contents(self))

    def __repr__(self) -> str:
        shown = [name for name, spec in type(self).__specs__.items() if spec.shown]
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        return f"{type(self).__qualname__}({fields})"

    def __reduce__(self) -> tuple[type[Value], tuple[object, ...]]:
        """Copies are built anew, and so checked."""
        return type(self), contents(self)


def contents(value: Value) -> tuple[object, ...]:
    """The values of all fields, in order."""
    return _reader(type(value))(value)


@cache
def _reader(cls: type[Value]) -> Callable[[Value], tuple[object, ...]]:
    names = cls.__match_args__
    if len(names) > 1:
        return operator.attrgetter(*names)
    # Of one name that gives no tuple, and there is none of no name.
    return lambda value: tuple([getattr(value, name) for name in names])


if TYPE_CHECKING:
    from dataclasses import replace as changed
else:

    def changed(value: _Value, **fields: object) -> _Value:
        """As ``dataclasses.replace``, at a tenth of its time, and checked by mypy as that is."""
        return _changer(type(value), tuple(fields))(value, *fields.values())


@cache
def _changer(cls: type[Value], names: tuple[str, ...]) -> Callable[..., Any]:
    """For each set of fields that somewhere in our own code are changed together."""
    source = Source()
    others = [name for name in cls.__specs__ if name not in names]
    kept = [f"{name}=self.{name}" for name in others]
    given = [f"{name}={name}" for name in names]
    source.add(0, f"return {source.bind(cls)}({', '.join(kept + given)})")
    return source.function(cls, "changed", ["self", *names])


@dataclass_transform(eq_default=False, field_specifiers=(field,))
class MutableType(ValueType):
    """As `ValueType`, for type checkers: fields can be set."""


class Mutable(metaclass=MutableType):
    """Base of classes that are made and compiled as a `Value` is, and whose fields change. Equal is
    each to itself only."""

    __specs__: ClassVar[dict[str, Spec]]
