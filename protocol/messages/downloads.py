"""Fetching a file: open (which is logged), then read ranges.

The client's window of unanswered reads is the flow control; the server keeps no stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from protocol.encoding import Buffer
from protocol.fields import AtMost, Between, Count, FileId, UserName
from protocol.messages.base import PIECE, FileView, Handle, Leaves, Reply, Request, message


@message(49)
@dataclass(frozen=True, slots=True)
class Opened(Reply):
    """`leaves` is the first page of leaf hashes, `data` the first bytes of the blob (≤ 256 KiB)."""

    BULK: ClassVar[str | None] = "data"

    handle: Handle
    view: FileView
    leaves: Leaves
    data: Annotated[Buffer, AtMost(PIECE)]


@message(48)
@dataclass(frozen=True, slots=True)
class GetOpen(Request):
    """Open `version` (0: the current one) of a file for reading."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Opened,)

    owner: UserName
    file_id: FileId
    version: Annotated[int, Between(0, 2**31)]


@message(51)
@dataclass(frozen=True, slots=True)
class LeavesPage(Reply):
    leaves: Leaves


@message(50)
@dataclass(frozen=True, slots=True)
class GetLeaves(Request):
    """Leaf hashes from leaf `first` on."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (LeavesPage,)

    handle: Handle
    first: Count


@message(53)
@dataclass(frozen=True, slots=True)
class Bytes(Reply):
    BULK: ClassVar[str | None] = "data"

    data: Annotated[Buffer, AtMost(PIECE)]


@message(52)
@dataclass(frozen=True, slots=True)
class Read(Request):
    """`length` ≤ 1 MiB bytes of ciphertext at `offset`; fewer only at the end of the blob."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Bytes,)

    handle: Handle
    offset: Count
    length: Annotated[int, Between(1, PIECE)]
