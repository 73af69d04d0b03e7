"""Verifies that the log checkpoints quoted in files' records are consistent with the log that we
see.

Every record quotes size and root of the newest checkpoint that its signer had verified. A server
that shows two users different logs must show each of them the other's records, which exposes the
split view.
"""

from __future__ import annotations

from typing import Final

from protocol.wire.messages import Reply
from protocol.wire.messages.log import CONSISTENCY, LogProof
from sfsc.session.pipeline import pipelined
from sfsc.session.server_errors import expect_proof
from sfsc.session.session import Session
from sfsc.trust.file_records import VerifiedFile
from sfsc.trust.server_log import TreeHead, quoted_note

_MANY: Final = 4096
"""Checkpoints, of about 2 KB each, from which on they are verified without waiting for more."""
_REMEMBERED: Final = 65_536
"""Verified checkpoints that are remembered and not verified again."""


class SeenCheckpoints:
    """Collects the checkpoints quoted in records; `verify` verifies the new ones, pipelined."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._proven: set[tuple[int, bytes]] = set()
        self._open: dict[tuple[int, bytes], TreeHead] = {}

    def add(self, file: VerifiedFile) -> None:
        """Add the checkpoints that the records of a verified file quote."""
        for record, body in ((file.head, file.head_body), (file.content, file.content_body)):
            seen = record.seen
            if seen[0] and not self._is_known(seen):
                self._open[seen] = TreeHead(*seen, quoted_note(record, body))

    def _is_known(self, seen: tuple[int, bytes]) -> bool:
        return seen in self._open or seen in self._proven or self._session.trust.has_proven(seen)

    @property
    def is_full(self) -> bool:
        """Whether the collected checkpoints should be verified now instead of at the end."""
        return len(self._open) >= _MANY

    def verify(self) -> None:
        """Verify that our log continues all collected checkpoints. Raises `Fork` and `Rollback`."""
        session = self._session
        if not self._open:
            return
        if max(size for size, _ in self._open) > session.trust.newest.size:
            session.refresh_log()
        self._verify_all(list(self._open.values()))
        if len(self._proven) > _REMEMBERED:
            self._proven.clear()
        self._proven.update(self._open)
        self._open.clear()

    def _verify_all(self, points: list[TreeHead]) -> None:
        # One checkpoint for all: after a reconnect, the session's newest is a later one.
        newest, older = self._session.trust.newest, list[tuple[TreeHead, LogProof]]()
        for point in points:
            if point.size < newest.size:
                older.append((point, LogProof(CONSISTENCY, point.size, newest.size)))
            else:
                self._check(point, newest, ())

        def check(point: TreeHead, reply: Reply) -> None:
            self._check(point, newest, expect_proof(reply))

        for _ in pipelined(self._session, older, check):
            pass

    def _check(self, point: TreeHead, newest: TreeHead, proof: tuple[bytes, ...]) -> None:
        with self._session.keeping_evidence():
            self._session.trust.check_continues(point, newest, proof)
