"""Frozen value classes like dataclasses, but compiled at first use so that programs start faster.

A frozen dataclass with slots costs over a millisecond at import: five functions are compiled, and
the class is created a second time for its slots. A program that runs one command uses a tenth of
its classes. A `Value` is created like any class, and its ``__init__`` is compiled when the first
one is built.

Generating source text is safe here: only class names, field names and whole numbers vary in it, and
the names are identifiers of our own modules. Defaults, types and checks are bound to names and
never written into the text. `dataclasses` is imported only if needed: it and its imports take a
tenth of a client's start.
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
"""Number of fields from which `_open` saves time."""
_Value = TypeVar("_Value", bound="Value")
_ABSENT: Any = object()
"""Marks a default that was not given."""


class Source:
    """The source text of one function, and the objects bound to its names.

    All names except those of fields begin with two underscores. A field's cannot, because Python
    mangles such a name in a class body. So the two never collide.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._bound: dict[str, object] = {"__type": type, "__len": len}

    def bind(self, value: object) -> str:
        """Return a name for `value` in the text, the same name for the same object."""
        for name, bound in self._bound.items():
            if bound is value:
                return name
        name = f"__{len(self._bound)}"
        self._bound[name] = value
        return name

    def add(self, depth: int, line: str) -> None:
        """Append `line` to the function's body, indented by `depth` blocks."""
        self.lines.append("    " * (depth + 1) + line)

    def function(self, cls: type, name: str, parameters: Iterable[str]) -> Callable[..., Any]:
        """Compile the function as if it were defined in the body of `cls`."""
        text = "\n".join([f"def {name}({', '.join(parameters)}):", *self.lines])
        where = f"<{cls.__module__}.{cls.__qualname__}>"
        exec(compile(text, where, "exec"), self._bound)  # noqa: S102 (see above: our own names)
        made: Callable[..., Any] = self._bound[name]  # type: ignore[assignment]
        made.__qualname__ = f"{cls.__qualname__}.{name}"
        made.__module__ = cls.__module__
        return made


class Spec:
    """Properties of a field besides its type."""

    __slots__ = ("default", "factory", "shown")

    def __init__(self, default: Any, factory: Any, *, shown: bool) -> None:
        self.default = default
        self.factory = factory
        self.shown = shown


_PLAIN = Spec(_ABSENT, _ABSENT, shown=True)


def field(*, default: Any = _ABSENT, default_factory: Any = _ABSENT, repr: bool = True) -> Any:  # noqa: A002
    """Like ``dataclasses.field``, for the body of a `Value` or a `Mutable`."""
    return Spec(default, default_factory, shown=repr)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class ValueType(type):
    """Metaclass that creates a slot for each annotation that is not a ClassVar."""

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any
    ) -> ValueType:
        if "__init__" in namespace:
            raise TypeError(f"{name}: the __init__ of a value is generated")
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
    """Return the `Spec` for a field's value in the class body: a default, or ``field(…)``."""
    if isinstance(stated, Spec):
        return stated
    if type(stated).__module__ == "dataclasses":
        raise TypeError("use field() of protocol.codec.values, not that of dataclasses")
    return Spec(stated, _ABSENT, shown=True)


def _first_init(self: Value | Mutable, *args: Any, **keywords: Any) -> None:
    """Compile the class's ``__init__`` at its first use. Two threads may compile the same one."""
    cls = type(self)
    cls.__init__ = _compiled_init(cls)  # type: ignore[method-assign]
    cls.__init__(self, *args, **keywords)


