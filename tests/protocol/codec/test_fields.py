"""Declared fields: values that each type and cap accepts when built and when parsed."""

from __future__ import annotations

import copy
import pickle
import re
import types
from typing import Annotated, Any, ClassVar

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from protocol.codec import encoding
from protocol.codec.encoding import Buffer
from protocol.codec.errors import EncodingError, MessageError
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
)
from protocol.codec.names import check_user_name
from protocol.codec.values import changed, field
from tests.protocol.codec.test_encoding import VALUES
from tests.protocol.strategies import structs
from tests.protocol.wire_form import parsed, plain


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
    assert plain(whole) == ARRAY
    assert parsed(Whole, ARRAY) == whole
    assert Whole.parse(whole.encode()) == whole
    assert whole.encode() == msgpack.packb(ARRAY)
    keyed = Keyed(1, Part(2, "é"))
    assert keyed.encode() == msgpack.packb({"from": 1, "of": [2, "é"]})
    assert Keyed.parse(keyed.encode()) == keyed
    assert list(plain(Keyed(1, None))) == ["from", "of"]


@given(structs(Whole))
def test_round_trip(whole: Whole) -> None:
    assert Whole.parse(whole.encode()) == whole
    assert whole.encode() == msgpack.packb(plain(whole))


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
        ("bulk", b"123456"),
        ("bulk", "text"),
        ("part", None),
        ("part", [1, "fives"]),
        ("part", Keyed(0, None)),
        ("keyed", Part(1, "")),
        ("parts", (Part(1, ""),) * 3),
        ("parts", (None,)),
        ("pair", (b"xy",)),
        ("pair", (b"xy", 7, 7)),
        ("pair", (b"xyz", 7)),
        ("pair", (b"xy", -1)),
        ("pair", "xy"),
        ("raw", "YWJj"),
        ("choice", "c"),
        ("choice", 1),
    ],
)
def test_a_wrong_value_is_refused_when_built(field: str, value: object) -> None:
    with pytest.raises(MessageError) as caught:
        Whole(**{**GOOD, field: value})
    assert re.match(rf"Whole\.{field}[:\[]", str(caught.value))
    with pytest.raises(MessageError):
        changed(Whole(**GOOD), **{field: value})  # type: ignore[arg-type]


