"""Looking at files and changing them without new ciphertext."""

from __future__ import annotations

from typing import Annotated, ClassVar

from protocol.codec.fields import AtMost, Between, Count, FileId, Signature, Struct, UserName
from protocol.wire.messages.base import (
    Done,
    FileView,
    Metadata,
    RecordBytes,
    Reply,
    Request,
    SignedRecord,
    Wraps,
    message,
)

MAX_PAGE = 256
"""Entries in one page of a listing; the server sends fewer where a page would pass a frame."""


@message(65)
class Stated(Reply):
    view: FileView


@message(64)
class Stat(Request):
    """The sidecar of `version` (0: the newest, deleted or not) of a file."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Stated,)

    owner: UserName
    file_id: FileId
    version: Annotated[int, Between(0, 2**31)]


@message(67)
class Listing(Reply):
    """Newest version of each file, by file_id; `next` is the next page's `after`, "" at the end."""

    views: Annotated[tuple[FileView, ...], AtMost(MAX_PAGE)]
    next: Annotated[str, AtMost(32)]


@message(66)
class List(Request):
    """The asker's files after file_id `after` ("" = from the start), those changed at or after log
    entry `since_seq` only; deleted ones are among them, so that a cache can follow."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Listing,)

    after: Annotated[str, AtMost(32)]
    limit: Annotated[int, Between(1, MAX_PAGE)]
    since_seq: Count


@message(69)
class HistoryPage(Reply):
    """A file's records in order of `rev`, with their signatures; `next` is 0 at the end."""

    records: Annotated[tuple[SignedRecord, ...], AtMost(MAX_PAGE)]
    next: Count


@message(68)
class History(Request):
    """All records of a file from revision `first` on."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (HistoryPage,)

    owner: UserName
    file_id: FileId
    first: Count


class RecordChange(Struct):
    """A record with its signature and what its op brings: metadata and wraps (restore, move)."""

    record: RecordBytes
    signature: Signature
    metadata: Metadata
    wraps: Wraps


@message(70)
class Record(Request):
    """Delete, restore, move, access or purge: signed records, done all or none. A move is two: the
    record onto the new file's head, then the tombstone of the old."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Done,)

    changes: Annotated[tuple[RecordChange, ...], AtMost(2)]
