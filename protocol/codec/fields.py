"""Frozen values with a wire form; building one checks the type and cap of every field.

A `Struct` is written as a msgpack array (messages and their parts) or as a map (`AS_MAP`: signed
bodies and stored values) with exactly its fields, in their order, also those that are None. A field
may have the types ``int``, ``str``, ``bool``, ``bytes``, ``Buffer`` (bulk), `Struct`,
``tuple[T, ...]``, ``tuple[A, B]``, ``T | None``, and an ``Annotated`` form of these with the caps
below. Bytes, text and tuples of any length must have a cap: a class without it cannot be defined.

msgspec checks types, lengths and ranges, both while it decodes and when a value is built. What it
cannot check (names, the size of text in bytes) is called from ``__post_init__``, once.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from functools import cache, partial
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    Union,
    cast,
    get_args,
    get_origin,
)

from msgspec import NODEFAULT, Meta, StructMeta, ValidationError, convert, structs

from protocol.codec import encoding
from protocol.codec.encoding import Buffer
from protocol.codec.errors import MessageError
from protocol.codec.names import (
    MAX_FILE_NAME,
    check_entry_name,
    check_file_id,
    check_principal,
    check_user_name,
)
from protocol.codec.values import Hidden, Value, ValueType, field

Check = Callable[[Any], None]
"""Raises `MessageError` unless the value of a field is valid. Its type is right already."""
_BINARY = (bytes, bytearray, memoryview)
"""Types that `convert` takes as they are; without it, text is taken for base64."""


def Exactly(size: int) -> Meta:  # noqa: N802 - used like the type that it refines
    """Require a length of exactly `size` bytes or tuple elements."""
    return Meta(min_length=size, max_length=size)


def AtMost(size: int) -> Meta:  # noqa: N802
    """Require a length of at most `size` bytes (text counts as UTF-8) or tuple elements."""
    return Meta(max_length=size)


def Between(low: int, high: int) -> Meta:  # noqa: N802
    """Require an integer from `low` to `high`, both included."""
    return Meta(ge=low, le=high)


class OneOf(Value):
    """Requires one of the listed texts."""

    values: tuple[str, ...]


def shortened(text: str) -> str:
    """Cut `text` at its end to the 512 bytes that a field of type `Text` holds."""
    return text.encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")


def empty_or_hash(value: bytes) -> None:
    """Raise `MessageError` unless `value` is a SHA-256 (32 bytes), or empty."""
    if len(value) not in (0, 32):
        raise MessageError(f"a hash of {len(value)} bytes")


def empty_or_signature(value: bytes) -> None:
    """Raise `MessageError` unless `value` is an Ed25519 signature (64 bytes), or empty."""
    if len(value) not in (0, 64):
        raise MessageError(f"a signature of {len(value)} bytes")


Bytes16 = Annotated[bytes, Exactly(16)]
Bytes32 = Annotated[bytes, Exactly(32)]
Signature = Annotated[bytes, Exactly(64)]
Possession = Annotated[bytes, AtMost(64), empty_or_signature]
"""Signature by the recovery key that a statement introduces; empty if it introduces none."""
Previous = Annotated[bytes, AtMost(32), empty_or_hash]
UserName = Annotated[str, AtMost(32), check_user_name]
Principal = Annotated[str, AtMost(32), check_principal]
FileId = Annotated[str, Exactly(32), check_file_id]
EntryName = Annotated[str, AtMost(MAX_FILE_NAME), check_entry_name]
"""Name of a file, a symbolic link or, with a slash at its end, a folder."""
Count = Annotated[int, Between(0, 2**53)]
"""A size, offset, number or time; at most 2^53, so that every JSON reader keeps it exact."""
Positive = Annotated[int, Between(1, 2**53)]
MAX_TEXT = 512
Text = Annotated[str, AtMost(MAX_TEXT)]


_build: Callable[..., Any] = StructMeta.__call__
"""Builds a value from all of its fields in order, without a check of types and caps."""


class StructType(ValueType):
    """Metaclass that reads the declared fields, and checks every value that is built."""

    __declared__: dict[str, Any]
    __defaults__: dict[str, Any]
    __renamed__: tuple[str, ...]
    AS_MAP: bool

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any
    ) -> StructType:
        hints = _own_hints(namespace)
        declared = {key: _declared(hint) for key, hint in hints.items()}
        namespace["__annotations__"] = {key: field.wire for key, field in declared.items()}
        namespace["__declared__"] = _inherited(bases, "__declared__") | hints
        namespace["__defaults__"] = _inherited(bases, "__defaults__") | _take_defaults(namespace)
        checks = [(key, field.check) for key, field in declared.items() if field.check is not None]
        _add_checks(namespace, bases, checks)
        as_map = namespace.get("AS_MAP", any(getattr(base, "AS_MAP", False) for base in bases))
        renamed = [name for name in namespace["__declared__"] if _key(name) != name]
        namespace["__renamed__"] = tuple(renamed)
        options |= {"array_like": not as_map, "rename": {name: _key(name) for name in renamed}}
        made = super().__new__(mcs, name, bases, namespace, **options)
        return cast(StructType, made)

    if not TYPE_CHECKING:  # the fields are the parameters, which type checkers know

        def __call__(cls, *values: Any, **named: Any) -> Any:
            """Build a value from its checked fields. Raises `MessageError`."""
            given: Any = values
            if cls.AS_MAP:
                given = _given(cls, values, named)
                for name in cls.__renamed__:
                    given[_key(name)] = given.pop(name)
            elif named or len(values) != len(cls.__struct_fields__):
                by_name = _given(cls, values, named)
                given = tuple([by_name[name] for name in cls.__struct_fields__])
            try:
                return convert(given, cls, builtin_types=_BINARY)
            except ValidationError as exc:
                raise encoding.refusal(cls, exc) from None


class _Declared(NamedTuple):
    """A field's type as msgspec takes it, and the check of what msgspec cannot check."""

    wire: Any
    check: Check | None = None


