"""Frozen values hide secrets, stay as they are, and are checked again when they are changed."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
from typing import Any, ClassVar, Generic, TypeVar

import pytest
from rich.pretty import pretty_repr

from protocol.codec.values import Mutable, Value, changed, field

_Item = TypeVar("_Item")


class Point(Value):
    """Value with every kind of field."""

    ORIGIN: ClassVar[str] = "here"

    x: int
    label: str = "none"
    secret: bytes = field(default=b"", repr=False)
    tags: list[str] = field(default_factory=list)

    @property
    def doubled(self) -> int:
        return 2 * self.x


class Deep(Point):
    z: int = 0

    def __post_init__(self) -> None:
        if self.z < 0:
            raise ValueError("too deep")


class Holder(Value, Generic[_Item]):
    item: _Item


class Counter(Mutable):
    name: str
    count: int = 0
    seen: list[int] = field(default_factory=list)
    token: bytes = field(default=b"", repr=False)


class Empty(Value):
    pass


class Pair(Value, Generic[_Item], dict=True):
    """Value with a cached property."""

    one: _Item
    two: _Item
    three: int = 3

    @functools.cached_property
    def sum(self) -> int:
        return self.three


def test_building_values() -> None:
    point = Point(1, secret=b"s")
    assert (point.x, point.label, point.secret, point.tags) == (1, "none", b"s", [])
    assert Point(1).tags is not Point(1).tags
    assert (point.doubled, point.ORIGIN, Point.ORIGIN) == (2, "here", "here")
    assert Holder("text").item == "text"
    assert Empty() == Empty()
    deep = Deep(1, z=3)
    assert (deep.x, deep.label, deep.z) == (1, "none", 3)
    with pytest.raises(ValueError):
        Deep(1, z=-1)


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [((), {}), ((1, "a", b"", [], 5), {}), ((1,), {"x": 1}), ((1,), {"other": 1})],
)
def test_wrong_arguments(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Point(*arguments, **keywords)


@pytest.mark.parametrize("value", [Point(1), Deep(1), Holder(1), Empty(), Pair(1, 2)])
def test_values_are_frozen(value: Value) -> None:
    for name in (*value.__struct_fields__, "other"):
        with pytest.raises(AttributeError):
            setattr(value, name, 1)
        with pytest.raises(AttributeError):
            delattr(value, name)
    assert hasattr(value, "__dict__") is isinstance(value, Pair)


def test_a_class_may_have_cached_properties() -> None:
    pair = Pair("a", "b")
    assert (pair.one, pair.two, pair.three, pair.sum, pair.sum) == ("a", "b", 3, 3, 3)
    assert copy.copy(pair) == pair == pickle.loads(pickle.dumps(pair))


def test_secrets_are_shown_nowhere() -> None:
    deep = Deep(1, secret=b"hidden")
    assert repr(deep) == "Deep(x=1, label='none', tags=[], z=0)"
    assert repr(Counter("a", token=b"hidden")) == "Counter(name='a', count=0, seen=[])"
    for value in (deep, Counter("a", token=b"hidden"), Holder(deep)):
        assert "hidden" not in f"{value} {value!r} {[value]} {pretty_repr(value)}"
    assert "x=1" in pretty_repr(deep)


def test_equality_and_hash() -> None:
    assert Point(1) == Point(1)
    assert Point(1) != Point(2)
    assert Point(1, tags=["a"]) != Point(1)
    assert hash(Holder((1, 2))) == hash(Holder((1, 2)))
    with pytest.raises(TypeError):
        hash(Point(1))  # a list is in it
    others: list[object] = [Deep(1), (1, "none", b"", [])]
    assert Point(1) not in others


def test_a_value_is_matched_by_position() -> None:
    match Point(1, "a", b"s", ["t"]):
        case Point(x, label):
            assert (x, label) == (1, "a")
        case _:
            pytest.fail("not matched")


def test_a_changed_value_is_checked() -> None:
    point, deep = Point(1, "a", b"s", ["t"]), Deep(1)
    assert changed(point, x=2, label="b") == Point(2, "b", b"s", ["t"])
    assert changed(deep, z=3) == Deep(1, z=3)
    assert changed(Holder(1), item=2) == Holder(2)
    assert changed(Empty()) == Empty()
    with pytest.raises(TypeError):
        changed(point, y=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError):
        changed(deep, z=-1)


def test_copies() -> None:
    point = Point(1, tags=["t"])
    assert copy.copy(point) == copy.deepcopy(point) == pickle.loads(pickle.dumps(point)) == point


def test_invalid_classes_are_refused_at_definition() -> None:
    with pytest.raises(TypeError):

        class Made(Value):
            def __init__(self) -> None:
                pass

    with pytest.raises(TypeError):

        class Foreign(Value):
            """The field() of dataclasses has options that values do not support."""

            x: int = dataclasses.field(compare=False)


def test_mutable_fields() -> None:
    one = Counter("a")
    one.count += 1
    one.seen.append(one.count)
    assert (one.name, one.count, one.seen) == ("a", 1, [1])
    assert Counter("a").seen == []
    assert one == one
    assert Counter("a") != Counter("a")
    assert len({Counter("a"), Counter("a")}) == 2
    assert not hasattr(one, "__dict__")
    with pytest.raises(TypeError):
        Counter()  # type: ignore[call-arg]
