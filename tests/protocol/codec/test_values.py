"""Frozen values behave like dataclasses and are compiled at first use."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import subprocess
import sys
import threading
from typing import Any, ClassVar, Generic, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


class Empty(Value):
    pass


WITHOUT_THE_LIBRARY = """
import sys
from protocol.codec.values import Mutable, Value, changed, field

class Point(Value):
    x: int
    tags: list[str] = field(default_factory=list)

class Counter(Mutable):
    count: int = 0

repr(changed(Point(1), x=2)), hash(Point(1, ())), Counter().count
print("dataclasses" in sys.modules)
import dataclasses
print(len(dataclasses.fields(Point)) == 2)
"""


@dataclasses.dataclass(frozen=True)
class Twin:
    """Dataclass with the same body."""

    x: int
    label: str = "none"
    secret: bytes = dataclasses.field(default=b"", repr=False)


class Named(Value):
    """Fields named like names in the generated code."""

    type: object
    len: object
    cls: object
    elements: object
    value: object


def test_building_values() -> None:
    point = Point(1, secret=b"s")
    assert (point.x, point.label, point.secret, point.tags) == (1, "none", b"s", [])
    assert Point(1).tags is not Point(1).tags
    assert (point.doubled, point.ORIGIN, Point.ORIGIN) == (2, "here", "here")
    assert Holder("text").item == "text"
    assert Empty() == Empty()
    named = Named(1, 2, 3, 4, value=5)
    assert (named.type, named.len, named.cls, named.elements, named.value) == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [((), {}), ((1, "a", b"", [], 5), {}), ((1,), {"x": 1}), ((1,), {"other": 1})],
)
def test_wrong_arguments(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    for _ in range(2):  # before and after compilation
        with pytest.raises(TypeError):
            Point(*arguments, **keywords)
    with pytest.raises(TypeError):
        Empty(1)  # type: ignore[call-arg]


def test_a_subclass_inherits_fields() -> None:
    Point(1)
    deep = Deep(1, z=3)
    assert (deep.x, deep.label, deep.z) == (1, "none", 3)
    assert [field.name for field in dataclasses.fields(deep)] == [
        *("x", "label", "secret", "tags", "z")
    ]
    with pytest.raises(ValueError):
        Deep(1, z=-1)
    with pytest.raises(ValueError):
        dataclasses.replace(deep, z=-1)


def test_values_are_frozen() -> None:
    point = Point(1)
    for name in ("x", "label", "other"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(point, name, 1)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(point, name)
    assert point == Point(1)
    for value in (point, Deep(1), Holder(1), Empty()):
        assert not hasattr(value, "__dict__")


class Pair(Value, Generic[_Item]):
    """Value with more than `_MANY` fields and an additional slot."""

    __slots__ = ("__dict__",)

    one: _Item
    two: _Item
    three: int = 3

    @functools.cached_property
    def sum(self) -> int:
        return self.three


@pytest.mark.parametrize(
    ("value", "cls"),
    [(Point(1), Point), (Deep(1), Deep), (Pair(1, 2), Pair), (Named(1, 2, 3, 4, 5), Named)],
)
def test_values_are_frozen_after_init(value: Value, cls: type) -> None:
    assert value.__class__ is type(value) is cls
    for name in value.__match_args__:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 1)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(value, name)


def test_a_class_may_have_additional_slots() -> None:
    pair = Pair("a", "b")
    assert (pair.one, pair.two, pair.three, pair.sum, pair.sum) == ("a", "b", 3, 3, 3)
    assert copy.copy(pair) == pair == pickle.loads(pickle.dumps(pair))


def test_repr_omits_secrets() -> None:
    deep = Deep(1, secret=b"hidden")
    assert repr(deep) == "Deep(x=1, label='none', tags=[], z=0)"
    assert "hidden" not in f"{deep} {deep!r} {[deep]}"


@given(*[st.tuples(st.integers(0, 1), st.sampled_from("ab"), st.sampled_from([b"", b"c"]))] * 2)
def test_equality_hash_and_repr_match_dataclasses(
    one: tuple[Any, ...], other: tuple[Any, ...]
) -> None:
    """Equality, hash and repr. The lists are equal and not hashable."""
    assert (Point(*one) == Point(*other)) is (Twin(*one) == Twin(*other))
    assert repr(Holder(Twin(*one))) == f"Holder(item={Twin(*one)!r})"
    assert hash(Holder(one)) == hash(Holder(tuple(one)))
    assert (Holder(one) == Holder(other)) is (one == other)
    with pytest.raises(TypeError):
        hash(Point(*one))


def test_values_of_other_classes_are_never_equal() -> None:
    assert Point(1) != Deep(1)
    assert Point(1) != Twin(1)
    assert Point(1) != (1, "none", b"", [])


def test_dataclasses_functions_work() -> None:
    point = Point(1, "a", b"s", ["t"])
    assert dataclasses.replace(point, x=2) == Point(2, "a", b"s", ["t"])
    assert dataclasses.asdict(Holder(point)) == {
        "item": {"x": 1, "label": "a", "secret": b"s", "tags": ["t"]}
    }
    fields = {field.name: field for field in dataclasses.fields(Point)}
    assert fields["label"].default == "none"
    assert fields["tags"].default_factory is list
    assert not fields["secret"].repr
    assert dataclasses.is_dataclass(point)
    with pytest.raises(TypeError):
        dataclasses.replace(point, y=1)  # type: ignore[call-arg]
    match point:
        case Point(x, label):
            assert (x, label) == (1, "a")
        case _:
            pytest.fail("a value is matched by position")


def test_changed_matches_dataclasses_replace() -> None:
    point, deep = Point(1, "a", b"s", ["t"]), Deep(1)
    assert changed(point, x=2, label="b") == dataclasses.replace(point, x=2, label="b")
    assert changed(deep, z=3) == Deep(1, z=3)
    assert changed(Holder(1), item=2) == Holder(2)
    assert changed(Empty()) == Empty()
    with pytest.raises(TypeError):
        changed(point, y=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError):
        changed(deep, z=-1)


def test_copies_are_checked() -> None:
    point = Point(1, tags=["t"])
    assert copy.copy(point) == copy.deepcopy(point) == pickle.loads(pickle.dumps(point)) == point
    deep = Deep(1)
    object.__setattr__(deep, "z", -1)
    with pytest.raises(ValueError):
        copy.copy(deep)


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
    assert not hasattr(one, "__dict__")
    for _ in range(2):  # before and after compilation
        with pytest.raises(TypeError):
            Counter()  # type: ignore[call-arg]


def test_dataclasses_is_imported_only_if_needed() -> None:
    """The module loads inspect, ast and tokenize, which takes 6 ms of a start."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_LIBRARY], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "True"]


def test_first_use_by_many_threads_at_once() -> None:
    for _ in range(20):

        class New(Value):
            x: int
            y: int = 2

        built: list[New] = []
        ready = threading.Barrier(4)

        def build(
            cls: type[New] = New, into: list[New] = built, ready: threading.Barrier = ready
        ) -> None:
            ready.wait()
            into.append(cls(1))

        threads = [threading.Thread(target=build) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert built == [New(1, 2)] * 4