def _declared(hint: Any, extras: tuple[Any, ...] = ()) -> _Declared:
    """Read a type hint; `extras` are the caps that apply to it.

    Raises TypeError for a type that no field can have, or that lacks a cap.
    """
    origin = get_origin(hint)
    if origin is Annotated:
        base, *own = get_args(hint)
        return _declared(base, (*extras, *own))
    for extra in extras:
        if isinstance(extra, OneOf) and hint is str:
            return _Declared(Literal[extra.values])
    if hint in (bytes, str, Buffer) or (origin is tuple and get_args(hint)[1:] == (Ellipsis,)):
        return _declared_sized(hint, extras)
    if origin in (Union, types.UnionType):
        return _declared_optional(hint, extras)
    if origin is tuple:
        return _declared_parts(get_args(hint))
    if hint in (int, bool) or (isinstance(hint, type) and issubclass(hint, Struct)):
        return _Declared(Annotated[(hint, *extras)] if extras else hint)
    raise TypeError(f"a field cannot be of type {hint}")


def _declared_sized(hint: Any, extras: tuple[Any, ...]) -> _Declared:
    """Read a type whose values have a length."""
    caps = [extra for extra in extras if isinstance(extra, Meta)]
    most = min((cap.max_length for cap in caps if cap.max_length is not None), default=None)
    if most is None:
        raise TypeError(f"a field of type {hint} needs a cap")
    checks = [extra for extra in extras if callable(extra)]
    wire = hint
    if hint == Buffer:
        wire = memoryview
    elif hint is str and not checks:
        checks = [partial(_check_size, most)]
    elif hint not in (bytes, str):
        item = _declared(get_args(hint)[0])
        wire = types.GenericAlias(tuple, (item.wire, ...))
        if item.check is not None:
            checks.append(partial(_check_each, item.check))
    if len(checks) > 1:
        raise TypeError(f"a field of type {hint} can have one check")
    return _Declared(Annotated[(wire, *caps)], checks[0] if checks else None)


def _declared_optional(hint: Any, extras: tuple[Any, ...]) -> _Declared:
    inner = [arg for arg in get_args(hint) if arg is not type(None)]
    if len(inner) != 1:
        raise TypeError(f"a field cannot be of type {hint}")
    wire, check = _declared(inner[0], extras)  # no check is called for None
    return _Declared(wire | None, check)


def _declared_parts(args: tuple[Any, ...]) -> _Declared:
    parts = [_declared(arg) for arg in args]
    checks = tuple((at, part.check) for at, part in enumerate(parts) if part.check is not None)
    wire = types.GenericAlias(tuple, tuple(part.wire for part in parts))
    return _Declared(wire, partial(_check_parts, checks) if checks else None)


def _check_size(most: int, text: str) -> None:
    """Raise `MessageError` if `text` has more than `most` bytes: msgspec counts characters."""
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as exc:
        raise MessageError("text that is not valid Unicode") from exc
    if size > most:
        raise MessageError(f"length {size}, at most {most} allowed")


def _check_each(check: Check, items: tuple[Any, ...]) -> None:
    for item in items:
        if item is not None:
            check(item)


def _check_parts(checks: tuple[tuple[int, Check], ...], items: tuple[Any, ...]) -> None:
    for at, check in checks:
        if items[at] is not None:
            check(items[at])


