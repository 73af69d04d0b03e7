"""Files in flight: which wait for a batch, and what they keep in memory."""

from __future__ import annotations

import io
import weakref

import pytest

from protocol.records.records import WRAP_ITEM_SIZE
from sfsc.session.limits import MAX_REQUESTS
from sfsc.session.session import Session
from sfsc.transfer.source import open_source
from sfsc.transfer.upload import RecordCommitter, SmallFile, UploadOpener, UploadQueue


def small(number: int, size: int) -> SmallFile:
    with open_source(io.BytesIO(bytes(size))) as source:
        return SmallFile(source, source.read_small() or b"", f"file {number}", f"{number:032x}")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # The first is sent at once to an idle server, then as many as are in flight already.
        (100, [1, 2, 4, 8, 16, 16, 16, 16, 16, 16, 16, 1]),
        (16 * 1024, [1, 2] + [4] * 31 + [1]),
        (64 * 1024, [1] * MAX_REQUESTS),
    ],
)
def test_small_files_are_collected_into_batches(
    session: Session, size: int, expected: list[int]
) -> None:
    committer, batches = RecordCommitter(session), list[int]()
    with UploadQueue(session, UploadOpener(session)) as queue:
        number = 0
        while not queue.full:
            queue.collected.append(small(number, size))
            assert f"{number:032x}" in queue
            number += 1
            if queue.has_batch or queue.full:
                batches.append(len(queue.collected))
                for one in queue.collected:
                    one.encrypt()
                    one.describe()
                attempts = [one.attempt for one in queue.collected]
                assert committer.prepare(attempts) is None
                queue.collected.clear()
                for attempt in attempts:
                    queue.send(attempt)
        assert number == MAX_REQUESTS
    assert batches == expected


def test_an_attempt_keeps_no_plaintext(session: Session) -> None:
    one = small(1, 1000)
    plaintext = weakref.ref(one)
    one.encrypt()
    one.describe()
    attempt = one.attempt
    assert RecordCommitter(session).prepare([attempt]) is None
    del one
    assert plaintext() is None
    assert attempt.content.metadata.size == 1000


def test_files_that_are_sent_together_share_a_wrap_batch(session: Session) -> None:
    committer = RecordCommitter(session)

    def heads(count: int) -> set[bytes]:
        chosen = [small(number, 10) for number in range(count)]
        for one in chosen:
            one.encrypt()
            one.describe()
        attempts = [one.attempt for one in chosen]
        assert committer.prepare(attempts) is None
        assert len({one.content.key.dek for one in attempts}) == count
        return {wrap.wrapped[:-WRAP_ITEM_SIZE] for one in attempts for wrap in one.wraps}

    first, second = heads(16), heads(16)
    assert (len(first), len(second)) == (1, 1)
    assert first != second