def test_what_is_built_cannot_be_changed_from_outside() -> None:
    raw, parts = bytearray(b"abc"), [Part(0, ""), [1, "x"]]
    whole = Whole(**{**GOOD, "raw": raw, "parts": parts})
    raw[0], parts[0] = 0, None
    assert (whole.raw, whole.parts) == (b"abc", (Part(0, ""), Part(1, "x")))
    assert type(whole.raw) is bytes
    with pytest.raises(AttributeError):
        whole.number = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((), {}),
        ((1,), {}),
        ((1, None, 3), {}),
        ((1,), {"from_": 1, "of": None}),
        ((1, None), {"of": None}),
        ((), {"from_": 1, "of": None, "more": 1}),
        ((), {"from": 1, "of": None}),
    ],
)
def test_wrong_arguments(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Keyed(*values, **named)


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
        (4, [1, "four", b"more"]),
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
        parsed(Whole, elements)


@pytest.mark.parametrize("value", [None, 1, {}, "text", b"bytes", [], ARRAY[:-1], [*ARRAY, 1]])
def test_invalid_arrays(value: object) -> None:
    """Also without the element that has a default, and with one more."""
    with pytest.raises(MessageError):
        parsed(Whole, value)


@pytest.mark.parametrize("value", [None, 1, [], {}, {"from": 1}, {"from": 1, "of": None, "x": 1}])
def test_invalid_maps(value: object) -> None:
    with pytest.raises(MessageError):
        parsed(Keyed, value)


@pytest.mark.parametrize(
    "packed",
    [
        b"\x82\xa2of\xc0\xa4from\x01",
        b"\x83\xa4from\x01\xa2of\xc0\xa2of\xc0",
        b"\x83\xa4from\x02\xa4from\x01\xa2of\xc0",
        b"\x82\xa4from\xcc\x01\xa2of\xc0",
        b"\x82\xa4from\xd0\x01\xa2of\xc0",
        b"\x82\xd9\x04from\x01\xa2of\xc0",
        b"\xde\x00\x02\xa4from\x01\xa2of\xc0",
        b"\x82\xa4from\x01\xa2of\xdc\x00\x02\x01\xa0",
    ],
    ids=["order", "twice", "two values", "long", "signed", "long key", "long map", "long array"],
)
def test_another_encoding_of_the_same_value_is_refused(packed: bytes) -> None:
    assert msgpack.unpackb(packed) in ({"from": 1, "of": None}, {"from": 1, "of": [1, ""]})
    with pytest.raises(MessageError):
        Keyed.parse(packed)


def test_a_limit_holds_both_ways() -> None:
    class Short(Struct):
        LIMIT: ClassVar[int] = 5

        raw: Annotated[bytes, AtMost(3)]

    assert Short.parse(Short(b"ab").encode()) == Short(b"ab")
    with pytest.raises(MessageError):
        Short(b"abc").encode()
    with pytest.raises(EncodingError):
        Short.parse(encoding.pack([b"abc"]))


@pytest.mark.parametrize(
    "form",
    [
        {"from": 1, "of": None, "\x1b[31m": 1},
        {"from": 1, "of": None, "Expected ` - at `$": 1},
        {"from": 1, "of": [1, "\x1b[31m or more"]},
    ],
)
def test_a_refusal_never_quotes_the_peer(form: object) -> None:
    with pytest.raises(MessageError) as caught:
        parsed(Keyed, form)
    assert re.fullmatch(r"Keyed[\w.\[\]]*: [\w `<=]+", str(caught.value))
    elements = [*ARRAY]
    elements[8] = "\x1b[31m"
    with pytest.raises(MessageError) as caught:
        parsed(Whole, elements)
    assert str(caught.value) == "Whole.choice: not an allowed value"


def test_bulk_is_a_view() -> None:
    body = Whole(**GOOD).encode()
    whole = encoding.unpack(body, Whole)
    assert type(whole.bulk) is memoryview
    assert whole.bulk.obj is body
    view = memoryview(bytearray(b"1234"))
    assert Whole(**{**GOOD, "bulk": view}).bulk is view


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
    one = _struct_of(hint)
    for value in good:
        assert one(value).value == value
    for value in bad:
        with pytest.raises(MessageError):
            one(value)
        if value == "\ud800":
            continue  # cannot be encoded
        with pytest.raises(MessageError):
            parsed(one, [value])


def _struct_of(hint: object) -> type[Any]:
    """Return a class with one field of this type."""
    made: type[Any] = types.new_class(
        "One",
        (Struct,),
        exec_body=lambda body: body.update(__annotations__={"value": hint}, __module__=__name__),
    )
    return made


@pytest.mark.parametrize(
    "hint",
    [
        float,
        list[int],
        dict[str, int],
        int | str,
        bytes | None | int,
        Annotated[dict[str, int], AtMost(3)],
        Any,
        object,
    ],
)
def test_unsupported_field_types_are_refused_at_definition(hint: object) -> None:
    with pytest.raises(TypeError):
        _struct_of(hint)


@pytest.mark.parametrize(
    "hint",
    [
        bytes,
        str,
        Buffer,
        bytes | None,
        tuple[int, ...],
        Annotated[tuple[bytes, ...], AtMost(3)],
        tuple[int, str],
        Annotated[str, check_user_name],
    ],
)
def test_a_field_without_a_cap_is_refused_at_definition(hint: object) -> None:
    with pytest.raises(TypeError):
        _struct_of(hint)


@given(st.lists(VALUES, max_size=12) | VALUES)
def test_any_value_parses_or_raises_message_error(value: object) -> None:
    for cls in (Whole, Keyed):
        try:
            found = parsed(cls, value)
        except MessageError:
            continue
        assert plain(found) == value


class Named(Struct):
    """Names at every depth."""

    owner: UserName
    file_id: FileId | None
    readers: Annotated[tuple[tuple[UserName, Count], ...], AtMost(4)]
    texts: Annotated[tuple[Text, ...], AtMost(2)] | None
    prev: Previous

    def __post_init__(self) -> None:
        if self.owner in [name for name, _ in self.readers]:
            raise MessageError("the owner is a reader")


class LaterNamed(Named):
    more: UserName

    def __post_init__(self) -> None:
        if self.more == self.owner:
            raise MessageError("the owner once more")


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, "Owner"),
        (1, "g" * 32),
        (2, [["bob", 1], ["Eve", 1]]),
        (2, [["operator", 1]]),
        (2, [["alice", 1]]),
        (3, ["é" * 257]),
        (4, b"x"),
        (5, "-"),
        (5, "alice"),
    ],
)
def test_checks_in_python_run_on_both_ways(at: int, value: object) -> None:
    """Those of the types, and a class's own, its own after those of its base."""
    good = ["alice", None, [["bob", 1]], None, b"", "carol"]
    good_one = parsed(LaterNamed, good)
    assert plain(good_one) == good
    elements = [*good[:at], value, *good[at + 1 :]]
    with pytest.raises(MessageError):
        parsed(LaterNamed, elements)
    with pytest.raises(MessageError):
        LaterNamed(*elements)  # type: ignore[arg-type]
    with pytest.raises(MessageError):
        changed(good_one, **{LaterNamed.__struct_fields__[at]: value})  # type: ignore[arg-type]
    if at < 5:
        with pytest.raises(MessageError):
            parsed(Named, elements[:5])


class Secret(Struct):
    name: UserName
    key: Bytes16 = field(repr=False)
    size: Count = 3


def test_secrets_and_defaults() -> None:
    secret = Secret("a", b"0123456789abcdef")
    assert repr(secret) == "Secret(name='a', size=3)"
    assert "0123" not in pretty_repr(secret)
    assert plain(secret) == ["a", b"0123456789abcdef", 3]
    for elements in (plain(secret)[:2], [*plain(secret), 1]):
        with pytest.raises(MessageError):
            parsed(Secret, elements)


class Stranger(Struct):
    """Fields with names that the module itself uses."""

    type: Bytes16
    len: Text
    cls: Count
    elements: Annotated[tuple[Count, ...], AtMost(4)]
    value: Part | None


def test_a_field_may_have_any_name() -> None:
    stranger = Stranger(bytes(16), "", 1, (2, 3), Part(1, ""))
    assert Stranger.parse(stranger.encode()) == stranger
    with pytest.raises(MessageError):
        Stranger(b"", "", 1, (), None)


def test_copies_are_checked() -> None:
    part = Part(1, "four")
    assert copy.copy(part) == copy.deepcopy(part) == pickle.loads(pickle.dumps(part)) == part
    packed = pickle.dumps(part, protocol=0).replace(b"four", b"fives")
    with pytest.raises(MessageError):
        pickle.loads(packed)
