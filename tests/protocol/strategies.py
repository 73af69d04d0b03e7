"""Hypothesis strategies for every `Struct`, derived from its declared fields.

A field type or cap that this does not know fails loudly, as it does in `protocol.codec.fields`.
"""

from __future__ import annotations

import types
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from hypothesis import reject
from hypothesis import strategies as st
from msgspec import Meta

from protocol.codec.encoding import VIEW_FROM, Buffer
from protocol.codec.errors import MessageError
from protocol.codec.fields import OneOf, Struct, empty_or_hash, empty_or_signature
from protocol.codec.names import (
    check_entry_name,
    check_file_id,
    check_file_name,
    check_principal,
    check_user_name,
)
from protocol.records.records import OWN_KEYS, FileRecord, ServerStatement, Statement

AnyStruct = TypeVar("AnyStruct", bound=Struct)

HASHES = st.binary(min_size=32, max_size=32)
# The ending makes no name reserved, and only one a device name.
USER_NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,6}[yz]", fullmatch=True)
FILE_IDS = st.binary(min_size=16, max_size=16).map(bytes.hex)
FILE_NAMES = st.from_regex(r"[a-zé]{1,9}(/[a-z]{1,9})?", fullmatch=True)
_MANY = 4
_LONG = 200


def structs(cls: type[AnyStruct]) -> st.SearchStrategy[AnyStruct]:
    """Return a strategy for valid instances of `cls`."""
    if cls is Statement:
        return _statements()  # type: ignore[return-value]
    if cls is ServerStatement:
        return _server_statements()  # type: ignore[return-value]
    if cls is FileRecord:
        return _file_records()  # type: ignore[return-value]
    return _checked(cls)


@st.composite
def _checked(draw: st.DrawFn, cls: type[AnyStruct]) -> AnyStruct:
    """Build a value; fields that contradict each other are drawn again."""
    try:
        return cls(**{name: draw(values) for name, values in _fields(cls).items()})
    except MessageError:
        reject()


def _fields(cls: type[Struct]) -> dict[str, st.SearchStrategy[Any]]:
    return {name: _values(hint) for name, hint in cls.__declared__.items()}


def _values(hint: object, cap: int | None = None, least: int = 0) -> st.SearchStrategy[Any]:
    """Return a strategy for values of a type; `cap` and `least` are its declared lengths."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _annotated(*get_args(hint))
    if hint == Buffer:
        return _bulk(_LONG if cap is None else cap)
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in get_args(hint) if arg is not type(None))
        return st.none() | _values(inner)
    if origin is tuple:
        return _tuples(get_args(hint), cap, least)
    if isinstance(hint, type) and issubclass(hint, Struct):
        return structs(hint)
    if hint is bytes:
        return st.binary(max_size=min(_LONG, _LONG if cap is None else cap))
    if hint is str:
        most = _LONG if cap is None else cap
        return st.text(max_size=_LONG).map(lambda text: _shortened(text, most))
    if hint is int:
        return st.integers(-(2**63), 2**64 - 1)
    assert hint is bool
    return st.booleans()


def _annotated(base: object, *caps: Any) -> st.SearchStrategy[Any]:
    cap = caps[-1]
    named: dict[object, st.SearchStrategy[Any]] = {
        check_user_name: USER_NAMES,
        check_principal: USER_NAMES | st.sampled_from(["operator", "server"]),
        check_file_id: FILE_IDS,
        check_file_name: FILE_NAMES,
        check_entry_name: FILE_NAMES | FILE_NAMES.map(lambda name: f"{name}/"),
        empty_or_hash: st.just(b"") | HASHES,
        empty_or_signature: st.just(b"") | st.binary(min_size=64, max_size=64),
    }
    if cap in named:
        return named[cap]
    if isinstance(cap, OneOf):
        return st.sampled_from(cap.values)
    assert isinstance(cap, Meta)
    if cap.ge is not None and cap.le is not None:
        return st.integers(int(cap.ge), int(cap.le))
    assert cap.max_length is not None
    if base is bytes and cap.min_length:
        return st.binary(min_size=cap.min_length, max_size=cap.max_length)
    return _values(base, cap.max_length, cap.min_length or 0)


def _tuples(args: tuple[Any, ...], cap: int | None, least: int) -> st.SearchStrategy[Any]:
    if args[1:] == (Ellipsis,):
        most = _MANY if cap is None else min(_MANY, cap)
        return st.lists(_values(args[0]), min_size=least, max_size=most).map(tuple)
    return st.tuples(*(_values(arg) for arg in args))


def _bulk(cap: int) -> st.SearchStrategy[bytes]:
    """Mostly short bins; some at the sizes at which the header or the handling changes."""
    edges = (0, 255, 256, VIEW_FROM - 100, VIEW_FROM, 65535, 65536, 65537, cap - 1, cap)
    sizes = st.sampled_from([size for size in edges if 0 <= size <= cap])
    return st.binary(max_size=min(cap, _LONG)) | st.builds(_pattern, sizes, st.integers(1, 250))


def _pattern(size: int, step: int) -> bytes:
    return (bytes(range(step)) * (size // step + 1))[:size]


def _shortened(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


@st.composite
def _statements(draw: st.DrawFn) -> Statement:
    values = {name: draw(values) for name, values in _fields(Statement).items()}
    values["oldest"] = draw(st.integers(1, values["generation"]))
    values["prev"] = b"" if values["n"] == 1 else draw(HASHES)
    return Statement(**values)


@st.composite
def _server_statements(draw: st.DrawFn) -> ServerStatement:
    values = {name: draw(values) for name, values in _fields(ServerStatement).items()}
    keys = draw(st.sets(HASHES, min_size=1, max_size=_MANY))
    return ServerStatement(**values | {"tls_spki_sha256": tuple(sorted(keys))})


@st.composite
def _file_records(draw: st.DrawFn) -> FileRecord:
    strategies = _fields(FileRecord)
    op = draw(strategies.pop("op"))
    values = {name: draw(values) for name, values in strategies.items()}
    readers = {name: rest for name, *rest in values["readers"] if name != values["owner"]}
    values["readers"] = tuple((name, *rest) for name, rest in sorted(readers.items()))
    values["prev"] = b"" if values["rev"] == 1 else draw(HASHES)
    for name, inner in _own_fields().items():
        key = name.rstrip("_")
        absent = key not in OWN_KEYS[op] or (key in ("to", "writer") and draw(st.booleans()))
        values[name] = None if absent else draw(_values(inner))
    named = values["current"] not in (0, values["version"])
    values["content"] = draw(HASHES) if named else b""
    return FileRecord(op=op, **values)


def _own_fields() -> dict[str, Any]:
    """Return {name: type if present} of the file record fields that only some ops have."""
    hints = {name: FileRecord.__declared__[name] for name in FileRecord.__defaults__}
    return {
        name: next(arg for arg in get_args(hint) if arg is not type(None))
        for name, hint in hints.items()
    }
