"""One file as the log has it: its signed records, and the digest of each of its stored bytes.

The log has every record of a file, but neither metadata nor wraps. So the sidecar of a damaged
version can be built again without its content, which is lost, and later records can follow it.
"""

from __future__ import annotations

from typing import Self

from protocol.codec.errors import LogError
from protocol.codec.values import Mutable, field
from protocol.log import auditlog
from protocol.log.auditlog import LEAVE, LogEntry
from protocol.records.records import CONTENT_OPS, FileRecord
from protocol.wire.messages.base import GenerationSignature, SignedRecord
from sfsd.errors import Absent, DamagedError
from sfsd.log.journal import Journal
from sfsd.storage.json_files import Sidecar, cached_record
from sfsd.storage.paths import VersionPaths


class LoggedFile(Mutable):
    """A file of `owner` as the applied entries describe it. `records` are its records by revision,
    without endorsements; `paths` the digests of its stored files, None for a removed one."""

    owner: str
    file_id: str
    records: dict[int, SignedRecord] = field(default_factory=dict)
    paths: dict[str, bytes | None] = field(default_factory=dict)

    @classmethod
    def read(
        cls, journal: Journal, owner: str, file_id: str, first: int = 0, end: int | None = None
    ) -> Self:
        """Read entries [first, end) of the log; `end` is its present end by default. Only lines
        that name the file are parsed. Raises `DamagedError`."""
        found = cls(owner, file_id)
        mark = file_id.encode()  # a move's entry names the file it left in its detail
        for seq, line in enumerate(journal.lines(first, end), first):
            if mark not in line:
                continue
            try:
                found.apply(auditlog.parse(line, seq=seq))
            except LogError as exc:
                raise DamagedError("malformed log entry of this file", path=file_id) from exc
        return found

    def apply(self, entry: LogEntry) -> None:
        """Add what an entry says of the file."""
        stem = VersionPaths.for_version(self.owner, self.file_id, 1).sidecar.removesuffix("1.json")
        self.paths |= {
            path: digest for path, digest in entry.paths.items() if path.startswith(stem)
        }
        if entry.owner != self.owner or entry.file is None or entry.op == LEAVE:
            return
        for body, sigs in entry.records:
            record = FileRecord.parse(body)
            if record.file_id == self.file_id:
                signed = (GenerationSignature(record.generation, one) for one in sigs.values())
                self.records[record.rev] = SignedRecord(body, tuple(signed))

    @property
    def last_record(self) -> FileRecord:
        """The newest record. Raises `Absent` if the log has none."""
        if not self.records:
            raise Absent(VersionPaths.for_version(self.owner, self.file_id, 1).sidecar)
        return cached_record(self.records[max(self.records)].record)

    def content(self, version: int) -> SignedRecord:
        """Return the last record that made the content of a version. Raises `Absent`."""
        for rev in sorted(self.records, reverse=True):
            record = cached_record(self.records[rev].record)
            if record.op in CONTENT_OPS and record.version == version:
                return self.records[rev]
        raise Absent(VersionPaths.for_version(self.owner, self.file_id, version).sidecar)

    def sidecar_without_content(self, version: int) -> Sidecar:
        """Return the sidecar of a version whose content is lost. Raises `Absent`."""
        content = self.content(version)
        made = (cached_record(one.record) for one in self.records.values())
        newest = max(one.version or 0 for one in made if one.op in CONTENT_OPS)
        last = self.records[max(self.records)]
        head = last if version == newest and last.record != content.record else None
        return Sidecar(0, content, head, None, (), None)
