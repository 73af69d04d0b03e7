"""The records of a file that lead to its head by their `prev`, without I/O.

They tell which record made each version last. A content that was replaced, or that the server had
refused, is validly signed, but no record leads to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from protocol.codec.values import changed
from protocol.records.records import CONTENT_OPS, FileRecord, record_hash
from protocol.wire.messages.base import SignedRecord
from sfsc.errors import BadRecord, Rollback
from sfsc.trust.file_records import VerifiedFile, parse_record
from sfsc.trust.server_log import REPORT

MAX_REVISIONS: Final = 1_000_000
"""Most records of one file that are read."""


class RecordChain:
    """Consecutive records of one file, up to its head. `first` is the lowest revision so far.

    The head is verified, and so are the records before it by their hashes. Only the hash of the
    last record of each version is kept.
    """

    def __init__(self, file: VerifiedFile) -> None:
        """Begin with the head of `file`."""
        self._file = file.head.owner, file.file_id
        self._last = file.head.rev, record_hash(file.head_body)
        self._made: dict[int, bytes] = {}
        self.first: int = file.head.rev
        self._before = file.head.prev
        self._note(file.head, self._last[1])

    def extend(self, file: VerifiedFile) -> bool:
        """Advance to the head of `file`, if that is the present head or its successor. Return
        whether it is."""
        head, digest = file.head, record_hash(file.head_body)
        if self._file != (head.owner, file.file_id):
            return False
        if self._last == (head.rev, digest):
            return True
        if (head.rev - 1, head.prev) != self._last:
            return False
        self._last = head.rev, digest
        if head.op in CONTENT_OPS:
            self._made[head.version or 0] = digest
        return True

    def prepend(self, records: Sequence[SignedRecord]) -> None:
        """Add the records before `first`, in order. Raises `BadRecord` if they do not lead to it,
        and if the file has more than `MAX_REVISIONS`."""
        if self._last[0] - self.first > MAX_REVISIONS:
            raise BadRecord("the file has too many records")
        for signed in reversed(records):
            record, digest = parse_record(signed), record_hash(signed.record)
            if (record.rev, digest) != (self.first - 1, self._before):
                raise BadRecord(
                    f"record {self.first - 1} of the file is not the one that the next "
                    "record names",
                    REPORT,
                )
            self.first, self._before = record.rev, record.prev
            self._note(record, digest)

    def confirm(self, file: VerifiedFile, *, newest: bool = False) -> VerifiedFile:
        """Return `file` as confirmed. Raises `Rollback` if another record made its version last,
        or with `newest` if a record made a higher version."""
        if self._made.get(file.version) != record_hash(file.content_body):
            raise Rollback(
                f"the server shows another version {file.version} than the file's records name",
                REPORT,
            )
        if newest and file.version != max(self._made):
            raise Rollback("the server shows an older version of the file as its newest", REPORT)
        return changed(file, confirmed=True)

    def _note(self, record: FileRecord, digest: bytes) -> None:
        """Note what a record made; records come from the last to the first."""
        if record.op in CONTENT_OPS:
            self._made.setdefault(record.version or 0, digest)
