"""Files on their way up: small ones that wait for one another, large ones whose pieces were sent,
and all of many that are under way.
"""

from __future__ import annotations

from typing import Final

from protocol.codec import merkle
from protocol.wire.messages import Request
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.uploads import PutSmall
from sfsc.closing import Closing
from sfsc.crypto.envelope import ContentKey
from sfsc.errors import Unreachable
from sfsc.session.limits import MAX_REQUESTS
from sfsc.session.pipeline import Window
from sfsc.session.session import Session
from sfsc.transfer.attempts import Attempt, Content, Draft
from sfsc.transfer.chunks import MAX_BEGINNINGS, Sending, Workshop
from sfsc.transfer.openings import Openings
from sfsc.transfer.source import Input

_HELD: Final = 8
"""Pieces in memory of large files whose commit is under way, from which on no other is begun."""
_TOGETHER: Final = 16
_TOGETHER_SIZE: Final = 64 * 1024
"""Small files, and bytes of them, that are encrypted, signed and sent together; far fewer than a
window has, so that the server always has something to do."""


class Large:
    """A large file whose pieces were sent, and its commit with them or next. Its source is kept
    open for another beginning."""

    def __init__(self, plaintext: Input, name: str, expected: int | None) -> None:
        self.plaintext = plaintext
        self.name = name
        self.expected = expected
        self.attempt: Attempt
        self.sending: Sending
        self._beginnings = 1

    def begin_again(self) -> None:
        """Go back to the first byte of what the server has lost. Raises `Unreachable` where it does
        so too often, or where the source cannot."""
        if self._beginnings == MAX_BEGINNINGS or not self.plaintext.begin_again():
            raise Unreachable("the server has lost the upload", "put the file again")
        self._beginnings += 1


class Small:
    """A small file, read whole; each step of encrypting it sets what comes below it."""

    def __init__(
        self, source: Input, whole: bytes, name: str, file_id: str, expected: int | None = None
    ) -> None:
        """`source` was read, and may be closed."""
        self.source = source
        self.whole = whole
        self.name = name
        self.file_id = file_id
        self.expected = expected
        self.key: ContentKey
        self.ciphertext: memoryview
        self.draft: Draft

    def encrypt(self) -> None:
        self.key = ContentKey.fresh()
        self.ciphertext = self.key.encryptor().seal(self.whole, last=True)

    def describe(self) -> None:
        """All of the attempt that does not depend on the file's head."""
        ciphertext = self.ciphertext
        root = merkle.root([merkle.leaf_hash(ciphertext)])
        content = Content.of(self.source, self.name, self.file_id, self.key, root, self.expected)

        def build(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
            return PutSmall(body, signature, content.sealed, wraps, ciphertext)

        self.draft = Draft(content, build)


class Many(Closing):
    """Files under way, oldest first, and behind them small ones that wait for one another."""

    def __init__(self, session: Session, openings: Openings) -> None:
        self.window = Window[Attempt | Large](session)
        self.gathered: list[Small] = []
        self._openings = openings
        self.workshop = Workshop()
        self._large: list[Large] = []

    @property
    def has_room(self) -> bool:
        """Whether a large file may be begun beside those under way."""
        return sum(large.sending.under_way for large in self._large) < _HELD

    @property
    def full(self) -> bool:
        return len(self.window) + len(self.gathered) >= MAX_REQUESTS

    def __contains__(self, file_id: str) -> bool:
        return file_id in self.window or any(one.file_id == file_id for one in self.gathered)

    @property
    def are_enough(self) -> bool:
        """Whether what is gathered should wait for no others: neither a server that has less to do
        than that should."""
        count = len(self.gathered)
        return (
            count > len(self.window)
            or count >= _TOGETHER
            or sum(len(one.whole) for one in self.gathered) >= _TOGETHER_SIZE
        )

    def send(self, attempt: Attempt) -> None:
        self.window.send(attempt, attempt.request, attempt.content.file_id)

    def commit(self, large: Large) -> None:
        """Send the commit of what was sent."""
        self._large.append(large)
        attempt = large.attempt
        ahead = large.sending.ahead_of_commit
        self.window.send(large, attempt.request, attempt.content.file_id, ahead)

    def done(self, large: Large) -> None:
        self._large.remove(large)
        large.plaintext.close()

    def close(self) -> None:
        self.window.abandon()
        self._openings.abandon()
        for large in self._large:
            large.sending.abandon()
            large.plaintext.close()
        self._large.clear()
        self.workshop.close()
