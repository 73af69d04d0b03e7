"""Files in flight: which wait for a batch, and what they keep in memory."""

from __future__ import annotations

import io
import sys

import pytest

from protocol.wire.messages.changes import Commit
from sfsc.session.commit import Committer
from sfsc.session.session import Session
from sfsc.transfer.source import open_source
from sfsc.transfer.upload import (
    Put,
    SmallFile,
    Uploaded,
    UploadOpener,
    UploadQueue,
    encrypt_small,
)


def small(number: int, size: int) -> SmallFile:
    with open_source(io.BytesIO(bytes(size))) as source:
        return SmallFile(source, source.read_small() or b"", f"file {number}", f"{number:032x}")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # The first are sent at once to an idle server, then more together the more are in flight.
        (100, [8, 16, 32, 64, 128, 128, 128, 128]),
        (16 * 1024, [8, 16, 32, 32, 32, 32, 32, 32]),
        (64 * 1024, [8] * 8),
    ],
)
def test_small_files_are_collected_into_batches(
    session: Session, size: int, expected: list[int]
) -> None:
    uploaded, committer, batches = Uploaded(session), Committer[Put](session), list[int]()
    with UploadQueue(session, UploadOpener(session)) as queue:
        number = 0
        while not queue.full:
            queue.collect(small(number, size))
            assert f"{number:032x}" in queue
            number += 1
            if queue.has_batch or queue.full:
                collected = queue.take_collected()
                batches.append(len(collected))
                sent, failure = committer.prepare(encrypt_small(uploaded, collected))
                assert failure is None
                for one in sent:
                    queue.send(one)
        assert number == sum(expected)
    assert batches == expected


def test_what_is_in_flight_keeps_no_plaintext(session: Session) -> None:
    one = small(1, 1000)
    plaintext = one.plaintext
    [change] = encrypt_small(Uploaded(session), [one])
    [sent], failure = Committer[Put](session).prepare([change])
    assert failure is None
    del one
    assert sys.getrefcount(plaintext) == 2, "this function's, and the call's"
    assert change.metadata.size == 1000
    assert len(sent.changeset.drafts) == 1


def test_files_that_are_sent_together_share_a_wrap_batch(session: Session) -> None:
    uploaded, committer = Uploaded(session), Committer[Put](session)

    def batches(count: int) -> set[bytes]:
        changes = encrypt_small(uploaded, [small(number, 10) for number in range(count)])
        [sent], failure = committer.prepare(changes)
        assert failure is None
        drafts = sent.changeset.drafts
        assert len({draft.record.dek_commit for draft in drafts}) == count
        request = sent.request
        assert isinstance(request, Commit)
        assert len(request.wraps) == count
        return {batch.batch_id + batch.enc for batch in request.batches}

    first, second = batches(16), batches(16)
    assert (len(first), len(second)) == (1, 1)
    assert first != second