def _own_hints(namespace: dict[str, Any]) -> dict[str, Any]:
    """Return the types of the fields that a class body declares."""
    return {
        name: _evaluated(hint, namespace["__module__"]) if isinstance(hint, str) else hint
        for name, hint in namespace.get("__annotations__", {}).items()
        if not str(hint).removeprefix("typing.").startswith("ClassVar")
    }


@cache
def _evaluated(hint: str, module: str) -> Any:
    """Evaluate an annotation of our own source; cached because the same few occur often."""
    return eval(hint, vars(sys.modules[module]))  # noqa: S307 - as get_type_hints does


def _inherited(bases: tuple[type, ...], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(bases):
        found |= getattr(base, name, {})
    return found


def _take_defaults(namespace: dict[str, Any]) -> dict[str, Any]:
    """Remove the defaults from a class body and return them.

    msgspec would decode an array or a map that lacks fields with defaults. So only building knows
    defaults.
    """
    taken: dict[str, Any] = {}
    for name in namespace["__annotations__"]:
        stated = namespace.pop(name, NODEFAULT)
        if isinstance(stated, Hidden):
            namespace[name] = Hidden(field())
            stated = stated.field.default
        if stated is not NODEFAULT:
            taken[name] = stated
    return taken


def _add_checks(
    namespace: dict[str, Any], bases: tuple[type, ...], checks: list[tuple[str, Check]]
) -> None:
    """Make ``__post_init__`` call the checks of fields, between those of `bases` and its own."""
    own = namespace.get("__post_init__")
    before = next(
        (found for base in bases if (found := getattr(base, "__post_init__", None))), None
    )
    if not checks and not (own and before):
        return

    def post_init(self: Struct) -> None:
        if before is not None:
            before(self)
        name = ""
        try:
            for name, check in checks:
                value = getattr(self, name)
                if value is not None:  # which only an optional field can be
                    check(value)
        except MessageError as exc:
            raise MessageError(f"{type(self).__name__}.{name}: {exc}") from None
        if own is not None:
            own(self)

    namespace["__post_init__"] = post_init


def _given(cls: StructType, values: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """Return the values of all fields by name, from arguments and defaults. Raises TypeError."""
    given = {**cls.__defaults__, **named}
    if values:
        first = cls.__struct_fields__[: len(values)]
        given |= zip(first, values, strict=False)
        if len(values) > len(first) or not named.keys().isdisjoint(first):
            raise TypeError(f"{cls.__name__}: too many values, or two for one field")
    if given.keys() != cls.__declared__.keys():
        wrong = ", ".join(sorted(given.keys() ^ cls.__declared__.keys()))
        raise TypeError(f"{cls.__name__}: missing or unknown: {wrong}")
    return given


def _key(name: str) -> str:
    """Return the map key of a field: its name without the underscore after a reserved word."""
    return name.rstrip("_")


class Struct(Value, forbid_unknown_fields=True, metaclass=StructType):
    """Base of all values with a wire form. Building one checks every field."""

    AS_MAP: ClassVar[bool] = False
    """Whether this is written as a map, and not as an array."""
    LIMIT: ClassVar[int] = encoding.MAX_BODY
    """Longest encoded form in bytes."""
    __declared__: ClassVar[dict[str, Any]]
    """The types of all fields, as declared."""
    __defaults__: ClassVar[dict[str, Any]]
    __renamed__: ClassVar[tuple[str, ...]]

    @classmethod
    def of_checked(cls, *values: Any) -> Self:
        """Build from all fields in order, whose types and caps the caller has checked, or has taken
        from checked values; only ``__post_init__`` runs. Takes a seventh of the time."""
        made: Self = _build(cls, *values)
        return made

    def encode(self) -> bytes:
        """Return the encoded form. Raises `MessageError` past the limit."""
        body = encoding.pack(self)
        if len(body) > self.LIMIT:
            raise MessageError(
                f"{type(self).__name__} has {len(body)} bytes, at most {self.LIMIT} allowed"
            )
        return body

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Parse exactly the bytes that `encode` returns for some value.

        Anything else is refused: another order of keys, a key twice, a longer form of a number or
        length. Raises `EncodingError` or `MessageError`.
        """
        found = encoding.unpack(body, cls, limit=cls.LIMIT)
        if encoding.pack(found) != body:
            raise MessageError(f"{cls.__name__}: not in canonical form")
        return found

    def __replace__(self, /, **fields: Any) -> Self:
        """Return a checked copy with other `fields`. Raises TypeError for an unknown one."""
        return type(self)(*structs.astuple(structs.replace(self, **fields)))
