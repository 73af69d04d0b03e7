"""A stored file as a seekable file object; only the segments that are read are fetched.

Each segment is verified against its leaf of the signed `segments_root`, whose leaves were fetched
and verified first (32 bytes per MiB), and by its own tag.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Final

from protocol.codec.encoding import Buffer
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.downloads import Bytes, Read
from sfsc.crypto.segments import plaintext_offset, segment_at
from sfsc.session.limits import Ticket
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session
from sfsc.transfer.remote_version import RemoteVersion, check_is_file

CACHED: Final = 4
"""Decrypted segments of 1 MiB kept in memory."""
AHEAD: Final = 4
"""Segments requested beyond the present one during sequential reads."""


class Reader(io.RawIOBase):
    """Reads one version, as it was when it was opened: `name`, `version` and `size` (bytes).

    Reads raise `NetworkError`, and `Tampered` for content that is not what was signed. Between
    reads the session can be used for other work.
    """

    def __init__(self, session: Session, remote: RemoteVersion) -> None:
        super().__init__()
        self.name: str = remote.metadata.name
        self.version: int = remote.file.version
        self.size: int = remote.metadata.size
        self._session = session
        self._remote = remote
        self._position = 0
        self._segments: OrderedDict[int, memoryview] = OrderedDict()
        self._asked: dict[int, Ticket] = {}
        self._connection = session.connections
        self._previous = -1
        # Last, because these may raise: the garbage collector closes this object even then.
        check_is_file(remote.metadata)
        self._decryptor = remote.decryptor()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._check_open()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError("invalid whence or negative position")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Buffer, /) -> int:  # type: ignore[override]  # bytes are not written
        """Read at most up to the end of the present segment; return 0 at the end of the file."""
        self._check_open()
        view = memoryview(buffer).cast("B")
        count = min(len(view), self.size - self._position)
        if count <= 0:
            return 0
        index = segment_at(self._position)
        with self._session.thread_guard:
            segment = self._segment(index)
        start = self._position - plaintext_offset(index)
        part = segment[start : start + count]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def close(self) -> None:
        if not self.closed:
            if self._connection == self._session.connections:
                for ticket in self._asked.values():
                    self._session.transport.abandon(ticket)
            self._asked.clear()
            self._segments.clear()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _segment(self, index: int) -> memoryview:
        found = self._segments.get(index)
        if found is None:
            piece = self._session.with_reconnect(lambda: self._fetch(index))
            found = self._segments[index] = self._decryptor.decrypt(index, piece)
            if len(self._segments) > CACHED:
                self._segments.popitem(last=False)
        self._segments.move_to_end(index)
        self._previous = index
        return found

    def _fetch(self, index: int) -> Buffer:
        self._drop_foreign_tickets()
        transport = self._session.transport
        size = self._decryptor.piece_size(index)
        if index == 0 and len(self._remote.first) >= size:
            return memoryview(self._remote.first)[:size]
        sequential = index in (0, self._previous + 1) or index in self._asked
        last = min(index + AHEAD, self._decryptor.segment_count - 1) if sequential else index
        for wanted in range(index, last + 1):
            if wanted not in self._asked and wanted not in self._segments:
                read = Read(
                    self._remote.handle(), wanted * PIECE, self._decryptor.piece_size(wanted)
                )
                self._asked[wanted] = transport.submit(read)
        for passed in [one for one in self._asked if not index <= one <= index + AHEAD]:
            transport.abandon(self._asked.pop(passed))
        return expect_reply(transport.result(self._asked.pop(index)), Bytes).data

    def _drop_foreign_tickets(self) -> None:
        """Forget the tickets of another connection; other work may have opened a new one."""
        if self._connection != self._session.connections:
            self._asked.clear()
            self._connection = self._session.connections
