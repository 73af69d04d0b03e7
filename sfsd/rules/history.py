"""All records of a file, in order.

Most are in its sidecars: the record that made each version, and the last one. What came between
(an access, a delete that was undone) stands in the log only, and is looked for there.
"""

from __future__ import annotations

from protocol.codec.errors import LogError
from protocol.log import auditlog
from protocol.records.records import FileRecord
from protocol.wire.messages.base import GenerationSignature, SignedRecord
from protocol.wire.messages.files import MAX_PAGE
from sfsd.errors import DamagedError
from sfsd.log.journal import Journal
from sfsd.rules.record_rules import Head
from sfsd.storage.json_files import record_of


class Histories:
    """Reads them. Safe on several threads."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def records(self, head: Head, first: int) -> list[SignedRecord]:
        """Records from revision `first` (≥ 1) on, at most `MAX_PAGE`, none left out.

        Raises `DamagedError` where the log does not have what it must.
        """
        if head.document is None or head.record is None:
            return []
        wanted = range(first, min(first + MAX_PAGE, head.record.rev + 1))
        found = {head.record.rev: head.document.value.last}
        for version in range(1, head.version + 1):
            sidecar = head.files.sidecar(head.file_id, version).value
            found[sidecar.content_record.rev] = sidecar.content
            found.setdefault(sidecar.head_record.rev, sidecar.last)
        if missing := [rev for rev in wanted if rev not in found]:
            # Whoever signed the one before had seen so much of the log: all else came after that.
            known = max((rev for rev in found if rev < missing[0]), default=0)
            begin = record_of(found[known].record).seen[0] if known else 0
            # What a sidecar has was endorsed since; what stands in the log alone never is.
            found = self._logged(head, begin, head.document.value.seq) | found
        if any(rev not in found for rev in wanted):
            raise DamagedError("the log lacks a record of this file", path=head.document.path)
        return [found[rev] for rev in wanted]

    def _logged(self, head: Head, first: int, last: int) -> dict[int, SignedRecord]:
        """Every record of the file in the log from entry `first` up to `last`, by revision."""
        found: dict[int, SignedRecord] = {}
        mark = head.file_id.encode()  # of a move also the file it left, which its detail names
        for seq, line in enumerate(self._journal.lines(first, last + 1), first):
            if mark not in line:
                continue
            try:
                entry = auditlog.parse(line, seq=seq)
            except LogError as exc:
                raise DamagedError("a line of its log does not parse", path=head.file_id) from exc
            if entry.owner != head.files.owner or entry.file is None:
                continue
            for body, sigs in entry.records:
                record = FileRecord.parse(body)
                if record.file_id == head.file_id:
                    found[record.rev] = SignedRecord(
                        body,
                        tuple(GenerationSignature(record.generation, one) for one in sigs.values()),
                    )
        return found
