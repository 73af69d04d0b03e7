"""Downloads: open files (which is logged), then read ranges.

The client limits its unanswered reads, which is the flow control; the server keeps no stream.
"""

from __future__ import annotations

from typing import Annotated, Final

from protocol.codec.encoding import Buffer
from protocol.codec.fields import AtMost, Between, Count, FileId, Struct, UserName
from protocol.wire.messages.base import (
    MAX_SMALL,
    PIECE,
    Error,
    FileView,
    Handle,
    Leaves,
    Receipt,
    Reply,
    Request,
    message,
)

HEAD: Final = 1024
"""Bytes of a long ciphertext that come with its opening, beside other ciphertexts."""
MAX_OPENED: Final = 256
"""Most versions of one `Open`."""


class OpenTarget(Struct):
    """`version` (0: the current one) of a file."""

    file_id: FileId
    version: Annotated[int, Between(0, 2**31)]


class OpenedVersion(Struct):
    """A version that was opened. `leaves` is the first page of its leaf hashes.

    `data` is all of a ciphertext of at most 256 KiB. Of a longer one it is the first 256 KiB if the
    request has no other target, else the first `HEAD` bytes, in which its header is.
    """

    handle: Handle
    view: FileView
    leaves: Leaves
    data: Annotated[bytes, AtMost(MAX_SMALL)]


class OpenResult(Struct):
    """The version that was opened, or why it was not."""

    opened: OpenedVersion | None
    error: Error | None


@message(49)
class Opened(Reply):
    """The results for the first targets, at least one, in order: as many as one answer has.

    `receipt` is of the entry that logs the downloads; None if all of them were logged before.
    """

    results: Annotated[tuple[OpenResult, ...], AtMost(MAX_OPENED)]
    receipt: Receipt | None = None


@message(48, replies=(Opened,))
class Open(Request):
    """Open up to 256 versions of files of `owner` for reading, no target twice."""

    owner: UserName
    targets: Annotated[tuple[OpenTarget, ...], AtMost(MAX_OPENED)]


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
