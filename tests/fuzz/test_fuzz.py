"""Two thousand inputs of `make fuzz`, and that a fuzzer notices a defect."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import msgspec
import pytest

from tests.fuzz.__main__ import Result, run_all, run_kind
from tests.fuzz.kinds import KINDS
from tests.fuzz.mutations import MAX_INPUT, Mutator
from tests.fuzz.target import Parser, Stream
from tests.fuzz.world import World, running_world

INPUTS = 2000
SAMPLES = [msgspec.msgpack.encode({"a": [1, b"bytes", "text"], "b": None}), b'{"a":1,"b":[2]}']


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    logging.disable()
    with running_world(tmp_path_factory.mktemp("world")) as running:
        yield running
    logging.disable(logging.NOTSET)


def test_only_expected_errors_refuse_changed_inputs(world: World) -> None:
    result = run_all(world, list(KINDS), INPUTS, seed=0, steps=1)
    assert not result.defects, "\n".join(result.defects[:3])
    assert not result.slow
    assert sum(result.tried.values()) == pytest.approx(INPUTS, abs=len(KINDS))
    assert {name.partition(":")[0] for name in result.tried} == set(KINDS)
    # Changes are small enough that some inputs of each kind are still valid, and not all are.
    for kind in KINDS:
        names = [name for name in result.tried if name.startswith(f"{kind}:")]
        accepted = sum(result.accepted[name] for name in names)
        assert 0 < accepted < sum(result.tried[name] for name in names), kind


def test_an_unexpected_error_is_a_defect() -> None:
    def parse(data: bytes) -> None:
        if len(data) % 2:
            raise ValueError(data)
        if len(data) % 3:
            raise IndexError

    target = Parser("parser", SAMPLES, (ValueError,), parse)
    result = Result()
    run_kind("kind", [target], 200, 1, result)
    assert 10 < len(result.defects) < 190
    assert all("IndexError" in one and "ValueError" not in one for one in result.defects)
    number = int(result.defects[0].split()[0].partition(":")[2])
    again = Result()
    run_kind("kind", [target], 1, 1, again, number)
    assert again.defects == result.defects[:1]


def test_a_stream_is_fed_completely() -> None:
    fed: list[bytes] = []
    target = Stream("stream", SAMPLES, (ValueError,), lambda: fed.append)
    mutator = Mutator(random.Random(3))
    for _ in range(100):
        fed.clear()
        target.run(mutator)
        assert b"".join(fed) in (target.last, target.last[:600])


def test_changes_follow_from_the_seed_and_are_of_any_kind() -> None:
    def changes(seed: int) -> list[bytes]:
        mutator = Mutator(random.Random(seed))
        return [mutator.change(one, SAMPLES) for one in SAMPLES * 500]

    first = changes(1)
    assert first == changes(1)
    assert first != changes(2)
    assert max(map(len, first)) <= MAX_INPUT
    assert sum(one in SAMPLES for one in first) < 100
    values = []
    for one in first:
        try:
            values.append(msgspec.msgpack.decode(one))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    assert len(values) > 200  # many changes are to the value that the bytes encode
