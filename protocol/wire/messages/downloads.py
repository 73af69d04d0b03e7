"""Downloads: open a file (which is logged), then read ranges.

The client limits its unanswered reads, which is the flow control; the server keeps no stream.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from protocol.codec.encoding import Buffer
from protocol.codec.fields import AtMost, Between, Count, FileId, UserName
from protocol.wire.messages.base import PIECE, FileView, Handle, Leaves, Reply, Request, message


@message(49)
class Opened(Reply):
    """An opened file: `leaves` is the first page of leaf hashes, `data` the first ≤ 256 KiB."""

    BULK: ClassVar[str | None] = "data"

    handle: Handle
    view: FileView
    leaves: Leaves
    data: Annotated[Buffer, AtMost(PIECE)]


@message(48)
class GetOpen(Request):
    """Open `version` (0: the current one) of a file for reading."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Opened,)

    owner: UserName
    file_id: FileId
    version: Annotated[int, Between(0, 2**31)]


@message(51)
class LeavesPage(Reply):
    """Up to 16,384 leaf hashes."""

    leaves: Leaves


@message(50)
class GetLeaves(Request):
    """Get leaf hashes from leaf `first` on."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (LeavesPage,)

    handle: Handle
    first: Count


@message(53)
class Bytes(Reply):
    """The requested bytes of ciphertext."""

    BULK: ClassVar[str | None] = "data"

    data: Annotated[Buffer, AtMost(PIECE)]


@message(52)
class Read(Request):
    """Read `length` (≤ 1 MiB) bytes of ciphertext at `offset`; fewer only at the blob's end."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Bytes,)

    handle: Handle
    offset: Count
    length: Annotated[int, Between(1, PIECE)]