def _compiled_init(cls: type[Value | Mutable]) -> Callable[..., None]:
    """Compile ``__init__`` of `cls`: checks, then every slot set, then ``__post_init__``.

    ``__setattr__`` refuses, so slots are set by ``object.__setattr__``. From `_MANY` fields on, the
    value instead belongs for a moment to a class that allows it (`_open`).
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
    """Return a subclass of `cls` whose attributes can be set, used only while ``__init__`` runs.

    Setting an attribute takes a tenth of a call of ``object.__setattr__``; changing the class takes
    two calls. So it pays from `_MANY` fields on.
    """
    body = {
        "__slots__": (),
        "__setattr__": object.__setattr__,
        "__delattr__": object.__delattr__,
        "__module__": cls.__module__,
    }
    made: type[Value] = cast(Any, type.__new__)(ValueType, cls.__name__, (cls,), body)
    return made


class _Fields:
    """Descriptor for `Value.__dataclass_fields__`, which replace, fields and asdict read."""

    def __init__(self) -> None:
        self._made: dict[type, dict[str, dataclasses.Field[Any]]] = {}

    def __get__(self, _: Value | None, cls: type[Value]) -> Mapping[str, dataclasses.Field[Any]]:
        import dataclasses

        found = self._made.get(cls)
        if found is None:
            specs = cls.__specs__.items()
            stated = [(name, Any, _dataclass_field(spec)) for name, spec in specs]
            # A class without compiled functions, created only for its Field objects.
            twin: Any = dataclasses.make_dataclass(
                cls.__name__, stated, init=False, repr=False, eq=False, namespace={"__doc__": ""}
            )
            found = self._made[cls] = twin.__dataclass_fields__
        return found


def _dataclass_field(spec: Spec) -> Any:
    import dataclasses

    if spec.factory is not _ABSENT:
        return dataclasses.field(default_factory=spec.factory, repr=spec.shown)
    if spec.default is not _ABSENT:
        return dataclasses.field(default=spec.default, repr=spec.shown)
    return dataclasses.field(repr=spec.shown)


class Value(metaclass=ValueType):
    """Base of frozen values. Fields are the annotations of the class body, as in a dataclass.

    Two values are equal if they have the same class and equal fields. ``dataclasses.replace``,
    ``fields`` and ``asdict`` work. A ``field(repr=False)`` is left out of the repr.
    """

    __specs__: ClassVar[dict[str, Spec]]
    __match_args__: ClassVar[tuple[str, ...]]
    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    else:
        __dataclass_fields__ = _Fields()

    @classmethod
    def write_checks(cls, source: Source) -> None:
        """Add checks of the fields to ``__init__``. A plain value has none."""

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
        """Make copying and unpickling call ``__init__``, so that the copy is checked."""
        return type(self), contents(self)


def contents(value: Value) -> tuple[object, ...]:
    """Return the values of all fields in order."""
    return _reader(type(value))(value)


@cache
def _reader(cls: type[Value]) -> Callable[[Value], tuple[object, ...]]:
    names = cls.__match_args__
    if len(names) > 1:
        return operator.attrgetter(*names)
    # attrgetter returns no tuple for one name, and does not accept zero names.
    return lambda value: tuple([getattr(value, name) for name in names])


if TYPE_CHECKING:
    from dataclasses import replace as changed
else:

    def changed(value: _Value, **fields: object) -> _Value:
        """Like ``dataclasses.replace``, in a tenth of its time; mypy checks it in the same way."""
        return _changer(type(value), tuple(fields))(value, *fields.values())


@cache
def _changer(cls: type[Value], names: tuple[str, ...]) -> Callable[..., Any]:
    """Compile one function for each set of fields that are changed together."""
    source = Source()
    others = [name for name in cls.__specs__ if name not in names]
    kept = [f"{name}=self.{name}" for name in others]
    given = [f"{name}={name}" for name in names]
    source.add(0, f"return {source.bind(cls)}({', '.join(kept + given)})")
    return source.function(cls, "changed", ["self", *names])


@dataclass_transform(eq_default=False, field_specifiers=(field,))
class MutableType(ValueType):
    """Like `ValueType`, but tells type checkers that fields can be set."""


class Mutable(metaclass=MutableType):
    """Base of classes compiled like a `Value` whose fields can be set; equal only to itself."""

    __specs__: ClassVar[dict[str, Spec]]
