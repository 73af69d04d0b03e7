"""Declared fields: values that each type and cap accepts when built and when parsed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.encoding import Buffer
from protocol.codec.errors import MessageError
from protocol.codec.fields import (
    AtMost,
    Between,
    Bytes16,
    Bytes32,
    Count,
    Exactly,
    FileId,
    OneOf,
    Positive,
    Previous,
    Principal,
    Signature,
    Struct,
    Text,
    UserName,
    field_count,
)
from tests.protocol.codec.test_encoding import VALUES
from tests.protocol.strategies import structs


class Part(Struct):
    x: Count
    y: Annotated[str, AtMost(4)]


class Keyed(Struct):
    AS_MAP: ClassVar[bool] = True

    from_: Annotated[int, Between(-5, 5)]
    of: Part | None


class Whole(Struct):
    number: int
    flag: bool
    raw: Annotated[bytes, AtMost(3)]
    bulk: Annotated[Buffer, AtMost(5)]
    part: Part
    keyed: Keyed | None
    parts: Annotated[tuple[Part, ...], AtMost(2)]
    pair: tuple[Annotated[bytes, Exactly(2)], Count]
    choice: Annotated[str, OneOf(("a", "b"))] = "a"


GOOD: dict[str, Any] = {
    "number": 1,
    "flag": True,
    "raw": b"abc",
    "bulk": b"12345",
    "part": Part(1, "four"),
    "keyed": Keyed(-5, None),
    "parts": (Part(0, ""), Part(2**53, "é")),
    "pair": (b"xy", 7),
}
ARRAY = [
    1,
    True,
    b"abc",
    b"12345",
    [1, "four"],
    {"from": -5, "of": None},
    [[0, ""], [2**53, "é"]],
    [b"xy", 7],
    "a",
]


def test_both_wire_forms() -> None:
    whole = Whole(**GOOD)
    assert whole.to_array() == ARRAY
    assert Whole.from_array(ARRAY) == whole
    keys = ["number", "flag", "raw", "bulk", "part", "keyed", "parts", "pair", "choice"]
    assert whole.to_map() == dict(zip(keys, ARRAY, strict=True))
    assert list(whole.to_map()) == keys
    assert Whole.from_map(whole.to_map()) == whole
    assert field_count(Whole) == 9


@given(structs(Whole))
def test_round_trip(whole: Whole) -> None:
    assert Whole.from_array(whole.to_array()) == whole
    assert Whole.from_map(whole.to_map()) == whole


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", True),
        ("number", 1.0),
        ("number", "1"),
        ("number", None),
        ("flag", 1),
        ("flag", None),
        ("raw", b"four"),
        ("raw", "abc"),
        ("raw", bytearray(b"a")),
        ("raw", memoryview(b"a")),
        ("bulk", b"123456"),
        ("bulk", "text"),
        ("part", None),
        ("part", [1, "four"]),
        ("part", Keyed(0, None)),
        ("keyed", Part(1, "")),
        ("parts", [Part(1, "")]),
        ("parts", (Part(1, ""),) * 3),
        ("parts", (None,)),
        ("pair", (b"xy",)),
        ("pair", (b"xy", 7, 7)),
        ("pair", (b"xyz", 7)),
        ("pair", (b"xy", -1)),
        ("pair", [b"xy", 7]),
        ("choice", "c"),
        ("choice", 1),
    ],
)
def test_a_wrong_value_is_refused_when_built(field: str, value: object) -> None:
    with pytest.raises(MessageError) as caught:
        Whole(**{**GOOD, field: value})
    assert f"Whole.{field}:" in str(caught.value)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, True),
        (0, 1.5),
        (1, 0),
        (2, "abc"),
        (2, b"four"),
        (3, b"123456"),
        (4, None),
        (4, {"x": 1, "y": ""}),
        (4, [1]),
        (4, [True, ""]),
        (4, [1, "fives"]),
        (4, [1, "éé "]),
        (5, [-5, None]),
        (5, {"from": 6, "of": None}),
        (5, {"from": 1}),
        (5, {"from_": 1, "of": None}),
        (5, {"from": 1, "of": None, "more": 1}),
        (6, {}),
        (6, [[0, ""]] * 3),
        (6, [None]),
        (6, b""),
        (7, [b"xy"]),
        (7, [b"xy", 7, 7]),
        (7, "xy"),
        (8, b"a"),
    ],
)
def test_a_wrong_element_is_refused_when_parsed(at: int, value: object) -> None:
    elements = [*ARRAY[:at], value, *ARRAY[at + 1 :]]
    with pytest.raises(MessageError):
        Whole.from_array(elements)


@pytest.mark.parametrize("value", [None, 1, {}, "text", b"bytes", [], ARRAY[:-1]])
def test_invalid_arrays(value: object) -> None:
    with pytest.raises(MessageError):
        Whole.from_array(value)


@pytest.mark.parametrize("value", [None, 1, [], {}, {"from": 1}, {"from": 1, "of": None, "x": 1}])
def test_invalid_maps(value: object) -> None:
    with pytest.raises(MessageError):
        Keyed.from_map(value)


def test_unknown_trailing_elements_are_ignored_in_every_array() -> None:
    later = [*ARRAY, "of version 2", {}]
    later[4] = [1, "four", b"more"]
    assert Whole.from_array(later) == Whole(**GOOD)


def test_only_bulk_fields_accept_views() -> None:
    elements = [*ARRAY]
    elements[3] = memoryview(b"12345")
    whole = Whole.from_array(elements)
    assert type(whole.bulk) is memoryview
    assert whole == Whole(**GOOD)
    elements[2] = memoryview(b"abc")
    with pytest.raises(MessageError):
        Whole.from_array(elements)


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (Bytes16, [bytes(16)], [bytes(15), bytes(17)]),
        (Bytes32, [bytes(32)], [bytes(31), bytes(33)]),
        (Signature, [bytes(64)], [bytes(63), b""]),
        (Previous, [b"", bytes(32)], [bytes(1), bytes(31), bytes(64)]),
        (UserName, ["a", "a" * 32, "0_-"], ["", "a" * 33, "A", "-a", "operator", "server", "con"]),
        (Principal, ["operator", "server", "bob"], ["", "Operator", "nul"]),
        (FileId, ["0" * 32], ["0" * 31, "A" * 32, "g" * 32, "0" * 32 + "\n"]),
        (Count, [0, 2**53], [-1, 2**53 + 1]),
        (Positive, [1, 2**53], [0, 2**53 + 1]),
        (Text, ["", "x" * 512, "é" * 256], ["x" * 513, "é" * 257, "\ud800"]),
    ],
)
def test_named_types(hint: object, good: list[Any], bad: list[Any]) -> None:
    class One(Struct):
        value: Any

    One.__annotations__["value"] = hint
    for value in good:
        assert One(value).value == value
    for value in bad:
        with pytest.raises(MessageError):
            One(value)
        with pytest.raises(MessageError):
            One.from_array([value])


@pytest.mark.parametrize(
    "hint",
    [
        float,
        list[int],
        dict[str, int],
        int | str,
        bytes | None | int,
        tuple[int, Part],
        Any,
        object,
    ],
)
def test_unsupported_field_types_raise_type_error(hint: object) -> None:
    class Odd(Struct):
        value: Any

    Odd.__annotations__["value"] = hint
    with pytest.raises(TypeError):
        Odd(1)


@given(st.lists(VALUES, max_size=12) | VALUES)
def test_any_value_parses_or_raises_message_error(value: object) -> None:
    for parse in (Whole.from_array, Whole.from_map, Keyed.from_map):
        try:
            parse(value)
        except MessageError:
            continue


class Stranger(Struct):
    """Fields named like names in the generated code."""

    type: Bytes16
    len: Text
    cls: Count
    elements: tuple[Count, ...]
    value: Part | None


def test_a_field_may_have_any_name() -> None:
    stranger = Stranger(bytes(16), "", 1, (2, 3), Part(1, ""))
    assert Stranger.from_array(stranger.to_array()) == stranger
    assert Stranger.from_map(stranger.to_map()) == stranger
    with pytest.raises(MessageError):
        Stranger(b"", "", 1, (), None)


HINTS: dict[str, Any] = {
    name: hint
    for name, hint in get_type_hints(Whole, include_extras=True).items()
    if name in Whole.__match_args__
}
PART = get_type_hints(Part, include_extras=True)
NEAR: list[object] = [
    *GOOD.values(),
    *(None, False, 1.0, 0, -1, -5, -6, 5, 6, 2**53, 2**53 + 1),
    *("", "a", "b", "c", "éé", "ééa", "\ud800"),
    *(b"", b"x", b"xyz", b"four", b"12345", b"123456", bytearray(b"123"), memoryview(b"123456")),
    *((), (Part(1, ""),) * 3, (1,), (b"xy",), (b"x", 7), (b"xyz", 7), (b"xy", -1), (b"xy", 7, 7)),
    *([], [1, "four"], {}, {"from": -5, "of": None}, (None,), (Keyed(0, None),), Part(2, "")),
]


@pytest.mark.parametrize("name", HINTS)
def test_compiled_checks_match_the_declaration(name: str) -> None:
    """Compiled code refuses the same values, with the same text, as a plain check of the hints."""
    for value in NEAR:
        _compared(name, value)


@given(st.sampled_from(sorted(HINTS)), VALUES)
def test_compiled_checks_match_for_any_value(name: str, value: object) -> None:
    _compared(name, value)


def test_compiled_checks_match_for_numbers_and_text() -> None:
    for x, y in itertools.product(
        [-1, 0, 2**53, 2**53 + 1, True], ["", "four", "éé", "ééa", "fives"]
    ):
        whys = [_refusal(PART[name], value) for name, value in (("x", x), ("y", y))]
        expected = [f"Part.{name}: {why}" for name, why in zip("xy", whys, strict=True) if why]
        assert _raised(lambda pair: Part(*pair), (x, y)) == next(iter(expected), None)


def _compared(name: str, value: object) -> None:
    refusal = _refusal(HINTS[name], value)
    assert _raised(lambda one: Whole(**{**GOOD, name: one}), value) == (
        refusal and f"Whole.{name}: {refusal}"
    )


def _refusal(hint: object, value: object) -> str | None:
    """Return why `value` violates the type and caps of `hint`; None if it does not."""
    args = get_args(hint)
    if get_origin(hint) is Annotated:
        base, cap = args
        return _wrong(base, value) or _raised(cap, value) or _refusal(base, value)
    if _wrong(hint, value) or not isinstance(value, tuple):
        return _wrong(hint, value)
    if args[1] is Ellipsis:
        return next(filter(None, (_refusal(args[0], one) for one in value)), None)
    if len(value) != len(args):
        return f"length {len(value)}, expected {len(args)}"
    return next(filter(None, map(_refusal, args, value)), None)


def _wrong(hint: object, value: object) -> str | None:
    """Return the error for a value of another type, or None."""
    origin = get_origin(hint)
    allowed = {tuple: (tuple,), None: (hint,)}.get(origin) or get_args(hint)
    if type(value) in allowed:
        return None
    return f"expected {allowed[0].__name__}, got {type(value).__name__}"


def _raised(check: Callable[[Any], object], value: object) -> str | None:
    try:
        check(value)
    except MessageError as exc:
        return str(exc)
    return None
