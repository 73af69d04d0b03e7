"""Files on their way up: which wait for one another, and what they keep in memory."""

from __future__ import annotations

import io
import weakref

import pytest

from sfsc.session.limits import MAX_REQUESTS
from sfsc.session.session import Session
from sfsc.transfer.source import opened
from sfsc.transfer.upload import Attempts, Many, Openings, Small


def small(number: int, size: int) -> Small:
    with opened(io.BytesIO(bytes(size))) as source:
        return Small(source, source.small() or b"", f"file {number}", f"{number:032x}")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # The first go at once: a server has nothing to do. Then as many as it has to do already.
        (100, [1, 2, 4, 8, 16, 16, 16, 16, 16, 16, 16, 1]),
        (16 * 1024, [1, 2] + [4] * 31 + [1]),
        (64 * 1024, [1] * MAX_REQUESTS),
    ],
)
def test_small_ones_wait_for_a_few_others(session: Session, size: int, expected: list[int]) -> None:
    attempts, batches = Attempts(session), list[int]()
    with Many(session, Openings(session)) as many:
        number = 0
        while not many.full:
            many.gathered.append(small(number, size))
            assert f"{number:032x}" in many
            number += 1
            if many.are_enough or many.full:
                batches.append(len(many.gathered))
                for one in many.gathered:
                    one.encrypt()
                    one.describe()
                made, _ = attempts.make_all([one.draft for one in many.gathered])
                many.gathered.clear()
                for attempt in made:
                    many.send(attempt)
        assert number == MAX_REQUESTS
    assert batches == expected


def test_what_is_sent_keeps_no_plaintext(session: Session) -> None:
    one = small(1, 1000)
    plaintext = weakref.ref(one)
    one.encrypt()
    one.describe()
    (attempt,), _ = Attempts(session).make_all([one.draft])
    del one
    assert plaintext() is None
    assert attempt.content.metadata.size == 1000
