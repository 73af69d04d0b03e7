"""Downloads: open a file (which is logged), then read ranges.

The client limits its unanswered reads, which is the flow control; the server keeps no stream.
"""

from __future__ import annotations

from typing import Annotated

from protocol.codec.encoding import Buffer
from protocol.codec.fields import AtMost, Between, Count, FileId, UserName
from protocol.wire.messages.base import PIECE, FileView, Handle, Leaves, Reply, Request, message


@message(49, bulk="data")
class Opened(Reply):
    """An opened file: `leaves` is the first page of leaf hashes, `data` the first ≤ 256 KiB."""

    handle: Handle
    view: FileView
    leaves: Leaves
    data: Annotated[Buffer, AtMost(PIECE)]


@message(48, replies=(Opened,))
class GetOpen(Request):
    """Open `version` (0: the current one) of a file for reading."""

    owner: UserName
    file_id: FileId
    version: Annotated[int, Between(0, 2**31)]


@message(51)
class LeavesPage(Reply):
    """Up to 16,384 leaf hashes."""

    leaves: Leaves


@message(50, replies=(LeavesPage,))
class GetLeaves(Request):
    """Get leaf hashes from leaf `first` on."""

    handle: Handle
    first: Count


@message(53, bulk="data")
class Bytes(Reply):
    """The requested bytes of ciphertext."""

    data: Annotated[Buffer, AtMost(PIECE)]


@message(52, replies=(Bytes,))
class Read(Request):
    """Read `length` (≤ 1 MiB) bytes of ciphertext at `offset`; fewer only at the blob's end."""

    handle: Handle
    offset: Count
    length: Annotated[int, Between(1, PIECE)]
